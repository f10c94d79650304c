<?php

declare(strict_types=1);

namespace apachews;

use apachews\Exception\NobodyListens;
use apachews\Exception\PublishFailed;
use apachews\Exception\ServerException;
use apachews\Exception\WireError;
use apachews\Wire\Frame;
use apachews\Wire\Message;
use apachews\Wire\Publish;
use apachews\Wire\Published;

/**
 * Sends a message to the clients of the producer that listens on a socket file.
 *
 * From wherever: a cron job, a page of another application. Who may is who may write to
 * the file. It waits for the answer.
 *
 * @param string      $path    the socket file
 * @param string      $data    text where it is UTF-8, else binary, unless $binary says
 * @param string|null $group   whose members get it (Server::group); null: every client
 * @param bool|null   $binary  true: as binary; false: as text, which must be UTF-8
 * @param float       $timeout seconds to wait at most
 *
 * @throws NobodyListens   no producer listens there
 * @throws PublishFailed   the producer did not answer, or not in time
 * @throws ServerException no permission, or a path that is no socket's
 */
function publish(
    string $path,
    string $data,
    ?string $group = null,
    ?bool $binary = null,
    float $timeout = 10.0
): Delivery {
    $deadline = microtime(true) + $timeout;
    $frames = (new Publish($group))->encode() . Message::of($data, $binary)->encode();
    Transport\SocketFile::requireShort($path);
    $socket = @stream_socket_client("unix://$path", $code, $error, $timeout);
    if ($socket === false) {
        if ($code === Transport\SocketFile::ENOENT || $code === Transport\SocketFile::ECONNREFUSED) {
            throw new NobodyListens($path);
        }
        throw new ServerException($path, "cannot connect: $error", 'look at its permissions');
    }
    stream_set_read_buffer($socket, 0);
    $answer = '';
    while (($left = $deadline - microtime(true)) > 0) {
        stream_set_timeout($socket, (int) $left, (int) (fmod($left, 1) * 1e6));
        if ($frames !== '') {
            $sent = @fwrite($socket, $frames);
            // A producer that is gone is found by reading.
            $frames = $sent === false ? '' : substr($frames, $sent);
            continue;
        }
        $answer .= (string) fread($socket, 4096);
        try {
            $header = Frame::decodeHeader($answer, 0);
            if ($header !== null && strlen($answer) >= $header[1] + $header[2]) {
                if ($header[0] !== (Frame::FIN | Frame::PUBLISH)) {
                    break;
                }
                $published = Published::decode(substr($answer, $header[2], $header[1]));
                return new Delivery($published->reached, $published->skipped);
            }
        } catch (WireError) {
            break;
        }
        if (stream_get_meta_data($socket)['eof']) {
            break;
        }
    }
    throw new PublishFailed($path);
}
