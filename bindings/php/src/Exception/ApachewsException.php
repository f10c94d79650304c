<?php

declare(strict_types=1);

namespace apachews\Exception;

/**
 * Everything the library throws of its own:
 *
 *     ServerException     the socket file cannot be served: path, problem, remedy
 *      +-- SocketInUse    another producer listens there
 *      +-- NotASocket     the path holds something that is not a socket
 *      +-- NobodyListens  publish(): no producer listens there
 *      +-- PublishFailed  publish(): the producer did not answer
 *     InvalidArgument     a value that may not be sent; the text says which
 *     NoClient            the event has no client
 *     NotAsked            Apache does not leave the decision to the producer
 *     WireError           bytes that break docs/reference/wire.md; never out of the library
 */
interface ApachewsException extends \Throwable
{
}
