"""Keeping signals from a thread for a moment.

Contract: ``with signals_blocked():`` on any thread.  Apache's signals are for Apache;
and prefork ends a child from within a signal handler, on whatever thread it comes:
one that holds a lock then would wait for itself.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block all signals on this thread; what comes meanwhile is delivered afterwards.

    A thread that is started meanwhile has them blocked for good.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
