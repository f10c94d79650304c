<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\InvalidArgument;
use apachews\Exception\WireError;

/**
 * What a program that is no bridge says in its first frame: it has messages for clients.
 */
final class Publish
{
    /**
     * @param string|null $group for whom; null: for all clients
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
            throw new InvalidArgument('the name of the group is not UTF-8');
        }
        return Frame::encode(Frame::PUBLISH, $payload);
    }

    /**
     * Reads the payload of a PUBLISH frame.
     *
     * @throws WireError no JSON object, another version, or a group that is no text
     */
    public static function decode(string $payload): self
    {
        $document = Document::decode($payload, 'PUBLISH');
        return new self($document->has('group') ? $document->text('group') : null);
    }
}
