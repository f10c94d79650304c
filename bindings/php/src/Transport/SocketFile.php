<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Exception\NotASocket;
use apachews\Exception\ServerException;
use apachews\Exception\SocketInUse;

/**
 * The socket file: making it, taking it over, and taking it away again.
 *
 * The constructor listens or throws; close() is idempotent and removes the file only where
 * it is still the one made here.
 *
 * How this works: the new socket is bound beside the path, made ready there, and renamed
 * onto it once it listens. So whoever connects finds the old one or the new one, and never
 * nobody: a file that a dead producer left and a live producer's are replaced alike. A live
 * one goes on with the clients it has. The umask makes the file with the permissions it is
 * to have, so that there is no moment at which it is open to more.
 *
 * The directory is locked meanwhile, and while a file is removed: two producers that start
 * at once come one after the other, and nobody removes what a successor has just put in
 * the place of his file. What lies beside the path while the lock is free was left by a
 * start that died, and is cleared away. (Producers in Python do the same, with the same
 * lock and the same names.)
 *
 * @internal
 */
final class SocketFile
{
    /** sockaddr_un.sun_path, less the final NUL. */
    public const MAX_PATH_BYTES = 107;
    /** Clients that may wait for accept(); the kernel cuts it to net.core.somaxconn. */
    private const BACKLOG = 4096;
    /** A name beside the path. It does not end in .ws: Apache would take it for one. */
    private const BESIDE = '/\A\.apachews-[0-9a-f]{8}\z/';

    /**
     * How long others that start or end in the same directory are waited for, which take a
     * millisecond each; and how often they are looked for.
     */
    private const LOCK_TIMEOUT_NS = 5_000_000_000;
    private const LOCK_INTERVAL_US = 10_000;

    public const ENOENT = 2;
    public const EAGAIN = 11;
    public const ECONNREFUSED = 111;

    /** @var resource|null listens, non-blocking; null once it is closed */
    public mixed $stream = null;
    /** Whether another producer listened there. */
    public readonly bool $wasTaken;
    /** The path, also where the program goes elsewhere. */
    private readonly string $place;
    /** @var array{int, int}|null device and inode, while the file is to be removed from here */
    private ?array $identity = null;

    /**
     * @param string          $path      where the file is to be
     * @param int             $mode      its permissions; connecting takes the right to write
     * @param string|int|null $group     name or number of the group it is given to
     * @param bool            $exclusive refuse where another producer listens
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
        $lock = self::lockDirectory($path, $isAlone);
        try {
            $this->wasTaken = self::isLive($path);
            if ($this->wasTaken && $exclusive) {
                throw new SocketInUse($path);
            }
            if ($isAlone) {
                self::clearLeftOvers(dirname($path));
            }
            $this->listen($lock, $mode, $group);
        } finally {
            fclose($lock);
        }
    }

    /**
     * Refuses a path that no Unix socket can have; PHP would cut it off.
     *
     * @throws ServerException
     */
    public static function requireShort(string $path): void
    {
        if ($path === '' || str_contains($path, "\0")) {
            throw new ServerException($path, 'this is no path', 'name a file in the document root');
        }
        if (strlen($path) > self::MAX_PATH_BYTES) {
            $most = self::MAX_PATH_BYTES;
            throw new ServerException(
                $path,
                "the path is longer than the $most bytes that a Unix socket can have",
                'choose a shorter one'
            );
        }
    }

    /**
     * Removes the file if it is still this one; the socket listens on.
     */
    public function remove(): void
    {
        $identity = $this->identity;
        $this->identity = null;
        if ($identity === null) {
            return;
        }
        try {
            $lock = self::lockDirectory($this->place, $isAlone);
        } catch (ServerException) {
            return; // somebody has tidied up already
        }
        // (Not alone, it could be a successor's a moment later; the next to start replaces it.)
        if ($isAlone && self::identify($this->place) === $identity) {
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
            // (As in Connection::close().)
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
            // A name beside a path that just fits may not; this way it always does.
            $fd = (new Descriptors())->of($directory);
            $address = $fd === null ? throw new ServerException(
                $this->path,
                'there is no /proc, and so no room for a name beside it',
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
            throw $this->failed("a socket cannot be made here: $error");
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
            throw $this->failed("the socket cannot be made ready: $error");
        }
        $this->stream = $stream;
        $this->identity = $identity;
    }

    private function failed(string $problem): ServerException
    {
        $remedy = 'let the user of this program write to the directory, and be in the group if there is one';
        return new ServerException($this->path, $problem, $remedy);
    }

    /**
     * @param bool|null $isAlone set: whether nobody else has the lock. That is not waited for
     *                           for ever, as whoever may read the directory can have it.
     *
     * @param-out bool $isAlone
     *
     * @return resource
     */
    private static function lockDirectory(string $path, ?bool &$isAlone): mixed
    {
        $directory = dirname($path);
        $lock = is_dir($directory)
            ? Warnings::withheld(static fn () => fopen($directory, 'r'))
            : false;
        if ($lock === false) {
            throw new ServerException(
                $path,
                "the directory $directory is missing or may not be read",
                'make it, and give it to the user of this program'
            );
        }
        $deadline = hrtime(true) + self::LOCK_TIMEOUT_NS;
        while (true) {
            $isTaken = 0;
            // (Where it fails for another reason, the file system has no locks, for anybody.)
            $isAlone = flock($lock, LOCK_EX | LOCK_NB, $isTaken) || $isTaken !== 1;
            if ($isAlone || hrtime(true) >= $deadline) {
                return $lock;
            }
            usleep(self::LOCK_INTERVAL_US);
        }
    }

    private static function clearLeftOvers(string $directory): void
    {
        Warnings::withheld(static function () use ($directory): void {
            $names = scandir($directory);
            foreach ($names === false ? [] : $names as $name) {
                if (preg_match(self::BESIDE, $name) === 1) {
                    unlink("$directory/$name"); // another user's is in nobody's way
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
     * Tells whether somebody listens on the socket file.
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
        // Asynchronous: a full backlog would have us wait.
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
            self::EAGAIN => true, // its backlog is full: very much alive
            default => throw new ServerException(
                $path,
                "whether somebody listens here cannot be told: $error",
                'let the user of this program write to it, or remove it'
            ),
        };
    }
}
