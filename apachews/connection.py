"""The library's end of one Unix socket: state, reader, and the queue to it.

Contract: for ``Server`` and ``Client`` only, on the thread that runs
``dequeue()``.  Nothing blocks.  Owns the socket and closes it.

How this works: what the kernel does not take at once waits in a queue of frames
with a bound.  A client that does not read fills it and is closed with 1013,
alone.  A client whose queue is half full is not read from either, so that an
echo, or any other program that answers what it is asked, slows its client down
rather than losing it: the bound is for broadcasts.  Once a frame is half sent
its rest must go before anything else, an end of file included.
"""

from __future__ import annotations

import enum
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from . import wire
from .messages import MessageReader

if TYPE_CHECKING:
    from .client import Client

# One read from a socket: a third of what Linux buffers for a Unix socket.
READ_BYTES: Final = 65536


class State(enum.Enum):
    """Where a connection is in its life; it only ever moves down this list."""

    CONNECTING = "no OPEN yet"
    OPEN = "messages flow"
    CLOSING = "a CLOSE is sent or queued, the answer is awaited; messages are ignored"
    CLOSED = "the last event is out; at most the queue is still being sent"


class Connection:
    """One Unix socket.

    Args:
        sock: accepted, non-blocking; owned from here on.
        max_message_bytes: as ``Server``.
        max_queue_bytes: as ``Server``.
        changed: called when the queue filled or emptied, or the state changed.

    Attributes:
        state: where it is in its life; ``Server`` moves it, ``send_close`` too.
        client: what the producer holds, once there was an OPEN.
        has_overflowed: the queue was full; the state is CLOSING.
        watched: the epoll mask in force.
        deadline: when it must be gone (``time.monotonic()``), once it leaves.
    """

    __slots__ = (
        "_changed",
        "_max_queue_bytes",
        "_queue",
        "_queued_bytes",
        "_reader",
        "_socket",
        "client",
        "deadline",
        "has_overflowed",
        "state",
        "watched",
    )

    def __init__(
        self,
        sock: socket.socket,
        max_message_bytes: int,
        max_queue_bytes: int,
        changed: Callable[[Connection], None],
    ) -> None:
        self._socket = sock
        self._reader = MessageReader(max_message_bytes)
        self._max_queue_bytes = max_queue_bytes
        self._changed = changed
        self._queue: deque[memoryview] = deque()
        self._queued_bytes = 0
        self.state = State.CONNECTING
        self.client: Client | None = None
        self.has_overflowed = False
        self.watched = 0
        self.deadline: float | None = None

    @property
    def reader(self) -> MessageReader:
        return self._reader

    @property
    def has_queue(self) -> bool:
        return bool(self._queue)

    @property
    def wants_reading(self) -> bool:
        """False while the client must first take what is queued for it."""
        return self._queued_bytes * 2 <= self._max_queue_bytes

    def fileno(self) -> int:
        """Return the descriptor, -1 after ``close``."""
        return self._socket.fileno()

    def receive_nowait(self) -> bytes | None:
        """Return what came, b"" at the end of file, None where nothing is there."""
        try:
            return self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def send_frame(self, frame: bytes) -> bool:
        """Send or queue one whole data frame; False where it does not go out.

        A message longer than the whole bound still goes to an empty queue.
        """
        if self.state is not State.OPEN:
            return False
        if self._queue and self._queued_bytes + len(frame) > self._max_queue_bytes:
            self.has_overflowed = True
            self.drop_queue()
            self.send_close(wire.TRY_AGAIN_LATER, "too slow: the send queue is full")
            return False
        self._write(frame)
        return True

    def send_close(self, code: int, reason: str) -> None:
        """Send or queue a CLOSE, once.

        Raises:
            ValueError: see ``wire.encode_close``.
        """
        frame = wire.encode_frame(wire.CLOSE, wire.encode_close(code, reason))
        if self.state is State.OPEN:
            self.state = State.CLOSING
            self._write(frame)
            self._changed(self)

    def flush_nowait(self) -> None:
        """Send what the kernel takes of the queue."""
        while self._queue:
            head = self._queue[0]
            sent = self._send_nowait(head)
            if not self._queue:  # the bridge is gone
                return
            self._queued_bytes -= sent
            if sent < len(head):
                self._queue[0] = head[sent:]
                return
            self._queue.popleft()

    def drop_queue(self) -> None:
        """Forget what is queued, but for the rest of a frame that is half sent."""
        rest = self._queue[0] if self._queue else None
        self._queue.clear()
        self._queued_bytes = 0
        # A view that is shorter than what it is a view of has lost its beginning
        # to the kernel.
        if rest is not None and len(rest) < len(rest.obj):  # type: ignore[arg-type]
            self._queue.append(rest)
            self._queued_bytes = len(rest)

    def close(self) -> None:
        """Close the socket and drop the queue; again does nothing."""
        self._queue.clear()
        self._queued_bytes = 0
        self._socket.close()

    def _write(self, frame: bytes) -> None:
        view = memoryview(frame)
        if not self._queue:
            sent = self._send_nowait(view)
            if sent == len(frame):
                return
            view = view[sent:]
        self._queue.append(view)
        self._queued_bytes += len(view)
        self._changed(self)

    def _send_nowait(self, view: memoryview) -> int:
        try:
            return self._socket.send(view)
        except BlockingIOError:
            return 0
        except OSError:
            # The bridge is gone.  Nothing can be sent any more; reading finds
            # its last words and the end of file, and they become the event.
            self._queue.clear()
            self._queued_bytes = 0
            return len(view)
