<?php

declare(strict_types=1);

namespace apachews;

/**
 * The types of event; the constants ApacheWSAcceptEvent and so on name the same cases.
 *
 * Cases without a value, so that nothing a client sends can equal one of them.
 */
enum EventType
{
    /** A client connected, or asks to (APACHEWS_ACCEPT producer). */
    case Accept;
    /** A message came. */
    case IO;
    /** An empty message came; or, without a client, nothing came in time. */
    case NoData;
    /** The other side sent a CLOSE; ConnectionClosed follows. */
    case Close;
    /** The connection is gone. */
    case ConnectionClosed;
    /** Something went wrong; Event::$reason says what. */
    case Error;
    /** The client answered Client::ping(); Event::$latency says how fast. */
    case Pong;
    /** Somebody connected who does not speak the wire. */
    case Invalid;
}
