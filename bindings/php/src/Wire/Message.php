<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\InvalidArgument;

/**
 * One message: text, which is UTF-8, or binary.
 */
final class Message
{
    public function __construct(public readonly string $data, public readonly bool $isBinary)
    {
    }

    /**
     * Returns a message with data of a program.
     *
     * @param bool|null $binary null: text if data is UTF-8, else binary
     *
     * @throws InvalidArgument text that is not UTF-8
     */
    public static function of(string $data, ?bool $binary): self
    {
        if ($binary === null) {
            $binary = !Utf8::isValid($data);
        } elseif (!$binary && !Utf8::isValid($data)) {
            throw new InvalidArgument('text message is not UTF-8; send it with binary: true');
        }
        return new self($data, $binary);
    }

    /**
     * Returns its frame.
     */
    public function encode(): string
    {
        return Frame::encode($this->isBinary ? Frame::BINARY : Frame::TEXT, $this->data);
    }
}
