<?php

declare(strict_types=1);

namespace apachews\Wire;

/**
 * The bridge's MOVE: the client moves to another producer; nothing follows.
 */
final class Moved
{
}
