"""Client to producer: checks RFC 6455 frames and turns them into frames of the wire.

Contract: ``ClientReader.receive(data)`` accepts bytes of the client's stream, cut at any
position.  It appends whole frames for the producer to ``out`` and returns the events that
concern the bridge: PINGs, answers to the bridge's own PINGs, and the CLOSE or the
``Violation`` that ends the stream.  Invalid input raises nothing.  Sans-I/O; one reader per
connection.

How this works: the reader stores only an incomplete header (13 bytes at most) or control frame
(125 bytes at most).  It forwards an incomplete data frame at once, as a fragment of its
message: the memory of a connection does not depend on the size of its messages, and the
producer sees the same message.  It checks text and inflates compressed messages in the same
way, piece by piece.

Roads not taken: wsproto's codec, which takes several times as long per frame (a test holds the
results of both against each other).

Sources: RFC 6455 5.2-5.5 (framing), 5.6 and 8.1 (UTF-8), 7.4 (codes); RFC 7692 6.
(RSV1), 7.2.2 (inflating).
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from apachews import wire
from apachews.exceptions import WireError

from .deflate import COMPRESSED, Agreement, Inflater
from .header_checks import CONTROL_OPCODES, check_first_byte, decode_length
from .mask import unmask
from .text import new_utf8_decoder

# The reader pauses after this number of frames, so that the loop can serve the other
# connections: they take 1.6 ms.  One read of 64 KiB can hold 11,000 empty frames, which take
# 8 ms.
FRAMES_A_TURN: Final = 2048
# Busy connections share a smaller number, because each of them delays all the others.  One
# connection alone would lose a fifth of its throughput with it.
SHARED_FRAMES_A_TURN: Final = 512
# Each busy connection gets at least these, of frames and of bytes to inflate.
MIN_FRAMES_A_TURN: Final = 16
MIN_ROOM_BYTES: Final = 4096
# A compressed message counts as this number of further frames: inflating costs as much.
INFLATED_FRAMES: Final = 4

_WHOLE_TEXT: Final = wire.WHOLE_TEXT  # (An attribute of a module costs more.)
_WHOLE_MESSAGES: Final = wire.WHOLE_MESSAGES
# Payload of the bridge's own PINGs.  The bridge does not forward their PONGs.
KEEPALIVE: Final = b"apachews keep-alive"

_TOO_MANY: Final = "too many messages in a short time"
_NOT_UTF8: Final = "text message is not UTF-8"


@dataclass(frozen=True, slots=True)
class Ping:
    """The client expects a PONG with this payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class KeepalivePong:
    """The client answered a PING of the bridge's own."""


_KEEPALIVE_PONG: Final = KeepalivePong()
Event: TypeAlias = "Ping | KeepalivePong | wire.Close | wire.Violation"


class ClientReader:
    """Reads one client's frames.

    Args:
        max_message_bytes: limit for a message, inflated.  A longer one is a Violation 1009:
            as soon as a header announces it, or when it is inflated.
        max_buffer_bytes: the reader pauses after it has inflated this number of bytes.
        deflate: what was negotiated; None: no message may be compressed.

    Attributes:
        out: frames for the producer.  The caller takes and empties the list, which is mutated
            and never replaced.
        messages, payload_bytes: number of messages that began, and their bytes so far,
            inflated.
        controls: number of other frames that cost something: PINGs, PONGs, and fragments
            without payload.
        expected_pongs: number of answers to the bridge's own PINGs that are not counted.
        max_frames: limit for ``messages + controls``; the next one is a Violation 1008.  The
            caller may raise the limit at any time.
        is_paused: call ``receive(b"")`` for more, after ``out`` was emptied.
        has_ended: the stream has ended with a CLOSE or a violation; later input is ignored.
    """

    __slots__ = (
        "_decode",
        "_deflate",
        "_discards",
        "_fin",
        "_frames_left",
        "_has_inflated",
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
        "has_ended",
        "is_paused",
        "max_frames",
        "messages",
        "out",
        "payload_bytes",
    )

    def __init__(
        self,
        max_message_bytes: int,
        max_buffer_bytes: int = 65536,
        deflate: Agreement | None = None,
    ) -> None:
        self.out: list[bytes] = []
        self.messages = self.controls = self.payload_bytes = self.expected_pongs = 0
        self.max_frames = float(sys.maxsize)
        self.is_paused = self.has_ended = False
        self._max_message_bytes = max_message_bytes
        self._max_buffer_bytes = max_buffer_bytes
        self._deflate = deflate
        self._inflater: Inflater | None = None  # created for the first compressed message
        self._has_inflated = False  # the inflater has more output
        self._frames_left = 0  # until the reader pauses
        self._is_compressed = False  # the current message is
        # Input that is not decoded yet: an incomplete header or control frame, and all that is
        # left during a pause.
        self._rest = b""
        self._remaining = 0  # payload bytes of the current data frame that are still to come
        self._mask = b""  # mask of the current data frame, rotated to the next byte
        self._fin = 0  # FIN bit of the current data frame
        self._message_opcode = 0  # TEXT or BINARY inside a message, else 0
        self._next_opcode = 0  # of the next fragment to emit: that opcode, then CONTINUATION
        self._message_bytes = 0
        self._decode: Callable[[bytes, bool], str] | None = None  # inside a text message
        self._discards = False  # check the rest of the current message and emit nothing of it

    @property
    def deflate(self) -> Agreement | None:
        """What was negotiated; None: no message may be compressed."""
        return self._deflate

    @property
    def has_begun_message(self) -> bool:
        """True if the reader has emitted the beginning of a message and not yet its end."""
        return (
            self._message_opcode != 0
            and self._next_opcode == wire.CONTINUATION
            and not self._discards
        )

    @property
    def longest_passed(self) -> int:
        """Payload of a message that may pass without ``receive``; -1: none, in its present state.

        The caller counts it.  It must be whole, and its text UTF-8.
        """
        is_busy = self._rest or self._remaining or self._message_opcode
        if is_busy or self.is_paused or self.has_ended:
            return -1
        return self._max_message_bytes

    def discard_message(self) -> None:
        """Check the current message to its end and emit nothing more of it."""
        self._discards = True

    def export_state(self) -> dict[str, Any] | None:
        """Return the state with which a reader in another process continues, as JSON values.

        None inside a frame or a message, and after the end.
        """
        if (
            self._rest
            or self._remaining
            or self._message_opcode
            or self.is_paused
            or self.has_ended
            or self.out
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
        """Continue from an exported state; only before the first byte."""
        self.messages = int(state["messages"])
        self.payload_bytes = int(state["payload_bytes"])
        self.controls = int(state["controls"])
        self.expected_pongs = int(state["expected_pongs"])
        self.max_frames = float(state["max_frames"])
        window = base64.b64decode(state["window"])
        if window and self._deflate:
            self._inflater = Inflater(self._deflate.client_window_bits, window)

    def receive(self, data: bytes, busy: int = 1) -> list[Event]:
        """Decode bytes from the client; return the events among them, in order.

        Args:
            data: bytes as they arrived; b"" to continue after a pause.
            busy: number of connections that share the frames and the room of a turn.
        """
        events: list[Event] = []
        if self.has_ended:
            return events
        self._frames_left = FRAMES_A_TURN
        room = self._max_buffer_bytes
        if busy > 1:
            # Divide the turn, down to a minimum: with very many busy clients, turns get longer.
            self._frames_left = max(MIN_FRAMES_A_TURN, SHARED_FRAMES_A_TURN // busy)
            room = max(min(MIN_ROOM_BYTES, room), room // busy)
        try:
            self._read_frames(data, room, events)
        except WireError as error:
            self.has_ended = True
            events.append(wire.Violation.from_error(error))
        if self.has_ended:
            self._rest = b""
            self._inflater = None  # up to 32 KiB
            self.is_paused = False
        return events

    def _read_frames(self, data: bytes, room: int, events: list[Event]) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        self.is_paused = False
        if self._has_inflated:
            # Continue after a pause.  The output precedes the stored input.
            room = self._inflate(room)
        position, end = 0, len(data)
        while position < end and not self.is_paused:
            if self._remaining:
                # Inside a data frame: forward what has arrived.
                piece = data[position : position + self._remaining]
                position += len(piece)
                room = self._on_payload(piece, room)
                continue
            if end - position < 2:
                break
            if self._frames_left <= 0:
                # Let the loop serve the other connections.
                self.is_paused = True
                break
            self._frames_left -= 1
            first, length = data[position], data[position + 1] - wire.MASKED
            if length < 0:
                raise WireError("client frame is not masked")
            payload_at = position + 6
            # Fast path: a whole message in one frame with a short or a 16-bit length.  The slow
            # path below handles all others, and all violations but those of text and rate.
            if first in _WHOLE_MESSAGES and length < 127 and not self._message_opcode:
                size, start = length, payload_at
                if length == 126 and position + 8 <= end:
                    size, start = data[position + 2] << 8 | data[position + 3], payload_at + 2
                # (``length <= size``: a 16-bit length is in its shortest form.)
                if start + size <= end and length <= size <= self._max_message_bytes:
                    position = start + size
                    payload = unmask(data[start:position], data[start - 4 : start])
                    self.messages += 1
                    if self.messages + self.controls > self.max_frames:
                        raise WireError(_TOO_MANY, wire.POLICY_VIOLATION)
                    if first == _WHOLE_TEXT and not payload.isascii():
                        _check_text(payload)
                    self.payload_bytes += size
                    self.out.append(
                        (bytes((first, size)) if size < 126 else wire.encode_header(first, size))
                        + payload
                    )
                    continue
            opcode = check_first_byte(first, length, self._message_opcode, self._deflate)
            if length > 125:
                size = 2 if length == 126 else 8
                if end - position < 2 + size:
                    break
                length = decode_length(data[position + 2 : position + 2 + size])
                payload_at += size
            if opcode in CONTROL_OPCODES:
                if payload_at + length > end:
                    break  # wait for the rest: at most 125 bytes
                payload = unmask(
                    data[payload_at : payload_at + length], data[payload_at - 4 : payload_at]
                )
                position = payload_at + length
                self._on_control(opcode, payload, events)
                if self.has_ended:
                    return
                continue
            if payload_at > end:
                break  # wait for the rest of the mask
            self._on_data_header(first, opcode, length)
            self._mask = data[payload_at - 4 : payload_at]
            position = payload_at
            if not length:
                if opcode == wire.CONTINUATION and not self._fin:
                    self._count_control()
                # An empty fragment in the middle of a message changes nothing.
                if self._fin or self._is_compressed:
                    room = self._on_payload(b"", room)
        self._rest = data[position:]

    def _on_data_header(self, first: int, opcode: int, length: int) -> None:
        if opcode != wire.CONTINUATION:
            self._message_opcode = self._next_opcode = opcode
            self._message_bytes = 0
            self._decode = new_utf8_decoder().decode if opcode == wire.TEXT else None
            self._is_compressed = bool(first & COMPRESSED)
            self.messages += 1
            self._check_rate()
        if not self._is_compressed:
            # The header announces the length: refuse a message that is too long at once.
            self._count_message_bytes(length)
        self._fin = first & wire.FIN
        self._remaining = length

    def _count_control(self) -> None:
        self.controls += 1
        self._check_rate()

    def _check_rate(self) -> None:
        if self.messages + self.controls > self.max_frames:
            raise WireError(_TOO_MANY, wire.POLICY_VIOLATION)

    def _count_message_bytes(self, length: int) -> None:
        self._message_bytes += length
        if self._message_bytes > self._max_message_bytes:
            raise WireError(f"message has more than {self._max_message_bytes} bytes", wire.TOO_BIG)

    def _on_payload(self, piece: bytes, room: int) -> int:
        """Handle a masked piece of the current data frame.

        Args:
            piece: not longer than what remains of the frame.
            room: number of bytes to inflate at most in this turn.

        Returns:
            The room that is left.
        """
        payload = unmask(piece, self._mask)
        self._remaining -= len(piece)
        if self._remaining:
            turn = len(piece) % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
        # (An uncompressed piece is never larger than the read, so it takes no room.)
        if not self._is_compressed:
            self._emit(payload, is_last=not self._remaining and bool(self._fin))
            return room
        if self._inflater is None:
            assert self._deflate, "check_first_byte allows RSV1 only with an agreement"
            self._inflater = Inflater(self._deflate.client_window_bits)
        self._inflater.feed(payload)
        return self._inflate(room)

    def _inflate(self, room: int) -> int:
        """Emit the inflater's output as far as there is room; return the room that is left.

        A few bytes may inflate to a thousand times as many.  Without room the reader pauses,
        keeps its input, and continues with ``receive(b"")``.
        """
        inflater = self._inflater
        assert inflater and self._deflate
        self._has_inflated = False
        while room > 0:
            inflated = inflater.read(room)
            self._count_message_bytes(len(inflated))
            has_more = len(inflated) == room  # perhaps: the next read may return nothing
            is_last = not has_more and not self._remaining and bool(self._fin)
            if is_last:
                self._frames_left -= INFLATED_FRAMES + inflater.streams
                inflater.end_message()
                if not self._deflate.client_keeps_context:
                    self._inflater = None  # frees its window
            if inflated or is_last:
                self._emit(inflated, is_last)
            room -= len(inflated)
            if not has_more:
                return room
        self.is_paused = self._has_inflated = True
        return 0

    def _emit(self, payload: bytes, is_last: bool) -> None:
        """Check a piece of the current message and emit it as a fragment."""
        if self._decode:
            try:
                self._decode(payload, is_last)
            except UnicodeDecodeError:
                raise WireError(_NOT_UTF8, wire.INVALID_DATA) from None
        if is_last:
            first = wire.FIN | self._next_opcode
            self._message_opcode = 0
        else:
            first = self._next_opcode
            self._next_opcode = wire.CONTINUATION
        self.payload_bytes += len(payload)
        # A discarded message is checked like the others: the client may still violate.
        if not self._discards:
            self.out.append(wire.encode_header(first, len(payload)) + payload)
        elif is_last:
            self._discards = False

    def _on_control(self, opcode: int, payload: bytes, events: list[Event]) -> None:
        """Handle a whole control frame."""
        if opcode == wire.PONG and payload == KEEPALIVE and self.expected_pongs:
            # Not counted: the bridge caused it, and a slow rate must not close the client.
            self.expected_pongs -= 1
            events.append(_KEEPALIVE_PONG)
            return
        if opcode == wire.CLOSE:
            events.append(wire.decode_close(payload))
            self.has_ended = True
            return
        self._count_control()
        if opcode == wire.PING:
            events.append(Ping(payload))
        else:
            # The answer to a PING of the producer's, or an unsolicited PONG, which is allowed
            # (RFC 6455 5.5.3) and which the producer ignores.
            self.out.append(wire.encode_frame(wire.PONG, payload))


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise WireError(_NOT_UTF8, wire.INVALID_DATA) from None
