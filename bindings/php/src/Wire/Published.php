<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\WireError;

/**
 * The producer's answer to each message of a publisher.
 */
final class Published
{
    /**
     * @param int         $reached as in Delivery
     * @param int         $skipped as in Delivery
     * @param bool        $relayed as in Delivery
     * @param string|null $error   why the message was refused; null: it was not
     */
    public function __construct(
        public readonly int $reached,
        public readonly int $skipped,
        public readonly bool $relayed = false,
        public readonly ?string $error = null
    ) {
    }

    /**
     * Returns the PUBLISH frame.
     */
    public function encode(): string
    {
        return Frame::encode(
            Frame::PUBLISH,
            sprintf(
                '{"version":%d,"reached":%d,"skipped":%d}',
                Frame::VERSION,
                $this->reached,
                $this->skipped
            )
        );
    }

    /**
     * Decodes the payload of a PUBLISH frame.
     *
     * @throws WireError invalid JSON, another version, or missing numbers
     */
    public static function decode(string $payload): self
    {
        $document = Document::decode($payload, 'PUBLISH');
        return new self(
            $document->number('reached'),
            $document->number('skipped'),
            $document->has('relayed') && $document->truth('relayed'),
            $document->has('error') ? $document->text('error') : null
        );
    }
}
