"""Unmasking (RFC 6455 5.3).

Contract: ``unmask(data, mask)``, a pure function.  It is ``_mask.c`` if the build had a
compiler, and ``unmask_in_python`` otherwise; only this module knows which.
"""

from __future__ import annotations


def unmask_in_python(data: bytes, mask: bytes) -> bytes:
    """Return the payload XOR the mask, repeated.

    Args:
        data: masked payload, or a piece of it.
        mask: four bytes, rotated to the piece's position in the payload.

    How this works: one exclusive-or of two integers as long as the payload, which CPython
    computes word by word.  A read of 64 KiB takes 150 us, one byte at a time 4 ms.

    Roads not taken: ``bytes.translate`` for each byte of the mask, which takes two thirds of
    that time for 64 KiB, as much for 4 KiB and more for shorter payload.  A site with long
    messages has a compiler: the extension takes 4 us.
    """
    length = len(data)
    key = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(
        length, "little"
    )


try:
    from ._mask import unmask as unmask
except ImportError:  # the build had no compiler: setup.py
    unmask = unmask_in_python

IS_IN_C = unmask is not unmask_in_python
