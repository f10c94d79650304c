<?php

declare(strict_types=1);

namespace apachews\Tests;

use PHPUnit\Framework\Assert;

/**
 * A producer in a separate process, which listens when the constructor returns.
 */
final class Program
{
    /** @var resource|null */
    private mixed $process;
    /** @var array<int, resource> */
    private array $pipes = [];
    private readonly string $log;

    /**
     * @param list<string> $options PHP's own
     * @param int|null     $files   descriptors that it may have; null: as many as this one
     */
    public function __construct(string $file, string $path, array $options = [], ?int $files = null)
    {
        $command = [PHP_BINARY, ...$options, $file, $path];
        if ($files !== null) {
            $command = ['/bin/sh', '-c', "ulimit -n $files; exec \"\$@\"", 'sh', ...$command];
        }
        $process = proc_open($command, [1 => ['pipe', 'w'], 2 => ['file', "$path.log", 'w']], $this->pipes);
        Assert::assertIsResource($process);
        $this->process = $process;
        $this->log = "$path.log";
        $deadline = microtime(true) + Bridge::DEADLINE_S;
        while (!file_exists($path) && microtime(true) < $deadline) {
            usleep(5000);
        }
        Assert::assertFileExists($path, 'the program does not listen');
    }

    public function __destruct()
    {
        $this->end();
    }

    /**
     * Waits for a text on its standard error.
     */
    public function waitForError(string $text): void
    {
        $deadline = microtime(true) + Bridge::DEADLINE_S;
        while (!str_contains($this->errors(), $text) && microtime(true) < $deadline) {
            usleep(5000);
        }
        Assert::assertStringContainsString($text, $this->errors());
    }

    public function errors(): string
    {
        return (string) file_get_contents($this->log);
    }

    /**
     * Terminates it, and returns its standard error.
     */
    public function kill(): string
    {
        $this->end();
        return $this->errors();
    }

    private function end(): void
    {
        if ($this->process !== null) {
            proc_terminate($this->process, 9);
            proc_close($this->process);
            $this->process = null;
        }
    }
}
