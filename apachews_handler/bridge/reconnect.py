"""Clients whose producer is gone, and the search for the next one.

Contract: ``add`` a connection, and ``take_resumable`` gives it back with a socket
to a new producer, sooner or later; or ``discard`` it before that.  Never blocks; on
the loop's thread.

How this works: all the clients of a path wait together, and one of them tries the
path for all: at once, then after 20 ms, twice that, up to half a second.  When
somebody listens again the others follow, so many in a turn; where the backlog is
full they go on a moment later.

Where the file is a loopback socket's, who listens must prove himself first, and so
must we: such attempts wait here, and are looked at again every millisecond.
"""

from __future__ import annotations

import enum
import math
import socket
from collections.abc import Iterator
from typing import Final

from apachews._listening import loopback
from apachews._listening.endpoint import Attempt, Outcome, Unreachable, outcome_of
from apachews_handler.endpoints import endpoint_access
from apachews_handler.endpoints.endpoint import connect_once
from apachews_handler.exceptions import Refusal

from .connection import Connection

# Between two looks at a path; a file that is not there costs some microseconds.
FIRST_DELAY_S: Final = 0.02
MAX_DELAY_S: Final = 0.5
# After a refusal, which stays until a person changes the links on the way, or their targets.
# (Each look walks all these links, at the cost of all clients.)
REFUSED_DELAY_S: Final = 5.0
# The producer accepts as fast as it can.
BACKLOG_DELAY_S: Final = 0.005
# Connections made in one turn, so that the other clients are served meanwhile.
BATCH: Final = 100
# How often an attempt on a loopback port is looked at, and how long it may take.
ATTEMPT_DELAY_S: Final = 0.001
ATTEMPT_TIMEOUT_S: Final = 1.0
# Attempts at once: a producer has room for so many who have proved nothing yet, of all
# children of Apache together (apachews._listening.acceptor).
MAX_ATTEMPTS: Final = 16
# A producer that keeps a client for as long works; one that ends sooner may have
# ended because of it.
SETTLED_S: Final = 0.5


class _Found(enum.Enum):
    NOBODY = "nobody listens"
    REFUSED = "a link on the way is not allowed, or there are too many"
    BUSY = "the backlog is full, or there is no descriptor left"
    UNDER_WAY = "somebody may listen on a loopback port"


_BUSY: Final = frozenset({Outcome.BUSY, Outcome.OUT_OF_RESOURCES})


class _Path:
    """The clients that wait for one path.

    Attributes:
        attempts: those under way, if the path is a loopback socket's, with their deadlines.
        connections: a dict for its order.
        is_proven: the last attempt has found the producer.
        probe_at: when to look again.
        delay_s: how long to wait after the next look in vain.
        refused_until: when the path may be tried again after a refusal.
    """

    __slots__ = ("attempts", "connections", "delay_s", "is_proven", "probe_at", "refused_until")

    def __init__(self) -> None:
        self.attempts: dict[Attempt, float] = {}  # at most as many as connections
        self.is_proven = False
        self.connections: dict[Connection, None] = {}
        self.probe_at = 0.0
        self.delay_s = FIRST_DELAY_S
        self.refused_until = 0.0

    def connect(self, name: str, now: float) -> socket.socket | _Found:
        """Try the path once; return a socket to whoever listens there, or why there is none."""
        if not self.attempts:
            waiting = next(iter(self.connections))
            found = _connect(name, waiting.settings.endpoint_directories)
            if not isinstance(found, loopback.Address):
                return found
            try:
                # One, until somebody has proved himself.
                for _ in range(min(MAX_ATTEMPTS if self.is_proven else 1, len(self.connections))):
                    self.attempts[Attempt(found)] = now + ATTEMPT_TIMEOUT_S
            except OSError as error:
                if not self.attempts:
                    is_refused = outcome_of(error) is Outcome.REFUSED
                    return _Found.NOBODY if is_refused else _Found.BUSY
        for attempt, ends_at in list(self.attempts.items()):
            try:
                sock = attempt.advance()
            except (OSError, loopback.NotProven):
                self._break_off(attempt)
                continue
            if sock is not None:
                del self.attempts[attempt]
                self.is_proven = True
                return sock
            if ends_at <= now:
                self._break_off(attempt)
        return _Found.UNDER_WAY if self.attempts else _Found.NOBODY

    def give_up(self) -> None:
        for attempt in list(self.attempts):
            self._break_off(attempt)

    def _break_off(self, attempt: Attempt) -> None:
        del self.attempts[attempt]
        self.is_proven = False
        attempt.close()


class Reconnector:
    """All connections of a loop that wait for a producer."""

    def __init__(self) -> None:
        # A path stays here once it is known: there are few.
        self._paths: dict[str, _Path] = {}
        self._count = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return self._count

    def connections(self) -> Iterator[Connection]:
        """Give those that wait."""
        for path in self._paths.values():
            yield from path.connections

    def add(self, connection: Connection, probe_at: float) -> None:
        """Have a connection wait for the producer of its path.

        Args:
            probe_at: when to look for one at the latest.
        """
        path = self._paths.setdefault(connection.path, _Path())
        # Many clients that come one by one would otherwise cause a look each.
        probe_at = max(probe_at, path.refused_until)
        if path.connections:
            path.probe_at = min(path.probe_at, probe_at)
        else:
            path.delay_s = FIRST_DELAY_S
            path.probe_at = probe_at
        if connection not in path.connections:
            path.connections[connection] = None
            self._count += 1

    def discard(self, connection: Connection) -> None:
        """Have a connection wait no more; does nothing where it does not."""
        path = self._paths.get(connection.path)
        if path is not None and connection in path.connections:
            del path.connections[connection]
            self._count -= 1
            if not path.connections:
                path.give_up()

    def give_up(self) -> None:
        """Break off the attempts that are under way; they are made again."""
        for path in self._paths.values():
            path.give_up()

    def next_at(self) -> float:
        """Return when ``take_resumable`` has something to do; inf for never."""
        if not self._count:
            return math.inf
        return min(path.probe_at for path in self._paths.values() if path.connections)

    def take_resumable(self, now: float) -> Iterator[tuple[Connection, socket.socket]]:
        """Look where it is time, and give connections, each with its new producer.

        The sockets are connected and non-blocking; the caller closes them.
        """
        for name, path in list(self._paths.items()):
            if not path.connections or path.probe_at > now:
                continue
            for _ in range(BATCH):
                if not path.connections:
                    break
                found = path.connect(name, now)
                if found is _Found.NOBODY:
                    path.probe_at = now + path.delay_s
                    path.delay_s = min(2 * path.delay_s, MAX_DELAY_S)
                    break
                if found is _Found.REFUSED:
                    path.probe_at = path.refused_until = now + REFUSED_DELAY_S
                    break
                if found is _Found.BUSY:
                    path.probe_at = now + BACKLOG_DELAY_S
                    break
                if found is _Found.UNDER_WAY:
                    path.probe_at = now + ATTEMPT_DELAY_S
                    break
                assert isinstance(found, socket.socket)
                path.delay_s = FIRST_DELAY_S
                connection = next(iter(path.connections))
                self.discard(connection)
                yield connection, found


def _connect(path: str, directories: tuple[str, ...]) -> socket.socket | loopback.Address | _Found:
    """Connect as for a handshake, or return what is to be done instead."""
    try:
        with endpoint_access.opened(path, directories, keeps_gil=False) as name:
            return connect_once(name)
    except Unreachable as failure:
        outcome = failure.outcome
    except OSError as error:
        outcome = outcome_of(error)
    except Refusal:
        # A link that may not lead there has replaced the socket, or too many links.
        return _Found.REFUSED
    # Every other outcome may end soon: a producer that starts makes the file, and sets its mode.
    return _Found.BUSY if outcome in _BUSY else _Found.NOBODY
