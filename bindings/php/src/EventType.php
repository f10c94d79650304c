<?php

declare(strict_types=1);

namespace apachews;

/**
 * The types of event; the constants ApacheWSAcceptEvent and so on name the same cases.
 *
 * The cases have no values, so that a message of a client cannot equal one of them.
 */
enum EventType
{
    /** A client connected, or waits to be accepted (APACHEWS_ACCEPT producer). */
    case Accept;
    /** A message. */
    case IO;
    /** An empty message; or, without a client, a timeout. */
    case NoData;
    /** The other side sent a CLOSE; ConnectionClosed follows. */
    case Close;
    /** The connection has ended. */
    case ConnectionClosed;
    /** An error; Event::$reason is its text. */
    case Error;
    /** The client answered Client::ping(); Event::$latency is the time it took. */
    case Pong;
    /** A peer connected that does not follow docs/reference/wire.md. */
    case Invalid;
}
