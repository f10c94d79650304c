"""What a session stores: the data, its views for status and log, and its portable form.

Contract: ``SessionData`` changes nothing by itself; ``session.Session`` derives from it and has
the transitions.  No I/O, no clock.

Sources: docs/explanation/how-it-works.md, "Restarts" (portable form).
"""

from __future__ import annotations

import base64
from typing import Any, Final

from apachews.monitoring.snapshot import RoundTrips
from apachews_handler.settings import Settings

from .client_reader import ClientReader
from .close_causes import CloseCause
from .deflate import Agreement
from .producer_reader import ProducerReader
from .redelivery import Backlog
from .states import ClientState, ProducerState

# (Hoisted: the lookup of an Enum member costs as much as a call in Python 3.11.)
_OPEN: Final = ClientState.OPEN
_CONNECTED: Final = ProducerState.CONNECTED


class SessionData:
    """One connection's state.

    Args:
        settings: for the limits.
        deflate: what was negotiated with the client; None: no compression.

    Attributes:
        client_state, producer_state: see ``states``.
        to_client, to_producer: bytes to send; the driver sends and empties them.
        close_cause: why the connection closes; None while it is open.
        close_code, close_reason: code and reason of the close, for the log; the reason may say
            more than the client's CLOSE.
        ignored: opcodes of the producer's reserved frames; the driver logs and empties the list.
        requests: the producer's LANE frames; the driver handles and empties the list.
        knows_lanes: a producer has sent a LANE frame.
        is_moving: the producer sent MOVE; reset when another one is there.
        is_ping_answered: the client has answered the last PING of the bridge's own, or an
            earlier one.  (It may answer only the last of several: RFC 6455 5.5.3.)
        round_trip_s: duration between the last PING of the bridge's own and its answer; None
            before the first answer.
        round_trips: counts each round trip; None: not counted.
    """

    __slots__ = (
        "_backlog",
        "_client",
        "_deferred_pong",
        "_hold_s",
        "_is_congested",
        "_max_buffer",
        "_open_frame",
        "_pinged_at",
        "_producer",
        "_rate",
        "_rated_at",
        "client_state",
        "close_cause",
        "close_code",
        "close_reason",
        "ignored",
        "is_moving",
        "is_ping_answered",
        "knows_lanes",
        "producer_state",
        "requests",
        "round_trip_s",
        "round_trips",
        "to_client",
        "to_producer",
    )

    # What only a tunnel does (``tunnel.TunnelSession``): an end of file of one direction passes.
    has_client_eof: Final = False
    is_half_closing: Final = False
    is_finishing: Final = False
    has_frames: Final = True

    @property
    def awaits_close(self) -> bool:
        """The client gets bytes of the producer, and then the CLOSE that waits for their end."""
        return self.client_state is not ClientState.OPEN and not self._producer.has_sent_last

    def __init__(self, settings: Settings, deflate: Agreement | None = None) -> None:
        self._client = ClientReader(settings.max_message_bytes, settings.max_buffer_bytes, deflate)
        # The very list that the reader appends to.  The reader, this class and the driver share
        # it, so each of them mutates it (``append``, ``clear``, ``del``, ``[:]``), and none may
        # assign another list to its attribute: the others would go on with the old one.
        self.to_producer = self._client.out
        self.client_state = ClientState.OPEN
        self.producer_state = ProducerState.CONNECTED
        self.close_cause: CloseCause | None = None
        self.close_code = 0
        self.close_reason = ""
        self._max_buffer = settings.max_buffer_bytes
        self._rate = settings.message_rate
        self._rated_at = 0.0
        if self._rate:
            self._client.max_frames = float(self._rate.burst)
        self._hold_s = settings.hold_s
        self._open_frame = b""  # for the next producer; b"": the client is not held
        self._backlog = Backlog()
        self.is_moving = False
        self.knows_lanes = False
        self._is_congested = False  # earlier bytes wait for the client
        self._deferred_pong: bytes | None = None
        self.is_ping_answered = True
        self._pinged_at = 0.0  # when the one unanswered PING was sent; 0.0: none, or several
        self.round_trip_s: float | None = None
        self.round_trips: RoundTrips | None = None
        # Last: a compiled class checks an attribute at each use if __init__ calls a method first.
        self._use_reader(
            ProducerReader(
                deflate,
                settings.deflate_min_size_bytes,
                settings.deflate_level,
                settings.max_buffer_bytes,
            )
        )

    def _use_reader(self, producer: ProducerReader) -> None:
        self._producer = producer
        # Shared lists, as ``to_producer``: mutated and never replaced.
        self.to_client = producer.out
        self.ignored = producer.ignored
        self.requests = producer.requests

    @property
    def deflate(self) -> Agreement | None:
        """What was negotiated with the client; None: no compression."""
        return self._client.deflate

    @property
    def is_paused(self) -> bool:
        """The client's reader has more input: call ``receive_client`` with b""."""
        return self._client.is_paused

    @property
    def producer_reader(self) -> ProducerReader:
        """The reader of the producer's frames, for the client's bridge channel."""
        return self._producer

    @property
    def is_waiting(self) -> bool:
        """The producer is read no further before its channel has sent OFF."""
        return self._producer.is_waiting

    @property
    def client_finished(self) -> bool:
        """Nothing is added to ``to_client`` any more: send it, then shut down."""
        return self.client_state is ClientState.GONE or (
            self.client_state is ClientState.CLOSED and self._producer.has_sent_last
        )

    @property
    def producer_finished(self) -> bool:
        """Nothing is added to ``to_producer``, or read from the producer, any more."""
        return self.producer_state is ProducerState.DELIVERING_BACKLOG or (
            self.producer_state is ProducerState.DONE and self.client_finished
        )

    @property
    def backlog_bytes(self) -> int:
        """Size of the backlog; the driver reads the client only while it is below a buffer."""
        return len(self._backlog)

    @property
    def partial_bytes(self) -> int:
        """Number of the producer's bytes that are held back until their frame is complete."""
        return self._producer.partial_bytes

    @property
    def producer_said(self) -> int:
        """A number that grows with each message and each byte of payload of any producer."""
        return self._producer.messages + self._producer.payload_bytes

    def traffic(self) -> tuple[int, int, int, int]:
        """Return messages and bytes of payload from the client, and the same to the client."""
        client, producer = self._client, self._producer
        if producer.settle is not None:
            producer.settle()
        return client.messages, client.payload_bytes, producer.messages, producer.payload_bytes

    def counts(self) -> str:
        """Return the traffic for the log."""
        return "messages_in={} bytes_in={} messages_out={} bytes_out={}".format(*self.traffic())

    def export_state(self) -> dict[str, Any] | None:
        """Return the state with which a session in another process continues, as JSON values.

        None unless the session is at rest: open, connected, between frames in both directions,
        and without bytes to send.
        """
        # Whatever is not exported below must have its initial value.
        if (
            self.client_state is not _OPEN
            or self.producer_state is not _CONNECTED
            or self.to_client
            or self.to_producer
            or self._is_congested
            or self._deferred_pong is not None
            or self.is_moving
            or self._backlog
        ):
            return None
        client, producer = self._client.export_state(), self._producer.export_state()
        if client is None or producer is None:
            return None
        return {
            "client": client,
            "producer": producer,
            # (The names are those of ``portable.FORMAT`` 1.)
            "opened": base64.b64encode(self._open_frame).decode(),
            "knows_lanes": self.knows_lanes,
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
        self._client.import_state(state["client"])
        self._producer.import_state(state["producer"])
        self._open_frame = base64.b64decode(state["opened"])
        self.knows_lanes = bool(state["knows_lanes"])
        self.is_ping_answered = bool(state["is_ping_answered"])
        self._pinged_at = float(state["pinged_at"])
        self._rated_at = float(state["rated_at"])
        round_trip_s = state["round_trip_s"]
        self.round_trip_s = None if round_trip_s is None else float(round_trip_s)
