<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * The event has no client: nothing came in time, or it is about the server itself.
 */
final class NoClient extends \LogicException implements ApachewsException
{
}
