<?php

declare(strict_types=1);

namespace apachews;

use apachews\Exception\InvalidArgument;
use apachews\Exception\NoClient;
use apachews\Wire\Close;
use apachews\Wire\Message;

/**
 * One thing that happened: what Server::dequeue() returns.
 *
 * Of every client the events are: one Accept; then IO and NoData in the order in which it
 * sent its messages; then exactly one ConnectionClosed, however the connection ended. A
 * Close (somebody said goodbye) or an Error (something was wrong with what came) may stand
 * before it. An Error without a client is about the server itself, a NoData without one
 * says that nothing came in time, an Invalid is about a connection that never became a
 * client.
 *
 * A client that a producer handed on (Server::drain()), or left behind when it died, is an
 * Accept at the next one, with isResumed() true.
 */
final class Event
{
    /**
     * @internal
     *
     * @param int        $code    close code of a Close, ConnectionClosed, Error or Invalid: 1006
     *                            where the connection broke off, 1005 where the client gave none,
     *                            1012 where it went to another producer; else 0
     * @param string     $reason  text that goes with the code, or ""
     * @param float|null $latency of a Pong: seconds from the ping to its answer
     */
    public function __construct(
        private readonly EventType $type,
        private readonly ?Client $client = null,
        private readonly ?Message $message = null,
        public readonly int $code = 0,
        public readonly string $reason = '',
        public readonly ?float $latency = null
    ) {
    }

    /**
     * Returns what happened: ApacheWSAcceptEvent and so on.
     */
    public function type(): EventType
    {
        return $this->type;
    }

    /**
     * Returns the message.
     *
     * Events that carry no message give ApacheWSConnectionClosed (also for a Close),
     * ApacheWSError (also for an Invalid), or else ApacheWSNoData. Reading twice gives the
     * same.
     */
    public function read(): string|EventType
    {
        return $this->message?->data ?? match ($this->type) {
            EventType::Close, EventType::ConnectionClosed => EventType::ConnectionClosed,
            EventType::Error, EventType::Invalid => EventType::Error,
            default => EventType::NoData,
        };
    }

    /**
     * Tells whether the message is binary.
     */
    public function isBinary(): bool
    {
        return $this->message !== null && $this->message->isBinary;
    }

    /**
     * Sends a message to the client of the event; see Client::send.
     *
     * @param bool|null $binary null: the kind of the message that came; without one, as
     *                          Client::send has it
     *
     * @throws InvalidArgument it is to be text, and is not UTF-8
     * @throws NoClient
     */
    public function write(string $data, ?bool $binary = null): bool
    {
        return $this->getClient()->send($data, $binary ?? $this->message?->isBinary);
    }

    /**
     * The same as write().
     *
     * @throws InvalidArgument
     * @throws NoClient
     */
    public function respond(string $data, ?bool $binary = null): bool
    {
        return $this->write($data, $binary);
    }

    /**
     * Closes the client of the event; see Client::close. Without one it does nothing.
     *
     * @throws InvalidArgument a code or a reason that may not be sent
     */
    public function close(int $code = Close::NORMAL, string $reason = ''): void
    {
        $this->client?->close($code, $reason);
    }

    /**
     * Lets the client of the event in; see Client::accept.
     *
     * @param array<array-key, string|list<string>> $headers values by name
     */
    public function accept(?string $subprotocol = null, array $headers = []): bool
    {
        return $this->getClient()->accept($subprotocol, $headers);
    }

    /**
     * Refuses the client of the event; see Client::reject.
     *
     * @param array<array-key, string|list<string>> $headers values by name
     */
    public function reject(int $status = 403, string $body = '', array $headers = []): bool
    {
        return $this->getClient()->reject($status, $body, $headers);
    }

    /**
     * Returns the client of the event.
     *
     * @throws NoClient nothing came in time, or the event is about the server itself
     */
    public function getClient(): Client
    {
        return $this->client ?? throw new NoClient(
            rtrim("an event {$this->type->name} without a client: {$this->reason}", ': ')
        );
    }

    /**
     * Tells whether the event has a client.
     */
    public function hasClient(): bool
    {
        return $this->client !== null;
    }

    /**
     * Tells, of an Accept, whether another producer had this client before.
     */
    public function isResumed(): bool
    {
        return $this->type === EventType::Accept && $this->client !== null && $this->client->request->resumed;
    }
}
