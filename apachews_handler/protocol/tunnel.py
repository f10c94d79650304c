"""A WebSocket between its client and a backend that speaks WebSocket itself.

Contract: ``TunnelSession`` has the interface of ``session.Session``, as far as the bridge uses it;
the backend is the producer.  Bytes pass untouched in both directions.  Sans-I/O; one session per
connection, on one thread.

How this works: a ``FrameWalker`` per direction follows the headers of the frames, so that the
bridge can insert a PING or a CLOSE between two frames, count messages, and record how the
connection ends.  The backend's state is in its process: there is no successor that could
continue, so such a session has neither a backlog nor a hold.

The transitions, with the states of ``states``; "in a frame" means that the backend has sent a
part of a data frame:

    =======================  ===========================  ================================
    event                    client is OPEN               client is CLOSING
    =======================  ===========================  ================================
    client's CLOSE           CLOSING; it passes           CLOSED; it passes
    backend's CLOSE          CLOSING; it passes           CLOSED; it passes
    client's EOF             GONE                         after its CLOSE: CLOSING, the
                                                          backend's CLOSE still passes;
                                                          else GONE
    backend's EOF            CLOSING; CLOSE 1012          after the client's CLOSE: CLOSED,
                                                          CLOSE with the client's code
    backend's EOF, in a      GONE                         GONE
    frame
    limit exceeded           CLOSED; CLOSE to both        (nothing that comes is counted
                                                          after a CLOSE)
    close()                  CLOSING; CLOSE to both       CLOSING
    fail()                   GONE                         GONE
    =======================  ===========================  ================================

A CLOSE of the bridge's own waits for the end of the frame that the peer has begun.  When the
client is GONE, the stream to the backend is ended and its output is discarded until its end of
file: to close the socket with unread bytes would reset the connection, and the backend would
lose the client's last messages.

Long because the session is one state machine, with the table of its transitions.

Sources: RFC 6455 5.5 (control frames), 7.1 (closing); tcp(7).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final

from apachews import wire
from apachews.exceptions import WireError
from apachews.monitoring.snapshot import RoundTrips
from apachews_handler.settings import Settings

from .client_reader import FRAMES_A_TURN, KEEPALIVE, MIN_FRAMES_A_TURN, SHARED_FRAMES_A_TURN
from .close_causes import CloseCause
from .frame_walker import CloseFrame, Event, FrameWalker, OwnPong
from .producer_reader import MANY_MESSAGES, SHORT_READ_BYTES
from .session import HEADER_BYTES
from .states import ClientState, ProducerState

# First bytes of frames that are whole messages, compressed (RSV1) or not.
_WHOLE: Final = frozenset((0x81, 0x82, 0xC1, 0xC2))
# CLOSE 1001, as from a client that leaves: the code that every server accepts.  A mask protects
# proxies from bytes that a page chooses (RFC 6455 10.3); these two are constant, so their mask
# may be constant too.
_CLOSE_TO_BACKEND: Final = bytes((wire.FIN | wire.CLOSE, wire.MASKED | 2, 0, 0, 0, 0)) + (
    wire.encode_close(wire.GOING_AWAY)
)
# (Hoisted: the lookup of an Enum member costs as much as a call in Python 3.11.)
_OPEN: Final = ClientState.OPEN
_CLOSING: Final = ClientState.CLOSING
_CONNECTED: Final = ProducerState.CONNECTED


class TunnelSession:
    """The state of one connection; ``SessionData`` describes the attributes.

    Args:
        settings: for the limits; ``max_message_bytes`` 0 means no limit.

    Attributes:
        has_client_eof: the client has ended its stream and still reads; read it no more.
        is_paused: the client's walker has more input: call ``receive_client`` with b"".
        producer_room: size of the next read of the backend.
    """

    __slots__ = (
        "_client_closed",
        "_down",
        "_is_limited",
        "_pinged_at",
        "_rate",
        "_rated_at",
        "_room",
        "_up",
        "client_state",
        "close_cause",
        "close_code",
        "close_reason",
        "has_client_eof",
        "ignored",
        "is_paused",
        "is_ping_answered",
        "producer_room",
        "producer_state",
        "round_trip_s",
        "round_trips",
        "to_client",
        "to_producer",
    )

    # What a session with a producer of the wire has, and a tunnel does not.
    deflate: Final = None
    backlog_bytes: Final = 0
    is_moving: Final = False
    # False: an end of file is what closes a direction, and the other one may go on.
    has_frames: ClassVar[bool] = True
    is_waiting: Final = False
    knows_lanes: Final = False
    requests: Final[tuple[bytes, ...]] = ()

    def __init__(self, settings: Settings) -> None:
        self._up = FrameWalker(settings.max_message_bytes or math.inf)
        self._down = FrameWalker()
        # The very lists that the walkers append to: mutated and never replaced.
        self.to_producer = self._up.out
        self.to_client = self._down.out
        self.ignored: list[int] = []
        self.client_state = _OPEN
        self.producer_state = _CONNECTED
        self.close_cause: CloseCause | None = None
        self.close_code = 0
        self.close_reason = ""
        self.has_client_eof = False
        self.is_ping_answered = True
        self.round_trip_s: float | None = None
        self.round_trips: RoundTrips | None = None
        self._client_closed = False  # the client's CLOSE has arrived
        # (The two are attributes, because the fast path reads them for each message.)
        self.is_paused = False
        self._room = self.producer_room = settings.max_buffer_bytes + HEADER_BYTES
        self._pinged_at = 0.0  # when the one unanswered PING was sent; 0.0: none, or several
        self._rate = settings.message_rate
        self._rated_at = 0.0
        if self._rate:
            self._up.max_frames = float(self._rate.burst)
        # A frame of the fast path has at most 125 bytes.
        self._is_limited = bool(self._rate) or 0 < settings.max_message_bytes <= 125

    @property
    def client_finished(self) -> bool:
        """Nothing is added to ``to_client`` any more: send it, then shut down."""
        return self.client_state is ClientState.GONE or (
            self.client_state is ClientState.CLOSED and self._down.has_sent_last
        )

    @property
    def producer_finished(self) -> bool:
        """Nothing is read from the backend any more: it has ended its stream."""
        return self.producer_state is ProducerState.DONE and self.client_finished

    @property
    def is_half_closing(self) -> bool:
        """Nothing is added to ``to_producer`` any more: send it, then end that stream."""
        return self.producer_state is ProducerState.AWAITING_EOF and (
            self.has_client_eof or self.client_state is ClientState.GONE
        )

    @property
    def is_finishing(self) -> bool:
        """One end has sent its CLOSE, and both may still have messages on their way."""
        cause = self.close_cause
        return self.client_state is _CLOSING and cause is not None and cause.by != "bridge"

    @property
    def awaits_close(self) -> bool:
        """The client gets bytes of the backend, until the CLOSE that is to end them."""
        return self.client_state is not _OPEN and not self._down.has_sent_last

    @property
    def partial_bytes(self) -> int:
        """Number of the backend's bytes that are held back until their frame is complete."""
        return len(self._down.rest)

    @property
    def producer_said(self) -> int:
        """A number that grows with each message and each byte of payload of the backend."""
        return self._down.messages + self._down.payload_bytes

    def traffic(self) -> tuple[int, int, int, int]:
        """Return messages and announced bytes from the client, and the same to the client."""
        up, down = self._up, self._down
        return up.messages, up.payload_bytes, down.messages, down.payload_bytes

    def counts(self) -> str:
        """Return the traffic for the log."""
        return "messages_in={} bytes_in={} messages_out={} bytes_out={}".format(*self.traffic())

    # Bytes.

    def receive_client(self, data: bytes, now: float = 0.0, busy: int = 1) -> None:
        """Pass bytes of the client on.

        Args:
            data: bytes as they arrived; b"" to continue after a pause.
            now: the time in seconds, of any clock; for the message rate and round trips.
            busy: number of connections that share a turn of the loop.
        """
        up = self._up
        if self.client_state is _OPEN:
            if up.remaining:
                size = len(data)
                if size < up.remaining:  # inside a large frame
                    up.remaining -= size
                    self.to_producer.append(data)
                    return
            elif (
                # One whole message with a short length and a mask, as most reads are.
                not up.rest
                and 5 < len(data) < 132
                and data[1] == len(data) + 122  # 0x80 for the mask, less 6 of header
                and data[0] in _WHOLE
                and not self._is_limited
            ):
                up.messages += 1
                up.payload_bytes += len(data) - 6
                self.to_producer.append(data)
                return
        elif self.client_state is not _CLOSING:
            return  # nothing that the client sends has a meaning any more
        if self._rate:
            self._refill_rate(now)
        share = FRAMES_A_TURN if busy == 1 else SHARED_FRAMES_A_TURN // busy
        events = up.receive(data, max(MIN_FRAMES_A_TURN, share))
        self.is_paused = up.is_paused
        if self.producer_state is not _CONNECTED:
            self.to_producer.clear()  # the backend has gone
        for event in events:
            self._on_client_event(event, now)

    def receive_producer(self, data: bytes) -> None:
        """Pass bytes of the backend on."""
        down = self._down
        if self.client_state is _OPEN:
            if down.remaining:
                size = len(data)
                if size < down.remaining:  # inside a large frame
                    down.remaining -= size
                    self.to_client.append(data)
                    return
            elif (
                # One whole message with a short length, as most reads are.
                not down.rest
                and 1 < len(data) < 128
                and data[1] == len(data) - 2
                and data[0] in _WHOLE
            ):
                down.messages += 1
                down.payload_bytes += len(data) - 2
                self.to_client.append(data)
                return
        elif self.client_finished:
            return  # read only to its end of file
        before = down.messages + down.controls
        events = down.receive(data)
        has_many = down.messages + down.controls - before > MANY_MESSAGES
        self.producer_room = SHORT_READ_BYTES if has_many else self._room
        for event in events:
            if isinstance(event, CloseFrame):
                self._on_close_frame(CloseCause.PRODUCER_CLOSED, event)

    # Ends of the two streams.

    def receive_client_eof(self) -> None:
        """Handle the client's end of file; the second call means that it is gone."""
        if (
            self._client_closed
            and self.client_state is _CLOSING
            and self.producer_state is _CONNECTED
            and not self.has_client_eof
        ):
            # It has sent its CLOSE and ended its stream; the answer is on its way.
            self.has_client_eof = True
            self.producer_state = ProducerState.AWAITING_EOF
            return
        self._record_cause(CloseCause.CLIENT_LEFT)
        self._end_client(ClientState.GONE)

    def receive_producer_eof(self, unsent: bytes = b"", sent: int = 0) -> None:
        """Handle the backend's end of file.

        Args:
            unsent, sent: as ``Session`` has them; a tunnel has no successor that could use them.
        """
        self.to_producer.clear()
        self.producer_state = ProducerState.DONE
        down = self._down
        if self.client_state is ClientState.GONE or down.has_sent_last:
            return
        if down.remaining:
            # The client has half a frame, and would read a CLOSE as the rest of it.
            self._record_cause(CloseCause.PRODUCER_CUT_OFF)
            self.client_state = ClientState.GONE
            return
        self._record_cause(CloseCause.PRODUCER_LEFT)
        # If the client has sent its CLOSE, this is the answer that the backend owes it.
        self.client_state = ClientState.CLOSED if self._client_closed else _CLOSING
        self._close_client(self.close_code, self.close_reason)

    def receive_producer_write_error(self, unsent: bytes, sent: int) -> None:
        """Do nothing: the backend's output may still be readable, and its end of file follows."""

    def resume(self, bridge: str | None = None) -> None:
        """Never called: a tunnel is not held."""
        raise AssertionError("a tunnel has no second backend")

    def expire_hold(self) -> None:
        """Never called: a tunnel is not held."""
        raise AssertionError("a tunnel is not held")

    def set_congested(self, is_congested: bool) -> None:
        """Do nothing: no frame of the bridge's own is sent to a client that does not read."""

    # The bridge's own frames.

    def ping(self, now: float = 0.0) -> bool:
        """Send the client a PING; return False if it would stand inside a frame.

        Args:
            now: the time in seconds, of the clock of ``receive_client``.
        """
        if self.client_state is not _OPEN:
            return False
        if not self._down.insert(wire.encode_frame(wire.PING, KEEPALIVE)):
            return False
        # With an earlier PING unanswered, the next PONG may belong to either: do not measure.
        self._pinged_at = 0.0 if self._up.expected_pongs else now
        self._up.expected_pongs += 1
        self.is_ping_answered = False
        return True

    def close(self, cause: CloseCause, code: int = 0) -> None:
        """Send both sides a CLOSE, the client one with a code; 0: that of the cause."""
        if self.client_state is _OPEN:
            self._record_cause(cause, code)
            self.client_state = _CLOSING
            self._up.insert_last(_CLOSE_TO_BACKEND)
            self._close_client(self.close_code, self.close_reason)

    def fail(self) -> None:
        """Drop the connection because of an error of the bridge's own."""
        self._record_cause(CloseCause.FAILED)
        self.client_state = ClientState.GONE
        self.producer_state = ProducerState.DONE

    # For another process.

    def export_state(self) -> dict[str, Any] | None:
        """Return the state with which a session in another process continues, as JSON values.

        None unless the session is at rest: open, between frames in both directions, and
        without bytes to send.
        """
        if (
            self.client_state is not _OPEN
            or self.producer_state is not _CONNECTED
            or self.to_client
            or self.to_producer
        ):
            return None
        client, producer = self._up.export_state(), self._down.export_state()
        if client is None or producer is None:
            return None
        return {
            "client": client,
            "producer": producer,
            "knows_lanes": False,
            "opened": "",
            "is_ping_answered": self.is_ping_answered,
            "pinged_at": self._pinged_at,
            "rated_at": self._rated_at,
            "round_trip_s": self.round_trip_s,
        }

    def import_state(self, state: dict[str, Any]) -> None:
        """Continue from an exported state; only before the first byte.

        Raises:
            KeyError, TypeError, ValueError: the state has another form.
        """
        self._up.import_state(state["client"])
        self._down.import_state(state["producer"])
        self.is_ping_answered = bool(state["is_ping_answered"])
        self._pinged_at = float(state["pinged_at"])
        self._rated_at = float(state["rated_at"])
        round_trip_s = state["round_trip_s"]
        self.round_trip_s = None if round_trip_s is None else float(round_trip_s)

    def _on_client_event(self, event: Event, now: float) -> None:
        if isinstance(event, OwnPong):
            self.is_ping_answered = True
            if self._pinged_at:
                self.round_trip_s = now - self._pinged_at
                if self.round_trips:
                    self.round_trips.observe(self.round_trip_s)
            self._pinged_at = 0.0
        elif isinstance(event, CloseFrame):
            self._client_closed = True
            self._on_close_frame(CloseCause.CLIENT_CLOSED, event)
        else:
            self._record_cause(CloseCause.of_violation(event.code), event.code, event.reason)
            self._up.insert_last(_CLOSE_TO_BACKEND)
            self._close_client(event.code, event.reason)
            self._end_client(ClientState.CLOSED)

    def _on_close_frame(self, cause: CloseCause, frame: CloseFrame) -> None:
        """Record a CLOSE that has passed; it was the second one if both have closed."""
        try:
            close = wire.decode_close(frame.payload)
        except WireError as error:  # the other end judges it
            close = wire.Close(wire.PROTOCOL_ERROR, error.reason)
        self._record_cause(cause, close.code, close.reason)
        if self._client_closed and self._down.has_sent_last:
            self._end_client(ClientState.CLOSED)
        elif self.client_state is _OPEN:
            self.client_state = _CLOSING

    def _end_client(self, state: ClientState) -> None:
        """Expect nothing more of the client, and of the backend its end of file."""
        self.client_state = state
        if self.producer_state is _CONNECTED:
            self.producer_state = ProducerState.AWAITING_EOF

    def _close_client(self, code: int, reason: str) -> None:
        frame = wire.encode_frame(wire.CLOSE, wire.encode_close(code, reason))
        self._down.insert_last(frame)

    def _record_cause(self, cause: CloseCause, code: int = 0, reason: str = "") -> None:
        """Record why the connection closes; the first cause counts."""
        if self.close_cause is None:
            self.close_cause = cause
            self.close_code = code or cause.code
            self.close_reason = reason or cause.reason

    def _refill_rate(self, now: float) -> None:
        """Add the tokens of the elapsed time to the bucket of frames."""
        assert self._rate
        up = self._up
        more = (now - self._rated_at) * self._rate.per_s
        self._rated_at = now
        up.max_frames = min(up.max_frames + more, up.messages + up.controls + self._rate.burst)
