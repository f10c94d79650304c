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
 * @phpstan-type Item Message|Request|Publish|Close|Pong|Moved|Lane|Violation
 */
final class MessageReader
{
    /**
     * The default limit of a message. Apache's side has a smaller limit
     * (APACHEWS_MAX_MESSAGE, 1 MiB); this one bounds the memory for peers other than Apache.
     */
    public const DEFAULT_MAX_MESSAGE_BYTES = 16 * 1024 * 1024;

    /** The start of an incomplete header, control frame or OPEN. */
    private string $rest = '';
    /** The length that $rest needs before another attempt to decode it. */
    private int $wanted = 0;
    /** Bytes that the last receive() left because of its limit, and the position in them. */
    private string $unread = '';
    private int $position = 0;
    /** Missing bytes of the current data frame. */
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
    /** @var array<int, true> opcodes of ignored frames, since the last popIgnored() */
    private array $ignored = [];

    public function __construct(private readonly int $maxMessageBytes = self::DEFAULT_MAX_MESSAGE_BYTES)
    {
    }

    /**
     * Returns whether the reader is between messages: an end of file here is not an error.
     */
    public function isIdle(): bool
    {
        return $this->rest === '' && $this->unread === '' && $this->remaining === 0 && $this->messageOpcode === 0;
    }

    /**
     * Returns whether receive() left bytes because of its limit of frames.
     */
    public function hasUnread(): bool
    {
        return $this->unread !== '';
    }

    /**
     * Returns the opcodes of frames that were ignored since the last call, for the log.
     *
     * @return list<int>
     */
    public function popIgnored(): array
    {
        $ignored = array_keys($this->ignored);
        $this->ignored = [];
        return $ignored;
    }

    /**
     * Processes bytes of the socket; returns the completed items, in order.
     *
     * @param int $maxFrames the limit of frames; the next receive(), whose $data may be '',
     *                       continues with the rest
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
            $this->read($data, $maxFrames, $items);
        } catch (WireError $error) {
            $this->finish();
            $items[] = new Violation($error->closeCode, $error->reason);
        }
        return $items;
    }

    /**
     * @param list<Item> $items
     */
    private function read(string $data, int $maxFrames, array &$items): void
    {
        $position = $this->position;
        if ($this->unread !== '') {
            $data = $this->unread . $data;
            $this->unread = '';
            $this->position = 0;
        } elseif ($this->rest !== '') {
            // Appended in place: concatenating to a new string would take quadratic time.
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
                throw new WireError('reserved bit set; the wire has no extensions');
            }
            if (($first & Frame::OPCODE) > Frame::BINARY) {
                if (!$this->readWholeFrame($data, $first, $start, $length, $items)) {
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
            $this->startDataFrame($first, $length);
            if ($length === 0 && $this->frameFin) {
                $items[] = $this->join();
            }
            $position = $start;
        }
    }

    private function startDataFrame(int $first, int $length): void
    {
        if (!$this->opened) {
            throw new WireError('the first frame is not OPEN');
        }
        $opcode = $first & Frame::OPCODE;
        if ($opcode === Frame::CONTINUATION) {
            if ($this->messageOpcode === 0) {
                throw new WireError('CONTINUATION frame without a message to continue');
            }
        } elseif ($this->messageOpcode !== 0) {
            throw new WireError('new message inside a fragmented message');
        } else {
            $this->messageOpcode = $opcode;
        }
        // Not by the sum, which could overflow.
        if ($length > $this->maxMessageBytes - $this->messageBytes) {
            throw new WireError("message has more than {$this->maxMessageBytes} bytes", Close::TOO_BIG);
        }
        $this->messageBytes += $length;
        $this->remaining = $length;
        $this->frameFin = $first >= Frame::FIN;
    }

    /**
     * Processes OPEN, a control frame or a reserved frame; false if it is incomplete.
     *
     * @param list<Item> $items
     */
    private function readWholeFrame(string $data, int $first, int $start, int $length, array &$items): bool
    {
        $opcode = $first & Frame::OPCODE;
        $limit = $opcode < Frame::CLOSE ? Frame::MAX_OPEN_BYTES : Frame::MAX_CONTROL_BYTES;
        if ($length > $limit) {
            throw new WireError(sprintf('frame of opcode 0x%x has more than %d bytes', $opcode, $limit));
        }
        if ($first < Frame::FIN) {
            throw new WireError(sprintf('frame of opcode 0x%x is fragmented', $opcode));
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
            throw new WireError('second OPEN frame');
        } elseif ($opcode === Frame::CLOSE) {
            $items[] = Close::decode($payload);
            $this->finish();
        } elseif ($opcode === Frame::MOVE) {
            if ($this->messageOpcode !== 0) {
                throw new WireError('MOVE frame inside a message');
            }
            $items[] = new Moved();
            $this->finish();
        } elseif ($opcode === Frame::PONG) {
            $items[] = new Pong($payload);
        } elseif ($opcode === Frame::LANE && ($lane = Lane::decode($payload)) !== null) {
            $items[] = $lane;
        } else {
            // PING and ANSWER do not occur in this direction, and the other opcodes are
            // reserved. They are ignored, so that the wire can be extended (docs/reference/wire.md).
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
            throw new WireError('text message is not UTF-8', Close::INVALID_DATA);
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
