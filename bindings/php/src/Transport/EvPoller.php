<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * libev, through the extension ext-ev from PECL: any number of clients.
 */
final class EvPoller implements Poller
{
    private readonly \EvLoop $loop;
    /** @var array<int, \EvIo> by resource id */
    private array $watchers = [];
    /** @var array<int, int> */
    private array $ready = [];

    public function __construct()
    {
        $this->loop = new \EvLoop();
    }

    /**
     * Tells whether the extension is loaded.
     */
    public static function isAvailable(): bool
    {
        return extension_loaded('ev');
    }

    public function room(mixed $stream): int
    {
        return PHP_INT_MAX;
    }

    public function add(mixed $stream): void
    {
        $this->start($stream, \Ev::READ);
    }

    public function watch(mixed $stream, bool $read, bool $write): void
    {
        $this->remove($stream);
        if ($read || $write) {
            $this->start($stream, ($read ? \Ev::READ : 0) | ($write ? \Ev::WRITE : 0));
        }
    }

    public function remove(mixed $stream): void
    {
        $id = get_resource_id($stream);
        if (isset($this->watchers[$id])) {
            $this->watchers[$id]->stop();
            unset($this->watchers[$id]);
        }
    }

    public function wait(?float $seconds): array
    {
        $this->ready = [];
        if ($seconds === null || $seconds > 0) {
            // (A timer in any case: without a watcher the loop would not wait at all.)
            $timer = $this->loop->timer($seconds ?? 3600.0, 0.0, static function (): void {
            });
            $this->loop->run(\Ev::RUN_ONCE);
            $timer->stop();
        } else {
            $this->loop->run(\Ev::RUN_NOWAIT);
        }
        return $this->ready;
    }

    public function advice(): string
    {
        return 'raise the number of descriptors: LimitNOFILE= in the unit, or "ulimit -n"';
    }

    /**
     * @param resource $stream
     */
    private function start(mixed $stream, int $events): void
    {
        $id = get_resource_id($stream);
        $note = function (\EvWatcher $_, int $revents) use ($id): void {
            $this->ready[$id] = (($revents & \Ev::READ) !== 0 ? self::READ : 0)
                | (($revents & \Ev::WRITE) !== 0 ? self::WRITE : 0);
        };
        $this->watchers[$id] = $this->loop->io($stream, $events, $note);
    }
}
