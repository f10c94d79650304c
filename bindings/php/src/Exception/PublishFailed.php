<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * The producer exited before it answered, is too busy, or does not support PUBLISH.
 */
final class PublishFailed extends ServerException
{
    public function __construct(string $path)
    {
        parent::__construct(
            $path,
            'the producer did not answer',
            'it is busy, has just exited, or its library is older than publish(): check its log'
        );
    }
}
