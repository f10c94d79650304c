<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Client;
use apachews\Event;
use apachews\EventType;
use apachews\Request;
use apachews\Wire\Close;
use apachews\Wire\Lane;
use apachews\Wire\Message;
use apachews\Wire\Moved;
use apachews\Wire\Pong;
use apachews\Wire\Publish;
use apachews\Wire\Utf8;
use apachews\Wire\Violation;

/**
 * Reads from connections: bytes become items of the wire, items become events.
 *
 * For Loop. Nothing blocks. One call makes at most one read() and handles at most TURN_FRAMES
 * frames; the rest stays in the connection's reader, which is listed in Connections::$unread.
 *
 * @internal
 */
final class Receiver
{
    /**
     * Frames of one client in a turn. An echo takes some 10 us for each, so ten clients that
     * flood delay the next one by 6 ms; one read of the smallest messages has 32768.
     */
    private const TURN_FRAMES = 64;

    /**
     * @param \Closure(string): void $log
     */
    public function __construct(
        private readonly string $path,
        private readonly Connections $connections,
        private readonly Publications $publications,
        private readonly Acceptor $acceptor,
        private readonly \Closure $log
    ) {
    }

    /**
     * Reads a connection that is ready, or continues with its unread frames.
     */
    public function receive(Connection $connection): void
    {
        $data = '';
        if (!$connection->reader->hasUnread()) {
            $data = $connection->receiveNowait();
            if ($data === null) {
                return;
            }
            if ($data === '') {
                $this->handleEof($connection);
                return;
            }
        }
        foreach ($connection->reader->receive($data, self::TURN_FRAMES) as $item) {
            match (true) {
                $item instanceof Message => $this->handleMessage($connection, $item),
                $item instanceof Request => $this->handleOpen($connection, $item),
                $item instanceof Publish => $this->publications->open($connection, $item),
                $item instanceof Close => $this->handleClose($connection, $item),
                $item instanceof Moved => $this->connections->moved($connection),
                $item instanceof Lane => $this->handleLane($connection, $item),
                $item instanceof Violation => $this->handleViolation($connection, $item),
                default => $this->handlePong($connection, $item),
            };
        }
        if ($connection->reader->hasUnread() && $connection->stream !== null) {
            // Frames in memory do not make the socket readable.
            $this->connections->unread[$connection->id] = Poller::READ;
        }
        $ignored = $connection->reader->popIgnored();
        if ($ignored !== []) {
            $opcodes = implode(' ', array_map(static fn (int $opcode): string => sprintf('0x%x', $opcode), $ignored));
            $name = $connection->client?->request->id ?? 'a client';
            ($this->log)("{$this->path}: $name: ignored frames of opcodes $opcodes");
        }
    }

    private function handleMessage(Connection $connection, Message $message): void
    {
        if ($connection->state->isReceiving()) {
            $type = $message->data === '' ? EventType::NoData : EventType::IO;
            $this->connections->events->enqueue(new Event($type, $connection->client, $message));
        } elseif ($connection->state === State::Publishing) {
            $this->publications->receive($connection, $message);
        }
    }

    private function handleOpen(Connection $connection, Request $request): void
    {
        $client = new Client($connection, $request);
        $connection->state = $request->answerRequired ? State::Asked : State::Open;
        if ($connection->isSurplus) {
            $connection->sendClose(new Close(Close::TRY_AGAIN_LATER, 'the server is full'));
            $this->acceptor->reportFull('the server is full');
            return;
        }
        $connection->client = $client;
        $this->connections->setProcess($connection, $request->bridge);
        $this->connections->events->enqueue(new Event(EventType::Accept, $client));
        if ($this->connections->isClosed) {
            $connection->sendClose(new Close(Close::GOING_AWAY, 'the server closes'));
        }
        if ($this->connections->isDraining) {
            $this->connections->move($connection);
        }
    }

    private function handleClose(Connection $connection, Close $close): void
    {
        if ($connection->state === State::Publishing) {
            $this->connections->remove($connection);
            return;
        }
        if ($connection->state !== State::Closed && $connection->client !== null) {
            $this->connections->events->enqueue(
                new Event(EventType::Close, $connection->client, null, $close->code, $close->reason)
            );
        }
        // The browser has closed: it would discard the queued messages.
        $connection->dropQueue();
        $this->connections->end($connection, $close->code, $close->reason);
    }

    private function handleLane(Connection $connection, Lane $lane): void
    {
        if ($lane->kind === Lane::OFFER) {
            $this->connections->openChannel($connection, $lane->key);
        } else {
            $this->connections->setProcess($connection, $lane->bridge);
        }
    }

    private function handlePong(Connection $connection, Pong $pong): void
    {
        $latency = $connection->client?->receivePong($pong->payload);
        if ($latency !== null && $connection->state->isReceiving()) {
            $this->connections->events->enqueue(new Event(EventType::Pong, $connection->client, latency: $latency));
        }
    }

    private function handleEof(Connection $connection): void
    {
        $mayLeave = $connection->state === State::Connecting || $connection->state === State::Publishing;
        // An end of file before OPEN is a probe: another program tested whether a producer
        // listens. It has no event.
        if (!$mayLeave || !$connection->reader->isIdle()) {
            $reason = $connection->wasRejected ? 'it was refused' : 'the connection broke off';
            $this->connections->end($connection, Close::ABNORMAL, $reason);
        }
        $this->connections->remove($connection);
    }

    private function handleViolation(Connection $connection, Violation $violation): void
    {
        if ($connection->state->isReceiving()) {
            $this->connections->events->enqueue(
                new Event(EventType::Error, $connection->client, null, $violation->code, $violation->reason)
            );
            $connection->dropQueue();
            $reason = Utf8::truncate($violation->reason, Close::MAX_REASON_BYTES);
            $connection->sendClose(new Close($violation->code, $reason));
        }
        $this->connections->end($connection, $violation->code, $violation->reason);
    }
}
