<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * The state of a connection; transitions only go down this list.
 */
enum State
{
    /** Before OPEN. */
    case Connecting;
    /** A publisher, not a client: it sends messages for clients. */
    case Publishing;
    /** The bridge waits for an ANSWER. */
    case Asked;
    /** Messages flow. */
    case Open;
    /** Messages flow; MOVE is sent or queued, the bridge's MOVE is awaited. */
    case Moving;
    /** The bridge's MOVE is read, the last event is queued; the producer can still send. */
    case Moved;
    /** The program has the last event: it can still send, but not close. */
    case Parting;
    /** CLOSE is sent or queued, the answer is awaited; messages are ignored. */
    case Closing;
    /** The last event is queued or delivered; only the queue is still sent. */
    case Closed;

    /**
     * Returns whether messages can be sent to the client.
     */
    public function isSending(): bool
    {
        return match ($this) {
            self::Open, self::Moving, self::Moved, self::Parting => true,
            default => false,
        };
    }

    /**
     * Returns whether messages of the client become events.
     */
    public function isReceiving(): bool
    {
        return $this === self::Open || $this === self::Moving;
    }

    /**
     * Returns whether messages cannot be sent any more, or the last event was delivered.
     */
    public function hasEnded(): bool
    {
        return match ($this) {
            self::Parting, self::Closing, self::Closed => true,
            default => false,
        };
    }
}
