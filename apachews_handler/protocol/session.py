"""One WebSocket between its client and its producer: the sans-I/O core of the bridge.

Contract: bytes and ends of file go in (``receive_*``); bytes come out in ``to_client`` and
``to_producer``, which the driver sends and empties after every call.  ``client_state``,
``client_finished`` and ``producer_finished`` tell the driver when to close the sockets.  No
I/O, no clock; one session per connection, on one thread.

How this works: while both sides are open, the two readers do the work.  This class implements
the transitions between the states: ``states`` has the tables, and each branch below names its
row.

Glossary, for the three kinds of bytes that wait somewhere:

- *partial*: the producer's bytes whose frame is incomplete (``ProducerReader``).
- *deferred*: a frame of the bridge's own (PING, PONG, CLOSE) that must not be sent yet, because
  the producer's current frame is half sent or the client is congested.
- *backlog*: the client's messages for the next producer (``redelivery.Backlog``).

A client is *held* while it has no producer and another one is awaited (APACHEWS_HOLD).

Sources: RFC 6455 5.5 (control frames), 7.1 (closing); docs/reference/wire.md.
"""

from __future__ import annotations

from typing import Final

from apachews import wire

from .client_reader import KEEPALIVE, KeepalivePong, Ping
from .close_causes import CloseCause
from .producer_reader import SHORT_READ_BYTES, Move
from .redelivery import resumed_open, undelivered_frames
from .session_data import SessionData
from .states import ClientState, ProducerState

# Added to the size of a read: a message as long as a buffer (both are round numbers mostly)
# then arrives with its header in one read.  2 bytes, 8 of length, 4 of mask (RFC 6455 5.2).
HEADER_BYTES: Final = 14
# First bytes of frames that end a message.
_LAST_FRAMES: Final = frozenset(
    wire.FIN | opcode for opcode in (wire.CONTINUATION, wire.TEXT, wire.BINARY)
)
# (Hoisted: the lookup of an Enum member costs as much as a call in Python 3.11.)
_OPEN: Final = ClientState.OPEN
_CONNECTED: Final = ProducerState.CONNECTED


class Session(SessionData):
    """The transitions of one connection's state; ``SessionData`` has the attributes."""

    __slots__ = ()

    @property
    def producer_room(self) -> int:
        """Size of the next read of the producer: one buffer, less the partial bytes."""
        room = self._max_buffer + HEADER_BYTES - self._producer.partial_bytes
        return min(room, SHORT_READ_BYTES) if self._producer.has_many else room

    @property
    def longest_from_client(self) -> int:
        """Payload of a client's message that may pass without ``receive_client``; -1: none may."""
        if self.producer_state is not _CONNECTED or self.to_client or self._rate:
            return -1
        return self._client.longest_passed

    @property
    def longest_from_producer(self) -> int:
        """Payload of a producer's message that may pass without ``receive_producer``."""
        if self.producer_state is not _CONNECTED or self.to_client:
            return -1
        return self._producer.longest_passed

    def count_client(self, messages: int, payload_bytes: int) -> None:
        """Count whole messages that have passed from the client to the producer."""
        self._client.messages += messages
        self._client.payload_bytes += payload_bytes

    def count_producer(self, messages: int, payload_bytes: int) -> None:
        """Count whole messages that have passed from the producer to the client."""
        self._producer.messages += messages
        self._producer.payload_bytes += payload_bytes

    def open(self, open_: wire.Open, *, is_told: bool = False) -> None:
        """Announce the connection to the producer, before all else.

        Args:
            open_: the announcement, for this producer and the next ones.
            is_told: this producer has it already.
        """
        frame = open_.encode()
        if self._hold_s:
            self._open_frame = frame
        if not is_told:
            self.to_producer.append(frame)

    def receive_client(self, data: bytes, now: float = 0.0, busy: int = 1) -> None:
        """Handle bytes from the client.

        Args:
            data: bytes as they arrived; b"" to continue after a pause.
            now: the time in seconds, of any clock; for the message rate and round trips.
            busy: number of connections that share a turn of the loop.
        """
        if self.client_state is not _OPEN and self.client_state is not ClientState.CLOSING:
            return
        if self._rate:
            self._refill_rate(now)
        events = self._client.receive(data, busy)
        if self.client_state is not _OPEN:
            self.to_producer.clear()  # no message follows a CLOSE
        elif self.producer_state is not _CONNECTED:
            self._divert_to_backlog()
        for event in events:
            if isinstance(event, KeepalivePong):
                self._record_rtt(now)
            elif isinstance(event, Ping):
                self._answer_ping(event.payload)
            else:
                self._on_client_end(event)

    def receive_client_eof(self) -> None:
        """Handle the client's end of file, with or without a CLOSE before it."""
        # Table 1, "client's EOF".
        self._record_cause(CloseCause.CLIENT_LEFT)
        self.client_state = ClientState.GONE
        self._end_producer()

    def receive_producer(self, data: bytes) -> None:
        """Handle bytes from the producer."""
        # Table 2, "producer's message": the client has left, and this output is ignored.
        if self.client_state is not _OPEN and (
            self.client_finished or self.producer_state is ProducerState.DELIVERING_BACKLOG
        ):
            return
        events = self._producer.receive(data)
        if not events:
            return
        # Only the last event counts: a second MOVE adds nothing, and a CLOSE revokes a MOVE.
        event = events[-1]
        if isinstance(event, Move):
            self._on_move()
            return
        if self.producer_state is ProducerState.AWAITING_EOF:
            # Table 2, "producer's CLOSE": it closes the client instead of handing it over.
            self._backlog.clear()
            self.producer_state = ProducerState.DONE
        if isinstance(event, wire.Close):
            # Table 1, "producer's CLOSE".
            self._close_client(CloseCause.PRODUCER_CLOSED, event.code, event.reason)
        else:
            # Table 1, "producer's violation".
            self._send_producer_close(event.code, "")
            if self.client_state is ClientState.OPEN:
                self._close_client(CloseCause.PRODUCER_ERROR)
                self.close_reason = event.reason  # for the log, and not for the client

    def receive_producer_eof(self, unsent: bytes = b"", sent: int = 0) -> None:
        """Handle the producer's end of file, with or without a CLOSE before it.

        If the client is held for another producer, the state is DETACHED afterwards.

        Args:
            unsent: whole frames that were not, or not completely, sent to it, in order.
            sent: number of their bytes that were sent.
        """
        if self.producer_state is ProducerState.DELIVERING_BACKLOG:
            # Table 2, "EOF", the last row: what it did not read of the backlog is lost.
            return
        if self._open_frame and self.producer_state is not ProducerState.DONE:
            self._save_undelivered(unsent + b"".join(self.to_producer), sent)
        self.to_producer.clear()
        can_take_over = self._producer.is_between_messages
        if self.client_state is ClientState.OPEN and self._open_frame and can_take_over:
            # Table 1, "producer's EOF"; table 2, "EOF".
            self.producer_state = ProducerState.DETACHED
            self._producer.reset()
            return
        # Table 2, "EOF, no hold".  With a backlog, the next producer still gets that.
        self.producer_state = ProducerState.DETACHED if self._backlog else ProducerState.DONE
        if self._producer.is_between_frames:
            # Table 1, "EOF without hold" and "EOF inside a message".
            self._close_client(CloseCause.PRODUCER_LEFT)
        else:
            # Table 1, "EOF inside a frame": the client has half a frame, and would read a CLOSE
            # as the rest of it.
            self._record_cause(CloseCause.PRODUCER_CUT_OFF)
            self.client_state = ClientState.GONE

    def receive_producer_write_error(self, unsent: bytes, sent: int) -> None:
        """Handle a write to the producer that failed; its output may still be readable.

        Args:
            unsent, sent: as in ``receive_producer_eof``.
        """
        is_open = self.client_state is ClientState.OPEN and self.producer_state in (
            ProducerState.CONNECTED,
            ProducerState.HANDING_OVER,
        )
        if self._open_frame and (is_open or self.producer_state is ProducerState.AWAITING_EOF):
            # Table 2, "write error".
            self._save_undelivered(unsent, sent)
            self.producer_state = ProducerState.AWAITING_EOF

    def resume(self, bridge: str | None = None) -> None:
        """Continue with another producer: send it OPEN and the backlog.

        Args:
            bridge: id of this bridge process; None: without a channel for groups.
        """
        self.is_moving = self.knows_lanes = False
        self.to_producer.append(resumed_open(self._open_frame, bridge))
        if self._backlog:
            self.to_producer.append(self._backlog.pop_all())
        # Table 2, "successor" and "successor, client has left".
        self.producer_state = (
            ProducerState.CONNECTED
            if self.client_state is ClientState.OPEN
            else ProducerState.DELIVERING_BACKLOG
        )

    def expire_hold(self) -> None:
        """Close the client: no other producer came in time."""
        # Table 2, "hold expires".
        self._backlog.clear()
        self.producer_state = ProducerState.DONE
        self._close_client(CloseCause.PRODUCER_LEFT)

    def set_congested(self, is_congested: bool) -> None:
        """Note whether earlier bytes wait for the client.

        While they do, the session keeps only the last PONG for it (RFC 6455 5.5.3 allows that):
        a client that sends PINGs and never reads takes no memory.
        """
        self._is_congested = is_congested
        if not is_congested and self._deferred_pong is not None:
            pong, self._deferred_pong = self._deferred_pong, None
            self._producer.insert(pong)

    def ping(self, now: float = 0.0) -> bool:
        """Send the client a PING; return False if it would stand inside a frame.

        Args:
            now: the time in seconds, of the clock of ``receive_client``.
        """
        if not self._producer.is_between_frames:
            return False
        self._producer.insert(wire.encode_frame(wire.PING, KEEPALIVE))
        # With an earlier PING unanswered, the next PONG may belong to either: do not measure.
        self._pinged_at = 0.0 if self._client.expected_pongs else now
        self._client.expected_pongs += 1
        self.is_ping_answered = False
        return True

    def close(self, cause: CloseCause, code: int = 0) -> None:
        """Send both sides a CLOSE.

        Args:
            code: of the CLOSE; 0: that of the cause.
        """
        # Table 1, "close()".
        if self.client_state is ClientState.OPEN:
            self._send_producer_close(code or cause.code, cause.reason)
            self._close_client(cause, code)

    def fail(self) -> None:
        """Drop the connection because of an error of the bridge's own."""
        # Table 1, "fail()".
        self._record_cause(CloseCause.FAILED)
        self.client_state = ClientState.GONE
        self.producer_state = ProducerState.DONE
        self._backlog.clear()

    def _refill_rate(self, now: float) -> None:
        """Add the tokens of the elapsed time to the bucket of frames."""
        assert self._rate
        client = self._client
        more = (now - self._rated_at) * self._rate.per_s
        self._rated_at = now
        full = client.messages + client.controls + self._rate.burst
        client.max_frames = min(client.max_frames + more, full)

    def _record_rtt(self, now: float) -> None:
        self.is_ping_answered = True
        if self._pinged_at:
            self.round_trip_s = now - self._pinged_at
            if self.round_trips:
                self.round_trips.observe(self.round_trip_s)
        self._pinged_at = 0.0

    def _answer_ping(self, payload: bytes) -> None:
        frame = wire.encode_frame(wire.PONG, payload)
        if self._is_congested:
            self._deferred_pong = frame  # replaces the earlier one
        else:
            self._producer.insert(frame)

    def _on_client_end(self, event: wire.Close | wire.Violation) -> None:
        # Table 1, "client's CLOSE" and "client's violation".
        was_open, self.client_state = self.client_state is ClientState.OPEN, ClientState.CLOSED
        if isinstance(event, wire.Violation):
            cause = CloseCause.of_violation(event.code)
        else:
            cause = CloseCause.CLIENT_CLOSED
        self._record_cause(cause, event.code, event.reason)
        self._send_producer_close(event.code, event.reason)
        if was_open:
            # The answer to a CLOSE repeats its code (RFC 6455 5.5.1), and its reason: browsers
            # show the reason of the answer to the page.
            self._send_client_close(event.code, event.reason)

    def _on_move(self) -> None:
        self.is_moving = True
        # In HANDING_OVER and AWAITING_EOF, MOVE adds nothing; without a hold there is no
        # successor to wait for.
        if self._open_frame and self.producer_state is ProducerState.CONNECTED:
            if self._client.has_begun_message:
                # Table 2, "MOVE inside a message".
                self.producer_state = ProducerState.HANDING_OVER
            else:
                # Table 2, "MOVE".
                self._send_move()

    def _close_client(self, cause: CloseCause, code: int = 0, reason: str = "") -> None:
        """Send the client a CLOSE and wait for its own; nothing if it is not open."""
        if self.client_state is ClientState.OPEN:
            self._record_cause(cause, code, reason)
            self.client_state = ClientState.CLOSING
            self._send_client_close(self.close_code, self.close_reason)

    def _record_cause(self, cause: CloseCause, code: int = 0, reason: str = "") -> None:
        """Record why the connection closes; the first cause counts."""
        if self.close_cause is None:
            self.close_cause = cause
            self.close_code = code or cause.code
            self.close_reason = reason or cause.reason

    def _send_client_close(self, code: int, reason: str) -> None:
        self._producer.insert_last(wire.encode_frame(wire.CLOSE, wire.encode_close(code, reason)))

    def _send_producer_close(self, code: int, reason: str) -> None:
        frame = wire.encode_frame(wire.CLOSE, wire.encode_close(code, reason))
        if self.producer_state in (ProducerState.CONNECTED, ProducerState.HANDING_OVER):
            self.to_producer.append(frame)
        else:
            self._backlog.append_close(frame)
        self._end_producer()

    def _end_producer(self) -> None:
        """Send the producer nothing more, unless the next one is to get a backlog."""
        # Table 2, "client leaves" and "client leaves, backlog".
        if not self._backlog and self.producer_state is not ProducerState.DELIVERING_BACKLOG:
            self.producer_state = ProducerState.DONE

    def _send_move(self) -> None:
        self.to_producer.append(wire.encode_frame(wire.MOVE, b""))
        self.producer_state = ProducerState.AWAITING_EOF

    def _divert_to_backlog(self) -> None:
        """Move the client's new frames to the backlog, except those of a begun message."""
        frames = self.to_producer
        if self.producer_state is not ProducerState.HANDING_OVER:
            # Table 2, "message".
            self._backlog.append(frames)
            frames.clear()
            return
        for index, frame in enumerate(frames):
            if frame[0] in _LAST_FRAMES:
                # Table 2, "message ends": the later frames are the next producer's.
                self._backlog.append(frames[index + 1 :])
                del frames[index + 1 :]
                self._send_move()
                return

    def _save_undelivered(self, frames: bytes, sent: int) -> None:
        """Put the frames that the producer was not sent at the beginning of the backlog."""
        has_begun = (
            self._client.has_begun_message and self.producer_state is not ProducerState.AWAITING_EOF
        )
        kept, is_lost = undelivered_frames(frames, sent, has_begun)
        if is_lost:
            # The producer got the beginning and died: the rest is useless to its successor.
            self._client.discard_message()
        if kept:
            self._backlog.prepend(kept)
