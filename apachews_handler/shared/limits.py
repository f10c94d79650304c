"""How many connections there may be: in all, of one address, to one producer.

Contract: ``admit(settings, address, path)`` takes a place under each limit that is
set, or raises ``Refusal``; the ``Permit`` it returns gives them back, when it is
released or when the process ends.  For any thread.

How this works: Apache's children know nothing of each other, so the count must be
kept where it survives none of them wrongly.  A place is a lock on one byte of an
empty file: every thing that is counted has a region of its own there, picked by
its hash, as long as its limit.  The kernel gives a lock back when its process ends,
however it ends, and nothing is ever written or must be repaired.  A lock belongs to
the open file, not to the process (``F_OFD_SETLK``): so a fork keeps it.

Each child begins to look at a place of its own, and goes on from there: its locks
are mostly neighbours then, which the kernel runs together; it looks through them
one by one.

The file is in Apache's user's directory (``rundir``), one for each running Apache.
It is made when a limit is first asked about.

Sources: fcntl(2), "Open file description locks".
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import ipaddress
import os
import stat
import struct
import threading
import time
from typing import Any, Final

from apachews._listening.endpoint import OUT_OF_RESOURCES
from apachews.monitoring import refusals
from apachews.monitoring.refusals import Reason
from apachews_handler.exceptions import Refusal, no_descriptors
from apachews_handler.settings import Settings

from . import rundir
from .signals import signals_blocked

# struct flock: l_type, l_whence, l_start, l_len, l_pid (0 for these locks).
_FLOCK: Final = struct.Struct("hhqqi4x")
# Bytes of a region, and so the largest limit (APACHEWS_MAX_CONNECTIONS…).
REGION_BYTES: Final = 1 << 20
# off_t has 63 bits.
REGIONS: Final = 1 << 42
# How long a region that was full is taken to be so: the places of other children
# become free unseen.
FULL_S: Final = 0.1
# Neighbouring process ids begin to look far from each other (a prime).
_SPREAD: Final = 7919


class Permit:
    """The places that one connection has."""

    __slots__ = ("_places", "_positions")

    def __init__(self, places: SlotFile | LentPlaces | None, positions: list[int]) -> None:
        self._places = places
        self._positions = positions

    @property
    def is_counted(self) -> bool:
        """False where it has no place: nothing is limited."""
        return bool(self._positions)

    def export_state(self) -> dict[str, Any] | None:
        """Return what ``LentPlaces`` needs besides the descriptor; None: it has no place."""
        if not self._places or not self._positions:
            return None
        return {"token": self._places.token, "positions": self._positions}

    def descriptor(self) -> int | None:
        """Return the descriptor that its places are locked through; None: it has no place."""
        return self._places.fileno() if self._places and self._positions else None

    def forget(self) -> None:
        """Leave the places to the other process that has their descriptor."""
        positions, self._positions = self._positions, []
        if isinstance(self._places, LentPlaces):
            self._places.forget(len(positions))

    def release(self) -> None:
        """Give the places back; again does nothing."""
        positions, self._positions = self._positions, []
        for position in positions:
            assert self._places
            self._places.free(position)


class LentPlaces:
    """Places that another process has locked, through a duplicate of its descriptor.

    A lock belongs to the open file description, which lasts as long as one of its
    descriptors: the places stay taken without a gap when their first owner ends.

    Args:
        fd: the duplicate, closed when the last place is given back.
        token: tells open file descriptions apart.

    Attributes:
        is_closed: the last place was given back.
    """

    def __init__(self, fd: int, token: str) -> None:
        self._fd = fd
        self._taken = 0
        self.token = token
        self.is_closed = False

    def admission(self, positions: list[int]) -> Permit:
        """Return the places of one connection."""
        self._taken += len(positions)
        return Permit(self, positions)

    def free(self, position: int) -> None:
        """Give a place back."""
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, position))
        self.forget(1)

    def forget(self, count: int) -> None:
        """Leave some places, which stay locked as long as another descriptor is open."""
        self._taken -= count
        if not self._taken and not self.is_closed:
            self.is_closed = True
            os.close(self._fd)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd


class _Region:
    """What this child knows of the places for one key.

    Attributes:
        taken: how many it has itself.
        likely: where it looks first.
        full_until: no place was free; not looked again before (``monotonic``).
    """

    __slots__ = ("full_until", "likely", "taken")

    def __init__(self, likely: int) -> None:
        self.taken = 0
        self.likely = likely
        self.full_until = 0.0


class SlotFile:
    """The file of one Apache, opened by one of its children.

    Args:
        path: the file; made if it is not there, or else the user's own.  None: a file in
            memory, which only this process has.
        full_s: how long a region that was full is not searched again.
    """

    def __init__(self, path: str | None, full_s: float = FULL_S) -> None:
        self._full_s = full_s
        self._fd = os.memfd_create("places", os.MFD_CLOEXEC) if path is None else _open(path)
        self.token = f"{os.getpid()}.{time.monotonic_ns()}"
        # A lock of our own is no obstacle to us: these are counted here.
        self._lock = threading.Lock()
        self._ours: set[int] = set()
        self._regions: dict[int, _Region] = {}

    def take(self, key: str, limit: int) -> int | None:
        """Take a place in the region of a key; return it, None where all are taken.

        Raises:
            OSError: the kernel has no room for more locks.
        """
        digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
        first = int.from_bytes(digest, "big") % REGIONS * REGION_BYTES
        with signals_blocked(), self._lock:
            region = self._regions.get(first)
            if region is None:
                region = _Region(first + os.getpid() * _SPREAD % limit)
            # A flood of clients that are refused is not to cost a search each.
            if region.taken >= limit or time.monotonic() < region.full_until:
                return None
            position = self._take_between(region.likely, first + limit)
            if position is None:
                position = self._take_between(first, region.likely)
            self._regions[first] = region
            if position is None:
                region.full_until = time.monotonic() + self._full_s
                if not region.taken:
                    del self._regions[first]
                return None
            self._ours.add(position)
            region.taken += 1
            region.likely = position
            return position

    def free(self, position: int) -> None:
        """Give a place back."""
        first = position - position % REGION_BYTES
        with signals_blocked(), self._lock:
            self._ours.discard(position)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, position))
            region = self._regions[first]
            region.taken -= 1
            region.likely = position
            region.full_until = 0.0
            if not region.taken:
                del self._regions[first]  # most addresses never come again

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._fd

    def close(self) -> None:
        """Close the file, and give all places back."""
        os.close(self._fd)

    def _take_between(self, position: int, end: int) -> int | None:
        while position < end:
            if position in self._ours:
                position += 1
            elif self._try_lock(position):
                return position
            else:
                position = max(position + 1, self._end_of_lock(position))
        return None

    def _try_lock(self, position: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, position))
        except (BlockingIOError, PermissionError):  # fcntl(2) allows either
            return False
        return True

    def _end_of_lock(self, position: int) -> int:
        """Return where the lock on a place ends: the kernel runs neighbours together."""
        found = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, position))
        kind, _, start, length, _ = _FLOCK.unpack(found)
        return int(start + length) if kind != fcntl.F_UNLCK else position + 1


def _open(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OSError(errno.EPERM, "it belongs to another user", path)
    return fd


def _flock(kind: int, position: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, position, 1, 0)


# Where nothing is limited.
_FREE: Final = Permit(None, [])
_lock = threading.Lock()
_places: SlotFile | None = None


def admit(settings: Settings, address: str, path: str) -> Permit:
    """Take a place under each limit.

    Args:
        settings: the limits.
        address: the client's; of an IPv6 address the first 64 bits count, for
            that is what one client has.
        path: the producer's socket.

    Raises:
        Refusal: 503, or 429 for the limit of an address; 500, the file cannot be made.
    """
    if not any(
        (
            settings.max_connections,
            settings.max_connections_per_address,
            settings.max_connections_per_endpoint,
        )
    ):
        return _FREE
    wanted = [
        (
            "all",
            settings.max_connections,
            _too_many(refusals.CONNECTION_LIMIT, "APACHEWS_MAX_CONNECTIONS"),
        ),
        (
            f"address {_client(address)}",
            settings.max_connections_per_address,
            Refusal(
                refusals.ADDRESS_LIMIT,
                f"{_client(address)} has as many connections as"
                f" APACHEWS_MAX_CONNECTIONS_PER_ADDRESS allows:"
                f" {settings.max_connections_per_address}",
            ),
        ),
        (
            f"endpoint {path}",
            settings.max_connections_per_endpoint,
            _too_many(refusals.ENDPOINT_LIMIT, "APACHEWS_MAX_CONNECTIONS_PER_ENDPOINT"),
        ),
    ]
    places = _open_places()
    positions: list[int] = []
    for key, limit, refusal in wanted:
        if not limit:
            continue
        try:
            # Another limit has another region: one count would mean neither.
            position = places.take(f"{key} of {limit}", limit)
        except OSError as error:
            fact = f"the connection cannot be counted: {error.strerror}"
            refusal = Refusal(refusals.CANNOT_COUNT, fact)
            position = None
        if position is None:
            Permit(places, positions).release()
            raise refusal
        positions.append(position)
    return Permit(places, positions)


def _too_many(reason: Reason, name: str) -> Refusal:
    return Refusal(reason, f"there are as many connections as SetEnv {name} allows")


def _client(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def _open_places() -> SlotFile:
    global _places
    with _lock:
        if _places is None:
            directory = ""
            try:
                directory = rundir.open_directory(os.getppid())
                _places = SlotFile(os.path.join(directory, f"{os.getppid()}.places"))
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    raise no_descriptors(error) from error
                fact = (
                    f"connections cannot be counted in {error.filename or directory or '/tmp'}:"
                    f" {error.strerror}"
                )
                raise Refusal(refusals.RUN_DIRECTORY, fact) from error
        return _places


def descriptor() -> int | None:
    """Return the descriptor that the places are locked through, None where none was taken."""
    return _places.fileno() if _places else None
