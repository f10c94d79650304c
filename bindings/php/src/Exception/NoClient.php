<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * The event has no client: it is a timeout, or an error of the server itself.
 */
final class NoClient extends \LogicException implements ApachewsException
{
}
