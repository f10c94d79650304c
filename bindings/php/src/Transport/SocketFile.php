<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Exception\NotASocket;
use apachews\Exception\ServerException;
use apachews\Exception\SocketInUse;

/**
 * The socket file: creating, replacing and removing it.
 *
 * The constructor listens or throws; close() is idempotent and removes the file only if it is
 * still the one that was created here.
 *
 * How this works: the new socket is bound to a temporary name beside the path, starts to
 * listen, and is renamed onto the path. A client that connects finds the old socket or the new
 * one, and always a listening one; the files of dead and live producers are replaced alike. A
 * live producer keeps its clients. The umask creates the file with its final permissions, so
 * that they are never too wide.
 *
 * The directory is locked during this, and while a file is removed: two producers that start
 * at the same time take turns, and a producer does not remove the file of its successor. A
 * temporary name that exists while the lock is free was left by a start that died, and is
 * removed. (The Python library uses the same lock and names.)
 *
 * @internal
 */
final class SocketFile
{
    /** The size of sockaddr_un.sun_path, without its NUL. */
    public const MAX_PATH_BYTES = 107;
    /** The backlog of listen(); the kernel limits it to net.core.somaxconn. */
    private const BACKLOG = 4096;
    /** The temporary name. It does not end in .ws: Apache would serve it. */
    private const BESIDE = '/\A\.apachews-[0-9a-f]{8}\z/';

    /**
     * How long to retry the lock of the directory, which producers hold for a millisecond when
     * they start or exit; and the interval of the retries.
     */
    private const LOCK_TIMEOUT_NS = 5_000_000_000;
    private const LOCK_INTERVAL_US = 10_000;

    public const ENOENT = 2;
    public const EAGAIN = 11;
    public const ECONNREFUSED = 111;

    /** @var resource|null listening, non-blocking; null once it is closed */
    public mixed $stream = null;
    /** Whether another producer listened on the path. */
    public readonly bool $wasTaken;
    /** The absolute path, valid also after a chdir(). */
    private readonly string $place;
    /** @var array{int, int}|null device and inode; null once the file is removed */
    private ?array $identity = null;

    /**
     * @param string          $path      of the file
     * @param int             $mode      its permissions; connecting needs write permission
     * @param string|int|null $group     name or number of its group
     * @param bool            $exclusive fail if another producer listens
     *
     * @throws ServerException
     */
    public function __construct(
        public readonly string $path,
        int $mode,
        string|int|null $group,
        bool $exclusive
    ) {
        self::requireShort($path);
        $this->place = $path[0] === '/' ? $path : getcwd() . "/$path";
        $lock = self::lockDirectory($path, $isLocked);
        try {
            $this->wasTaken = self::isLive($path);
            if ($this->wasTaken && $exclusive) {
                throw new SocketInUse($path);
            }
            if ($isLocked) {
                self::removeLeftOvers(dirname($path));
            }
            $this->listen($lock, $mode, $group);
        } finally {
            fclose($lock);
        }
    }

    /**
     * Rejects a path that is too long for a Unix socket; PHP would truncate it.
     *
     * @throws ServerException
     */
    public static function requireShort(string $path): void
    {
        if ($path === '' || str_contains($path, "\0")) {
            throw new ServerException($path, 'invalid path', 'give the path of a file in the document root');
        }
        if (strlen($path) > self::MAX_PATH_BYTES) {
            $most = self::MAX_PATH_BYTES;
            throw new ServerException(
                $path,
                "the path exceeds the $most bytes of a Unix socket's",
                'choose a shorter path'
            );
        }
    }

    /**
     * Removes the file if it is still this one; the socket continues to listen.
     */
    public function remove(): void
    {
        $identity = $this->identity;
        $this->identity = null;
        if ($identity === null) {
            return;
        }
        try {
            $lock = self::lockDirectory($this->place, $isLocked);
        } catch (ServerException) {
            return; // the directory was removed
        }
        // Without the lock the file could become a successor's; the next start replaces it.
        if ($isLocked && self::identify($this->place) === $identity) {
            Warnings::withheld(fn (): bool => unlink($this->place));
        }
        fclose($lock);
    }

    /**
     * Stops listening, and removes the file if it is still this one.
     */
    public function close(): void
    {
        $this->remove();
        if (is_resource($this->stream)) {
            // A forked process may have a copy of the descriptor.
            stream_socket_shutdown($this->stream, STREAM_SHUT_RDWR);
            fclose($this->stream);
        }
        $this->stream = null;
    }

    /**
     * @param resource $directory
     */
    private function listen(mixed $directory, int $mode, string|int|null $group): void
    {
        $name = '.apachews-' . bin2hex(random_bytes(4));
        $beside = dirname($this->path) . "/$name";
        $address = $beside;
        if (strlen($address) > self::MAX_PATH_BYTES) {
            // The temporary name may be too long beside a path that just fits; this one fits.
            $fd = (new Descriptors())->of($directory);
            $address = $fd === null ? throw new ServerException(
                $this->path,
                'without /proc the path is too long for a temporary name beside it',
                'choose a path that is ' . (strlen($address) - self::MAX_PATH_BYTES) . ' bytes shorter'
            ) : "/proc/self/fd/$fd/$name";
        }
        $umask = umask(0777 & ~$mode);
        $error = '';
        $stream = Warnings::withheld(static function () use ($address, &$error) {
            return stream_socket_server(
                "unix://$address",
                $code,
                $error,
                STREAM_SERVER_BIND | STREAM_SERVER_LISTEN,
                stream_context_create(['socket' => ['backlog' => self::BACKLOG]])
            );
        });
        umask($umask);
        if ($stream === false) {
            throw $this->failed("cannot create a socket here: $error");
        }
        stream_set_blocking($stream, false);
        $identity = self::identify($beside);
        $isReady = $identity !== null && Warnings::withheld(
            fn (): bool => ($group === null || chgrp($beside, $group))
                && chmod($beside, $mode)
                && rename($beside, $this->path)
        );
        if (!$isReady) {
            $error = Warnings::last();
            fclose($stream);
            Warnings::withheld(static fn (): bool => unlink($beside));
            throw $this->failed("cannot set up the socket file: $error");
        }
        $this->stream = $stream;
        $this->identity = $identity;
    }

    private function failed(string $problem): ServerException
    {
        $remedy = 'give the user of this program write permission for the directory, and add it to the group';
        return new ServerException($this->path, $problem, $remedy);
    }

    /**
     * @param bool|null $isLocked set to false if another program keeps the lock: any program
     *                            that can read the directory could keep it for ever
     *
     * @param-out bool $isLocked
     *
     * @return resource
     */
    private static function lockDirectory(string $path, ?bool &$isLocked): mixed
    {
        $directory = dirname($path);
        $lock = is_dir($directory)
            ? Warnings::withheld(static fn () => fopen($directory, 'r'))
            : false;
        if ($lock === false) {
            throw new ServerException(
                $path,
                "the directory $directory is missing or not readable",
                'create it, and give the user of this program read and write permission'
            );
        }
        $deadline = hrtime(true) + self::LOCK_TIMEOUT_NS;
        while (true) {
            $isTaken = 0;
            // Another failure means that the file system does not support locks at all.
            $isLocked = flock($lock, LOCK_EX | LOCK_NB, $isTaken) || $isTaken !== 1;
            if ($isLocked || hrtime(true) >= $deadline) {
                return $lock;
            }
            usleep(self::LOCK_INTERVAL_US);
        }
    }

    private static function removeLeftOvers(string $directory): void
    {
        Warnings::withheld(static function () use ($directory): void {
            $names = scandir($directory);
            foreach ($names === false ? [] : $names as $name) {
                if (preg_match(self::BESIDE, $name) === 1) {
                    unlink("$directory/$name"); // fails for another user's file
                }
            }
        });
    }

    /**
     * @return array{int, int}|null
     */
    private static function identify(string $path): ?array
    {
        clearstatcache(true, $path);
        $status = Warnings::withheld(static fn () => lstat($path));
        return $status === false ? null : [$status['dev'], $status['ino']];
    }

    /**
     * Returns whether a producer listens on the path.
     */
    private static function isLive(string $path): bool
    {
        clearstatcache(true, $path);
        $status = Warnings::withheld(static fn () => lstat($path));
        if ($status === false) {
            return false;
        }
        if (($status['mode'] & 0170000) !== 0140000) {
            throw new NotASocket($path);
        }
        // Asynchronous, so that a full backlog does not block.
        $flags = STREAM_CLIENT_CONNECT | STREAM_CLIENT_ASYNC_CONNECT;
        $code = 0;
        $error = '';
        $probe = Warnings::withheld(static function () use ($path, $flags, &$code, &$error) {
            return stream_socket_client("unix://$path", $code, $error, 1.0, $flags);
        });
        if ($probe !== false) {
            fclose($probe);
            return true;
        }
        return match ($code) {
            self::ECONNREFUSED, self::ENOENT => false,
            self::EAGAIN => true, // the backlog is full, so the producer is alive
            default => throw new ServerException(
                $path,
                "cannot determine whether another producer listens here: $error",
                'give the user of this program write permission for it, or remove it'
            ),
        };
    }
}
