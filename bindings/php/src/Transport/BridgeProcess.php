<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Exception\WireError;
use apachews\Group;
use apachews\Wire\ChannelReader;
use apachews\Wire\Lane;

/**
 * One bridge process, and the channel to it, which carries one message for many clients.
 *
 * For Connection, Connections and Publications. A client's messages go by its *lane*: its own
 * connection, or the channel of its bridge process. The program does not notice which one it is.
 *
 * How this works: every message of a client goes by one lane at a time, and the lane changes only
 * when no message can be overtaken.
 *
 * - From its own connection to the channel: the connection sends JOIN after its last message.
 *   The bridge answers READY on the channel when it has read the JOIN. If nothing was sent on
 *   the connection meanwhile, the client is on the channel from then on.
 * - From the channel to its own connection: the channel sends OFF after the client's last
 *   message, and the connection sends OWN before its next one. The bridge reads the connection
 *   no further than OWN before it has read OFF. So this change needs no answer.
 *
 * A client that reads slowly (SLOW), a long message and a channel that fills lead to the second
 * change, so the limits of slow clients are those of their own connections. A program that sends
 * no broadcast never has a channel, nor has a PHP without ext-sockets.
 *
 * Source: docs/reference/wire.md, "Groups at the edge".
 *
 * @internal
 */
final class BridgeProcess
{
    /** The lanes of a client. Integers, because every message compares one. */
    public const OWN = 0; // its own connection
    public const JOINING = 1; // its own connection; JOIN was sent last
    public const STALE = 2; // its own connection; a message has followed the JOIN, whose READY is void
    public const ON_CHANNEL = 3;

    /** A broadcast to fewer clients does not lead to a channel: it would cost more than it saves. */
    public const MIN_CLIENTS = 4;
    /**
     * With more bytes in its queue the channel accepts no message, and its clients get lanes of
     * their own. (The bridge reads a channel at once, whatever its clients do, so it is busy then.)
     */
    private const MAX_QUEUE_BYTES = 256 * 1024;
    /** A bridge that does not answer ASK, because it has no descriptor left, is asked again after this. */
    private const ASK_AGAIN_S = 1.0;
    private const READ_BYTES = 65536;

    /** @var array<int, Connection> the clients on the channel, by number */
    private array $members = [];
    /** @var array<int, Connection> clients whose READY is awaited, by number */
    private array $joining = [];
    /** @var array<array{int, int}> number and count of members of groups on the channel, by name */
    private array $groups = [];
    private int $lastGroup = Lane::ALL;
    private int $lastNumber = 0;
    private float $askAt = 0.0;
    private int $key = 0;
    private bool $isLost = false;
    /** @var resource|null */
    private mixed $stream = null;
    private readonly SendQueue $queue;
    private readonly ChannelReader $reader;

    /**
     * @param \Closure(resource): void $closed called before the channel's stream is closed
     */
    public function __construct(private readonly Poller $poller, private readonly \Closure $closed)
    {
        $this->queue = new SendQueue();
        $this->reader = new ChannelReader();
    }

    public function queuedBytes(): int
    {
        return $this->queue->bytes;
    }

    /**
     * Uses the stream of an OFFER, which is non-blocking and watched; false if it has a channel.
     *
     * @param resource $stream
     */
    public function open(mixed $stream, int $key): bool
    {
        if ($this->stream !== null || $this->isLost) {
            return false;
        }
        $this->stream = $stream;
        $this->key = $key;
        return true;
    }

    /**
     * Closes the channel; its clients get lanes of their own, as after its end of file.
     */
    public function close(): void
    {
        $this->isLost = true;
        $stream = $this->stream;
        $this->stream = null;
        if ($stream === null) {
            return;
        }
        ($this->closed)($stream);
        // A forked process may have a copy of the descriptor.
        stream_socket_shutdown($stream, STREAM_SHUT_RDWR);
        fclose($stream);
        $this->queue->clear();
        foreach ($this->members + $this->joining as $connection) {
            $connection->lane = self::OWN;
        }
        $this->members = $this->joining = $this->groups = [];
    }

    /**
     * Sends a frame on a client's own connection, and asks to have it on the channel later.
     */
    public function sendAndJoin(Connection $connection, string $frame): bool
    {
        if ($this->stream === null) {
            $this->ask($connection);
        } elseif ($this->canCarry($frame)) {
            $number = $this->nextNumber();
            // One write: the JOIN follows the message.
            $isSent = $connection->sendFrame($frame . Lane::join($this->key, $number));
            if ($isSent) {
                $connection->lane = self::JOINING;
                $connection->laneNumber = $number;
                $this->joining[$number] = $connection;
            }
            return $isSent;
        }
        return $connection->sendFrame($frame);
    }

    /**
     * Sends a frame on the channel. Returns false, after a change of the client's lane, if the
     * caller is to send it on the connection.
     */
    public function unicast(Connection $connection, string $frame): bool
    {
        if (!$this->canCarry($frame)) {
            $this->leave($connection);
            return false;
        }
        $this->write(Lane::unicast($connection->laneNumber, $frame));
        return true;
    }

    /**
     * Returns how many members of a group are on the channel; null: how many clients.
     */
    public function count(?Group $group): int
    {
        return $group === null ? count($this->members) : $this->groups[$group->name][1] ?? 0;
    }

    /**
     * Sends a frame to the members of a group that are on the channel; there must be one.
     *
     * @param Group|null      $group    null: all clients on the channel
     * @param Connection|null $excluded a member that does not get it
     *
     * @return int|null the number of clients; null if the channel cannot carry the frame: its
     *                  members of the group have lanes of their own now
     */
    public function multicast(?Group $group, string $frame, ?Connection $excluded): ?int
    {
        if (!$this->canCarry($frame)) {
            foreach ($this->members as $connection) {
                $client = $connection->client;
                if ($group === null || ($client !== null && $group->contains($client))) {
                    $this->leave($connection);
                }
            }
            return null;
        }
        $isMember = $excluded !== null && ($this->members[$excluded->laneNumber] ?? null) === $excluded;
        $numbers = $isMember ? [$excluded->laneNumber] : [];
        $reached = $this->count($group) - count($numbers);
        $number = $group === null ? Lane::ALL : $this->groups[$group->name][0];
        $this->write(Lane::multicast($number, $numbers, $frame));
        return $reached;
    }

    /**
     * Changes a client's lane to its own connection, which may send more.
     */
    public function leave(Connection $connection): void
    {
        $wasOnChannel = $connection->lane === self::ON_CHANNEL;
        $this->forget($connection);
        if ($wasOnChannel) {
            $connection->writeLane(Lane::encode(Lane::OWN));
        }
    }

    /**
     * Takes a client off the channel; its connection sends nothing more.
     */
    public function forget(Connection $connection): void
    {
        $number = $connection->laneNumber;
        if ($connection->lane === self::ON_CHANNEL) {
            unset($this->members[$number]);
            $this->write(Lane::numbers(Lane::OFF, [$number]));
            foreach ($connection->client?->groups() ?? [] as $group) {
                $this->countOff($group);
            }
        } else {
            unset($this->joining[$number]);
        }
        $connection->lane = self::OWN;
    }

    /**
     * Tells the bridge that clients on the channel have joined a group.
     *
     * @param list<int> $numbers
     */
    public function add(Group $group, array $numbers): void
    {
        if (!isset($this->groups[$group->name])) {
            $this->lastGroup = $this->lastGroup % Lane::MAX_NUMBER + 1;
            $this->groups[$group->name] = [$this->lastGroup, 0];
        }
        $this->groups[$group->name][1] += count($numbers);
        $this->write(Lane::numbers(Lane::ADD, $numbers, $this->groups[$group->name][0]));
    }

    /**
     * Tells the bridge that a client on the channel has left a group.
     */
    public function remove(Group $group, int $number): void
    {
        $this->write(Lane::numbers(Lane::REMOVE, [$number], $this->groups[$group->name][0]));
        $this->countOff($group);
    }

    /**
     * Sends the queue, and reads what the bridge has sent.
     */
    public function handleReady(): void
    {
        $this->flush();
        if ($this->stream === null) {
            return;
        }
        Warnings::withhold();
        $data = fread($this->stream, self::READ_BYTES);
        Warnings::release();
        if ($data === false || $data === '') {
            // feof() would block; this flag is the result of the last read.
            if (stream_get_meta_data($this->stream)['eof']) {
                $this->close(); // the bridge process has ended
            }
            return;
        }
        try {
            foreach ($this->reader->receive($data) as [$kind, $numbers]) {
                $kind === Lane::READY ? $this->handleJoined($numbers) : $this->handleSlow($numbers);
            }
        } catch (WireError) {
            $this->close(); // not a bridge
        }
    }

    /**
     * Puts clients on the channel, unless a message has followed their JOIN.
     *
     * @param list<int> $numbers
     */
    private function handleJoined(array $numbers): void
    {
        $joined = $added = $groups = [];
        foreach ($numbers as $number) {
            $connection = $this->joining[$number] ?? null;
            unset($this->joining[$number]);
            if ($connection === null) {
                continue;
            }
            if ($connection->lane === self::STALE) {
                $connection->lane = self::OWN;
                continue;
            }
            $connection->lane = self::ON_CHANNEL;
            $this->members[$number] = $connection;
            $joined[] = $number;
            foreach ($connection->client?->groups() ?? [] as $group) {
                $groups[$group->name] = $group;
                $added[$group->name][] = $number;
            }
        }
        // The bridge knows by this that their JOIN is valid.
        $this->write(Lane::numbers(Lane::ADD, $joined, Lane::ALL));
        foreach ($added as $name => $some) {
            $this->add($groups[$name], $some);
        }
    }

    /**
     * @param list<int> $numbers
     */
    private function handleSlow(array $numbers): void
    {
        foreach ($numbers as $number) {
            if (isset($this->members[$number])) {
                $this->leave($this->members[$number]);
            }
        }
    }

    private function canCarry(string $frame): bool
    {
        return strlen($frame) <= Lane::MAX_FRAME_BYTES && $this->queue->bytes <= self::MAX_QUEUE_BYTES;
    }

    /**
     * Counts a member less; a group without members on the channel has no number there.
     */
    private function countOff(Group $group): void
    {
        if (--$this->groups[$group->name][1] === 0) {
            unset($this->groups[$group->name]);
        }
    }

    /**
     * Returns a number that no client on the channel has.
     */
    private function nextNumber(): int
    {
        do {
            $this->lastNumber = $this->lastNumber % Lane::MAX_NUMBER + 1;
        } while (isset($this->members[$this->lastNumber]) || isset($this->joining[$this->lastNumber]));
        return $this->lastNumber;
    }

    /**
     * Asks for a channel, unless the bridge was asked just before.
     */
    private function ask(Connection $connection): void
    {
        $now = Loop::now();
        if (!$this->isLost && $now >= $this->askAt && $connection->askForChannel()) {
            $this->askAt = $now + self::ASK_AGAIN_S;
        }
    }

    /**
     * Sends one frame or several, or queues the rest.
     */
    private function write(string $frame): void
    {
        if ($this->stream === null || $frame === '') {
            return;
        }
        if (!$this->queue->isEmpty()) {
            $this->queue->add($frame);
            return;
        }
        $sent = $this->sendNowait($frame);
        if ($sent !== null && $sent < strlen($frame)) {
            $this->queue->add($frame, $sent);
            $this->poller->watch($this->stream, true, true);
        }
    }

    /**
     * Sends as much of the queue as the kernel takes.
     */
    private function flush(): void
    {
        if ($this->stream === null || $this->queue->isEmpty()) {
            return;
        }
        while (($head = $this->queue->head()) !== '') {
            $sent = $this->sendNowait($head);
            if ($sent === null) {
                break;
            }
            $this->queue->consume($sent);
            if ($sent < strlen($head)) {
                return;
            }
        }
        $this->poller->watch($this->stream, true, false);
    }

    /**
     * Returns the bytes that the kernel took; null if the bridge has ended.
     */
    private function sendNowait(string $data): ?int
    {
        assert($this->stream !== null);
        Warnings::withhold();
        $sent = fwrite($this->stream, $data);
        Warnings::release();
        if ($sent === false) {
            // The end of file, which is read next, gives the clients lanes of their own.
            $this->queue->clear();
            return null;
        }
        return $sent;
    }
}
