<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * Finds the file descriptors of streams, which PHP does not expose.
 *
 * How this works: fstat() identifies the file of a stream, and stat() of /proc/self/fd/N the
 * file of a descriptor; equal files are a match. The kernel assigns the lowest free number. So
 * the descriptor is the lowest number known to be free, or else the first after the highest
 * known; descriptors that the program has opened in between are skipped, once. Only if the
 * program has closed descriptors of its own this fails: then the directory is read, and all
 * numbers are known again.
 *
 * @internal
 */
final class Descriptors
{
    private const DIRECTORY = '/proc/self/fd';

    /** @var \SplMinHeap<int> numbers below $next that are known to be free */
    private \SplMinHeap $free;
    /** @var array<int, true> numbers that of() returned, and that are not freed */
    private array $known = [];
    private int $next = 0;

    public function __construct()
    {
        $this->free = new \SplMinHeap();
    }

    /**
     * Returns whether descriptors can be found at all.
     */
    public static function areKnown(): bool
    {
        return is_dir(self::DIRECTORY);
    }

    /**
     * Returns the file descriptor of a stream, or null.
     *
     * @param resource $stream
     */
    public function of(mixed $stream): ?int
    {
        $status = fstat($stream);
        if ($status === false) {
            return null;
        }
        $fd = Warnings::withheld(fn (): ?int => $this->expect($status) ?? $this->search($status));
        if ($fd !== null) {
            $this->known[$fd] = true;
        }
        return $fd;
    }

    /**
     * Records that a descriptor was closed.
     */
    public function free(int $fd): void
    {
        unset($this->known[$fd]);
        $this->free->insert($fd);
    }

    /**
     * Checks the numbers that the kernel must have assigned if the program closed nothing.
     *
     * @param array<int> $status result of fstat()
     */
    private function expect(array $status): ?int
    {
        while (!$this->free->isEmpty()) {
            $fd = $this->free->top();
            $matches = self::matches($fd, $status);
            if ($matches === null) {
                return null; // still free: the kernel assigned a lower number
            }
            $this->free->extract();
            if ($matches) {
                return $fd;
            }
        }
        while (($matches = self::matches($this->next, $status)) === false) {
            $this->next++;
        }
        return $matches === true ? $this->next++ : null;
    }

    /**
     * Checks all descriptors, and records which numbers are free.
     *
     * @param array<int> $status result of fstat()
     */
    private function search(array $status): ?int
    {
        $names = scandir(self::DIRECTORY);
        if ($names === false) {
            return null;
        }
        $used = [];
        $found = null;
        foreach ($names as $name) {
            $fd = (int) $name;
            if ((string) $fd !== $name) {
                continue; // . and ..
            }
            $matches = isset($this->known[$fd]) ? false : self::matches($fd, $status);
            if ($matches !== null) { // not the descriptor of scandir() itself
                $used[$fd] = true;
            }
            $found = $matches === true ? $fd : $found;
        }
        $this->next = $used === [] ? 0 : max(array_keys($used)) + 1;
        $this->free = new \SplMinHeap();
        for ($fd = 0; $fd < $this->next; $fd++) {
            if (!isset($used[$fd])) {
                $this->free->insert($fd);
            }
        }
        return $found;
    }

    /**
     * Returns whether a descriptor has this file; null: it is not open.
     *
     * @param array<int> $status result of fstat()
     */
    private static function matches(int $fd, array $status): ?bool
    {
        $name = self::DIRECTORY . '/' . $fd;
        clearstatcache(true, $name);
        $other = stat($name);
        return $other === false ? null : $other['ino'] === $status['ino'] && $other['dev'] === $status['dev'];
    }
}
