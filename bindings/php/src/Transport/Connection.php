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
 * One connection: socket, state, reader and send queue.
 *
 * For the classes of the loop and Client. Nothing blocks. Owns the socket and closes it.
 *
 * How this works: bytes that the kernel does not take at once wait in a queue with a limit. A
 * client that does not read fills its queue and is closed with 1013. A client whose queue is
 * half full is not read from, so that an echo slows its client down instead of losing it, as
 * long as its messages are shorter than half the limit: the limit is for broadcasts.
 *
 * @internal
 */
final class Connection
{
    /** Bytes of one read: a third of what Linux buffers for a Unix socket. */
    private const READ_BYTES = 65536;
    /** The HTTP status for a client that is closed before it is accepted. */
    private const CLOSED_STATUS = 503;

    public State $state = State::Connecting;
    /** The client for the program, after OPEN. */
    public ?Client $client = null;
    /** Of a publisher: the group; null: all clients. */
    public ?string $group = null;
    /** The queue was full; the state is Closing. */
    public bool $hasOverflowed = false;
    /** The bridge's MOVE is read: the bridge sends nothing more. */
    public bool $hasMoved = false;
    /** The producer rejected the client; the state is Closing. */
    public bool $wasRejected = false;
    /** The server is full: the connection is closed after its OPEN. */
    public bool $isSurplus = false;
    /** The deadline of the closing handshake, on Loop's clock. */
    public ?float $deadline = null;
    public readonly MessageReader $reader;
    /** The resource id of the stream: its key in Connections and Poller. */
    public readonly int $id;
    private readonly SendQueue $queue;

    /**
     * @param resource|null            $stream  accepted, non-blocking; null once it is closed
     * @param \Closure(self): void $changed called when the state changes, or the queue crosses
     *                                      a limit
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
     * Returns whether to read: not while its queue is half full, and not after it has moved.
     */
    public function wantsReading(): bool
    {
        return $this->queue->bytes * 2 <= $this->maxQueueBytes && !$this->hasMoved;
    }

    /**
     * Returns the available bytes; "" at the end of file; null if nothing has arrived.
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
            // feof() would block; this flag is the result of the last read.
            return stream_get_meta_data($this->stream)['eof'] ? '' : null;
        }
        return $data;
    }

    /**
     * Sends or queues one whole data frame; false if it was not.
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
     * Sends the ANSWER; false if the bridge does not wait for it.
     *
     * @throws InvalidArgument the answer is too large
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
     * Sends or queues a CLOSE, once; a client in Asked is rejected instead.
     *
     * @throws InvalidArgument see Close::encode
     */
    public function sendClose(Close $close): void
    {
        $frame = $close->encode();
        if ($this->state === State::Asked) {
            $this->sendAnswer(Answer::reject(self::CLOSED_STATUS, '', []));
        } elseif ($this->state->isSending() && $this->state !== State::Parting) {
            // The bridge sends nothing after its MOVE: do not wait for an answer.
            $this->state = $this->hasMoved ? State::Closed : State::Closing;
            $this->write($frame);
            ($this->changed)($this);
        }
    }

    /**
     * Sends or queues a MOVE, once, between two messages.
     */
    public function sendMove(): void
    {
        if ($this->state === State::Open) {
            $this->state = State::Moving;
            $this->write(Frame::encode(Frame::MOVE, ''));
        }
    }

    /**
     * Closes a client that has moved, after the program handled its last event.
     */
    public function finishMove(): void
    {
        if ($this->state === State::Parting) {
            $this->state = State::Closed;
            ($this->changed)($this);
        }
    }

    /**
     * Answers a publisher's message.
     */
    public function sendPublished(Published $published): void
    {
        if ($this->state === State::Publishing) {
            $this->write($published->encode());
        }
    }

    /**
     * Sends as much of the queue as the kernel takes.
     */
    public function flushNowait(): void
    {
        while (($head = $this->queue->head()) !== '') {
            $sent = $this->sendNowait($head);
            if ($sent === null) {
                return;
            }
            $this->queue->consume($sent);
            if ($sent < strlen($head)) {
                return;
            }
        }
    }

    /**
     * Discards the queue, except the rest of a frame that is half sent.
     */
    public function dropQueue(): void
    {
        $this->queue->drop();
    }

    /**
     * Closes the socket and discards the queue; a second call does nothing.
     */
    public function close(): void
    {
        $this->queue->clear();
        if (is_resource($this->stream)) {
            // Closing is not enough: a forked process may have a copy of the descriptor.
            stream_socket_shutdown($this->stream, STREAM_SHUT_RDWR);
            fclose($this->stream);
        }
        $this->stream = null;
    }

    /**
     * Sends one whole frame, or queues the rest of it.
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
     * Returns the bytes that the kernel took; null if the bridge has closed.
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
            // Not an event here: reading finds the bridge's last frames and the end of file.
            $this->queue->clear();
            return null;
        }
        return $sent;
    }
}
