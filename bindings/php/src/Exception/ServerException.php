<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * A socket file cannot be served.
 */
class ServerException extends \RuntimeException implements ApachewsException
{
    /**
     * @param string $path    the socket file
     * @param string $problem the cause
     * @param string $remedy  what to do
     */
    public function __construct(
        public readonly string $path,
        public readonly string $problem,
        public readonly string $remedy
    ) {
        parent::__construct("$path: $problem; $remedy");
    }
}
