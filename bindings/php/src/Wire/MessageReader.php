<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\WireError;
use apachews\Request;

/**
 * Joins the frames of the wire to messages: the sans-I/O core of the library.
 *
 * receive() takes bytes as they came from the Unix socket, cut anywhere, and returns what
 * they completed, in order. It never throws for bad input: the last item is then a
 * Violation, and whatever comes after is ignored.
 *
 * How this works: a frame's payload is taken as it comes, into one string, so that a
 * message takes the memory of its bytes however small the pieces are it was cut into.
 * Only headers, control frames and OPEN wait in $rest until they are whole; each has a
 * bound.
 *
 * Sources: docs/reference/wire.md; RFC 6455 5.4 (fragmentation), 5.5 (control frames).
 *
 * @phpstan-type Item Message|Request|Publish|Close|Pong|Moved|Violation
 */
final class MessageReader
{
    /**
     * What a producer takes as one message unless it says otherwise. Apache's side has its
     * own, smaller limit (APACHEWS_MAX_MESSAGE, 1 MiB), which comes first; this one bounds
     * the memory should somebody else talk to the socket.
     */
    public const DEFAULT_MAX_MESSAGE_BYTES = 16 * 1024 * 1024;

    /** The beginning of a header, a control frame or OPEN. */
    private string $rest = '';
    /** How long it must be before it is worth another look. */
    private int $wanted = 0;
    /** What the last receive() left because of its limit, and how far it came in that. */
    private string $unread = '';
    private int $position = 0;
    /** Bytes of the current data frame still to come. */
    private int $remaining = 0;
    /** Whether that frame ends its message. */
    private bool $frameFin = false;
    /** TEXT or BINARY inside a message, else 0. */
    private int $messageOpcode = 0;
    private int $messageBytes = 0;
    private string $payload = '';
    private bool $opened = false;
    /** After a CLOSE, a MOVE or a violation. */
    private bool $finished = false;
    /** @var array<int, true> opcodes of frames that were left out and nobody has heard of */
    private array $ignored = [];

    public function __construct(private readonly int $maxMessageBytes = self::DEFAULT_MAX_MESSAGE_BYTES)
    {
    }

    /**
     * Tells whether it is between messages: an end of file here cuts nothing off.
     */
    public function isIdle(): bool
    {
        return $this->rest === '' && $this->unread === '' && $this->remaining === 0 && $this->messageOpcode === 0;
    }

    /**
     * Tells whether receive() has left bytes, because there were more frames than it was to take.
     */
    public function hasUnread(): bool
    {
        return $this->unread !== '';
    }

    /**
     * Returns the opcodes of frames that were left out since the last call, for the log.
     *
     * @return list<int>
     */
    public function takeIgnored(): array
    {
        $ignored = array_keys($this->ignored);
        $this->ignored = [];
        return $ignored;
    }

    /**
     * Takes bytes from the socket; returns what they completed, in order.
     *
     * @param int $maxFrames frames to take; what is left is taken by the next receive(), whose
     *                       $data may be ''
     *
     * @return list<Item>
     */
    public function receive(string $data, int $maxFrames = PHP_INT_MAX): array
    {
        $items = [];
        if ($this->finished) {
            return $items;
        }
        try {
            $this->take($data, $maxFrames, $items);
        } catch (WireError $error) {
            $this->finish();
            $items[] = new Violation($error->closeCode, $error->reason);
        }
        return $items;
    }

    /**
     * @param list<Item> $items
     */
    private function take(string $data, int $maxFrames, array &$items): void
    {
        $position = $this->position;
        if ($this->unread !== '') {
            $data = $this->unread . $data;
            $this->unread = '';
            $this->position = 0;
        } elseif ($this->rest !== '') {
            // (Appended: joining anew with each piece would take the square of the pieces.)
            $this->rest .= $data;
            if (strlen($this->rest) < $this->wanted) {
                return;
            }
            $data = $this->rest;
            $this->rest = '';
            $this->wanted = 0;
        }
        $end = strlen($data);
        while ($position < $end) {
            if ($this->remaining > 0) {
                $chunk = substr($data, $position, $this->remaining);
                $position += strlen($chunk);
                $this->remaining -= strlen($chunk);
                $this->payload .= $chunk;
                if ($this->remaining === 0 && $this->frameFin) {
                    $items[] = $this->join();
                }
                continue;
            }
            if ($maxFrames-- === 0) {
                $this->unread = $data;
                $this->position = $position;
                return;
            }
            $header = Frame::decodeHeader($data, $position);
            if ($header === null) {
                $this->rest = substr($data, $position);
                return;
            }
            [$first, $length, $start] = $header;
            if (($first & Frame::RSV) !== 0) {
                throw new WireError('an RSV bit is set; the wire knows no extension');
            }
            if (($first & Frame::OPCODE) > Frame::BINARY) {
                if (!$this->takeWholeFrame($data, $first, $start, $length, $items)) {
                    $this->rest = substr($data, $position);
                    $this->wanted = $start + $length - $position;
                    return;
                }
                if ($this->finished) {
                    return;
                }
                $position = $start + $length;
                continue;
            }
            $this->beginDataFrame($first, $length);
            if ($length === 0 && $this->frameFin) {
                $items[] = $this->join();
            }
            $position = $start;
        }
    }

    private function beginDataFrame(int $first, int $length): void
    {
        if (!$this->opened) {
            throw new WireError('the first frame is not OPEN');
        }
        $opcode = $first & Frame::OPCODE;
        if ($opcode === Frame::CONTINUATION) {
            if ($this->messageOpcode === 0) {
                throw new WireError('a CONTINUATION without a message to continue');
            }
        } elseif ($this->messageOpcode !== 0) {
            throw new WireError('a new message inside a fragmented one');
        } else {
            $this->messageOpcode = $opcode;
        }
        // (Not the sum: it could be more than an integer holds.)
        if ($length > $this->maxMessageBytes - $this->messageBytes) {
            throw new WireError("a message of more than {$this->maxMessageBytes} bytes", Close::TOO_BIG);
        }
        $this->messageBytes += $length;
        $this->remaining = $length;
        $this->frameFin = $first >= Frame::FIN;
    }

    /**
     * Takes OPEN, a control frame or a reserved frame; false until it is whole.
     *
     * @param list<Item> $items
     */
    private function takeWholeFrame(string $data, int $first, int $start, int $length, array &$items): bool
    {
        $opcode = $first & Frame::OPCODE;
        $limit = $opcode < Frame::CLOSE ? Frame::MAX_OPEN_BYTES : Frame::MAX_CONTROL_BYTES;
        if ($length > $limit) {
            throw new WireError(sprintf('a frame of opcode 0x%x has more than %d bytes', $opcode, $limit));
        }
        if ($first < Frame::FIN) {
            throw new WireError(sprintf('a frame of opcode 0x%x is fragmented', $opcode));
        }
        if ($start + $length > strlen($data)) {
            return false;
        }
        $payload = substr($data, $start, $length);
        if (!$this->opened) {
            $this->opened = true;
            $items[] = match ($opcode) {
                Frame::OPEN => Request::decode($payload),
                Frame::PUBLISH => Publish::decode($payload),
                default => throw new WireError('the first frame is not OPEN'),
            };
        } elseif ($opcode === Frame::OPEN) {
            throw new WireError('a second OPEN');
        } elseif ($opcode === Frame::CLOSE) {
            $items[] = Close::decode($payload);
            $this->finish();
        } elseif ($opcode === Frame::MOVE) {
            if ($this->messageOpcode !== 0) {
                throw new WireError('a MOVE inside a message');
            }
            $items[] = new Moved();
            $this->finish();
        } elseif ($opcode === Frame::PONG) {
            $items[] = new Pong($payload);
        } else {
            // PING and ANSWER do not occur in this direction, and the other opcodes are
            // reserved: left out, so that the wire can grow (docs/reference/wire.md).
            $this->ignored[$opcode] = true;
        }
        return true;
    }

    private function join(): Message
    {
        $message = new Message($this->payload, $this->messageOpcode === Frame::BINARY);
        $this->payload = '';
        $this->messageOpcode = $this->messageBytes = 0;
        if (!$message->isBinary && !Utf8::isValid($message->data)) {
            throw new WireError('a text message is not UTF-8', Close::INVALID_DATA);
        }
        return $message;
    }

    private function finish(): void
    {
        $this->finished = true;
        $this->rest = $this->unread = $this->payload = '';
        $this->position = $this->remaining = $this->messageOpcode = 0;
    }
}
