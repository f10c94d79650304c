<?php

declare(strict_types=1);

namespace apachews;

use apachews\Exception\InvalidArgument;
use apachews\Wire\Message;

/**
 * Clients under one name: a room, a channel, a topic. Made by Server::group().
 *
 * A client leaves its groups by itself when its connection ends.
 *
 * @implements \IteratorAggregate<int, Client>
 */
final class Group implements \Countable, \IteratorAggregate
{
    /** @var array<int, Client> in the order in which they came */
    private array $members = [];

    /**
     * @internal
     */
    public function __construct(public readonly string $name)
    {
    }

    /**
     * Adds a client, once; false where its connection has ended.
     */
    public function add(Client $client): bool
    {
        if ($client->hasEnded()) {
            return false;
        }
        $this->members[spl_object_id($client)] = $client;
        $client->joined($this);
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
     * Gives the members of this moment, in the order in which they came.
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
     * @param Client|null $without a member who does not get it: who said it, perhaps
     *
     * @throws InvalidArgument it is to be text, and is not UTF-8
     */
    public function broadcast(string $data, ?bool $binary = null, ?Client $without = null): Delivery
    {
        return $this->sendFrame(Message::of($data, $binary)->encode(), $without);
    }

    /**
     * @internal
     */
    public function sendFrame(string $frame, ?Client $without = null): Delivery
    {
        $reached = $skipped = 0;
        foreach ($this->members as $member) {
            if ($member !== $without) {
                $member->sendFrame($frame) ? $reached++ : $skipped++;
            }
        }
        return new Delivery($reached, $skipped);
    }
}
