"""A bound on the handshakes that wait for a producer, each of which holds an Apache worker.

Contract: ``place(path, most, spare, timeout_s, user, patience_s)`` is a context manager for the
time that a handshake waits: for a full backlog, for the other end of a loopback port, for ANSWER
or the answer of a backend.  It raises ``Refusal`` (503 with ``Retry-After``) if too many
handshakes wait already, for the same endpoint or for all endpoints.  ``place_for_body(…)`` does
the same for a backend's answers that are too long to be read before the client gets them, and
``place_for_status()`` for requests that collect the status.  For any thread.

How this works: httpd keeps some workers idle (MinSpareThreads, MinSpareServers) and starts
more when it has fewer.  Waiting handshakes get half of that number, and those of one
endpoint a quarter, so pages always find an idle worker.  If that half is taken, each user
that runs producers has one place more: the stopped producers of one user do not close the
endpoints of another.  A tunnel's backend has one for itself.  Long answers, whose duration
depends on the client as well, have half as many places of their own.  A place is a slot
(``slots``): the count spans Apache's children, one of which is one worker with prefork, and is
right after any of them has died.

A burst of handshakes can exceed the bound although the producer answers each in some
milliseconds.  So a handshake without a place tries again for its patience, a time that
each prompt answer begins anew.  If all workers did so for a producer that is stopped or slow,
pages would wait: after a patience without such an answer the child rejects the surplus
handshakes at once, until there is one or ``MEMORY_S`` have passed.  An answer is prompt if it
took less than the patience, or follows another prompt one as soon: a producer that answers
one after another lets the last of many wait.  The file of the slots has the times of these
answers, because a child with prefork sees none but its own.

Roads not taken: a larger bound on the age of a handshake instead of on their number.  A
producer that is slower than its clients would get requests of which the client has its 503
already, and answer fewer of the others (the queue is full of stale requests).  One place
more for each endpoint instead of each user: an author makes any number of endpoints.  (Backends
are in the server's configuration.)
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from apachews._listening.endpoint import OUT_OF_RESOURCES
from apachews.monitoring import refusals
from apachews.monitoring.refusals import Reason
from apachews_handler.exceptions import Refusal, no_descriptors

from . import rundir
from .slots import SlotFile

# Surplus handshakes wait for a place for so long after the last prompt answer: of a producer,
# which only accepts; of a backend of tunnels, which may look up a session before its 101, and
# which is often one process that does not answer while it does something else.
PATIENCE_S: Final = 0.25
TUNNEL_PATIENCE_S: Final = 1.0
# Interval between two tries: other processes release their locks without a notification.
RETRY_S: Final = 0.02
# A child notes prompt answers this often: each note costs two system calls.
NOTE_S: Final = 0.02
# Surplus handshakes are rejected at once for so long after their patience ended.
MEMORY_S: Final = 30.0
# Requests that collect the status at a time: each waits up to 2 s for a process that hangs.
MAX_COLLECTING: Final = 2
# The file's content: for the hash of a key, the time of the last prompt answer, 0.0 without
# one.  Two keys with one hash share patience, but not slots.
_TIMES: Final = 4096
_TIME: Final = struct.Struct("d")


class _Limit(NamedTuple):
    """A limit under which a place is taken.

    Attributes:
        key: whose prompt answers decide on the patience.
        regions: keys of regions of slots, and how many each has; the first free place is
            taken.
        patience_s: how long a handshake waits for a place after the last prompt answer.
        problem: what the log says if all are taken.
        reason: of the refusal then.
    """

    key: str
    regions: tuple[tuple[str, int], ...]
    patience_s: float
    problem: str
    reason: Reason = refusals.WAITING_LIMIT


class _Patience(NamedTuple):
    """How long the surplus handshakes of a limit wait.

    Attributes:
        begun_at: when the first of them began to wait after the last prompt answer, or when the
            producer failed.
        until: they are rejected at once from then on, until there is another prompt answer.
    """

    begun_at: float
    until: float


class Waiting:
    """The waiting handshakes of one Apache, as one of its children sees them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: SlotFile | None = None
        self._released = threading.Condition()  # notified when this child releases a place
        self._paused = 0  # threads that wait for that
        # Of each limit's key: how long its surplus handshakes wait without a prompt answer.
        self._patience: dict[str, _Patience] = {}
        # Offset in the file -> when this child wrote there last.
        self._noted: dict[int, float] = {}

    def place(
        self,
        path: str,
        most: int,
        spare: int,
        timeout_s: float,
        user: int | None,
        patience_s: float = PATIENCE_S,
    ) -> contextlib.AbstractContextManager[None]:
        """Return what holds a place while a handshake waits.

        Args:
            path: the endpoint.
            most: APACHEWS_MAX_WAITING; 0 for ``auto``.  The server's, as ``spare`` is: the
                same for all endpoints, which share one count.
            spare: idle workers that httpd maintains, at least 1.
            timeout_s: how long to wait for a place at most.
            user: id of the user that runs the producer; None for a backend, which the server's
                configuration names.
            patience_s: how long to wait for a place after the last prompt answer.

        Raises:
            Refusal: on entry: all places are taken, or the process has no file descriptor left.
        """
        return self._hold(_limits_of(path, most, spare, user, patience_s), timeout_s)

    @contextlib.contextmanager
    def place_for_body(self, backend: str, most: int, spare: int) -> Iterator[None]:
        """Hold a place while a long answer of a backend passes to its client.

        Args:
            backend: its name.
            most, spare: as in ``place``.

        Raises:
            Refusal: as ``place``, but at once.
        """
        per_backend = most or math.ceil(spare / 8)
        in_all = max(most, math.ceil(spare / 4))
        limits = [
            _Limit(key, ((key, count),), 0.0, f"{count} long answers of {whose} pass already")
            for key, count, whose in (
                (f"bodies {backend}", per_backend, repr(backend)),
                ("bodies", in_all, "backends"),
            )
        ]
        with self._hold(limits, 0.0):
            yield

    @contextlib.contextmanager
    def place_for_status(self) -> Iterator[None]:
        """Hold a place while the processes are asked for their status.

        Raises:
            Refusal: as ``place``.
        """
        problem = f"{MAX_COLLECTING} requests collect the status already"
        region = ("status", MAX_COLLECTING)
        limit = _Limit("status", (region,), PATIENCE_S, problem, refusals.STATUS_BUSY)
        with self._hold([limit], MEMORY_S):
            yield

    def _hold(self, limits: Sequence[_Limit], timeout_s: float) -> _Hold:
        return _Hold(self, limits, timeout_s)

    def _take(self, slots: SlotFile, limit: _Limit, deadline: float) -> int:
        """Return the position of a place.

        Raises:
            Refusal
        """
        while True:
            for key, count in limit.regions:
                if (position := _try(slots, key, count)) is not None:
                    return position
            if not self._is_patient(limit, deadline, _answered_at(slots, limit.key)):
                raise Refusal(limit.reason, limit.problem)
            self._pause()

    def _pause(self) -> None:
        """Wait for a place: until this child releases one, or for an interval."""
        # A release between the try and this wait is not noticed, and costs one interval.
        with self._released:
            self._paused += 1
            self._released.wait(RETRY_S)
            self._paused -= 1

    def _is_patient(self, limit: _Limit, deadline: float, answered_at: float) -> bool:
        """Tell whether a handshake goes on trying to get a place."""
        now = time.monotonic()
        with self._lock:
            self._forget(now)
            patience = self._patience.get(limit.key)
            if patience is None or patience.begun_at < answered_at:
                patience = self._patience[limit.key] = _Patience(now, now + limit.patience_s)
        return now < min(max(patience.until, answered_at + limit.patience_s), deadline)

    def _end_patience(self, limits: Sequence[_Limit]) -> None:
        """Note that a producer failed."""
        now = time.monotonic()
        with self._lock:
            self._forget(now)
            for limit in limits:
                self._patience[limit.key] = _Patience(now, now)
                self._noted.pop(_offset(limit.key), None)  # the next answer counts

    def _note_answer(self, slots: SlotFile, limit: _Limit, begun_at: float) -> None:
        """Note the time of an answer if it is prompt.

        Args:
            begun_at: when the wait for it began.
        """
        now, offset = time.monotonic(), _offset(limit.key)
        if now - self._noted.get(offset, -math.inf) < NOTE_S:
            return  # the file says nearly the same
        if now - max(begun_at, _answered_at(slots, limit.key)) < limit.patience_s:
            self._noted[offset] = now
            with contextlib.suppress(OSError):  # a full disk shortens the patience, no more
                os.pwrite(slots.fileno(), _TIME.pack(now), offset)

    def _forget(self, now: float) -> None:
        """Forget whose patience ended long ago."""
        for key, patience in list(self._patience.items()):
            if patience.until + MEMORY_S <= now:
                self._patience.pop(key, None)

    def _open(self) -> SlotFile:
        with self._lock:
            if self._slots is None:
                self._slots = _open_slots()
            return self._slots


class _Hold:
    """Holds a place under each of some limits from ``with`` to the end of its block.

    (Not a generator: that takes three times as long, in every handshake.)
    """

    __slots__ = ("_begun_at", "_limits", "_positions", "_slots", "_timeout_s", "_waiting")

    def __init__(self, waiting: Waiting, limits: Sequence[_Limit], timeout_s: float) -> None:
        self._waiting = waiting
        self._limits = limits
        self._timeout_s = timeout_s
        self._positions: list[int] = []

    def __enter__(self) -> None:
        self._slots = self._waiting._open()
        deadline = time.monotonic() + self._timeout_s
        try:
            for limit in self._limits:
                self._positions.append(self._waiting._take(self._slots, limit, deadline))
        except BaseException:
            self._release()
            raise
        self._begun_at = time.monotonic()

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind:
                self._waiting._end_patience(self._limits)
            else:
                for limit in self._limits:
                    self._waiting._note_answer(self._slots, limit, self._begun_at)
        finally:
            self._release()

    def _release(self) -> None:
        for position in self._positions:
            self._slots.release(position)
        if self._waiting._paused:
            with self._waiting._released:
                self._waiting._released.notify()


# A site has few endpoints, and every handshake that waits asks for the limits of one of them.
@functools.lru_cache(maxsize=256)
def _limits_of(
    path: str, most: int, spare: int, user: int | None, patience_s: float
) -> tuple[_Limit, ...]:
    """Return the limits of ``Waiting.place``."""
    per_endpoint = most or math.ceil(spare / 4)
    in_all = max(most, math.ceil(spare / 2))
    endpoint = f"endpoint {path}"
    if user is None:
        owner, whose = f"backend {path}", repr(path)
    else:
        owner = f"user {user}"
        whose = f"a server of user {user}, who runs that of {path!r} too"
    return (
        _Limit(
            endpoint,
            ((endpoint, per_endpoint),),
            patience_s,
            f"{per_endpoint} handshakes wait for {path!r} already",
        ),
        _Limit(
            owner,
            (("all", in_all), (owner, 1)),
            patience_s,
            f"{in_all} handshakes wait already, and one more for {whose}",
        ),
    )


def _try(slots: SlotFile, key: str, count: int) -> int | None:
    """Return the position of a place, None if all are taken.

    Raises:
        Refusal
    """
    try:
        return slots.acquire(key, count)
    except OSError as error:
        fact = f"a waiting handshake cannot be counted: {error.strerror}"
        raise Refusal(refusals.CANNOT_COUNT, fact) from error


def _answered_at(slots: SlotFile, key: str) -> float:
    """Return when the last prompt answer was, 0.0 if that is not known (``monotonic``)."""
    data = os.pread(slots.fileno(), _TIME.size, _offset(key))
    if len(data) < _TIME.size:
        return 0.0
    answered_at: float = _TIME.unpack(data)[0]
    # A file of the time before a restart of the machine has times of another clock.
    return answered_at if answered_at <= time.monotonic() else 0.0


@functools.lru_cache(maxsize=256)
def _offset(key: str) -> int:
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _TIMES * _TIME.size


def _open_slots() -> SlotFile:
    """Open the file of this Apache, or one of this child alone.

    The child's own file, in memory, is for an Apache that cannot use its run directory.
    WebSockets work without that directory; the error log has the reason already.

    Raises:
        Refusal: no file descriptor is left.
    """
    apache = os.getppid()
    try:
        try:
            path = os.path.join(rundir.open_directory(apache), f"{apache}.waiting")
            return SlotFile(path, full_s=0.0)
        except OSError as error:
            if error.errno in OUT_OF_RESOURCES:
                raise
            return SlotFile(None, full_s=0.0)
    except OSError as error:
        raise no_descriptors(error) from error


_waiting = Waiting()
place = _waiting.place
place_for_body = _waiting.place_for_body
place_for_status = _waiting.place_for_status
