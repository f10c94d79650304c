<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * Apache accepts clients itself, so the producer cannot decide.
 */
final class NotAsked extends \LogicException implements ApachewsException
{
    /**
     * @param string $call the method that was called
     */
    public function __construct(public readonly string $call)
    {
        parent::__construct("$call needs SetEnv APACHEWS_ACCEPT producer in Apache's configuration");
    }
}
