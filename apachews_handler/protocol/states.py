"""The states of a session's two sides, and all transitions between them.

Contract: two enumerations and two tables.  ``session`` implements the tables: each of its
branches names a row in a comment, and tests/handler/test_session_tables.py executes every row
and every cell of the text below.

Table 1, ``client_state``.  A cell has the next state and what the session sends.  GONE is final.

    =====================  =========================  =========================  ========
    event                  OPEN                       CLOSING                    CLOSED
    =====================  =========================  =========================  ========
    client's CLOSE         CLOSED; CLOSE to both      CLOSED; CLOSE to producer  CLOSED
    client's violation     CLOSED; CLOSE to both      CLOSED; CLOSE to producer  CLOSED
    client's EOF           GONE                       GONE                       GONE
    producer's CLOSE       CLOSING; CLOSE to client   CLOSING                    CLOSED
    producer's violation   CLOSING; CLOSE to both     CLOSING                    CLOSED
    producer's EOF         OPEN                       CLOSING                    CLOSED
    EOF without hold       CLOSING; CLOSE to client   CLOSING                    CLOSED
    EOF inside a message   CLOSING; CLOSE to client   CLOSING                    CLOSED
    EOF inside a frame     GONE                       GONE                       GONE
    close()                CLOSING; CLOSE to both     CLOSING                    CLOSED
    fail()                 GONE                       GONE                       GONE
    =====================  =========================  =========================  ========

In CLOSING the producer gets the client's CLOSE if the producer has sent its own: a producer
that was sent a CLOSE before gets nothing more.

Table 2, ``producer_state``.  While the client is OPEN, one producer may take over from another.
DONE is final.

    ==================  ==========================  ==================  ====================
    state               event                       next state          effect
    ==================  ==========================  ==================  ====================
    CONNECTED           MOVE                        AWAITING_EOF        MOVE to producer
    CONNECTED           MOVE inside a message       HANDING_OVER
    CONNECTED           write error                 AWAITING_EOF        unsent to backlog
    CONNECTED           EOF                         DETACHED            unsent to backlog
    CONNECTED           EOF, no hold                DONE
    CONNECTED           client leaves               DONE
    HANDING_OVER        MOVE                        HANDING_OVER
    HANDING_OVER        message ends                AWAITING_EOF        MOVE to producer
    HANDING_OVER        write error                 AWAITING_EOF        unsent to backlog
    HANDING_OVER        EOF                         DETACHED            unsent to backlog
    HANDING_OVER        client leaves               DONE
    AWAITING_EOF        MOVE                        AWAITING_EOF
    AWAITING_EOF        message                     AWAITING_EOF        message to backlog
    AWAITING_EOF        write error                 AWAITING_EOF        unsent to backlog
    AWAITING_EOF        producer's CLOSE            DONE                backlog is dropped
    AWAITING_EOF        EOF                         DETACHED            unsent to backlog
    AWAITING_EOF        client leaves               DONE
    AWAITING_EOF        client leaves, backlog      AWAITING_EOF
    DETACHED            message                     DETACHED            message to backlog
    DETACHED            successor                   CONNECTED           OPEN to producer
    DETACHED            successor, client has left  DELIVERING_BACKLOG  OPEN to producer
    DETACHED            hold expires                DONE                backlog is dropped
    DETACHED            client leaves               DONE
    DETACHED            client leaves, backlog      DETACHED
    DELIVERING_BACKLOG  producer's message          DELIVERING_BACKLOG
    DELIVERING_BACKLOG  EOF                         DELIVERING_BACKLOG
    ==================  ==========================  ==================  ====================

"OPEN to producer" includes the backlog.  Events without a row change neither the state nor the
backlog.

Sources: RFC 6455 7.1 (closing); docs/reference/wire.md (MOVE, restarts of a producer).
"""

from __future__ import annotations

import enum


class ClientState(enum.Enum):
    """The state of the client's side; it only ever moves down this list."""

    OPEN = "messages flow in both directions"
    CLOSING = "a CLOSE was sent to the client, or is deferred; the client's CLOSE is awaited"
    CLOSED = "the client's CLOSE has arrived; nothing more is expected of it"
    GONE = "the client has gone, or can no longer be sent anything: drop the connection"


class ProducerState(enum.Enum):
    """The state of the producer's side."""

    CONNECTED = "messages flow in both directions"
    HANDING_OVER = "it sent MOVE and gets the rest of the client's current message"
    AWAITING_EOF = "it gets nothing more; its output is read until its end of file"
    DETACHED = "without a producer: the client is held, its messages go to the backlog"
    DELIVERING_BACKLOG = "it gets the backlog of a client that has left; its output is ignored"
    DONE = "nothing more is sent: it was sent a CLOSE, or no producer will follow"
