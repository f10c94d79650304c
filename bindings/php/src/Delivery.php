<?php

declare(strict_types=1);

namespace apachews;

/**
 * What became of a message for several clients.
 */
final class Delivery
{
    /**
     * @param int $reached clients that it was sent to or queued for
     * @param int $skipped clients that it was not: gone, being closed, or closed just now
     *                     with 1013 because too much waited for them already
     */
    public function __construct(public readonly int $reached, public readonly int $skipped)
    {
    }
}
