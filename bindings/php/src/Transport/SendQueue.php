<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Wire\Frame;

/**
 * The send queue of one connection: whole frames, of which the first may be partly sent.
 *
 * How this works: large frames are queued unchanged, so that all clients of a broadcast share
 * one string; small frames are concatenated (a run), so that a million tiny messages take
 * little more memory than their bytes. The rest of a partly sent frame must be sent before
 * anything else, even before closing; the frame headers in a run tell its end.
 */
final class SendQueue
{
    /** Frames up to this size are concatenated, to the size of about one write. */
    private const SMALL_FRAME_BYTES = 1024;
    private const RUN_BYTES = 65536;

    /** Unsent bytes. */
    public int $bytes = 0;
    /** @var list<string> */
    private array $frames = [];
    /** The index of the first unsent frame or run. */
    private int $first = 0;
    /** Sent bytes of that one. */
    private int $headSent = 0;
    /** Whether the last one is a run that can grow. */
    private bool $tailGrows = false;

    public function isEmpty(): bool
    {
        return $this->bytes === 0;
    }

    /**
     * Adds one whole frame.
     *
     * @param int $sent bytes of it that are sent already; only if the queue is empty
     */
    public function add(string $frame, int $sent = 0): void
    {
        $length = strlen($frame);
        $last = count($this->frames) - 1;
        $isSmall = $length <= self::SMALL_FRAME_BYTES;
        if ($isSmall && $this->tailGrows && strlen($this->frames[$last]) < self::RUN_BYTES) {
            $this->frames[$last] .= $frame;
        } else {
            $this->frames[] = $frame;
            $this->tailGrows = $isSmall;
        }
        if ($sent > 0) {
            $this->headSent = $sent;
        }
        $this->bytes += $length - $sent;
    }

    /**
     * Returns the bytes to send next; "" if the queue is empty.
     */
    public function head(): string
    {
        if ($this->bytes === 0) {
            return '';
        }
        return $this->headSent === 0
            ? $this->frames[$this->first]
            : substr($this->frames[$this->first], $this->headSent, self::RUN_BYTES);
    }

    /**
     * Removes bytes of head() that were sent.
     */
    public function consume(int $bytes): void
    {
        $this->bytes -= $bytes;
        $this->headSent += $bytes;
        if ($this->bytes === 0) {
            $this->clear();
        } elseif ($this->headSent === strlen($this->frames[$this->first])) {
            $this->frames[$this->first++] = '';
            $this->headSent = 0;
            if ($this->first >= 64 && $this->first * 2 > count($this->frames)) {
                $this->frames = array_slice($this->frames, $this->first);
                $this->first = 0;
            }
        }
    }

    public function clear(): void
    {
        $this->frames = [];
        $this->first = $this->headSent = $this->bytes = 0;
        $this->tailGrows = false;
    }

    /**
     * Discards the queue, except the rest of a frame that is partly sent.
     */
    public function drop(): void
    {
        $sent = $this->headSent;
        $head = $sent > 0 ? $this->frames[$this->first] : '';
        $end = 0;
        while ($end < $sent) {
            $header = Frame::decodeHeader($head, $end);
            assert($header !== null, 'the queue contains whole frames');
            $end = $header[2] + $header[1];
        }
        $this->clear();
        if ($end > $sent) {
            $this->add(substr($head, 0, $end), $sent);
        }
    }
}
