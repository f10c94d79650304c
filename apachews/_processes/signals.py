"""Signals as something to wait for, and the end of a parent as a signal.

Contract: for a process that does nothing but look after others (``workers.py``,
``runner.py``), on its main thread.  ``Signals`` changes handlers and gives them
back; nothing else of this library ever does.

How ``Lifeline`` works: the parent holds the writing end of a pipe and never writes;
the kernel closes it when the parent dies, however it dies, and tells whoever asked
for the other end (fcntl(2), O_ASYNC and F_SETSIG).  So a child learns of it wherever
its program is.  PR_SET_PDEATHSIG would need a foreign call, and means a thread.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
from collections.abc import Iterable
from types import FrameType


class Signals:
    """Takes signals, to be polled for like a socket."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._wakeup_fd_before = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )
        self._before = {number: signal.signal(number, _ignore) for number in numbers}

    def fileno(self) -> int:
        return self._reader.fileno()

    def take_nowait(self) -> bytes:
        """Return the numbers of the signals that have come, in order."""
        try:
            return self._reader.recv(4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Give the handlers back that were there before."""
        for number, handler in self._before.items():
            # None: it was set by C code, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup_fd_before)
        self._reader.close()
        self._writer.close()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: that it came is read from the wakeup descriptor."""


class Lifeline:
    """A pipe whose end is the end of the process that made it."""

    def __init__(self) -> None:
        self.reader_fd, self._writer_fd = os.pipe()

    def keep(self) -> None:
        """In the parent, once the child has the reader."""
        os.close(self.reader_fd)

    def cut(self) -> None:
        """Close the writing end: in the parent when the child is gone, in each other child."""
        os.close(self._writer_fd)


def signal_at_end_of(fd: int, number: int) -> None:
    """Have this process sent a signal when a lifeline ends, or has."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, number)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):
        os.kill(os.getpid(), number)
