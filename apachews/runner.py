"""Runs a producer program, and replaces it by its next version without dropping a client.

    python -m apachews.runner [options] PROGRAM [ARG ...]

Contract: the program is any that makes an ``apachews.Server``, unchanged; it runs in
a process of its own (``bootstrap.py``), as ``python PROGRAM ARG…`` would run it.  To
this one belong the signals:

- SIGTERM, SIGINT: passed on.  The program's servers say goodbye, it ends, and this
  ends with status 0.  With --hold they hand their clients on instead.  The second
  one is passed on too, and ends the program at once.
- SIGHUP: the same command is started anew.  When that listens (it takes the socket
  over), the old program hands its clients on and ends.  When it fails to, it is
  ended, and the old one has noticed nothing.
- SIGABRT, systemd's watchdog: passed on, for the program to leave its traceback.

When the program ends by itself, this ends with its status; to start it again is
systemd's business.

How this works: this process never runs code of the program, so it is always there to
act, and keeps its process id through every version: nothing has to be told to systemd
but READY and RELOADING, and a container's first process may be this one.  The program
talks to a NOTIFY_SOCKET of this process's.  What the current one says is passed on to
systemd; what the next one says is how its start is known; what an old one says is
nobody's business any more.  The road not taken: the program's process starting its
own successor, with MAINPID.  It needs a program that is not stuck, changes the
process id at every deploy, and costs what this costs, a small process, anyway.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from apachews._listening.activation import inherited_descriptors
from apachews._processes.sd_notify import NotifyReceiver, notify, watchdog_timeout_s
from apachews._processes.signals import Lifeline, Signals

from ._bootstrap import Instructions
from .server import DRAIN_TIMEOUT_S

# How long a new program may take to listen; less than the 90 s that systemd gives a
# reload (DefaultTimeoutStartSec).
START_TIMEOUT_S: Final = 60.0
# How much longer than its drain an old program may take to end.
END_GRACE_S: Final = 10.0

_logger: Final = logging.getLogger("apachews.runner")
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


class _Child:
    """A process that runs the program; ``deadline`` is when it is killed, or None."""

    def __init__(
        self,
        command: list[str],
        instructions: Instructions,
        lifeline: Lifeline,
        env: dict[str, str],
    ) -> None:
        self._lifeline = lifeline
        self.deadline: float | None = None
        try:
            self.process = subprocess.Popen(
                [
                    *_interpreter(),
                    "-m",
                    "apachews._bootstrap",
                    instructions.encode(),
                    *command,
                ],
                env=env,
                pass_fds=(*inherited_descriptors(), lifeline.reader_fd),
                # Ctrl-C is for this process; the program gets it from here.
                start_new_session=True,
            )
        except OSError:
            lifeline.cut()
            raise
        finally:
            lifeline.keep()

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: int) -> None:
        self.process.send_signal(number)  # nothing where it has ended

    def kill_all(self) -> None:
        """Kill it, and the workers it has: they may hang as well, and nobody else would."""
        workers = []
        children = f"/proc/{self.pid}/task/{self.pid}/children"
        with contextlib.suppress(OSError), open(children) as file:  # unless it has ended
            workers = [int(pid) for pid in file.read().split()]
        self.send(signal.SIGKILL)  # first, or it would start others
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        if self.process.poll() is None:
            return False
        self._lifeline.cut()
        return True

    @property
    def status(self) -> int:
        """Its exit status as a shell has it, once it has ended."""
        code = self.process.returncode
        return code if code >= 0 else 128 - code


class Runner:
    """Keeps one program running.

    Args:
        command: the program and its arguments.
        spread_s, drain_timeout_s, hold: see ``Instructions``.
        start_timeout_s: how long a new program may take to listen.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        spread_s: float = 0.0,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        start_timeout_s: float = START_TIMEOUT_S,
        hold: bool = False,
    ) -> None:
        self._command = list(command)
        self._spread_s = spread_s
        self._drain_timeout_s = drain_timeout_s
        self._start_timeout_s = start_timeout_s
        self._hold = hold
        self._current: _Child | None = None
        self._successor: _Child | None = None
        self._old: list[_Child] = []
        self._must_renew_again = False
        self._times_told = 0  # to end
        self._told = 0  # by which signal
        self._status = 0

    def run(self) -> int:
        """Run the program until it has ended; return the exit status."""
        self._signals = Signals((*_ENDING, signal.SIGHUP, signal.SIGABRT, signal.SIGCHLD))
        self._receiver = NotifyReceiver()
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        poll.register(self._receiver, select.POLLIN)
        try:
            self._current = self._start()
            while self._current or self._successor or (self._told and self._old):
                deadlines = [c.deadline for c in self._children() if c.deadline is not None]
                wait_s = min(deadlines) - time.monotonic() if deadlines else None
                poll.poll(None if wait_s is None else max(0, wait_s * 1000))
                self._receive()
                for number in self._signals.take_nowait():
                    self._take_signal(number)
                self._reap()
                self._kill_the_late()
        finally:
            self._signals.close()
            self._receiver.close()
        return self._status

    def _children(self) -> list[_Child]:
        return [child for child in (self._current, self._successor, *self._old) if child]

    def _start(self) -> _Child:
        env = dict(os.environ, NOTIFY_SOCKET=self._receiver.address)
        # What names this process is not the program's; the rest names whoever has it.
        env.pop("LISTEN_PID", None)
        env.pop("WATCHDOG_PID", None)
        if not inherited_descriptors():
            env.pop("LISTEN_FDS", None)
        if watchdog_timeout_s() is None:
            env.pop("WATCHDOG_USEC", None)
        lifeline = Lifeline()
        instructions = Instructions(
            self._spread_s, self._drain_timeout_s, self._hold, lifeline.reader_fd
        )
        return _Child(self._command, instructions, lifeline, env)

    def _receive(self) -> None:
        for pid, assignments in self._receiver.receive_nowait():
            if self._current and pid == self._current.pid:
                notify(*assignments)
            elif self._successor and pid == self._successor.pid and "READY=1" in assignments:
                self._change_over(self._successor, assignments)

    def _take_signal(self, number: int) -> None:
        if number in _ENDING:
            self._times_told += 1
            self._told = number
            self._must_renew_again = False
            for child in self._children():
                child.send(number)
        elif number == signal.SIGHUP and not self._told:
            self._renew()
        elif number == signal.SIGABRT and self._current:
            self._current.send(number)

    def _renew(self) -> None:
        if self._successor:
            self._must_renew_again = True  # what it started with may be old by now
            return
        _logger.info("starting the next %s", self._command[0])
        # The time is for systemd to know which reload it is the answer to.
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._successor = self._start()
        except OSError as error:
            self._give_up_successor(f"could not be started: {error}")
            return
        self._successor.deadline = time.monotonic() + self._start_timeout_s

    def _change_over(self, successor: _Child, assignments: list[str]) -> None:
        if self._told:
            return  # both are ending
        old, self._current, self._successor = self._current, successor, None
        successor.deadline = None
        _logger.info("process %d listens, and gets the clients", successor.pid)
        if old:
            old.deadline = time.monotonic() + self._drain_timeout_s + END_GRACE_S
            old.send(signal.SIGHUP)
            self._old.append(old)
        notify(*assignments)
        self._finish_renewal()

    def _give_up_successor(self, reason: str) -> None:
        self._successor = None
        what = "the old one goes on" if self._current else "there is no old one left"
        _logger.error("the next %s %s; %s", self._command[0], reason, what)
        notify("READY=1", f"STATUS=reload failed: the new program {reason}")
        self._finish_renewal()

    def _finish_renewal(self) -> None:
        if self._must_renew_again:
            self._must_renew_again = False
            self._renew()

    def _reap(self) -> None:
        for child in [child for child in self._children() if child.has_ended()]:
            if self._times_told == 1 and child.process.returncode == -self._told:
                status = 0  # it was told before it could have manners
            else:
                status = child.status
            if child is self._current:
                self._current, self._status = None, status
            elif child is not self._successor:
                self._old.remove(child)
            elif self._told:
                self._successor = None
            else:
                self._give_up_successor(f"ended with status {child.status} before it listened")

    def _kill_the_late(self) -> None:
        now = time.monotonic()
        for child in self._children():
            if child.deadline is None or child.deadline > now:
                continue
            child.deadline = None
            child.kill_all()
            if child is self._successor and not self._told:
                self._old.append(child)  # until it is gone
                self._give_up_successor(f"did not listen within {self._start_timeout_s:g} s")
            elif child in self._old:
                _logger.error("process %d, which was to hand its clients on, hangs", child.pid)


def _interpreter() -> list[str]:
    """Return how to call Python as this one was called, with its options."""
    options = sys.orig_argv[1 : -len(sys.argv[1:]) or None]
    if options[-2:] == ["-m", "apachews.runner"]:
        return [sys.executable, *options[:-2]]
    return [sys.executable]


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


# For argparse's "invalid … value".
_seconds.__name__ = "number of seconds"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m apachews.runner",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""\
Run a producer program, as "python PROGRAM ARG ..." would, so that it ends and
restarts without harm to its clients.  The program needs no code for it.

signals:
  TERM, INT  tell every client that the server goes away (1001), and end with
             status 0; the second one ends at once
  HUP        deploy: start PROGRAM anew, and when that listens, hand every client
             on to it; nobody is disconnected, and no message is lost.  Where it
             fails to start, the old one goes on.
""",
        epilog="""\
example:
  python -m apachews.runner --spread 10 /srv/chat.py /var/www/html/chat.ws

Under systemd, READY, RELOADING, STATUS and the watchdog are spoken (Type=notify), and
sockets of a .socket unit are used.  See deploy/systemd for units.
""",
    )
    parser.add_argument("program", metavar="PROGRAM", help="a Python file")
    parser.add_argument(
        "arguments", metavar="ARG", nargs=argparse.REMAINDER, help="what it finds in sys.argv"
    )
    parser.add_argument(
        "--spread",
        metavar="SECONDS",
        type=_seconds,
        default=0.0,
        help="say the goodbyes over so long a time, so that not all clients come back in the "
        "same second (default: at once)",
    )
    parser.add_argument(
        "--hold",
        action="store_true",
        help="on TERM and INT say no goodbye: Apache keeps the clients (APACHEWS_HOLD, 30 s), "
        "and the next producer on the same path has them",
    )
    parser.add_argument(
        "--drain-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=DRAIN_TIMEOUT_S,
        help="how long handing the clients on may take (default: %(default)g)",
    )
    parser.add_argument(
        "--start-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=START_TIMEOUT_S,
        help="how long the new program may take to listen, on HUP (default: %(default)g)",
    )
    return parser


def main() -> int:
    """Run the command line; return the exit status."""
    parser = _parser()
    options = parser.parse_args()
    try:
        with open(options.program, "rb"):
            pass
    except OSError as error:
        parser.error(f"cannot read PROGRAM {options.program!r}: {error.strerror}")
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.INFO)
    runner = Runner(
        [options.program, *options.arguments],
        spread_s=options.spread,
        drain_timeout_s=options.drain_timeout,
        start_timeout_s=options.start_timeout,
        hold=options.hold,
    )
    return runner.run()


if __name__ == "__main__":
    sys.exit(main())
