"""Clients without a producer, and the search for the next one.

Contract: ``add`` a connection, and ``connect_due`` returns it later with a socket to a new
producer; ``discard`` it before that if it ends.  Never blocks; on the loop's thread.

How this works: all clients of an endpoint wait together, and one attempt is made for all of
them: at once, after 20 ms, then after twice the last delay, up to half a second.  When a
producer listens again, the clients follow in batches, one batch per turn; while the backlog is
full they wait for a few milliseconds.

If the endpoint is a loopback socket, the producer and the bridge authenticate each other first.
Such attempts are kept here, and continued every millisecond.
"""

from __future__ import annotations

import enum
import errno
import math
import os
import socket
from collections.abc import Iterator
from typing import Final

from apachews._listening import loopback
from apachews_handler.endpoints import endpoint_access
from apachews_handler.endpoints.endpoint import OUT_OF_RESOURCES
from apachews_handler.exceptions import Refusal
from apachews_handler.native import syscalls

from .connection import Connection

# Delay between two attempts, at first and at most.  An attempt at a file that does not exist
# costs some microseconds.
FIRST_DELAY_S: Final = 0.02
MAX_DELAY_S: Final = 0.5
# Delay after a refused link, which stays until a person changes it or its target.  Each attempt
# walks all links of the path, and meanwhile no client of this process is served.
REFUSED_DELAY_S: Final = 5.0
# Delay while the backlog is full: the producer accepts as fast as it can.
BACKLOG_DELAY_S: Final = 0.005
# Connections per turn, so that the other clients are served in between.
BATCH: Final = 100
# Delay between two looks at an attempt on a loopback port, and how long it may take.
ATTEMPT_DELAY_S: Final = 0.001
ATTEMPT_TIMEOUT_S: Final = 1.0
# Attempts at a time: a producer accepts so many unauthenticated peers, of all children of
# Apache together (apachews._listening.acceptor).
MAX_ATTEMPTS: Final = 16


class _Failure(enum.Enum):
    """Why an attempt has not returned a socket."""

    NOT_LISTENING = "no producer listens"
    REFUSED = "a link of the path is not allowed, or the path has too many"
    BUSY = "the backlog is full, or this process has no file descriptor left"
    IN_PROGRESS = "an attempt on a loopback port has not ended"


class _Attempt:
    """A connection to a loopback port until both ends are authenticated.

    Raises:
        OSError: the port refuses it, or there are no resources.
    """

    __slots__ = ("_caller", "_hello", "_sock", "ends_at")

    def __init__(self, address: loopback.Address, now: float) -> None:
        self.ends_at = now + ATTEMPT_TIMEOUT_S
        self._caller = loopback.Caller(address.token)
        self._hello = self._caller.hello
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            loopback.send_at_once(self._sock)
            result = self._sock.connect_ex((loopback.HOST, address.port))
            if result not in (0, errno.EINPROGRESS):
                raise OSError(result, os.strerror(result))
        except BaseException:
            self._sock.close()
            raise

    def advance(self) -> socket.socket | None:
        """Return the socket once both ends are authenticated; None while that takes longer.

        Raises:
            OSError, NotProven: no producer listens, or another program does.
        """
        try:
            if self._hello:
                # (While it connects: ENOTCONN or EAGAIN.  A new socket has room for all of it.)
                self._sock.send(self._hello)
                self._hello = b""
            data = self._sock.recv(self._caller.wanted)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                return None
            raise
        if not data:
            raise loopback.NotProven("it closed the connection")
        if proof := self._caller.receive(data):
            self._sock.send(proof)
            return self._sock
        return None

    def close(self) -> None:
        self._sock.close()


class _Endpoint:
    """The clients that wait for the producer of one endpoint.

    Attributes:
        attempts: in progress, if the endpoint is a loopback socket's; no more than there are
            connections.
        connections: a dict, because that keeps an order.
        is_proven: the last attempt has found the producer.
        attempt_at: when to make the next attempt.
        delay_s: how long to wait after the next failure.
        refused_until: when the endpoint may be tried again after a refusal.
    """

    __slots__ = ("attempt_at", "attempts", "connections", "delay_s", "is_proven", "refused_until")

    def __init__(self) -> None:
        self.attempts: list[_Attempt] = []
        self.is_proven = False
        self.connections: dict[Connection, None] = {}
        self.attempt_at = 0.0
        self.delay_s = FIRST_DELAY_S
        self.refused_until = 0.0

    def connect(self, path: str, now: float) -> socket.socket | _Failure:
        """Return a socket to the producer, or why an attempt has not returned one.

        Args:
            path: of the endpoint's socket file.
        """
        if not self.attempts:
            waiting = next(iter(self.connections))
            found = _connect(path, waiting.settings.endpoint_directories)
            if not isinstance(found, loopback.Address):
                return found
            try:
                # One attempt, until a producer is authenticated.
                for _ in range(min(MAX_ATTEMPTS if self.is_proven else 1, len(self.connections))):
                    self.attempts.append(_Attempt(found, now))
            except OSError as error:
                if not self.attempts:
                    is_refused = error.errno == errno.ECONNREFUSED
                    return _Failure.NOT_LISTENING if is_refused else _Failure.BUSY
        for attempt in list(self.attempts):
            try:
                sock = attempt.advance()
            except (OSError, loopback.NotProven):
                self._abort(attempt)
                continue
            if sock is not None:
                self.attempts.remove(attempt)
                self.is_proven = True
                return sock
            if attempt.ends_at <= now:
                self._abort(attempt)
        return _Failure.IN_PROGRESS if self.attempts else _Failure.NOT_LISTENING

    def note_failure(self, failure: _Failure, now: float) -> None:
        """Set when to make the next attempt."""
        if failure is _Failure.NOT_LISTENING:
            self.attempt_at = now + self.delay_s
            self.delay_s = min(2 * self.delay_s, MAX_DELAY_S)
        elif failure is _Failure.REFUSED:
            self.attempt_at = self.refused_until = now + REFUSED_DELAY_S
        elif failure is _Failure.BUSY:
            self.attempt_at = now + BACKLOG_DELAY_S
        else:
            self.attempt_at = now + ATTEMPT_DELAY_S

    def abort_attempts(self) -> None:
        """Close the attempts that are in progress."""
        for attempt in list(self.attempts):
            self._abort(attempt)

    def _abort(self, attempt: _Attempt) -> None:
        self.attempts.remove(attempt)
        self.is_proven = False
        attempt.close()


class Reconnector:
    """All connections of a loop that wait for a producer."""

    def __init__(self) -> None:
        # By path.  An endpoint stays here once it is known: there are few.
        self._endpoints: dict[str, _Endpoint] = {}
        self._count = 0

    def __len__(self) -> int:
        """Return how many connections wait."""
        return self._count

    def connections(self) -> Iterator[Connection]:
        """Yield the connections that wait."""
        for endpoint in self._endpoints.values():
            yield from endpoint.connections

    def add(self, connection: Connection, attempt_at: float) -> None:
        """Add a connection without a producer.

        Args:
            attempt_at: when to make the first attempt at the latest.
        """
        endpoint = self._endpoints.setdefault(connection.endpoint, _Endpoint())
        # Otherwise each of many clients, added one by one, would cause another walk.
        attempt_at = max(attempt_at, endpoint.refused_until)
        if endpoint.connections:
            endpoint.attempt_at = min(endpoint.attempt_at, attempt_at)
        else:
            endpoint.delay_s = FIRST_DELAY_S
            endpoint.attempt_at = attempt_at
        if connection not in endpoint.connections:
            endpoint.connections[connection] = None
            self._count += 1

    def discard(self, connection: Connection) -> None:
        """Remove a connection, if it waits."""
        endpoint = self._endpoints.get(connection.endpoint)
        if endpoint is not None and connection in endpoint.connections:
            del endpoint.connections[connection]
            self._count -= 1
            if not endpoint.connections:
                endpoint.abort_attempts()

    def abort_attempts(self) -> None:
        """Close the attempts that are in progress; new ones are made."""
        for endpoint in self._endpoints.values():
            endpoint.abort_attempts()

    def next_at(self) -> float:
        """Return when to call ``connect_due``; inf if no connection waits."""
        if not self._count:
            return math.inf
        return min(
            endpoint.attempt_at for endpoint in self._endpoints.values() if endpoint.connections
        )

    def connect_due(self, now: float) -> Iterator[tuple[Connection, socket.socket]]:
        """Make the attempts that are due; yield connections, each with its new producer.

        The sockets are connected and non-blocking; the caller closes them.
        """
        for path, endpoint in list(self._endpoints.items()):
            if not endpoint.connections or endpoint.attempt_at > now:
                continue
            for _ in range(BATCH):
                if not endpoint.connections:
                    break
                found = endpoint.connect(path, now)
                if isinstance(found, _Failure):
                    endpoint.note_failure(found, now)
                    break
                endpoint.delay_s = FIRST_DELAY_S
                connection = next(iter(endpoint.connections))
                self.discard(connection)
                yield connection, found


def _connect(
    path: str, directories: tuple[str, ...]
) -> socket.socket | loopback.Address | _Failure:
    """Connect as for a handshake, or return what to do instead."""
    try:
        with endpoint_access.opened(path, directories, keeps_gil=False) as name:
            try:
                return syscalls.connect(name)
            except BlockingIOError:
                return _Failure.BUSY
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    raise
                # ECONNREFUSED: no producer listens.  EACCES: a new one sets the mode later.
                return _loopback_address(name)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _Failure.REFUSED
        return _Failure.BUSY if error.errno in OUT_OF_RESOURCES else _Failure.NOT_LISTENING
    except Refusal:
        # A link to another directory has replaced the socket.
        return _Failure.REFUSED


def _loopback_address(name: str) -> loopback.Address | _Failure:
    try:
        if os.path.isfile(name):
            return loopback.Address.read(name)
    except (OSError, loopback.NotAnAddress):
        pass  # it was removed, or a producer is about to write it
    return _Failure.NOT_LISTENING
