<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\Transport\Poller;
use apachews\Transport\SelectPoller;

/**
 * A poller of a program: records its timeouts, and waits for a shorter time.
 */
final class RecordingPoller implements Poller
{
    /** @var list<float> */
    public array $waits = [];
    /** @var array<int, true> by resource id */
    public array $watched = [];
    /** @var (\Closure(): mixed)|null */
    public ?\Closure $beforeWait = null;
    private readonly SelectPoller $poller;

    public function __construct()
    {
        $this->poller = new SelectPoller();
    }

    public function room(mixed $stream): int
    {
        return $this->poller->room($stream);
    }

    public function add(mixed $stream): void
    {
        $this->watched[get_resource_id($stream)] = true;
        $this->poller->add($stream);
    }

    public function watch(mixed $stream, bool $read, bool $write): void
    {
        $this->poller->watch($stream, $read, $write);
    }

    public function remove(mixed $stream): void
    {
        unset($this->watched[get_resource_id($stream)]);
        $this->poller->remove($stream);
    }

    public function wait(float $seconds): array
    {
        $this->waits[] = $seconds;
        if ($this->beforeWait !== null) {
            ($this->beforeWait)();
        }
        return $this->poller->wait(min($seconds, 0.05));
    }

    public function advice(): string
    {
        return 'none';
    }
}
