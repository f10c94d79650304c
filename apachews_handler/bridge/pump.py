"""The calls that every message needs: in C if the build had a compiler.

Contract: descriptors are non-blocking sockets of the loop's own, and the bytes on them are plain:
not those of a client with TLS.  ``send_to_all`` is ``_pump.c`` or ``send_to_all_in_python``.
``relay_client`` and ``relay_producer`` exist in C only (``IS_IN_C``); the fast path does the same
in Python otherwise.

The two read once from one side, and if that is whole uncompressed messages and nothing else, they
send them to the other side.  They return:

- an int: all is sent.  It has the number of messages, and in its last ``COUNT_BITS`` bits that of
  the bytes of payload.
- a tuple of that int, the bytes for the other side, and how many of them it has taken; 0 also
  after an error, which the next call will have.
- bytes: what was read, and has not passed; the caller handles it.  b"" after the end of file or an
  error.
- None: nothing has arrived.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, TypeAlias

COUNT_BITS: Final = 32
SIZE_BITS: Final = (1 << COUNT_BITS) - 1
# The most descriptors of one ``send_to_all``.
MAX_FDS: Final = 1024
# What ``send_to_all`` returns for a descriptor of -1.
SKIPPED: Final = -2

Passed: TypeAlias = "int | tuple[int, bytes, int] | bytes | None"


def send_to_all_in_python(fds: bytes, data: bytes) -> list[int]:
    """Send the same bytes to many sockets.

    Args:
        fds: an array of C ints, at most ``MAX_FDS``; -1 is skipped.
        data: the bytes.

    Returns:
        Two numbers for each socket that has not taken all: its index, and how many bytes it has
        taken; -1 after an error, ``SKIPPED`` for a descriptor of -1.
    """
    late: list[int] = []
    for index, fd in enumerate(memoryview(fds).cast("i")):
        if fd < 0:
            late += (index, SKIPPED)
            continue
        try:
            sent = os.write(fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = -1
        if sent != len(data):
            late += (index, sent)
    return late


def _not_in_c(read_fd: int, write_fd: int, size: int, longest: int) -> Passed:
    """Take the place of ``relay_client`` and ``relay_producer``.

    Args:
        read_fd: the side that is read.
        write_fd: the other side.
        size: of the read, at most.
        longest: payload of a message that may pass.
    """
    raise NotImplementedError("the build had no compiler")


send_to_all: Callable[[bytes, bytes], list[int]] = send_to_all_in_python
relay_client: Callable[[int, int, int, int], Passed] = _not_in_c
relay_producer: Callable[[int, int, int, int], Passed] = _not_in_c
IS_IN_C = False
try:
    from . import _pump
except ImportError:  # the build had no compiler: setup.py
    pass
else:
    send_to_all = _pump.send_to_all
    relay_client = _pump.relay_client
    relay_producer = _pump.relay_producer
    IS_IN_C = True
