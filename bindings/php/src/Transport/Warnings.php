<?php

declare(strict_types=1);

namespace apachews\Transport;

/**
 * Keeps what PHP's functions warn of from the program, where the library expects it.
 *
 * "@" would not do: an error handler of the program's (set_error_handler()) hears of the
 * warning all the same, and many a one throws. Then the first client that leaves at the
 * wrong moment would end the program.
 *
 * @internal
 */
final class Warnings
{
    private static string $last = '';
    /** @var (\Closure(int, string): bool)|null made once: each read and write needs it */
    private static ?\Closure $note = null;

    /**
     * Withholds warnings until release(), for calls that do not throw.
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
     * Calls a function of which warnings are no news.
     *
     * @template T
     *
     * @param \Closure(): T $call
     *
     * @return T what it returned
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
