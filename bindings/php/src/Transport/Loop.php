<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Client;
use apachews\Delivery;
use apachews\Event;
use apachews\EventType;
use apachews\Exception\InvalidArgument;
use apachews\Exception\NoClient;
use apachews\Exception\NotAsked;
use apachews\Exception\ServerException;
use apachews\Exception\WireError;
use apachews\Group;
use apachews\Request;
use apachews\Tls;
use apachews\Wire\Answer;
use apachews\Wire\Close;
use apachews\Wire\Document;
use apachews\Wire\Frame;
use apachews\Wire\Message;
use apachews\Wire\MessageReader;
use apachews\Wire\Moved;
use apachews\Wire\Pong;
use apachews\Wire\Publish;
use apachews\Wire\Published;
use apachews\Wire\Utf8;
use apachews\Wire\Violation;

/**
 * The server's loop: one poller over the listening socket and every client's.
 *
 * For Server, Client and Group. Nothing blocks but turn() and what is made of it.
 *
 * How this works: each client is one Unix socket, watched level-triggered. A turn of the
 * loop takes at most one read and TURN_FRAMES frames from each socket that is ready and
 * turns these into events, until there are TURN_EVENTS; the next turn goes on with the
 * sockets that were not looked at, before the poller is asked again: it would name the same
 * ones first. A client with more frames in its read has its next turn with those that the
 * poller names then, and is not read before. So a client that floods delays the others by
 * TURN_FRAMES messages. No client has another turn before all events were taken, so what is
 * buffered is bounded: one unfinished message and one read per client, and the events of
 * one turn.
 *
 * How drain() loses nothing (docs/reference/wire.md, Moving): each client is sent a MOVE. What it
 * sends before the bridge's answering MOVE becomes events as ever, and what the program
 * sends meanwhile goes to it as ever. Behind these events comes its ConnectionClosed, and
 * when the program comes back for the event after that, it has had its say: what it sent
 * goes out, and the socket is closed. The listening socket stays open until the end,
 * without its file: nobody finds it any more, but who was on the way to it when the file
 * went is let in and moved on like everybody else.
 *
 * Signal handlers run between any two lines of PHP, these here included. So close() and
 * drain() that are called while a turn goes on are done when it is over.
 *
 * @internal
 */
final class Loop
{
    /** Events after which a turn ends: these are in memory, and wait for the program. */
    private const TURN_EVENTS = 1000;
    /**
     * Frames of one client in a turn. An echo takes some 10 us for each, so ten clients that
     * flood delay the next one by 6 ms; one read of the smallest messages has 32768.
     */
    private const TURN_FRAMES = 64;
    /** Clients that one turn lets in: as many come at once after a restart of the producer. */
    private const TURN_ACCEPTS = 64;
    /** The longest wait: nobody minds one turn an hour, and a poller may know no longer one. */
    private const MAX_WAIT_S = 3600.0;
    /** How long a client that is being closed may take to go; Apache's side gives as long. */
    private const CLOSE_TIMEOUT_S = 10.0;
    /** How long close() waits for the last goodbyes to leave. */
    private const FLUSH_TIMEOUT_S = 1.0;
    /** How long accepting rests when there is no room left. */
    private const ACCEPT_REST_S = 1.0;
    /**
     * Sockets that are let in only to be told that there is no room. Without them who comes
     * too late would hang, with neither an answer nor an end.
     */
    private const SURPLUS_ROOM = 16;
    /** PHP hears of a signal that comes just before a wait only after it: so it is short. */
    private const SIGNAL_WAIT_S = 0.5;
    /** Names of groups that nobody is in are looked for when there are so many. */
    private const GROUPS_SWEPT = 64;

    /**
     * What is first needed when something goes wrong, perhaps: with no descriptor left, no
     * file could be loaded any more.
     */
    private const LOADED_EARLY = [
        Client::class, Close::class, Connection::class, Delivery::class, Descriptors::class, Event::class,
        EventType::class, Group::class, Message::class, Moved::class, Pong::class, Publish::class,
        Published::class, Request::class, SendQueue::class, State::class, Tls::class, Utf8::class,
        Violation::class, Warnings::class, Answer::class, Document::class, Frame::class, MessageReader::class,
        InvalidArgument::class, NoClient::class, NotAsked::class, WireError::class,
    ];

    public bool $isClosed = false;
    /** @var \SplQueue<Event> what happened and nobody has taken yet */
    private \SplQueue $events;
    /** @var array<int, Connection> by id */
    private array $connections = [];
    /** @var \SplQueue<Connection> that must be gone at their deadlines, in order */
    private \SplQueue $leaving;
    /** @var array<int, int> what the poller found ready and no turn has looked at yet */
    private array $ready = [];
    /** @var array<int, int> Poller::READ, by id, of connections with frames that no turn has taken */
    private array $unread = [];
    private ?float $drainDeadline = null;
    /** @var \SplObjectStorage<Event, Connection> who has moved, by their last event */
    private \SplObjectStorage $moved;
    /** Who has moved, and whose last event the program has in hand. */
    private ?Connection $parting = null;
    /** @var \SplQueue<\Closure(): mixed> */
    private \SplQueue $calls;
    /** @var array<\WeakReference<Group>> by name */
    private array $groups = [];
    private int $groupsSwept = self::GROUPS_SWEPT;
    private ?float $acceptAgainAt = null;
    /** Somebody was told that there is no room, and there was none since. */
    private bool $isFull = false;
    private bool $isTurning = false;
    private bool $hasSignals = false;
    private readonly int $listenerId;
    private readonly Systemd $systemd;

    /**
     * @param \Closure(string): void $log
     * @param \Closure(): void $onEnding called once it closes or drains
     *
     * @throws ServerException the poller has no room for the listening socket
     */
    public function __construct(
        private readonly SocketFile $file,
        private readonly Poller $poller,
        private readonly int $maxMessageBytes,
        private readonly int $maxQueueBytes,
        private readonly \Closure $log,
        private readonly \Closure $onEnding
    ) {
        array_map(class_exists(...), self::LOADED_EARLY);
        $this->events = new \SplQueue();
        $this->leaving = new \SplQueue();
        $this->moved = new \SplObjectStorage();
        $this->calls = new \SplQueue();
        $this->systemd = new Systemd();
        assert(is_resource($file->stream));
        $this->listenerId = get_resource_id($file->stream);
        if ($this->poller->room($file->stream) < 0) {
            $file->close();
            throw new ServerException(
                $file->path,
                'this program has too many files open to wait for a socket',
                $this->poller->advice()
            );
        }
        $this->poller->add($file->stream);
    }

    /**
     * Waits for an event until a deadline (now()), or for ever.
     *
     * @return Event|null null where the server is closed and every event was taken
     */
    public function nextEvent(?float $deadline): ?Event
    {
        if ($this->isTurning) {
            throw new \LogicException('dequeue() was called by a function that dequeue() runs');
        }
        $this->isTurning = true;
        try {
            return $this->waitForEvent($deadline);
        } finally {
            $this->isTurning = false;
        }
    }

    public function isEnding(): bool
    {
        return $this->isClosed || $this->drainDeadline !== null;
    }

    /**
     * Has a function called between two events.
     *
     * @param \Closure(): mixed $function
     */
    public function callSoon(\Closure $function): void
    {
        $this->calls->enqueue($function);
    }

    /**
     * Notes that signals are to be heard of.
     */
    public function expectSignals(): void
    {
        $this->hasSignals = true;
    }

    /**
     * Returns the group of this name.
     */
    public function group(string $name): Group
    {
        $group = ($this->groups[$name] ?? null)?->get();
        if ($group === null) {
            if (count($this->groups) >= $this->groupsSwept) {
                $this->groups = array_filter($this->groups, static fn ($one) => $one->get() !== null);
                $this->groupsSwept = 2 * count($this->groups) + self::GROUPS_SWEPT;
            }
            $group = new Group($name);
            $this->groups[$name] = \WeakReference::create($group);
        }
        return $group;
    }

    /**
     * Returns the clients that are let in and whose connections have not ended.
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
     * Sends a frame to all clients.
     */
    public function broadcast(string $frame): Delivery
    {
        $reached = $skipped = 0;
        foreach ($this->connections as $connection) {
            if ($connection->client !== null) {
                $connection->sendFrame($frame) ? $reached++ : $skipped++;
            }
        }
        return new Delivery($reached, $skipped);
    }

    /**
     * Begins to hand every client on; see Server::drain.
     */
    public function drain(float $timeoutS): void
    {
        if ($this->isTurning) {
            $this->callSoon(fn () => $this->drain($timeoutS));
            return;
        }
        if ($this->isEnding()) {
            return;
        }
        $this->drainDeadline = self::now() + $timeoutS;
        $this->file->remove();
        $this->acceptAll();
        foreach ($this->connections as $connection) {
            if ($connection->state === State::Publishing) {
                $this->forget($connection); // it has to do with whoever listens next
            } else {
                $this->move($connection);
            }
        }
        ($this->onEnding)();
    }

    /**
     * Says goodbye to everybody; see Server::close.
     */
    public function close(): void
    {
        if ($this->isTurning) {
            $this->callSoon($this->close(...));
            return;
        }
        if ($this->isClosed) {
            return;
        }
        $this->isClosed = true;
        $this->stopAccepting();
        ($this->onEnding)();
        foreach ($this->connections as $connection) {
            $connection->sendClose(new Close(Close::GOING_AWAY, 'the server closes'));
        }
        foreach ($this->connections as $connection) {
            $this->update($connection);
        }
        $deadline = self::now() + self::FLUSH_TIMEOUT_S;
        while ($this->hasQueues() && ($waitS = $deadline - self::now()) > 0) {
            $this->turn($waitS);
        }
        $this->leave(Close::GOING_AWAY, 'the server closed');
    }

    /**
     * Returns the monotonic time, seconds.
     */
    public static function now(): float
    {
        return hrtime(true) / 1e9;
    }

    private function waitForEvent(?float $deadline): ?Event
    {
        $this->systemd->beat(self::now());
        if ($this->parting !== null) {
            $this->parting->part();
            $this->parting = null;
        }
        $this->runCalls();
        while ($this->events->isEmpty()) {
            if ($this->isClosed || $this->isDrained()) {
                return null;
            }
            $this->turn($deadline === null ? null : max(0.0, $deadline - self::now()));
            $this->runCalls();
            if ($this->events->isEmpty() && $deadline !== null && self::now() >= $deadline) {
                return $this->isClosed ? null : new Event(EventType::NoData);
            }
        }
        $event = $this->events->dequeue();
        if (isset($this->moved[$event])) {
            $connection = $this->moved[$event];
            unset($this->moved[$event]);
            // From here on closing it does nothing, as with any client that is gone: many a
            // program does that at ConnectionClosed, and means no goodbye.
            if ($connection->state === State::Moved) {
                $connection->state = State::Parting;
            }
            $this->parting = $connection;
        }
        return $event;
    }

    /**
     * Hears of signals, and calls what is to be called between two events.
     */
    private function runCalls(): void
    {
        if (function_exists('pcntl_signal_dispatch')) {
            pcntl_signal_dispatch();
        }
        while (!$this->calls->isEmpty()) {
            $this->isTurning = false; // what they call is to be done at once
            try {
                ($this->calls->dequeue())();
            } finally {
                $this->isTurning = true;
            }
        }
    }

    /**
     * Waits for the sockets once, and does what they are ready for.
     */
    private function turn(?float $waitS): void
    {
        $timerS = $this->runTimers();
        if ($this->ready === []) {
            $hasEvents = !$this->events->isEmpty() && !$this->isClosed; // a timer's
            if ($hasEvents || $this->unread !== []) {
                $waitS = 0.0;
            }
            $this->ready = $this->poller->wait(
                min($waitS ?? self::MAX_WAIT_S, $timerS, $this->signalWaitS(), self::MAX_WAIT_S)
            );
            foreach ($this->unread as $id => $mask) {
                $this->ready[$id] = ($this->ready[$id] ?? 0) | $mask;
            }
            $this->unread = [];
        }
        foreach ($this->ready as $id => $mask) {
            unset($this->ready[$id]);
            if ($id === $this->listenerId) {
                $this->acceptSome();
                continue;
            }
            $connection = $this->connections[$id] ?? null;
            if ($connection === null) {
                continue; // it went away meanwhile
            }
            if (($mask & Poller::WRITE) !== 0) {
                $connection->flushNowait();
                $this->update($connection);
            }
            if (($mask & Poller::READ) !== 0 && isset($this->connections[$id])) {
                if (!$connection->hasMoved) {
                    $this->receive($connection);
                } elseif (($mask & Poller::GONE) !== 0) {
                    $this->forget($connection); // its last event is out
                }
            }
            if (count($this->events) >= self::TURN_EVENTS) {
                break;
            }
        }
    }

    private function signalWaitS(): float
    {
        $isHeard = $this->hasSignals || (function_exists('pcntl_async_signals') && pcntl_async_signals());
        return $isHeard ? self::SIGNAL_WAIT_S : INF;
    }

    /**
     * Does what is due; returns the seconds until the next is, or INF.
     */
    private function runTimers(): float
    {
        $now = self::now();
        $due = $this->systemd->beat($now) ?? INF;
        while (!$this->leaving->isEmpty()) {
            $connection = $this->leaving->bottom();
            if ($connection->stream !== null && $connection->deadline > $now) {
                $due = min($due, (float) $connection->deadline);
                break;
            }
            $this->leaving->dequeue();
            if ($connection->stream !== null) {
                $this->end($connection, Close::ABNORMAL, 'the close was not answered in time');
                $this->forget($connection);
            }
        }
        if ($this->drainDeadline !== null && !$this->isClosed) {
            if ($this->drainDeadline <= $now) {
                $this->stopAccepting();
                $this->leave(Close::SERVICE_RESTART, 'left to another producer: it took too long');
            } else {
                $due = min($due, $this->drainDeadline);
            }
        }
        if ($this->acceptAgainAt !== null) {
            if ($this->acceptAgainAt <= $now) {
                $this->acceptAgainAt = null;
                $this->watchListener(true);
            } else {
                $due = min($due, $this->acceptAgainAt);
            }
        }
        return max(0.0, $due - $now);
    }

    /**
     * Lets in who waits, when the poller says that somebody does.
     *
     * If not even the first can be let in, something is wrong. Of those behind it that is
     * not known: PHP does not tell by a number why it could not accept, and that nobody
     * waits is one of the reasons.
     */
    private function acceptSome(): void
    {
        for ($count = 0; $count < self::TURN_ACCEPTS && $this->accept($count === 0); $count++) {
            continue;
        }
    }

    /**
     * Lets in one client; false where there is none, or no room.
     */
    private function accept(bool $restsIfNot): bool
    {
        if (!is_resource($this->file->stream)) {
            return false;
        }
        $listener = $this->file->stream;
        $stream = Warnings::withheld(static fn () => stream_socket_accept($listener, 0));
        if ($stream === false) {
            if ($restsIfNot) {
                $this->rest((string) preg_replace('/^.*: /', '', Warnings::last()));
            }
            return false;
        }
        $room = $this->poller->room($stream);
        if ($room < 0) {
            $this->poller->remove($stream);
            fclose($stream);
            $this->rest('there is no room');
            return false;
        }
        stream_set_blocking($stream, false);
        stream_set_read_buffer($stream, 0);
        $connection = new Connection(
            $stream,
            $this->maxMessageBytes,
            $this->maxQueueBytes,
            $this->update(...)
        );
        $connection->isSurplus = $room < self::SURPLUS_ROOM;
        $this->isFull = $this->isFull && $connection->isSurplus;
        $this->connections[$connection->id] = $connection;
        $this->poller->add($stream);
        return true;
    }

    /**
     * Lets in everybody who waits.
     */
    private function acceptAll(): void
    {
        while ($this->accept(false)) {
            continue;
        }
    }

    /**
     * Accepts nobody for a while: a listening socket that cannot be accepted from stays
     * ready, and watching it on would turn the loop into a spin.
     */
    private function rest(string $problem): void
    {
        $this->watchListener(false);
        $this->acceptAgainAt = self::now() + self::ACCEPT_REST_S;
        $this->tellFull("cannot accept a client: $problem");
    }

    private function tellFull(string $problem): void
    {
        if ($this->isFull) {
            return;
        }
        $this->isFull = true;
        $count = count($this->clients());
        $reason = "$problem ($count clients are connected); {$this->poller->advice()}";
        ($this->log)("{$this->file->path}: $reason");
        $this->events->enqueue(new Event(EventType::Error, reason: $reason));
    }

    private function watchListener(bool $isWatched): void
    {
        if (is_resource($this->file->stream)) {
            $this->poller->watch($this->file->stream, $isWatched, false);
        }
    }

    private function stopAccepting(): void
    {
        if (is_resource($this->file->stream)) {
            $this->poller->remove($this->file->stream);
        }
        $this->acceptAgainAt = null;
        $this->file->close();
    }

    private function receive(Connection $connection): void
    {
        $data = '';
        if (!$connection->reader->hasUnread()) {
            $data = $connection->receiveNowait();
            if ($data === null) {
                return;
            }
            if ($data === '') {
                $this->receiveEof($connection);
                return;
            }
        }
        foreach ($connection->reader->receive($data, self::TURN_FRAMES) as $item) {
            match (true) {
                $item instanceof Message => $this->receiveMessage($connection, $item),
                $item instanceof Request => $this->receiveOpen($connection, $item),
                $item instanceof Publish => $this->receivePublish($connection, $item),
                $item instanceof Close => $this->receiveClose($connection, $item),
                $item instanceof Moved => $this->receiveMove($connection),
                $item instanceof Violation => $this->refuse($connection, $item),
                default => $this->receivePong($connection, $item),
            };
        }
        if ($connection->reader->hasUnread() && isset($this->connections[$connection->id])) {
            $this->unread[$connection->id] = Poller::READ;
        }
        $ignored = $connection->reader->takeIgnored();
        if ($ignored !== []) {
            $opcodes = implode(' ', array_map(static fn (int $one): string => sprintf('0x%x', $one), $ignored));
            $name = $connection->client?->request->id ?? 'a client';
            ($this->log)("{$this->file->path}: $name: ignored frames of opcodes $opcodes");
        }
    }

    private function receiveMessage(Connection $connection, Message $message): void
    {
        if ($connection->state->isReceiving()) {
            $type = $message->data === '' ? EventType::NoData : EventType::IO;
            $this->events->enqueue(new Event($type, $connection->client, $message));
        } elseif ($connection->state === State::Publishing) {
            $delivery = $connection->group === null
                ? $this->broadcast($message->encode())
                : $this->group($connection->group)->sendFrame($message->encode());
            $connection->sendPublished(new Published($delivery->reached, $delivery->skipped));
        }
    }

    private function receiveOpen(Connection $connection, Request $request): void
    {
        $client = new Client($connection, $request);
        $connection->state = $request->answerRequired ? State::Asked : State::Open;
        if ($connection->isSurplus) {
            $connection->sendClose(new Close(Close::TRY_AGAIN_LATER, 'the server is full'));
            $this->tellFull('no more clients can be let in');
            return;
        }
        $connection->client = $client;
        $this->events->enqueue(new Event(EventType::Accept, $client));
        if ($this->isClosed) {
            $connection->sendClose(new Close(Close::GOING_AWAY, 'the server closes'));
        }
        if ($this->drainDeadline !== null) {
            $this->move($connection);
        }
    }

    private function receivePublish(Connection $connection, Publish $publish): void
    {
        $connection->state = State::Publishing;
        $connection->group = $publish->group;
    }

    private function receiveClose(Connection $connection, Close $close): void
    {
        if ($connection->state === State::Publishing) {
            $this->forget($connection);
            return;
        }
        if ($connection->state !== State::Closed && $connection->client !== null) {
            $this->events->enqueue(
                new Event(EventType::Close, $connection->client, null, $close->code, $close->reason)
            );
        }
        $connection->dropQueue();
        $this->end($connection, $close->code, $close->reason);
    }

    private function receivePong(Connection $connection, Pong $pong): void
    {
        $latency = $connection->client?->receivePong($pong->payload);
        if ($latency !== null && $connection->state->isReceiving()) {
            $this->events->enqueue(new Event(EventType::Pong, $connection->client, latency: $latency));
        }
    }

    private function receiveEof(Connection $connection): void
    {
        $mayLeave = $connection->state === State::Connecting || $connection->state === State::Publishing;
        if (!$mayLeave || !$connection->reader->isIdle()) {
            $reason = $connection->wasRejected ? 'it was refused' : 'the connection broke off';
            $this->end($connection, Close::ABNORMAL, $reason);
        }
        // Otherwise somebody looked whether a producer listens, and left.
        $this->forget($connection);
    }

    private function receiveMove(Connection $connection): void
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
            $this->end($connection, Close::ABNORMAL, 'the close came too late to be answered');
        }
    }

    private function refuse(Connection $connection, Violation $violation): void
    {
        if ($connection->state->isReceiving()) {
            $this->events->enqueue(
                new Event(EventType::Error, $connection->client, null, $violation->code, $violation->reason)
            );
            $connection->dropQueue();
            $reason = Utf8::truncate($violation->reason, Close::MAX_REASON_BYTES);
            $connection->sendClose(new Close($violation->code, $reason));
        }
        $this->end($connection, $violation->code, $violation->reason);
    }

    /**
     * Queues the connection's last event, once; it stays only to send its queue.
     */
    private function end(Connection $connection, int $code, string $reason): void
    {
        if ($connection->state !== State::Closed) {
            $connection->state = State::Closed;
            if (!$connection->isSurplus) {
                $type = $connection->client === null ? EventType::Invalid : EventType::ConnectionClosed;
                $this->events->enqueue(new Event($type, $connection->client, null, $code, $reason));
                $connection->client?->leaveGroups();
            }
        }
        $this->update($connection);
    }

    private function forget(Connection $connection): void
    {
        if ($connection->stream !== null) {
            unset($this->connections[$connection->id]);
            unset($this->ready[$connection->id], $this->unread[$connection->id]);
            $this->poller->remove($connection->stream);
            $connection->state = State::Closed;
            $connection->close();
            $connection->client?->leaveGroups();
            $connection->client = null; // they hold each other
        }
    }

    /**
     * Sends a client on, or refuses one that waits to be accepted.
     */
    private function move(Connection $connection): void
    {
        if ($connection->state === State::Asked) {
            $connection->sendClose(new Close(Close::GOING_AWAY, 'the server closes'));
        }
        // (One that has sent no OPEN yet, but perhaps a message behind it, comes back here
        // with that.)
        $connection->sendMove();
    }

    /**
     * Ends every connection that is left, without a word to it.
     */
    private function leave(int $code, string $reason): void
    {
        foreach ($this->connections as $connection) {
            $hasLastEvent = $connection->state === State::Moved || $connection->state === State::Parting;
            if ($connection->client !== null && !$hasLastEvent) {
                $this->end($connection, $code, $reason);
            }
            $this->forget($connection);
        }
    }

    /**
     * Tells whether drain() is through, and ends the server where it is.
     */
    private function isDrained(): bool
    {
        if ($this->drainDeadline === null || $this->connections !== []) {
            return false;
        }
        $this->acceptAll(); // a last look
        if ($this->connections !== [] || !$this->events->isEmpty()) {
            return false;
        }
        $this->isClosed = true;
        $this->stopAccepting();
        return true;
    }

    private function hasQueues(): bool
    {
        foreach ($this->connections as $connection) {
            if ($connection->hasQueue()) {
                return true;
            }
        }
        return false;
    }

    /**
     * Follows a change of state or queue: event, deadline, what is watched, end.
     */
    private function update(Connection $connection): void
    {
        if ($connection->stream === null || !isset($this->connections[$connection->id])) {
            return;
        }
        if ($connection->hasOverflowed && $connection->state === State::Closing) {
            $this->end($connection, Close::TRY_AGAIN_LATER, 'too slow: the send queue was full');
            return;
        }
        if ($connection->state === State::Closed && !$connection->hasQueue()) {
            $this->forget($connection);
            return;
        }
        $isLeaving = $connection->state === State::Closing || $connection->state === State::Closed;
        if ($connection->deadline === null && $isLeaving) {
            $connection->deadline = self::now() + self::CLOSE_TIMEOUT_S;
            $this->leaving->enqueue($connection);
        }
        $isOver = $this->isClosed && $connection->state->isReceiving();
        $this->poller->watch($connection->stream, $connection->wantsReading() && !$isOver, $connection->hasQueue());
    }
}
