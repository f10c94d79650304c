<?php

declare(strict_types=1);

namespace apachews\Wire;

/**
 * The LANE frames of docs/reference/wire.md, "Groups at the edge".
 *
 * Static functions encode the frames of a producer. An object is a LANE frame of a bridge on a
 * client's own connection: OFFER or BRIDGE. (ChannelReader reads those of a channel.)
 *
 * A frame has one byte for its kind, and then numbers of four bytes, big-endian.
 *
 * @internal
 */
final class Lane
{
    /** On a client's connection, from the producer. */
    public const ASK = 1;
    public const JOIN = 2;
    public const OWN = 3;
    /** On a client's connection, from the bridge. */
    public const OFFER = 4;
    public const BRIDGE = 5;
    /** On a channel, from the bridge. */
    public const READY = 6;
    public const SLOW = 7;
    /** On a channel, from the producer. */
    public const OFF = 8;
    public const ADD = 9;
    public const REMOVE = 10;
    public const MULTICAST = 11;
    public const UNICAST = 12;

    /** The number of the group of all clients on a channel. */
    public const ALL = 0;
    /** The longest frame for a client on a channel: 64 KiB and its header. */
    public const MAX_FRAME_BYTES = 65536 + 10;
    /** The largest number of clients that one frame names. */
    public const MAX_NUMBERS = 4096;
    public const MAX_NUMBER = 0xFFFFFFFF;

    private const FIRST = Frame::FIN | Frame::LANE;

    /**
     * @param int    $kind   OFFER or BRIDGE
     * @param int    $key    of OFFER: the channel's
     * @param string $bridge of BRIDGE: the id of the bridge process that has the client now
     */
    private function __construct(
        public readonly int $kind,
        public readonly int $key = 0,
        public readonly string $bridge = ''
    ) {
    }

    /**
     * Decodes the payload of a LANE frame on a client's connection; null for an unknown kind.
     */
    public static function decode(string $payload): ?self
    {
        $kind = $payload === '' ? 0 : ord($payload[0]);
        if ($kind === self::OFFER && strlen($payload) === 5) {
            return new self($kind, key: self::numbersOf($payload)[0]);
        }
        $bridge = substr($payload, 1);
        if ($kind === self::BRIDGE && strlen($payload) <= Frame::MAX_CONTROL_BYTES && Utf8::isValid($bridge)) {
            return new self($kind, bridge: $bridge);
        }
        return null;
    }

    /**
     * Returns ASK or OWN.
     */
    public static function encode(int $kind): string
    {
        return Frame::encode(Frame::LANE, chr($kind));
    }

    /**
     * Returns a JOIN: the client asks for the channel of this key, under this number.
     */
    public static function join(int $key, int $number): string
    {
        return pack('CCCNN', self::FIRST, 9, self::JOIN, $key, $number);
    }

    /**
     * Returns OFF or, with a group, ADD or REMOVE; several frames for many clients.
     *
     * @param list<int> $numbers
     */
    public static function numbers(int $kind, array $numbers, ?int $group = null): string
    {
        $prefix = chr($kind) . ($group === null ? '' : pack('N', $group));
        $frames = '';
        foreach (array_chunk($numbers, self::MAX_NUMBERS) as $some) {
            $frames .= Frame::encode(Frame::LANE, $prefix . pack('N*', ...$some));
        }
        return $frames;
    }

    /**
     * Returns a MULTICAST.
     *
     * @param list<int> $excluded at most MAX_NUMBERS
     * @param string    $frame    of at most MAX_FRAME_BYTES
     */
    public static function multicast(int $group, array $excluded, string $frame): string
    {
        $head = pack('CNnN*', self::MULTICAST, $group, count($excluded), ...$excluded);
        return Frame::encodeHeader(self::FIRST, strlen($head) + strlen($frame)) . $head . $frame;
    }

    /**
     * Returns a UNICAST.
     *
     * @param string $frame of at most MAX_FRAME_BYTES
     */
    public static function unicast(int $number, string $frame): string
    {
        return Frame::encodeHeader(self::FIRST, 5 + strlen($frame)) . pack('CN', self::UNICAST, $number) . $frame;
    }

    /**
     * Returns the numbers after the kind of a payload.
     *
     * @return list<int>
     */
    public static function numbersOf(string $payload): array
    {
        $numbers = strlen($payload) > 1 ? unpack('N*', $payload, 1) : [];
        return $numbers === false ? [] : array_values($numbers);
    }
}
