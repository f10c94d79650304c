"""Blocking signals on a thread.

Contract: ``with signals_blocked():`` on any thread.  Signals are for Apache, and prefork ends
a child from within a signal handler, on the thread that gets the signal: if that thread held
a lock, the handler would deadlock.
"""

from __future__ import annotations

from apachews_handler.native import syscalls


class signals_blocked:  # lower case: used as a function
    """Block all signals on this thread; pending ones are delivered afterwards.

    A thread that is started inside the block inherits the mask and keeps it.
    """

    __slots__ = ("_mask",)

    def __enter__(self) -> None:
        # (Not signal.pthread_sigmask, which makes a set of 62 numbers of each mask.)
        self._mask = syscalls.block_signals()

    def __exit__(self, *_: object) -> None:
        syscalls.restore_signals(self._mask)
