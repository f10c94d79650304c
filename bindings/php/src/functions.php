<?php

declare(strict_types=1);

namespace apachews;

use apachews\Exception\InvalidArgument;
use apachews\Exception\NobodyListens;
use apachews\Exception\PublishFailed;
use apachews\Exception\ServerException;
use apachews\Transport\Loop;
use apachews\Transport\Publisher;
use apachews\Transport\SocketFile;
use apachews\Wire\Message;
use apachews\Wire\Publish;

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
 * @throws ServerException no permission, or a path that is not a socket's
 * @throws InvalidArgument it is to be text and is not UTF-8, or a timeout that makes no sense
 */
function publish(
    string $path,
    string $data,
    ?string $group = null,
    ?bool $binary = null,
    float $timeout = 10.0
): Delivery {
    if (!($timeout > 0) || is_infinite($timeout)) { // nor NAN
        throw new InvalidArgument("a timeout of $timeout s: use more than 0, and a number");
    }
    SocketFile::requireShort($path);
    $frames = (new Publish($group))->encode() . Message::of($data, $binary)->encode();
    return Publisher::publish($path, $frames, Loop::now() + $timeout);
}
