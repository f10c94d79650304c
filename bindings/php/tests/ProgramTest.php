<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\EventType;
use apachews\Exception\InvalidArgument;
use apachews\Exception\ServerException;
use apachews\Server;
use apachews\Transport\EpollPoller;
use apachews\Transport\Loop;
use apachews\Transport\Poller;
use apachews\Transport\SelectPoller;
use apachews\Wire\Frame;
use PHPUnit\Framework\Attributes\DataProvider;
use PHPUnit\Framework\TestCase;

/**
 * Programs that throw, start other programs, use their own poller, or get signals in the middle
 * of a crowd.
 */
final class ProgramTest extends TestCase
{
    private Directory $directory;
    private string $path;
    private ?Bridge $bridge = null;

    protected function setUp(): void
    {
        $this->directory = new Directory();
        $this->path = "{$this->directory->path}/it.ws";
    }

    /**
     * @return array<string, array{class-string<Poller>}>
     */
    public static function pollers(): array
    {
        return ['select' => [SelectPoller::class], 'epoll' => [EpollPoller::class]];
    }

    /**
     * @param class-string<Poller> $class
     */
    private static function poller(string $class): Poller
    {
        if ($class === EpollPoller::class && !EpollPoller::isAvailable()) {
            self::markTestSkipped('ext-ffi is not loaded, or not allowed');
        }
        return new $class();
    }

    private static function next(Server $server, EventType $type): void
    {
        self::assertSame($type, $server->dequeue(Bridge::DEADLINE_S)?->type());
    }

    /**
     * @dataProvider pollers
     *
     * @param class-string<Poller> $class
     */
    #[DataProvider('pollers')]
    public function testErrorHandlerIsNotCalledForExpectedWarnings(string $class): void
    {
        $poller = self::poller($class);
        set_error_handler(static function (int $_, string $text): never {
            throw new \ErrorException($text); // "@" would not keep it from that
        });
        try {
            $server = new Server($this->path, poller: $poller);
            $bridge = new Bridge($this->path);
            self::next($server, EventType::Accept);
            $bridge->send(Frame::TEXT, 'and away');
            $event = $server->dequeue(Bridge::DEADLINE_S);
            self::assertSame(EventType::IO, $event?->type());
            $bridge->leave();
            $event->write('without a client');
            $event->write('nor this');
            self::next($server, EventType::ConnectionClosed);
            $next = new Bridge($this->path);
            self::next($server, EventType::Accept);
            $server->close();
            self::assertSame(1001, $next->readClose()->code);
            self::assertSame('no producer listens here', $this->problemOf(
                fn () => \apachews\publish($this->path, 'hello')
            ));
            self::assertStringContainsString('no-such-group', $this->problemOf(
                fn () => new Server($this->path, group: 'no-such-group')
            ));
        } finally {
            restore_error_handler();
        }
    }

    /**
     * @param \Closure(): mixed $call
     */
    private function problemOf(\Closure $call): string
    {
        try {
            $call();
        } catch (ServerException $error) {
            return $error->problem;
        }
        self::fail('nothing was wrong');
    }

    public function testProgramsThatItStartsDoNotHoldItsClients(): void
    {
        if (!EpollPoller::isAvailable()) {
            self::markTestSkipped('ext-ffi is not loaded, or not allowed');
        }
        $program = new Program(__DIR__ . '/programs/starter.php', $this->path);
        $bridge = new Bridge($this->path);
        $bridge->send(Frame::TEXT, 'start one');
        $pid = (int) $bridge->readText();
        try {
            self::assertDirectoryExists("/proc/$pid", 'it has ended: the test shows nothing');
            self::assertSame('', $program->kill());
            self::assertNull($bridge->readFrame());
            self::assertSame('no producer listens here', $this->problemOf(
                fn () => \apachews\publish($this->path, 'hello')
            ));
        } finally {
            exec("kill $pid");
        }
    }

    /**
     * PHP would confuse the fields of freed and new declarations: see the poller.
     */
    public function testDeclarationsForEpollAreMadeOnce(): void
    {
        self::poller(EpollPoller::class);
        $libc = new \ReflectionProperty(EpollPoller::class, 'libc');
        $first = new EpollPoller();
        $id = spl_object_id($libc->getValue($first));
        unset($first);
        self::assertSame($id, spl_object_id($libc->getValue(new EpollPoller())));
        self::assertSame($libc->getValue(new EpollPoller()), $libc->getValue(new EpollPoller()));
    }

    /**
     * @dataProvider pollers
     *
     * @param class-string<Poller> $class
     */
    #[DataProvider('pollers')]
    public function testClosedClientIsClosedAlthoughAnotherProcessHasItsSocket(string $class): void
    {
        $server = new Server($this->path, poller: self::poller($class));
        $bridge = new Bridge($this->path);
        self::next($server, EventType::Accept);
        link($this->path, "{$this->path}.2"); // connects after the file is removed
        // It inherits all sockets of PHP, except those with FD_CLOEXEC of the poller.
        $process = proc_open(['sleep', '60'], [], $pipes);
        self::assertIsResource($process);
        try {
            $server->close();
            self::assertSame(1001, $bridge->readClose()->code);
            self::assertNull($bridge->readFrame());
            self::assertSame('no producer listens here', $this->problemOf(
                fn () => \apachews\publish("{$this->path}.2", 'hello')
            ));
            self::assertTrue(proc_get_status($process)['running']);
        } finally {
            proc_terminate($process, 9);
            proc_close($process);
        }
    }

    public function testProgramUsesItsOwnPoller(): void
    {
        // PHPUnit 13 limits the time of a test with asynchronous signals, which make waits short.
        $wasAsync = function_exists('pcntl_async_signals') && pcntl_async_signals(false);
        $poller = new RecordingPoller();
        $server = new Server($this->path, poller: $poller);
        $poller->beforeWait = fn () => $this->bridge ??= new Bridge($this->path);
        self::assertSame(EventType::Accept, $server->dequeue(PHP_INT_MAX)?->type());
        $this->bridge?->send(Frame::TEXT, 'hello');
        self::assertSame('hello', $server->dequeue()?->read());
        self::assertSame(ApacheWSNoData, $server->dequeue(0.01)?->type());
        $server->close();
        self::assertSame([], $poller->watched);
        if ($wasAsync) {
            pcntl_async_signals(true);
        }
        // The longest timeout of select(); PHP throws for more than an integer.
        self::assertContains(3600.0, $poller->waits);
        self::assertSame([], array_filter($poller->waits, static fn (float $s): bool => $s < 0 || $s > 3600));
    }

    public function testCrowdIsAcceptedInOneTurn(): void
    {
        $server = new Server($this->path);
        $bridges = [];
        for ($number = 0; $number < 50; $number++) {
            $bridges[] = new Bridge($this->path);
        }
        self::assertSame(ApacheWSNoData, $server->dequeue(0)?->type());
        $loop = (new \ReflectionProperty($server, 'loop'))->getValue($server);
        assert($loop instanceof Loop);
        self::assertCount(50, $loop->connections->all());
        foreach ($bridges as $_) {
            self::next($server, EventType::Accept);
        }
        $server->close();
    }

    public function testSignalIsHandledBeforeTheRestOfACrowd(): void
    {
        if (!function_exists('pcntl_signal')) {
            self::markTestSkipped('ext-pcntl is not loaded');
        }
        $server = new Server($this->path);
        $calls = 0;
        $server->onSignal(SIGUSR2, function () use (&$calls): void {
            $calls++;
        });
        $bridge = new Bridge($this->path);
        self::next($server, EventType::Accept);
        $bridge->write(str_repeat(Frame::encode(Frame::TEXT, 'x'), 500));
        self::next($server, EventType::IO); // the other events are queued after it
        posix_kill((int) getmypid(), SIGUSR2);
        self::next($server, EventType::IO);
        self::assertSame(1, $calls);
        pcntl_signal(SIGUSR2, SIG_DFL);
        $server->close();
    }

    public function testFunctionThatThrowsEndsNothing(): void
    {
        if (!function_exists('pcntl_signal')) {
            self::markTestSkipped('ext-pcntl is not loaded');
        }
        $server = new Server($this->path);
        $server->onSignal(SIGUSR2, static fn () => throw new \DomainException('its own'));
        $bridge = new Bridge($this->path);
        self::next($server, EventType::Accept);
        $bridge->send(Frame::TEXT, 'hello');
        posix_kill((int) getmypid(), SIGUSR2);
        try {
            $server->dequeue(Bridge::DEADLINE_S);
            self::fail('it was swallowed');
        } catch (\DomainException) {
            self::assertSame('hello', $server->dequeue(Bridge::DEADLINE_S)?->read());
        }
        pcntl_signal(SIGUSR2, SIG_DFL);
        $server->close();
    }

    public function testPublishWaitsForRoomInTheBacklog(): void
    {
        $context = stream_context_create(['socket' => ['backlog' => 0]]);
        $flags = STREAM_SERVER_BIND | STREAM_SERVER_LISTEN;
        $busy = stream_socket_server("unix://{$this->path}", $code, $error, $flags, $context);
        self::assertIsResource($busy);
        $waiting = [];
        do {
            $socket = @stream_socket_client("unix://{$this->path}", $code, $error, 1);
            $waiting[] = $socket;
        } while ($socket !== false && count($waiting) < 100);
        self::assertFalse($socket, 'the backlog is never full');
        self::assertSame('the producer did not answer', $this->problemOf(
            fn () => \apachews\publish($this->path, 'hello', timeout: 0.1)
        ));
    }

    public function testPublishRejectsAFileThatIsNotASocket(): void
    {
        touch($this->path);
        self::assertStringContainsString('not a Unix socket', $this->problemOf(
            fn () => \apachews\publish($this->path, 'hello')
        ));
    }

    public function testInvalidTimeoutsAreRejected(): void
    {
        $server = new Server($this->path);
        $refused = 0;
        $publish = fn (float $timeout) => \apachews\publish($this->path, 'hello', timeout: $timeout);
        $drain = $server->drain(...);
        foreach ([[$drain, -1.0], [$drain, NAN], [$publish, 0.0], [$publish, NAN]] as [$call, $timeout]) {
            try {
                $call($timeout);
            } catch (InvalidArgument) {
                $refused++;
            }
        }
        self::assertSame(4, $refused);
        self::assertSame(ApacheWSNoData, $server->dequeue(0)?->type(), 'it drains');
        $server->close();
    }
}
