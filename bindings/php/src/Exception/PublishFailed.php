<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * The producer ended before it answered, is too busy, or does not know PUBLISH.
 */
final class PublishFailed extends ServerException
{
    public function __construct(string $path)
    {
        parent::__construct(
            $path,
            'the producer did not answer',
            'it is busy, has just ended, or its library is older than publish(): look at its log'
        );
    }
}
