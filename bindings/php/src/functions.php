<?php

declare(strict_types=1);

namespace apachews;

use apachews\Exception\InvalidArgument;
use apachews\Exception\NotListening;
use apachews\Exception\PublishFailed;
use apachews\Exception\ServerException;
use apachews\Transport\Loop;
use apachews\Transport\Publisher;
use apachews\Transport\RelayPublisher;
use apachews\Transport\SocketFile;
use apachews\Wire\Message;
use apachews\Wire\Publish;

/**
 * Sends a message to the clients of the producer that listens on a socket file.
 *
 * For any program, such as a cron job or a page of another application, that has write
 * permission for the file. Waits for the answer of the producer.
 *
 * @param string      $path    the socket file; or the address of a relay with its name,
 *                             "redis://host:6379?name=chat.ws": the clients of every producer
 *                             with this relay receive it. Needs phpredis or Predis.
 * @param string      $data    sent as text if it is UTF-8, else as binary; see $binary
 * @param string|null $group   send to the members of this group (Server::group); null: to all
 * @param bool|null   $binary  true: send as binary; false: send as text
 * @param float       $timeout the longest wait, seconds
 *
 * @throws NotListening    no producer listens there
 * @throws PublishFailed   the producer did not answer, or not in time
 * @throws ServerException the permission is missing, the path is not a socket, or the relay
 *                         cannot be reached
 * @throws InvalidArgument text that is not UTF-8, or an invalid timeout
 */
function publish(
    string $path,
    string $data,
    ?string $group = null,
    ?bool $binary = null,
    float $timeout = 10.0
): Delivery {
    if (!($timeout > 0) || is_infinite($timeout)) { // nor NAN
        throw new InvalidArgument("timeout: $timeout: expected a finite number of seconds above 0");
    }
    $message = Message::of($data, $binary);
    if (RelayPublisher::isAddress($path)) {
        return RelayPublisher::publish($path, $message, $group, $timeout);
    }
    SocketFile::requireShort($path);
    $frames = (new Publish($group))->encode() . $message->encode();
    return Publisher::publish($path, $frames, Loop::now() + $timeout);
}
