<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * PHP's own stream_select(): available everywhere, but only for descriptors below 1024.
 *
 * FD_SETSIZE is compiled in: higher descriptors are ignored, so callers of add() check room().
 */
final class SelectPoller implements Poller
{
    /** The value of glibc. */
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
        // Without /proc an estimate: the count, and 64 other descriptors of the program.
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
        // False after a signal.
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
        return 'stream_select() is limited to 1024 descriptors: enable ext-ffi (Debian enables it for the command'
            . ' line), or connect fewer clients';
    }
}
