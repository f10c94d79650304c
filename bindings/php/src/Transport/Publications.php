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
 * A message crosses the channel of each bridge process once, for all clients that are on it
 * (BridgeProcess); the other clients get it on their own connections, and join the channel.
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
            $group = new Group($name, $this);
            $this->groups[$name] = \WeakReference::create($group);
        }
        return $group;
    }

    /**
     * Sends a frame to all clients.
     */
    public function broadcast(string $frame): Delivery
    {
        $connections = $this->connections->withClients();
        return $this->send(null, count($connections), static fn () => $connections, null, $frame);
    }

    /**
     * Sends a frame to clients, by the lane of each.
     *
     * @param Group|null                        $group       of the clients; null: all clients
     * @param int                               $count       of the clients, with the excluded one
     * @param \Closure(): list<Connection>      $connections those of the clients, with the excluded
     *                                                       one; not called if all are on channels
     * @param Connection|null                   $excluded    a client that does not get it
     */
    public function send(
        ?Group $group,
        int $count,
        \Closure $connections,
        ?Connection $excluded,
        string $frame
    ): Delivery {
        $processes = $this->connections->processesWith($group);
        $reached = 0;
        foreach ($processes as $process) {
            $reached += $process->multicast($group, $frame, $excluded) ?? 0;
        }
        if ($excluded !== null) {
            $count--;
        }
        if ($reached < $count) {
            $own = [];
            foreach ($connections() as $connection) {
                if ($connection->lane !== BridgeProcess::ON_CHANNEL && $connection !== $excluded) {
                    $own[] = $connection;
                }
            }
            $mayJoin = $processes !== [] || count($own) >= BridgeProcess::MIN_CLIENTS;
            foreach ($own as $connection) {
                $process = $mayJoin ? $connection->process : null;
                $isSent = $process !== null && $connection->mayJoin()
                    ? $process->sendAndJoin($connection, $frame)
                    : $connection->sendFrame($frame);
                $reached += (int) $isSent;
            }
        }
        return new Delivery($reached, $count - $reached);
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
