<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * The numbers of the descriptors behind streams, which PHP does not tell.
 *
 * How this works: fstat() names what is behind a stream, and stat() of /proc/self/fd/N what
 * is behind a number; the one that is the same is it. The kernel gives the lowest number
 * that is free. So it is the lowest of those that are known to be free, or else the first
 * behind the highest known; what the program has opened meanwhile is stepped over, once.
 * Only where the program has closed something of its own is it a number that nobody
 * expects: then the directory is read, and all is known again.
 *
 * @internal
 */
final class Descriptors
{
    private const DIRECTORY = '/proc/self/fd';

    /** @var \SplMinHeap<int> numbers below $next that are free, as far as is known */
    private \SplMinHeap $free;
    /** @var array<int, true> numbers that were told, and not freed */
    private array $told = [];
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
        $fd = Warnings::withheld(fn (): ?int => $this->expect($status) ?? $this->search($status));
        if ($fd !== null) {
            $this->told[$fd] = true;
        }
        return $fd;
    }

    /**
     * Notes that a number was closed.
     */
    public function free(int $fd): void
    {
        unset($this->told[$fd]);
        $this->free->insert($fd);
    }

    /**
     * Looks where the kernel must have put it, if nobody else has closed anything.
     *
     * @param array<int> $status as fstat() gave it
     */
    private function expect(array $status): ?int
    {
        while (!$this->free->isEmpty()) {
            $fd = $this->free->top();
            $isIt = self::isBehind($fd, $status);
            if ($isIt === null) {
                return null; // still free: what the kernel took instead is lower
            }
            $this->free->extract();
            if ($isIt) {
                return $fd;
            }
        }
        while (($isIt = self::isBehind($this->next, $status)) === false) {
            $this->next++;
        }
        return $isIt === true ? $this->next++ : null;
    }

    /**
     * Looks everywhere, and learns which numbers are free.
     *
     * @param array<int> $status as fstat() gave it
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
            $isIt = isset($this->told[$fd]) ? false : self::isBehind($fd, $status);
            if ($isIt !== null) { // (not the one that scandir() had)
                $used[$fd] = true;
            }
            $found = $isIt === true ? $fd : $found;
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
     * Tells whether it is what is behind a number; null: nothing is.
     *
     * @param array<int> $status as fstat() gave it
     */
    private static function isBehind(int $fd, array $status): ?bool
    {
        $name = self::DIRECTORY . '/' . $fd;
        clearstatcache(true, $name);
        $other = stat($name);
        return $other === false ? null : $other['ino'] === $status['ino'] && $other['dev'] === $status['dev'];
    }
}
