<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * State messages to systemd: the protocol of sd_notify(3).
 *
 * Best effort: never throws, and waits for at most a second. Does nothing without
 * NOTIFY_SOCKET in the environment.
 *
 * The watchdog (sd_watchdog_enabled(3)) gets keep-alive messages as long as the program calls
 * dequeue() of any server.
 *
 * @internal
 */
final class Systemd
{
    private static int $readyIn = 0;
    private float $nextAt = 0.0;
    private readonly float $everyS;

    public function __construct()
    {
        $microseconds = (int) getenv('WATCHDOG_USEC');
        $pid = (string) getenv('WATCHDOG_PID');
        $isMeant = $pid === '' || $pid === (string) getmypid();
        $this->everyS = $isMeant && getenv('NOTIFY_SOCKET') !== false ? $microseconds / 2e6 : 0.0;
    }

    /**
     * Sends READY, once per process.
     */
    public static function ready(string $path): void
    {
        if (self::$readyIn !== getmypid()) {
            self::$readyIn = (int) getmypid();
            self::notify("READY=1\nSTATUS=listening on $path");
        }
    }

    /**
     * Sends STOPPING; for the last server of this process.
     */
    public static function stopping(): void
    {
        self::notify('STOPPING=1');
    }

    /**
     * Sends a keep-alive message if it is due; returns the time of the next one, or null.
     */
    public function beat(float $now): ?float
    {
        if ($this->everyS <= 0) {
            return null;
        }
        if ($now >= $this->nextAt) {
            $this->nextAt = $now + $this->everyS;
            self::notify('WATCHDOG=1');
        }
        return $this->nextAt;
    }

    private static function notify(string $assignments): void
    {
        $address = (string) getenv('NOTIFY_SOCKET');
        if ($address === '') {
            return;
        }
        if ($address[0] === '@') { // an abstract name
            $address = "\0" . substr($address, 1);
        }
        Warnings::withheld(static function () use ($address, $assignments): void {
            $socket = stream_socket_client("udg://$address", $code, $error, 1.0);
            if ($socket !== false) {
                stream_set_timeout($socket, 1);
                fwrite($socket, $assignments);
                fclose($socket);
            }
        });
    }
}
