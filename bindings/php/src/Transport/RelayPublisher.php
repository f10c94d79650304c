<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Delivery;
use apachews\Exception\InvalidArgument;
use apachews\Exception\ServerException;
use apachews\Wire\Message;

/**
 * apachews\publish() through a relay: a Redis or Valkey that producers share.
 *
 * Uses phpredis (the extension "redis") or Predis, whichever is there. The format is in
 * docs/reference/wire.md, "The relay".
 *
 * @internal
 */
final class RelayPublisher
{
    /** The longest message: producers refuse longer ones as well. */
    private const MAX_BYTES = 1048576;
    private const DEFAULT_PORT = 6379;
    /** Of a program that only publishes: 16 zero bytes. */
    private const ORIGIN = "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    /**
     * Tells whether it is the address of a relay, and not the path of a socket file.
     */
    public static function isAddress(string $path): bool
    {
        return str_contains($path, '://');
    }

    /**
     * Publishes a message on the channel of a relay.
     *
     * @throws ServerException the address is invalid, or the relay cannot be reached
     * @throws InvalidArgument the message is too long
     */
    public static function publish(string $url, Message $message, ?string $group, float $timeout): Delivery
    {
        if (strlen($message->data) > self::MAX_BYTES) {
            throw new InvalidArgument(sprintf(
                'the message has %d bytes, the relay carries %d',
                strlen($message->data),
                self::MAX_BYTES
            ));
        }
        // parse_url() needs a host, which the address of a socket does not have.
        $parts = parse_url((string) preg_replace('~^(unix://([^/@]*@)?)/~', '$1localhost/', $url)) ?: [];
        $scheme = $parts['scheme'] ?? '';
        $shown = self::withoutPassword($url);
        if (!in_array($scheme, ['redis', 'rediss', 'unix'], true)) {
            throw new ServerException(
                $shown,
                'unknown scheme',
                'use redis://, rediss:// or unix://; for others there is "apachews publish --relay"'
            );
        }
        parse_str($parts['query'] ?? '', $query);
        $name = $query['name'] ?? '';
        if (!is_string($name) || $name === '') {
            throw new ServerException($shown, 'no name of a relay', 'add ?name=chat.ws');
        }
        $isSocket = $scheme === 'unix';
        $parts['database'] = (int) ($isSocket ? ($query['db'] ?? 0) : trim($parts['path'] ?? '', '/'));
        $channel = 'apachews:' . rawurlencode($name) . ($group === null ? '' : ":$group");
        $data = '1' . ($message->isBinary ? 'b' : 't') . self::ORIGIN . $message->data;
        try {
            $received = match (true) {
                class_exists(\Redis::class) => self::byPhpredis($parts, $channel, $data, $timeout),
                class_exists(\Predis\Client::class) => self::byPredis($parts, $channel, $data, $timeout),
                default => throw new ServerException(
                    $shown,
                    'PHP has no library for Redis',
                    'install phpredis (Debian: php-redis) or Predis (composer require predis/predis)'
                ),
            };
        } catch (\RedisException | \Predis\PredisException $error) {
            throw new ServerException($shown, $error->getMessage(), 'check that the relay runs');
        }
        return new Delivery(0, 0, $received > 0);
    }

    /**
     * @param array<string, int|string> $parts of the address
     */
    private static function byPhpredis(array $parts, string $channel, string $data, float $timeout): int
    {
        $redis = new \Redis();
        [$host, $port] = self::endOf($parts);
        // Its warnings repeat the exception.
        Warnings::withheld(static fn (): bool => $redis->connect($host, $port, $timeout, null, 0, $timeout));
        if (isset($parts['pass'])) {
            $password = rawurldecode((string) $parts['pass']);
            $user = rawurldecode((string) ($parts['user'] ?? ''));
            $redis->auth($user === '' ? $password : [$user, $password]);
        }
        $redis->select((int) $parts['database']);
        $run = static function (string ...$command) use ($redis): mixed {
            $redis->clearLastError();
            $answer = $redis->rawCommand(...$command);
            return self::requireAnswer($answer, $redis->getLastError());
        };
        $received = self::publishOrStore($run, $channel, $data);
        $redis->close();
        return (int) $received;
    }

    /**
     * @param array<string, int|string> $parts of the address
     */
    private static function byPredis(array $parts, string $channel, string $data, float $timeout): int
    {
        [$host, $port] = self::endOf($parts);
        $parameters = $port === 0
            ? ['scheme' => 'unix', 'path' => $host]
            : [
                'scheme' => $parts['scheme'] === 'rediss' ? 'tls' : 'tcp',
                'host' => str_replace('tls://', '', $host),
                'port' => $port,
            ];
        if (isset($parts['pass'])) {
            $parameters['password'] = rawurldecode((string) $parts['pass']);
            if (($parts['user'] ?? '') !== '') {
                $parameters['username'] = rawurldecode((string) $parts['user']);
            }
        }
        $parameters['database'] = (int) $parts['database'];
        $client = new \Predis\Client($parameters + ['timeout' => $timeout, 'read_write_timeout' => $timeout]);
        $run = static function (string ...$command) use ($client): mixed {
            $isError = false;
            $answer = $client->executeRaw($command, $isError);
            return self::requireAnswer($answer, $isError ? (string) $answer : null);
        };
        $received = self::publishOrStore($run, $channel, $data);
        $client->disconnect();
        return (int) $received;
    }

    /**
     * Publishes a message; by the script of the producers if the group has a history.
     *
     * A user without the right to read the history's key publishes to plain groups only.
     *
     * @param callable(string ...): mixed $run runs a command of Redis
     *
     * @throws ServerException Redis has rejected a command
     */
    private static function publishOrStore(callable $run, string $channel, string $data): int
    {
        $keys = ['{' . $channel . '}:meta', '{' . $channel . '}:stream', '{' . $channel . '}:'];
        try {
            $script = $run('HGET', $keys[0], 'append');
        } catch (ServerException | \RedisException $error) { // phpredis throws this error
            if (!str_contains($error->getMessage(), 'NOPERM')) {
                throw $error;
            }
            $script = false;
        }
        if (is_string($script) && preg_match('/^[0-9a-f]{40}$/', $script) === 1) {
            $arguments = ['', '0', '0', '', '0', '', '', 'PUBLISH', $channel, $data, ''];
            $received = $run('EVALSHA', $script, '3', ...$keys, ...$arguments);
            if (is_array($received)) {
                return (int) $received[0];
            }
            throw new ServerException('the relay', 'the history did not store it', 'check that a producer runs');
        }
        return (int) $run('PUBLISH', $channel, $data);
    }

    /**
     * Returns an answer of Redis that is not an error.
     *
     * @throws ServerException it is one
     */
    private static function requireAnswer(mixed $answer, ?string $error): mixed
    {
        if ($error !== null) {
            throw new ServerException(
                'the relay',
                "rejected: $error",
                'check that a producer runs, and the rights of the user'
            );
        }
        return $answer;
    }

    /**
     * Returns the host and the port of an address, or the path of a Unix socket and 0.
     *
     * @param array<string, int|string> $parts
     *
     * @return array{string, int}
     */
    private static function endOf(array $parts): array
    {
        if ($parts['scheme'] === 'unix') {
            return [(string) ($parts['path'] ?? ''), 0];
        }
        $prefix = $parts['scheme'] === 'rediss' ? 'tls://' : '';
        return [$prefix . ($parts['host'] ?? 'localhost'), (int) ($parts['port'] ?? self::DEFAULT_PORT)];
    }

    private static function withoutPassword(string $url): string
    {
        // Up to the last @: an unescaped / ? or # in a password does not end it.  After a ? it may
        // be in a parameter, whose end may be a part of a password.
        return (string) preg_replace(['~//.*\?.*@.*~s', '~//.*@~s', '~\?.*~s'], ['//…', '//', ''], $url);
    }
}
