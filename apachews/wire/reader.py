"""Bridge to library: joins the frames of the wire into messages.

Contract: ``MessageReader.receive(data)`` accepts bytes of the Unix socket's stream, cut at
any position, and returns the items that they complete, in order.  After ``FRAMES_A_TURN``
frames the reader pauses: ``is_paused`` is true, and ``receive(b"")`` continues.  Invalid
input raises nothing: the last item is then a ``Violation``, and the reader ignores all later
input.  No I/O; one reader per connection; not thread-safe.

The bridge's two readers have the same shape (``receive``, ``ignored``, ``is_paused``,
``has_ended``).  They also put out bytes, in ``out``; this reader's items are its only output.

Sources: docs/reference/wire.md; RFC 6455 5.4 (fragmentation), 5.5 (control frames).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from apachews import wire
from apachews.exceptions import WireError

from .channel import BRIDGE, MAX_LANE_BYTES, OFFER, decode_numbers

# The longest message that a producer accepts by default.  Apache's own limit
# (APACHEWS_MAX_MESSAGE, 1 MiB) is smaller and applies first; this one bounds the memory if a
# program other than Apache connects to the socket.
DEFAULT_MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024

# The reader pauses after this number of frames, so that the server can serve the other
# clients: one read of 64 KiB can hold 21,000 messages of one byte, and a program that answers
# each message in 10 us would block the other clients for 0.2 s.
FRAMES_A_TURN: Final = 512
# Clients that are busy at the same time share a smaller number, because each of them delays
# all the others.
SHARED_FRAMES_A_TURN: Final = 128
# Each busy client gets at least this number, however many there are.
MIN_FRAMES_A_TURN: Final = 8


@dataclass(frozen=True, slots=True)
class Pong:
    """The client's answer to a PING that the producer sent."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Moved:
    """The bridge's MOVE: the client goes to another producer; nothing follows."""


@dataclass(frozen=True, slots=True)
class Offered:
    """The bridge's OFFER: a channel, whose descriptor came with these bytes."""

    key: int


@dataclass(frozen=True, slots=True)
class BridgeChanged:
    """The bridge's BRIDGE: another bridge process, of this id, has the client now."""

    bridge: str


# (The other two readers call theirs an event.  In the library an event is what
# ``Server.dequeue`` returns.)
Item: TypeAlias = (
    "str | bytes | wire.Open | wire.Publish | wire.Close | Pong | Moved | Offered | BridgeChanged"
    " | wire.Violation"
)


_WHOLE_TEXT: Final = wire.WHOLE_TEXT  # (An attribute of a module costs more.)
_WHOLE_MESSAGES: Final = wire.WHOLE_MESSAGES


class MessageReader:
    """Turns the bytes of one connection into messages.

    Args:
        max_message_bytes: a longer message is a Violation with code 1009.

    Attributes:
        ignored: opcodes of frames that the reader dropped; the caller logs and empties the
            list.  The list is mutated and never replaced.
        is_paused: more items are available from ``receive(b"")``.
        has_ended: the stream has ended with a CLOSE, a MOVE or a violation.
    """

    __slots__ = (
        "_frame_fin",
        "_max_message_bytes",
        "_message_bytes",
        "_message_opcode",
        "_open_payload",
        "_opened",
        "_payload",
        "_remaining",
        "_rest",
        "has_ended",
        "ignored",
        "is_paused",
    )

    def __init__(self, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self.ignored: list[int] = []
        self.is_paused = False
        self.has_ended = False
        self._max_message_bytes = max_message_bytes
        # Input that is not decoded yet: an incomplete header, control frame, OPEN or PUBLISH
        # (each has a limit), and all that is left during a pause.
        self._rest = b""
        self._remaining = 0  # payload bytes of the current data frame that are still to come
        self._frame_fin = False  # the current frame ends its message
        self._message_opcode = 0  # TEXT or BINARY inside a message, else 0
        self._message_bytes = 0
        # One buffer for a message that arrives in pieces: a list of small pieces would take
        # many times the memory of their bytes.
        self._payload: bytearray | None = None
        self._opened = False  # OPEN or PUBLISH has arrived
        self._open_payload = b""  # payload of OPEN, until the caller pops it

    @property
    def is_idle(self) -> bool:
        """True between messages: an end of file at this point truncates nothing."""
        return not (self._rest or self._remaining or self._message_opcode)

    def pop_open_payload(self) -> bytes:
        """Return the payload of the OPEN that ``receive`` has just returned; once."""
        payload, self._open_payload = self._open_payload, b""
        return payload

    def receive(self, data: bytes, busy: int = 1) -> list[Item]:
        """Decode bytes from the socket; return the items that they complete, in order.

        Args:
            data: bytes as they arrived; b"" to continue after a pause.
            busy: number of clients that share the frames of a turn.
        """
        items: list[Item] = []
        if self.has_ended:
            return items
        frames = FRAMES_A_TURN if busy == 1 else SHARED_FRAMES_A_TURN // busy
        try:
            self._read_frames(data, max(MIN_FRAMES_A_TURN, frames), items)
        except WireError as error:
            self._end()
            items.append(wire.Violation.from_error(error))
        return items

    def _read_frames(self, data: bytes, frames_left: int, items: list[Item]) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        self.is_paused = False
        position, end = 0, len(data)
        while position < end:
            if self._remaining:
                chunk = data[position : position + self._remaining]
                position += len(chunk)
                self._on_payload(chunk, items)
                continue
            if not frames_left:
                self.is_paused = True
                self._rest = data[position:]
                return
            frames_left -= 1
            # A two-byte header is decoded here: a call per frame costs as much as the rest.
            if position + 2 <= end and (length := data[position + 1]) < 126:
                first, start = data[position], position + 2
            else:
                header = wire.decode_header(data, position)
                if header is None:
                    self._rest = data[position:]
                    return
                first, length, start = header
            # Fast path: a whole message in one frame.
            if (
                first in _WHOLE_MESSAGES
                and start + length <= end
                and not self._message_opcode
                and self._opened
                and length <= self._max_message_bytes
            ):
                position = start + length
                payload = data[start:position]
                items.append(_decode_text(payload) if first == _WHOLE_TEXT else payload)
                continue
            if first & wire.RSV:
                raise WireError("reserved bit set; the wire has no extensions")
            opcode = first & wire.OPCODE
            if opcode > wire.BINARY:
                if not self._on_whole_frame(data, first, start, length, items):
                    self._rest = data[position:]
                    return
                if self.has_ended:
                    return
                position = start + length
                continue
            self._on_data_header(first, opcode, length)
            if not length and self._frame_fin:
                items.append(self._join())
            position = start

    def _on_payload(self, chunk: bytes, items: list[Item]) -> None:
        """Store a piece of the current data frame; complete the message after its last one."""
        self._remaining -= len(chunk)
        if self._payload is None:
            self._payload = bytearray()
        self._payload += chunk
        if not self._remaining and self._frame_fin:
            items.append(self._join())

    def _on_data_header(self, first: int, opcode: int, length: int) -> None:
        """Check the header of a data frame and start to read its payload."""
        if not self._opened:
            raise WireError("the first frame is not OPEN")
        if opcode == wire.CONTINUATION:
            if not self._message_opcode:
                raise WireError("CONTINUATION frame without a message to continue")
        elif self._message_opcode:
            raise WireError("new message inside a fragmented message")
        else:
            self._message_opcode = opcode
        # The header announces the length: the reader refuses a message that is too long
        # before it stores any of the excess.
        self._message_bytes += length
        if self._message_bytes > self._max_message_bytes:
            raise WireError(f"message has more than {self._max_message_bytes} bytes", wire.TOO_BIG)
        self._remaining = length
        self._frame_fin = first >= wire.FIN

    def _on_whole_frame(
        self, data: bytes, first: int, start: int, length: int, items: list[Item]
    ) -> bool:
        """Handle OPEN, PUBLISH, a control frame or a reserved frame.

        Returns:
            False if the frame is not complete yet.
        """
        opcode = first & wire.OPCODE
        limit = wire.MAX_OPEN_BYTES if opcode < wire.CLOSE else wire.MAX_CONTROL_BYTES
        # Before the frame is complete: the limit bounds what ``_rest`` can hold.
        if length > limit:
            raise WireError(f"frame of opcode {opcode:#x} has more than {limit} bytes")
        if first < wire.FIN:
            raise WireError(f"frame of opcode {opcode:#x} is fragmented")
        if start + length > len(data):
            return False
        payload = data[start : start + length]
        if opcode == wire.OPEN:
            if self._opened:
                raise WireError("second OPEN frame")
            self._opened = True
            items.append(wire.Open.decode(payload))
            self._open_payload = payload
        elif opcode == wire.PUBLISH and not self._opened:
            self._opened = True
            items.append(wire.Publish.decode(payload))
        elif not self._opened:
            raise WireError("the first frame is not OPEN")
        elif opcode == wire.CLOSE:
            items.append(wire.decode_close(payload))
            self._end()
        elif opcode == wire.MOVE:
            if self._message_opcode:
                raise WireError("MOVE frame inside a message")
            items.append(Moved())
            self._end()
        elif opcode == wire.PONG:
            items.append(Pong(payload))
        elif opcode == wire.LANE and (item := _decode_lane(payload)) is not None:
            items.append(item)
        else:
            # PING and ANSWER do not occur in this direction, and the other opcodes are
            # reserved.  The reader drops them, so that the wire can grow (docs/reference/wire.md).
            self.ignored.append(opcode)
        return True

    def _join(self) -> str | bytes:
        """Return the message that is complete now."""
        payload, self._payload = self._payload or b"", None
        opcode = self._message_opcode
        self._message_opcode = self._message_bytes = 0
        return _decode_text(payload) if opcode == wire.TEXT else bytes(payload)

    def _end(self) -> None:
        self.has_ended = True
        self.is_paused = False
        self._rest = b""
        self._payload = None


def _decode_text(payload: bytes | bytearray) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise WireError("text message is not UTF-8", wire.INVALID_DATA) from error


def _decode_lane(payload: bytes) -> Offered | BridgeChanged | None:
    """Return the item of a LANE frame; None for a kind that this version does not know."""
    kind = payload[0] if payload else 0
    if kind == OFFER and (numbers := decode_numbers(payload, 1)):
        return Offered(numbers[0])
    if kind == BRIDGE and len(payload) <= MAX_LANE_BYTES:
        try:
            return BridgeChanged(payload[1:].decode())
        except UnicodeDecodeError:
            return None
    return None
