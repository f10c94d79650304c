<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * What systemd is told of a producer: the protocol of sd_notify(3).
 *
 * Never throws, and waits for no longer than a second: that systemd cannot be told is no
 * reason to fail. Without NOTIFY_SOCKET in the environment nothing happens.
 *
 * The watchdog (sd_watchdog_enabled(3)) hears of the process as long as dequeue() is
 * called; with several servers in one process, as long as any of them is.
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
     * Says that this process serves: once, however many servers it has.
     */
    public static function ready(string $path): void
    {
        if (self::$readyIn !== getmypid()) {
            self::$readyIn = (int) getmypid();
            self::notify("READY=1\nSTATUS=listening on $path");
        }
    }

    /**
     * Says that the last server of this process ends.
     */
    public static function stopping(): void
    {
        self::notify('STOPPING=1');
    }

    /**
     * Gives a sign of life when one is due; returns when the next one is, or null.
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
