<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * The interface of all exceptions that the library throws:
 *
 *     ServerException     the socket file cannot be served: path, problem, remedy
 *      +-- SocketInUse    another producer listens there
 *      +-- NotASocket     the path is a file that is not a socket
 *      +-- NotListening   publish(): no producer listens there
 *      +-- PublishFailed  publish(): the producer did not answer
 *     InvalidArgument     an invalid argument; the message says which
 *     NoClient            the event has no client
 *     NotAsked            Apache accepts clients itself
 *     WireError           bytes that violate docs/reference/wire.md; internal
 */
interface ApachewsException extends \Throwable
{
}
