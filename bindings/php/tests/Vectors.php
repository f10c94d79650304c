<?php

declare(strict_types=1);

namespace apachews\Tests;

/**
 * The test vectors of the wire, docs/reference/wire-vectors.json, for all libraries.
 */
final class Vectors
{
    private const FILE = __DIR__ . '/../../../docs/reference/wire-vectors.json';

    /**
     * @return array<string, array{array<string, mixed>}> by name, as PHPUnit takes them
     */
    public static function of(string $kind): array
    {
        $cases = [];
        foreach (self::all()[$kind] as $case) {
            $cases[$case['name']] = [$case];
        }
        return $cases;
    }

    /**
     * The OPEN frame at the start of streams.
     */
    public static function open(): string
    {
        return (string) hex2bin(self::all()['open']);
    }

    /**
     * @return array<string, mixed>
     */
    private static function all(): array
    {
        return json_decode((string) file_get_contents(self::FILE), true, 512, JSON_THROW_ON_ERROR);
    }
}
