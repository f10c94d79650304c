<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * The producer exited before it answered, is too busy, refused the message, or does not
 * support PUBLISH.
 */
final class PublishFailed extends ServerException
{
    public function __construct(
        string $path,
        string $problem = 'the producer did not answer',
        string $remedy = 'it is busy, has just exited, or its library is older than publish(): check its log'
    ) {
        parent::__construct($path, $problem, $remedy);
    }
}
