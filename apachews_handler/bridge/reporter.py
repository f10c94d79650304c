"""A process reports its status to ``apachews.monitoring.collect``.

Contract: ``Reporter(loop, …)`` listens on a Unix socket in the run directory, and the loop
watches it; ``close`` stops that and removes the file.  On the loop's thread, or before the
thread starts.  Each peer that connects is sent one file descriptor, and its connection is
closed: a sealed file in memory that holds a ``ProcessStatus`` in JSON.

How this works: each turn of the loop walks through some of the connections, so that messages
wait for a step and not for the whole walk.  All peers that connect meanwhile get the same answer.
The answer is a descriptor because that is one small message, for which a new connection
always has room: no state is kept for a peer that reads slowly or never.

The counts are consistent: the walk starts with the totals of the connections that have ended,
and with a list of the others.  A connection that ends during the walk still has its numbers.

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
from apachews_handler.protocol.session import Session
from apachews_handler.shared import rundir

from . import loop as loop_module
from .connection import Connection, Log
from .loop import Loop

# The modules that messages pass are compiled: all of them, or none (setup.py).
IS_COMPILED: Final = not loop_module.__file__.endswith(".py")
# Connections per step of a walk: about half a millisecond.
STEP_CONNECTIONS: Final = 50
# Peers that may wait for an answer at a time; the connection of one more is closed.
MAX_READERS: Final = 32
_BACKLOG: Final = 64


def describe_failure(error: OSError) -> str:
    """Return the line for the log if ``Reporter(…)`` has raised an error."""
    return (
        f"process {os.getpid()} is not in the status:"
        f" {error.filename or rundir.NAME}: {error.strerror};"
        " Apache's user must own that directory and be able to write there: remove it if it is"
        " another user's, or set TMPDIR for Apache.  WebSockets work without it"
    )


class Walk:
    """One walk through the connections of a loop.

    Args:
        loop: of the process.
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
        self._total = self._unseen = len(connections)
        self._listed: list[str] = []

    def step(self) -> bool:
        """Count some more connections; return True once all are counted."""
        for connection in itertools.islice(self._left, STEP_CONNECTIONS):
            self._count(connection)
            self._unseen -= 1
        return not self._unseen

    def result(self) -> bytes:
        """Return the status, encoded."""
        channels, channel_clients = self._loop.channels.counts()
        status = ProcessStatus(
            pid=os.getpid(),
            kind=self._kind,
            apache=self._apache,
            started=self._started,
            cpu_s=time.thread_time(),
            longest_turn_s=self._loop.longest_turn_s(),
            round_trips=self._round_trips,
            endpoints=tuple(self._endpoints[path] for path in sorted(self._endpoints)),
            connections_count=self._total,
            memory_bytes=_own_memory_bytes(),
            compiled=int(IS_COMPILED),
            channels=channels,
            channel_clients=channel_clients,
        )
        return status.encode(self._listed)

    def _count(self, connection: Connection) -> None:
        name = self._loop.counters.name_of(connection.endpoint)
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            # It is counted by this name only since the walk started.
            endpoint = self._endpoints[name] = EndpointStatus(name)
        traffic = connection.session.traffic()
        queued_in, queued_out = connection.queued_in_bytes, connection.queued_out_bytes
        add_traffic(endpoint, traffic)
        # Sessions of tunnels and of the raw wire are subclasses.
        endpoint.framed += type(connection.session) is Session
        endpoint.queued_in += queued_in
        endpoint.queued_out += queued_out
        if not connection.is_open:
            state = CLOSING
            endpoint.closing += 1
        elif connection.is_held:
            state = HELD
            endpoint.held += 1
        else:
            state = OPEN
            endpoint.open += 1
        if len(self._listed) >= MAX_LISTED:
            return
        info = connection.info
        self._listed.append(
            ConnectionStatus(
                info.id,
                connection.endpoint,
                info.path,
                info.address,
                info.port,
                info.user,
                info.scheme,
                info.subprotocol,
                state,
                self._now - connection.opened_at,
                *traffic,
                queued_in,
                queued_out,
                connection.session.round_trip_s,
            ).encode()
        )


def _own_memory_bytes() -> int:
    """Return the private memory of this process; 0 if the kernel does not tell it."""
    try:
        with open("/proc/self/smaps_rollup", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Private_"))


class Reporter:
    """The socket of one process.

    Args:
        loop: the process's, which watches the socket.
        kind: ``child`` or ``custodian``.
        apache: process id of Apache's parent.
        log: for errors of ours.

    Raises:
        OSError: the run directory cannot be used; ``filename`` is its path.
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
                    os.unlink(path)  # left by a killed process that had the same process id
                self._socket.bind(path)
            self._socket.listen(_BACKLOG)
            # ``collect`` finds it by its name, so it gets that once it can answer.
            os.rename(self._path + ".new", self._path)
            # Without a free descriptor a peer cannot be accepted, and epoll would report it in
            # every turn.  This one is closed then, to accept the peer and close it.
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            loop.add_reader(self._socket.fileno(), self._on_reader)
        except OSError as error:
            self._socket.close()
            self._close_spare()
            for left in (self._path + ".new", self._path):
                with contextlib.suppress(OSError):
                    os.unlink(left)
            if error.filename is None:
                error.filename = directory
            raise

    def close(self) -> None:
        """Stop reporting; a second call does nothing."""
        if self._socket.fileno() == -1:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._close_spare()
        try:
            os.unlink(self._path)
        except OSError:
            pass  # ENOENT: the directory was cleaned
        self._drop_readers()

    def _on_reader(self) -> None:
        try:
            reader, _ = self._socket.accept()
        except BlockingIOError:
            return  # the peer has gone
        except OSError:
            self._close_spare()
            try:
                self._socket.accept()[0].close()
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                # Another thread has taken the descriptor.  No status is better than a loop that
                # is busy because epoll reports the peer in every turn.
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
            # A new socket is writable: one step per turn, until the peer has its answer.
            self._loop.add_reader(fd, lambda: self._step(fd), select.EPOLLOUT)
        except OSError:
            reader.close()
        else:
            self._readers[fd] = reader

    def _close_spare(self) -> None:
        if self._spare != -1:
            os.close(self._spare)
            self._spare = -1

    def _step(self, fd: int) -> None:
        """Take a step of the walk; one per turn, so only for the first peer."""
        if fd != next(iter(self._readers), -1):
            return
        try:
            if self._walk is None:
                self._walk = Walk(self._loop, self._kind, self._apache, self._started)
            if self._walk.step():
                self._answer(self._walk.result())
                self._drop_readers()
        except Exception:
            # A bug here must not close a WebSocket; the peers get no answer.
            self._log_once(format_exc())
            self._drop_readers()

    def _log_once(self, problem: str) -> None:
        if not self._has_failed:  # peers ask every few seconds
            self._has_failed = True
            self._log.write("error", f"no status of process {os.getpid()}: {problem}")

    def _answer(self, data: bytes) -> None:
        try:
            file = os.memfd_create("apachews-status", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            self._log_once(f"memfd_create: {error.strerror}")
            return
        try:
            os.write(file, data)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
            for reader in self._readers.values():
                with contextlib.suppress(OSError):  # EPIPE: the peer has gone
                    socket.send_fds(reader, [b"1"], [file])
        finally:
            os.close(file)

    def _drop_readers(self) -> None:
        self._walk = None
        for fd, reader in self._readers.items():
            self._loop.remove_reader(fd)
            reader.close()
        self._readers.clear()
