<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\Transport\EpollPoller;
use apachews\Wire\Frame;
use PHPUnit\Framework\TestCase;

/**
 * More clients than select() supports, and the handling of surplus clients.
 */
final class CrowdTest extends TestCase
{
    private const FILES = 4096;

    private Directory $directory;

    protected function setUp(): void
    {
        if (!function_exists('posix_getrlimit')) {
            self::markTestSkipped('ext-posix is not loaded');
        }
        $limit = posix_getrlimit();
        $hard = $limit === false ? 0 : $limit['hard openfiles'];
        if ($hard !== 'unlimited' && $hard < self::FILES) {
            self::markTestSkipped("this process may have $hard descriptors at most; it takes " . self::FILES);
        }
        $this->directory = new Directory();
    }

    /**
     * @return array{first: int, again: int, codes: array<int, int>}
     */
    private function crowd(string $path, int $count): array
    {
        $command = sprintf(
            'ulimit -n %d; exec %s %s %s %d 2>&1',
            self::FILES,
            escapeshellarg(PHP_BINARY),
            escapeshellarg(__DIR__ . '/programs/crowd.php'),
            escapeshellarg($path),
            $count
        );
        $said = (string) shell_exec($command);
        $result = json_decode($said, true);
        self::assertIsArray($result, $said);
        return $result;
    }

    public function testEpollServesMoreThanSelectSupports(): void
    {
        if (!EpollPoller::isAvailable()) {
            self::markTestSkipped('ext-ffi is not loaded, or not allowed');
        }
        $path = "{$this->directory->path}/it.ws";
        $program = new Program(__DIR__ . '/programs/seed.php', $path, files: self::FILES);
        self::assertSame(['first' => 2500, 'again' => 2500, 'codes' => []], $this->crowd($path, 2500));
        self::assertSame('', $program->kill());
    }

    public function testSelectRejectsSurplusClientsAndServesTheOthers(): void
    {
        $path = "{$this->directory->path}/it.ws";
        $options = ['-d', 'ffi.enable=0'];
        $program = new Program(__DIR__ . '/programs/seed.php', $path, $options, self::FILES);
        $result = $this->crowd($path, 1100);
        self::assertGreaterThan(950, $result['first']);
        self::assertLessThan(1024, $result['first']);
        self::assertSame($result['first'], $result['again'], 'an accepted client was dropped');
        self::assertSame([1013 => 1100 - $result['first']], $result['codes']);
        $errors = $program->errors();
        self::assertStringContainsString("({$result['first']} clients are connected)", $errors);
        self::assertStringContainsString('ext-ffi', $errors);
        self::assertSame(1, substr_count($errors, "\n"), $errors);
        // The server has room again.
        self::assertSame(['first' => 50, 'again' => 50, 'codes' => []], $this->crowd($path, 50));
        self::assertSame($errors, $program->kill());
    }

    public function testSelectSurvivesMoreClientsThanItCanReject(): void
    {
        $path = "{$this->directory->path}/it.ws";
        $limit = posix_getrlimit();
        $soft = $limit === false ? 0 : $limit['soft openfiles'];
        if ($soft !== 'unlimited' && $soft < 1200) {
            self::markTestSkipped("this process may have $soft descriptors: ulimit -n 4096");
        }
        $program = new Program(__DIR__ . '/programs/seed.php', $path, ['-d', 'ffi.enable=0'], self::FILES);
        $first = new Bridge($path);
        $silent = [];
        for ($number = 0; $number < 1100; $number++) {
            $silent[] = stream_socket_client("unix://$path");
        }
        $program->waitForError('cannot accept a client: the server has no room');
        foreach (['one', 'two'] as $text) {
            $first->send(Frame::TEXT, $text);
            self::assertSame($text, $first->readText());
            $silent = []; // closes them
        }
        $next = new Bridge($path);
        $next->send(Frame::TEXT, 'room again');
        self::assertSame('room again', $next->readText());
        self::assertStringContainsString('ext-ffi', $program->kill());
    }

    public function testProcessWithoutDescriptorsContinues(): void
    {
        $path = "{$this->directory->path}/it.ws";
        $program = new Program(__DIR__ . '/programs/seed.php', $path, files: 40);
        $first = new Bridge($path);
        $others = [];
        for ($number = 0; $number < 60; $number++) {
            $others[] = new Bridge($path);
        }
        $program->waitForError('cannot accept a client: Too many open files');
        $first->send(Frame::TEXT, 'hello');
        self::assertSame('hello', $first->readText());
        foreach (array_splice($others, 0, 50) as $other) {
            $other->leave();
        }
        $last = end($others);
        self::assertInstanceOf(Bridge::class, $last);
        $last->send(Frame::TEXT, 'let in in the end');
        self::assertSame('let in in the end', $last->readText());
        $program->kill();
    }
}
