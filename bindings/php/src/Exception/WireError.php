<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * Bytes that violate the specification of the wire, docs/reference/wire.md.
 */
final class WireError extends \RuntimeException implements ApachewsException
{
    /**
     * @param string $reason    the violation
     * @param int    $closeCode the close code to answer it with
     */
    public function __construct(public readonly string $reason, public readonly int $closeCode = 1002)
    {
        parent::__construct("$reason (close code $closeCode)");
    }
}
