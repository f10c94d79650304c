<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * No producer listens on the socket file, or there is none.
 */
final class NobodyListens extends ServerException
{
    public function __construct(string $path)
    {
        parent::__construct(
            $path,
            'no producer listens here',
            'start it, or look at the path'
        );
    }
}
