<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * A value that may not be sent, or that the server cannot take; the text says which.
 */
final class InvalidArgument extends \InvalidArgumentException implements ApachewsException
{
}
