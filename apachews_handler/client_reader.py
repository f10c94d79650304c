"""From the client's frames to the wire: the bridge's half of RFC 6455 on reading.

Contract: ``ClientReader.receive(data)`` takes bytes as they came from the client,
cut anywhere.  It appends what goes to the producer, as whole frames of the wire,
to ``wire_out``, and returns the control frames that need an answer.  Everything
is checked; the first thing wrong comes back as the last control.  Sans-I/O; one
reader a connection.

How this works: nothing is held but the beginning of a header (13 bytes at most)
and control frames (125 bytes at most).  Of a data frame that has not all arrived,
what has goes on at once, as a fragment of its message: so the memory for one
connection does not depend on the size of its messages, and the producer sees the
same message.  Text is checked as it passes, across the cuts.

Sources: RFC 6455 5.2-5.5 (framing), 5.6 and 8.1 (UTF-8), 7.4 (codes).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from apachews import wire
from apachews.exceptions import WireError

from .exceptions import Violation
from .mask import unmask

_new_utf8_decoder: Final = codecs.getincrementaldecoder("utf-8")

_TEXT_WHOLE: Final = wire.FIN | wire.TEXT
_DATA_OPCODES: Final = frozenset((wire.CONTINUATION, wire.TEXT, wire.BINARY))
_CONTROL_OPCODES: Final = frozenset((wire.CLOSE, wire.PING, wire.PONG))


@dataclass(frozen=True, slots=True)
class Ping:
    """The client wants a PONG with this payload."""

    payload: bytes


Control: TypeAlias = "Ping | wire.Close | Violation"


class ClientReader:
    """Reads one client's frames.

    Args:
        max_message_bytes: longest message; a longer one is a Violation 1009 as
            soon as a header announces it.

    Attributes:
        wire_out: frames for the producer; the caller takes and empties it.
    """

    __slots__ = (
        "_decode",
        "_fin",
        "_finished",
        "_mask",
        "_max_message_bytes",
        "_message_bytes",
        "_message_opcode",
        "_next_opcode",
        "_remaining",
        "_rest",
        "wire_out",
    )

    def __init__(self, max_message_bytes: int) -> None:
        self.wire_out: list[bytes] = []
        self._max_message_bytes = max_message_bytes
        self._rest = b""  # the beginning of a header or of a control frame
        self._remaining = 0  # payload of the current data frame still to come
        self._mask = b""  # its mask, rotated to the next byte
        self._fin = 0  # its FIN bit
        self._message_opcode = 0  # TEXT or BINARY inside a message, else 0
        self._next_opcode = 0  # the next fragment's: that, then CONTINUATION
        self._message_bytes = 0
        self._decode: Callable[[bytes, bool], str] | None = None  # inside a text message
        self._finished = False  # after a CLOSE or a violation

    def receive(self, data: bytes) -> list[Control]:
        """Take bytes from the client; return the controls among them, in order."""
        controls: list[Control] = []
        if self._finished:
            return controls
        try:
            self._receive(data, controls)
        except Violation as violation:
            self._finished = True
            controls.append(violation)
        return controls

    def _receive(self, data: bytes, controls: list[Control]) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        position, end = 0, len(data)
        while position < end:
            if self._remaining:
                position += self._take_payload(data[position : position + self._remaining])
                continue
            if end - position < 2:
                break
            first, length = data[position], data[position + 1] - wire.MASKED
            if length < 0:
                raise Violation(wire.PROTOCOL_ERROR, "a client's frame is not masked")
            # The common case first: a whole text message in one short frame.
            payload_at = position + 6
            if (
                first == _TEXT_WHOLE
                and length < 126
                and payload_at + length <= end
                and not self._message_opcode
                and length <= self._max_message_bytes
            ):
                payload = unmask(
                    data[payload_at : payload_at + length], data[position + 2 : payload_at]
                )
                try:
                    payload.decode()
                except UnicodeDecodeError:
                    raise _not_utf8() from None
                self.wire_out.append(bytes((first, length)) + payload)
                position = payload_at + length
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
                self._take_payload(b"")
        self._rest = data[position:]

    def _check_first_byte(self, first: int, length: int) -> int:
        """Return the opcode of a header's first byte if it is good (RFC 6455 5.2, 5.5)."""
        if first & wire.RSV:
            raise Violation(
                wire.PROTOCOL_ERROR, "an RSV bit is set and no extension was negotiated"
            )
        opcode = first & wire.OPCODE
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
        self._message_bytes += length
        if self._message_bytes > self._max_message_bytes:
            raise Violation(
                wire.TOO_BIG, f"a message has more than {self._max_message_bytes} bytes"
            )
        self._fin = first & wire.FIN
        self._remaining = length

    def _take_payload(self, chunk: bytes) -> int:
        """Check and pass on a piece of the current data frame; return its length."""
        taken = len(chunk)
        payload = unmask(chunk, self._mask)
        self._remaining -= taken
        is_last = not self._remaining and self._fin
        if self._remaining:
            turn = taken % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
        if self._decode:
            try:
                self._decode(payload, bool(is_last))
            except UnicodeDecodeError:
                raise _not_utf8() from None
        if is_last:
            first = wire.FIN | self._next_opcode
            self._message_opcode = 0
        else:
            first = self._next_opcode
            self._next_opcode = wire.CONTINUATION
        self.wire_out.append(wire.encode_header(first, taken) + payload)
        return taken

    def _take_control(self, opcode: int, payload: bytes, controls: list[Control]) -> bool:
        """Take a whole control frame; return True where it is the last one."""
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


def _not_utf8() -> Violation:
    return Violation(wire.INVALID_DATA, "a text message is not UTF-8")
