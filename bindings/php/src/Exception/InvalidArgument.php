<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * An argument that cannot be sent or is out of range; the message says which.
 */
final class InvalidArgument extends \InvalidArgumentException implements ApachewsException
{
}
