<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\InvalidArgument;
use apachews\Exception\WireError;

/**
 * PUBLISH, the first frame of a publisher: a program, not a bridge, with messages for clients.
 */
final class Publish
{
    /**
     * @param string|null $group the receivers; null: all clients
     */
    public function __construct(public readonly ?string $group)
    {
    }

    /**
     * Returns the PUBLISH frame.
     *
     * @throws InvalidArgument the group's name is not UTF-8
     */
    public function encode(): string
    {
        $payload = json_encode(['version' => Frame::VERSION, 'group' => $this->group]);
        if ($payload === false) {
            throw new InvalidArgument('the group name is not UTF-8');
        }
        return Frame::encode(Frame::PUBLISH, $payload);
    }

    /**
     * Decodes the payload of a PUBLISH frame.
     *
     * @throws WireError invalid JSON, another version, or a group that is not a string
     */
    public static function decode(string $payload): self
    {
        $document = Document::decode($payload, 'PUBLISH');
        return new self($document->has('group') ? $document->text('group') : null);
    }
}
