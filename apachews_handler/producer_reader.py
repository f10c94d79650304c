"""From the wire to the client: walking the producer's frames.

Contract: ``ProducerReader.receive(data)`` takes bytes as they came from the
producer, cut anywhere.  It appends what goes to the client to ``client_out``,
untouched, and returns the CLOSE or the violation that ends the stream, or None.
``insert`` and ``insert_last`` add frames of the bridge's own.  Sans-I/O; one
reader a connection.

How this works: an unmasked frame of the wire *is* a server's frame of RFC 6455,
so the bytes are passed on as they are, mostly the very object that came; only
the headers are looked at.  They must be, for two reasons: a producer's mistake
must not become a malformed frame in a browser, and a frame of the bridge's own
(PONG, CLOSE) may stand only between two of the producer's.  Inside one it is
held until that is whole.

Sources: docs/wire.md; RFC 6455 5.2-5.5.
"""

from __future__ import annotations

from typing import Final

from apachews import wire
from apachews.exceptions import WireError

from .exceptions import Violation

# OPEN (0x3) has no meaning in this direction yet.
_RESERVED: Final = frozenset((0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF))


class ProducerReader:
    """Reads one producer's frames.

    Attributes:
        client_out: bytes for the client; the caller takes and empties it.
        ignored: opcodes of reserved frames that were left out; the caller logs
            and empties it.
        has_ended: the bridge's last frame is in ``client_out``.
    """

    __slots__ = (
        "_discards",
        "_finished",
        "_held",
        "_held_last",
        "_is_in_message",
        "_remaining",
        "_rest",
        "client_out",
        "has_ended",
        "ignored",
    )

    def __init__(self) -> None:
        self.client_out: list[bytes] = []
        self.ignored: list[int] = []
        self._rest = b""  # the beginning of a header or of a CLOSE
        self._remaining = 0  # payload of the current frame still to come
        self._discards = False  # that frame is of a reserved opcode
        self._is_in_message = False
        self._finished = False  # nothing more of the producer is passed on
        self._held: bytes | None = None
        self._held_last: bytes | None = None
        self.has_ended = False

    @property
    def is_between_frames(self) -> bool:
        """True where a frame of the bridge's may follow what is in ``client_out``."""
        return not self._remaining or self._discards

    def insert(self, frame: bytes) -> None:
        """Send a frame of the bridge's own; inside a frame only the last one is held."""
        if self._held_last is not None or self.has_ended:
            return
        if self.is_between_frames:
            self.client_out.append(frame)
        else:
            self._held = frame

    def insert_last(self, frame: bytes) -> None:
        """Send a frame of the bridge's own, and nothing after it."""
        self._held_last = frame
        if self.is_between_frames:
            self._release()

    def receive(self, data: bytes) -> wire.Close | Violation | None:
        """Take bytes from the producer; return what ends the stream, or None."""
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
        try:
            while position < end:
                if self._remaining:
                    step = min(self._remaining, end - position)
                    self._remaining -= step
                    position += step
                    if self._discards:
                        sent = position
                        self._discards = self._remaining > 0
                    elif not self._remaining and (self._held or self._held_last):
                        self._pass_on(data, sent, position)
                        sent = position
                        self._release()
                        if self.has_ended:
                            return None
                    continue
                header = wire.decode_header(data, position)
                if header is None:
                    break
                first, length, payload_at = header
                opcode = self._check(first, length)
                if opcode == wire.CLOSE:
                    if payload_at + length > end:
                        break
                    self._finished = True
                    return wire.decode_close(data[payload_at : payload_at + length])
                if opcode in _RESERVED:
                    self._pass_on(data, sent, position)
                    sent = payload_at
                    self.ignored.append(opcode)
                    self._discards = length > 0
                elif opcode < wire.CLOSE:
                    self._is_in_message = first < wire.FIN
                self._remaining = length
                position = payload_at
            self._rest = data[position:]
        finally:
            # Also where the next frame is a CLOSE or a violation: what stood
            # before it was good.
            self._pass_on(data, sent, position)
        return None

    def _pass_on(self, data: bytes, start: int, end: int) -> None:
        if start < end:
            self.client_out.append(data if end - start == len(data) else data[start:end])

    def _release(self) -> None:
        """Send what was held: a frame ended."""
        if self._held_last is not None:
            self.client_out.append(self._held_last)
            self._finished = self.has_ended = True
        elif self._held is not None:
            self.client_out.append(self._held)
        self._held = self._held_last = None

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
            if first < wire.FIN:
                raise WireError("the producer fragmented a frame of a reserved opcode")
        elif self._is_in_message:
            raise WireError("the producer began a message inside a fragmented one")
        return opcode
