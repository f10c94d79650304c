<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Client;
use apachews\Exception\InvalidArgument;
use apachews\Wire\Answer;
use apachews\Wire\Close;
use apachews\Wire\Frame;
use apachews\Wire\MessageReader;
use apachews\Wire\Published;

/**
 * The library's end of one Unix socket: state, reader, and the queue to it.
 *
 * For Loop and Client only. Nothing blocks. Owns the socket and closes it.
 *
 * How this works: what the kernel does not take at once waits in a queue with a bound. A
 * client that does not read fills it and is closed with 1013, alone. A client whose queue
 * is half full is not read from either, so that an echo slows its client down rather than
 * losing it, as long as its messages are shorter than half the bound: the bound is for
 * broadcasts.
 *
 * @internal
 */
final class Connection
{
    /** One read from a socket: a third of what Linux buffers for a Unix socket. */
    private const READ_BYTES = 65536;
    /** HTTP status for a client that is closed before it was accepted. */
    private const GOODBYE_STATUS = 503;

    public State $state = State::Connecting;
    /** What the program holds, once there was an OPEN. */
    public ?Client $client = null;
    /** Of a publisher: for whom. */
    public ?string $group = null;
    /** The queue was full; the state is Closing. */
    public bool $hasOverflowed = false;
    /** The bridge's MOVE is read; nothing more comes from there. */
    public bool $hasMoved = false;
    /** The producer said no; the state is Closing. */
    public bool $wasRejected = false;
    /** There is no room for it; it is told so as soon as it has said who it is. */
    public bool $isSurplus = false;
    /** Monotonic time at which it must be gone, once it leaves. */
    public ?float $deadline = null;
    public readonly MessageReader $reader;
    /** The key under which the loop and the poller have it. */
    public readonly int $id;
    private readonly SendQueue $queue;

    /**
     * @param resource|null            $stream  accepted, non-blocking; null once it is closed
     * @param \Closure(self): void $changed called when the queue filled or emptied, or the
     *                                      state changed
     */
    public function __construct(
        public mixed $stream,
        int $maxMessageBytes,
        private readonly int $maxQueueBytes,
        private readonly \Closure $changed
    ) {
        assert(is_resource($stream));
        $this->id = get_resource_id($stream);
        $this->reader = new MessageReader($maxMessageBytes);
        $this->queue = new SendQueue();
    }

    public function queuedBytes(): int
    {
        return $this->queue->bytes;
    }

    public function hasQueue(): bool
    {
        return !$this->queue->isEmpty();
    }

    /**
     * Tells whether to read: not while it must first take what waits, nor once it has moved.
     */
    public function wantsReading(): bool
    {
        return $this->queue->bytes * 2 <= $this->maxQueueBytes && !$this->hasMoved;
    }

    /**
     * Returns what came, "" at the end of file, null where nothing is there.
     */
    public function receiveNowait(): ?string
    {
        if (!is_resource($this->stream)) {
            return null;
        }
        Warnings::withhold();
        $data = fread($this->stream, self::READ_BYTES);
        Warnings::release();
        if ($data === false || $data === '') {
            // (feof() would wait for more; this flag is what the last read found.)
            return stream_get_meta_data($this->stream)['eof'] ? '' : null;
        }
        return $data;
    }

    /**
     * Sends or queues one whole data frame; false where it does not go out.
     */
    public function sendFrame(string $frame): bool
    {
        if (!$this->state->isSending()) {
            return false;
        }
        if ($this->queue->bytes > $this->maxQueueBytes) {
            $this->hasOverflowed = true;
            $this->queue->drop();
            $this->sendClose(new Close(Close::TRY_AGAIN_LATER, 'too slow: the send queue is full'));
            return false;
        }
        $this->write($frame);
        return true;
    }

    /**
     * Sends the ANSWER the bridge waits for; false where it waits no more.
     *
     * @throws InvalidArgument it is too large
     */
    public function sendAnswer(Answer $answer): bool
    {
        $frame = $answer->encode();
        if ($this->state !== State::Asked) {
            return false;
        }
        $this->state = $answer->accepts ? State::Open : State::Closing;
        $this->wasRejected = !$answer->accepts;
        $this->write($frame);
        ($this->changed)($this);
        return true;
    }

    /**
     * Sends or queues a CLOSE, once; to a bridge that asks, that means no.
     *
     * @throws InvalidArgument see Close::encode
     */
    public function sendClose(Close $close): void
    {
        $frame = $close->encode();
        if ($this->state === State::Asked) {
            $this->sendAnswer(Answer::reject(self::GOODBYE_STATUS, '', []));
        } elseif ($this->state->isSending() && $this->state !== State::Parting) {
            // The bridge says nothing behind its MOVE: there is no answer to await.
            $this->state = $this->hasMoved ? State::Closed : State::Closing;
            $this->write($frame);
            ($this->changed)($this);
        }
    }

    /**
     * Sends or queues a MOVE, once; between two messages, as all goes out in whole ones.
     */
    public function sendMove(): void
    {
        if ($this->state === State::Open) {
            $this->state = State::Moving;
            $this->write(Frame::encode(Frame::MOVE, ''));
        }
    }

    /**
     * Lets a client go that has moved: the program has had its say.
     */
    public function part(): void
    {
        if ($this->state === State::Parting) {
            $this->state = State::Closed;
            ($this->changed)($this);
        }
    }

    /**
     * Answers a message that was published.
     */
    public function sendPublished(Published $published): void
    {
        if ($this->state === State::Publishing) {
            $this->write($published->encode());
        }
    }

    /**
     * Sends what the kernel takes of the queue.
     */
    public function flushNowait(): void
    {
        while (($head = $this->queue->head()) !== '') {
            $sent = $this->sendNowait($head);
            if ($sent === null) {
                return;
            }
            $this->queue->take($sent);
            if ($sent < strlen($head)) {
                return;
            }
        }
    }

    /**
     * Forgets what is queued, but for the rest of a frame that is half sent.
     */
    public function dropQueue(): void
    {
        $this->queue->drop();
    }

    /**
     * Closes the socket and drops the queue; again does nothing.
     */
    public function close(): void
    {
        $this->queue->clear();
        if (is_resource($this->stream)) {
            // Not only closed: a process that the program has forked may hold it as well.
            stream_socket_shutdown($this->stream, STREAM_SHUT_RDWR);
            fclose($this->stream);
        }
        $this->stream = null;
    }

    /**
     * Sends one whole frame, or queues what is left of it.
     */
    private function write(string $frame): void
    {
        if ($this->hasQueue()) {
            $couldRead = $this->wantsReading();
            $this->queue->add($frame);
            if ($couldRead !== $this->wantsReading()) {
                ($this->changed)($this);
            }
            return;
        }
        $sent = $this->sendNowait($frame);
        if ($sent !== null && $sent < strlen($frame)) {
            $this->queue->add($frame, $sent);
            ($this->changed)($this);
        }
    }

    /**
     * Returns how much the kernel took; null where the bridge is gone.
     */
    private function sendNowait(string $data): ?int
    {
        if (!is_resource($this->stream)) {
            return null;
        }
        Warnings::withhold();
        $sent = fwrite($this->stream, $data);
        Warnings::release();
        if ($sent === false) {
            // Nothing can be sent any more; reading finds the bridge's last words and the
            // end of file, and they become the event.
            $this->queue->clear();
            return null;
        }
        return $sent;
    }
}
