"""What RFC 6455 forbids in the header of a client's frame.

Contract: pure functions; both raise ``WireError`` with the reason for the CLOSE frame.

Sources: RFC 6455 5.2 (framing), 5.4 (fragmentation), 5.5 (control frames); RFC 7692 6. (RSV1).
"""

from __future__ import annotations

from typing import Final

from apachews import wire
from apachews.exceptions import WireError

from .deflate import COMPRESSED, Agreement

CONTROL_OPCODES: Final = frozenset((wire.CLOSE, wire.PING, wire.PONG))
_DATA_OPCODES: Final = frozenset((wire.CONTINUATION, wire.TEXT, wire.BINARY))


def check_first_byte(
    first: int, length: int, message_opcode: int, deflate: Agreement | None
) -> int:
    """Return the opcode of a frame that is allowed at this position.

    Args:
        first: the header's first byte.
        length: of the payload, as the second byte has it: 126 and 127 stand for longer ones.
        message_opcode: of the fragmented message that has begun and not ended; 0: none.
        deflate: what was negotiated; None: no message may be compressed.

    Raises:
        WireError: the frame is not allowed.
    """
    opcode = first & wire.OPCODE
    if first & wire.RSV and not (
        # RFC 7692 6.: only on the first frame of a message.
        first & wire.RSV == COMPRESSED and deflate and opcode in (wire.TEXT, wire.BINARY)
    ):
        raise WireError("reserved bit set without a negotiated extension")
    if opcode in CONTROL_OPCODES:
        # RFC 6455 5.5: control frames are short and whole.
        if not first & wire.FIN:
            raise WireError("control frame is fragmented")
        if length > wire.MAX_CONTROL_BYTES:
            raise WireError("control frame has more than 125 bytes of payload")
    elif opcode not in _DATA_OPCODES:
        raise WireError(f"opcode {opcode:#x} is reserved")
    elif opcode == wire.CONTINUATION:
        # RFC 6455 5.4, both branches: fragments of two messages do not interleave.
        if not message_opcode:
            raise WireError("CONTINUATION frame without a message to continue")
    elif message_opcode:
        raise WireError("new message inside a fragmented message")
    return opcode


def decode_length(field: bytes) -> int:
    """Return an extended payload length.

    Args:
        field: its two or eight bytes.

    Raises:
        WireError: the length is not in its shortest form or exceeds 2**63 - 1.
    """
    length = int.from_bytes(field, "big")
    # RFC 6455 5.2: the minimal number of bytes, and the most significant bit is 0.
    if length < (126 if len(field) == 2 else 65536):
        raise WireError("payload length is not in its shortest form")
    if length >> 63:
        raise WireError("payload length is over 2**63 - 1")
    return length
