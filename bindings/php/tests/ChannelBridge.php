<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\Wire\Frame;
use apachews\Wire\Lane;

/**
 * A bridge process with a channel, for tests: clients' connections, and what each client receives.
 *
 * Reads only when it is told to, so that a test decides what overtakes what.
 */
final class ChannelBridge
{
    public const ID = 'bridge-1';
    private const KEY = 7;

    /** @var list<Bridge> */
    public array $connections = [];
    /** @var array<int, list<string>> the payloads that each client received, by its index */
    public array $received = [];
    /** @var list<string> the kinds of LANE frames, with C (connection) or H (channel) before them */
    public array $frames = [];
    /** @var resource|null the bridge's end of the channel */
    public mixed $channel = null;
    /** @var list<int> numbers of a JOIN that no READY has answered */
    public array $joined = [];
    /** @var array<int, int> index of the client by its number */
    public array $clients = [];
    /** @var array<int, array<int, true>> numbers by group */
    private array $groups = [];
    /** @var array<int, string> unread bytes by the client's index; -1: of the channel */
    private array $buffers = [-1 => ''];
    /** @var array<int, true> clients whose connection waits at an OWN */
    private array $waiting = [];
    /** @var array<int, int> OFF frames without an OWN, by the client's index */
    private array $offs = [];

    public function __construct(private readonly string $path, public bool $offers = true)
    {
    }

    public function connect(): int
    {
        $bridge = new Bridge($this->path, ['bridge' => ['id' => self::ID, 'groups' => 1]]);
        stream_set_blocking($bridge->stream, false);
        $this->connections[] = $bridge;
        $index = count($this->connections) - 1;
        $this->received[$index] = [];
        $this->buffers[$index] = '';
        $this->offs[$index] = 0;
        return $index;
    }

    /**
     * Reads one client's connection, as far as the bridge may.
     */
    public function readConnection(int $index): void
    {
        if (!isset($this->connections[$index])) {
            return; // the client has left
        }
        $this->buffers[$index] .= (string) fread($this->connections[$index]->stream, 1 << 16);
        while (!isset($this->waiting[$index]) && ($frame = $this->next($index)) !== null) {
            $this->handleOwn($index, $frame[0], $frame[1]);
        }
    }

    public function readChannel(): void
    {
        if ($this->channel === null) {
            return;
        }
        $this->buffers[-1] .= (string) fread($this->channel, 1 << 16);
        while (($frame = $this->next(-1)) !== null) {
            $this->handleChannel($frame[1]);
        }
    }

    public function readAll(): void
    {
        $this->readChannel();
        foreach (array_keys($this->connections) as $index) {
            $this->readConnection($index);
        }
    }

    /**
     * Sends READY or SLOW.
     *
     * @param list<int> $numbers
     */
    public function tell(int $kind, array $numbers): void
    {
        if ($this->channel !== null && $numbers !== []) {
            fwrite($this->channel, Lane::numbers($kind, $numbers));
        }
    }

    public function answerJoins(): void
    {
        $this->tell(Lane::READY, $this->joined);
        $this->joined = [];
    }

    /**
     * Returns the numbers of the clients on the channel.
     *
     * @return list<int>
     */
    public function members(int $group = Lane::ALL): array
    {
        return array_keys($this->groups[$group] ?? []);
    }

    /**
     * Returns the kinds of LANE frames since the last call.
     *
     * @return list<string>
     */
    public function popFrames(): array
    {
        $frames = $this->frames;
        $this->frames = [];
        return $frames;
    }

    /**
     * Opens a channel, and sends its descriptor.
     */
    private function offer(int $index): void
    {
        // Of streams: PHP 8.2 sends a wrong descriptor for a Socket.
        $pair = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
        assert($pair !== false);
        $connection = socket_import_stream($this->connections[$index]->stream);
        assert($connection instanceof \Socket);
        $message = [
            'iov' => [Frame::encode(Frame::LANE, pack('CN', Lane::OFFER, self::KEY))],
            'control' => [['level' => SOL_SOCKET, 'type' => SCM_RIGHTS, 'data' => [$pair[1]]]],
        ];
        if (socket_sendmsg($connection, $message, 0) !== 7) {
            throw new \RuntimeException('the descriptor could not be sent');
        }
        [$this->channel] = $pair;
        stream_set_blocking($this->channel, false);
        stream_set_read_buffer($this->channel, 0);
    }

    private function handleOwn(int $index, int $first, string $payload): void
    {
        if ($first !== (Frame::FIN | Frame::LANE)) {
            $this->received[$index][] = $first === (Frame::FIN | Frame::CLOSE) ? 'CLOSE' : $payload;
            return;
        }
        $kind = ord($payload[0]);
        $this->frames[] = "C$kind";
        switch ($kind) {
            case Lane::ASK:
                if ($this->offers && $this->channel === null) {
                    $this->offer($index);
                }
                break;
            case Lane::JOIN:
                [$key, $number] = Lane::numbersOf($payload);
                if ($key !== self::KEY || isset($this->clients[$number])) {
                    throw new \RuntimeException("JOIN with the key $key and the number $number");
                }
                $this->clients[$number] = $index;
                $this->joined[] = $number;
                break;
            case Lane::OWN:
                // The connection is read no further before the channel's OFF.
                if (--$this->offs[$index] < 0) {
                    $this->waiting[$index] = true;
                }
                break;
            default:
                throw new \RuntimeException("kind $kind on a connection");
        }
    }

    private function handleChannel(string $payload): void
    {
        $kind = ord($payload[0]);
        $this->frames[] = "H$kind";
        $numbers = $kind < Lane::MULTICAST ? Lane::numbersOf($payload) : [];
        switch ($kind) {
            case Lane::OFF:
                foreach ($numbers as $number) {
                    foreach ($this->groups as $group => $_) {
                        unset($this->groups[$group][$number]);
                    }
                    $index = $this->clients[$number];
                    $this->offs[$index]++;
                    unset($this->waiting[$index]);
                    $this->readConnection($index);
                }
                break;
            case Lane::ADD:
                $group = array_shift($numbers);
                foreach ($numbers as $number) {
                    $this->groups[$group][$number] = true;
                }
                break;
            case Lane::REMOVE:
                $group = array_shift($numbers);
                foreach ($numbers as $number) {
                    if (!isset($this->groups[$group][$number])) {
                        throw new \RuntimeException("REMOVE of $number, which is not in $group");
                    }
                    unset($this->groups[$group][$number]);
                }
                break;
            case Lane::MULTICAST:
                $head = unpack('Ngroup/ncount', $payload, 1);
                assert($head !== false);
                $excluded = Lane::numbersOf("\0" . substr($payload, 7, 4 * $head['count']));
                $this->deliver(
                    array_diff($this->members($head['group']), $excluded),
                    substr($payload, 7 + 4 * $head['count'])
                );
                break;
            case Lane::UNICAST:
                $this->deliver(Lane::numbersOf(substr($payload, 0, 5)), substr($payload, 5));
                break;
            default:
                throw new \RuntimeException("kind $kind on a channel");
        }
    }

    /**
     * @param array<int> $numbers
     */
    private function deliver(array $numbers, string $frame): void
    {
        $header = Frame::decodeHeader($frame, 0);
        if ($header === null || strlen($frame) !== $header[1] + $header[2]) {
            throw new \RuntimeException('not one whole frame');
        }
        foreach ($numbers as $number) {
            $this->received[$this->clients[$number]][] = substr($frame, $header[2]);
        }
    }

    /**
     * @return array{int, string}|null first byte and payload of the next frame
     */
    private function next(int $index): ?array
    {
        $header = Frame::decodeHeader($this->buffers[$index], 0);
        if ($header === null || strlen($this->buffers[$index]) < $header[1] + $header[2]) {
            return null;
        }
        $payload = substr($this->buffers[$index], $header[2], $header[1]);
        $this->buffers[$index] = substr($this->buffers[$index], $header[1] + $header[2]);
        return [$header[0], $payload];
    }
}
