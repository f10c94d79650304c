"""One epoll: which descriptor is served next, and how other threads end the wait.

Contract: for ``Loop``, under its lock, which ``wait`` releases while it waits.  Connections are
registered with a mask, and the loop serves them; every other descriptor is registered with a
function (``add_reader``), which ``run_reader`` calls.  ``wake`` is for any thread, without the
lock.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
GONE: Final = select.EPOLLHUP | select.EPOLLERR
READABLE: Final = IN | GONE


class Poller:
    """Level-triggered epoll over connections and readers.

    Args:
        lock: released during a wait.

    Attributes:
        ready: descriptors that are ready and not served yet, with their events.  ``wait`` must
            not be called before it is empty: epoll would name the same ones first, and a
            client that floods would starve the others.
        has_paused: some connections' readers hold bytes that were read and not parsed.
        busy: number of those connections when ``wait`` was called last, at least 1.
        is_waiting: a thread is inside ``wait``.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self.ready: deque[tuple[int, int]] = deque()
        self.busy = 1
        self.is_waiting = False
        self._has_fileno = False
        self._paused: dict[int, None] = {}  # a dict for its order
        self._readers: dict[int, Callable[[], object]] = {}
        self._epoll = select.epoll()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self.add_reader(self._wake_reader.fileno(), lambda: self._wake_reader.recv(4096))

    def fileno(self) -> int:
        """Return the epoll's descriptor, for a loop that waits itself."""
        self._has_fileno = True
        return self._epoll.fileno()

    @property
    def is_closed(self) -> bool:
        return self._epoll.closed

    @property
    def has_paused(self) -> bool:
        return bool(self._paused)

    def add(self, fd: int, mask: int) -> None:
        """Watch a connection."""
        self._epoll.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        """Change the mask of a connection."""
        self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Stop watching a connection, before its descriptor is closed."""
        # A new connection may have the same descriptor; it must not be served in its place.
        self._paused.pop(fd, None)
        self._epoll.unregister(fd)

    def add_reader(
        self, fd: int, function: Callable[[], object], *, is_exclusive: bool = False
    ) -> None:
        """Call a function whenever a descriptor is readable.

        Args:
            is_exclusive: the kernel wakes one of the processes that wait for the same socket
                in this way, and not all of them.
        """
        self._epoll.register(fd, IN | select.EPOLLEXCLUSIVE if is_exclusive else IN)
        self._readers[fd] = function

    def remove_reader(self, fd: int) -> None:
        """Stop watching a reader, before its descriptor is closed."""
        # unregister() and not only close(): another process may hold the same socket, and epoll
        # would name the descriptor as long as any does.
        self._epoll.unregister(fd)
        del self._readers[fd]

    def run_reader(self, fd: int) -> None:
        """Call the function of a reader; ignore a descriptor that was removed meanwhile."""
        if (function := self._readers.get(fd)) is not None:
            function()

    def serve_again(self, fd: int) -> None:
        """Let ``wait`` return a connection whose reader holds bytes: its socket may be empty."""
        self._paused[fd] = None

    def wait(self, timeout_s: float | None, *, keeps_lock: bool = False) -> Iterable[int]:
        """Fill ``ready``; return the connections of ``serve_again`` that are not in it.

        Args:
            timeout_s: seconds to wait at most; None: no limit.
            keeps_lock: other threads must not see the present state.
        """
        self.busy = len(self._paused) or 1
        if not self._paused:
            self.ready.extend(self._poll(timeout_s, keeps_lock))
            return ()
        # Connections with unparsed bytes can be served at once, so do not wait; but ask epoll,
        # or two busy clients would keep all others from being served.
        found = self._poll(0.0, keeps_lock)
        # Taken after the poll: another thread may have added one while the lock was released.
        paused, self._paused = self._paused, {}
        for fd, _ in found:
            paused.pop(fd, None)
        self.ready.extend(found)
        return paused

    def _poll(self, timeout_s: float | None, keeps_lock: bool) -> list[tuple[int, int]]:
        if keeps_lock:
            return self._epoll.poll(timeout_s)
        # Also for a timeout of 0: otherwise a busy loop would never let other threads send.
        self.is_waiting = True
        self._lock.release()
        try:
            return self._epoll.poll(timeout_s)
        finally:
            self._lock.acquire()
            self.is_waiting = False

    def wake(self) -> None:
        """End the wait of another thread; from any thread, without the lock."""
        try:
            self._wake_writer.send(b"\0")
        except OSError:
            pass  # full: the thread wakes up in any case; or closed: no thread waits

    def wake_if_waited_for(self) -> None:
        """End the wait of a thread here, or of a loop that watches ``fileno``."""
        if self.is_waiting or self._has_fileno:
            self.wake()

    def wake_if_watched(self) -> None:
        """Make ``fileno`` readable for a loop that watches it."""
        if self._has_fileno:
            self.wake()

    def close(self) -> None:
        """Close the descriptors; closing again does nothing."""
        self._wake_reader.close()
        self._wake_writer.close()
        self._epoll.close()
