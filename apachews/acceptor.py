"""Letting clients in from the listening socket, one among several processes perhaps.

Contract: for ``Server``, on the thread that runs ``dequeue()``.  Nothing blocks.  The
listening socket stays ``SocketFile``'s, and is closed with it by ``stop``.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from typing import Final

from .listener import SocketFile

# How long accepting rests when the process has no descriptor left.
ACCEPT_REST_S: Final = 1.0

_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Watches a listening socket in an epoll, and accepts from it.

    Attributes:
        fd: what epoll names when somebody waits; -1 once it has stopped.
        again_at: when a rest ends (``time.monotonic()``), or None.
    """

    def __init__(self, file: SocketFile, epoll: select.epoll) -> None:
        self._file = file
        self._epoll = epoll
        self.fd = file.socket.fileno()
        self.again_at: float | None = None
        self._watch()

    def accept_nowait(self) -> socket.socket | None:
        """Return the next client's socket, non-blocking, or None.

        Raises:
            OSError: where ``again_at`` is set, there is no descriptor or no memory
                left, and accepting rests.
        """
        while self.fd != -1:
            try:
                sock = self._file.socket.accept()[0]
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                if error.errno in _OUT_OF_RESOURCES:
                    self._rest()
                raise
            sock.setblocking(False)
            return sock
        return None

    def let_others_go_first(self) -> None:
        """Go to the end of the row of processes that accept from the same socket.

        The kernel wakes the first in the row that sleeps: without this, one would
        have all the clients.
        """
        if self.again_at is None:
            self._epoll.unregister(self.fd)
            self._watch()

    def end_rest(self) -> None:
        """Accept again."""
        self.again_at = None
        self._watch()

    def stop(self) -> None:
        """Accept no more, and close the socket; again does nothing."""
        if self.fd != -1:
            if self.again_at is None:
                # Closing would not do: other processes may hold the same socket.
                self._epoll.unregister(self.fd)
            self.again_at = None
            self.fd = -1
        self._file.close()

    def _watch(self) -> None:
        # Exclusive: a client that comes wakes one process, and not all of them.
        self._epoll.register(self.fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def _rest(self) -> None:
        # A listening socket that cannot be accepted from stays ready: watching
        # it on would turn the loop into a spin.
        if self.again_at is None:
            self._epoll.unregister(self.fd)
        self.again_at = time.monotonic() + ACCEPT_REST_S
