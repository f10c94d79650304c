"""A bound on the handshakes that wait for a producer, each of which holds an Apache worker.

Contract: ``place(path, most, spare)`` is a context manager for the time that a handshake
waits: for a full backlog, for the other end of a loopback port, for ANSWER.  It raises
``Unavailable`` (503 with ``Retry-After``) if too many handshakes wait already, for the same
endpoint or for all endpoints.  ``place_for_status()`` does the same for requests that
collect the status.  For any thread.

How this works: httpd keeps some workers idle (MinSpareThreads, MinSpareServers) and starts
more when it has fewer.  Waiting handshakes get half of that number, and those of one
endpoint a quarter, so pages always find an idle worker.  A place is a lock on a byte of a
file, as under the limits on connections (``limits``): the count spans Apache's children,
one of which is one worker with prefork, and survives the death of any.

A burst of handshakes can exceed the bound although the producer answers each in some
milliseconds.  So a handshake without a place tries again for ``PATIENCE_S``, and for longer
while the producer answers the others that fast.  If all workers did so for a producer that
is stopped or slow, pages would wait: after one failure the child rejects the surplus
handshakes of that endpoint at once, until the producer answers one fast again or
``MEMORY_S`` have passed.

Roads not taken: a larger bound on the age of a handshake instead of on their number.  A
producer that is slower than its clients would get requests of which the client has its 503
already, and answer fewer of the others (the queue is full of stale requests).
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from typing import Final

from . import rundir
from .endpoint import OUT_OF_RESOURCES, out_of_descriptors
from .exceptions import Unavailable
from .limits import Places

# A producer that answers within this time is fast; a surplus handshake waits for a place as
# long after the last fast answer.
PATIENCE_S: Final = 0.25
# The longest time that a surplus handshake waits for a place, of a fast producer too.
MAX_PATIENCE_S: Final = 1.0
# Interval between two tries: other processes release their locks without a notification.
RETRY_S: Final = 0.02
# An endpoint is taken for stopped or slow for so long after its last failure.
MEMORY_S: Final = 30.0
# Endpoints whose last fast answer is known; more than that, and all are forgotten.
MAX_KNOWN: Final = 1000
# Requests that collect the status at a time: each waits up to 2 s for a process that hangs.
MAX_COLLECTING: Final = 2

_Limit = tuple[str, int, str]


class Waiting:
    """The waiting handshakes of one Apache, as one of its children sees them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._released = threading.Condition()
        self._places: Places | None = None
        # Endpoints that failed -> until when surplus handshakes are rejected at once.
        self._slow_until: dict[str, float] = {}
        # Endpoints -> time of their last fast answer.
        self._fast_at: dict[str, float] = {}

    @contextlib.contextmanager
    def place(self, path: str, most: int, spare: int) -> Iterator[None]:
        """Hold a place while a handshake waits.

        Args:
            path: the endpoint.
            most: APACHEWS_MAX_WAITING; 0 for ``auto``.
            spare: idle workers that httpd maintains, at least 1.

        Raises:
            Unavailable: all places are taken, or the process has no file descriptor left.
        """
        per_endpoint = most or math.ceil(spare / 4)
        in_all = max(most, math.ceil(spare / 2))
        limits = [
            (
                f"endpoint {path}",
                per_endpoint,
                f"{per_endpoint} handshakes wait for the producer of {path!r} already: it is"
                " stopped or slow; see APACHEWS_MAX_WAITING",
            ),
            (
                "all",
                in_all,
                f"{in_all} handshakes wait for producers already, and {path!r} would be"
                " one more; see APACHEWS_MAX_WAITING",
            ),
        ]
        with self._hold(path, limits):
            yield

    @contextlib.contextmanager
    def place_for_status(self) -> Iterator[None]:
        """Hold a place while the processes are asked for their status.

        Raises:
            Unavailable: as ``place``.
        """
        problem = f"{MAX_COLLECTING} requests collect the status already: a process hangs"
        with self._hold("", [("status", MAX_COLLECTING, problem)]):
            yield

    @contextlib.contextmanager
    def _hold(self, name: str, limits: list[_Limit]) -> Iterator[None]:
        places = self._open()
        positions: list[int] = []
        try:
            self._take(places, name, limits, positions)
            begun_at = time.monotonic()
            yield
            now = time.monotonic()
            if now - begun_at < PATIENCE_S:
                if len(self._fast_at) >= MAX_KNOWN:
                    self._fast_at.clear()
                self._fast_at[name] = now
                self._slow_until.pop(name, None)
        except BaseException:
            self._remember(name)
            raise
        finally:
            for position in positions:
                places.free(position)
            with self._released:
                self._released.notify()

    def _take(self, places: Places, name: str, limits: list[_Limit], positions: list[int]) -> None:
        """Append the positions of places under all limits.

        Raises:
            Unavailable
        """
        begun_at = time.monotonic()
        for key, limit, problem in limits:
            while (position := _try(places, key, limit)) is None:
                if not self._is_patient(name, begun_at):
                    raise Unavailable(problem)
                self._pause()
            positions.append(position)

    def _is_patient(self, name: str, begun_at: float) -> bool:
        """Tell whether a handshake goes on trying to get a place."""
        now = time.monotonic()
        if self._slow_until.get(name, 0.0) > now or now - begun_at >= MAX_PATIENCE_S:
            return False
        return now - max(begun_at, self._fast_at.get(name, 0.0)) < PATIENCE_S

    def _pause(self) -> None:
        with self._released:
            self._released.wait(RETRY_S)

    def _remember(self, name: str) -> None:
        """Note that an endpoint failed, and forget the endpoints that did long ago."""
        now = time.monotonic()
        with self._lock:
            for known, until in list(self._slow_until.items()):
                if until <= now:
                    self._slow_until.pop(known, None)
            self._slow_until[name] = now + MEMORY_S

    def _open(self) -> Places:
        with self._lock:
            if self._places is None:
                self._places = _open_places()
            return self._places


def _try(places: Places, key: str, limit: int) -> int | None:
    """Return the position of a place, None if all are taken.

    Raises:
        Unavailable
    """
    try:
        # Each limit has its own region: directories with other settings do not share one.
        return places.take(f"{key} of {limit}", limit)
    except OSError as error:
        raise Unavailable(f"a waiting handshake cannot be counted: {error.strerror}") from error


def _open_places() -> Places:
    """Open the file of this Apache, or one of this child alone.

    The child's own file, in memory, is for an Apache that cannot use its run directory.
    WebSockets work without that directory; the error log has the reason already.

    Raises:
        Unavailable: no file descriptor is left.
    """
    apache = os.getppid()
    try:
        try:
            path = os.path.join(rundir.open_directory(apache), f"{apache}.waiting")
            return Places(path, full_s=0.0)
        except OSError as error:
            if error.errno in OUT_OF_RESOURCES:
                raise
            return Places(None, full_s=0.0)
    except OSError as error:
        raise Unavailable(out_of_descriptors(error)) from error


_waiting = Waiting()
place = _waiting.place
place_for_status = _waiting.place_for_status
