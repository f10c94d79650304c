<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * Waits until sockets are ready; hides the differences between event extensions.
 *
 * Level-triggered. A stream is identified by its resource id. A program can use its own
 * implementation, for another event extension: new Server($path, poller: …).
 */
interface Poller
{
    public const READ = 1;
    public const WRITE = 2;
    /** The peer has closed; reported with READ, even without interest. Optional for pollers. */
    public const GONE = 4;

    /**
     * Returns how many more streams than this one could be watched; negative: not even this
     * one. Called for each stream before add().
     *
     * @param resource $stream new, not watched yet
     */
    public function room(mixed $stream): int;

    /**
     * Starts to watch a stream for reading.
     *
     * @param resource $stream
     */
    public function add(mixed $stream): void;

    /**
     * Changes the interest in a stream.
     *
     * @param resource $stream
     */
    public function watch(mixed $stream, bool $read, bool $write): void;

    /**
     * Stops to watch a stream, which is still open.
     *
     * @param resource $stream
     */
    public function remove(mixed $stream): void;

    /**
     * Waits until a stream is ready, a signal arrives, or the timeout passes.
     *
     * @param float $seconds 0 to 3600
     *
     * @return array<int, int> READ, WRITE and GONE, by resource id
     */
    public function wait(float $seconds): array;

    /**
     * Returns how to allow more clients, for the message that the server is full.
     */
    public function advice(): string;
}
