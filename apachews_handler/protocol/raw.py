"""The raw wire: a producer that knows nothing of frames.

Contract: ``RawSession`` is a ``Session`` whose producer reads what the client sends as
it is, and whose writes become messages; ``new_session`` picks one of the two by
``APACHEWS_WIRE``.  ``Framer`` is the half that reads the producer: bytes in, cut
anywhere, whole frames out.  Sans-I/O; one a connection.

How this works: the producer's bytes are put into frames, and go the way of all frames
from there on, so that limits, compression and backpressure are the same.  What a socket
gives in one read is one message; or a line is one, and one that is longer than half a
buffer goes on in fragments.  Nothing is said of the client, so nobody can take it over:
an end of file is how a program says that it is done.

Sources: docs/howto/raw.md; RFC 6455 5.4 (fragments), 5.6 (text is UTF-8).
"""

from __future__ import annotations

import codecs
import sys
from typing import Any, Final, Protocol

from apachews import wire
from apachews.exceptions import WireError
from apachews_handler.exceptions import Violation
from apachews_handler.settings import AUTO, NEWLINE, RAW, Settings
from apachews_handler.settings import TEXT as TEXT_ALWAYS

from .close_causes import CloseCause
from .deflate import Agreement
from .producer_reader import ProducerReader
from .session import HEADER_BYTES, ClientState, ProducerState, Session

# What is read at once of a program that writes lines: 4,096 empty ones take 3 ms.
LINES_READ_BYTES: Final = 4096

_new_utf8_decoder: Final = codecs.getincrementaldecoder("utf-8")
_END_OF_LINE: Final = b"\n"


def new_session(settings: Settings, deflate: Agreement | None = None) -> Session:
    """Return a session for the wire that the settings name."""
    return (RawSession if settings.wire == RAW else Session)(settings, deflate)


class Framer(Protocol):
    """Makes frames of what a program writes.

    Attributes:
        held_bytes: how many bytes wait for what follows them.
    """

    @property
    def held_bytes(self) -> int: ...

    def frame(self, data: bytes, frames: list[bytes]) -> None:
        """Append the frames that some bytes complete.

        Raises:
            WireError: they cannot be text, and must be; what was appended is good.
        """

    def finish(self, frames: list[bytes]) -> None:
        """Append the frames that are complete now that nothing follows.

        Raises:
            WireError: as ``frame``.
        """


class ReadFramer:
    """One message a read.

    A read may end inside a character, where the program wrote more than a buffer takes:
    the beginning of that character waits for its end.

    Args:
        type_: of the messages: auto, text or binary.
    """

    __slots__ = ("_held", "_type")

    def __init__(self, type_: str) -> None:
        self._type = type_
        self._held = b""

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    def frame(self, data: bytes, frames: list[bytes]) -> None:
        if not data:
            return
        if self._type not in (AUTO, TEXT_ALWAYS):
            frames.append(wire.encode_frame(wire.BINARY, data))
            return
        data, self._held = self._held + data, b""
        try:
            _, size = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError:
            frames.append(_binary(data, self._type))
            return
        self._held = data[size:]
        if size:
            frames.append(wire.encode_frame(wire.TEXT, data[:size]))

    def finish(self, frames: list[bytes]) -> None:
        held, self._held = self._held, b""
        if held:
            frames.append(_binary(held, self._type))


class LineFramer:
    """One message a line, without its line feed.

    Args:
        type_: of the messages: auto, text or binary.
        max_held_bytes: a line that is longer goes on in fragments.
    """

    __slots__ = ("_decoder", "_held", "_is_in_message", "_max_held_bytes", "_type")

    def __init__(self, type_: str, max_held_bytes: int) -> None:
        self._type = type_
        self._max_held_bytes = max_held_bytes
        self._held = b""
        self._is_in_message = False  # the beginning of the line is out
        self._decoder: codecs.IncrementalDecoder | None = None  # inside a text message

    @property
    def held_bytes(self) -> int:
        return len(self._held)

    def frame(self, data: bytes, frames: list[bytes]) -> None:
        data, self._held = self._held + data, b""
        *lines, rest = data.split(_END_OF_LINE)
        if lines and self._is_in_message:
            frames.append(self._end_line(lines.pop(0)))
        if self._is_text_throughout(data, len(rest)):
            # Mostly so, and many lines are short: nothing is to be looked at in each.
            encode, text = wire.encode_header, wire.FIN | wire.TEXT
            frames.extend(encode(text, len(line)) + line for line in lines)
        else:
            for line in lines:
                frames.append(self._end_line(line))
        if len(rest) > self._max_held_bytes:
            frames.append(self._begin_line(rest))
        else:
            self._held = rest

    def finish(self, frames: list[bytes]) -> None:
        held, self._held = self._held, b""
        if held or self._is_in_message:
            frames.append(self._end_line(held))

    def _is_text_throughout(self, data: bytes, rest_bytes: int) -> bool:
        """Tell whether every line that is whole is text.

        UTF-8 has a line feed for nothing else: it parts no character.
        """
        try:
            return self._is_text(data[: len(data) - rest_bytes], True)
        except WireError:
            return False

    def _begin_line(self, piece: bytes) -> bytes:
        opcode = wire.CONTINUATION
        if not self._is_in_message:
            self._is_in_message = True
            self._decoder = _new_utf8_decoder() if self._is_text(piece, False) else None
            opcode = wire.TEXT if self._decoder else wire.BINARY
        self._check(piece, False)
        return wire.encode_frame(opcode, piece, fin=False)

    def _end_line(self, piece: bytes) -> bytes:
        if self._is_in_message:
            self._is_in_message = False
            self._check(piece, True)
            return wire.encode_frame(wire.CONTINUATION, piece)
        if self._is_text(piece, True):
            return wire.encode_frame(wire.TEXT, piece)
        return _binary(piece, self._type)

    def _is_text(self, piece: bytes, is_whole: bool) -> bool:
        if self._type not in (AUTO, TEXT_ALWAYS):
            return False
        try:
            codecs.utf_8_decode(piece, "strict", is_whole)
        except UnicodeDecodeError:
            if self._type == TEXT_ALWAYS:
                raise _not_utf8() from None
            return False
        return True

    def _check(self, piece: bytes, is_last: bool) -> None:
        if self._decoder:
            try:
                self._decoder.decode(piece, is_last)
            except UnicodeDecodeError:
                raise _not_utf8() from None


def new_framer(settings: Settings) -> Framer:
    """Return what makes frames of a program's writes."""
    if settings.raw_delimiter == NEWLINE:
        return LineFramer(settings.raw_type, settings.max_buffer_bytes // 2)
    return ReadFramer(settings.raw_type)


def unframe(frames: list[bytes], is_by_line: bool) -> None:
    """Leave the payloads of the messages in a list of whole frames, and nothing else.

    Args:
        frames: the client's messages, and PONGs that nobody asked for; changed.
        is_by_line: a line feed goes behind each message.
    """
    payloads = []
    for frame in frames:
        header = wire.decode_header(frame, 0)
        assert header is not None, "the frames are whole, and the bridge's own"
        first, _, start = header
        if first & wire.OPCODE <= wire.BINARY:
            payloads.append(frame[start:])
            if is_by_line and first & wire.FIN:
                payloads.append(_END_OF_LINE)
    frames[:] = payloads


class RawReader(ProducerReader):
    """Reads a producer that writes no frames."""

    __slots__ = ("_framer",)

    def __init__(self, framer: Framer, deflate: Agreement | None, settings: Settings) -> None:
        super().__init__(deflate, settings.deflate_min_size_bytes, settings.deflate_level)
        self._framer = framer

    @property
    def kept_bytes(self) -> int:
        return self._framer.held_bytes

    def export_state(self) -> dict[str, Any] | None:
        return None if self._framer.held_bytes else super().export_state()

    def receive(self, data: bytes) -> wire.Close | Violation | None:
        if self._finished:
            return None
        frames: list[bytes] = []
        violation = None
        try:
            self._framer.frame(data, frames)
        except WireError as error:
            violation = Violation(error.code, error.reason)
        super().receive(b"".join(frames))
        return violation

    def receive_eof(self) -> Violation | None:
        """The producer has ended; return what is wrong with the rest, or None."""
        frames: list[bytes] = []
        violation = None
        try:
            self._framer.finish(frames)
        except WireError as error:
            violation = Violation(error.code, error.reason)
        super().receive(b"".join(frames))
        return violation


class RawSession(Session):
    """A session with a producer that reads and writes no frames.

    Args:
        settings: for the limits, and what is a message.
        deflate: what was agreed on with the client; None: no compression.
    """

    __slots__ = ("_is_by_line", "_raw")

    def __init__(self, settings: Settings, deflate: Agreement | None = None) -> None:
        super().__init__(settings, deflate)
        self._raw = RawReader(new_framer(settings), deflate, settings)
        self._use_reader(self._raw)
        self._is_by_line = settings.raw_delimiter == NEWLINE

    @property
    def producer_room(self) -> int:
        # A read of line feeds is as many messages, and the other connections wait for it.
        return min(
            super().producer_room - HEADER_BYTES,
            LINES_READ_BYTES if self._is_by_line else sys.maxsize,
        )

    def open(self, open_: wire.Open, *, is_told: bool = False) -> None:
        """Begin; the producer is told nothing."""

    def receive_client(self, data: bytes, now: float = 0.0, busy: int = 1) -> None:
        super().receive_client(data, now, busy)
        if self.to_producer:
            unframe(self.to_producer, self._is_by_line)

    def receive_producer_eof(self, unsent: bytes = b"", sent: int = 0) -> None:
        """The producer has ended, or died: there is no telling."""
        self.to_producer.clear()
        violation = None if self.client_finished else self._raw.receive_eof()
        self.producer_state = ProducerState.DONE
        if self.client_state is not ClientState.OPEN:
            return
        self._begin_close(CloseCause.PRODUCER_ERROR if violation else CloseCause.PRODUCER_ENDED)
        if violation:
            self.close_reason = violation.reason

    def _send_producer_close(self, code: int, reason: str) -> None:
        self._finish_producer()


def _binary(data: bytes, type_: str) -> bytes:
    if type_ == TEXT_ALWAYS:
        raise _not_utf8()
    return wire.encode_frame(wire.BINARY, data)


def _not_utf8() -> WireError:
    return WireError(
        "the producer wrote text that is not UTF-8; is SetEnv APACHEWS_RAW_TYPE binary meant?",
        wire.INVALID_DATA,
    )
