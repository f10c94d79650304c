<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * The path is a file that is not a socket; it is left alone.
 */
final class NotASocket extends ServerException
{
    public function __construct(string $path)
    {
        parent::__construct(
            $path,
            'the file is not a socket',
            'move it away, or serve on another path'
        );
    }
}
