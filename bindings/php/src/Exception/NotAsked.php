<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * Apache has let the client in itself; what was to decide on it comes too late.
 */
final class NotAsked extends \LogicException implements ApachewsException
{
    /**
     * @param string $call what was called
     */
    public function __construct(public readonly string $call)
    {
        parent::__construct("$call needs SetEnv APACHEWS_ACCEPT producer in Apache's configuration");
    }
}
