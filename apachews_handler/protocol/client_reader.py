"""From the client's frames to the wire: the bridge's half of RFC 6455 on reading.

Contract: ``ClientReader.receive(data)`` takes bytes as they came from the client,
cut anywhere.  It appends what goes to the producer, as whole frames of the wire,
to ``wire_out``, and returns the control frames that are for the bridge.  Everything
is checked; the first thing wrong comes back as the last control.  Sans-I/O; one
reader a connection.

How this works: nothing is held but the beginning of a header (13 bytes at most)
and control frames (125 bytes at most).  Of a data frame that has not all arrived,
what has goes on at once, as a fragment of its message: so the memory for one
connection does not depend on the size of its messages, and the producer sees the
same message.  Text is checked as it passes, across the cuts.

A compressed message is inflated as it passes.  A few bytes may become a thousand
times as many: once a buffer's worth of it is out, the reader pauses and keeps what
it was given; ``receive(b"")`` goes on.  It pauses after ``FRAMES_A_TURN`` frames as well;
connections that are busy at the same time share both.

Sources: RFC 6455 5.2-5.5 (framing), 5.6 and 8.1 (UTF-8), 7.4 (codes); RFC 7692 6.
(RSV1), 7.2.2 (inflating).
"""

from __future__ import annotations

import base64
import codecs
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from apachews import wire
from apachews.exceptions import WireError
from apachews_handler.exceptions import Violation

from .deflate import Agreement, Inflater
from .mask import unmask

# Frames after which the reader pauses, so that the loop can serve the other connections: so
# many take 1.6 ms.  One read of 64 KiB has 11,000 empty frames, which take 8 ms.
FRAMES_A_TURN: Final = 2048
# What several busy connections share: fewer, because each turn of theirs is a wait for the
# others; and not so few for one alone, which would lose a fifth of its throughput.
SHARED_FRAMES_A_TURN: Final = 512
# The least that a connection gets of these, and of the bytes to inflate, however many are busy.
MIN_FRAMES_A_TURN: Final = 16
MIN_ROOM_BYTES: Final = 4096
# What a compressed frame counts for: inflating costs as much as three other frames do.
INFLATED_FRAMES: Final = 4

_new_utf8_decoder: Final = codecs.getincrementaldecoder("utf-8")

_TEXT_WHOLE: Final = wire.FIN | wire.TEXT
_WHOLE: Final = frozenset((_TEXT_WHOLE, wire.FIN | wire.BINARY))
_DATA_OPCODES: Final = frozenset((wire.CONTINUATION, wire.TEXT, wire.BINARY))
_CONTROL_OPCODES: Final = frozenset((wire.CLOSE, wire.PING, wire.PONG))
# RFC 7692 6.: the message is compressed.
_COMPRESSED: Final = 0x40
# The bridge's own PINGs carry this; their PONGs are not passed on.
KEEPALIVE: Final = b"apachews keep-alive"


@dataclass(frozen=True, slots=True)
class Ping:
    """The client wants a PONG with this payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Alive:
    """The client has answered a PING of the bridge's own."""


_ALIVE: Final = Alive()
Control: TypeAlias = "Ping | Alive | wire.Close | Violation"


class ClientReader:
    """Reads one client's frames.

    Args:
        max_message_bytes: longest message, inflated; a longer one is a Violation
            1009, as soon as a header announces it where it is not compressed.
        max_buffer_bytes: how much it puts out of compressed messages before it
            pauses.
        deflate: what was agreed on; None: no message may be compressed.

    Attributes:
        wire_out: frames for the producer; the caller takes and empties it.
        messages, payload_bytes: how many messages began, and their bytes so far,
            inflated.
        controls: how many other frames came that cost something: PINGs, PONGs, and
            fragments without a byte.
        expected_pongs: how many answers to the bridge's own PINGs are not counted.
        max_frames: when that many messages and controls came, one more is a
            Violation 1008; the caller may raise it at any time.
        is_paused: there is more, for ``receive(b"")`` once ``wire_out`` was taken.
    """

    __slots__ = (
        "_decode",
        "_deflate",
        "_discards",
        "_fin",
        "_finished",
        "_frames_left",
        "_has_output",
        "_inflater",
        "_is_compressed",
        "_mask",
        "_max_buffer_bytes",
        "_max_message_bytes",
        "_message_bytes",
        "_message_opcode",
        "_next_opcode",
        "_remaining",
        "_rest",
        "controls",
        "expected_pongs",
        "is_paused",
        "max_frames",
        "messages",
        "payload_bytes",
        "wire_out",
    )

    def __init__(
        self,
        max_message_bytes: int,
        max_buffer_bytes: int = 65536,
        deflate: Agreement | None = None,
    ) -> None:
        self.wire_out: list[bytes] = []
        self.messages = self.controls = self.payload_bytes = self.expected_pongs = 0
        self.max_frames: float = sys.maxsize
        self.is_paused = False
        self._max_message_bytes = max_message_bytes
        self._max_buffer_bytes = max_buffer_bytes
        self._deflate = deflate
        self._inflater: Inflater | None = None  # made with the first compressed message
        self._has_output = False  # the inflater has more to give
        self._frames_left = 0  # until the reader pauses
        self._is_compressed = False  # the current message is
        # The beginning of a header or of a control frame; what came while paused.
        self._rest = b""
        self._remaining = 0  # payload of the current data frame still to come
        self._mask = b""  # its mask, rotated to the next byte
        self._fin = 0  # its FIN bit
        self._message_opcode = 0  # TEXT or BINARY inside a message, else 0
        self._next_opcode = 0  # the next fragment's: that, then CONTINUATION
        self._message_bytes = 0
        self._decode: Callable[[bytes, bool], str] | None = None  # inside a text message
        self._discards = False  # the rest of the current message goes to nobody
        self._finished = False  # after a CLOSE or a violation

    @property
    def deflate(self) -> Agreement | None:
        """What was agreed on; None: no message may be compressed."""
        return self._deflate

    @property
    def has_begun_message(self) -> bool:
        """True where a part of a message was put out, and its end is still to be."""
        return (
            self._message_opcode != 0
            and self._next_opcode == wire.CONTINUATION
            and not self._discards
        )

    def discard_message(self) -> None:
        """Put nothing more out of the message whose beginning was; it is checked to its end."""
        self._discards = True

    def export_state(self) -> dict[str, Any] | None:
        """Return what a reader in another process needs to continue, as values of JSON.

        None inside a frame or a message, and after the end.
        """
        if (
            self._rest
            or self._remaining
            or self._message_opcode
            or self.is_paused
            or self._finished
            or self.wire_out
        ):
            return None
        window = self._inflater.window() if self._inflater else b""
        return {
            "messages": self.messages,
            "payload_bytes": self.payload_bytes,
            "controls": self.controls,
            "expected_pongs": self.expected_pongs,
            "max_frames": self.max_frames,
            "window": base64.b64encode(window).decode(),
        }

    def import_state(self, state: dict[str, Any]) -> None:
        """Continue as the reader whose state this is; only before the first byte."""
        self.messages = int(state["messages"])
        self.payload_bytes = int(state["payload_bytes"])
        self.controls = int(state["controls"])
        self.expected_pongs = int(state["expected_pongs"])
        self.max_frames = state["max_frames"]
        window = base64.b64decode(state["window"])
        if window and self._deflate:
            self._inflater = Inflater(self._deflate.client_window_bits, window)

    def receive(self, data: bytes, busy: int = 1) -> list[Control]:
        """Take bytes from the client; return the controls among them, in order.

        Args:
            data: as they came; b"" to go on after a pause.
            busy: how many connections share the frames and the room of a turn.
        """
        controls: list[Control] = []
        if self._finished:
            return controls
        self._frames_left = FRAMES_A_TURN
        room = self._max_buffer_bytes
        if busy > 1:
            self._frames_left = max(MIN_FRAMES_A_TURN, SHARED_FRAMES_A_TURN // busy)
            room = max(min(MIN_ROOM_BYTES, room), room // busy)
        try:
            self._receive(data, room, controls)
        except Violation as violation:
            self._finished = True
            controls.append(violation)
        if self._finished:
            self._rest = b""
            self._inflater = None
            self.is_paused = False
        return controls

    def _receive(self, data: bytes, room: int, controls: list[Control]) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        self.is_paused = False
        if self._has_output:
            room = self._inflate(room)
        position, end = 0, len(data)
        while position < end and not self.is_paused:
            if self._remaining:
                piece = data[position : position + self._remaining]
                position += len(piece)
                if self._is_compressed:
                    room = self._take_compressed(piece, room)
                else:
                    self._take_payload(piece)
                continue
            if end - position < 2:
                break
            if self._frames_left <= 0:
                self.is_paused = True
                break
            self._frames_left -= 1
            first, length = data[position], data[position + 1] - wire.MASKED
            if length < 0:
                raise Violation(wire.PROTOCOL_ERROR, "a client's frame is not masked")
            # The common case first: a whole message in one frame that is not long.
            payload_at = position + 6
            if first in _WHOLE and length < 127 and not self._message_opcode:
                size, start = length, payload_at
                if length == 126 and position + 8 <= end:
                    size, start = data[position + 2] << 8 | data[position + 3], payload_at + 2
                # (Its length is in the shortest form where it is not less than the short one.)
                if start + size <= end and length <= size <= self._max_message_bytes:
                    position = start + size
                    payload = unmask(data[start:position], data[start - 4 : start])
                    self.messages += 1
                    if self.messages + self.controls > self.max_frames:
                        raise _too_many()
                    if first == _TEXT_WHOLE and not payload.isascii():
                        try:
                            payload.decode()
                        except UnicodeDecodeError:
                            raise _not_utf8() from None
                    self.payload_bytes += size
                    self.wire_out.append(
                        (bytes((first, size)) if size < 126 else wire.encode_header(first, size))
                        + payload
                    )
                    continue
            opcode = self._check_first_byte(first, length)
            if length > 125:
                size = 2 if length == 126 else 8
                if end - position < 2 + size:
                    break
                length = _decode_length(data[position + 2 : position + 2 + size])
                payload_at += size
            if opcode in _CONTROL_OPCODES:
                if payload_at + length > end:
                    break
                payload = unmask(
                    data[payload_at : payload_at + length], data[payload_at - 4 : payload_at]
                )
                position = payload_at + length
                if self._take_control(opcode, payload, controls):
                    return
                continue
            if payload_at > end:
                break
            self._begin_data_frame(first, opcode, length)
            self._mask = data[payload_at - 4 : payload_at]
            position = payload_at
            if not length:
                if opcode == wire.CONTINUATION and not self._fin:
                    self._count_control()
                if self._is_compressed:
                    room = self._take_compressed(b"", room)
                elif self._fin:
                    # (One that does not end its message says nothing.)
                    self._take_payload(b"")
        self._rest = data[position:]

    def _check_first_byte(self, first: int, length: int) -> int:
        """Return the opcode of a header's first byte if it is good (RFC 6455 5.2, 5.5)."""
        opcode = first & wire.OPCODE
        if first & wire.RSV and not (
            # RFC 7692 6.: on the first frame of a message.
            first & wire.RSV == _COMPRESSED and self._deflate and opcode in (wire.TEXT, wire.BINARY)
        ):
            raise Violation(wire.PROTOCOL_ERROR, "an RSV bit is set that no extension gives sense")
        if opcode in _CONTROL_OPCODES:
            if not first & wire.FIN:
                raise Violation(wire.PROTOCOL_ERROR, "a control frame is fragmented")
            if length > wire.MAX_CONTROL_BYTES:
                raise Violation(wire.PROTOCOL_ERROR, "a control frame has more than 125 bytes")
        elif opcode not in _DATA_OPCODES:
            raise Violation(wire.PROTOCOL_ERROR, f"opcode {opcode:#x} is reserved")
        elif opcode == wire.CONTINUATION:
            if not self._message_opcode:
                raise Violation(wire.PROTOCOL_ERROR, "a CONTINUATION has no message to continue")
        elif self._message_opcode:
            raise Violation(wire.PROTOCOL_ERROR, "a new message inside a fragmented one")
        return opcode

    def _begin_data_frame(self, first: int, opcode: int, length: int) -> None:
        if opcode != wire.CONTINUATION:
            self._message_opcode = self._next_opcode = opcode
            self._message_bytes = 0
            self._decode = _new_utf8_decoder().decode if opcode == wire.TEXT else None
            self._is_compressed = bool(first & _COMPRESSED)
            self.messages += 1
            if self.messages + self.controls > self.max_frames:
                raise _too_many()
        if not self._is_compressed:
            self._count_message_bytes(length)
        self._fin = first & wire.FIN
        self._remaining = length

    def _count_control(self) -> None:
        self.controls += 1
        if self.messages + self.controls > self.max_frames:
            raise _too_many()

    def _count_message_bytes(self, length: int) -> None:
        self._message_bytes += length
        if self._message_bytes > self._max_message_bytes:
            raise Violation(
                wire.TOO_BIG, f"a message has more than {self._max_message_bytes} bytes"
            )

    def _take_payload(self, piece: bytes) -> None:
        """Pass on a piece of the current data frame."""
        payload = self._unmask_piece(piece)
        self._pass_on(payload, is_last=not self._remaining and bool(self._fin))

    def _unmask_piece(self, piece: bytes) -> bytes:
        payload = unmask(piece, self._mask)
        self._remaining -= len(piece)
        if self._remaining:
            turn = len(piece) % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
        return payload

    def _take_compressed(self, piece: bytes, room: int) -> int:
        """Inflate a piece of the current data frame; return the room that is left."""
        if self._inflater is None:
            assert self._deflate, "only then RSV1 was let pass"
            self._inflater = Inflater(self._deflate.client_window_bits)
        payload = self._unmask_piece(piece)
        self._inflater.feed(payload)
        return self._inflate(room)

    def _inflate(self, room: int) -> int:
        """Pass on what the inflater has, as far as there is room; return what is left."""
        inflater = self._inflater
        assert inflater and self._deflate
        self._has_output = False
        while room > 0:
            out = inflater.read(room)
            self._count_message_bytes(len(out))
            has_more = len(out) == room
            is_last = not has_more and not self._remaining and bool(self._fin)
            if is_last:
                self._frames_left -= INFLATED_FRAMES + inflater.streams
                inflater.end_message()
                if not self._deflate.client_keeps_context:
                    self._inflater = None
            if out or is_last:
                self._pass_on(out, is_last)
            room -= len(out)
            if not has_more:
                return room
        self.is_paused = self._has_output = True
        return 0

    def _pass_on(self, payload: bytes, is_last: bool) -> None:
        """Check and put out a piece of the current message."""
        if self._decode:
            try:
                self._decode(payload, is_last)
            except UnicodeDecodeError:
                raise _not_utf8() from None
        if is_last:
            first = wire.FIN | self._next_opcode
            self._message_opcode = 0
        else:
            first = self._next_opcode
            self._next_opcode = wire.CONTINUATION
        self.payload_bytes += len(payload)
        if not self._discards:
            self.wire_out.append(wire.encode_header(first, len(payload)) + payload)
        elif is_last:
            self._discards = False

    def _take_control(self, opcode: int, payload: bytes, controls: list[Control]) -> bool:
        """Take a whole control frame; return True where it is the last one."""
        if opcode == wire.PONG and payload == KEEPALIVE and self.expected_pongs:
            self.expected_pongs -= 1
            controls.append(_ALIVE)
            return False
        if opcode != wire.CLOSE:
            self._count_control()
        if opcode == wire.PING:
            controls.append(Ping(payload))
        elif opcode == wire.PONG:
            # The producer's own pings are answered; a PONG nobody asked for is
            # allowed (RFC 6455 5.5.3) and does no harm there.
            self.wire_out.append(wire.encode_frame(wire.PONG, payload))
        else:
            try:
                controls.append(wire.decode_close(payload))
            except WireError as error:
                raise Violation(error.code, error.reason) from error
            self._finished = True
        return self._finished


def _decode_length(field: bytes) -> int:
    """Return an extended payload length (RFC 6455 5.2)."""
    length = int.from_bytes(field, "big")
    if length < (126 if len(field) == 2 else 65536):
        raise Violation(wire.PROTOCOL_ERROR, "a length is not in its shortest form")
    if length >> 63:
        raise Violation(wire.PROTOCOL_ERROR, "a length is over 2**63 - 1")
    return length


def _too_many() -> Violation:
    return Violation(wire.POLICY_VIOLATION, "too many messages in a short time")


def _not_utf8() -> Violation:
    return Violation(wire.INVALID_DATA, "a text message is not UTF-8")
