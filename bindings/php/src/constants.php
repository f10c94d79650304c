<?php

/**
 * The names of the events, as programs write them.
 *
 * They are cases of an enum, not numbers: `switch` compares loosely, and the text "1002" of a
 * client would equal the number 1002. A message cannot equal a case.
 */

declare(strict_types=1);

use apachews\EventType;

/** A client connected, or waits to be accepted (APACHEWS_ACCEPT producer). */
const ApacheWSAcceptEvent = EventType::Accept;
/** A message. */
const ApacheWSIOEvent = EventType::IO;
/** The other side sent a CLOSE; ApacheWSConnectionClosed follows. */
const ApacheWSCloseEvent = EventType::Close;
/** An empty message; or the timeout of dequeue(). */
const ApacheWSNoData = EventType::NoData;
/** The connection has ended. */
const ApacheWSConnectionClosed = EventType::ConnectionClosed;
/** An error; Event::$reason is its text. */
const ApacheWSError = EventType::Error;
