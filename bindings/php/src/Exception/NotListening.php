<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * No producer listens on the path, or the file does not exist.
 */
final class NotListening extends ServerException
{
    public function __construct(string $path)
    {
        parent::__construct(
            $path,
            'no producer listens here',
            'start the producer, or check the path'
        );
    }
}
