<?php

declare(strict_types=1);

namespace apachews\Wire;

use apachews\Exception\InvalidArgument;

/**
 * The producer's answer to OPEN, with APACHEWS_ACCEPT producer.
 *
 * Immutable and valid. Sources: docs/reference/wire.md; RFC 9110 5.1, 5.5 (field
 * names and values), 15 (status); RFC 6455 4.2.2 (subprotocol).
 */
final class Answer
{
    /** A sensible limit for an HTTP response; httpd itself has none. */
    public const MAX_BYTES = 64 * 1024;

    private const TOKEN = "/\\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\\z/";
    /** Visible ASCII, inner blanks, and obs-text (ISO 8859-1, as in OPEN). */
    private const VALUE = '/\A(?:[!-~\x{80}-\x{ff}](?:[ \t!-~\x{80}-\x{ff}]*[!-~\x{80}-\x{ff}])?)?\z/u';
    /** Headers that the handshake or httpd sets. */
    private const RESERVED = [
        'connection', 'content-length', 'date', 'keep-alive', 'server', 'te', 'trailer',
        'transfer-encoding', 'upgrade',
    ];

    /**
     * @param list<array{string, string}> $headers
     */
    private function __construct(
        public readonly bool $accepts,
        private readonly ?string $subprotocol,
        private readonly int $status,
        private readonly array $headers,
        private readonly string $body
    ) {
    }

    /**
     * Returns an answer that accepts the client.
     *
     * @param array<array-key, string|list<string>> $headers values by name
     *
     * @throws InvalidArgument an invalid value; the message says which
     */
    public static function accept(?string $subprotocol, array $headers): self
    {
        if ($subprotocol !== null && preg_match(self::TOKEN, $subprotocol) !== 1) {
            throw new InvalidArgument('invalid subprotocol ' . self::quote($subprotocol) . ': it must be a token');
        }
        return new self(true, $subprotocol, 0, self::check($headers), '');
    }

    /**
     * Returns an answer that rejects the client.
     *
     * @param array<array-key, string|list<string>> $headers values by name
     *
     * @throws InvalidArgument an invalid value; the message says which
     */
    public static function reject(int $status, string $body, array $headers): self
    {
        if ($status < 300 || $status > 599) {
            throw new InvalidArgument("status $status cannot reject: use 300 to 599");
        }
        if (!Utf8::isValid($body)) {
            throw new InvalidArgument('the body is not UTF-8');
        }
        return new self(false, null, $status, self::check($headers), $body);
    }

    /**
     * Returns the ANSWER frame.
     *
     * @throws InvalidArgument the answer is too large
     */
    public function encode(): string
    {
        $document = ['accept' => $this->accepts, 'headers' => $this->headers];
        $document += $this->accepts
            ? ['subprotocol' => $this->subprotocol]
            : ['status' => $this->status, 'body' => $this->body];
        $payload = json_encode($document, JSON_THROW_ON_ERROR);
        if (strlen($payload) > self::MAX_BYTES) {
            throw new InvalidArgument(
                'the answer has ' . strlen($payload) . ' bytes; the limit is ' . self::MAX_BYTES
            );
        }
        return Frame::encode(Frame::ANSWER, $payload);
    }

    /**
     * @param array<array-key, string|list<string>> $headers
     *
     * @return list<array{string, string}>
     */
    private static function check(array $headers): array
    {
        $pairs = [];
        foreach ($headers as $name => $values) {
            $name = (string) $name;
            $lower = strtolower($name);
            foreach ((array) $values as $value) {
                if (preg_match(self::TOKEN, $name) !== 1 || preg_match(self::VALUE, $value) !== 1) {
                    $header = self::quote($name) . ': ' . self::quote($value);
                    throw new InvalidArgument("invalid header $header");
                }
                if (in_array($lower, self::RESERVED, true) || str_starts_with($lower, 'sec-websocket-')) {
                    throw new InvalidArgument("the producer cannot set the header $name");
                }
                $pairs[] = [$name, $value];
            }
        }
        return $pairs;
    }

    private static function quote(string $text): string
    {
        return (string) json_encode(substr($text, 0, 80), JSON_INVALID_UTF8_SUBSTITUTE);
    }
}
