<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\EventType;
use apachews\Exception\InvalidArgument;
use apachews\Exception\NotASocket;
use apachews\Exception\ServerException;
use apachews\Exception\SocketInUse;
use apachews\Server;
use PHPUnit\Framework\Attributes\DataProvider;
use PHPUnit\Framework\TestCase;

/**
 * The socket file: creating, replacing and removing it.
 */
final class SocketFileTest extends TestCase
{
    private Directory $directory;
    private string $path;
    /** @var list<string> */
    private array $logged = [];

    protected function setUp(): void
    {
        $this->directory = new Directory();
        $this->path = "{$this->directory->path}/it.ws";
    }

    private function serve(string|int|null $group = null, int $mode = 0660, bool $exclusive = false): Server
    {
        return new Server(
            $this->path,
            mode: $mode,
            group: $group,
            exclusive: $exclusive,
            log: function (string $line): void {
                $this->logged[] = $line;
            }
        );
    }

    private function mode(): int
    {
        clearstatcache();
        return (int) fileperms($this->path) & 0777;
    }

    public function testFileHasItsPermissionsWhateverTheUmask(): void
    {
        $umask = umask(0777);
        $server = $this->serve();
        self::assertSame(0777, umask($umask));
        self::assertSame(0660, $this->mode());
        $server->close();
        $server = $this->serve(mode: 0606);
        self::assertSame(0606, $this->mode());
        $server->close();
    }

    public function testFileHasItsGroup(): void
    {
        $group = (int) filegroup($this->directory->path);
        $server = $this->serve($group);
        clearstatcache();
        self::assertSame($group, filegroup($this->path));
        $server->close();
        $this->expectException(ServerException::class);
        $this->expectExceptionMessage('no-such-group');
        $this->serve('no-such-group');
    }

    public function testProgramCanRemoveTheFileBefore(): void
    {
        touch($this->path);
        if (file_exists($this->path)) {
            unlink($this->path);
        }
        $server = $this->serve();
        self::assertFileExists($this->path);
        $server->close();
        self::assertFileDoesNotExist($this->path);
    }

    public function testFileOfADeadProducerIsReplaced(): void
    {
        $dead = stream_socket_server("unix://{$this->path}");
        self::assertIsResource($dead);
        fclose($dead);
        self::assertFileExists($this->path);
        $server = $this->serve(exclusive: true);
        (new Bridge($this->path))->leave();
        self::assertSame(EventType::Accept, $server->dequeue(Bridge::DEADLINE_S)?->type());
        self::assertSame([], $this->logged);
        $server->close();
    }

    public function testLiveSocketIsReplacedAndTheOtherKeepsItsClients(): void
    {
        $old = $this->serve();
        $oldBridge = new Bridge($this->path);
        $oldClient = $old->dequeue(Bridge::DEADLINE_S)?->getClient();
        $new = $this->serve();
        self::assertCount(1, $this->logged);
        self::assertStringContainsString('replaced another producer', $this->logged[0]);
        $newBridge = new Bridge($this->path);
        $newClient = $new->dequeue(Bridge::DEADLINE_S)?->getClient();
        self::assertTrue($oldClient?->send('old'));
        self::assertTrue($newClient?->send('new'));
        self::assertSame('old', $oldBridge->readText());
        self::assertSame('new', $newBridge->readText());
        $old->close();
        self::assertFileExists($this->path, 'it is not the old one\'s any more');
        $new->close();
        self::assertFileDoesNotExist($this->path);
    }

    public function testExclusiveServerFailsIfAnotherListens(): void
    {
        $server = $this->serve();
        try {
            $this->serve(exclusive: true);
            self::fail('it was taken over');
        } catch (SocketInUse $error) {
            self::assertSame($this->path, $error->path);
            self::assertSame('stop it, or serve on another path', $error->remedy);
        }
        (new Bridge($this->path))->leave();
        self::assertSame(EventType::Accept, $server->dequeue(Bridge::DEADLINE_S)?->type());
        $server->close();
    }

    public function testBusyProducerIsAlive(): void
    {
        // Its backlog is full: connecting would block.
        $context = stream_context_create(['socket' => ['backlog' => 0]]);
        $flags = STREAM_SERVER_BIND | STREAM_SERVER_LISTEN;
        $busy = stream_socket_server("unix://{$this->path}", $code, $error, $flags, $context);
        $waiting = [];
        do {
            $socket = @stream_socket_client(
                "unix://{$this->path}",
                $code,
                $error,
                1,
                STREAM_CLIENT_CONNECT | STREAM_CLIENT_ASYNC_CONNECT
            );
            $waiting[] = $socket;
        } while ($socket !== false && count($waiting) < 100);
        self::assertFalse($socket, 'the backlog is never full');
        self::assertIsResource($busy);
        $this->expectException(SocketInUse::class);
        $this->serve(exclusive: true);
    }

    public function testFileThatIsNotASocketIsLeftAlone(): void
    {
        file_put_contents($this->path, 'precious');
        try {
            $this->serve();
            self::fail('it was replaced');
        } catch (NotASocket $error) {
            self::assertStringContainsString($this->path, $error->getMessage());
        }
        self::assertSame('precious', file_get_contents($this->path));
    }

    public function testLeftOversAreRemoved(): void
    {
        touch("{$this->directory->path}/.apachews-0123abcd");
        touch("{$this->directory->path}/.apachews-0123abcd.bak");
        $server = $this->serve();
        self::assertFileDoesNotExist("{$this->directory->path}/.apachews-0123abcd");
        self::assertFileExists("{$this->directory->path}/.apachews-0123abcd.bak");
        $server->close();
    }

    public function testLockOfAnotherProgramDoesNotPreventAStart(): void
    {
        $leftOver = "{$this->directory->path}/.apachews-0123abcd";
        touch($leftOver);
        $stranger = fopen($this->directory->path, 'r');
        self::assertNotFalse($stranger);
        self::assertTrue(flock($stranger, LOCK_SH));
        $server = $this->serve();
        // Files that may belong to another start are left.
        self::assertFileExists($leftOver);
        self::assertTrue(flock($stranger, LOCK_UN));
        $server->close();
        self::assertFileDoesNotExist($this->path);
    }

    public function testFileIsRemovedAfterAChdir(): void
    {
        $before = (string) getcwd();
        chdir($this->directory->path);
        try {
            $server = new Server('it.ws');
            self::assertFileExists($this->path);
            chdir('/');
            $server->close();
        } finally {
            chdir($before);
        }
        clearstatcache();
        self::assertFileDoesNotExist($this->path);
    }

    public function testPathThatJustFitsIsServed(): void
    {
        $this->path = str_pad("{$this->directory->path}/", 104, 'x') . '.ws';
        self::assertSame(107, strlen($this->path));
        $server = $this->serve();
        (new Bridge($this->path))->leave();
        self::assertSame(EventType::Accept, $server->dequeue(Bridge::DEADLINE_S)?->type());
        $server->close();
        self::assertFileDoesNotExist($this->path);
    }

    /**
     * @return array<string, array{string, string}>
     */
    public static function badPaths(): array
    {
        return [
            'too long' => ['/tmp/' . str_repeat('x', 103), '107 bytes'],
            'empty' => ['', 'invalid path'],
            'with a NUL' => ["/tmp/a\0b", 'invalid path'],
            'no directory' => ['/nonexistent/it.ws', '/nonexistent is missing'],
        ];
    }

    /**
     * @dataProvider badPaths
     */
    #[DataProvider('badPaths')]
    public function testBadPathIsRejected(string $path, string $why): void
    {
        $this->path = $path;
        $this->expectException(ServerException::class);
        $this->expectExceptionMessage($why);
        $this->serve();
    }

    public function testErrorNamesADirectoryThatIsNotWritable(): void
    {
        chmod($this->directory->path, 0555);
        if (is_writable($this->directory->path)) {
            self::markTestSkipped('root may write everywhere');
        }
        $this->expectException(ServerException::class);
        $this->expectExceptionMessage($this->path);
        $this->serve();
    }

    public function testInvalidSettingsAreRejected(): void
    {
        foreach ([['mode' => 01777], ['maxMessageBytes' => 0], ['maxQueueBytes' => -1]] as $settings) {
            try {
                new Server($this->path, ...$settings);
                self::fail('it was taken');
            } catch (InvalidArgument $error) {
                self::assertStringContainsString((string) key($settings), $error->getMessage());
            }
            self::assertFileDoesNotExist($this->path);
        }
    }

    public function testSystemdIsNotified(): void
    {
        $address = "{$this->directory->path}/notify";
        $socket = stream_socket_server("udg://$address", $code, $error, STREAM_SERVER_BIND);
        self::assertIsResource($socket);
        stream_set_timeout($socket, 10);
        $program = __DIR__ . '/programs/seed.php';
        $process = proc_open([PHP_BINARY, $program, $this->path], [], $pipes, null, [
            'NOTIFY_SOCKET' => $address,
            'WATCHDOG_USEC' => '200000',
        ]);
        self::assertIsResource($process);
        self::assertSame("READY=1\nSTATUS=listening on {$this->path}", stream_socket_recvfrom($socket, 4096));
        self::assertSame('WATCHDOG=1', stream_socket_recvfrom($socket, 4096));
        self::assertSame('WATCHDOG=1', stream_socket_recvfrom($socket, 4096));
        proc_terminate($process, 9);
        proc_close($process);
    }
}
