"""A client's frames, by hand."""

from __future__ import annotations

from apachews import wire
from apachews_handler.protocol.mask import unmask

MASK = b"\x12\xa4\x37\x00"


def masked(first: int, payload: bytes = b"", mask: bytes = MASK) -> bytes:
    """Return one frame as a client sends it (masking is its own inverse).

    Args:
        first: FIN, RSV and opcode, as they stand in the first byte.
        payload: any length; the header takes the shortest form.
    """
    header = bytearray(wire.encode_header(first, len(payload)))
    header[1] |= wire.MASKED
    return bytes(header) + mask + unmask(payload, mask)
