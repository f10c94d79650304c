"""Several processes behind one listening socket, and the one that looks after them.

Contract: ``fork_workers(count, file)`` returns once in each of ``count`` forked
processes, and never in the one that called it: that becomes the supervisor, and
ends with SystemExit when every worker has ended.  Main thread only.

What the supervisor does:

- A worker that dies of a signal, or ends with another status than 0, is replaced:
  at once, or, the more of them fail soon after their start, the later.
- SIGTERM, SIGINT and SIGHUP are passed on, and no worker is replaced any more.
  What a worker does then is the program's business, whose handlers, or the default
  ones, it has.  The socket file goes before that: a client that a worker hands on
  is not to come to another that ends as well.  A signal that the program was started
  to ignore is ignored.
- When all have ended so does it, and the socket file goes in any case.  The exit
  status is 0, or that of the last worker that failed and was not replaced: its own,
  or 128 and the number of the signal.
- It alone speaks to systemd.  If workers did, one that is well would hide another
  that hangs.  Their signs of life come here; one that gives none for
  ``WatchdogSec=`` is aborted, and so replaced, and the others' clients stay.

A worker whose supervisor dies gets SIGHUP.  Each is a process group of its own, or
Ctrl-C would come to it twice: from the terminal and from here.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .sd_notify import NotifyReceiver, notify, watchdog_timeout_s
from .siblings import Siblings
from .signals import Lifeline, Signals, signal_at_end_of

if TYPE_CHECKING:
    from apachews._listening.socket_file import SocketFile

# How long after its start a worker's end counts as a failure to start.
SETTLED_S: Final = 10.0
# What such a failure makes the next start wait: doubled each time, up to the limit.
FIRST_DELAY_S: Final = 0.1
MAX_DELAY_S: Final = 10.0

_logger: Final = logging.getLogger("apachews")
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(slots=True)
class _Worker:
    """One place among the workers, and the process that has it."""

    lifeline: Lifeline | None = None
    pid: int = 0
    started_at: float = 0.0
    heard_at: float = 0.0
    has_been_aborted: bool = False
    delay_s: float = 0.0
    start_at: float | None = 0.0  # None while it runs, and when it is done


def fork_workers(count: int, file: SocketFile) -> Siblings:
    """Fork; return in the workers only, what they hear each other through.

    Args:
        count: how many, 1 or more.
        file: what all of them accept from; closed here when the last has ended,
            and never removed by a worker.

    Raises:
        SystemExit: in the supervisor, when all have ended.
        ValueError: not on the main thread.
    """
    supervisor = _Supervisor(count, file)
    if supervisor.run():
        file.share()
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
        self._next_sign_at = 0.0
        # What is ignored (nohup; a shell's background job) is so by the workers as well.
        heard = [number for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]
        self._signals = Signals((*heard, signal.SIGCHLD))
        self._receiver = NotifyReceiver()
        self.siblings = Siblings(count)

    def run(self) -> bool:
        """Return True in a worker, and False here when all is over."""
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        poll.register(self._receiver, select.POLLIN)
        while True:
            wait_s = self._run_timers()
            if wait_s is None:
                return True
            if not any(worker.pid or worker.start_at is not None for worker in self._workers):
                self._close()
                self.siblings.close()
                return False
            poll.poll(min(wait_s * 1000, 3_600_000))
            self._receive()
            for number in self._signals.take_nowait():
                if number in _PASSED_ON:
                    self._pass_on(number)
            self._reap()

    def _run_timers(self) -> float | None:
        """Do what is due; return the seconds until the next is, or None in a new worker."""
        now = time.monotonic()
        due = [float("inf")]
        for worker in self._workers:
            if worker.start_at is not None:
                if worker.start_at <= now:
                    if self._fork(worker):
                        return None
                else:
                    due.append(worker.start_at)
        if self._timeout_s is not None:
            for worker in self._workers:
                if worker.pid:
                    due.append(self._watch(worker, now, self._timeout_s))
            if self._next_sign_at <= now:
                notify("WATCHDOG=1")
                self._next_sign_at = now + self._timeout_s / 2
            due.append(self._next_sign_at)
        return max(0.0, min(due) - now)

    def _fork(self, worker: _Worker) -> bool:
        # What is buffered would be written once by every worker.
        sys.stdout.flush()
        sys.stderr.flush()
        lifeline = Lifeline()
        # No signal may come to the worker while the supervisor's handlers are there.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        try:
            pid = os.fork()
            if not pid:
                self._become_worker(lifeline)
                self.siblings.become(self._workers.index(worker))
                return True
        except OSError as error:
            lifeline.keep()
            lifeline.cut()
            worker.start_at = time.monotonic() + MAX_DELAY_S
            _logger.warning("no worker could be started: %s", error)
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        lifeline.keep()
        worker.pid, worker.lifeline, worker.start_at = pid, lifeline, None
        worker.started_at = worker.heard_at = time.monotonic()
        worker.has_been_aborted = False
        return False

    def _become_worker(self, lifeline: Lifeline) -> None:
        os.setpgid(0, 0)
        address = self._receiver.address
        self._close()
        for other in self._workers:
            if other.lifeline:
                other.lifeline.cut()
        lifeline.cut()
        signal_at_end_of(lifeline.reader_fd, signal.SIGHUP)
        if os.environ.get("NOTIFY_SOCKET"):
            os.environ["NOTIFY_SOCKET"] = address
            os.environ["WATCHDOG_PID"] = str(os.getpid())

    def _receive(self) -> None:
        workers = {worker.pid: worker for worker in self._workers if worker.pid}
        for pid, assignments in self._receiver.receive_nowait():
            if pid in workers and "WATCHDOG=1" in assignments:
                workers[pid].heard_at = time.monotonic()

    def _watch(self, worker: _Worker, now: float, timeout_s: float) -> float:
        """Abort a worker that is silent; return when to look again."""
        if worker.heard_at + timeout_s <= now:
            # A program may have a handler for the first, and hang before it comes to it.
            os.kill(worker.pid, signal.SIGKILL if worker.has_been_aborted else signal.SIGABRT)
            worker.has_been_aborted = True
            worker.heard_at = now
        return worker.heard_at + timeout_s

    def _pass_on(self, number: int) -> None:
        # Who waits to be accepted is accepted, and handed on, by the last worker.
        self._file.remove()
        self._is_ending = True
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)
            worker.start_at = None

    def _reap(self) -> None:
        for worker in self._workers:
            # (Each by its number: the program may have children of its own.)
            if worker.pid and (ended := os.waitpid(worker.pid, os.WNOHANG))[0]:
                self._replace(worker, os.waitstatus_to_exitcode(ended[1]))

    def _replace(self, worker: _Worker, exit_code: int) -> None:
        now = time.monotonic()
        worker.pid = 0
        if worker.lifeline:
            worker.lifeline.cut()
            worker.lifeline = None
        status = exit_code if exit_code >= 0 else 128 - exit_code
        if not exit_code or self._is_ending:
            self.status = status or self.status
            return
        if now - worker.started_at >= SETTLED_S:
            worker.delay_s = 0.0
        worker.start_at = now + worker.delay_s
        _logger.warning(
            "a worker ended with status %d; another one starts in %g s", status, worker.delay_s
        )
        worker.delay_s = min(MAX_DELAY_S, worker.delay_s * 2 or FIRST_DELAY_S)

    def _close(self) -> None:
        self._signals.close()
        self._receiver.close()
