"""The custodian: a process that carries on the WebSockets of a child of Apache that ends.

Contract: ``entrust(bridge, apache, pid_file)`` in a child whose other threads have
ended, from its main thread, with a bridge that was frozen.  It returns in the child,
which has no connection then, and never in the custodian.

How this works: the custodian is a fork of the child, and so has all of it: TLS sessions,
compression, half-read frames, the producers' sockets.  It must give up everything else of
the child's:

- every descriptor that is not a connection's is given /dev/null in its place:
  Apache's listening sockets, pipes to loggers, the scoreboard's.  The number stays taken,
  so code that believes to own it can write to it or close it, and does not meet a
  client's;
- a session and an epoll of its own; all signals blocked, and read from a descriptor;
- the error log stays open if it is a file.  A pipe would keep the logger alive,
  so syslog is used instead;
- what mod_ssl shares with Apache's other children is not used any more.

Then it gives its connections to the oldest custodian of the same Apache (``handover``), as they
come to rest.  Of a client with TLS its own part stays: when all have moved, this process ends
with the last of these clients, and until then is a relay (``native.tls_relay``), which runs no
Python.  A reload therefore leaves a small process for the clients with TLS, and none for the
others.  A relay is not a custodian any more: it is not counted, and the status shows its clients
in the process that has their sessions.

It ends with its last connection, or when Apache does: it watches Apache's parent, and the
directory of its pid file, which goes first when Apache is to end.  It closes connections
with 1012 after they have been with custodians for long (APACHEWS_CUSTODIAN_AGE), or when
there are too many custodians and this is one of those with the fewest clients
(APACHEWS_MAX_CUSTODIANS).

While its clients are silent it does not wake up but for their keep-alive and, every
``CHECK_S``, for these two: hundreds of idle custodians cost a percent of a core together.

Sources: httpd's clean_child_exit and ap_graceful_shutdown (server/mpm), pidfd_open(2),
fcntl(2) F_NOTIFY.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import math
import os
import resource
import signal
import stat
import sys
import syslog
import time
import traceback
from collections.abc import Iterable
from typing import Final, NoReturn

from apachews.monitoring.snapshot import CUSTODIAN
from apachews_handler.bridge.connection import Connection, Log
from apachews_handler.bridge.loop import Loop
from apachews_handler.bridge.reporter import Reporter, describe_failure
from apachews_handler.bridge.thread import STOP_GRACE_S, STOP_SPREAD_S, Bridge
from apachews_handler.monitoring.log_file import Syslog
from apachews_handler.native import syscalls
from apachews_handler.native.tls_relay import Relay
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.shared import limits, rundir
from apachews_handler.shared.generations import Generation
from apachews_handler.shared.signals import signals_blocked

from .handover import Giver, Taker

# How often it looks for clients that are here too long, and for too many custodians.
CHECK_S: Final = 20.0
# The same while connections without TLS are still to leave for an older custodian.
GIVE_S: Final = 1.0
# So few clients get their keep-alive PINGs together, at such a look, and answer together;
# among many one is due at most moments anyway.
FEW_CLIENTS: Final = 64
# How often it looks for Apache's pid file if the kernel does not tell (F_NOTIFY): as soon as
# Apache has ended, systemd may kill what remains.
LOOK_S: Final = 0.25
# When Apache ends, systemd kills what is left as soon as its parent has gone, unless the
# drop-in of deploy/systemd says otherwise: a pace would take too long.
HURRY_S: Final = 0.1
# A signal to a custodian, or the end of Apache: in both cases all clients are closed.
_ENDING_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGINT})


def entrust(bridge: Bridge, apache: int, pid_file: str | None) -> bool:
    """Fork a process that carries on what the bridge has.

    Args:
        bridge: frozen.
        apache: process id of Apache's parent.
        pid_file: Apache's, if there is one to be seen.

    Returns:
        False if there is no such process: the bridge is to be thawed here.
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
    # The child may take long to end, and a descriptor that it keeps would hide an end of file.
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


def close_clients(loop: Loop, within_s: float = STOP_SPREAD_S) -> None:
    """Close all connections with 1001, and wait some seconds at most until they are.

    Args:
        within_s: all are told within so many seconds, whatever the pace.
    """
    end_at = time.monotonic() + STOP_GRACE_S
    end_at += loop.drain(loop.connections(), CloseCause.GOING_AWAY, within_s)
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
        self._signals = -1  # descriptor of the signals that are blocked
        self._directory = -1  # that of the pid file's directory; -1: it is not watched
        self._end_within_s: float | None = None  # set when all clients are to be closed
        self._generation: Generation | None = None
        self._reporter: Reporter | None = None
        self._taker: Taker | None = None
        self._giver: Giver | None = None
        self._relay = Relay()
        self._is_relay_watched = False
        self._relay_wait_s = math.inf  # when the relay is due
        self._old_at = math.inf  # when the next connection has been here long enough
        self._surplus_since: dict[int, float] = {}  # by the limit that is exceeded
        self._measured_at = time.monotonic()
        self._cpu_s = time.process_time()
        self._last_load = 0.0
        for connection in loop.connections():
            connection.entrusted_at = connection.entrusted_at or self._measured_at

    def settle(self) -> list[Log]:
        """Let go of what is not this process's; return the logs there are, the first first."""
        # libc may have a socket to syslog, under a number that it does not tell.
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
        _raise_descriptor_limit()
        syscalls.forbid_huge_pages()
        _shrink()
        # What is there now is never collected: it would only be copied.
        gc.freeze()
        self.watch_for_the_end()
        try:
            self._generation = Generation(self._apache)
            self._exchange(self._generation)
        except OSError as error:
            logs[0].write(
                "warn", f"custodians cannot be counted: {error.filename}: {error.strerror}"
            )
        try:
            self._reporter = Reporter(self._loop, CUSTODIAN, self._apache, logs[0])
        except OSError as error:
            logs[0].write("warn", describe_failure(error))
        return logs

    def watch_for_the_end(self) -> None:
        """Learn from the loop of signals, and of Apache's end."""
        self._signals = syscalls.signalfd({*_ENDING_SIGNALS, signal.SIGIO})
        self._loop.add_reader(self._signals, self._on_signal)
        self._loop.add_reader(self._parent, self._on_parents_end)
        if self._pid_file is None:
            return
        try:
            self._directory = os.open(
                os.path.dirname(self._pid_file), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
            # The kernel sends SIGIO.  (inotify has 128 instances for a user: too few.)
            fcntl.fcntl(
                self._directory,
                fcntl.F_NOTIFY,
                fcntl.DN_DELETE | fcntl.DN_RENAME | fcntl.DN_MULTISHOT,
            )
        except OSError:  # it may not be read, or the kernel does not tell
            if self._directory != -1:
                os.close(self._directory)
            self._directory = -1
        self._look_for_the_pid_file()  # it may have gone before

    def run(self) -> None:
        """Carry messages until there is no connection, or Apache has gone."""
        check_at = time.monotonic() + GIVE_S  # by then its load is known
        while self._end_within_s is None and not self._is_over:
            now = time.monotonic()
            if now >= check_at:
                self._check(now)
                check_at = min(now + self._interval_s, max(self._old_at, now + GIVE_S))
            self._loop.turn(self._wait_s(check_at - now))
            self._run_relay()
            if self._directory == -1:
                self._look_for_the_pid_file()
        if self._taker:
            self._taker.close()
        if self._giver:
            self._giver.stop()
        is_ending = self._end_within_s is not None
        if self._end_within_s is not None:
            close_clients(self._loop, self._end_within_s)
        self._close()
        if self._relay:
            self._relay.run(self._signals, is_stopping=is_ending)

    def _run_relay(self) -> None:
        """Serve the clients whose sessions have moved, while others are still here."""
        if self._relay and not self._is_relay_watched:
            self._loop.add_reader(self._relay.fileno(), self._turn_relay)
            self._is_relay_watched = True
        self._turn_relay()

    def _turn_relay(self) -> None:
        self._relay_wait_s = self._relay.turn()

    @property
    def _is_over(self) -> bool:
        return self._loop.is_empty and not (self._giver and self._giver.is_busy)

    @property
    def _interval_s(self) -> float:
        return GIVE_S if self._giver and self._giver.is_needed else CHECK_S

    def _wait_s(self, until_check_s: float) -> float:
        is_watched = self._pid_file is None or self._directory != -1
        wait_s = min(until_check_s, self._relay_wait_s)
        return max(0.0, wait_s if is_watched else min(wait_s, LOOK_S))

    def _exchange(self, generation: Generation) -> None:
        """Take connections from younger custodians, and give to older ones."""
        self._giver = Giver(
            self._loop, generation.directory, generation.name, self._load, self._relay
        )
        self._taker = Taker(self._loop, generation.directory, generation.name, self._load)

    def _close(self) -> None:
        if self._generation:
            self._generation.close()
        if self._reporter:
            self._reporter.close()
        if self._directory != -1:
            os.close(self._directory)

    def _on_parents_end(self) -> None:
        self._loop.remove_reader(self._parent)
        self._end(HURRY_S)

    def _on_signal(self) -> None:
        data = os.read(self._signals, syscalls.SIGNALFD_BYTES)
        if int.from_bytes(data[:4], sys.byteorder) in _ENDING_SIGNALS:
            self._end(STOP_SPREAD_S)
        else:
            self._look_for_the_pid_file()

    def _look_for_the_pid_file(self) -> None:
        if self._pid_file is not None and not os.path.exists(self._pid_file):
            self._end(HURRY_S)

    def _end(self, within_s: float) -> None:
        self._end_within_s = min(within_s, self._end_within_s or within_s)

    def _check(self, now: float) -> None:
        """Do what is done from time to time."""
        self._measure(now)
        if self._giver:
            was_needed = self._giver.is_needed
            self._giver.run(now)
            if was_needed and not self._giver.is_needed:
                _shrink()  # the connections that were at rest have left
        connections = self._loop.connections()
        if len(connections) <= FEW_CLIENTS:
            self._loop.ping_early(connections)
        self._close_old(now, connections)
        if self._generation:
            self._generation.update(len(connections))
            self._close_surplus(now, self._generation, connections)

    def _measure(self, now: float) -> None:
        if now - self._measured_at >= GIVE_S:
            cpu_s = time.process_time()
            self._last_load = (cpu_s - self._cpu_s) / (now - self._measured_at)
            self._measured_at, self._cpu_s = now, cpu_s

    def _load(self) -> float:
        """Return which share of a core this process has used of late."""
        return self._last_load

    def _close_old(self, now: float, connections: set[Connection]) -> None:
        """Close those that have been with custodians for long enough."""
        old, self._old_at = [], math.inf
        for connection in connections:
            if connection.settings.custodian_age_s and not connection.drain_cause:
                old_at = connection.entrusted_at + connection.settings.custodian_age_s
                if old_at <= now:
                    old.append(connection)
                else:
                    self._old_at = min(self._old_at, old_at)
        if old:
            self._loop.drain(old, CloseCause.DRAINED)

    def _close_surplus(
        self, now: float, generation: Generation, connections: set[Connection]
    ) -> None:
        """Close those for which there have been too many custodians for a while.

        For a while, because a custodian without TLS clients is one for seconds only.
        """
        maxima = {connection.settings.max_custodians for connection in connections} - {0}
        self._surplus_since = {
            limit: self._surplus_since.get(limit, now)
            for limit in maxima
            if generation.is_surplus(limit)
        }
        exceeded = {limit for limit, at in self._surplus_since.items() if now - at >= CHECK_S}
        if exceeded:
            going = [c for c in connections if c.settings.max_custodians in exceeded]
            self._loop.drain(going, CloseCause.DRAINED)


def _shrink() -> None:
    """Give back memory that only the child needed."""
    gc.collect()
    syscalls.trim_memory()


def _raise_descriptor_limit() -> None:
    """Have room for what other custodians give."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
