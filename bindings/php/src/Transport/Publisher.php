<?php

declare(strict_types=1);

namespace apachews\Transport;

use apachews\Delivery;
use apachews\Exception\NotListening;
use apachews\Exception\PublishFailed;
use apachews\Exception\ServerException;
use apachews\Exception\WireError;
use apachews\Wire\Frame;
use apachews\Wire\Published;

/**
 * The client side of apachews\publish().
 *
 * Blocks until a deadline on Loop's clock.
 *
 * @internal
 */
final class Publisher
{
    /** The retry interval while the backlog is full: PHP's connect does not wait then. */
    private const RETRY_MICROSECONDS = 5000;

    /**
     * Sends the frames of one message, and waits for the answer.
     *
     * @throws ServerException
     */
    public static function publish(string $path, string $frames, float $deadline): Delivery
    {
        return Warnings::withheld(static function () use ($path, $frames, $deadline): Delivery {
            $socket = self::connect($path, $deadline);
            try {
                return self::deliver($path, $socket, $frames, $deadline) ?? throw new PublishFailed($path);
            } finally {
                fclose($socket);
            }
        });
    }

    /**
     * @return resource
     *
     * @throws ServerException
     */
    private static function connect(string $path, float $deadline): mixed
    {
        while (($left = $deadline - Loop::now()) > 0) {
            $socket = stream_socket_client("unix://$path", $code, $error, $left);
            if ($socket !== false) {
                stream_set_read_buffer($socket, 0);
                return $socket;
            }
            clearstatcache(true, $path);
            if ($code === SocketFile::ECONNREFUSED && is_file($path)) {
                throw new ServerException(
                    $path,
                    'the file is not a Unix socket',
                    'if it is a loopback socket, publish with Python or "apachews publish"'
                );
            }
            if ($code === SocketFile::ENOENT || $code === SocketFile::ECONNREFUSED) {
                throw new NotListening($path);
            }
            if ($code !== SocketFile::EAGAIN) {
                throw new ServerException($path, "cannot connect: $error", 'check its permissions');
            }
            usleep(self::RETRY_MICROSECONDS);
        }
        throw new PublishFailed($path);
    }

    /**
     * Returns the answer; null if it is invalid, missing, or late.
     *
     * @param resource $socket
     *
     * @throws PublishFailed the producer refuses the message
     */
    private static function deliver(string $path, mixed $socket, string $frames, float $deadline): ?Delivery
    {
        $answer = '';
        while (($left = $deadline - Loop::now()) > 0) {
            stream_set_timeout($socket, (int) $left, (int) (fmod($left, 1) * 1e6));
            if ($frames !== '') {
                $sent = fwrite($socket, $frames);
                // If the producer has exited, reading finds the end of file.
                $frames = $sent === false ? '' : substr($frames, $sent);
                continue;
            }
            $answer .= (string) fread($socket, 4096);
            try {
                $header = Frame::decodeHeader($answer, 0);
                if ($header !== null && strlen($answer) >= $header[1] + $header[2]) {
                    if ($header[0] !== (Frame::FIN | Frame::PUBLISH)) {
                        return null;
                    }
                    $published = Published::decode(substr($answer, $header[2], $header[1]));
                    if ($published->error !== null) {
                        throw new PublishFailed($path, $published->error, 'no client has received it');
                    }
                    return new Delivery($published->reached, $published->skipped, $published->relayed);
                }
            } catch (WireError) {
                return null;
            }
            if (stream_get_meta_data($socket)['eof']) {
                return null;
            }
        }
        return null;
    }
}
