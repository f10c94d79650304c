"""One WebSocket between its client and its producer: the sans-I/O core of the bridge.

Contract: bytes and ends of file go in (``receive_*``), bytes come out in
``to_client`` and ``to_producer``, which the driver sends and empties after every
call.  ``phase`` and the two ``*_finished`` tell it what to do with the sockets.
No I/O, no clock; one session a connection, on one thread.

How this works: the two readers do the work while the phase is OPEN; this class
is about how it ends.

    ===================  ========================  ==========================
    what happens         phase OPEN                phase CLOSING
    ===================  ========================  ==========================
    client's CLOSE       CLOSED; answered, passed  CLOSED; passed on
    client's violation   CLOSED; CLOSE to both     CLOSED; CLOSE to producer
    client's EOF         CLOSED                    CLOSED
    producer's CLOSE     CLOSING; passed on        (ignored)
    producer's EOF       CLOSING; CLOSE 1012       (ignored)
    producer's           CLOSING; CLOSE 1011 to    (ignored)
    violation            the client, its code back
    ``close(code)``      CLOSING; CLOSE to both    (ignored)
    ===================  ========================  ==========================

A frame of the bridge's own waits for the end of the producer's frame that is
half sent (see ``ProducerReader``); where the producer's end of file comes first,
the client cannot be told and is dropped.  While the client does not take what is
sent to it, only its last PING is remembered (RFC 6455 5.5.3 allows it), so that
one that pings and never reads costs nothing.

Sources: RFC 6455 5.5 (control frames), 7.1 (closing); docs/wire.md.
"""

from __future__ import annotations

import enum

from apachews import wire

from .client_reader import ClientReader, Control, Ping
from .exceptions import Violation
from .producer_reader import ProducerReader


class Phase(enum.Enum):
    """Where a connection is in its life; it only ever moves down this list."""

    OPEN = "messages flow both ways"
    CLOSING = "the client was sent, or will be sent, a CLOSE; its own is awaited"
    CLOSED = "nothing more is expected of the client"


class Session:
    """One connection's state.

    Args:
        open_: what the producer is told first.
        max_message_bytes: longest message taken from the client.

    Attributes:
        phase: see ``Phase``.
        to_client, to_producer: bytes to send; the driver empties them.
        is_aborted: the client cannot be told anything any more: drop it.
        closed_by: who began the close: ``client``, ``producer``, ``bridge``, or
            "" while it is open.
        close_code, close_reason: what it was closed with.
        fault: what a peer did wrong, for the log; "" for nothing.
        ignored: opcodes of the producer's reserved frames; the driver empties it.
    """

    __slots__ = (
        "_client",
        "_has_closed_producer",
        "_held_pong",
        "_is_congested",
        "_producer",
        "close_code",
        "close_reason",
        "closed_by",
        "fault",
        "ignored",
        "is_aborted",
        "phase",
        "to_client",
        "to_producer",
    )

    def __init__(self, open_: wire.Open, max_message_bytes: int) -> None:
        self._client = ClientReader(max_message_bytes)
        self._producer = ProducerReader()
        self.to_client = self._producer.client_out
        self.to_producer = self._client.wire_out
        self.to_producer.append(open_.encode())
        self.ignored = self._producer.ignored
        self.phase = Phase.OPEN
        self.is_aborted = False
        self.closed_by = ""
        self.close_code = 0
        self.close_reason = ""
        self.fault = ""
        self._has_closed_producer = False  # its CLOSE is out, or it is gone
        self._is_congested = False
        self._held_pong: bytes | None = None

    @property
    def client_finished(self) -> bool:
        """Nothing is added to ``to_client`` any more: send it, then shut down."""
        return self.is_aborted or (self.phase is Phase.CLOSED and self._producer.has_ended)

    @property
    def producer_finished(self) -> bool:
        """Nothing is added to ``to_producer``, or wanted of the producer, any more."""
        return self._has_closed_producer and self.client_finished

    def receive_client(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self.phase is Phase.CLOSED:
            return
        controls = self._client.receive(data)
        if self.phase is Phase.CLOSING:
            self.to_producer.clear()  # no message passes after a CLOSE
        for control in controls:
            self._receive_control(control)

    def receive_client_eof(self) -> None:
        """The client is gone: after its CLOSE, or without a word."""
        self._note("client", wire.ABNORMAL, "the connection broke off")
        self.phase = Phase.CLOSED
        self.is_aborted = self._has_closed_producer = True

    def receive_producer(self, data: bytes) -> None:
        """Take bytes from the producer."""
        end = self._producer.receive(data)
        if isinstance(end, wire.Close):
            self._begin_close("producer", end.code, end.reason)
        elif end is not None:
            self.fault = end.reason
            self._send_producer_close(end.code, "")
            self._begin_close("bridge", wire.INTERNAL_ERROR, "")

    def receive_producer_eof(self) -> None:
        """The producer is gone: after its CLOSE, or without a word."""
        self._has_closed_producer = True
        self.to_producer.clear()
        if self._producer.is_between_frames:
            self._begin_close("producer", wire.SERVICE_RESTART, "the producer is gone")
        else:
            # Half a frame is out; whatever followed would be read as its rest.
            self._note("producer", wire.ABNORMAL, "the producer died inside a frame")
            self.phase = Phase.CLOSED
            self.is_aborted = True

    def set_congested(self, is_congested: bool) -> None:
        """Say whether earlier bytes still wait for the client."""
        self._is_congested = is_congested
        if not is_congested and self._held_pong is not None:
            pong, self._held_pong = self._held_pong, None
            self._producer.insert(pong)

    def close(self, code: int, reason: str) -> None:
        """Say goodbye to both sides."""
        if self.phase is Phase.OPEN:
            self._send_producer_close(code, reason)
            self._begin_close("bridge", code, reason)

    def _receive_control(self, control: Control) -> None:
        if isinstance(control, Ping):
            frame = wire.encode_frame(wire.PONG, control.payload)
            if self._is_congested:
                self._held_pong = frame
            else:
                self._producer.insert(frame)
            return
        if isinstance(control, Violation):
            self.fault = control.reason
        was_open, self.phase = self.phase is Phase.OPEN, Phase.CLOSED
        self._note("bridge" if self.fault else "client", control.code, control.reason)
        self._send_producer_close(control.code, control.reason)
        if was_open:
            # The answer to a CLOSE repeats its code (RFC 6455 5.5.1).
            self._send_client_close(control.code, self.fault)

    def _begin_close(self, by: str, code: int, reason: str) -> None:
        """Send the client a CLOSE and wait for its own."""
        if self.phase is Phase.OPEN:
            self._note(by, code, reason)
            self.phase = Phase.CLOSING
            self._send_client_close(code, reason)

    def _note(self, by: str, code: int, reason: str) -> None:
        if not self.closed_by:
            self.closed_by, self.close_code, self.close_reason = by, code, reason

    def _send_client_close(self, code: int, reason: str) -> None:
        self._producer.insert_last(wire.encode_frame(wire.CLOSE, wire.encode_close(code, reason)))

    def _send_producer_close(self, code: int, reason: str) -> None:
        if not self._has_closed_producer:
            self._has_closed_producer = True
            self.to_producer.append(wire.encode_frame(wire.CLOSE, wire.encode_close(code, reason)))
