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
 * Nothing here blocks but dequeue() and, for at most a second, close(). Sockets make
 * progress only inside dequeue(). Under systemd (NOTIFY_SOCKET) it is told READY, STOPPING
 * when the last server of the process closes or drains, and, with WatchdogSec=, that
 * dequeue() is called.
 *
 * @implements \IteratorAggregate<int, Event>
 */
final class Server implements \IteratorAggregate
{
    /**
     * What may wait for one slow client. A broadcast's frame is one string however many
     * clients wait for it.
     */
    public const DEFAULT_MAX_QUEUE_BYTES = 4 * 1024 * 1024;
    /** How long a bridge holds a client that nobody serves (APACHEWS_HOLD). */
    public const DRAIN_TIMEOUT_S = 30.0;

    /** Servers of this process that neither close nor drain. */
    private static int $running = 0;
    public readonly string $path;
    private readonly Loop $loop;

    /**
     * @param string                         $path            the socket file, in Apache's document
     *                                                        root; one that a dead producer left is
     *                                                        replaced, one on which another listens
     *                                                        is taken over: new clients come here,
     *                                                        the other keeps those it has
     * @param int                            $mode            permissions of the file; Apache's user
     *                                                        needs the right to write
     * @param string|int|null                $group           group of the file (name or number)
     * @param int                            $maxMessageBytes the longest message taken; who sends
     *                                                        more is closed with 1009
     * @param int                            $maxQueueBytes   what may wait for a client that does
     *                                                        not read; one for whom more waits when
     *                                                        another message is sent is closed with
     *                                                        1013
     * @param bool                           $exclusive       refuse to take a socket over
     * @param Poller|null                    $poller          waits for the sockets; null: the best
     *                                                        there is (epoll by ext-ffi, or
     *                                                        stream_select())
     * @param (\Closure(string): void)|null  $log             takes a line when something is wrong;
     *                                                        null: error_log()
     *
     * @throws SocketInUse     with $exclusive, another producer listens there
     * @throws NotASocket      the path holds something else
     * @throws ServerException the path is too long, the directory is missing or may not be
     *                         written to, there is no such group
     * @throws InvalidArgument a limit or a mode that makes no sense
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
            throw new InvalidArgument(sprintf('mode: %o are no permissions: use 0 to 0777, with the 0', $mode));
        }
        foreach (['maxMessageBytes' => $maxMessageBytes, 'maxQueueBytes' => $maxQueueBytes] as $name => $bytes) {
            if ($bytes < 1) {
                throw new InvalidArgument("$name: $bytes: it must be 1 or more");
            }
        }
        $log ??= static function (string $line): void {
            error_log("apachews: $line");
        };
        $poller ??= self::bestPoller(); // first: should it fail, there is no file yet
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
            // Because two producers started by mistake look the same.
            $log("$path: taken over from another producer, which keeps the clients it has");
        }
    }

    /**
     * Waits for the next event.
     *
     * @param float|null $timeout seconds; null: for ever
     *
     * @return Event|null the next event; one of type ApacheWSNoData without a client where
     *                    nothing came in time; null once the server is closed and all its
     *                    events were taken
     *
     * @throws InvalidArgument a timeout that is negative or no number
     */
    public function dequeue(?float $timeout = null): ?Event
    {
        if ($timeout !== null && !($timeout >= 0)) { // nor NAN
            throw new InvalidArgument("a timeout of $timeout s: use 0 or more, or null");
        }
        return $this->loop->nextEvent($timeout === null ? null : Loop::now() + $timeout);
    }

    /**
     * Gives event after event until the server is closed.
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
     * Sends a message to every client; it is encoded once. For some of them, see group().
     *
     * @param bool|null $binary as Client::send
     *
     * @throws InvalidArgument it is to be text, and is not UTF-8
     */
    public function broadcast(string $data, ?bool $binary = null): Delivery
    {
        return $this->loop->broadcast(Message::of($data, $binary)->encode());
    }

    /**
     * Sends a message to the members of a group; null: to every client.
     *
     * Another program on the machine does the same with apachews\publish() or
     * "apachews publish".
     *
     * @param bool|null $binary as Client::send
     *
     * @throws InvalidArgument it is to be text, and is not UTF-8
     */
    public function publish(string $data, ?string $group = null, ?bool $binary = null): Delivery
    {
        return $group === null ? $this->broadcast($data, $binary) : $this->group($group)->broadcast($data, $binary);
    }

    /**
     * Returns the group of this name; one that nobody has joined yet is empty.
     */
    public function group(string $name): Group
    {
        return $this->loop->group($name);
    }

    /**
     * Returns the clients that are connected.
     *
     * @return list<Client>
     */
    public function clients(): array
    {
        return $this->loop->clients();
    }

    /**
     * Returns the language that the client's browser prefers, as en-GB, or null.
     *
     * Source: its Accept-Language header (RFC 9110 12.5.4).
     */
    public function language(Client $client): ?string
    {
        return Language::preferred($client->request->header('accept-language') ?? '');
    }

    /**
     * Has a function called by dequeue() when a signal comes, between two events.
     *
     * Within half a second, should it come at a moment when PHP cannot hear it. (A handler
     * of the program's own, with pcntl_async_signals(), runs between any two lines, also
     * inside of send(): it had better set a variable, or be made by this.)
     *
     * @param callable(): mixed $function drain() or close(), perhaps
     *
     * @return bool false where PHP has no signals: ext-pcntl is missing
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
     * Hands every client on to the producer that listens next, losing nothing.
     *
     * Returns at once; go on with dequeue() until it returns null. No new client comes, and
     * the socket file is removed where it is still this server's. Of each client the events
     * go on until it has moved: then comes its ConnectionClosed, code 1012, and until the
     * next dequeue() the program can send to it.
     *
     * Where nobody listens, Apache holds the clients for APACHEWS_HOLD. Who waits to be
     * accepted is refused with 503. close() ends it, with a goodbye to who is left.
     *
     * @param float $timeout seconds after which who is still here is left without a word
     *
     * @throws InvalidArgument a timeout that is negative or no number
     */
    public function drain(float $timeout = self::DRAIN_TIMEOUT_S): void
    {
        if (!($timeout >= 0)) {
            throw new InvalidArgument("a timeout of $timeout s: use 0 or more");
        }
        $this->loop->drain($timeout);
    }

    /**
     * Says goodbye to every client (1001), and removes the socket file.
     *
     * Waits for at most a second for the last goodbyes to leave. Each client still gets its
     * ConnectionClosed event. Closing again does nothing.
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
