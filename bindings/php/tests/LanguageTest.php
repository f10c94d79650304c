<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\Language;
use PHPUnit\Framework\Attributes\DataProvider;
use PHPUnit\Framework\TestCase;

final class LanguageTest extends TestCase
{
    /**
     * @return list<array{string, string|null}> the header, and the language
     */
    public static function headers(): array
    {
        return [
            ['', null],
            ['de', 'de'],
            ['en-GB,en;q=0.9,de;q=0.8', 'en-GB'],
            ['de;q=0.5, fr ; q=0.8', 'fr'],
            ['de;q=0.5, fr ; Q=0.8', 'fr'],
            ['de;q=0, *;q=0.5', null],
            ['de;q=x,en;q=0.1', 'en'],
            ['de;q=7,en;q=0.1', 'en'],
            ['de;q=1.000,en', 'de'],
            ['da, en', 'da'],
            [',;,;q=1', null],
        ];
    }

    /**
     * @dataProvider headers
     */
    #[DataProvider('headers')]
    public function testTheLanguageWithTheGreatestWeightIsPreferred(string $header, ?string $language): void
    {
        self::assertSame($language, Language::preferred($header));
    }
}
