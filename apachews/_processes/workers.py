"""Several processes that accept from one listening socket, and their supervisor.

Contract: ``fork_workers(count, file)`` returns once in each of ``count`` forked processes, and
never in the process that called it: that becomes the supervisor, and ends with SystemExit when
every worker has exited.  Main thread only.

What the supervisor does:

- It replaces a worker that a signal kills or that exits with a status other than 0: at once,
  and after a growing delay if workers keep failing soon after their start.
- It forwards SIGTERM, SIGINT and SIGHUP to all workers, and replaces none from then on.  The
  program's handlers, or the default ones, decide what a worker does then.  The supervisor
  removes the socket file first: a client that one worker hands over must not reach another
  worker that exits as well.  A signal that was ignored when the program started stays ignored.
- It exits when all workers have exited, and removes the socket file in any case.  Its exit
  status is 0, or that of the last worker that failed and was not replaced: the worker's own, or
  128 and the number of the signal.
- It alone talks to systemd.  If the workers did, one that works would hide another that hangs.
  It receives their heartbeats, and aborts a worker that sends none for ``WatchdogSec=``; that
  worker is then replaced, and the other workers keep their clients.

A worker receives SIGHUP if its supervisor dies.  Each worker has a process group of its own;
otherwise Ctrl-C would reach it twice, from the terminal and from the supervisor.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Final

from apachews._listening.socket_file import SocketFile

from .sd_notify import notify, watchdog_timeout_s
from .siblings import Siblings
from .signals import Lifeline, signal_at_end_of
from .supervise import ChildEvents, RestartDelay, exit_status, seconds_until

# A worker that exits sooner after its start counts as one that failed to start.
SETTLED_S: Final = 10.0
# The delay after a second such failure; it doubles with each further one, up to the limit.
FIRST_DELAY_S: Final = 0.1
MAX_DELAY_S: Final = 10.0

_logger: Final = logging.getLogger("apachews")
_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _new_delay() -> RestartDelay:
    return RestartDelay(0.0, MAX_DELAY_S, SETTLED_S, step_s=FIRST_DELAY_S)


@dataclass(slots=True)
class _Worker:
    """One place among the workers, and the process that occupies it.

    Attributes:
        start_at: when a process is to be forked (``time.monotonic()``); None while one runs,
            and once the place stays empty.
        heard_at: when the last heartbeat arrived.
    """

    lifeline: Lifeline | None = None
    pid: int = 0
    started_at: float = 0.0
    heard_at: float = 0.0
    has_been_aborted: bool = False
    delay: RestartDelay = field(default_factory=_new_delay)
    start_at: float | None = 0.0


def fork_workers(count: int, file: SocketFile) -> Siblings:
    """Fork; return only in the workers, with their channels to each other.

    Args:
        count: number of workers, 1 or more.
        file: the socket that all of them accept from; closed here when the last worker has
            exited, and never removed by a worker.

    Raises:
        SystemExit: in the supervisor, when all workers have exited.
        ValueError: not on the main thread.
    """
    supervisor = _Supervisor(count, file)
    if supervisor.run():
        return supervisor.siblings
    file.close()
    raise SystemExit(supervisor.status)


class _Supervisor:
    def __init__(self, count: int, file: SocketFile) -> None:
        self._file = file
        self.status = 0
        self._is_ending = False
        self._workers = [_Worker() for _ in range(count)]
        self._timeout_s = watchdog_timeout_s()
        self._next_heartbeat_at = 0.0
        # A signal that is ignored (nohup; a shell's background job) is ignored by the workers
        # as well.
        handled = [number for number in _FORWARDED if signal.getsignal(number) != signal.SIG_IGN]
        self._events = ChildEvents(handled, self._forward_signal, self._receive_heartbeat)
        self.siblings = Siblings(count)

    def run(self) -> bool:
        """Return True in a worker, and False in the supervisor when all workers have exited."""
        while True:
            if self._fork_due_workers():
                return True
            if not any(worker.pid or worker.start_at is not None for worker in self._workers):
                self._events.close()
                self.siblings.close()
                return False
            deadlines = [worker.start_at for worker in self._workers]
            if self._timeout_s is not None:
                deadlines.append(self._run_watchdogs(self._timeout_s))
            self._events.wait(seconds_until(deadlines))
            self._reap()

    def _fork_due_workers(self) -> bool:
        """Fork the workers that are due; return True in a new worker."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.start_at is not None and worker.start_at <= now and self._fork(worker):
                return True
        return False

    def _fork(self, worker: _Worker) -> bool:
        """Return True in the new worker."""
        # Every worker would write buffered output once more.
        sys.stdout.flush()
        sys.stderr.flush()
        lifeline = Lifeline()
        # A signal must not reach the worker while the supervisor's handlers are installed.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        try:
            pid = os.fork()
            if not pid:
                self._become_worker(lifeline)
                self.siblings.become(self._workers.index(worker))
                return True
        except OSError as error:
            lifeline.close_reader()
            lifeline.close_writer()
            worker.start_at = time.monotonic() + MAX_DELAY_S
            _logger.warning("cannot start a worker: %s; retry in %g s", error, MAX_DELAY_S)
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        lifeline.close_reader()
        worker.pid, worker.lifeline, worker.start_at = pid, lifeline, None
        worker.started_at = worker.heard_at = time.monotonic()
        worker.has_been_aborted = False
        return False

    def _become_worker(self, lifeline: Lifeline) -> None:
        # While signals are blocked: a worker that a signal ends must not remove the file.
        self._file.share()
        os.setpgid(0, 0)
        address = self._events.address
        self._events.close()
        # The worker inherited the writing ends: with one of them open the lifeline would not
        # end with the supervisor.
        for other in self._workers:
            if other.lifeline:
                other.lifeline.close_writer()
        lifeline.close_writer()
        signal_at_end_of(lifeline.reader_fd, signal.SIGHUP)
        if os.environ.get("NOTIFY_SOCKET"):
            os.environ["NOTIFY_SOCKET"] = address
            os.environ["WATCHDOG_PID"] = str(os.getpid())

    def _receive_heartbeat(self, pid: int, assignments: list[str]) -> None:
        for worker in self._workers:
            if worker.pid == pid and "WATCHDOG=1" in assignments:
                worker.heard_at = time.monotonic()

    def _run_watchdogs(self, timeout_s: float) -> float:
        """Abort silent workers, send the supervisor's heartbeat; return the next deadline."""
        now = time.monotonic()
        running = [worker for worker in self._workers if worker.pid]
        for worker in running:
            if worker.heard_at + timeout_s <= now:
                # A program may have a handler for SIGABRT, and hang before it runs.
                number = signal.SIGKILL if worker.has_been_aborted else signal.SIGABRT
                os.kill(worker.pid, number)
                worker.has_been_aborted = True
                worker.heard_at = now
        if self._next_heartbeat_at <= now:
            notify("WATCHDOG=1")
            self._next_heartbeat_at = now + timeout_s / 2
        return min([self._next_heartbeat_at, *(worker.heard_at + timeout_s for worker in running)])

    def _forward_signal(self, number: int) -> None:
        # With the file removed no worker accepts for others any more: the last worker accepts
        # the connections that still wait in the backlog, and hands them over.
        self._file.remove()
        self._is_ending = True
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)
            worker.start_at = None

    def _reap(self) -> None:
        for worker in self._workers:
            # Each by its process id: the program may have children of its own.
            if worker.pid and (ended := os.waitpid(worker.pid, os.WNOHANG))[0]:
                self._replace(worker, os.waitstatus_to_exitcode(ended[1]))

    def _replace(self, worker: _Worker, exit_code: int) -> None:
        now = time.monotonic()
        worker.pid = 0
        if worker.lifeline:
            worker.lifeline.close_writer()
            worker.lifeline = None
        status = exit_status(exit_code)
        if not exit_code or self._is_ending:
            self.status = status or self.status
            return
        delay_s = worker.delay.after_run(now - worker.started_at)
        worker.start_at = now + delay_s
        _logger.warning("a worker exited with status %d; restart in %g s", status, delay_s)
