<?php

declare(strict_types=1);

namespace apachews;

use apachews\Exception\InvalidArgument;
use apachews\Exception\NoClient;
use apachews\Wire\Close;
use apachews\Wire\Message;

/**
 * An event, as Server::dequeue() returns it.
 *
 * The events of a client are: one Accept; then IO and NoData in the order of its messages;
 * then exactly one ConnectionClosed, however the connection ended. A Close (the other side sent
 * CLOSE) or an Error (the client sent invalid bytes) can precede it. An Error without a client
 * is about the server itself, a NoData without a client is a timeout, an Invalid is about a
 * connection that never became a client.
 *
 * A client that moves from another producer, because that one drained (Server::drain()) or
 * exited, is an Accept with isResumed() true.
 */
final class Event
{
    /**
     * @internal
     *
     * @param int        $code    close code of a Close, ConnectionClosed, Error or Invalid: 1006
     *                            if the connection broke off, 1005 if the client sent no code,
     *                            1012 if it moved to another producer; else 0
     * @param string     $reason  the text of the code, or ""
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
     * Returns the type: ApacheWSAcceptEvent and so on.
     */
    public function type(): EventType
    {
        return $this->type;
    }

    /**
     * Returns the message.
     *
     * For an event without a message returns ApacheWSConnectionClosed (also for a Close),
     * ApacheWSError (also for an Invalid), or else ApacheWSNoData. A second call returns the
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
     * Returns whether the message is binary.
     */
    public function isBinary(): bool
    {
        return $this->message !== null && $this->message->isBinary;
    }

    /**
     * Sends a message to the client of the event; see Client::send.
     *
     * @param bool|null $binary null: the type of the event's message; without a
     *                          message as Client::send
     *
     * @throws InvalidArgument text that is not UTF-8
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
     * Closes the client of the event, if it has one; see Client::close.
     *
     * @throws InvalidArgument an invalid code or reason
     */
    public function close(int $code = Close::NORMAL, string $reason = ''): void
    {
        $this->client?->close($code, $reason);
    }

    /**
     * Accepts the client of the event; see Client::accept.
     *
     * @param array<array-key, string|list<string>> $headers values by name
     */
    public function accept(?string $subprotocol = null, array $headers = []): bool
    {
        return $this->getClient()->accept($subprotocol, $headers);
    }

    /**
     * Rejects the client of the event; see Client::reject.
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
     * @throws NoClient the event is a timeout, or about the server itself
     */
    public function getClient(): Client
    {
        return $this->client ?? throw new NoClient(
            rtrim("an event {$this->type->name} without a client: {$this->reason}", ': ')
        );
    }

    /**
     * Returns whether the event has a client.
     */
    public function hasClient(): bool
    {
        return $this->client !== null;
    }

    /**
     * Returns whether the event is an Accept of a client that another producer had before.
     */
    public function isResumed(): bool
    {
        return $this->type === EventType::Accept && $this->client !== null && $this->client->request->resumed;
    }
}
