"""Keeping signals from a thread for a moment.

Contract: ``with signals_blocked():`` on any thread.  Apache's signals are for Apache;
and prefork ends a child from within a signal handler, on whatever thread it comes:
one that holds a lock then would wait for itself.
"""

from __future__ import annotations

import signal

# What the module signal wraps.  Its own makes a member of an Enum of each signal of a
# mask: a hundred of them, here and back, for every handshake.
from _signal import pthread_sigmask

_ALL = frozenset(map(int, signal.valid_signals()))


class signals_blocked:  # it is used as a function
    """Block all signals on this thread; what comes meanwhile is delivered afterwards.

    A thread that is started meanwhile has them blocked for good.
    """

    __slots__ = ("_mask",)

    def __enter__(self) -> None:
        self._mask = pthread_sigmask(signal.SIG_BLOCK, _ALL)

    def __exit__(self, *_: object) -> None:
        pthread_sigmask(signal.SIG_SETMASK, self._mask)
