<?php

declare(strict_types=1);

namespace apachews;

use apachews\Exception\InvalidArgument;
use apachews\Exception\NotAsked;
use apachews\Transport\Connection;
use apachews\Transport\Loop;
use apachews\Wire\Answer;
use apachews\Wire\Close;
use apachews\Wire\Frame;
use apachews\Wire\Message;

/**
 * One connected client. Every method returns at once, whatever the client does.
 */
final class Client
{
    /** The program's own: whatever it wants to know of this client. */
    public mixed $state = null;
    /** @var array<string, Group> those it is in, by name */
    private array $groups = [];
    /** @var array{string, float}|null the last ping: payload, when */
    private ?array $ping = null;

    /**
     * @internal
     */
    public function __construct(private readonly Connection $connection, public readonly Request $request)
    {
    }

    /**
     * Returns the connection's id: unique, and the same at the next producer.
     */
    public function guid(): string
    {
        return $this->request->id;
    }

    /**
     * Sends a message.
     *
     * @param bool|null $binary true: as binary; false: as text; null: as text where it is
     *                          UTF-8, else as binary
     *
     * @return bool True: sent, or queued for a client that is slow. False: the client is
     *              gone or being closed; or more than maxQueueBytes wait for it already,
     *              and this message cost it the connection, with code 1013.
     *
     * @throws InvalidArgument it is to be text, and is not UTF-8
     */
    public function send(string $data, ?bool $binary = null): bool
    {
        return $this->connection->sendFrame(Message::of($data, $binary)->encode());
    }

    /**
     * @internal
     */
    public function sendFrame(string $frame): bool
    {
        return $this->connection->sendFrame($frame);
    }

    /**
     * Says goodbye; a ConnectionClosed event follows.
     *
     * Queued messages go first, as far as the client takes them within 10 s. To a client
     * that was not accepted yet it is a reject(503). Closing again, or closing a client
     * that is gone, does nothing.
     *
     * @throws InvalidArgument a code that may not be sent (use 1000-1003, 1007-1014 or
     *                         3000-4999), or a reason of more than 123 bytes
     */
    public function close(int $code = Close::NORMAL, string $reason = ''): void
    {
        $this->connection->sendClose(new Close($code, $reason));
    }

    /**
     * Lets the client in, where Apache leaves that to the producer: with
     * SetEnv APACHEWS_ACCEPT producer. Until then it has no response, and nothing can be
     * sent.
     *
     * @param string|null                           $subprotocol one of $request->offered, or null
     * @param array<array-key, string|list<string>> $headers     values by name, to add to the response
     *
     * @return bool false where nobody waits for it: it was answered, or Apache gave up
     *              (APACHEWS_CONNECT_TIMEOUT, 5 s), or accepts by itself
     *
     * @throws NotAsked        Apache accepts by itself, and there is a subprotocol or a header
     *                         that would be lost
     * @throws InvalidArgument a subprotocol that was not offered, or a header that may not be
     *                         sent
     */
    public function accept(?string $subprotocol = null, array $headers = []): bool
    {
        $answer = Answer::accept($subprotocol, $headers);
        if (!$this->request->answerRequired && ($subprotocol !== null || $headers !== [])) {
            throw new NotAsked('accept() with a subprotocol or headers');
        }
        if ($subprotocol !== null && !in_array($subprotocol, $this->request->offered, true)) {
            $offered = $this->request->offered === [] ? 'none' : implode(', ', $this->request->offered);
            throw new InvalidArgument("the client did not offer \"$subprotocol\", but $offered");
        }
        return $this->connection->sendAnswer($answer);
    }

    /**
     * Refuses the client with an HTTP response, where Apache leaves that to the producer.
     *
     * @param int                                   $status  300 to 599
     * @param string                                $body    text
     * @param array<array-key, string|list<string>> $headers values by name, to add to the response
     *
     * @return bool false where nobody waits for it: it was answered, or Apache gave up
     *
     * @throws NotAsked        Apache accepts by itself; the client is in
     * @throws InvalidArgument a status or a header that may not be sent, or too much
     */
    public function reject(int $status = 403, string $body = '', array $headers = []): bool
    {
        $answer = Answer::reject($status, $body, $headers);
        if (!$this->request->answerRequired) {
            throw new NotAsked('reject()');
        }
        return $this->connection->sendAnswer($answer);
    }

    /**
     * Asks the client for a sign of life; an event of type EventType::Pong tells how long
     * it took. (Apache pings every client too, by itself, and closes who does not answer.)
     *
     * @return bool false where the client is gone or being closed
     */
    public function ping(): bool
    {
        $payload = random_bytes(8);
        $this->ping = [$payload, Loop::now()];
        return $this->connection->sendFrame(Frame::encode(Frame::PING, $payload));
    }

    /**
     * Returns what waits for the client to read, beside what the kernel and Apache have.
     */
    public function queuedBytes(): int
    {
        return $this->connection->queuedBytes();
    }

    /**
     * Tells whether nothing can be sent any more, because it is gone or being closed.
     */
    public function hasEnded(): bool
    {
        return $this->connection->state->hasEnded();
    }

    /**
     * Returns the groups it is in.
     *
     * @return list<Group>
     */
    public function groups(): array
    {
        return array_values($this->groups);
    }

    /**
     * @internal
     *
     * @return float|null the seconds since the ping that this answers; null: it answers none
     */
    public function receivePong(string $payload): ?float
    {
        if ($this->ping === null || $this->ping[0] !== $payload) {
            return null;
        }
        $latency = Loop::now() - $this->ping[1];
        $this->ping = null;
        return $latency;
    }

    /**
     * @internal
     */
    public function joined(Group $group): void
    {
        $this->groups[$group->name] = $group;
    }

    /**
     * @internal
     */
    public function left(Group $group): void
    {
        unset($this->groups[$group->name]);
    }

    /**
     * @internal
     */
    public function leaveGroups(): void
    {
        foreach ($this->groups as $group) {
            $group->remove($this);
        }
    }
}
