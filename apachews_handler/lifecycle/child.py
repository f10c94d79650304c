"""A child of Apache: its one bridge, and what becomes of that at the child's end.

Contract: ``prepare()`` when the child begins, on its main thread; ``bridge(…)`` and
``definitions(…)`` from any thread.  ``end()`` is for a host that calls back when the child
ends, by itself.

How this works: a child that leaves because others take its place (a graceful
restart, MaxConnectionsPerChild, too many spare ones) entrusts its WebSockets to a
custodian; one that is stopped closes them with 1001.  How it knows:

- with the event and worker MPMs httpd's hook tells, as soon as the child is told and
  before it waits for its workers, one of which may be busy for long;
- with prefork, a stop ends the child inside the handler of its signal, which is
  blocked meanwhile.  Otherwise it leaves on its own.

Python hears of the end from mod_wsgi, or mod_python, on the main thread, when no worker
is left.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from apachews.monitoring.snapshot import CHILD
from apachews_handler.bridge.connection import Log
from apachews_handler.bridge.reporter import Reporter, describe_failure
from apachews_handler.bridge.thread import Bridge
from apachews_handler.native.httpd_process import HttpdError, is_threaded, on_child_stopping
from apachews_handler.settings import FIELDS, Definitions
from apachews_handler.shared.signals import signals_blocked

from . import custodian

_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGHUP})


class Child:
    """This child of Apache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bridge: Bridge | None = None
        self._definitions: Definitions | None = None
        self._pid_file: str | None = None
        self._apache = os.getppid()
        # None: httpd has not told, and the end counts as a stop.
        self._is_graceful: bool | None = None
        self._is_prefork = False
        self._is_prepared = False
        self._is_told = False

    def prepare(self) -> None:
        """Ask to be told of the child's end.

        This works only on the main thread, before the workers begin.  If the configuration
        lacks WSGIImportScript, a child that ends closes its clients with 1001, whatever the
        reason.
        """
        if self._is_prepared or threading.current_thread() is not threading.main_thread():
            return
        self._is_prepared = True
        try:
            if is_threaded():
                on_child_stopping(self._on_stopping)
            else:
                self._is_prefork = True
        except HttpdError:
            pass  # no httpd, or one that does not tell

    def definitions(self, find: Callable[[str], str | None]) -> Definitions:
        """Return the settings that the server's configuration fixes by ``Define``.

        Args:
            find: returns the value of a name, None without one.  The configuration of a
                child never changes, so only the first caller's is asked.
        """
        if self._definitions is None:
            values = {name: find(name) for name in FIELDS}
            self._definitions = tuple(
                (name, value) for name, value in values.items() if value is not None
            )
        return self._definitions

    def bridge(self, find_pid_file: Callable[[], str | None], log: Log) -> Bridge:
        """Return the child's bridge, started.

        Args:
            find_pid_file: gives Apache's, if known; called once.
            log: for what is wrong with the status of this child.
        """
        return self._bridge or self._start_bridge(find_pid_file, log)

    def _start_bridge(self, find_pid_file: Callable[[], str | None], log: Log) -> Bridge:
        with self._lock:
            if self._bridge is None:
                pid_file = find_pid_file()
                made = Bridge()
                reporter = None
                try:
                    with signals_blocked():
                        reporter = Reporter(made.loop, CHILD, self._apache, log)
                except OSError as error:
                    log.write("warn", describe_failure(error))
                made.start(reporter)
                # A pid file that this process cannot see tells nothing.
                self._pid_file = pid_file if pid_file and os.path.exists(pid_file) else None
                self._subscribe_end()
                self._bridge = made  # last: who finds it does not ask for the lock
            return self._bridge

    def _on_stopping(self, is_graceful: bool) -> None:
        self._is_graceful = is_graceful
        # Now: a worker that is busy could keep the child from its end until it is killed.
        if self._bridge and is_graceful:
            self._bridge.stop_when(self._is_apache_ending)
        elif self._bridge:
            self._bridge.stop_nowait()

    def is_prepared(self) -> bool:
        """Tell whether ``prepare`` was called in time."""
        return self._is_prepared

    def end_is_called_by_host(self) -> None:
        """Leave it to the caller to call ``end``."""
        self._is_told = True

    def _subscribe_end(self) -> None:
        if self._is_told:
            return
        try:
            # On the main thread, before Python's own end (mod_wsgi 4.9 and later).
            from mod_wsgi import subscribe_shutdown
        except ImportError:
            atexit.register(self.end)
        else:
            subscribe_shutdown(self.end)

    def end(self, *_: object, **__: object) -> None:
        """Entrust the WebSockets to a custodian, or close them with 1001."""
        bridge = self._bridge
        if bridge is None:
            return
        if not self._is_leaving() or not bridge.freeze():
            bridge.stop()
        elif not custodian.entrust(bridge, self._apache, self._pid_file):
            custodian.close_clients(bridge.thaw())

    def _is_leaving(self) -> bool:
        """Tell whether others take this child's place."""
        if self._is_apache_ending():
            return False
        if self._is_prefork:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            return not mask & _STOP_SIGNALS
        return self._is_graceful is True

    def _is_apache_ending(self) -> bool:
        """Tell whether Apache has ended, or is about to.

        To its children a graceful stop looks like a graceful restart; but then the pid
        file goes first.
        """
        if os.getppid() != self._apache:
            return True
        return self._pid_file is not None and not os.path.exists(self._pid_file)


the_child: Final = Child()
