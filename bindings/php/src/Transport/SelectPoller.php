<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * PHP's own stream_select(): everywhere, and for descriptors below 1024 only.
 *
 * A number from 1024 on is not watched at all (FD_SETSIZE is compiled in), so whoever adds
 * a stream asks room() before.
 */
final class SelectPoller implements Poller
{
    /** glibc's. */
    private const FD_SETSIZE = 1024;

    /** @var array<int, resource> */
    private array $read = [];
    /** @var array<int, resource> */
    private array $write = [];
    /** @var array<int, int> descriptors by resource id */
    private array $numbers = [];
    private readonly Descriptors $descriptors;

    public function __construct()
    {
        $this->descriptors = new Descriptors();
    }

    public function room(mixed $stream): int
    {
        $id = get_resource_id($stream);
        // Without /proc the count has to do, less what the program may have open besides.
        $fd = $this->descriptors->of($stream) ?? count($this->numbers) + 64;
        $this->numbers[$id] = $fd;
        return self::FD_SETSIZE - 1 - $fd;
    }

    public function add(mixed $stream): void
    {
        $this->read[get_resource_id($stream)] = $stream;
    }

    public function watch(mixed $stream, bool $read, bool $write): void
    {
        $id = get_resource_id($stream);
        unset($this->read[$id], $this->write[$id]);
        if ($read) {
            $this->read[$id] = $stream;
        }
        if ($write) {
            $this->write[$id] = $stream;
        }
    }

    public function remove(mixed $stream): void
    {
        $id = get_resource_id($stream);
        unset($this->read[$id], $this->write[$id]);
        if (isset($this->numbers[$id])) {
            $this->descriptors->free($this->numbers[$id]);
            unset($this->numbers[$id]);
        }
    }

    public function wait(float $seconds): array
    {
        $read = $this->read;
        $write = $this->write;
        $except = [];
        if ($read === [] && $write === []) {
            usleep((int) (min($seconds, 1.0) * 1e6));
            return [];
        }
        $whole = (int) $seconds;
        $micro = (int) (fmod($seconds, 1) * 1e6);
        // False where a signal has come.
        $count = Warnings::withheld(
            static function () use (&$read, &$write, &$except, $whole, $micro): int|false {
                return stream_select($read, $write, $except, $whole, $micro);
            }
        );
        if ($count === false) {
            return [];
        }
        $ready = array_fill_keys(array_keys($read), self::READ);
        foreach (array_keys($write) as $id) {
            $ready[$id] = ($ready[$id] ?? 0) | self::WRITE;
        }
        return $ready;
    }

    public function advice(): string
    {
        return 'stream_select() takes no more: enable ext-ffi (Debian has it on for the command'
            . ' line), or start fewer clients';
    }
}
