<?php

declare(strict_types=1);

namespace apachews;

/**
 * The result of sending a message to several clients.
 */
final class Delivery
{
    /**
     * @param int $reached clients that it was sent to or queued for
     * @param int $skipped clients that had ended, were being closed, or were closed by this
     *                     message with 1013 because their send queues were full
     * @param bool $relayed it was given to a relay that is connected to other producers
     */
    public function __construct(
        public readonly int $reached,
        public readonly int $skipped,
        public readonly bool $relayed = false
    ) {
    }
}
