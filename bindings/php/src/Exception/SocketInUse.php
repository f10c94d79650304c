<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * Another producer listens on the socket file.
 */
final class SocketInUse extends ServerException
{
    public function __construct(string $path)
    {
        parent::__construct(
            $path,
            'another producer listens here',
            'stop it, or serve on another path'
        );
    }
}
