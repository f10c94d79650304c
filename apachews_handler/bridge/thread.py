"""The bridge: one thread of an Apache child that runs the loop over its WebSockets.

Contract: ``start`` once; ``adopt`` from any thread hands over a connection, which
the bridge owns from then on.  At the end of the child either ``stop``, which says
goodbye to all clients, or ``freeze``, which leaves them as they are for a process
that is forked then and calls ``thaw``.  The thread blocks all signals and touches
nothing of httpd but the error log it is given.

How this works: the thread waits in its loop; an eventfd among the loop's descriptors wakes
it for a connection or an order.  Connections that come while it is busy are begun with
together.
"""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from apachews_handler.native import syscalls
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.shared.signals import signals_blocked

from .connection import Connection, Log
from .loop import Loop, turn_away
from .report import Reporter

# How long clients have to take the goodbye when the child stops.
STOP_GRACE_S: Final = 1.0
# Goodbyes are spread over so long at most.  httpd kills a child 9 s after it told it
# to stop.
STOP_SPREAD_S: Final = 5.0
# Joining the thread takes these and a little; a thread that hangs is left behind.
STOP_TIMEOUT_S: Final = STOP_SPREAD_S + STOP_GRACE_S + 1.5
# A child that leaves has no such limit; a thread that hangs must not keep it for ever.
FREEZE_TIMEOUT_S: Final = 20.0
# How often a child that leaves looks whether Apache ends as a whole.
LOOK_S: Final = 0.25


class _Order(enum.Enum):
    """What the thread is to do; a later one replaces an earlier one."""

    RUN = "carry messages"
    LEAVE = "the same, and look whether Apache as a whole ends: then stop"
    FREEZE = "end, and leave everything as it is"
    STOP = "say goodbye, and end"


_RUN: Final = _Order.RUN
_RUNNING: Final = (_Order.RUN, _Order.LEAVE)


class Bridge:
    """The loop's thread, and the way to it."""

    def __init__(self) -> None:
        self._loop = Loop()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop.watch(self._wakeup, self._on_wakeup)
        # Guards the four below, nothing else.  Reentrant, because prefork ends a
        # child from within a signal handler, whatever the main thread is at.
        self._lock = threading.RLock()
        self._adopted: list[Connection] = []  # those to begin with
        self._order = _Order.RUN
        self._is_apache_ending: Callable[[], bool] = bool
        self._has_ended = False
        self._reporter: Reporter | None = None
        # Below: for the thread alone.
        self._stop_at = 0.0
        self._thread = threading.Thread(target=self._run, name="apachews", daemon=True)

    def answer_for(self, kind: str, apache: int, log: Log) -> None:
        """Answer who asks for the status of this process; before the start.

        Args:
            kind: of the process: ``child`` or ``custodian``.
            apache: process id of Apache's parent.
            log: for errors of ours.

        Raises:
            OSError: the run directory cannot be used.
        """
        with signals_blocked():
            self._reporter = Reporter(self._loop, kind, apache, log)

    def start(self) -> None:
        """Start the thread."""
        # Apache's signals are for Apache's main thread: a thread inherits the
        # mask of the one that starts it.
        with signals_blocked():
            try:
                self._thread.start()
            except BaseException:
                if self._reporter:
                    self._reporter.close()
                os.close(self._wakeup)
                self._loop.close()
                raise

    @property
    def is_running(self) -> bool:
        """False once it was stopped; what is adopted then is closed at once."""
        return self._order in _RUNNING and not self._has_ended

    def adopt(self, connection: Connection) -> None:
        """Take over a connection, from any thread.

        Args:
            connection: owned by the bridge from here on, also when it is stopping.
        """
        with signals_blocked(), self._lock:
            if not self._has_ended:
                self._adopted.append(connection)
                if len(self._adopted) == 1:  # the others were not begun with yet
                    syscalls.eventfd_write(self._wakeup, 1)
                return
        _give_up(connection)

    def begin_leaving(self, is_apache_ending: Callable[[], bool]) -> None:
        """Have all connections closed with 1001 once a function says so; returns at once.

        Args:
            is_apache_ending: called several times a second by the bridge's thread.
        """
        with self._lock:
            self._is_apache_ending = is_apache_ending
        self._give_order(_Order.LEAVE)

    def begin_stop(self) -> None:
        """Have all connections closed with 1001; returns at once."""
        self._give_order(_Order.STOP)

    def stop(self) -> None:
        """Close all connections with 1001, and end the thread; waits some seconds at most."""
        self.begin_stop()
        self._thread.join(STOP_TIMEOUT_S)

    def freeze(self) -> bool:
        """End the thread and leave all connections as they are.

        Returns:
            False where there is nothing to carry on, or no way to: it was stopped
            before, or does not end in time.
        """
        self._give_order(_Order.FREEZE)
        self._thread.join(FREEZE_TIMEOUT_S)
        if self._thread.is_alive():
            return False  # whatever it hangs in: nothing of it may be touched
        return self._order is _Order.FREEZE and not self._loop.is_empty

    def warn(self, problem: str) -> None:
        """Log why clients get a goodbye though others take this child's place; once frozen."""
        connections = list(self._loop.connections())
        connections[0].log.write(  # what is frozen has at least one
            "warn", f"{len(connections)} WebSockets are closed with 1001: {problem}"
        )

    def thaw(self) -> Loop:
        """Return the loop of a bridge that was frozen, for the calling thread to go on with.

        In the process that froze it, or in one that was forked from it.
        """
        os.close(self._wakeup)
        self._loop.renew()
        return self._loop

    def abandon(self) -> None:
        """Let go of all connections of a bridge that was frozen: another process has them."""
        for connection in self._loop.connections():
            connection.abandon()

    def _give_order(self, order: _Order) -> None:
        with self._lock:
            if self._order is not _Order.STOP:
                self._order = order
            if not self._has_ended:
                os.eventfd_write(self._wakeup, 1)

    def _run(self) -> None:
        try:
            while True:
                while self._order is _RUN:
                    self._loop.turn()
                if self._is_done():
                    break
                self._loop.turn(self._max_wait_s())
                if self._order is _Order.LEAVE and self._is_apache_ending():
                    self.begin_stop()
        finally:
            with self._lock:
                self._has_ended = True
                adopted = self._adopted
                is_frozen = self._order is _Order.FREEZE
            for connection in adopted:
                _give_up(connection)
            if self._reporter:
                self._reporter.close()
            if not is_frozen:
                self._close()

    def _max_wait_s(self) -> float | None:
        if self._stop_at:
            return max(0.0, self._stop_at - time.monotonic())
        return LOOK_S if self._order is _Order.LEAVE else None

    def _is_done(self) -> bool:
        if self._stop_at:
            return self._loop.is_empty or time.monotonic() >= self._stop_at
        return self._order is _Order.FREEZE and not self._adopted

    def _close(self) -> None:
        self._loop.close()
        os.close(self._wakeup)

    def _on_wakeup(self) -> None:
        os.eventfd_read(self._wakeup)
        with self._lock:
            order = self._order
            adopted, self._adopted = self._adopted, []
        for connection in adopted:
            self._loop.add(connection)
        if order is _Order.STOP:
            spread_s = self._loop.send_away(
                self._loop.connections(), CloseCause.GOING_AWAY, STOP_SPREAD_S
            )
            self._stop_at = self._stop_at or time.monotonic() + spread_s + STOP_GRACE_S


def _give_up(connection: Connection) -> None:
    """Close a connection that came too late."""
    turn_away(connection)
    connection.close()
    connection.log_close()
