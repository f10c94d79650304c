"""A process's answer to who asks for its status: ``apachews.monitoring.collect``, nobody else.

Contract: ``Reporter(loop, …)`` listens on a Unix socket in the run directory and has the
loop look after it; ``close`` ends that and takes the file away.  On the loop's thread, or
before that begins.  Whoever connects is sent one descriptor, and the connection is
closed: of a file in memory, sealed, with a ``ProcessStatus`` in JSON.

How this works: connections are walked through some at a time, one such step in a turn of
the loop, so that messages wait for none of the rest.  All who ask meanwhile get the same
answer.  The answer is a descriptor because that is one small message, which a new
connection always has room for: nobody who reads slowly, or never, is waited for, and
nothing is kept for them.

What is counted is consistent: the walk begins with the totals of what has ended, and of
the connections that are there then; one that ends during the walk still has its numbers.

Sources: memfd_create(2), fcntl(2) "File sealing", unix(7) SCM_RIGHTS, proc(5) smaps_rollup.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
import socket
import time
from traceback import format_exc
from typing import Final

from apachews.monitoring.collect import SEALS, fitting_path, socket_name
from apachews.monitoring.snapshot import (
    CLOSING,
    HELD,
    MAX_LISTED,
    OPEN,
    ConnectionStatus,
    EndpointStatus,
    ProcessStatus,
)
from apachews_handler.monitoring.counters import add_traffic
from apachews_handler.protocol.states import ClientState, ProducerState
from apachews_handler.shared import rundir

from .connection import Connection, Log
from .loop import Loop

# Connections that are looked at in a step: half a millisecond, about.
STEP_CONNECTIONS: Final = 50
# Those who may wait for an answer at a time; one more is sent away.
MAX_READERS: Final = 32
_BACKLOG: Final = 64


def not_in_the_status(error: OSError) -> str:
    """Return the line for the log where a ``Reporter`` cannot be made."""
    return (
        f"process {os.getpid()} is not in the status:"
        f" {error.filename or rundir.NAME}: {error.strerror};"
        " Apache's user must own that directory and be able to write there: remove it if it is"
        " another's, or set TMPDIR for Apache.  WebSockets work without"
    )


class Walk:
    """One walk through the connections of a loop.

    Args:
        loop: whose.
        kind: of the process: ``child`` or ``custodian``.
        apache: process id of Apache's parent.
        started: when the process began, seconds since 1970.
    """

    def __init__(self, loop: Loop, kind: str, apache: int, started: float) -> None:
        self._loop = loop
        self._kind = kind
        self._apache = apache
        self._started = started
        self._now = time.monotonic()
        self._endpoints = loop.counters.endpoints()
        self._round_trips = loop.counters.round_trips.copy()
        connections = loop.connections_by_age()
        self._left = iter(connections)
        self._count = self._unseen = len(connections)
        self._listed: list[str] = []

    def step(self) -> bool:
        """Look at some more; return True where there are none left."""
        for connection in itertools.islice(self._left, STEP_CONNECTIONS):
            self._look_at(connection)
            self._unseen -= 1
        return not self._unseen

    def result(self) -> bytes:
        """Return the status, encoded."""
        status = ProcessStatus(
            pid=os.getpid(),
            kind=self._kind,
            apache=self._apache,
            started=self._started,
            cpu_s=time.thread_time(),
            longest_turn_s=self._loop.longest_turn_s(),
            round_trips=self._round_trips,
            endpoints=tuple(self._endpoints[path] for path in sorted(self._endpoints)),
            connections_count=self._count,
            memory_bytes=_own_memory_bytes(),
        )
        return status.encode(self._listed)

    def _look_at(self, connection: Connection) -> None:
        session, about = connection.session, connection.about
        name = self._loop.counters.name_of(connection.path)
        endpoint = self._endpoints.get(name)
        if endpoint is None:  # it was the last one that is not counted as one of the others
            endpoint = self._endpoints[name] = EndpointStatus(name)
        traffic = session.traffic()
        queued_in = len(connection.producer_queue) - connection.producer_sent
        queued_in += session.backlog_bytes
        queued_out = len(connection.client_queue) + session.partial_bytes
        add_traffic(endpoint, traffic)
        endpoint.queued_in += queued_in
        endpoint.queued_out += queued_out
        if session.client_state is not ClientState.OPEN:
            state = CLOSING
            endpoint.closing += 1
        elif session.producer_state is ProducerState.DETACHED:
            state = HELD
            endpoint.held += 1
        else:
            state = OPEN
            endpoint.open += 1
        if len(self._listed) >= MAX_LISTED:
            return
        self._listed.append(
            ConnectionStatus(
                about.id,
                connection.path,
                about.path,
                about.address,
                about.port,
                about.user,
                about.scheme,
                about.subprotocol,
                state,
                self._now - connection.opened_at,
                *traffic,
                queued_in,
                queued_out,
                session.round_trip_s,
            ).encode()
        )


def _own_memory_bytes() -> int:
    """Return the memory that this process shares with no other, 0 if the kernel does not tell."""
    try:
        with open("/proc/self/smaps_rollup", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Private_"))


class Reporter:
    """The socket of one process.

    Args:
        loop: the process's, which looks after the socket.
        kind: ``child`` or ``custodian``.
        apache: process id of Apache's parent.
        log: for errors of ours.

    Raises:
        OSError: the run directory cannot be used; ``filename`` tells which.
    """

    def __init__(self, loop: Loop, kind: str, apache: int, log: Log) -> None:
        self._loop = loop
        self._log = log
        self._kind = kind
        self._apache = apache
        self._started = time.time()
        self._walk: Walk | None = None
        self._readers: dict[int, socket.socket] = {}
        self._spare = -1
        self._has_failed = False
        directory = rundir.open_directory(apache)
        name = socket_name(apache, os.getpid())
        self._path = os.path.join(directory, name)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.setblocking(False)
            with fitting_path(directory, name + ".new") as path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # of a process that had this number, and was killed
                self._socket.bind(path)
            self._socket.listen(_BACKLOG)
            # It has its name when it answers, not before.
            os.rename(self._path + ".new", self._path)
            # With no descriptor left, a caller could not even be sent away, and so would
            # be reported again and again.
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            loop.watch(self._socket.fileno(), self._on_reader)
        except OSError as error:
            self._socket.close()
            self._give_up_spare()
            for left in (self._path + ".new", self._path):
                with contextlib.suppress(OSError):
                    os.unlink(left)
            if error.filename is None:
                error.filename = directory
            raise

    def close(self) -> None:
        """Answer nobody any more; again does nothing."""
        if self._socket.fileno() == -1:
            return
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        self._give_up_spare()
        try:
            os.unlink(self._path)
        except OSError:
            pass  # somebody has tidied up
        self._send_away()

    def _on_reader(self) -> None:
        try:
            reader, _ = self._socket.accept()
        except BlockingIOError:
            return  # it has gone
        except OSError:
            self._give_up_spare()
            try:
                self._socket.accept()[0].close()
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                # Somebody else took it: better no status than a busy loop.
                self._log.write(
                    "warn", f"process {os.getpid()} is not in the status: no descriptor is left"
                )
                self.close()
            return
        fd = reader.fileno()
        if len(self._readers) >= MAX_READERS:
            reader.close()
            return
        try:
            # Which is at once, and in every turn until it has its answer.
            self._loop.watch(fd, lambda: self._go_on(fd), select.EPOLLOUT)
        except OSError:
            reader.close()
        else:
            self._readers[fd] = reader

    def _give_up_spare(self) -> None:
        if self._spare != -1:
            os.close(self._spare)
            self._spare = -1

    def _go_on(self, fd: int) -> None:
        """Do a step of the walk, one a turn however many wait for it."""
        if fd != next(iter(self._readers), -1):
            return
        try:
            if self._walk is None:
                self._walk = Walk(self._loop, self._kind, self._apache, self._started)
            if self._walk.step():
                self._answer(self._walk.result())
                self._send_away()
        except Exception:
            # Whatever is wrong here, no WebSocket is to end of it; who asked has no answer.
            self._complain(format_exc())
            self._send_away()

    def _complain(self, problem: str) -> None:
        if not self._has_failed:  # they ask again, and again
            self._has_failed = True
            self._log.write("error", f"no status of process {os.getpid()}: {problem}")

    def _answer(self, data: bytes) -> None:
        try:
            file = os.memfd_create("apachews-status", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            self._complain(f"memfd_create: {error.strerror}")
            return
        try:
            os.write(file, data)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
            for reader in self._readers.values():
                with contextlib.suppress(OSError):  # it has gone
                    socket.send_fds(reader, [b"1"], [file])
        finally:
            os.close(file)

    def _send_away(self) -> None:
        self._walk = None
        for fd, reader in self._readers.items():
            self._loop.unwatch(fd)
            reader.close()
        self._readers.clear()
