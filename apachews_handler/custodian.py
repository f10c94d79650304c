"""The custodian: a process that carries on the WebSockets of a child of Apache that ends.

Contract: ``entrust(bridge, apache, pid_file)`` in a child whose other threads have
ended, from its main thread, with a bridge that was frozen.  It returns in the child,
which has no connection then, and never in the custodian.

How this works: nothing is handed over.  The custodian is a fork of the child, and
so has all of it: TLS sessions, compression, half-read frames, the producers'
sockets.  What it must do is to be nobody else:

- every descriptor that is not a connection's is given /dev/null in its place:
  Apache's listening sockets, pipes to loggers, the scoreboard's.  In its place, so
  that whoever believes to own that number can write to it or close it, and does
  not meet a client's;
- a session and an epoll of its own; all signals blocked.  SIGTERM is looked for
  where there is time for it;
- the error log stays open where it is a file.  A pipe would keep the logger alive,
  so syslog is used instead;
- what mod_ssl shares with Apache's other children is not used any more.

It ends with its last connection, or when Apache does: it looks several times a second
whether Apache's parent is there and has its pid file, which goes first when Apache
is to end.  It sends its clients away, too, when they have been with it for long
(APACHEWS_CUSTODIAN_AGE), or when too many custodians came after it
(APACHEWS_MAX_CUSTODIANS).

Sources: httpd's clean_child_exit and ap_graceful_shutdown (server/mpm), pidfd_open(2).
"""

from __future__ import annotations

import gc
import os
import select
import signal
import stat
import syslog
import time
import traceback
from collections.abc import Iterable
from typing import Final, NoReturn

from apachews.snapshot import CUSTODIAN

from . import limits, rundir
from .bridge import STOP_GRACE_S, STOP_SPREAD_S, Bridge
from .connection import Log
from .ends import End
from .generations import Generation
from .loop import Loop
from .report import Reporter, not_in_the_status
from .signals import signals_blocked

# How often it looks whether it is still wanted.
CHECK_S: Final = 0.25
# When Apache ends, systemd kills what is left as soon as its parent has gone, unless the
# drop-in of deploy/systemd says otherwise: there is no time for a pace.
HURRY_S: Final = 0.1
# How often it looks for younger ones, which takes more.
COUNT_S: Final = 1.0
# A signal to a custodian, or the end of Apache: in both cases everybody goes.
_ENDING_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGINT})
_LEVELS: Final = {
    "error": syslog.LOG_ERR,
    "warn": syslog.LOG_WARNING,
    "notice": syslog.LOG_NOTICE,
    "info": syslog.LOG_INFO,
    "debug": syslog.LOG_DEBUG,
}


class Syslog:
    """A log in place of one that is a pipe."""

    def write(self, level: str, text: str) -> None:
        """Log a line."""
        syslog.syslog(_LEVELS[level], text)

    def descriptor(self) -> int | None:
        """Return None: libc has it."""
        return None


def entrust(bridge: Bridge, apache: int, pid_file: str | None) -> bool:
    """Have a process carry on what the bridge has.

    Args:
        bridge: frozen.
        apache: process id of Apache's parent.
        pid_file: Apache's, if there is one to be seen.

    Returns:
        False where there is no such process: the bridge is to be thawed here.
    """
    try:
        parent = os.pidfd_open(apache)
    except OSError as error:  # Apache has gone, or the kernel is older than 5.3
        bridge.warn(f"no custodian, because Apache's process {apache} cannot be watched: {error}")
        return False
    try:
        with signals_blocked():  # for good, in the custodian
            pid = os.fork()
            if not pid:
                _run(bridge, apache, parent, pid_file)
    except OSError as error:  # no memory, or too many processes
        bridge.warn(f"no custodian: {error}")
        return False
    finally:
        os.close(parent)
    # However long the child takes to end: a descriptor it has is no end of file.
    bridge.abandon()
    return True


def _run(bridge: Bridge, apache: int, parent: int, pid_file: str | None) -> NoReturn:
    status = 1
    logs: list[Log] = [Syslog()]
    try:
        os.setsid()
        os.chdir("/")  # no file system is kept in use
        custodian = Custodian(bridge.thaw(), apache, parent, pid_file)
        logs = custodian.settle()
        custodian.run()
        status = 0
    except BaseException:
        logs[0].write("error", f"a custodian ends: {traceback.format_exc()}")
    finally:
        # Nothing of Apache's or Python's end is for this process.
        os._exit(status)


def say_goodbye(loop: Loop, within_s: float = STOP_SPREAD_S) -> None:
    """Close all connections with 1001, and wait some seconds at most until they are.

    Args:
        within_s: all are told within so many seconds, whatever the pace.
    """
    end_at = time.monotonic() + STOP_GRACE_S
    end_at += loop.send_away(loop.connections(), End.GOING_AWAY, within_s)
    while not loop.is_empty and (rest_s := end_at - time.monotonic()) > 0:
        loop.turn(rest_s)
    loop.close()


class Custodian:
    """What the process does, once it is forked.

    Args:
        loop: with the connections.
        apache: process id of Apache's parent; ``parent``: its pidfd.
        pid_file: Apache's, if there is one to be seen.
    """

    def __init__(self, loop: Loop, apache: int, parent: int, pid_file: str | None) -> None:
        self._loop = loop
        self._apache = apache
        self._parent = parent
        self._pid_file = pid_file
        self._born_at = time.monotonic()
        self._generation: Generation | None = None
        self._reporter: Reporter | None = None
        self._younger = 0
        self._sent_for = 0  # how many younger ones clients were sent away for
        self._counted_at = 0.0
        connections = loop.connections()
        self._ages = sorted({c.settings.custodian_age for c in connections} - {0.0})

    def settle(self) -> list[Log]:
        """Let go of what is not this process's; return the logs there are, the first first."""
        # libc may have a socket to syslog, under a number it does not tell.
        syslog.openlog("apachews", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.closelog()
        keep = self._loop.descriptors() | {self._parent}
        keep |= {fd for fd in (limits.descriptor(), rundir.descriptor()) if fd is not None}
        for connection in self._loop.connections():
            connection.transport.forget_cache()
            fd = connection.log.descriptor()
            if fd is None or not _is_file(fd):
                connection.log = Syslog()
            else:
                keep.add(fd)
        logs = [connection.log for connection in self._loop.connections()]
        give_up_descriptors(keep)
        syslog.openlog("apachews", syslog.LOG_PID, syslog.LOG_DAEMON)
        # What is there now is never collected: it would only be copied.
        gc.freeze()
        try:
            self._generation = Generation(self._apache)
        except OSError as error:
            logs[0].write(
                "warn", f"custodians cannot be counted: {error.filename}: {error.strerror}"
            )
        try:
            self._reporter = Reporter(self._loop, CUSTODIAN, self._apache, logs[0])
        except OSError as error:
            logs[0].write("warn", not_in_the_status(error))
        return logs

    def run(self) -> None:
        """Carry messages until there is no connection, or Apache has gone."""
        checked_at = 0.0
        while not self._loop.is_empty:
            self._loop.turn(CHECK_S)
            now = time.monotonic()
            if now - checked_at < CHECK_S:
                continue
            checked_at = now
            if self._is_told():
                say_goodbye(self._loop)
                break
            if self._is_apache_ending():
                say_goodbye(self._loop, HURRY_S)
                break
            self._drain(now)
        self._close()

    def _close(self) -> None:
        if self._generation:
            self._generation.close()
        if self._reporter:
            self._reporter.close()

    def _is_told(self) -> bool:
        return bool(signal.sigpending() & _ENDING_SIGNALS)

    def _is_apache_ending(self) -> bool:
        poll = select.poll()
        poll.register(self._parent, select.POLLIN)
        if poll.poll(0):
            return True
        return self._pid_file is not None and not os.path.exists(self._pid_file)

    def _drain(self, now: float) -> None:
        """Send those away that have been here long enough, or must make place."""
        while self._ages and now - self._born_at >= self._ages[0]:
            age = self._ages.pop(0)
            self._loop.send_away(
                [c for c in self._loop.connections() if c.settings.custodian_age == age],
                End.DRAINED,
            )
        if self._generation and now - self._counted_at >= COUNT_S:
            self._counted_at = now
            before, self._younger = self._younger, self._generation.younger()
            younger = min(before, self._younger)  # twice: a file may be locked by who looks
            if younger > self._sent_for:
                self._sent_for = younger
                self._loop.send_away(
                    [
                        c
                        for c in self._loop.connections()
                        if 0 < c.settings.max_custodians <= younger
                    ],
                    End.DRAINED,
                )


def give_up_descriptors(keep: Iterable[int]) -> None:
    """Put /dev/null in the place of every descriptor of this process but these."""
    kept = set(keep)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd not in kept and fd != null:
            try:
                os.fstat(fd)
            except OSError:
                continue  # that of the listing
            os.dup2(null, fd, inheritable=False)
    os.close(null)


def _is_file(fd: int) -> bool:
    """Tell whether a log is anything but a pipe or a socket to a program."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False  # it is closed
    return stat.S_ISREG(mode) or stat.S_ISCHR(mode)
