<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Client;
use apachews\Event;
use apachews\EventType;
use apachews\Group;
use apachews\Wire\Close;

/**
 * All connections of a server: their lifecycle, and the queue of events.
 *
 * For Loop, Acceptor, Receiver and Publications. Each change of a connection's state or queue
 * leads to update(), so that the poller's interest, the closing deadline and the removal follow.
 *
 * @internal
 */
final class Connections
{
    /** The time for the closing handshake; Apache's side gives the browser the same. */
    private const CLOSE_TIMEOUT_S = 10.0;

    /** @var \SplQueue<Event> events that dequeue() has not returned */
    public readonly \SplQueue $events;
    /** @var array<int, int> what the poller reported, by id, and no turn has handled */
    public array $ready = [];
    /** @var array<int, int> Poller::READ, by id, of connections with unread frames in memory */
    public array $unread = [];
    public bool $isClosed = false;
    public bool $isDraining = false;
    /** @var array<int, Connection> by id */
    private array $connections = [];
    /** @var \SplQueue<Connection> closing, by deadline */
    private readonly \SplQueue $closing;
    /** @var \SplObjectStorage<Event, Connection> clients that have moved, by their last event */
    private readonly \SplObjectStorage $moved;
    /** The client that has moved, and whose last event the program has. */
    private ?Connection $parting = null;
    /** @var array<\WeakReference<BridgeProcess>> by id; it lives as long as a client or its channel */
    private array $processes = [];
    /** @var array<int, BridgeProcess> those with a channel, by the id of its stream */
    private array $channels = [];

    public function __construct(
        private readonly Poller $poller,
        private readonly int $maxMessageBytes,
        private readonly int $maxQueueBytes
    ) {
        $this->events = new \SplQueue();
        $this->closing = new \SplQueue();
        $this->moved = new \SplObjectStorage();
    }

    /**
     * Adds an accepted, non-blocking socket.
     *
     * @param resource $stream
     */
    public function add(mixed $stream, bool $isSurplus): void
    {
        $connection = new Connection(
            $stream,
            $this->maxMessageBytes,
            $this->maxQueueBytes,
            $this->update(...)
        );
        $connection->isSurplus = $isSurplus;
        $this->connections[$connection->id] = $connection;
        $this->poller->add($stream);
    }

    public function get(int $id): ?Connection
    {
        return $this->connections[$id] ?? null;
    }

    public function isEmpty(): bool
    {
        return $this->connections === [];
    }

    /**
     * @return array<int, Connection>
     */
    public function all(): array
    {
        return $this->connections;
    }

    /**
     * Returns the clients that are accepted and whose connections have not ended.
     *
     * @return list<Client>
     */
    public function clients(): array
    {
        $clients = [];
        foreach ($this->connections as $connection) {
            if ($connection->client !== null && $connection->state->isSending()) {
                $clients[] = $connection->client;
            }
        }
        return $clients;
    }

    /**
     * Returns the connections that have had an OPEN.
     *
     * @return list<Connection>
     */
    public function withClients(): array
    {
        $found = [];
        foreach ($this->connections as $connection) {
            if ($connection->client !== null) {
                $found[] = $connection;
            }
        }
        return $found;
    }

    /**
     * Records which bridge process has a client; null: one without channels.
     */
    public function setProcess(Connection $connection, ?string $id): void
    {
        $connection->leaveChannel();
        if ($id === null || !Connection::canReceiveDescriptors()) {
            return;
        }
        $process = ($this->processes[$id] ?? null)?->get();
        if ($process === null) {
            $this->processes = array_filter($this->processes, static fn ($one) => $one->get() !== null);
            $process = new BridgeProcess($this->poller, function (mixed $stream): void {
                $this->poller->remove($stream);
                $id = get_resource_id($stream);
                unset($this->channels[$id], $this->ready[$id]);
            });
            $this->processes[$id] = \WeakReference::create($process);
        }
        $connection->process = $process;
    }

    /**
     * Uses the channel of an OFFER, whose descriptor the connection has received.
     */
    public function openChannel(Connection $connection, int $key): void
    {
        $stream = $connection->takeChannel();
        if ($stream === null) {
            return; // no descriptor was left for it: a later broadcast asks again
        }
        $process = $connection->process; // null: the client is being closed, or moves
        if ($process === null || $this->poller->room($stream) < 0 || !$process->open($stream, $key)) {
            $this->poller->remove($stream);
            fclose($stream);
            return;
        }
        $this->poller->add($stream);
        $this->channels[get_resource_id($stream)] = $process;
    }

    /**
     * Returns the bridge process of a channel, by the id of its stream.
     */
    public function channel(int $id): ?BridgeProcess
    {
        return $this->channels[$id] ?? null;
    }

    /**
     * Returns the bridge processes with a member of a group on their channel; null: with a client.
     *
     * @return array<int, BridgeProcess>
     */
    public function processesWith(?Group $group): array
    {
        return array_filter($this->channels, static fn (BridgeProcess $process) => $process->count($group) > 0);
    }

    public function closeChannels(): void
    {
        foreach ($this->channels as $process) {
            $process->close();
        }
    }

    public function hasQueues(): bool
    {
        foreach ($this->channels as $process) {
            if ($process->queuedBytes() > 0) {
                return true;
            }
        }
        foreach ($this->connections as $connection) {
            if ($connection->hasQueue()) {
                return true;
            }
        }
        return false;
    }

    /**
     * Removes the first event from the queue and returns it.
     */
    public function dequeue(): Event
    {
        $event = $this->events->dequeue();
        if (isset($this->moved[$event])) {
            $connection = $this->moved[$event];
            unset($this->moved[$event]);
            // Many programs close a client on ConnectionClosed. For a client that has moved this
            // must not send a CLOSE; messages can still be sent.
            if ($connection->state === State::Moved) {
                $connection->state = State::Parting;
            }
            $this->parting = $connection;
        }
        return $event;
    }

    /**
     * Closes the client that has moved, when the program is done with its last event.
     */
    public function finishMove(): void
    {
        if ($this->parting !== null) {
            $this->parting->finishMove();
            $this->parting = null;
        }
    }

    /**
     * Sends MOVE to a client, or rejects one that waits to be accepted.
     */
    public function move(Connection $connection): void
    {
        if ($connection->state === State::Asked) {
            $connection->sendClose(new Close(Close::GOING_AWAY, 'the server closes'));
        }
        // A connection before its OPEN is moved when its OPEN is received.
        $connection->sendMove();
    }

    /**
     * Handles the bridge's MOVE: queues the client's last event.
     */
    public function moved(Connection $connection): void
    {
        $connection->hasMoved = true;
        if ($connection->state->isReceiving()) {
            $connection->state = State::Moved;
            $event = new Event(
                EventType::ConnectionClosed,
                $connection->client,
                null,
                Close::SERVICE_RESTART,
                'moved to another producer'
            );
            $this->events->enqueue($event);
            $this->moved[$event] = $connection;
            $this->update($connection);
        } elseif ($connection->state === State::Closing) {
            // The bridge sends nothing after its MOVE: no answer to our CLOSE will arrive.
            $this->end($connection, Close::ABNORMAL, 'the close came too late to be answered');
        } elseif ($connection->state === State::Asked) {
            $this->end($connection, Close::ABNORMAL, 'it left before it was answered');
        }
    }

    /**
     * Queues the connection's last event, once; the connection stays only to send its queue.
     */
    public function end(Connection $connection, int $code, string $reason): void
    {
        if ($connection->state !== State::Closed) {
            $connection->state = State::Closed;
            if (!$connection->isSurplus) {
                $type = $connection->client === null ? EventType::Invalid : EventType::ConnectionClosed;
                $this->events->enqueue(new Event($type, $connection->client, null, $code, $reason));
                $connection->forgetChannel();
                $connection->client?->leaveGroups();
            }
        }
        $this->update($connection);
    }

    /**
     * Closes the socket and removes the connection, without an event.
     */
    public function remove(Connection $connection): void
    {
        if ($connection->stream !== null) {
            $id = $connection->id;
            unset($this->connections[$id], $this->ready[$id], $this->unread[$id]);
            $this->poller->remove($connection->stream);
            $connection->state = State::Closed;
            $connection->close();
            $connection->forgetChannel();
            $connection->client?->leaveGroups();
            $connection->client = null; // breaks the reference cycle of the two
        }
    }

    /**
     * Ends and removes all connections, without a CLOSE frame.
     */
    public function abandon(int $code, string $reason): void
    {
        foreach ($this->connections as $connection) {
            $hasLastEvent = $connection->state === State::Moved || $connection->state === State::Parting;
            if ($connection->client !== null && !$hasLastEvent) {
                $this->end($connection, $code, $reason);
            }
            $this->remove($connection);
        }
    }

    /**
     * Ends connections whose closing handshake timed out; returns the next deadline, or INF.
     */
    public function runTimers(float $now): float
    {
        while (!$this->closing->isEmpty()) {
            $connection = $this->closing->bottom();
            if ($connection->stream !== null && $connection->deadline > $now) {
                return (float) $connection->deadline;
            }
            $this->closing->dequeue();
            if ($connection->stream !== null) {
                $this->end($connection, Close::ABNORMAL, 'the close was not answered in time');
                $this->remove($connection);
            }
        }
        return INF;
    }

    /**
     * Updates the poller's interest and the closing deadline; ends or removes the connection if
     * its state requires that.
     */
    public function update(Connection $connection): void
    {
        if ($connection->stream === null || !isset($this->connections[$connection->id])) {
            return;
        }
        if ($connection->hasOverflowed && $connection->state === State::Closing) {
            $this->end($connection, Close::TRY_AGAIN_LATER, 'too slow: the send queue was full');
            return;
        }
        if ($connection->state === State::Closed && !$connection->hasQueue()) {
            $this->remove($connection);
            return;
        }
        $isClosing = $connection->state === State::Closing || $connection->state === State::Closed;
        if ($connection->deadline === null && $isClosing) {
            // All deadlines have the same timeout, so the queue is sorted by deadline.
            $connection->deadline = Loop::now() + self::CLOSE_TIMEOUT_S;
            $this->closing->enqueue($connection);
        }
        // A closed server reads only the answers to its CLOSE frames.
        $isOver = $this->isClosed && $connection->state->isReceiving();
        $this->poller->watch($connection->stream, $connection->wantsReading() && !$isOver, $connection->hasQueue());
    }
}
