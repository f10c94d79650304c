"""Frames of the wire: opcodes, close codes, headers and CLOSE payloads.

Contract: pure functions and constants.  Frames are those of RFC 6455, never masked, with all
RSV bits zero, in both directions.  docs/reference/wire.md is the specification.

Sources: RFC 6455 5.2 (framing), 5.5.1 and 7.4 (close), the IANA registry of WebSocket close
codes (1012-1014).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from apachews.exceptions import WireError

# Opcodes of RFC 6455 5.2; OPEN, ANSWER, MOVE, PUBLISH and LANE have numbers that it reserves.
CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
OPEN: Final = 0x3
ANSWER: Final = 0x4
MOVE: Final = 0x5
PUBLISH: Final = 0x6
LANE: Final = 0x7
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

FIN: Final = 0x80
RSV: Final = 0x70
OPCODE: Final = 0x0F
MASKED: Final = 0x80
# First bytes of a frame that is a whole message, as most frames are.
WHOLE_TEXT: Final = FIN | TEXT
WHOLE_MESSAGES: Final[frozenset[int]] = frozenset((WHOLE_TEXT, FIN | BINARY))

# RFC 6455 5.5: the longest payload of a control frame.
MAX_CONTROL_BYTES: Final = 125
# RFC 6455 5.5.1: two of its bytes are the code.
MAX_REASON_BYTES: Final = MAX_CONTROL_BYTES - 2
# OPEN carries the request head as JSON.  httpd itself allows 100 fields of 8190 bytes
# (LimitRequestFields, LimitRequestFieldSize), and escaping can turn one byte into six.  The bound
# protects the memory from other programs that connect to the socket.
MAX_OPEN_BYTES: Final = 8 * 1024 * 1024

# Close codes (RFC 6455 7.4.1 and IANA) that this project sends or reports.
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
NO_CODE: Final = 1005
ABNORMAL: Final = 1006
INVALID_DATA: Final = 1007
POLICY_VIOLATION: Final = 1008
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012
TRY_AGAIN_LATER: Final = 1013

_HEADER_16 = struct.Struct(">BBH")
_HEADER_64 = struct.Struct(">BBQ")
_LENGTH_16 = struct.Struct(">H")
_LENGTH_64 = struct.Struct(">Q")


def encode_header(first: int, length: int) -> bytes:
    """Return the 2, 4 or 10 bytes before an unmasked payload.

    Args:
        first: the first byte: FIN bit and opcode.
        length: bytes of payload, 0 or more.
    """
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return _HEADER_16.pack(first, 126, length)
    return _HEADER_64.pack(first, 127, length)


def encode_frame(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """Return one whole unmasked frame."""
    return encode_header(FIN | opcode if fin else opcode, len(payload)) + payload


def decode_header(data: bytes, start: int) -> tuple[int, int, int] | None:
    """Read the frame header that begins at ``data[start]``.

    Returns:
        ``(first byte, payload length, offset of the payload)``, or None if the
        header is incomplete.

    Raises:
        WireError: a masked frame, or a length that is not in its shortest form
            or exceeds 2**63 - 1 (RFC 6455 5.2).
    """
    end = len(data)
    if end - start < 2:
        return None
    length = data[start + 1]
    if length < 126:
        return data[start], length, start + 2
    if length >= MASKED:
        raise WireError("masked frame: the wire never masks")
    if length == 126:
        if end - start < 4:
            return None
        length = _LENGTH_16.unpack_from(data, start + 2)[0]
        if length < 126:
            raise WireError("frame length not in its shortest form")
        return data[start], length, start + 4
    if end - start < 10:
        return None
    length = _LENGTH_64.unpack_from(data, start + 2)[0]
    if length < 65536:
        raise WireError("frame length not in its shortest form")
    if length >> 63:
        raise WireError("frame length exceeds 2**63 - 1")
    return data[start], length, start + 10


def is_sendable_code(code: int) -> bool:
    """Return whether a CLOSE frame may carry the code (RFC 6455 7.4)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def encode_close(code: int, reason: str = "") -> bytes:
    """Return the payload of a CLOSE frame.

    Args:
        code: 1005 (NO_CODE) returns the empty payload.
        reason: text of at most 123 bytes in UTF-8.

    Raises:
        ValueError: a code that a CLOSE may not carry, a reason that is too long, or a
            reason without a code.
    """
    if code == NO_CODE:
        if reason:
            raise ValueError("a CLOSE without a code (1005) cannot carry a reason")
        return b""
    if not is_sendable_code(code):
        raise ValueError(f"close code {code} is not allowed: use 1000-1003, 1007-1014 or 3000-4999")
    text = reason.encode()
    if len(text) > MAX_REASON_BYTES:
        raise ValueError(
            f"the close reason has {len(text)} bytes in UTF-8; the limit is {MAX_REASON_BYTES}"
        )
    return _LENGTH_16.pack(code) + text


@dataclass(frozen=True, slots=True)
class Close:
    """The content of a CLOSE frame; code 1005 (NO_CODE) stands for an empty one."""

    code: int
    reason: str


def decode_close(payload: bytes) -> Close:
    """Read the payload of a CLOSE frame.

    Raises:
        WireError: ``WireError.code`` is the close code of the answer.
    """
    if not payload:
        return Close(NO_CODE, "")
    if len(payload) == 1:
        raise WireError("CLOSE payload is 1 byte; it must be empty or at least 2")
    code = _LENGTH_16.unpack_from(payload)[0]
    if not is_sendable_code(code):
        raise WireError(f"close code {code} is not allowed")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError as error:
        raise WireError("the CLOSE reason is not UTF-8", INVALID_DATA) from error


def truncate_reason(reason: str) -> str:
    """Cut a reason to the 123 bytes that a CLOSE can carry, at a character boundary."""
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
