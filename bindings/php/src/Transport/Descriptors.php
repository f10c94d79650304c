<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * The numbers of the descriptors behind streams, which PHP does not tell.
 *
 * How this works: fstat() names what is behind a stream, and stat() of /proc/self/fd/N what
 * is behind a number; the one that is the same is it. The kernel gives the lowest number
 * that is free, so the next one is nearly always the lowest that was closed here, or one
 * more than the highest so far; where it is neither, all of them are looked at.
 *
 * @internal
 */
final class Descriptors
{
    private const DIRECTORY = '/proc/self/fd';

    /** @var \SplMinHeap<int> numbers that were closed */
    private \SplMinHeap $free;
    private int $next = 0;

    public function __construct()
    {
        $this->free = new \SplMinHeap();
    }

    /**
     * Tells whether numbers can be told at all.
     */
    public static function areKnown(): bool
    {
        return is_dir(self::DIRECTORY);
    }

    /**
     * Returns the number of a stream's descriptor, or null.
     *
     * @param resource $stream
     */
    public function of(mixed $stream): ?int
    {
        $status = fstat($stream);
        if ($status === false) {
            return null;
        }
        while (!$this->free->isEmpty() && $this->free->top() < $this->next) {
            $fd = $this->free->extract();
            if ($this->is($fd, $status)) {
                return $fd;
            }
        }
        if ($this->is($this->next, $status)) {
            return $this->next++;
        }
        foreach (@scandir(self::DIRECTORY) ?: [] as $name) {
            if (ctype_digit($name) && $this->is((int) $name, $status)) {
                $this->next = max($this->next, (int) $name + 1);
                return (int) $name;
            }
        }
        return null;
    }

    /**
     * Notes that a number was closed.
     */
    public function free(int $fd): void
    {
        $this->free->insert($fd);
    }

    /**
     * @param array<int> $status as fstat() gave it
     */
    private function is(int $fd, array $status): bool
    {
        $name = self::DIRECTORY . '/' . $fd;
        clearstatcache(true, $name);
        $other = @stat($name);
        return $other !== false && $other['ino'] === $status['ino'] && $other['dev'] === $status['dev'];
    }
}
