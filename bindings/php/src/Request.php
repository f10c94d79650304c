<?php

declare(strict_types=1);

namespace apachews;

use apachews\Exception\WireError;
use apachews\Wire\Document;

/**
 * The HTTP request of a client, as Apache reports it (OPEN in docs/reference/wire.md).
 */
final class Request
{
    /** The path of the URI, decoded. */
    public readonly string $path;
    /**
     * The variables of the query, decoded; each may occur several times. Names are unchanged,
     * unlike in $_GET. The query is $rewrittenQuery, or else that of the URI.
     *
     * @var array<list<string>> values by name
     */
    public readonly array $query;
    /**
     * The cookies of the Cookie header (RFC 6265 5.4). Of several with the same name the first
     * counts: the one with the longest path.
     *
     * @var array<string> values by name
     */
    public readonly array $cookies;

    /**
     * @param string                      $id             unique name of the connection; stays the same
     *                                                    when it is resumed
     * @param string                      $uri            path and query as the client sent them, undecoded
     * @param bool                        $resumed        another producer had this client before
     * @param string                      $method         of the request line
     * @param list<array{string, string}> $headers        name (lower case) and value; text in ISO 8859-1
     * @param array{string, int}          $remote         address and port of the client; port 0: unknown
     * @param array{string, int}          $local          address and port of Apache
     * @param string                      $scheme         ws or wss
     * @param Tls|null                    $tls            how it is encrypted; null with ws
     * @param string|null                 $user           REMOTE_USER as Apache authenticated it
     * @param string                      $vhost          ServerName of the virtual host
     * @param list<string>                $offered        subprotocols that the client offered
     * @param string|null                 $subprotocol    the one that APACHEWS_SUBPROTOCOLS chose
     * @param array<string>               $env            variables that APACHEWS_PASS_ENV lists
     * @param bool                        $answerRequired the producer decides (APACHEWS_ACCEPT producer)
     * @param string|null                 $rewrittenQuery the query that Apache gave the request instead of
     *                                                    the URI's (RewriteRule), undecoded; null: none
     * @param string|null                 $bridge         id of the bridge process, if it opens channels for
     *                                                    groups; else null
     */
    public function __construct(
        public readonly string $id,
        public readonly string $uri,
        public readonly bool $resumed = false,
        public readonly string $method = 'GET',
        public readonly array $headers = [],
        public readonly array $remote = ['', 0],
        public readonly array $local = ['', 0],
        public readonly string $scheme = 'ws',
        public readonly ?Tls $tls = null,
        public readonly ?string $user = null,
        public readonly string $vhost = '',
        public readonly array $offered = [],
        public readonly ?string $subprotocol = null,
        public readonly array $env = [],
        public readonly bool $answerRequired = false,
        public readonly ?string $rewrittenQuery = null,
        public readonly ?string $bridge = null
    ) {
        $parts = explode('?', $uri, 2);
        $this->path = rawurldecode($parts[0]);
        $this->query = self::readQuery($rewrittenQuery ?? $parts[1] ?? '');
        $this->cookies = self::readCookies($this->header('cookie') ?? '');
    }

    /**
     * Returns the value of a request header, by its case-insensitive name, or null.
     */
    public function header(string $name): ?string
    {
        $name = strtolower($name);
        foreach ($this->headers as [$key, $value]) {
            if ($key === $name) {
                return $value;
            }
        }
        return null;
    }

    /**
     * Decodes the payload of an OPEN frame.
     *
     * @internal
     *
     * @throws WireError invalid JSON, another version, or a member that is missing or of the
     *                   wrong type
     */
    public static function decode(string $payload): self
    {
        $document = Document::decode($payload, 'OPEN');
        $request = $document->object('request');
        $subprotocols = $document->object('subprotocols');
        $tls = $document->has('tls') ? $document->object('tls') : null;
        $bridge = $document->has('bridge') ? $document->object('bridge') : null;
        return new self(
            id: $document->text('id'),
            uri: $request->text('uri'),
            resumed: $document->truth('resumed'),
            method: $request->text('method'),
            headers: $request->pairs('headers'),
            remote: $document->address('remote'),
            local: $document->address('local'),
            scheme: $document->text('scheme'),
            tls: $tls === null ? null : new Tls(
                $tls->text('version'),
                $tls->text('cipher'),
                $tls->optionalText('server_name'),
                $tls->optionalText('client_subject')
            ),
            user: $document->optionalText('user'),
            vhost: $document->text('vhost'),
            offered: $subprotocols->texts('offered'),
            subprotocol: $subprotocols->optionalText('chosen'),
            env: $document->map('env'),
            answerRequired: $document->truth('answer_required'),
            rewrittenQuery: $request->has('query') ? $request->text('query') : null,
            bridge: $bridge?->number('groups') === 1 ? $bridge->text('id') : null
        );
    }

    /**
     * @return array<list<string>>
     */
    private static function readQuery(string $text): array
    {
        $query = [];
        foreach (explode('&', $text) as $pair) {
            if ($pair !== '') {
                $parts = explode('=', $pair, 2);
                $query[urldecode($parts[0])][] = urldecode($parts[1] ?? '');
            }
        }
        return $query;
    }

    /**
     * @return array<string>
     */
    private static function readCookies(string $text): array
    {
        $cookies = [];
        foreach (explode(';', $text) as $pair) {
            $parts = explode('=', $pair, 2);
            if (count($parts) === 2) {
                $cookies[trim($parts[0])] ??= trim(trim($parts[1]), '"');
            }
        }
        return $cookies;
    }
}
