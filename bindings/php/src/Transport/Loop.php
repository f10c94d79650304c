<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Client;
use apachews\Delivery;
use apachews\Event;
use apachews\EventType;
use apachews\Exception\InvalidArgument;
use apachews\Exception\NoClient;
use apachews\Exception\NotAsked;
use apachews\Exception\ServerException;
use apachews\Exception\WireError;
use apachews\Group;
use apachews\Request;
use apachews\Tls;
use apachews\Wire\Answer;
use apachews\Wire\ChannelReader;
use apachews\Wire\Close;
use apachews\Wire\Document;
use apachews\Wire\Frame;
use apachews\Wire\Lane;
use apachews\Wire\Message;
use apachews\Wire\MessageReader;
use apachews\Wire\Moved;
use apachews\Wire\Pong;
use apachews\Wire\Publish;
use apachews\Wire\Published;
use apachews\Wire\Utf8;
use apachews\Wire\Violation;

/**
 * The server's event loop: one poller for the listening socket and all connections.
 *
 * For Server. Only nextEvent() and close() wait.
 *
 * How turns work: all sockets are watched level-triggered. A turn makes at most one read from
 * each ready socket and handles a limited number of its frames, until TURN_EVENTS events are
 * queued. The next turn continues with the sockets that are left, before it polls again:
 * the poller would report the same sockets first. A client with unread frames in memory has its
 * next turn after the sockets of that poll, and its socket is not read before. So a client that
 * floods delays the others by the frames of one turn. A new turn starts only after all events
 * were dequeued, so the memory is bounded: one unfinished message and one read per client, and
 * the events of one turn.
 *
 * How drain() loses no message (docs/reference/wire.md, Moving): each client is sent a MOVE. Until the
 * bridge answers with its own MOVE, messages flow in both directions as before. The bridge's
 * MOVE becomes the client's ConnectionClosed event, so it comes after its last message. When the
 * program asks for the event after that one, it has handled all messages: what it sent is
 * flushed, and the socket is closed. The listening socket stays open until all clients have
 * moved, although its file is removed: a client that connected just before the removal is still
 * accepted, and moved like the others.
 *
 * Signal handlers run between any two lines of PHP, including these. So a close() or drain()
 * that is called during a turn is deferred until the turn is over.
 *
 * @internal
 */
final class Loop
{
    /** Events after which a turn ends: they stay in memory until the program dequeues them. */
    private const TURN_EVENTS = 1000;
    /** The longest wait: one spurious turn an hour is cheap, and pollers limit their timeouts. */
    private const MAX_WAIT_S = 3600.0;
    /** How long close() waits for queued frames, the CLOSE frames included. */
    private const FLUSH_TIMEOUT_S = 1.0;
    /** PHP handles a signal that arrives just before a wait only after the wait: so it is short. */
    private const SIGNAL_WAIT_S = 0.5;

    /**
     * Classes that may first be needed when something fails: without a free file descriptor
     * PHP could not load their files any more.
     */
    private const LOADED_EARLY = [
        Client::class, Close::class, Connection::class, Delivery::class, Descriptors::class, Event::class,
        EventType::class, Group::class, Message::class, Moved::class, Pong::class, Publish::class,
        Published::class, Request::class, SendQueue::class, State::class, Tls::class, Utf8::class,
        Violation::class, Warnings::class, Answer::class, Document::class, Frame::class, MessageReader::class,
        BridgeProcess::class, ChannelReader::class, Lane::class, InvalidArgument::class, NoClient::class,
        NotAsked::class, WireError::class,
    ];

    public readonly Connections $connections;
    public readonly Publications $publications;
    private readonly Acceptor $acceptor;
    private readonly Receiver $receiver;
    private readonly Systemd $systemd;
    private ?float $drainDeadline = null;
    /** @var \SplQueue<\Closure(): mixed> calls that wait until the turn is over */
    private \SplQueue $calls;
    private bool $isTurning = false;
    private bool $hasSignals = false;

    /**
     * @param \Closure(string): void $log
     * @param \Closure(): void $onEnding called once, when the server closes or drains
     *
     * @throws ServerException the poller has no room for the listening socket
     */
    public function __construct(
        private readonly SocketFile $file,
        private readonly Poller $poller,
        int $maxMessageBytes,
        int $maxQueueBytes,
        \Closure $log,
        private readonly \Closure $onEnding
    ) {
        array_map(class_exists(...), self::LOADED_EARLY);
        $this->calls = new \SplQueue();
        $this->systemd = new Systemd();
        $this->connections = new Connections($poller, $maxMessageBytes, $maxQueueBytes);
        $this->publications = new Publications($this->connections);
        $this->acceptor = new Acceptor($file, $poller, $this->connections, $log);
        $this->receiver = new Receiver($file->path, $this->connections, $this->publications, $this->acceptor, $log);
    }

    /**
     * Waits for an event until a deadline (now()); null: without a deadline.
     *
     * @return Event|null null once the server is closed and all events were returned
     */
    public function nextEvent(?float $deadline): ?Event
    {
        if ($this->isTurning) {
            throw new \LogicException('dequeue() was called by a function that dequeue() runs');
        }
        $this->isTurning = true;
        try {
            return $this->waitForEvent($deadline);
        } finally {
            $this->isTurning = false;
        }
    }

    public function isEnding(): bool
    {
        return $this->connections->isClosed || $this->drainDeadline !== null;
    }

    /**
     * Calls a function between two events.
     *
     * @param \Closure(): mixed $function
     */
    public function callSoon(\Closure $function): void
    {
        $this->calls->enqueue($function);
    }

    /**
     * Limits waits, so that signals are handled soon.
     */
    public function expectSignals(): void
    {
        $this->hasSignals = true;
    }

    /**
     * Starts to move every client; see Server::drain.
     */
    public function drain(float $timeoutS): void
    {
        if ($this->isTurning) {
            $this->callSoon(fn () => $this->drain($timeoutS));
            return;
        }
        if ($this->isEnding()) {
            return;
        }
        $this->drainDeadline = self::now() + $timeoutS;
        $this->connections->isDraining = true;
        $this->file->remove();
        $this->acceptor->acceptAll();
        foreach ($this->connections->all() as $connection) {
            if ($connection->state === State::Publishing) {
                $this->connections->remove($connection); // it connects to the next producer
            } else {
                $this->connections->move($connection);
            }
        }
        ($this->onEnding)();
    }

    /**
     * Closes every client; see Server::close.
     */
    public function close(): void
    {
        if ($this->isTurning) {
            $this->callSoon($this->close(...));
            return;
        }
        if ($this->connections->isClosed) {
            return;
        }
        $this->connections->isClosed = true;
        $this->acceptor->stop();
        ($this->onEnding)();
        foreach ($this->connections->all() as $connection) {
            $connection->sendClose(new Close(Close::GOING_AWAY, 'the server closes'));
        }
        // isClosed changes the interest also in connections that sendClose() did not change.
        foreach ($this->connections->all() as $connection) {
            $this->connections->update($connection);
        }
        $deadline = self::now() + self::FLUSH_TIMEOUT_S;
        while ($this->connections->hasQueues() && ($waitS = $deadline - self::now()) > 0) {
            $this->turn($waitS);
        }
        $this->connections->abandon(Close::GOING_AWAY, 'the server closed');
        $this->connections->closeChannels();
    }

    /**
     * Returns the monotonic time, seconds.
     */
    public static function now(): float
    {
        return hrtime(true) / 1e9;
    }

    private function waitForEvent(?float $deadline): ?Event
    {
        $connections = $this->connections;
        $this->systemd->beat(self::now());
        $connections->finishMove();
        $this->runCalls();
        while ($connections->events->isEmpty()) {
            if ($connections->isClosed || $this->isDrained()) {
                return null;
            }
            $this->turn($deadline === null ? null : max(0.0, $deadline - self::now()));
            $this->runCalls();
            if ($deadline !== null && $connections->events->isEmpty() && self::now() >= $deadline) {
                return $connections->isClosed ? null : new Event(EventType::NoData);
            }
        }
        return $connections->dequeue();
    }

    /**
     * Handles signals, and runs the deferred calls.
     */
    private function runCalls(): void
    {
        if (function_exists('pcntl_signal_dispatch')) {
            pcntl_signal_dispatch();
        }
        while (!$this->calls->isEmpty()) {
            $this->isTurning = false; // a close() or drain() of theirs runs at once
            try {
                ($this->calls->dequeue())();
            } finally {
                $this->isTurning = true;
            }
        }
    }

    /**
     * Polls the sockets, unless some of the last poll are left, and handles them.
     */
    private function turn(?float $waitS): void
    {
        $connections = $this->connections;
        $timerS = $this->runTimers();
        if ($connections->ready === []) {
            $this->poll($waitS, $timerS);
        }
        foreach ($connections->ready as $id => $mask) {
            unset($connections->ready[$id]);
            if ($id === $this->acceptor->id) {
                $this->acceptor->acceptSome();
                continue;
            }
            $connection = $connections->get($id);
            if ($connection === null) {
                $connections->channel($id)?->handleReady();
                continue; // or removed earlier in this turn
            }
            if (($mask & Poller::WRITE) !== 0) {
                $connection->flushNowait();
                $connections->update($connection);
            }
            // Checked again: the flush may have removed it.
            if (($mask & Poller::READ) !== 0 && $connection->stream !== null) {
                if (!$connection->hasMoved) {
                    $this->receiver->receive($connection);
                } elseif (($mask & Poller::GONE) !== 0) {
                    $connections->remove($connection); // its last event was the move
                }
            }
            if (count($connections->events) >= self::TURN_EVENTS) {
                break;
            }
        }
    }

    private function poll(?float $waitS, float $timerS): void
    {
        $connections = $this->connections;
        $hasEvents = !$connections->events->isEmpty() && !$connections->isClosed; // of a timer
        if ($hasEvents || $connections->unread !== []) {
            $waitS = 0.0;
        }
        $connections->ready = $this->poller->wait(
            min($waitS ?? self::MAX_WAIT_S, $timerS, $this->signalWaitS(), self::MAX_WAIT_S)
        );
        foreach ($connections->unread as $id => $mask) {
            $connections->ready[$id] = ($connections->ready[$id] ?? 0) | $mask;
        }
        $connections->unread = [];
    }

    private function signalWaitS(): float
    {
        $isHeard = $this->hasSignals || (function_exists('pcntl_async_signals') && pcntl_async_signals());
        return $isHeard ? self::SIGNAL_WAIT_S : INF;
    }

    /**
     * Acts on deadlines that have passed; returns the seconds until the next one, or INF.
     */
    private function runTimers(): float
    {
        $now = self::now();
        $next = min($this->systemd->beat($now) ?? INF, $this->connections->runTimers($now));
        if ($this->drainDeadline !== null && !$this->connections->isClosed) {
            if ($this->drainDeadline <= $now) {
                $this->acceptor->stop();
                $this->connections->abandon(Close::SERVICE_RESTART, 'left to another producer: it took too long');
            } else {
                $next = min($next, $this->drainDeadline);
            }
        }
        $next = min($next, $this->acceptor->runTimers($now));
        return max(0.0, $next - $now);
    }

    /**
     * Returns whether drain() is complete; closes the server if it is.
     */
    private function isDrained(): bool
    {
        if ($this->drainDeadline === null || !$this->connections->isEmpty()) {
            return false;
        }
        // Clients that connected before the file was removed may still be in the backlog.
        $this->acceptor->acceptAll();
        if (!$this->connections->isEmpty() || !$this->connections->events->isEmpty()) {
            return false;
        }
        $this->connections->isClosed = true;
        $this->connections->closeChannels();
        $this->acceptor->stop();
        return true;
    }
}
