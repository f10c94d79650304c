<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\InvalidArgument;
use apachews\Exception\WireError;

/**
 * What a CLOSE frame says (RFC 6455 5.5.1, 7.4); code 1005 stands for an empty one.
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

    /** Two bytes of a control frame are the code. */
    public const MAX_REASON_BYTES = Frame::MAX_CONTROL_BYTES - 2;

    public function __construct(public readonly int $code, public readonly string $reason = '')
    {
    }

    /**
     * Returns the CLOSE frame.
     *
     * @throws InvalidArgument a code that may not be sent, or a reason that is too long,
     *                         not UTF-8, or without a code
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
                "close code {$this->code} may not be sent: use 1000-1003, 1007-1014 or 3000-4999"
            );
        }
        $bytes = strlen($this->reason);
        if ($bytes > self::MAX_REASON_BYTES) {
            $most = self::MAX_REASON_BYTES;
            throw new InvalidArgument("the close reason has $bytes bytes in UTF-8; at most $most fit");
        }
        if (!Utf8::isValid($this->reason)) {
            throw new InvalidArgument('the close reason is not UTF-8');
        }
        return Frame::encode(Frame::CLOSE, pack('n', $this->code) . $this->reason);
    }

    /**
     * Reads the payload of a CLOSE frame.
     *
     * @throws WireError its code is the close code that answers the fault
     */
    public static function decode(string $payload): self
    {
        if ($payload === '') {
            return new self(self::NO_CODE);
        }
        if (strlen($payload) === 1) {
            throw new WireError('the payload of a CLOSE has one byte; it needs none or two and more');
        }
        $code = ord($payload[0]) << 8 | ord($payload[1]);
        if (!self::isSendable($code)) {
            throw new WireError("close code $code may not be sent");
        }
        $reason = substr($payload, 2);
        if (!Utf8::isValid($reason)) {
            throw new WireError('the reason of a CLOSE is not UTF-8', self::INVALID_DATA);
        }
        return new self($code, $reason);
    }

    /**
     * Tells whether a CLOSE frame may carry the code (RFC 6455 7.4).
     */
    private static function isSendable(int $code): bool
    {
        return ($code >= 1000 && $code <= 1003)
            || ($code >= 1007 && $code <= 1014)
            || ($code >= 3000 && $code <= 4999);
    }
}
