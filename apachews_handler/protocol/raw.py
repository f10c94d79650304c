"""The raw wire: a producer that reads and writes no frames.

Contract: ``RawSession`` is a ``Session`` whose producer reads the payload of the client's
messages, and whose writes become messages.  A ``Framer`` does the second half: bytes in, cut
at any position, whole frames out.  Sans-I/O; one per connection.

How this works: the framer puts the producer's bytes into frames, and a ``ProducerReader``
handles these like all others, so that limits, compression and backpressure are the same.  One
read of the socket is one message; or one line is a message, and a line longer than half a
buffer becomes fragments.  The producer learns nothing about the client, so a successor could
not take over: an end of file is how a program says that it is finished.

Sources: docs/howto/raw.md; RFC 6455 5.4 (fragments), 5.6 (text is UTF-8).
"""

from __future__ import annotations

import codecs
import sys
from typing import Any, Final, Protocol

from apachews import wire
from apachews.exceptions import WireError
from apachews_handler.setting_values import AUTO
from apachews_handler.settings import NEWLINE, Settings
from apachews_handler.settings import TEXT as TEXT_ALWAYS

from .close_causes import CloseCause
from .deflate import Agreement
from .producer_reader import Event, ProducerReader
from .session import HEADER_BYTES, Session
from .states import ClientState, ProducerState
from .text import new_utf8_decoder

# The longest read of a program that writes lines: 4,096 empty lines take 3 ms.
LINES_READ_BYTES: Final = 4096

_END_OF_LINE: Final = b"\n"


class Framer(Protocol):
    """Turns a program's output into frames.

    Attributes:
        partial_bytes: number of bytes that wait for the rest of their message or character.
    """

    @property
    def partial_bytes(self) -> int: ...

    def frame(self, data: bytes, frames: list[bytes]) -> None:
        """Append the frames that the bytes complete.

        Raises:
            WireError: the bytes must be text and are not; the appended frames are valid.
        """

    def finish(self, frames: list[bytes]) -> None:
        """Append the frames that are complete because the output has ended.

        Raises:
            WireError: as ``frame``.
        """


class ReadFramer:
    """One message per read.

    A read may end inside a character if the program wrote more than a buffer: the beginning of
    that character waits for its end.

    Args:
        type_: of the messages: auto, text or binary.
    """

    __slots__ = ("_partial", "_type")

    def __init__(self, type_: str) -> None:
        self._type = type_
        self._partial = b""  # the beginning of a character

    @property
    def partial_bytes(self) -> int:
        return len(self._partial)

    def frame(self, data: bytes, frames: list[bytes]) -> None:
        if not data:
            return
        if self._type not in (AUTO, TEXT_ALWAYS):
            # Bytes need no check, and never wait.
            frames.append(wire.encode_frame(wire.BINARY, data))
            return
        data, self._partial = self._partial + data, b""
        try:
            # An incomplete character at the end is not an error: ``size`` stops before it.
            _, size = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError:
            frames.append(_binary(data, self._type))
            return
        self._partial = data[size:]
        if size:  # 0: not even one character is complete
            frames.append(wire.encode_frame(wire.TEXT, data[:size]))

    def finish(self, frames: list[bytes]) -> None:
        partial, self._partial = self._partial, b""
        if partial:
            # The rest of the character will not come.
            frames.append(_binary(partial, self._type))


class LineFramer:
    """One message per line, without its line feed.

    Args:
        type_: of the messages: auto, text or binary.
        max_partial_bytes: a line that is longer becomes fragments.
    """

    __slots__ = ("_decoder", "_is_in_message", "_max_partial_bytes", "_partial", "_type")

    def __init__(self, type_: str, max_partial_bytes: int) -> None:
        self._type = type_
        self._max_partial_bytes = max_partial_bytes
        self._partial = b""  # the beginning of a line
        self._is_in_message = False  # the beginning of the line is framed
        self._decoder: codecs.IncrementalDecoder | None = None  # inside a text message

    @property
    def partial_bytes(self) -> int:
        return len(self._partial)

    def frame(self, data: bytes, frames: list[bytes]) -> None:
        data, self._partial = self._partial + data, b""
        *lines, rest = data.split(_END_OF_LINE)
        if lines and self._is_in_message:
            # The first line feed ends the line that began in an earlier read.
            frames.append(self._frame_line_end(lines.pop(0)))
        if self._is_text_throughout(data, len(rest)):
            # Fast path: most output is text of short lines, and one check serves all of them.
            encode, text = wire.encode_header, wire.WHOLE_TEXT
            frames.extend(encode(text, len(line)) + line for line in lines)
        else:
            # At least one line is binary, or invalid: check each of them.
            for line in lines:
                frames.append(self._frame_line_end(line))
        if len(rest) > self._max_partial_bytes:
            # Emit the beginning of a long line, so that memory stays bounded.
            frames.append(self._frame_line_start(rest))
        else:
            self._partial = rest

    def finish(self, frames: list[bytes]) -> None:
        partial, self._partial = self._partial, b""
        if partial or self._is_in_message:
            # The last line needs no line feed.
            frames.append(self._frame_line_end(partial))

    def _is_text_throughout(self, data: bytes, rest_bytes: int) -> bool:
        """Tell whether every complete line is text.

        No character of UTF-8 but the line feed contains its byte, so no character crosses lines.
        """
        try:
            return self._is_text(data[: len(data) - rest_bytes], True)
        except WireError:
            return False

    def _frame_line_start(self, piece: bytes) -> bytes:
        opcode = wire.CONTINUATION
        if not self._is_in_message:
            self._is_in_message = True
            # The first fragment decides the type of the message (RFC 6455 5.4).
            self._decoder = new_utf8_decoder() if self._is_text(piece, False) else None
            opcode = wire.TEXT if self._decoder else wire.BINARY
        self._check(piece, False)
        return wire.encode_frame(opcode, piece, fin=False)

    def _frame_line_end(self, piece: bytes) -> bytes:
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
    """Return the framer that the settings select."""
    if settings.raw_delimiter == NEWLINE:
        return LineFramer(settings.raw_type, settings.max_buffer_bytes // 2)
    return ReadFramer(settings.raw_type)


def unframe(frames: list[bytes], is_by_line: bool) -> None:
    """Replace whole frames by the payloads of the messages among them.

    Args:
        frames: the client's messages, and unsolicited PONGs, which are removed; changed in
            place.
        is_by_line: append a line feed to each message.
    """
    payloads = []
    for frame in frames:
        header = wire.decode_header(frame, 0)
        assert header is not None, "the client's reader emits whole frames"
        first, _, start = header
        if first & wire.OPCODE <= wire.BINARY:
            payloads.append(frame[start:])
            if is_by_line and first & wire.FIN:
                payloads.append(_END_OF_LINE)
    # In place: the list is shared (see Session).
    frames[:] = payloads


class RawReader(ProducerReader):
    """Reads a producer that writes no frames."""

    __slots__ = ("_framer",)

    def __init__(self, framer: Framer, deflate: Agreement | None, settings: Settings) -> None:
        # ``max_partial_bytes`` is 0: the framer's frames are whole.
        super().__init__(deflate, settings.deflate_min_size_bytes, settings.deflate_level)
        self._framer = framer

    @property
    def partial_bytes(self) -> int:
        return self._framer.partial_bytes

    def export_state(self) -> dict[str, Any] | None:
        return None if self._framer.partial_bytes else super().export_state()

    def receive(self, data: bytes) -> list[Event]:
        if self.has_ended:
            return []
        frames: list[bytes] = []
        try:
            self._framer.frame(data, frames)
        except WireError as error:
            return self._read_framed(frames, error)
        return self._read_framed(frames)

    def receive_eof(self) -> list[Event]:
        """Frame the rest of the producer's output; return the events, as ``receive`` does."""
        frames: list[bytes] = []
        try:
            self._framer.finish(frames)
        except WireError as error:
            return self._read_framed(frames, error)
        return self._read_framed(frames)

    def _read_framed(self, frames: list[bytes], error: WireError | None = None) -> list[Event]:
        """Read the framer's output, which precedes the error."""
        events = super().receive(b"".join(frames))
        if error:
            # What the program writes later cannot continue a broken stream.
            self.has_ended = True
            events.append(wire.Violation.from_error(error))
        return events


class RawSession(Session):
    """A session with a producer that reads and writes no frames.

    Args:
        settings: for the limits, and for what is a message.
        deflate: what was negotiated with the client; None: no compression.
    """

    __slots__ = ("_is_by_line", "_raw")

    def __init__(self, settings: Settings, deflate: Agreement | None = None) -> None:
        super().__init__(settings, deflate)
        self._raw = RawReader(new_framer(settings), deflate, settings)
        self._use_reader(self._raw)
        # Whether a line feed follows each message for the producer.
        self._is_by_line = settings.raw_delimiter == NEWLINE

    @property
    def producer_room(self) -> int:
        # A read of line feeds is as many messages, and delays the other connections.
        return min(
            super().producer_room - HEADER_BYTES,
            LINES_READ_BYTES if self._is_by_line else sys.maxsize,
        )

    @property
    def longest_from_client(self) -> int:
        return -1  # the producer gets no frames

    @property
    def longest_from_producer(self) -> int:
        return -1

    def open(self, open_: wire.Open, *, is_told: bool = False) -> None:
        """Do nothing: the producer learns nothing about the client."""

    def receive_client(self, data: bytes, now: float = 0.0, busy: int = 1) -> None:
        super().receive_client(data, now, busy)
        # (Most calls have no message: a PING, or a part of a header.)
        if self.to_producer:
            unframe(self.to_producer, self._is_by_line)

    def receive_producer_eof(self, unsent: bytes = b"", sent: int = 0) -> None:
        """Close the client: the producer has finished or died, which look the same."""
        # Unsent bytes have no next producer, as this one gets no OPEN.
        self.to_producer.clear()
        events = [] if self.client_finished else self._raw.receive_eof()
        self.producer_state = ProducerState.DONE
        if self.client_state is not ClientState.OPEN:
            return
        self._close_client(CloseCause.PRODUCER_ERROR if events else CloseCause.PRODUCER_ENDED)
        for event in events:  # a violation, as raw output has no CLOSE
            assert isinstance(event, wire.Violation)
            self.close_reason = event.reason

    def _send_producer_close(self, code: int, reason: str) -> None:
        # An end of file is the only CLOSE that this producer understands.
        self._end_producer()


def _binary(data: bytes, type_: str) -> bytes:
    if type_ == TEXT_ALWAYS:
        raise _not_utf8()
    return wire.encode_frame(wire.BINARY, data)


def _not_utf8() -> WireError:
    return WireError(
        "the producer wrote text that is not UTF-8; for binary messages,"
        " SetEnv APACHEWS_RAW_TYPE binary",
        wire.INVALID_DATA,
    )
