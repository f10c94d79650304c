<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Wire\Frame;

/**
 * What waits for one bridge to take it: whole frames, of which the first may be half sent.
 *
 * How this works: large frames wait as they are, one string for all the clients of a
 * broadcast; small ones are run together, so that a million tiny messages take the memory
 * of their bytes. Once a frame is half sent its rest must go before anything else, an end
 * of file included; where that ends, in a run of frames, their headers tell.
 */
final class SendQueue
{
    /** Shorter frames are run together, up to as much as goes out at once. */
    private const SMALL_FRAME_BYTES = 1024;
    private const RUN_BYTES = 65536;

    /** What is left to send. */
    public int $bytes = 0;
    /** @var list<string> */
    private array $frames = [];
    /** The index of the first that is not sent. */
    private int $first = 0;
    /** Bytes of that one that are sent already. */
    private int $headSent = 0;
    /** Whether the last one is a run that may grow. */
    private bool $tailGrows = false;

    public function isEmpty(): bool
    {
        return $this->bytes === 0;
    }

    /**
     * Adds one whole frame.
     *
     * @param int $sent bytes of it that are sent already; only where nothing waits
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
     * Returns what is to be sent next; "" where nothing waits.
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
     * Notes that so many bytes of head() were sent.
     */
    public function take(int $bytes): void
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
     * Forgets what waits, but for the rest of a frame that is half sent.
     */
    public function drop(): void
    {
        $sent = $this->headSent;
        $head = $sent > 0 ? $this->frames[$this->first] : '';
        $end = 0;
        while ($end < $sent) {
            $header = Frame::decodeHeader($head, $end);
            assert($header !== null, 'the queue holds whole frames of our own');
            $end = $header[2] + $header[1];
        }
        $this->clear();
        if ($end > $sent) {
            $this->add(substr($head, 0, $end), $sent);
        }
    }
}
