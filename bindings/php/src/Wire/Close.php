<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\InvalidArgument;
use apachews\Exception\WireError;

/**
 * A CLOSE frame (RFC 6455 5.5.1, 7.4); code 1005 means an empty payload.
 */
final class Close
{
    public const NORMAL = 1000;
    public const GOING_AWAY = 1001;
    public const PROTOCOL_ERROR = 1002;
    public const NO_CODE = 1005;
    public const ABNORMAL = 1006;
    public const INVALID_DATA = 1007;
    public const TOO_BIG = 1009;
    public const SERVICE_RESTART = 1012;
    public const TRY_AGAIN_LATER = 1013;

    /** Two bytes of the payload are the code. */
    public const MAX_REASON_BYTES = Frame::MAX_CONTROL_BYTES - 2;

    public function __construct(public readonly int $code, public readonly string $reason = '')
    {
    }

    /**
     * Returns the CLOSE frame.
     *
     * @throws InvalidArgument an invalid code, or a reason that is too long, not UTF-8, or
     *                         without a code
     */
    public function encode(): string
    {
        if ($this->code === self::NO_CODE) {
            if ($this->reason !== '') {
                throw new InvalidArgument('a CLOSE without a code cannot carry a reason');
            }
            return Frame::encode(Frame::CLOSE, '');
        }
        if (!self::isSendable($this->code)) {
            throw new InvalidArgument(
                "close code {$this->code} must not be sent: use 1000-1003, 1007-1014 or 3000-4999"
            );
        }
        $bytes = strlen($this->reason);
        if ($bytes > self::MAX_REASON_BYTES) {
            $most = self::MAX_REASON_BYTES;
            throw new InvalidArgument("the close reason has $bytes bytes in UTF-8; the limit is $most");
        }
        if (!Utf8::isValid($this->reason)) {
            throw new InvalidArgument('the close reason is not UTF-8');
        }
        return Frame::encode(Frame::CLOSE, pack('n', $this->code) . $this->reason);
    }

    /**
     * Decodes the payload of a CLOSE frame.
     *
     * @throws WireError with the close code to answer with
     */
    public static function decode(string $payload): self
    {
        if ($payload === '') {
            return new self(self::NO_CODE);
        }
        if (strlen($payload) === 1) {
            throw new WireError('CLOSE payload is 1 byte; it must be empty or at least 2');
        }
        $code = ord($payload[0]) << 8 | ord($payload[1]);
        if (!self::isSendable($code)) {
            throw new WireError("close code $code must not be sent");
        }
        $reason = substr($payload, 2);
        if (!Utf8::isValid($reason)) {
            throw new WireError('the reason of a CLOSE is not UTF-8', self::INVALID_DATA);
        }
        return new self($code, $reason);
    }

    /**
     * Returns whether a CLOSE frame can carry the code (RFC 6455 7.4).
     */
    private static function isSendable(int $code): bool
    {
        return ($code >= 1000 && $code <= 1003)
            || ($code >= 1007 && $code <= 1014)
            || ($code >= 3000 && $code <= 4999);
    }
}
