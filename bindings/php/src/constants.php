<?php

/**
 * The names of the events, as programs write them.
 *
 * They are the cases of an enum and no numbers: `switch` compares loosely, and with
 * numbers a client that sends the text "1002" would be taken for whatever has that
 * number. Nothing that a client sends equals a case.
 */

declare(strict_types=1);

use apachews\EventType;

/** A client connected, or asks to (APACHEWS_ACCEPT producer). */
const ApacheWSAcceptEvent = EventType::Accept;
/** A message came. */
const ApacheWSIOEvent = EventType::IO;
/** The other side said goodbye; ApacheWSConnectionClosed follows. */
const ApacheWSCloseEvent = EventType::Close;
/** An empty message came; or nothing, within the timeout of dequeue(). */
const ApacheWSNoData = EventType::NoData;
/** The connection is gone. */
const ApacheWSConnectionClosed = EventType::ConnectionClosed;
/** Something went wrong; Event::$reason says what. */
const ApacheWSError = EventType::Error;
