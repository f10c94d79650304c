<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * Suppresses warnings of PHP's functions that the library expects.
 *
 * "@" is not enough: error handlers of the program (set_error_handler()) are called anyway, and
 * many of them throw. Then a client that disconnects at the wrong moment would end the program.
 *
 * @internal
 */
final class Warnings
{
    private static string $last = '';
    /** @var (\Closure(int, string): bool)|null created once, because each read and write uses it */
    private static ?\Closure $note = null;

    /**
     * Suppresses warnings until release(), for calls that do not throw.
     */
    public static function withhold(): void
    {
        self::$last = '';
        set_error_handler(self::$note ??= static function (int $_, string $text): bool {
            self::$last = $text;
            return true;
        });
    }

    public static function release(): void
    {
        restore_error_handler();
    }

    /**
     * Calls a function with warnings suppressed.
     *
     * @template T
     *
     * @param \Closure(): T $call
     *
     * @return T its result
     */
    public static function withheld(\Closure $call): mixed
    {
        self::withhold();
        try {
            return $call();
        } finally {
            self::release();
        }
    }

    /**
     * Returns the text of the last call's last warning, or "".
     */
    public static function last(): string
    {
        return self::$last;
    }
}
