"""Clients whose producer is gone, and the search for the next one.

Contract: ``add`` a connection, and ``take_resumable`` gives it back with a socket
to a new producer, sooner or later; or ``discard`` it before that.  Never blocks; on
the loop's thread.

How this works: all the clients of a path wait together, and one of them tries the
path for all: at once, then after 20 ms, twice that, up to half a second.  When
somebody listens again the others follow, so many in a turn; where the backlog is
full they go on a moment later.
"""

from __future__ import annotations

import enum
import math
import socket
from collections.abc import Iterator
from typing import Final

from .connection import Connection

# Between two looks at a path; a file that is not there costs some microseconds.
FIRST_DELAY_S: Final = 0.02
MAX_DELAY_S: Final = 0.5
# The producer accepts as fast as it can.
BACKLOG_DELAY_S: Final = 0.005
# Connections made in one turn, so that the other clients are served meanwhile.
BATCH: Final = 100
# A producer that keeps a client for as long works; one that ends sooner may have
# ended because of it.
SETTLED_S: Final = 0.5


class _Found(enum.Enum):
    NOBODY = "nobody listens"
    BUSY = "the backlog is full, or there is no descriptor left"


class _Path:
    """The clients that wait for one path.

    Attributes:
        connections: a dict for its order.
        probe_at: when to look again.
        delay_s: how long to wait after the next look in vain.
    """

    __slots__ = ("connections", "delay_s", "probe_at")

    def __init__(self) -> None:
        self.connections: dict[Connection, None] = {}
        self.probe_at = 0.0
        self.delay_s = FIRST_DELAY_S


class Holds:
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
                found = _connect(name)
                if found is _Found.NOBODY:
                    path.probe_at = now + path.delay_s
                    path.delay_s = min(2 * path.delay_s, MAX_DELAY_S)
                    break
                if found is _Found.BUSY:
                    path.probe_at = now + BACKLOG_DELAY_S
                    break
                assert isinstance(found, socket.socket)
                path.delay_s = FIRST_DELAY_S
                connection = next(iter(path.connections))
                self.discard(connection)
                yield connection, found


def _connect(path: str) -> socket.socket | _Found:
    try:
        producer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        return _Found.BUSY
    try:
        producer.connect(path)
    except BlockingIOError:
        producer.close()
        return _Found.BUSY
    except OSError:
        # Not there, nobody listens, or no permission yet: its mode is set later.
        producer.close()
        return _Found.NOBODY
    return producer
