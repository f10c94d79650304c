<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Delivery;
use apachews\Group;
use apachews\Wire\Message;
use apachews\Wire\Publish;
use apachews\Wire\Published;

/**
 * One message for many clients: broadcasts, groups, and publishers on the wire (PUBLISH).
 *
 * @internal
 */
final class Publications
{
    /** Groups without references are removed when this many more were created. */
    private const SWEEP_INTERVAL = 64;

    /** @var array<\WeakReference<Group>> by name */
    private array $groups = [];
    private int $sweepAt = self::SWEEP_INTERVAL;

    public function __construct(private readonly Connections $connections)
    {
    }

    /**
     * Returns the group of this name.
     */
    public function group(string $name): Group
    {
        $group = ($this->groups[$name] ?? null)?->get();
        if ($group === null) {
            if (count($this->groups) >= $this->sweepAt) {
                $this->groups = array_filter($this->groups, static fn ($reference) => $reference->get() !== null);
                $this->sweepAt = 2 * count($this->groups) + self::SWEEP_INTERVAL;
            }
            $group = new Group($name);
            $this->groups[$name] = \WeakReference::create($group);
        }
        return $group;
    }

    /**
     * Sends a frame to all clients.
     */
    public function broadcast(string $frame): Delivery
    {
        $reached = $skipped = 0;
        foreach ($this->connections->all() as $connection) {
            if ($connection->client !== null) {
                $connection->sendFrame($frame) ? $reached++ : $skipped++;
            }
        }
        return new Delivery($reached, $skipped);
    }

    /**
     * Handles PUBLISH: the connection becomes a publisher.
     */
    public function open(Connection $connection, Publish $publish): void
    {
        $connection->state = State::Publishing;
        $connection->group = $publish->group;
    }

    /**
     * Delivers a publisher's message, and answers it.
     */
    public function receive(Connection $connection, Message $message): void
    {
        $delivery = $connection->group === null
            ? $this->broadcast($message->encode())
            : $this->group($connection->group)->sendFrame($message->encode());
        $connection->sendPublished(new Published($delivery->reached, $delivery->skipped));
    }
}
