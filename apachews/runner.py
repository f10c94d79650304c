"""Runs a producer program, and replaces it by its next version without dropping a client.

    python -m apachews.runner [options] PROGRAM [ARG ...]

Contract: the program is any program that makes an ``apachews.Server``, unchanged.  It runs in
a process of its own (``_bootstrap.py``), as ``python PROGRAM ARG…`` would run it.  The runner
handles the signals:

- SIGTERM, SIGINT: forwarded.  The program's servers close their clients with 1001, the program
  exits, and the runner exits with status 0.  With --hold the servers hand their clients over
  instead.  A second signal is forwarded too, and terminates the program at once.
- SIGHUP: the runner starts the same command again.  When the new program listens (it takes the
  socket over), the old one hands its clients over and exits.  If the new program fails to
  start, the runner terminates it, and the old program continues undisturbed.
- SIGABRT, systemd's watchdog: forwarded, so that the program logs its traceback.

When the program exits by itself, the runner exits with the same status; systemd restarts it.

How this works: the runner never executes code of the program, so it always reacts, and its
process id stays the same through all versions: systemd needs READY and RELOADING only, and the
runner can be the first process of a container.  The program sends its sd_notify messages to
the runner.  The runner forwards those of the current program to systemd, learns from READY
that the next program has started, and ignores those of old programs.

Roads not taken: the program's process starts its own successor, with MAINPID.  That needs a
program that does not hang, changes the process id at every deployment, and costs a small
process as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from apachews._listening.activation import inherited_descriptors
from apachews._processes.sd_notify import notify, watchdog_timeout_s
from apachews._processes.signals import Lifeline
from apachews._processes.supervise import ChildEvents, exit_status, kill_tree, seconds_until

from ._bootstrap import Instructions
from .server import DRAIN_TIMEOUT_S

# The time limit for a new program to listen; shorter than the 90 s that systemd allows for a
# reload (DefaultTimeoutStartSec).
START_TIMEOUT_S: Final = 60.0
# The additional time for an old program to exit after its drain timeout.
END_GRACE_S: Final = 10.0

_logger: Final = logging.getLogger("apachews.runner")
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


class _Child:
    """A process that runs the program.

    Attributes:
        deadline: when the runner kills it (``time.monotonic()``), or None.
    """

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
                # Ctrl-C must reach the program once, through the runner.
                start_new_session=True,
            )
        except OSError:
            lifeline.close_writer()
            raise
        finally:
            lifeline.close_reader()

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: int) -> None:
        self.process.send_signal(number)  # does nothing after the process was reaped

    def kill(self) -> None:
        """Kill it and its workers: they may hang too, and no other process would kill them."""
        kill_tree(self.pid)

    def has_exited(self) -> bool:
        if self.process.poll() is None:
            return False
        self._lifeline.close_writer()
        return True

    @property
    def status(self) -> int:
        """Its exit status as a shell reports it, once it has exited."""
        return exit_status(self.process.returncode)


class Runner:
    """Keeps one program running.

    Args:
        command: the program, or -m and a module, and its arguments.
        spread_s, drain_timeout_s, hold: see ``Instructions``.
        start_timeout_s: the time limit for a new program to listen.
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
        self._name = self._command[self._command[0] == "-m"]
        self._spread_s = spread_s
        self._drain_timeout_s = drain_timeout_s
        self._start_timeout_s = start_timeout_s
        self._hold = hold
        self._current: _Child | None = None
        self._successor: _Child | None = None
        self._old: list[_Child] = []
        self._must_reload_again = False
        self._ending_count = 0  # how many SIGTERM and SIGINT have arrived
        self._ending_signal = 0  # the last of them, or 0
        self._status = 0

    def run(self) -> int:
        """Run the program until it has exited; return the exit status."""
        self._events = ChildEvents(
            (*_ENDING, signal.SIGHUP, signal.SIGABRT), self._on_signal, self._on_message
        )
        try:
            self._current = self._start()
            while self._current or self._successor or (self._ending_signal and self._old):
                self._events.wait(seconds_until(child.deadline for child in self._children()))
                self._reap()
                self._kill_expired()
        finally:
            self._events.close()
        return self._status

    def _children(self) -> list[_Child]:
        return [child for child in (self._current, self._successor, *self._old) if child]

    def _start(self) -> _Child:
        env = dict(os.environ, NOTIFY_SOCKET=self._events.address)
        # These name the runner's process; _bootstrap.py sets LISTEN_PID to its own.
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

    def _on_message(self, pid: int, assignments: list[str]) -> None:
        if self._current and pid == self._current.pid:
            notify(*assignments)
        elif self._successor and pid == self._successor.pid and "READY=1" in assignments:
            self._change_over(self._successor, assignments)

    def _on_signal(self, number: int) -> None:
        if number in _ENDING:
            self._ending_count += 1
            self._ending_signal = number
            self._must_reload_again = False
            for child in self._children():
                child.send(number)
        elif number == signal.SIGHUP and not self._ending_signal:
            self._reload()
        elif number == signal.SIGABRT and self._current:
            self._current.send(number)

    def _reload(self) -> None:
        if self._successor:
            # The program may have changed since the successor read it.
            self._must_reload_again = True
            return
        _logger.info("starting the new %s", self._name)
        # The time tells systemd which reload the READY answers.
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._successor = self._start()
        except OSError as error:
            self._fail_reload(f"cannot be started: {error}")
            return
        self._successor.deadline = time.monotonic() + self._start_timeout_s

    def _change_over(self, successor: _Child, assignments: list[str]) -> None:
        if self._ending_signal:
            return  # both have received the signal and will exit
        old, self._current, self._successor = self._current, successor, None
        successor.deadline = None
        _logger.info("process %d listens; the clients move to it", successor.pid)
        if old:
            old.deadline = time.monotonic() + self._drain_timeout_s + END_GRACE_S
            old.send(signal.SIGHUP)
            self._old.append(old)
        notify(*assignments)
        self._finish_reload()

    def _fail_reload(self, reason: str) -> None:
        self._successor = None
        consequence = "the old one continues" if self._current else "the old one has exited"
        _logger.error("the new %s %s; %s", self._name, reason, consequence)
        notify("READY=1", f"STATUS=reload failed: the new program {reason}")
        self._finish_reload()

    def _finish_reload(self) -> None:
        if self._must_reload_again:
            self._must_reload_again = False
            self._reload()

    def _reap(self) -> None:
        for child in [child for child in self._children() if child.has_exited()]:
            if self._ending_count == 1 and child.process.returncode == -self._ending_signal:
                status = 0  # the signal arrived before the program's handlers were installed
            else:
                status = child.status
            if child is self._current:
                self._current, self._status = None, status
            elif child is not self._successor:
                self._old.remove(child)
            elif self._ending_signal:
                self._successor = None
            else:
                self._fail_reload(f"exited with status {child.status} before it listened")

    def _kill_expired(self) -> None:
        now = time.monotonic()
        for child in self._children():
            if child.deadline is None or child.deadline > now:
                continue
            child.deadline = None
            child.kill()
            if child is self._successor and not self._ending_signal:
                self._old.append(child)  # until it is reaped
                self._fail_reload(f"did not listen within {self._start_timeout_s:g} s")
            elif child in self._old:
                _logger.error("process %d did not hand its clients over in time: killed", child.pid)


def _interpreter() -> list[str]:
    """Return the command that calls Python with the options of this process."""
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
Run a producer program, as "python PROGRAM ARG ..." would, so that it stops and
restarts without harm to its clients.  The program needs no code for that.

signals:
  TERM, INT  close every client (1001, going away), and exit with status 0; the
             second signal terminates the program at once
  HUP        deploy: start PROGRAM again, and when the new one listens, hand all
             clients over to it; no client is disconnected, and no message is
             lost.  If the new one fails to start, the old one continues.
""",
        epilog="""\
example:
  python -m apachews.runner --spread 10 /srv/chat.py /var/www/html/chat.ws

Under systemd the runner reports READY, RELOADING, STATUS and the watchdog (Type=notify),
and uses the sockets of a .socket unit.  See deploy/systemd for units.
""",
    )
    parser.add_argument(
        "program", metavar="PROGRAM", help="a Python file, or with -m the name of a module"
    )
    parser.add_argument(
        "arguments", metavar="ARG", nargs=argparse.REMAINDER, help="its sys.argv[1:]"
    )
    parser.add_argument(
        "-m",
        dest="is_module",
        action="store_true",
        help='run PROGRAM as "python -m PROGRAM" would, as apachews.channels',
    )
    parser.add_argument(
        "--spread",
        metavar="SECONDS",
        type=_seconds,
        default=0.0,
        help="close the clients over this time, so that they do not all reconnect in the same "
        "second (default: at once)",
    )
    parser.add_argument(
        "--hold",
        action="store_true",
        help="on TERM and INT do not close the clients: Apache holds them (APACHEWS_HOLD, 30 s) "
        "for the next producer on the same path",
    )
    parser.add_argument(
        "--drain-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=DRAIN_TIMEOUT_S,
        help="time limit for handing the clients over (default: %(default)g)",
    )
    parser.add_argument(
        "--start-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=START_TIMEOUT_S,
        help="time limit for the new program to listen, on HUP (default: %(default)g)",
    )
    return parser


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of a package that does not exist; an invalid name
        return False


def main() -> int:
    """Run the command line; return the exit status."""
    parser = _parser()
    options = parser.parse_args()
    command = [options.program, *options.arguments]
    if options.is_module:
        if not _is_module(options.program):
            parser.error(f"cannot import PROGRAM {options.program!r}: the module does not exist")
        command.insert(0, "-m")
    else:
        try:
            with open(options.program, "rb"):
                pass
        except OSError as error:
            parser.error(f"cannot read PROGRAM {options.program!r}: {error.strerror}")
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.INFO)
    runner = Runner(
        command,
        spread_s=options.spread,
        drain_timeout_s=options.drain_timeout,
        start_timeout_s=options.start_timeout,
        hold=options.hold,
    )
    return runner.run()


if __name__ == "__main__":
    sys.exit(main())
