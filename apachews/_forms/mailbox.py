"""Messages between a server's loop and the handler of one connection.

Contract: pure bookkeeping, no I/O, no locks: whoever shares one between threads guards
it.  Nothing is ever dropped; ``is_full`` says that its connection should not be read on.

Why there is a bound: a handler that does other things lets messages pile up.  Its client
is then not read, its kernel's buffers fill, and it slows down; nobody else does.
"""

from __future__ import annotations

from collections import deque
from typing import Final

# Where the reading of a connection stops, and where it goes on: four and two reads of its
# socket.  What one read brings is taken even so.
FULL_BYTES: Final = 262_144
LOW_BYTES: Final = 131_072
# What a message costs beside its bytes, so that empty ones count as well.
MESSAGE_BYTES: Final = 64


class Mailbox:
    """Messages that came and that the handler has not asked for yet.

    Attributes:
        is_full: the connection should not be read; it stays so until little is left.
    """

    __slots__ = ("_messages", "_size_bytes", "is_full")

    def __init__(self) -> None:
        self._messages: deque[str | bytes] = deque()
        self._size_bytes = 0
        self.is_full = False

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: str | bytes) -> None:
        """Add a message."""
        self._messages.append(message)
        self._size_bytes += len(message) + MESSAGE_BYTES
        if self._size_bytes > FULL_BYTES:
            self.is_full = True

    def take(self) -> str | bytes:
        """Return the oldest message; there must be one."""
        message = self._messages.popleft()
        self._size_bytes -= len(message) + MESSAGE_BYTES
        if self._size_bytes <= LOW_BYTES:
            self.is_full = False
        return message
