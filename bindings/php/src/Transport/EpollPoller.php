<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * Linux's epoll, called through ext-ffi: any number of clients.
 *
 * Debian's php-cli has ext-ffi and allows it on the command line (ffi.enable=preload). The
 * functions and the structure are the kernel's (epoll(7)); nothing of PHP's own memory is
 * touched. Streams stay PHP's; Descriptors tells their numbers.
 *
 * It also keeps the sockets from programs that this one starts (FD_CLOEXEC), which PHP
 * does not. One that outlives the producer would hold its clients open: Apache could not
 * tell that nobody serves them any more.
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
    /** What one call hands out; the next one has the rest. */
    private const MAX_EVENTS = 256;

    /**
     * One for the process, which is never freed. PHP keeps where the fields of a structure
     * are beside the code that uses them, by the address of the type: that of a type that is
     * gone may be another's, and then it reads what is no field.
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
     * @throws \RuntimeException it is not to be had here; isAvailable() tells before
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
            throw new \RuntimeException('epoll_create1() failed: no descriptor is left');
        }
        $this->epoll = $epoll;
        $this->descriptors = new Descriptors();
    }

    private static function declare(): \FFI
    {
        // The kernel packs it on x86-64 alone.
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
     * Tells whether this PHP may call it: on Linux, with ext-ffi, and not switched off.
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
            return -1; // not even one is left to look for it
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
            // (Fails for one that was never added, and need not succeed.)
            $this->libc->epoll_ctl($this->epoll, self::CTL_DEL, $this->numbers[$id], \FFI::addr($this->event));
            $this->descriptors->free($this->numbers[$id]);
            unset($this->numbers[$id]);
        }
    }

    public function wait(float $seconds): array
    {
        // Rounded up: a millisecond too late is better than a spin.
        $milliseconds = (int) ceil($seconds * 1000);
        $count = $this->libc->epoll_wait(
            $this->epoll,
            \FFI::addr($this->events[0]),
            self::MAX_EVENTS,
            $milliseconds
        );
        $ready = [];
        // (Negative where a signal has come.)
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
        return 'raise the number of descriptors: LimitNOFILE= in the unit, or "ulimit -n"';
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
            throw new \RuntimeException("epoll_ctl() refused descriptor $fd");
        }
    }
}
