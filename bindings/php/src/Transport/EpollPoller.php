<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * Linux's epoll, called through ext-ffi: any number of clients.
 *
 * Debian's php-cli has ext-ffi and allows it on the command line (ffi.enable=preload). The
 * functions and the structure are the kernel's (epoll(7)); PHP's own memory is not accessed.
 * Streams remain PHP's; Descriptors finds their file descriptors.
 *
 * Also sets FD_CLOEXEC, which PHP does not. A program that this one starts, and that outlives
 * it, would keep the sockets open, and Apache would not notice that the producer has exited.
 */
final class EpollPoller implements Poller
{
    private const DECLARATIONS = '
        typedef struct %s { uint32_t events; uint64_t data; } apachews_event;
        int epoll_create1(int flags);
        int epoll_ctl(int epfd, int op, int fd, apachews_event *event);
        int epoll_wait(int epfd, apachews_event *events, int maxevents, int timeout);
        int fcntl(int fd, int cmd, ...);
        int close(int fd);
    ';
    private const EPOLL_CLOEXEC = 02000000;
    private const F_SETFD = 2;
    private const FD_CLOEXEC = 1;
    private const CTL_ADD = 1;
    private const CTL_DEL = 2;
    private const CTL_MOD = 3;
    private const IN = 0x1;
    private const OUT = 0x4;
    private const ERR = 0x8;
    private const HUP = 0x10;
    /** Events per epoll_wait(); the next call returns the rest. */
    private const MAX_EVENTS = 256;

    /**
     * One per process, never freed. PHP caches the offsets of structure fields by the address of
     * the type. If the type were freed, another type could get its address, and PHP would read
     * at wrong offsets.
     */
    private static ?\FFI $shared = null;

    private readonly \FFI $libc;
    private readonly int $epoll;
    private readonly \FFI\CData $event;
    private readonly \FFI\CData $events;
    /** @var array<int, int> descriptors by resource id */
    private array $numbers = [];
    private readonly Descriptors $descriptors;

    /**
     * @throws \RuntimeException epoll is not available; see isAvailable()
     */
    public function __construct()
    {
        $this->libc = self::$shared ??= self::declare();
        $event = $this->libc->new('apachews_event');
        $events = $this->libc->new('apachews_event[' . self::MAX_EVENTS . ']');
        assert($event !== null && $events !== null);
        $this->event = $event;
        $this->events = $events;
        $epoll = $this->libc->epoll_create1(self::EPOLL_CLOEXEC);
        if (!is_int($epoll) || $epoll < 0) {
            throw new \RuntimeException('epoll_create1() failed: too many open files');
        }
        $this->epoll = $epoll;
        $this->descriptors = new Descriptors();
    }

    private static function declare(): \FFI
    {
        // The kernel packs the structure only on x86-64.
        $packed = php_uname('m') === 'x86_64' ? '__attribute__((packed))' : '';
        return \FFI::cdef(sprintf(self::DECLARATIONS, $packed));
    }

    public function __destruct()
    {
        if (isset($this->epoll)) {
            $this->libc->close($this->epoll);
        }
    }

    /**
     * Returns whether epoll is available: on Linux, with ext-ffi that is enabled.
     */
    public static function isAvailable(): bool
    {
        if (PHP_OS_FAMILY !== 'Linux' || PHP_INT_SIZE < 8 || !Descriptors::areKnown()) {
            return false;
        }
        try {
            if (!class_exists(\FFI::class, false)) {
                return false;
            }
            self::$shared ??= self::declare();
            return true;
        } catch (\FFI\Exception) {
            return false;
        }
    }

    public function room(mixed $stream): int
    {
        $fd = $this->descriptors->of($stream);
        if ($fd === null) {
            return -1; // no file descriptor is free for the search
        }
        $this->numbers[get_resource_id($stream)] = $fd;
        return PHP_INT_MAX;
    }

    public function add(mixed $stream): void
    {
        $this->control(self::CTL_ADD, $stream, self::IN);
        $this->libc->fcntl($this->numbers[get_resource_id($stream)], self::F_SETFD, self::FD_CLOEXEC);
    }

    public function watch(mixed $stream, bool $read, bool $write): void
    {
        $this->control(self::CTL_MOD, $stream, ($read ? self::IN : 0) | ($write ? self::OUT : 0));
    }

    public function remove(mixed $stream): void
    {
        $id = get_resource_id($stream);
        if (isset($this->numbers[$id])) {
            // Fails for a stream that was never added, which is harmless.
            $this->libc->epoll_ctl($this->epoll, self::CTL_DEL, $this->numbers[$id], \FFI::addr($this->event));
            $this->descriptors->free($this->numbers[$id]);
            unset($this->numbers[$id]);
        }
    }

    public function wait(float $seconds): array
    {
        // Rounded up: rounding down would spin during the last millisecond.
        $milliseconds = (int) ceil($seconds * 1000);
        $count = $this->libc->epoll_wait(
            $this->epoll,
            \FFI::addr($this->events[0]),
            self::MAX_EVENTS,
            $milliseconds
        );
        $ready = [];
        // $count is negative after a signal.
        for ($index = 0; $index < $count; $index++) {
            $event = $this->events[$index];
            assert($event instanceof \FFI\CData);
            [$mask, $id] = [$event->events, $event->data];
            assert(is_int($mask) && is_int($id));
            $ready[$id] = (($mask & self::IN) !== 0 ? self::READ : 0)
                | (($mask & self::OUT) !== 0 ? self::WRITE : 0)
                | (($mask & (self::HUP | self::ERR)) !== 0 ? self::READ | self::GONE : 0);
        }
        return $ready;
    }

    public function advice(): string
    {
        return 'raise the limit of open files: LimitNOFILE= in the unit, or "ulimit -n"';
    }

    /**
     * @param resource $stream
     */
    private function control(int $operation, mixed $stream, int $mask): void
    {
        $id = get_resource_id($stream);
        $this->event->events = $mask;
        $this->event->data = $id;
        $fd = $this->numbers[$id];
        if ($this->libc->epoll_ctl($this->epoll, $operation, $fd, \FFI::addr($this->event)) !== 0) {
            throw new \RuntimeException("epoll_ctl() failed for descriptor $fd");
        }
    }
}
