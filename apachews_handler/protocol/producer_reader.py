"""From the wire to the client: walking the producer's frames.

Contract: ``ProducerReader.receive(data)`` takes bytes as they came from the
producer, cut anywhere.  It appends what goes to the client to ``client_out`` and
returns the CLOSE or the violation that ends the stream, or None.  ``insert`` and
``insert_last`` add frames of the bridge's own.  Sans-I/O; one reader a connection.

How this works: an unmasked frame of the wire *is* a server's frame of RFC 6455,
so the bytes are passed on as they are, mostly the very object that came; only
the headers are looked at.  They must be, for two reasons: a producer's mistake
must not become a malformed frame in a browser, and a frame of the bridge's own
(PING, PONG, CLOSE) may stand only between two of the producer's.  Inside one it is
held until that is whole.

A frame that has not all arrived is kept back as long as it fits into a buffer: a
producer that dies inside one leaves nothing of it with the client, who can go on
with the next producer.

A message that is to be compressed is passed on in frames of our own, one for each
piece that the compressor gives; at the end of each of the producer's frames it
gives all it has, so that what a producer sends in fragments arrives so.

Sources: docs/reference/wire.md; RFC 6455 5.2-5.5; RFC 7692 6., 7.2.1.
"""

from __future__ import annotations

from typing import Any, Final

from apachews import wire
from apachews.exceptions import WireError
from apachews_handler.exceptions import Violation

from .deflate import Agreement, Deflater

# OPEN (0x3) and ANSWER (0x4) have no meaning in this direction once it is open.
# A read that holds more messages than this is followed by reads of SHORT_READ_BYTES, so that
# a turn of the loop serves the other connections after some 0.4 ms: one read of 64 KiB has
# 32,000 empty messages, which take 8 ms.
MANY_MESSAGES: Final = 512
SHORT_READ_BYTES: Final = 4096
_RESERVED: Final = frozenset((0x3, 0x4, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF))
_WHOLE: Final = frozenset((wire.FIN | wire.TEXT, wire.FIN | wire.BINARY))
_COMPRESSED: Final = 0x40  # RSV1, RFC 7692 6.


class ProducerReader:
    """Reads one producer's frames.

    Args:
        deflate: what was agreed on with the client; None: nothing is compressed.
        min_deflate_bytes: a message in one frame that is shorter passes as it is.
        deflate_level: zlib's, 1 to 9.
        max_held_bytes: a frame of the producer's that is not longer is passed on
            when it is whole, not before.

    Attributes:
        client_out: bytes for the client; the caller takes and empties it.
        messages, payload_bytes: how many messages ended, and the bytes so far,
            not compressed.
        ignored: opcodes of reserved frames that were left out; the caller logs
            and empties it.
        has_many: the last read held more than ``MANY_MESSAGES``.
        has_ended: the bridge's last frame is in ``client_out``.
        wants_to_move: the producer has sent MOVE.
    """

    __slots__ = (
        "_deflate",
        "_deflate_level",
        "_deflater",
        "_discards",
        "_fin",
        "_finished",
        "_held",
        "_held_last",
        "_is_compressed",
        "_is_compressing",
        "_is_in_message",
        "_max_held_bytes",
        "_min_deflate_bytes",
        "_next_first",
        "_remaining",
        "_rest",
        "_short_frame_end",
        "client_out",
        "has_ended",
        "has_many",
        "ignored",
        "messages",
        "payload_bytes",
        "wants_to_move",
    )

    def __init__(
        self,
        deflate: Agreement | None = None,
        min_deflate_bytes: int = 0,
        deflate_level: int = 1,
        max_held_bytes: int = 0,
    ) -> None:
        self.client_out: list[bytes] = []
        self.ignored: list[int] = []
        self.messages = self.payload_bytes = 0
        self._max_held_bytes = max_held_bytes
        self._rest = b""  # the beginning of a header, or of a frame that is kept back
        self._remaining = 0  # payload of the current frame still to come
        self._fin = False  # that frame ends its message
        self._discards = False  # that frame is of a reserved opcode
        self._is_in_message = False
        self._finished = False  # nothing more of the producer is passed on
        # First byte -> the last such frame; None: none.
        self._held: dict[int, bytes] | None = None
        self._held_last: bytes | None = None
        self.has_ended = False
        self.has_many = False
        self.wants_to_move = False
        self._deflate = deflate
        self._min_deflate_bytes = min_deflate_bytes
        # Longer frames have a longer header, or are compressed.
        self._short_frame_end = 2 + (126 if deflate is None else min(126, min_deflate_bytes))
        self._deflate_level = deflate_level
        self._deflater: Deflater | None = None  # made with the first message for it
        self._is_compressed = False  # the current message is
        self._is_compressing = False  # the current frame is part of it
        self._next_first = 0  # first byte of its next piece: RSV1 and opcode, then 0

    @property
    def kept_bytes(self) -> int:
        """How many bytes are kept back: of a header, or of a frame, that is not whole."""
        return len(self._rest)

    @property
    def is_between_frames(self) -> bool:
        """True where a frame of the bridge's may follow what is in ``client_out``."""
        return not self._remaining or self._discards or self._is_compressing

    @property
    def is_between_messages(self) -> bool:
        """True where another producer may go on: of no message has the client a part only."""
        return not self._is_in_message and (not self._remaining or self._discards)

    def export_state(self) -> dict[str, Any] | None:
        """Return what a reader in another process needs to continue, as values of JSON.

        None inside a frame or a message, while a frame is held, and after the end.  The
        compressor is not part of the state: a new one refers to nothing that it did not
        compress itself, which is valid after any history (RFC 7692 7.2.3.3).
        """
        if (
            self._rest
            or self._remaining
            or self._is_in_message
            or self._held is not None
            or self._held_last is not None
            or self._finished
            or self.has_ended
            or self.wants_to_move
            or self.client_out
            or self.ignored
        ):
            return None
        return {"messages": self.messages, "payload_bytes": self.payload_bytes}

    def import_state(self, state: dict[str, Any]) -> None:
        """Continue as the reader whose state this is; only before the first byte."""
        self.messages = int(state["messages"])
        self.payload_bytes = int(state["payload_bytes"])

    def begin_again(self) -> None:
        """Read another producer from here on; only between messages."""
        assert self.is_between_messages, "the client has half a message"
        self._rest = b""
        self._remaining = 0
        self._discards = self.wants_to_move = False

    def insert(self, frame: bytes) -> None:
        """Send a frame of the bridge's own; inside a frame the last of its kind is held."""
        if self._held_last is not None or self.has_ended:
            return
        if self.is_between_frames:
            self.client_out.append(frame)
        else:
            if self._held is None:
                self._held = {}
            self._held[frame[0]] = frame

    def insert_last(self, frame: bytes) -> None:
        """Send a frame of the bridge's own, and nothing after it."""
        self._held_last = frame
        if self.is_between_frames:
            self._release()

    def receive(self, data: bytes) -> wire.Close | Violation | None:
        """Take bytes from the producer; return what ends the stream, or None."""
        # The common case: one whole short message, and nothing else.
        if (
            1 < len(data) < self._short_frame_end
            and data[1] == len(data) - 2
            and data[0] in _WHOLE
            and not self._rest
            and not self._remaining
            and not self._is_in_message
            and not self._finished
        ):
            self.messages += 1
            self.payload_bytes += data[1]
            self.client_out.append(data)
            return None
        if self._finished:
            return None
        try:
            return self._receive(data)
        except WireError as error:
            self._finished = True
            return Violation(error.code, error.reason)

    def _receive(self, data: bytes) -> wire.Close | None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        position, end = 0, len(data)
        sent = 0  # what is before it is in client_out, or left out
        messages = self.messages
        try:
            while position < end:
                if self._remaining:
                    step = min(self._remaining, end - position)
                    self._remaining -= step
                    position += step
                    if self._discards:
                        sent = position
                        self._discards = self._remaining > 0
                    elif self._is_compressing:
                        self._compress(data[sent:position])
                        sent = position
                    elif not self._remaining and (self._held or self._held_last):
                        self._pass_on(data, sent, position)
                        sent = position
                        self._release()
                        if self.has_ended:
                            return None
                    continue
                if position + 2 <= end and (length := data[position + 1]) < 126:
                    first, payload_at = data[position], position + 2
                else:
                    header = wire.decode_header(data, position)
                    if header is None:
                        break
                    first, length, payload_at = header
                # The common case first: a whole message in one frame.
                if (
                    first in _WHOLE
                    and payload_at + length <= end
                    and not self._is_in_message
                    and (self._deflate is None or length < self._min_deflate_bytes)
                ):
                    self.messages += 1
                    self.payload_bytes += length
                    position = payload_at + length
                    continue
                opcode = self._check(first, length)
                if opcode == wire.CLOSE:
                    if payload_at + length > end:
                        break
                    self._finished = True
                    return wire.decode_close(data[payload_at : payload_at + length])
                if end < payload_at + length <= position + self._max_held_bytes:
                    break
                self._is_compressing = False
                if opcode == wire.MOVE or opcode in _RESERVED:
                    self._pass_on(data, sent, position)
                    sent = payload_at
                    self._discards = length > 0
                    if opcode == wire.MOVE:
                        self.wants_to_move = True
                    else:
                        self.ignored.append(opcode)
                elif opcode < wire.CLOSE:
                    self._begin_data_frame(first, opcode, length)
                    if self._is_compressing:
                        self._pass_on(data, sent, position)
                        sent = payload_at
                        if not length:
                            self._compress(b"")
                self._remaining = length
                position = payload_at
            self._rest = data[position:]
        finally:
            # Also where the next frame is a CLOSE or a violation: what stood
            # before it was good.
            self._pass_on(data, sent, position)
            self.has_many = self.messages - messages > MANY_MESSAGES
        return None

    def _begin_data_frame(self, first: int, opcode: int, length: int) -> None:
        self._fin = first >= wire.FIN
        self._is_in_message = not self._fin
        self.messages += self._fin
        self.payload_bytes += length
        if opcode != wire.CONTINUATION:
            # How long a message in fragments will be is not known yet.
            self._is_compressed = self._deflate is not None and (
                length >= self._min_deflate_bytes or not self._fin
            )
            self._next_first = _COMPRESSED | opcode
        self._is_compressing = self._is_compressed

    def _compress(self, piece: bytes) -> None:
        """Pass on a piece of the current frame, compressed; its end flushes."""
        assert self._deflate, "only then a message is compressed"
        if self._deflater is None:
            self._deflater = Deflater(self._deflate.server_window_bits, self._deflate_level)
        out = self._deflater.compress(piece)
        is_last = not self._remaining and self._fin
        if is_last:
            out += self._deflater.finish()
            if not self._deflate.server_keeps_context:
                self._deflater = None
        elif not self._remaining:
            out += self._deflater.flush()
        if out or is_last:
            first = self._next_first | (wire.FIN if is_last else 0)
            self._next_first = wire.CONTINUATION
            self.client_out.append(wire.encode_header(first, len(out)) + out)

    def _pass_on(self, data: bytes, start: int, end: int) -> None:
        if start < end:
            self.client_out.append(data if end - start == len(data) else data[start:end])

    def _release(self) -> None:
        """Send what was held: a frame ended."""
        if self._held:
            self.client_out.extend(self._held.values())
            self._held = None
        if self._held_last is not None:
            self.client_out.append(self._held_last)
            self._held_last = None
            self._finished = self.has_ended = True

    def _check(self, first: int, length: int) -> int:
        """Return the opcode of a frame's first byte if it may stand here."""
        if first & wire.RSV:
            raise WireError("the producer set an RSV bit")
        opcode = first & wire.OPCODE
        if opcode >= wire.CLOSE:
            if first < wire.FIN:
                raise WireError("the producer fragmented a control frame")
            if length > wire.MAX_CONTROL_BYTES:
                raise WireError("the producer sent a control frame of more than 125 bytes")
        elif opcode == wire.CONTINUATION:
            if not self._is_in_message:
                raise WireError("the producer sent a CONTINUATION without a message to continue")
        elif opcode > wire.BINARY:
            if opcode == wire.MOVE and self._is_in_message:
                raise WireError("the producer sent MOVE inside a message")
            if first < wire.FIN:
                raise WireError("the producer fragmented a frame of a reserved opcode")
        elif self._is_in_message:
            raise WireError("the producer began a message inside a fragmented one")
        return opcode
