<?php

declare(strict_types=1);

namespace apachews;

use apachews\Exception\InvalidArgument;
use apachews\Exception\NotASocket;
use apachews\Exception\ServerException;
use apachews\Exception\SocketInUse;
use apachews\Transport\EpollPoller;
use apachews\Transport\Loop;
use apachews\Transport\Poller;
use apachews\Transport\SelectPoller;
use apachews\Transport\SocketFile;
use apachews\Transport\Systemd;
use apachews\Wire\Message;
use apachews\Wire\MessageReader;

/**
 * Listens on a socket file for the WebSockets that Apache bridges to it.
 *
 * Only dequeue() waits and, for at most a second, close(). Sockets make progress only inside
 * dequeue(). systemd (NOTIFY_SOCKET) is sent READY, STOPPING when the last server of the
 * process closes or drains, and, with WatchdogSec=, a keep-alive from dequeue().
 *
 * @implements \IteratorAggregate<int, Event>
 */
final class Server implements \IteratorAggregate
{
    /**
     * The limit of one client's send queue. All queues share the string of a broadcast.
     */
    public const DEFAULT_MAX_QUEUE_BYTES = 4 * 1024 * 1024;
    /** As long as a bridge holds a client without a producer (APACHEWS_HOLD). */
    public const DRAIN_TIMEOUT_S = 30.0;

    /** Servers of this process that are neither closed nor draining. */
    private static int $running = 0;
    public readonly string $path;
    private readonly Loop $loop;

    /**
     * @param string                         $path            the socket file, in Apache's document
     *                                                        root. An existing socket file is
     *                                                        replaced: new clients connect here, a
     *                                                        live producer keeps its clients
     * @param int                            $mode            permissions of the file; Apache's user
     *                                                        needs write permission
     * @param string|int|null                $group           group of the file (name or number)
     * @param int                            $maxMessageBytes the longest message of a client; a
     *                                                        longer one closes it with 1009
     * @param int                            $maxQueueBytes   the limit of a client's send queue;
     *                                                        sending to a client whose queue is
     *                                                        longer closes it with 1013
     * @param bool                           $exclusive       fail if another producer listens
     * @param Poller|null                    $poller          waits for the sockets; null: epoll
     *                                                        through ext-ffi if available, else
     *                                                        stream_select()
     * @param (\Closure(string): void)|null  $log             receives lines for the log; null:
     *                                                        error_log()
     *
     * @throws SocketInUse     $exclusive, and another producer listens there
     * @throws NotASocket      the path is another kind of file
     * @throws ServerException the path is too long, the directory is missing or not writable,
     *                         or the group is unknown
     * @throws InvalidArgument a limit or a mode out of range
     */
    public function __construct(
        string $path,
        int $mode = 0660,
        string|int|null $group = null,
        int $maxMessageBytes = MessageReader::DEFAULT_MAX_MESSAGE_BYTES,
        int $maxQueueBytes = self::DEFAULT_MAX_QUEUE_BYTES,
        bool $exclusive = false,
        ?Poller $poller = null,
        ?\Closure $log = null
    ) {
        if ($mode < 0 || $mode > 0777) {
            throw new InvalidArgument(sprintf('mode: %o: expected permissions from 0 to 0777, in octal', $mode));
        }
        foreach (['maxMessageBytes' => $maxMessageBytes, 'maxQueueBytes' => $maxQueueBytes] as $name => $bytes) {
            if ($bytes < 1) {
                throw new InvalidArgument("$name: $bytes: expected 1 or more");
            }
        }
        $log ??= static function (string $line): void {
            error_log("apachews: $line");
        };
        $poller ??= self::bestPoller(); // first: if it fails, the file is not created
        $file = new SocketFile($path, $mode, $group, $exclusive);
        $this->path = $path;
        $this->loop = new Loop(
            $file,
            $poller,
            $maxMessageBytes,
            $maxQueueBytes,
            $log,
            static function (): void {
                if (--self::$running === 0) {
                    Systemd::stopping();
                }
            }
        );
        self::$running++;
        Systemd::ready($path);
        if ($file->wasTaken) {
            // In the log, because two producers started by mistake look the same.
            $log("$path: replaced another producer, which keeps its clients");
        }
    }

    /**
     * Waits for the next event.
     *
     * @param float|null $timeout seconds; null: no timeout
     *
     * @return Event|null the next event; after the timeout an ApacheWSNoData without a client;
     *                    null once the server is closed and all events were returned
     *
     * @throws InvalidArgument a timeout that is negative or not a number
     */
    public function dequeue(?float $timeout = null): ?Event
    {
        if ($timeout !== null && !($timeout >= 0)) { // nor NAN
            throw new InvalidArgument("timeout: $timeout: expected seconds of 0 or more, or null");
        }
        return $this->loop->nextEvent($timeout === null ? null : Loop::now() + $timeout);
    }

    /**
     * Iterates over the events until the server is closed.
     *
     * @return \Generator<int, Event>
     */
    public function getIterator(): \Generator
    {
        while (($event = $this->dequeue()) !== null) {
            yield $event;
        }
    }

    /**
     * Sends a message to every client; it is encoded once. See also group().
     *
     * @param bool|null $binary as Client::send
     *
     * @throws InvalidArgument text that is not UTF-8
     */
    public function broadcast(string $data, ?bool $binary = null): Delivery
    {
        return $this->loop->publications->broadcast(Message::of($data, $binary)->encode());
    }

    /**
     * Sends a message to the members of a group; null: to every client.
     *
     * Other programs on the machine use apachews\publish() or "apachews publish".
     *
     * @param bool|null $binary as Client::send
     *
     * @throws InvalidArgument text that is not UTF-8
     */
    public function publish(string $data, ?string $group = null, ?bool $binary = null): Delivery
    {
        return $group === null ? $this->broadcast($data, $binary) : $this->group($group)->broadcast($data, $binary);
    }

    /**
     * Returns the group of this name, which may be empty.
     */
    public function group(string $name): Group
    {
        return $this->loop->publications->group($name);
    }

    /**
     * Returns the clients that are connected.
     *
     * @return list<Client>
     */
    public function clients(): array
    {
        return $this->loop->connections->clients();
    }

    /**
     * Returns the preferred language of the client's browser, such as en-GB, or null.
     *
     * Source: its Accept-Language header (RFC 9110 12.5.4).
     */
    public function language(Client $client): ?string
    {
        return Language::preferred($client->request->header('accept-language') ?? '');
    }

    /**
     * Registers a function that dequeue() calls after a signal, between two events.
     *
     * PHP may notice the signal only after half a second. (With pcntl_async_signals() other
     * handlers run between any two lines, also inside of send(): they should only set a
     * variable, or be registered here.)
     *
     * @param callable(): mixed $function such as drain() or close()
     *
     * @return bool false if ext-pcntl is missing
     */
    public function onSignal(int $signal, callable $function): bool
    {
        if (!function_exists('pcntl_signal')) {
            return false;
        }
        $call = \Closure::fromCallable($function);
        $this->loop->expectSignals();
        return pcntl_signal($signal, fn () => $this->loop->callSoon($call), false);
    }

    /**
     * Moves every client to the next producer, without losing messages.
     *
     * Returns at once; continue to call dequeue() until it returns null. The server accepts no
     * new clients, and removes the socket file if it is still its own. Each client's events
     * continue until it has moved: then its ConnectionClosed follows, with code 1012, and the
     * program can send to it until the next dequeue().
     *
     * If no producer listens, Apache holds the clients for APACHEWS_HOLD. Clients that wait to
     * be accepted are rejected with 503. close() ends draining, and closes the remaining clients.
     *
     * @param float $timeout seconds after which the connections of the remaining clients are closed
     *
     * @throws InvalidArgument a timeout that is negative or not a number
     */
    public function drain(float $timeout = self::DRAIN_TIMEOUT_S): void
    {
        if (!($timeout >= 0)) {
            throw new InvalidArgument("timeout: $timeout: expected seconds of 0 or more");
        }
        $this->loop->drain($timeout);
    }

    /**
     * Closes every client with 1001, and removes the socket file.
     *
     * Waits for at most a second for queued messages to be sent. Each client's ConnectionClosed
     * event follows. A second call does nothing.
     */
    public function close(): void
    {
        $this->loop->close();
    }

    private static function bestPoller(): Poller
    {
        return EpollPoller::isAvailable() ? new EpollPoller() : new SelectPoller();
    }
}
