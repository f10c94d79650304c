<?php

declare(strict_types=1);

namespace apachews\Wire;

/**
 * Checks for UTF-8 with PCRE, because mbstring is a separate package in Debian.
 */
final class Utf8
{
    /**
     * Returns whether the bytes are UTF-8 (RFC 3629), without surrogates and overlong forms.
     */
    public static function isValid(string $data): bool
    {
        return preg_match('//u', $data) === 1;
    }

    /**
     * Truncates text to a number of bytes, between two characters.
     */
    public static function truncate(string $text, int $bytes): string
    {
        $text = substr($text, 0, $bytes);
        while (!self::isValid($text)) {
            $text = substr($text, 0, -1);
        }
        return $text;
    }
}
