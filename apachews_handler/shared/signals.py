"""Blocking signals on a thread.

Contract: ``with signals_blocked():`` on any thread, for a thread or a process that begins inside
the block; ``with signals_deferred():`` on any thread, for a section with a lock.  Signals are for
Apache, and prefork ends a child from within a signal handler: if the interrupted thread held a
lock, the handler would deadlock.

How this works: prefork handles its signals on the main thread, its only one.  The MPMs with
threads block them on every worker, and the bridge blocks them on its thread.  So a section with a
lock needs two system calls on the main thread, and none on another one.
"""

from __future__ import annotations

import os
from threading import get_native_id

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


class signals_deferred(signals_blocked):
    """Do the same on the main thread; nothing on other threads, which handle no signals."""

    __slots__ = ("_is_main",)

    def __enter__(self) -> None:
        self._is_main = get_native_id() == os.getpid()
        if self._is_main:
            super().__enter__()

    def __exit__(self, *_: object) -> None:
        if self._is_main:
            super().__exit__()
