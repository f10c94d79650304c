"""Slots that the children of one Apache share: a semaphore of locks on the bytes of a file.

Contract: ``SlotFile.acquire(key, limit)`` takes one of ``limit`` slots of a key and returns
its position, or None if all are taken; ``release`` gives it back.  A ``Permit`` holds the
slots of one connection.  ``LentSlots`` holds slots that another process acquired.  For any
thread.

How this works: the children do not know of each other, and a count in shared memory would
survive a child that crashes.  So a slot is a lock on one byte of an empty file.  Each key has
a region of the file, selected by its hash, of as many bytes as its limit.  The kernel releases
a lock when its process exits, however it exits; nothing is ever written or repaired.  A lock
belongs to the open file description and not to the process (``F_OFD_SETLK``): it survives a
fork, and the descriptor can be sent to another process.

    key "address 192.0.2.1"          key "all"
    region of 1 MiB                  region of 1 MiB
    [L][L][ ][L][ ] ... unused ...   [L][L][L] ... unused ...      L: locked by some child
     0  1  2  3  4 = limit - 1

Each child starts its search at a byte of its own and continues from its last slot.  Its locks
are therefore mostly adjacent; the kernel merges adjacent locks into one record and searches
the records one by one.

Sources: fcntl(2), "Open file description locks".
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import stat
import struct
import threading
import time
from typing import Any, Final

from apachews_handler.native import syscalls

from .signals import signals_deferred

# struct flock: l_type, l_whence, l_start, l_len, l_pid (0 for these locks).
_FLOCK: Final = struct.Struct("hhqqi4x")
# Bytes of a region, which is the largest limit (APACHEWS_MAX_CONNECTIONS…).
REGION_BYTES: Final = 1 << 20
# off_t has 63 bits.
REGIONS: Final = 1 << 42
# A full region is not searched again for this long.  Other children release their slots
# without a notification.
FULL_S: Final = 0.1
# A prime: processes with adjacent ids start their searches far from each other.
_SPREAD: Final = 7919


class Permit:
    """The slots of one connection."""

    __slots__ = ("_positions", "_slots")

    def __init__(self, slots: SlotFile | LentSlots | None, positions: list[int]) -> None:
        self._slots = slots
        self._positions = positions

    @property
    def is_counted(self) -> bool:
        """False if it does not have a slot, because limits are not set."""
        return bool(self._positions)

    def export_state(self) -> dict[str, Any] | None:
        """Return what ``LentSlots`` needs besides the descriptor; None without slots."""
        if not self._slots or not self._positions:
            return None
        return {"token": self._slots.token, "positions": self._positions}

    def descriptor(self) -> int | None:
        """Return the descriptor that holds the locks; None without slots."""
        return self._slots.fileno() if self._slots and self._positions else None

    def forget(self) -> None:
        """Leave the slots to another process that has the descriptor."""
        positions, self._positions = self._positions, []
        if isinstance(self._slots, LentSlots):
            self._slots.forget(len(positions))

    def release(self) -> None:
        """Release the slots; a second call does nothing."""
        positions, self._positions = self._positions, []
        for position in positions:
            assert self._slots
            self._slots.release(position)


class LentSlots:
    """Slots that another process acquired, held through a duplicate of its descriptor.

    A lock belongs to the open file description, which exists until its last descriptor is
    closed: the slots stay taken without a gap when their first owner exits.

    Args:
        fd: the duplicate, closed when the last slot is released.
        token: identifies the open file description.

    Attributes:
        is_closed: the last slot was released.
    """

    def __init__(self, fd: int, token: str) -> None:
        self._fd = fd
        self._taken = 0
        self.token = token
        self.is_closed = False

    def permit(self, positions: list[int]) -> Permit:
        """Return the permit of one connection."""
        self._taken += len(positions)
        return Permit(self, positions)

    def release(self, position: int) -> None:
        """Release a slot."""
        syscalls.set_lock(self._fd, _flock(fcntl.F_UNLCK, position))
        self.forget(1)

    def forget(self, count: int) -> None:
        """Stop counting some slots, which stay locked while another descriptor is open."""
        self._taken -= count
        if not self._taken and not self.is_closed:
            self.is_closed = True
            os.close(self._fd)

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._fd


class _Region:
    """The state of one key's region in this child.

    Attributes:
        taken: slots of this child.
        likely: position at which the search starts.
        full_until: the region was full; it is not searched before (``monotonic``).
    """

    __slots__ = ("full_until", "likely", "taken")

    def __init__(self, likely: int) -> None:
        self.taken = 0
        self.likely = likely
        self.full_until = 0.0


class SlotFile:
    """The file of one Apache, opened by one of its children.

    Args:
        path: the file, which is created if it does not exist and must belong to the user.
            None: a file in memory, of this process only.
        full_s: how long a full region is not searched again, in seconds.
    """

    def __init__(self, path: str | None, full_s: float = FULL_S) -> None:
        self._full_s = full_s
        self._fd = os.memfd_create("slots", os.MFD_CLOEXEC) if path is None else _open(path)
        self.token = f"{os.getpid()}.{time.monotonic_ns()}"
        self._spread = os.getpid() * _SPREAD
        # The kernel grants a lock twice to the same open file description, so the slots of this
        # child are remembered here.
        self._lock = threading.Lock()
        self._ours: set[int] = set()
        self._regions: dict[int, _Region] = {}

    def acquire(self, key: str, limit: int) -> int | None:
        """Acquire a slot of a key; return its position, None if all are taken.

        Raises:
            OSError: the kernel does not have memory for another lock.
        """
        first = _first_of(key)
        with signals_deferred(), self._lock:
            region = self._regions.get(first)
            if region is None:
                region = _Region(first + self._spread % limit)
            # Without this a flood of rejected clients would cost a search each.
            if region.taken >= limit or time.monotonic() < region.full_until:
                return None
            position = self._acquire_between(region.likely, first + limit)
            if position is None:
                position = self._acquire_between(first, region.likely)
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

    def release(self, position: int) -> None:
        """Release a slot."""
        first = position - position % REGION_BYTES
        with signals_deferred(), self._lock:
            self._ours.discard(position)
            syscalls.set_lock(self._fd, _flock(fcntl.F_UNLCK, position))
            region = self._regions[first]
            region.taken -= 1
            region.likely = position
            region.full_until = 0.0
            if not region.taken:
                del self._regions[first]  # most addresses do not return

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._fd

    def close(self) -> None:
        """Close the file, which releases all slots."""
        os.close(self._fd)

    def _acquire_between(self, position: int, end: int) -> int | None:
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
            syscalls.set_lock(self._fd, _flock(fcntl.F_WRLCK, position))
        except (BlockingIOError, PermissionError):  # fcntl(2) allows either
            return False
        return True

    def _end_of_lock(self, position: int) -> int:
        """Return the position after a lock, which the kernel merges with adjacent ones."""
        found = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, position))
        kind, _, start, length, _ = _FLOCK.unpack(found)
        return int(start + length) if kind != fcntl.F_UNLCK else position + 1


# Every handshake asks for a few keys, mostly the same ones.
@functools.lru_cache(maxsize=256)
def _first_of(key: str) -> int:
    """Return the first position of a key's region."""
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % REGIONS * REGION_BYTES


def _open(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OSError(errno.EPERM, "it belongs to another user", path)
    return fd


def _flock(kind: int, position: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, position, 1, 0)
