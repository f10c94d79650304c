"""Signals as a readable descriptor, and the exit of the parent as a signal.

Contract: for a process that only supervises others (``supervise.py``), on its main thread.
``Signals`` replaces handlers and restores them; no other module of this library does.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
from collections.abc import Callable, Iterable
from types import FrameType


class Signals:
    """Receives signals through a descriptor that can be polled.

    Replaces the handlers of these signals until ``close``.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._wakeup_fd_before = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )
        self._before = replace_handlers(numbers, _do_nothing)

    def fileno(self) -> int:
        return self._reader.fileno()

    def receive_nowait(self) -> bytes:
        """Return the numbers of the signals that have arrived, in order."""
        try:
            return self._reader.recv(4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Restore the previous handlers."""
        restore_handlers(self._before)
        signal.set_wakeup_fd(self._wakeup_fd_before)
        self._reader.close()
        self._writer.close()


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Handle a signal: its number is read from the wakeup descriptor."""


# What signal.getsignal() returns: a function, SIG_DFL or SIG_IGN; None for a handler of C code.
Handlers = dict[int, "Callable[[int, FrameType | None], object] | int | None"]


def replace_handlers(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]
) -> Handlers:
    """Set the handler of several signals; return the previous ones for ``restore_handlers``."""
    return {number: signal.signal(number, handler) for number in numbers}


def restore_handlers(handlers: Handlers) -> None:
    """Set the handlers that ``replace_handlers`` returned."""
    for number, handler in handlers.items():
        # C code set a handler that is None here; Python cannot set it again.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Lifeline:
    """A pipe that ends when the process that made it exits.

    The parent holds the writing end and never writes.  The kernel closes it when the parent
    dies, for whatever reason, and then sends the child a signal (fcntl(2), O_ASYNC and
    F_SETSIG), so that the child learns of it wherever its program is.  PR_SET_PDEATHSIG would
    need a foreign call, and refers to the parent's thread.
    """

    def __init__(self) -> None:
        self.reader_fd, self._writer_fd = os.pipe()

    def close_reader(self) -> None:
        """In the parent, once the child has the reading end."""
        os.close(self.reader_fd)

    def close_writer(self) -> None:
        """In the parent when the child has exited, and in each other child."""
        os.close(self._writer_fd)


def signal_at_end_of(fd: int, number: int) -> None:
    """Send this process a signal when a lifeline ends, at once if it has ended already."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, number)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):
        os.kill(os.getpid(), number)
