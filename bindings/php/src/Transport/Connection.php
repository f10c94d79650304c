<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Client;
use apachews\Exception\InvalidArgument;
use apachews\Group;
use apachews\Wire\Answer;
use apachews\Wire\Close;
use apachews\Wire\Frame;
use apachews\Wire\Lane;
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
    /** The bridge process of a client that can go on a channel; else null. */
    public ?BridgeProcess $process = null;
    /** One of BridgeProcess's constants. */
    public int $lane = BridgeProcess::OWN;
    /** Its number on the channel, or in its last JOIN. */
    public int $laneNumber = 0;
    public readonly MessageReader $reader;
    /** The resource id of the stream: its key in Connections and Poller. */
    public readonly int $id;
    private readonly SendQueue $queue;
    /** The same socket for ext-sockets, while an OFFER's descriptor is expected; else null. */
    private ?\Socket $receiving = null;
    /** The descriptor that has arrived. */
    private ?\Socket $received = null;

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

    /**
     * Returns whether PHP can receive a descriptor: with ext-sockets.
     */
    public static function canReceiveDescriptors(): bool
    {
        return function_exists('socket_recvmsg') && defined('MSG_CMSG_CLOEXEC');
    }

    /**
     * Returns the bytes that wait for the bridge; with those of the channel if the client is on it.
     */
    public function waitingBytes(): int
    {
        $isOnChannel = $this->lane === BridgeProcess::ON_CHANNEL;
        return $this->queue->bytes + ($isOnChannel ? (int) $this->process?->queuedBytes() : 0);
    }

    /**
     * Returns whether the client may ask to go on a channel: it is open and reads what it is sent.
     */
    public function mayJoin(): bool
    {
        return $this->lane === BridgeProcess::OWN && $this->state === State::Open && $this->queue->isEmpty();
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
        if ($this->receiving !== null) {
            return $this->receiveWithDescriptor($this->receiving);
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
        if ($this->lane !== BridgeProcess::OWN) {
            if ($this->lane === BridgeProcess::JOINING) {
                $this->lane = BridgeProcess::STALE; // the READY comes too late now
            } elseif ($this->lane === BridgeProcess::ON_CHANNEL && $this->process?->unicast($this, $frame)) {
                return true;
            }
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
     * Sends or queues a LANE frame.
     */
    public function writeLane(string $frame): void
    {
        if ($this->state->isSending()) {
            $this->write($frame);
        }
    }

    /**
     * Sends ASK, and expects a descriptor; false if the client is not open.
     */
    public function askForChannel(): bool
    {
        if ($this->state !== State::Open || !is_resource($this->stream)) {
            return false;
        }
        $this->receiving ??= socket_import_stream($this->stream) ?: null;
        if ($this->receiving === null) {
            return false;
        }
        $this->write(Lane::encode(Lane::ASK));
        return true;
    }

    /**
     * Returns the channel that has arrived with an OFFER, non-blocking; null if none has.
     *
     * @return resource|null
     */
    public function takeChannel(): mixed
    {
        $socket = $this->received;
        $this->received = $this->receiving = null;
        $stream = $socket === null ? false : socket_export_stream($socket);
        if ($stream === false) {
            return null;
        }
        stream_set_blocking($stream, false);
        stream_set_read_buffer($stream, 0);
        return $stream;
    }

    /**
     * Sends what follows on this connection, and never again on a channel.
     */
    public function leaveChannel(): void
    {
        if ($this->lane !== BridgeProcess::OWN) {
            $this->process?->leave($this);
        }
        $this->process = null;
    }

    /**
     * Leaves the channel, after the last frame of the connection.
     */
    public function forgetChannel(): void
    {
        if ($this->lane !== BridgeProcess::OWN) {
            $this->process?->forget($this);
        }
        $this->process = null;
    }

    public function joinGroup(Group $group): void
    {
        if ($this->lane === BridgeProcess::ON_CHANNEL) {
            $this->process?->add($group, [$this->laneNumber]);
        }
    }

    public function leaveGroup(Group $group): void
    {
        if ($this->lane === BridgeProcess::ON_CHANNEL) {
            $this->process?->remove($group, $this->laneNumber);
        }
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
            $this->leaveChannel();
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
            $this->leaveChannel();
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
        $this->received = $this->receiving = null;
        if (is_resource($this->stream)) {
            // Closing is not enough: a forked process may have a copy of the descriptor.
            stream_socket_shutdown($this->stream, STREAM_SHUT_RDWR);
            fclose($this->stream);
        }
        $this->stream = null;
    }

    /**
     * Reads like receiveNowait(), and keeps a descriptor that comes with the bytes.
     */
    private function receiveWithDescriptor(\Socket $socket): ?string
    {
        $message = ['buffer_size' => self::READ_BYTES, 'controllen' => socket_cmsg_space(SOL_SOCKET, SCM_RIGHTS, 1)];
        Warnings::withhold();
        $count = socket_recvmsg($socket, $message, MSG_CMSG_CLOEXEC);
        Warnings::release();
        if ($count === false) {
            // Not the socket's last error: PHP sets only the global one here.
            return socket_last_error() === SOCKET_EAGAIN ? null : '';
        }
        foreach ($message['control'] ?? [] as $control) {
            foreach ($control['data'] as $descriptor) {
                $this->received = $descriptor instanceof \Socket ? $descriptor : null;
            }
        }
        return $message['iov'][0] ?? '';
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
