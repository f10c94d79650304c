<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\WireError;

/**
 * The frames of the wire: RFC 6455 5.2, never masked, RSV bits zero.
 *
 * docs/reference/wire.md is the specification. Pure functions and constants.
 */
final class Frame
{
    public const VERSION = 1;

    public const CONTINUATION = 0x0;
    public const TEXT = 0x1;
    public const BINARY = 0x2;
    public const OPEN = 0x3;
    public const ANSWER = 0x4;
    public const MOVE = 0x5;
    public const PUBLISH = 0x6;
    public const LANE = 0x7;
    public const CLOSE = 0x8;
    public const PING = 0x9;
    public const PONG = 0xA;

    public const FIN = 0x80;
    public const RSV = 0x70;
    public const OPCODE = 0x0F;

    /** RFC 6455 5.5: the longest payload of a control frame. */
    public const MAX_CONTROL_BYTES = 125;
    /** OPEN has the request head as JSON; the limit bounds the memory for any peer. */
    public const MAX_OPEN_BYTES = 8 * 1024 * 1024;

    /**
     * Returns the 2, 4 or 10 bytes before an unmasked payload.
     *
     * @param int $first the first byte: FIN bit and opcode
     */
    public static function encodeHeader(int $first, int $length): string
    {
        if ($length < 126) {
            return chr($first) . chr($length);
        }
        return $length < 65536 ? pack('CCn', $first, 126, $length) : pack('CCJ', $first, 127, $length);
    }

    /**
     * Returns one whole unmasked frame.
     */
    public static function encode(int $opcode, string $payload, bool $fin = true): string
    {
        return self::encodeHeader($fin ? self::FIN | $opcode : $opcode, strlen($payload)) . $payload;
    }

    /**
     * Decodes the frame header at an offset.
     *
     * @return array{int, int, int}|null first byte, payload length, offset of the payload;
     *                                   null: the header is incomplete
     *
     * @throws WireError a masked frame, or a length that is not in its shortest form or
     *                   over 2**63 - 1 (RFC 6455 5.2)
     */
    public static function decodeHeader(string $data, int $start): ?array
    {
        $available = strlen($data) - $start;
        if ($available < 2) {
            return null;
        }
        $first = ord($data[$start]);
        $length = ord($data[$start + 1]);
        if ($length < 126) {
            return [$first, $length, $start + 2];
        }
        if ($length >= 0x80) {
            throw new WireError('masked frame: frames on the wire are never masked');
        }
        if ($length === 126) {
            if ($available < 4) {
                return null;
            }
            $length = ord($data[$start + 2]) << 8 | ord($data[$start + 3]);
            if ($length < 126) {
                throw new WireError('a frame length is not in its shortest form');
            }
            return [$first, $length, $start + 4];
        }
        if ($available < 10) {
            return null;
        }
        $length = 0;
        for ($at = $start + 2; $at < $start + 10; $at++) {
            $length = $length << 8 | ord($data[$at]);
        }
        if ($length < 0) {
            throw new WireError('a frame length exceeds 2**63 - 1');
        }
        if ($length < 65536) {
            throw new WireError('a frame length is not in its shortest form');
        }
        return [$first, $length, $start + 10];
    }
}
