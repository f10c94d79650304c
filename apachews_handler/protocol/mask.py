"""Unmasking (RFC 6455 5.3).

Contract: pure.  A module of its own so that nothing else knows of the two ways:
``_mask.c`` where it was built, and Python where there was no compiler.
"""

from __future__ import annotations

import functools
from typing import Final

# Bytes of payload from which on ``bytes.translate`` is faster than an integer is made.
LONG: Final = 4096


def unmask_in_python(data: bytes, mask: bytes) -> bytes:
    """Return the payload XOR the mask, repeated.

    Args:
        data: masked payload, or a piece of it.
        mask: four bytes, rotated to the piece's place in the payload.

    How this works: one exclusive-or of two integers as long as the payload,
    which CPython does word by word, instead of one per byte.  To make them takes longer
    the longer they are; a table for each byte of the mask is faster then.
    """
    length = len(data)
    if length >= LONG:
        unmasked = bytearray(length)
        for place, byte in enumerate(mask):
            unmasked[place::4] = data[place::4].translate(_exclusive_or(byte))
        return bytes(unmasked)
    key = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(
        length, "little"
    )


@functools.cache
def _exclusive_or(key: int) -> bytes:
    """Return what each byte becomes, for ``bytes.translate``."""
    return bytes(byte ^ key for byte in range(256))


try:
    from ._mask import unmask as unmask
except ImportError:  # the build had no compiler: setup.py
    unmask = unmask_in_python

IS_IN_C = unmask is not unmask_in_python
