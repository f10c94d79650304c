<?php

declare(strict_types=1);

namespace apachews;

/**
 * The preferred language of a browser.
 *
 * Source: RFC 9110 12.5.4 and 12.4.2.
 *
 * @internal
 */
final class Language
{
    /** A weight of 0 to 1 (RFC 9110 12.4.2). */
    private const WEIGHT = '/^q=(0(?:\.[0-9]*)?|1(?:\.0*)?)$/i';

    /**
     * Returns the language tag with the greatest weight, the first of equals.
     *
     * @param string $acceptLanguage the value of the header, or ''
     *
     * @return string|null the tag unchanged, such as en-GB; null if the header has none:
     *                     "*", weight 0 and malformed items are ignored
     */
    public static function preferred(string $acceptLanguage): ?string
    {
        $best = null;
        $bestWeight = 0.0;
        foreach (explode(',', $acceptLanguage) as $item) {
            [$tag, $parameter] = array_map(trim(...), explode(';', $item, 2)) + [1 => ''];
            $weight = $parameter === '' ? 1.0 : 0.0;
            if (preg_match(self::WEIGHT, $parameter, $match) === 1) {
                $weight = (float) $match[1];
            }
            if ($tag !== '' && $tag !== '*' && $weight > $bestWeight) {
                $best = $tag;
                $bestWeight = $weight;
            }
        }
        return $best;
    }
}
