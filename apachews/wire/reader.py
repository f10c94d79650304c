"""Joining the frames of the wire to messages: the sans-I/O core of the library.

Contract: ``MessageReader.receive(data)`` takes bytes as they came from the Unix
socket, cut anywhere, and returns what they completed, in order.  After
``FRAMES_A_TURN`` frames it pauses: ``is_paused`` is true, and ``receive(b"")`` goes on.
It never raises for bad input: the last item is then a ``Violation``, and whatever comes
after is ignored.  No I/O; one reader a connection; not for several threads.

How this works: a frame's payload is taken as it comes, into one buffer, so that a
message takes the memory of its bytes however small the pieces are it was cut into.
Only headers, control frames and OPEN wait in ``_rest`` until they are whole; each
has a bound.

Sources: docs/reference/wire.md; RFC 6455 5.4 (fragmentation), 5.5 (control frames).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from apachews import wire
from apachews.exceptions import WireError

# What a producer takes as one message unless it says otherwise.  Apache's side
# has its own, smaller limit (APACHEWS_MAX_MESSAGE, 1 MiB), which comes first;
# this one bounds the memory should somebody else talk to the socket.
DEFAULT_MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024


# Frames after which the reader pauses, so that the server can serve the other clients: one
# read of 64 KiB has 21,000 messages of a byte, and a program that answers each in 10 us would
# let the others wait for 0.2 s.  Clients that are busy at the same time share fewer, for each
# turn of theirs is a wait for the others; each gets the last number at least.
FRAMES_A_TURN: Final = 512
SHARED_FRAMES_A_TURN: Final = 128
MIN_FRAMES_A_TURN: Final = 8


@dataclass(frozen=True, slots=True)
class Pong:
    """The client's answer to a PING that the producer sent."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Moved:
    """The bridge's MOVE: the client goes to another producer; nothing follows."""


@dataclass(frozen=True, slots=True)
class Violation:
    """The bytes break the wire's rules or the size limit; nothing follows."""

    code: int
    reason: str


Item: TypeAlias = "str | bytes | wire.Open | wire.Publish | wire.Close | Pong | Moved | Violation"

_TEXT_WHOLE: Final = wire.FIN | wire.TEXT
_WHOLE: Final = frozenset((_TEXT_WHOLE, wire.FIN | wire.BINARY))


class MessageReader:
    """Turns the bytes of one connection into messages.

    Args:
        max_message_bytes: the longest message taken; a longer one is a
            Violation with code 1009.

    Attributes:
        ignored: opcodes of frames that were left out; the caller logs and empties it.
        is_paused: there is more, for ``receive(b"")``.
    """

    __slots__ = (
        "_finished",
        "_frame_fin",
        "_max_message_bytes",
        "_message_bytes",
        "_message_opcode",
        "_opened",
        "_opening",
        "_payload",
        "_remaining",
        "_rest",
        "ignored",
        "is_paused",
    )

    def __init__(self, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._max_message_bytes = max_message_bytes
        self._rest = b""  # the beginning of a header, a control frame or OPEN
        self._remaining = 0  # bytes of the current data frame still to come
        self._frame_fin = False  # whether that frame ends its message
        self._message_opcode = 0  # TEXT or BINARY inside a message, else 0
        self._message_bytes = 0
        self._payload: bytearray | None = None  # of a message in several pieces
        self.ignored: list[int] = []
        self.is_paused = False
        self._opened = False
        self._opening = b""  # the payload of the OPEN, until it is taken
        self._finished = False  # after a CLOSE, a MOVE or a violation

    @property
    def is_idle(self) -> bool:
        """True between messages: an end of file here cuts nothing off."""
        return not (self._rest or self._remaining or self._message_opcode)

    def take_opening(self) -> bytes:
        """Return the payload of the OPEN that ``receive`` has returned just now."""
        opening, self._opening = self._opening, b""
        return opening

    def receive(self, data: bytes, busy: int = 1) -> list[Item]:
        """Take bytes from the socket; return what they completed, in order.

        Args:
            data: as they came; b"" to go on after a pause.
            busy: how many clients share the frames of a turn.
        """
        items: list[Item] = []
        if self._finished:
            return items
        try:
            frames = FRAMES_A_TURN if busy == 1 else SHARED_FRAMES_A_TURN // busy
            self._receive(data, max(MIN_FRAMES_A_TURN, frames), items)
        except WireError as error:
            self._finish()
            items.append(Violation(error.code, error.reason))
        return items

    def _receive(self, data: bytes, frames_left: int, items: list[Item]) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        self.is_paused = False
        position, end = 0, len(data)
        while position < end:
            if self._remaining:
                chunk = data[position : position + self._remaining]
                position += len(chunk)
                self._remaining -= len(chunk)
                if self._payload is None:
                    self._payload = bytearray()
                self._payload += chunk
                if not self._remaining and self._frame_fin:
                    items.append(self._join())
                continue
            if not frames_left:
                self.is_paused = True
                self._rest = data[position:]
                return
            frames_left -= 1
            if position + 2 <= end and (length := data[position + 1]) < 126:
                first, start = data[position], position + 2
            else:
                header = wire.decode_header(data, position)
                if header is None:
                    self._rest = data[position:]
                    return
                first, length, start = header
            # The common case first: a whole message in one frame.
            if (
                first in _WHOLE
                and start + length <= end
                and not self._message_opcode
                and self._opened
                and length <= self._max_message_bytes
            ):
                position = start + length
                payload = data[start:position]
                items.append(_decode_text(payload) if first == _TEXT_WHOLE else payload)
                continue
            if first & wire.RSV:
                raise WireError("an RSV bit is set; the wire knows no extension")
            opcode = first & wire.OPCODE
            if opcode > wire.BINARY:
                taken = self._take_whole_frame(data, first, start, length, items)
                if not taken:
                    self._rest = data[position:]
                    return
                if self._finished:
                    return
                position = start + length
                continue
            self._begin_data_frame(first, opcode, length)
            if not length and self._frame_fin:
                items.append(self._join())
            position = start

    def _begin_data_frame(self, first: int, opcode: int, length: int) -> None:
        if not self._opened:
            raise WireError("the first frame is not OPEN")
        if opcode == wire.CONTINUATION:
            if not self._message_opcode:
                raise WireError("a CONTINUATION without a message to continue")
        elif self._message_opcode:
            raise WireError("a new message inside a fragmented one")
        else:
            self._message_opcode = opcode
        self._message_bytes += length
        if self._message_bytes > self._max_message_bytes:
            raise WireError(f"a message of more than {self._max_message_bytes} bytes", wire.TOO_BIG)
        self._remaining = length
        self._frame_fin = first >= wire.FIN

    def _take_whole_frame(
        self, data: bytes, first: int, start: int, length: int, items: list[Item]
    ) -> bool:
        """Take OPEN, a control frame or a reserved frame; False until it is whole."""
        opcode = first & wire.OPCODE
        limit = wire.MAX_OPEN_BYTES if opcode < wire.CLOSE else wire.MAX_CONTROL_BYTES
        if length > limit:
            raise WireError(f"a frame of opcode {opcode:#x} has more than {limit} bytes")
        if first < wire.FIN:
            raise WireError(f"a frame of opcode {opcode:#x} is fragmented")
        if start + length > len(data):
            return False
        payload = data[start : start + length]
        if opcode == wire.OPEN:
            if self._opened:
                raise WireError("a second OPEN")
            self._opened = True
            items.append(wire.Open.decode(payload))
            self._opening = payload
        elif opcode == wire.PUBLISH and not self._opened:
            self._opened = True
            items.append(wire.Publish.decode(payload))
        elif not self._opened:
            raise WireError("the first frame is not OPEN")
        elif opcode == wire.CLOSE:
            items.append(wire.decode_close(payload))
            self._finish()
        elif opcode == wire.MOVE:
            if self._message_opcode:
                raise WireError("a MOVE inside a message")
            items.append(Moved())
            self._finish()
        elif opcode == wire.PONG:
            items.append(Pong(payload))
        else:
            # PING and ANSWER do not occur in this direction, and the other opcodes
            # are reserved: left out, so that the wire can grow (docs/reference/wire.md).
            self.ignored.append(opcode)
        return True

    def _join(self) -> str | bytes:
        payload, self._payload = self._payload or b"", None
        opcode = self._message_opcode
        self._message_opcode = self._message_bytes = 0
        return _decode_text(payload) if opcode == wire.TEXT else bytes(payload)

    def _finish(self) -> None:
        self._finished = True
        self.is_paused = False
        self._rest = b""
        self._payload = None


def _decode_text(payload: bytes | bytearray) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise WireError("a text message is not UTF-8", wire.INVALID_DATA) from error
