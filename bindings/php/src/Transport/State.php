<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * Where a connection is in its life; it only ever moves down this list.
 */
enum State
{
    /** No OPEN yet. */
    case Connecting;
    /** It is no client: what it sends is for clients. */
    case Publishing;
    /** The bridge waits for an ANSWER. */
    case Asked;
    /** Messages flow. */
    case Open;
    /** Messages flow; a MOVE is sent or queued, the bridge's is awaited. */
    case Moving;
    /** The bridge's MOVE is read and the last event is queued; the producer may still send. */
    case Moved;
    /** The program has the last event in hand: it may still send, and not close any more. */
    case Parting;
    /** A CLOSE is sent or queued, the answer is awaited; messages are ignored. */
    case Closing;
    /** The last event is out; at most the queue is still being sent. */
    case Closed;

    /**
     * Tells whether messages go to the client.
     */
    public function isSending(): bool
    {
        return match ($this) {
            self::Open, self::Moving, self::Moved, self::Parting => true,
            default => false,
        };
    }

    /**
     * Tells whether messages come from the client.
     */
    public function isReceiving(): bool
    {
        return $this === self::Open || $this === self::Moving;
    }

    /**
     * Tells whether nothing can be sent any more, or the last event is out.
     */
    public function hasEnded(): bool
    {
        return match ($this) {
            self::Parting, self::Closing, self::Closed => true,
            default => false,
        };
    }
}
