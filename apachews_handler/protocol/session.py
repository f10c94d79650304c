"""One WebSocket between its client and its producer: the sans-I/O core of the bridge.

Contract: bytes and ends of file go in (``receive_*``), bytes come out in
``to_client`` and ``to_producer``, which the driver sends and empties after every
call.  ``client_state`` and the two ``*_finished`` tell it what to do with the sockets.
No I/O, no clock; one session a connection, on one thread.

How this works: the two readers do the work while the phase is OPEN; this class
is about how it ends.

    ===================  ========================  ==========================
    what happens         phase OPEN                phase CLOSING
    ===================  ========================  ==========================
    client's CLOSE       CLOSED; answered, passed  CLOSED; passed on
    client's violation   CLOSED; CLOSE to both     CLOSED; CLOSE to producer
    client's EOF         GONE                      GONE
    producer's CLOSE     CLOSING; passed on        (ignored)
    producer's EOF       OPEN, held; or            (ignored)
      inside a message   CLOSING; CLOSE 1012
      inside a frame     GONE
    producer's           CLOSING; CLOSE 1011 to    (ignored)
    violation            the client, its code back
    ``close(end)``       CLOSING; CLOSE to both    (ignored)
    ===================  ========================  ==========================

The producer's side has a life of its own (``ProducerState``): while the client is open, one
producer may take over from another.  Meanwhile the client's messages wait here, up
to one buffer and a read; a client that leaves before they could be delivered is
outlived by them.

    ===================  ==============  ==============  ===========  ===========
    what happens         CONNECTED       LEAVING         MOVED        AWAY
    ===================  ==============  ==============  ===========  ===========
    producer's MOVE      LEAVING, or     (ignored)       (ignored)
                         MOVED at once
    end of a message     passes          MOVED           waits        waits
    producer is deaf     MOVED           MOVED           MOVED
    producer's EOF       AWAY *          AWAY *          AWAY *
    another producer                                                  CONNECTED;
                                                                      LATE **
    client's end         DONE            DONE            MOVED; ***   AWAY; ***
    ===================  ==============  ==============  ===========  ===========

    (*)   DONE where the client has a part of a message only, or is not to be held,
          and nothing waits
    (**)  where the client has left
    (***) DONE where nothing waits

A frame of the bridge's own waits for the end of the producer's frame that is
half sent (see ``ProducerReader``); where the producer's end of file comes first,
the client cannot be told and is dropped.  While the client does not take what is
sent to it, only its last PING is remembered (RFC 6455 5.5.3 allows it), so that
one that pings and never reads costs nothing.

Sources: RFC 6455 5.5 (control frames), 7.1 (closing); docs/reference/wire.md.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
from typing import Any, Final

from apachews import wire
from apachews.monitoring.snapshot import RoundTrips
from apachews_handler.exceptions import Violation
from apachews_handler.settings import Settings

from .client_reader import KEEPALIVE, Alive, ClientReader, Ping
from .close_causes import CloseCause
from .deflate import Agreement
from .producer_reader import SHORT_READ_BYTES, ProducerReader
from .redelivery import undelivered_frames

# What is read beyond a buffer, so that a message as long as a buffer, and both are round
# numbers mostly, comes with its header in one read: 2 bytes, 8 of length, 4 of mask (RFC
# 6455 5.2).
HEADER_BYTES: Final = 14
# First bytes of frames that end a message.
_LAST_FRAMES = frozenset(
    wire.FIN | opcode for opcode in (wire.CONTINUATION, wire.TEXT, wire.BINARY)
)


class ClientState(enum.Enum):
    """Where a connection is in its life; it only ever moves down this list."""

    OPEN = "messages flow both ways"
    CLOSING = "the client was sent, or will be sent, a CLOSE; its own is awaited"
    CLOSED = "nothing more is expected of the client"
    GONE = "the client is gone, or cannot be told anything any more: drop it"


class ProducerState(enum.Enum):
    """Where the producer's side of a connection is."""

    CONNECTED = "messages flow both ways"
    LEAVING = "it asked to move: it is sent the rest of the client's current message"
    MOVED = "it has all that was for it, or takes nothing more; its end of file is awaited"
    AWAY = "there is none; the client is held, its messages wait for the next one"
    LATE = "it is told of a client that has left, and what that said; it has no say"
    DONE = "nothing more is sent to it: it was sent a CLOSE, or it is gone for good"


# (To look a member of an Enum up costs as much as a call in Python 3.11.)
_OPEN: Final = ClientState.OPEN
_CONNECTED: Final = ProducerState.CONNECTED


class Session:
    """One connection's state.

    Args:
        settings: for the limits.
        deflate: what was agreed on with the client; None: no compression.

    Attributes:
        phase: see ``ClientState``.
        side: see ``ProducerState``.
        to_client, to_producer: bytes to send; the driver empties them.
        end: why it ends; None while it is open.
        close_code, close_reason: what it was closed with; the reason is for the
            log, and may say more than the client was told.
        ignored: opcodes of the producer's reserved frames; the driver empties it.
        round_trip_s: how long the client took to answer the last PING of ours; None
            before it has.
        round_trips: where that is counted too; None: nowhere.
    """

    __slots__ = (
        "_client",
        "_held_pong",
        "_hold_s",
        "_is_congested",
        "_is_ping_answered",
        "_max_buffer",
        "_opened",
        "_pinged_at",
        "_producer",
        "_rate",
        "_rated_at",
        "_waiting",
        "_waiting_ends",
        "client_state",
        "close_code",
        "close_reason",
        "end",
        "ignored",
        "producer_state",
        "round_trip_s",
        "round_trips",
        "to_client",
        "to_producer",
    )

    def __init__(self, settings: Settings, deflate: Agreement | None = None) -> None:
        self._client = ClientReader(settings.max_message_bytes, settings.max_buffer_bytes, deflate)
        self._producer = ProducerReader(
            deflate,
            settings.deflate_min_size_bytes,
            settings.deflate_level,
            settings.max_buffer_bytes,
        )
        self._max_buffer = settings.max_buffer_bytes
        self._rate = settings.message_rate
        self._rated_at = 0.0
        if self._rate:
            self._client.max_frames = self._rate.burst
        self._use_reader(self._producer)
        self.to_producer = self._client.wire_out
        self.client_state = ClientState.OPEN
        self.producer_state = ProducerState.CONNECTED
        self._hold_s = settings.hold_s
        self._opened = b""  # the OPEN, where the next producer is to be told it
        self._waiting: bytearray | bytes = b""  # frames for the next producer
        self._waiting_ends = False  # the last of them is a CLOSE
        self.end: CloseCause | None = None
        self.close_code = 0
        self.close_reason = ""
        self._is_congested = False
        self._held_pong: bytes | None = None
        self._is_ping_answered = True
        self._pinged_at = 0.0  # when the one PING was sent whose answer is awaited; else 0.0
        self.round_trip_s: float | None = None
        self.round_trips: RoundTrips | None = None

    def _use_reader(self, producer: ProducerReader) -> None:
        self._producer = producer
        self.to_client = producer.client_out
        self.ignored = producer.ignored

    @property
    def deflate(self) -> Agreement | None:
        """What was agreed on with the client; None: no compression."""
        return self._client.deflate

    @property
    def is_paused(self) -> bool:
        """There is more of the client's: call ``receive_client`` with b""."""
        return self._client.is_paused

    @property
    def client_finished(self) -> bool:
        """Nothing is added to ``to_client`` any more: send it, then shut down."""
        return self.client_state is ClientState.GONE or (
            self.client_state is ClientState.CLOSED and self._producer.has_ended
        )

    @property
    def producer_finished(self) -> bool:
        """Nothing is added to ``to_producer``, or wanted of the producer, any more."""
        return self.producer_state is ProducerState.LATE or (
            self.producer_state is ProducerState.DONE and self.client_finished
        )

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait for the next producer.

        The driver reads the client only while that is less than a buffer.
        """
        return len(self._waiting)

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the producer's are kept back until their frame is whole."""
        return self._producer.kept_bytes

    @property
    def producer_room(self) -> int:
        """How many bytes to read of the producer at most: one buffer, less what is kept back."""
        room = self._max_buffer + HEADER_BYTES - self._producer.kept_bytes
        return min(room, SHORT_READ_BYTES) if self._producer.has_many else room

    @property
    def is_moving(self) -> bool:
        """True where the producer asked for another one in its place."""
        return self._producer.wants_to_move

    @property
    def producer_said(self) -> int:
        """A number that grows with whatever messages producers send."""
        return self._producer.messages + self._producer.payload_bytes

    @property
    def is_ping_answered(self) -> bool:
        """True if the client has answered the last PING of the bridge's own, or one before it.

        It may answer only the last of several (RFC 6455 5.5.3).
        """
        return self._is_ping_answered

    def traffic(self) -> tuple[int, int, int, int]:
        """Return what passed: messages and bytes of payload from the client, and to it."""
        client, producer = self._client, self._producer
        return client.messages, client.payload_bytes, producer.messages, producer.payload_bytes

    def counts(self) -> str:
        """Return what passed, for the log."""
        return "messages_in={} bytes_in={} messages_out={} bytes_out={}".format(*self.traffic())

    def export_state(self) -> dict[str, Any] | None:
        """Return what a session in another process needs to continue, as values of JSON.

        None unless the session is at rest: open, connected, between frames both ways, and
        with nothing to send.
        """
        if (
            self.client_state is not _OPEN
            or self.producer_state is not _CONNECTED
            or self.to_client
            or self.to_producer
            or self._is_congested
            or self._held_pong is not None
            or self._waiting
        ):
            return None
        client, producer = self._client.export_state(), self._producer.export_state()
        if client is None or producer is None:
            return None
        return {
            "client": client,
            "producer": producer,
            "opened": base64.b64encode(self._opened).decode(),
            "is_ping_answered": self._is_ping_answered,
            "pinged_at": self._pinged_at,
            "rated_at": self._rated_at,
            "round_trip_s": self.round_trip_s,
        }

    def import_state(self, state: dict[str, Any]) -> None:
        """Continue as the session whose state this is; only before the first byte.

        Raises:
            KeyError, TypeError, ValueError: it is not such a state.
        """
        self._client.import_state(state["client"])
        self._producer.import_state(state["producer"])
        self._opened = base64.b64decode(state["opened"])
        self._is_ping_answered = bool(state["is_ping_answered"])
        self._pinged_at = float(state["pinged_at"])
        self._rated_at = float(state["rated_at"])
        round_trip_s = state["round_trip_s"]
        self.round_trip_s = None if round_trip_s is None else float(round_trip_s)

    def open(self, open_: wire.Open, *, is_told: bool = False) -> None:
        """Tell the producer of the connection, first of all.

        Args:
            open_: what it is told; the next one too, if it comes to that.
            is_told: the producer has it already.
        """
        frame = open_.encode()
        if self._hold_s:
            self._opened = frame
        if not is_told:
            self.to_producer.append(frame)

    def receive_client(self, data: bytes, now: float = 0.0, busy: int = 1) -> None:
        """Take bytes from the client.

        Args:
            data: as they came; b"" to go on after a pause.
            now: a clock's reading, seconds; for the rate of messages and round trips.
            busy: how many connections share what a turn of the loop takes.
        """
        if self.client_state is not _OPEN and self.client_state is not ClientState.CLOSING:
            return
        if self._rate:
            self._allow_frames(now)
        controls = self._client.receive(data, busy)
        if self.client_state is not _OPEN:
            self.to_producer.clear()  # no message passes after a CLOSE
        elif self.producer_state is not _CONNECTED:
            self._divert()
        for control in controls:
            if isinstance(control, Alive):
                self._take_round_trip(now)
            else:
                self._receive_control(control)

    def receive_client_eof(self) -> None:
        """The client is gone: after its CLOSE, or without a word."""
        self._note(CloseCause.CLIENT_LEFT)
        self.client_state = ClientState.GONE
        self._finish_producer()

    def receive_producer(self, data: bytes) -> None:
        """Take bytes from the producer."""
        if self.client_state is not _OPEN and (
            self.client_finished or self.producer_state is ProducerState.LATE
        ):
            return
        end = self._producer.receive(data)
        if end is None and not self._producer.wants_to_move:
            return
        if end is not None and self.producer_state is ProducerState.MOVED:
            # It closes the client rather than leave it to the next one.
            self._drop_waiting()
            self.producer_state = ProducerState.DONE
        if isinstance(end, wire.Close):
            self._begin_close(CloseCause.PRODUCER_CLOSED, end.code, end.reason)
        elif end is not None:
            self._send_producer_close(end.code, "")
            if self.client_state is ClientState.OPEN:
                self._begin_close(CloseCause.PRODUCER_ERROR)
                self.close_reason = end.reason  # the producer's fault is not the client's business
        elif (
            self._producer.wants_to_move
            and self._opened
            and self.producer_state is ProducerState.CONNECTED
        ):
            self.producer_state = ProducerState.LEAVING
            if not self._client.has_begun_message:
                self._send_move()

    def receive_producer_eof(self, unsent: bytes = b"", sent: int = 0) -> None:
        """The producer is gone: after its CLOSE, or without a word.

        Where the client is kept for another one the side is AWAY afterwards.

        Args:
            unsent: whole frames of which it was not sent everything, in order.
            sent: how many bytes of these it was sent.
        """
        if self.producer_state is ProducerState.LATE:
            self.to_producer.clear()
            return
        if self._opened and self.producer_state is not ProducerState.DONE:
            self._keep(unsent + b"".join(self.to_producer), sent)
        self.to_producer.clear()
        can_go_on = self._producer.is_between_messages
        self.producer_state = ProducerState.AWAY if self._waiting else ProducerState.DONE
        if self.client_state is ClientState.OPEN and self._opened and can_go_on:
            self.producer_state = ProducerState.AWAY
            self._producer.begin_again()
        elif self._producer.is_between_frames:
            self._begin_close(CloseCause.PRODUCER_LEFT)
        else:
            # Half a frame is out; whatever followed would be read as its rest.
            self._note(CloseCause.PRODUCER_CUT_OFF)
            self.client_state = ClientState.GONE

    def receive_producer_deafness(self, unsent: bytes, sent: int) -> None:
        """The producer takes nothing more; what it said before may still come.

        Args:
            unsent, sent: as in ``receive_producer_eof``.
        """
        is_open = self.client_state is ClientState.OPEN and self.producer_state in (
            ProducerState.CONNECTED,
            ProducerState.LEAVING,
        )
        if self._opened and (is_open or self.producer_state is ProducerState.MOVED):
            self._keep(unsent, sent)
            self.producer_state = ProducerState.MOVED

    def resume(self) -> None:
        """There is another producer: tell it of the connection and what waited for it."""
        self.to_producer.append(_resumed(self._opened))
        if self._waiting:
            self.to_producer.append(bytes(self._waiting))
        self._drop_waiting()
        self.producer_state = (
            ProducerState.CONNECTED if self.client_state is ClientState.OPEN else ProducerState.LATE
        )

    def give_up_holding(self) -> None:
        """There was no other producer in time."""
        self._drop_waiting()
        self.producer_state = ProducerState.DONE
        self._begin_close(CloseCause.PRODUCER_LEFT)

    def set_congested(self, is_congested: bool) -> None:
        """Say whether earlier bytes still wait for the client."""
        self._is_congested = is_congested
        if not is_congested and self._held_pong is not None:
            pong, self._held_pong = self._held_pong, None
            self._producer.insert(pong)

    def ping(self, now: float = 0.0) -> bool:
        """Send the client a PING; False where it would stand inside a frame.

        Args:
            now: a clock's reading, seconds; that of ``receive_client``.
        """
        if not self._producer.is_between_frames:
            return False
        self._producer.insert(wire.encode_frame(wire.PING, KEEPALIVE))
        # Where an earlier one is not answered, nobody can say which one the next PONG is for.
        self._pinged_at = 0.0 if self._client.expected_pongs else now
        self._client.expected_pongs += 1
        self._is_ping_answered = False
        return True

    def close(self, end: CloseCause) -> None:
        """Say goodbye to both sides."""
        if self.client_state is ClientState.OPEN:
            self._send_producer_close(end.code, end.reason)
            self._begin_close(end)

    def fail(self) -> None:
        """Give up: an error of ours."""
        self._note(CloseCause.FAILED)
        self.client_state = ClientState.GONE
        self.producer_state = ProducerState.DONE
        self._drop_waiting()

    def _allow_frames(self, now: float) -> None:
        """Refill the bucket of frames by the time that went by."""
        assert self._rate
        client = self._client
        more = (now - self._rated_at) * self._rate.per_s
        self._rated_at = now
        full = client.messages + client.controls + self._rate.burst
        client.max_frames = min(client.max_frames + more, full)

    def _take_round_trip(self, now: float) -> None:
        self._is_ping_answered = True
        if self._pinged_at:
            self.round_trip_s = now - self._pinged_at
            if self.round_trips:
                self.round_trips.observe(self.round_trip_s)
        self._pinged_at = 0.0

    def _receive_control(self, control: Ping | wire.Close | Violation) -> None:
        if isinstance(control, Ping):
            frame = wire.encode_frame(wire.PONG, control.payload)
            if self._is_congested:
                self._held_pong = frame
            else:
                self._producer.insert(frame)
            return
        was_open, self.client_state = self.client_state is ClientState.OPEN, ClientState.CLOSED
        if isinstance(control, Violation):
            self._note(CloseCause.of_violation(control.code), control.code, control.reason)
        else:
            self._note(CloseCause.CLIENT_CLOSED, control.code, control.reason)
        self._send_producer_close(control.code, control.reason)
        if was_open:
            # The answer to a CLOSE repeats its code (RFC 6455 5.5.1), and its reason: browsers
            # show the page what the answer says.
            self._send_client_close(control.code, control.reason)

    def _begin_close(self, end: CloseCause, code: int = 0, reason: str = "") -> None:
        """Send the client a CLOSE and wait for its own."""
        if self.client_state is ClientState.OPEN:
            self._note(end, code, reason)
            self.client_state = ClientState.CLOSING
            self._send_client_close(self.close_code, self.close_reason)

    def _note(self, end: CloseCause, code: int = 0, reason: str = "") -> None:
        if self.end is None:
            self.end = end
            self.close_code = code or end.code
            self.close_reason = reason or end.reason

    def _send_client_close(self, code: int, reason: str) -> None:
        self._producer.insert_last(wire.encode_frame(wire.CLOSE, wire.encode_close(code, reason)))

    def _send_producer_close(self, code: int, reason: str) -> None:
        frame = wire.encode_frame(wire.CLOSE, wire.encode_close(code, reason))
        if self.producer_state in (ProducerState.CONNECTED, ProducerState.LEAVING):
            self.to_producer.append(frame)
        elif self._waiting and not self._waiting_ends:
            self._waiting += frame
            self._waiting_ends = True
        self._finish_producer()

    def _finish_producer(self) -> None:
        """Nothing more will be put out for the producer; what waits is delivered first."""
        if not self._waiting and self.producer_state is not ProducerState.LATE:
            self.producer_state = ProducerState.DONE

    def _send_move(self) -> None:
        self.to_producer.append(wire.encode_frame(wire.MOVE, b""))
        self.producer_state = ProducerState.MOVED

    def _divert(self) -> None:
        """Have what the client sent wait for the next producer, but for what this one began."""
        frames = self.to_producer
        if self.producer_state is not ProducerState.LEAVING:
            self._wait(frames)
            frames.clear()
            return
        for index, frame in enumerate(frames):
            if frame[0] in _LAST_FRAMES:
                self._wait(frames[index + 1 :])
                del frames[index + 1 :]
                self._send_move()
                return

    def _keep(self, frames: bytes, sent: int) -> None:
        """Have what the producer was not sent wait for the next one, before all else."""
        has_begun = (
            self._client.has_begun_message and self.producer_state is not ProducerState.MOVED
        )
        kept, is_lost = undelivered_frames(frames, sent, has_begun)
        if is_lost:
            self._client.discard_message()
        if kept:
            self._waiting = bytearray(b"".join(kept)) + self._waiting

    def _wait(self, frames: list[bytes]) -> None:
        if frames and not self._waiting:
            self._waiting = bytearray()
        for frame in frames:
            # A PONG answers a PING of the producer that is gone.
            if frame[0] & wire.OPCODE != wire.PONG:
                self._waiting += frame

    def _drop_waiting(self) -> None:
        self._waiting = b""
        self._waiting_ends = False


def _resumed(frame: bytes) -> bytes:
    """Return an OPEN as another producer is told it."""
    header = wire.decode_header(frame, 0)
    assert header is not None, "it is a whole frame"
    open_ = wire.Open.decode(frame[header[2] :])
    return dataclasses.replace(open_, resumed=True, answer_required=False).encode()
