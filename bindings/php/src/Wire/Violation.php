<?php

declare(strict_types=1);

namespace apachews\Wire;

/**
 * The bytes violate the wire's rules or the size limit; nothing follows.
 */
final class Violation
{
    public function __construct(public readonly int $code, public readonly string $reason)
    {
    }
}
