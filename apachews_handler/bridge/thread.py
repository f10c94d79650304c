"""The bridge: one thread of an Apache child that runs the loop over its WebSockets.

Contract: ``start`` once; ``adopt`` from any thread hands over a connection, which the bridge
owns from then on.  At the end of the child either ``stop``, which closes all connections with
1001, or ``freeze``, which leaves them open for a process that is forked afterwards and calls
``thaw``.  The thread blocks all signals, and of httpd it uses only the error log.

How this works: the thread waits in its loop; an eventfd that the loop watches wakes it for an
order.  For a connection it is woken up only if there is something to do at once: the thread of the
handshake has sent the OPEN, and registers both sockets with the loop's epoll, so the first message
begins a turn, and the loop adds the connection then.
"""

from __future__ import annotations

import enum
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final

from apachews_handler.native import syscalls
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.shared.signals import signals_blocked, signals_deferred

from .connection import Connection
from .loop import Loop
from .reporter import Reporter

# How long the last clients have to answer their CLOSE when the child stops.
STOP_GRACE_S: Final = 1.0
# The CLOSE frames are spread over at most this.  httpd kills a child 9 s after it told the
# child to stop.
STOP_SPREAD_S: Final = 5.0
# How long to wait for the thread: both of the above, and a margin.  A thread that hangs longer
# is left running.
STOP_TIMEOUT_S: Final = STOP_SPREAD_S + STOP_GRACE_S + 1.5
# A child whose successor runs has no such limit; but a hanging thread must not keep it forever.
FREEZE_TIMEOUT_S: Final = 20.0
# How often the thread asks whether Apache ends, see ``stop_when``.
LOOK_S: Final = 0.25


class _Order(enum.Enum):
    """What the thread is to do; a later order replaces an earlier one."""

    RUN = "carry messages"
    RUN_UNTIL = "carry messages until a condition holds, then stop"
    FREEZE = "end the thread, and leave all connections open"
    STOP = "close all connections, and end the thread"


_RUN: Final = _Order.RUN
_RUNNING: Final = (_Order.RUN, _Order.RUN_UNTIL)


class Bridge:
    """The loop's thread, and how other threads reach it.

    Attributes:
        loop: for its thread alone once ``start`` was called.
    """

    def __init__(self) -> None:
        self.loop = Loop()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Edge-triggered, so that each write wakes the loop up and nothing has to be read.
        self.loop.add_reader(self._wakeup, self._on_wakeup, select.EPOLLIN | select.EPOLLET)
        # Guards the three below, and nothing else.  Reentrant, because prefork ends a child
        # inside a signal handler, which may interrupt the main thread while it has the lock.
        self._lock = threading.RLock()
        self._order = _Order.RUN
        self._must_stop: Callable[[], bool] | None = None  # set with RUN_UNTIL
        self._has_ended = False
        # The rest is for the bridge's thread.
        self._reporter: Reporter | None = None
        self._stop_at = 0.0
        self._thread = threading.Thread(target=self._run, name="apachews", daemon=True)

    def start(self, reporter: Reporter | None = None) -> None:
        """Start the thread.

        Args:
            reporter: reports the status of ``loop``; the bridge owns it, also if this raises.
        """
        self._reporter = reporter
        # Apache's signals are for Apache's main thread, and a thread inherits the signal mask
        # of the thread that starts it.
        with signals_blocked():
            try:
                self._thread.start()
            except BaseException:
                if reporter:
                    reporter.close()
                os.close(self._wakeup)
                self.loop.close()
                raise

    @property
    def is_running(self) -> bool:
        """False once it was stopped or frozen: what is adopted then is closed at once."""
        return self._order in _RUNNING and not self._has_ended

    def adopt(self, connection: Connection) -> None:
        """Own a connection; any thread may call this.

        Args:
            connection: closed with 1001 if the bridge stops.
        """
        with signals_deferred(), self._lock:
            if not self._has_ended:
                if self.loop.watch(connection):
                    _send_open(connection)
                must_wake = self.loop.enqueue(connection)
                # A stop closes the connections that the loop has when it is woken up for it.
                if must_wake or self._order is _Order.STOP:
                    syscalls.eventfd_write(self._wakeup, 1)
                return
        _reject(connection)

    def stop_when(self, must_stop: Callable[[], bool]) -> None:
        """Close all connections with 1001 once a condition holds; returns at once.

        Args:
            must_stop: called several times a second by the bridge's thread.
        """
        with self._lock:
            self._must_stop = must_stop
        self._give_order(_Order.RUN_UNTIL)

    def stop_nowait(self) -> None:
        """Close all connections with 1001; returns at once."""
        self._give_order(_Order.STOP)

    def stop(self) -> None:
        """Close all connections with 1001, and end the thread; waits at most STOP_TIMEOUT_S."""
        self.stop_nowait()
        self._thread.join(STOP_TIMEOUT_S)

    def freeze(self) -> bool:
        """End the thread, and leave all connections open.

        Returns:
            False if there are no connections, or if ``thaw`` must not be called: the bridge
            was stopped before, or its thread does not end in time.
        """
        self._give_order(_Order.FREEZE)
        self._thread.join(FREEZE_TIMEOUT_S)
        if self._thread.is_alive():
            return False  # it hangs, and may continue to use the loop at any moment
        return self._order is _Order.FREEZE and not self.loop.is_empty

    def warn(self, problem: str) -> None:
        """Log why a frozen bridge closes its connections though a custodian was to get them."""
        connections = list(self.loop.connections())
        connections[0].log.write(  # ``freeze`` returned True, so there is one
            "warn", f"{len(connections)} WebSockets are closed with 1001: {problem}"
        )

    def thaw(self) -> Loop:
        """Return the loop of a frozen bridge, for the calling thread.

        In the process that froze it, or in one that was forked from it.
        """
        os.close(self._wakeup)
        self.loop.reopen()
        return self.loop

    def abandon(self) -> None:
        """Close the descriptors of a frozen bridge's connections: another process has them."""
        self.loop.abandon()

    def _give_order(self, order: _Order) -> None:
        with self._lock:
            if self._order is not _Order.STOP:  # which is final
                self._order = order
            if not self._has_ended:
                os.eventfd_write(self._wakeup, 1)

    def _run(self) -> None:
        try:
            while True:
                while self._order is _RUN:
                    self.loop.turn()
                if self._is_done():
                    break
                self.loop.turn(self._max_wait_s())
                if self._order is _Order.RUN_UNTIL and self._must_stop and self._must_stop():
                    self.stop_nowait()
        finally:
            with self._lock:
                self._has_ended = True
                is_frozen = self._order is _Order.FREEZE
            while self.loop.incoming:
                _reject(self.loop.incoming.popleft())
            if self._reporter:
                self._reporter.close()
            if not is_frozen:
                self._close()

    def _max_wait_s(self) -> float | None:
        if self._stop_at:
            return max(0.0, self._stop_at - time.monotonic())
        return LOOK_S if self._order is _Order.RUN_UNTIL else None

    def _is_done(self) -> bool:
        if self._stop_at:
            return self.loop.is_empty or time.monotonic() >= self._stop_at
        # A connection that was adopted before is added first, to be frozen with the others.
        return self._order is _Order.FREEZE and not self.loop.incoming

    def _close(self) -> None:
        self.loop.close()
        os.close(self._wakeup)

    def _on_wakeup(self) -> None:
        with self._lock:
            order = self._order
        if order is _Order.STOP:
            spread_s = self.loop.drain(
                self.loop.connections(), CloseCause.GOING_AWAY, STOP_SPREAD_S
            )
            self._stop_at = self._stop_at or time.monotonic() + spread_s + STOP_GRACE_S


def _send_open(connection: Connection) -> None:
    """Send a producer its OPEN from the thread of the handshake.

    Most connections have nothing else to be done before their first message, so the bridge need
    not wake up for them.
    """
    queue, to_producer = connection.producer.queue, connection.session.to_producer
    if to_producer:
        queue.push_all(to_producer)
        fd = connection.producer.fd
        try:
            queue.flush(lambda data: syscalls.send(fd, bytes(data)))
        except OSError:
            pass  # the bridge sends again, and handles the error


def _reject(connection: Connection) -> None:
    """Close a connection that was adopted after the thread's end, with 1001."""
    connection.reject()
    connection.close()
    connection.log_close()
