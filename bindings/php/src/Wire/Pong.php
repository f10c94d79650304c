<?php

declare(strict_types=1);

namespace apachews\Wire;

/**
 * The client's answer to a PING of the producer.
 */
final class Pong
{
    public function __construct(public readonly string $payload)
    {
    }
}
