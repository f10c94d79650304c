"""Blocking signals on a thread.

Contract: ``with signals_blocked():`` on any thread.  Signals are for Apache, and prefork ends
a child from within a signal handler, on the thread that gets the signal: if that thread held
a lock, the handler would deadlock.
"""

from __future__ import annotations

import signal

# The function that signal.pthread_sigmask wraps.  The wrapper converts every signal of a mask
# to an Enum member and back, a hundred of them for every handshake.
from _signal import pthread_sigmask

_ALL = frozenset(map(int, signal.valid_signals()))


class signals_blocked:  # lower case: used as a function
    """Block all signals on this thread; pending ones are delivered afterwards.

    A thread that is started inside the block inherits the mask and keeps it.
    """

    __slots__ = ("_mask",)

    def __enter__(self) -> None:
        self._mask = pthread_sigmask(signal.SIG_BLOCK, _ALL)

    def __exit__(self, *_: object) -> None:
        pthread_sigmask(signal.SIG_SETMASK, self._mask)
