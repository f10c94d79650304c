<?php

declare(strict_types=1);

namespace apachews\Wire;

/**
 * Whether bytes are text; mbstring is a package of its own in Debian, so PCRE tells.
 */
final class Utf8
{
    /**
     * Tells whether the bytes are UTF-8 (RFC 3629): no surrogates, no overlong forms.
     */
    public static function isValid(string $data): bool
    {
        return preg_match('//u', $data) === 1;
    }

    /**
     * Cuts text to so many bytes, between characters.
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
