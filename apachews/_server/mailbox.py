"""Messages that wait between a server's loop and the handler of one connection.

Contract: pure bookkeeping, no I/O, no locks: threads that share one need a lock.  Messages are
never dropped; while ``is_full`` is true the connection should not be read.

The bound makes a slow handler slow down its own client: its connection is not read, the kernel's
buffers fill, and the client waits.  Other clients notice nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Final

# Reading stops above the first and continues below the second: four and two reads of a socket.
# The messages of the read that exceeds the bound are still accepted.
FULL_BYTES: Final = 262_144
LOW_BYTES: Final = 131_072
# The overhead of a message, so that empty messages count as well.
MESSAGE_BYTES: Final = 64


class Mailbox:
    """Messages that have arrived and that the handler has not received.

    Attributes:
        is_full: the connection should not be read; stays true down to ``LOW_BYTES``.
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

    def get(self) -> str | bytes:
        """Remove and return the oldest message; there must be one."""
        message = self._messages.popleft()
        self._size_bytes -= len(message) + MESSAGE_BYTES
        if self._size_bytes <= LOW_BYTES:
            self.is_full = False
        return message
