<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * Waits until sockets are ready: the one place where event extensions differ.
 *
 * Level-triggered. A stream is named by its resource id. A program with an extension that
 * the library has nothing for can bring its own: new Server($path, poller: …).
 */
interface Poller
{
    public const READ = 1;
    public const WRITE = 2;
    /** The other end is gone; comes with READ, whatever is watched. Not every poller tells. */
    public const GONE = 4;

    /**
     * Tells how many more streams than this one could be watched; negative: not even this.
     * Asked for each stream before add().
     *
     * @param resource $stream a new one, which is not watched yet
     */
    public function room(mixed $stream): int;

    /**
     * Watches a stream for what can be read.
     *
     * @param resource $stream
     */
    public function add(mixed $stream): void;

    /**
     * Changes what a stream is watched for.
     *
     * @param resource $stream
     */
    public function watch(mixed $stream, bool $read, bool $write): void;

    /**
     * Watches a stream no more; it is still open.
     *
     * @param resource $stream
     */
    public function remove(mixed $stream): void;

    /**
     * Waits until a stream is ready, a signal has come, or the time is over.
     *
     * @param float $seconds 0 to 3600
     *
     * @return array<int, int> READ, WRITE and GONE, by resource id
     */
    public function wait(float $seconds): array;

    /**
     * Returns what to do to have more clients, for the message that says there are too many.
     */
    public function advice(): string;
}
