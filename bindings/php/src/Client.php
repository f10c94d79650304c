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
 * One connected client. All methods return at once.
 */
final class Client
{
    /** A value of the program's own. */
    public mixed $state = null;
    /** @var array<string, Group> of which it is a member, by name */
    private array $groups = [];
    /** @var array{string, float}|null payload and time of the last ping */
    private ?array $ping = null;

    /**
     * @internal
     */
    public function __construct(private readonly Connection $connection, public readonly Request $request)
    {
    }

    /**
     * Returns the unique id of the connection; it stays the same at the next producer.
     */
    public function guid(): string
    {
        return $this->request->id;
    }

    /**
     * Sends a message.
     *
     * @param bool|null $binary true: as binary; false: as text; null: as text if it is UTF-8,
     *                          else as binary
     *
     * @return bool True: sent, or queued for a slow client. False: the client has ended or is
     *              being closed; or more than maxQueueBytes are queued already, and this call
     *              closes it with code 1013.
     *
     * @throws InvalidArgument text that is not UTF-8
     */
    public function send(string $data, ?bool $binary = null): bool
    {
        return $this->connection->sendFrame(Message::of($data, $binary)->encode());
    }

    /**
     * @internal
     */
    public function connection(): Connection
    {
        return $this->connection;
    }

    /**
     * Closes the connection; a ConnectionClosed event follows.
     *
     * Queued messages are sent first, within 10 s. A client that is not accepted yet is
     * rejected with 503. A second call, or a call for a client that has ended, does nothing.
     *
     * @throws InvalidArgument an invalid code (use 1000-1003, 1007-1014 or 3000-4999), or a
     *                         reason of more than 123 bytes
     */
    public function close(int $code = Close::NORMAL, string $reason = ''): void
    {
        $this->connection->sendClose(new Close($code, $reason));
    }

    /**
     * Accepts the client, with SetEnv APACHEWS_ACCEPT producer. Before that the client has no
     * HTTP response, and messages cannot be sent to it.
     *
     * @param string|null                           $subprotocol one of $request->offered, or null
     * @param array<array-key, string|list<string>> $headers     values by name, for the response
     *
     * @return bool false if Apache does not wait for an answer: the client was answered, the
     *              wait timed out (APACHEWS_CONNECT_TIMEOUT, 5 s), or Apache accepts clients
     *              itself
     *
     * @throws NotAsked        Apache accepts clients itself: subprotocol and headers would be lost
     * @throws InvalidArgument a subprotocol that was not offered, or an invalid header
     */
    public function accept(?string $subprotocol = null, array $headers = []): bool
    {
        $answer = Answer::accept($subprotocol, $headers);
        if (!$this->request->answerRequired && ($subprotocol !== null || $headers !== [])) {
            throw new NotAsked('accept() with a subprotocol or headers');
        }
        if ($subprotocol !== null && !in_array($subprotocol, $this->request->offered, true)) {
            $offered = $this->request->offered === [] ? 'none' : implode(', ', $this->request->offered);
            throw new InvalidArgument("the client did not offer \"$subprotocol\"; it offered: $offered");
        }
        return $this->connection->sendAnswer($answer);
    }

    /**
     * Rejects the client with an HTTP response, with SetEnv APACHEWS_ACCEPT producer.
     *
     * @param int                                   $status  300 to 599
     * @param string                                $body    text
     * @param array<array-key, string|list<string>> $headers values by name, for the response
     *
     * @return bool false if Apache does not wait for an answer any more
     *
     * @throws NotAsked        Apache accepts clients itself
     * @throws InvalidArgument an invalid status or header, or too large an answer
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
     * Sends a PING; the client's answer is an event of type EventType::Pong with the latency.
     * (Apache also pings every client, and closes those that do not answer.)
     *
     * @return bool false if the client has ended or is being closed
     */
    public function ping(): bool
    {
        $payload = random_bytes(8);
        $this->ping = [$payload, Loop::now()];
        return $this->connection->sendFrame(Frame::encode(Frame::PING, $payload));
    }

    /**
     * Returns the bytes that wait for Apache, without those in the kernel and in Apache.
     */
    public function queuedBytes(): int
    {
        return $this->connection->waitingBytes();
    }

    /**
     * Returns whether messages cannot be sent any more: it has ended or is being closed.
     */
    public function hasEnded(): bool
    {
        return $this->connection->state->hasEnded();
    }

    /**
     * Returns the groups of which it is a member.
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
     * @return float|null seconds since the matching ping; null: it does not match
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
        $this->connection->joinGroup($group);
    }

    /**
     * @internal
     */
    public function left(Group $group): void
    {
        unset($this->groups[$group->name]);
        $this->connection->leaveGroup($group);
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
