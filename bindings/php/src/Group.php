<?php

declare(strict_types=1);

namespace apachews;

use apachews\Exception\InvalidArgument;
use apachews\Transport\Connection;
use apachews\Transport\Publications;
use apachews\Wire\Message;

/**
 * Clients under one name: a room, a channel, a topic. Made by Server::group().
 *
 * A client leaves its groups when its connection ends.
 *
 * @implements \IteratorAggregate<int, Client>
 */
final class Group implements \Countable, \IteratorAggregate
{
    /** @var array<int, Client> in the order of joining */
    private array $members = [];

    /**
     * @internal
     */
    public function __construct(public readonly string $name, private readonly Publications $publications)
    {
    }

    /**
     * Adds a client; false if its connection has ended.
     */
    public function add(Client $client): bool
    {
        if ($client->hasEnded()) {
            return false;
        }
        if (!$this->contains($client)) {
            $this->members[spl_object_id($client)] = $client;
            $client->joined($this);
        }
        return true;
    }

    /**
     * Removes a client, if it is a member.
     */
    public function remove(Client $client): void
    {
        if ($this->contains($client)) {
            unset($this->members[spl_object_id($client)]);
            $client->left($this);
        }
    }

    public function contains(Client $client): bool
    {
        return isset($this->members[spl_object_id($client)]);
    }

    public function count(): int
    {
        return count($this->members);
    }

    /**
     * Iterates over a snapshot of the members, in the order of joining.
     *
     * @return \ArrayIterator<int, Client>
     */
    public function getIterator(): \ArrayIterator
    {
        return new \ArrayIterator(array_values($this->members));
    }

    /**
     * Sends a message to every member; it is encoded once.
     *
     * @param bool|null   $binary  as Client::send
     * @param Client|null $exclude a member that does not get it, such as the sender
     *
     * @throws InvalidArgument text that is not UTF-8
     */
    public function broadcast(string $data, ?bool $binary = null, ?Client $exclude = null): Delivery
    {
        return $this->sendFrame(Message::of($data, $binary)->encode(), $exclude);
    }

    /**
     * @internal
     */
    public function sendFrame(string $frame, ?Client $exclude = null): Delivery
    {
        $excluded = $exclude !== null && $this->contains($exclude) ? $exclude->connection() : null;
        return $this->publications->send($this, count($this->members), $this->connections(...), $excluded, $frame);
    }

    /**
     * @return list<Connection>
     */
    private function connections(): array
    {
        $connections = [];
        foreach ($this->members as $member) {
            $connections[] = $member->connection();
        }
        return $connections;
    }
}
