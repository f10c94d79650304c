"""Bytes that one side of a connection has not taken yet.

Contract: ``push`` and ``push_all`` append whole frames, ``flush`` sends as much as the peer
takes.  The caller bounds the queue: it stops reading the other side while ``unsent_bytes`` is
not 0.

How this works: one bytes object and the number of its last bytes that are not sent.  What
is sent stays in the object until all of it is, because a producer that dies inside a frame
leaves the whole frame to its successor (``undelivered``).  Later frames are joined to it when it
is sent again: until then, clients that stopped reading share the frames of a broadcast.
"""

from __future__ import annotations

from collections.abc import Callable


class SendQueue:
    """The queue of one leg.

    Attributes:
        unsent_bytes: how many bytes wait; 0 if the queue is empty.  For reading only.
    """

    __slots__ = ("_data", "_later", "unsent_bytes")

    def __init__(self) -> None:
        self._data = b""
        self._later: list[bytes] | None = None  # None while it is empty: a list has 56 bytes
        self.unsent_bytes = 0

    def push(self, data: bytes, sent: int = 0) -> None:
        """Append whole frames.

        Args:
            sent: how many bytes of ``data`` the peer has taken already; 0 unless the queue
                is empty.
        """
        self._append(data)
        self.unsent_bytes += len(data) - sent

    def push_all(self, frames: list[bytes]) -> None:
        """Append whole frames, and empty the list, which a session shares with the caller."""
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        frames.clear()
        self._append(data)
        self.unsent_bytes += len(data)

    def flush(self, send: Callable[[bytes | memoryview], int]) -> int:
        """Send once, and return how many bytes were taken; do nothing if the queue is empty.

        Args:
            send: takes some of the bytes and returns how many.

        Raises:
            OSError: ``send`` raised it; the queue is unchanged.
        """
        if not self.unsent_bytes:
            return 0
        if self._later:
            self._join()
        data = self._data
        offset = len(data) - self.unsent_bytes
        # A view: a copy for each piece of a large queue would take quadratic time.
        sent = send(memoryview(data)[offset:] if offset else data)
        self.unsent_bytes -= sent
        if not self.unsent_bytes:
            self._data = b""
        return sent

    def undelivered(self) -> tuple[bytes, int]:
        """Return whole frames, and how many of their first bytes the peer has taken."""
        self._join()
        return self._data, len(self._data) - self.unsent_bytes

    def clear(self) -> None:
        """Drop everything."""
        self._data = b""
        self._later = None
        self.unsent_bytes = 0

    def _append(self, data: bytes) -> None:
        if not self._data:
            self._data = data
        elif self._later is None:
            self._later = [data]
        else:
            self._later.append(data)

    def _join(self) -> None:
        if self._later is not None:
            self._data = b"".join((self._data, *self._later))
            self._later = None
