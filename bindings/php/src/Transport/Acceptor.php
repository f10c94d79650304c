<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Event;
use apachews\EventType;
use apachews\Exception\ServerException;

/**
 * Accepts connections from the listening socket.
 *
 * For Loop and Receiver. Nothing blocks. An accept error pauses accepting for a second; a full
 * server is reported once, in the log and as an Error event, until it has room again.
 *
 * @internal
 */
final class Acceptor
{
    /** Connections that one turn accepts: after a restart of the producer many arrive at once. */
    private const TURN_ACCEPTS = 64;
    /** The pause after an error. */
    private const PAUSE_S = 1.0;
    /**
     * Sockets that are accepted only to be closed with "the server is full". In the backlog
     * these clients would wait without an answer.
     */
    private const SURPLUS_ROOM = 16;

    /** The id of the listening socket in the poller. */
    public readonly int $id;
    /** The end of a pause, on Loop's clock; null: accepting. */
    public ?float $resumeAt = null;
    /** A full server was reported, and has had no room since. */
    private bool $isFull = false;

    /**
     * @param \Closure(string): void $log
     *
     * @throws ServerException the poller has no room for the listening socket
     */
    public function __construct(
        private readonly SocketFile $file,
        private readonly Poller $poller,
        private readonly Connections $connections,
        private readonly \Closure $log
    ) {
        assert(is_resource($file->stream));
        $this->id = get_resource_id($file->stream);
        if ($this->poller->room($file->stream) < 0) {
            $file->close();
            throw new ServerException(
                $file->path,
                'this program has too many open files to watch the socket',
                $this->poller->advice()
            );
        }
        $this->poller->add($file->stream);
    }

    /**
     * Accepts some connections, when the poller reports the listening socket.
     *
     * Only a failure of the first accept() is an error. Later failures usually mean an empty
     * backlog, which PHP cannot distinguish: it gives no errno.
     */
    public function acceptSome(): void
    {
        for ($count = 0; $count < self::TURN_ACCEPTS && $this->accept($count === 0); $count++) {
            continue;
        }
    }

    /**
     * Accepts the whole backlog.
     */
    public function acceptAll(): void
    {
        while ($this->accept(false)) {
            continue;
        }
    }

    /**
     * Ends a pause whose time is over; returns the end of a pause that continues, or INF.
     */
    public function runTimers(float $now): float
    {
        if ($this->resumeAt === null) {
            return INF;
        }
        if ($this->resumeAt > $now) {
            return $this->resumeAt;
        }
        $this->resumeAt = null;
        $this->watch(true);
        return INF;
    }

    /**
     * Closes the listening socket and removes its file; a second call does nothing.
     */
    public function stop(): void
    {
        if (is_resource($this->file->stream)) {
            $this->poller->remove($this->file->stream);
        }
        $this->resumeAt = null;
        $this->file->close();
    }

    /**
     * Reports that the server is full, once until it has room.
     */
    public function reportFull(string $problem): void
    {
        if ($this->isFull) {
            return;
        }
        $this->isFull = true;
        $count = count($this->connections->clients());
        $reason = "$problem ($count clients are connected); {$this->poller->advice()}";
        ($this->log)("{$this->file->path}: $reason");
        $this->connections->events->enqueue(new Event(EventType::Error, reason: $reason));
    }

    /**
     * Accepts one connection; false: the backlog is empty, or the server is full.
     */
    private function accept(bool $pausesOnFailure): bool
    {
        if (!is_resource($this->file->stream)) {
            return false;
        }
        $listener = $this->file->stream;
        $stream = Warnings::withheld(static fn () => stream_socket_accept($listener, 0));
        if ($stream === false) {
            if ($pausesOnFailure) {
                // The text after the last colon is the operating system's.
                $this->pause((string) preg_replace('/^.*: /', '', Warnings::last()));
            }
            return false;
        }
        $room = $this->poller->room($stream);
        if ($room < 0) {
            $this->poller->remove($stream);
            fclose($stream);
            $this->pause('the server has no room');
            return false;
        }
        stream_set_blocking($stream, false);
        stream_set_read_buffer($stream, 0);
        $isSurplus = $room < self::SURPLUS_ROOM;
        $this->isFull = $this->isFull && $isSurplus;
        $this->connections->add($stream, $isSurplus);
        return true;
    }

    /**
     * The backlog stays readable while accept() fails: without a pause the loop would spin.
     */
    private function pause(string $problem): void
    {
        $this->watch(false);
        $this->resumeAt = Loop::now() + self::PAUSE_S;
        $this->reportFull("cannot accept a client: $problem");
    }

    private function watch(bool $isWatched): void
    {
        if (is_resource($this->file->stream)) {
            $this->poller->watch($this->file->stream, $isWatched, false);
        }
    }
}
