"""The custodians of one Apache in the order of their start, and their numbers of clients.

Contract: a custodian creates a ``Generation`` at its start, updates its number of clients
(``update``), and polls whether it is surplus (``is_surplus``).  Nothing blocks.

How this works: each custodian has a locked file in the run directory.  The name contains the
time of its creation, the content is the number of clients.  The kernel releases the lock
however a process exits; a file without a lock is stale and is removed.  All custodians read
the same files, so they agree on which of them end, without any communication.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Final

from . import rundir

SUFFIX: Final = ".custodian"


class Generation:
    """One custodian among those of an Apache.

    Args:
        apache: process id of Apache's parent.

    Attributes:
        directory: the run directory.
        name: of this custodian; names are in the order of their times.

    Raises:
        OSError: the directory or the file cannot be created.
    """

    def __init__(self, apache: int) -> None:
        self.directory = rundir.open_directory(apache)
        self._prefix = f"{apache}."
        # Of fixed width, so that the names sort by time.
        self.name = f"{self._prefix}{time.monotonic_ns():020}.{os.getpid()}"
        self._path = os.path.join(self.directory, self.name + SUFFIX)
        self._clients = 0
        self._changed_at = 0  # of the directory, when it was read
        self._count = 0  # custodians then
        # Locked before it gets its name, or another custodian could remove it as stale.
        self._fd = os.open(
            self._path + ".new",
            os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
        )
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.rename(self._path + ".new", self._path)

    def update(self, clients: int) -> None:
        """Publish the number of clients of this custodian."""
        if clients != self._clients:
            self._clients = clients
            try:
                os.pwrite(self._fd, b"%010d" % clients, 0)
            except OSError:
                pass  # ENOSPC: a stale number is better than a lost client

    def is_surplus(self, limit: int) -> bool:
        """Tell whether there are more custodians than a limit, and this one has to end.

        Those with the fewest clients end; among equals, the oldest ends first.
        """
        try:
            changed_at = os.stat(self.directory).st_mtime_ns
            if changed_at == self._changed_at and self._count <= limit:
                return False  # the directory has not changed since the last call
            names = [
                name
                for name in os.listdir(self.directory)
                if name.startswith(self._prefix) and name.endswith(SUFFIX)
            ]
            self._changed_at, self._count = changed_at, len(names)
            if len(names) <= limit:  # the usual case; some of them may have exited
                return False
            counts = {name: self._clients_of(name) for name in names}
        except OSError:
            return False  # without a count, keep the clients
        alive = sorted((count, name) for name, count in counts.items() if count is not None)
        surplus = {name for _, name in alive[: max(0, len(alive) - limit)]}
        return self.name + SUFFIX in surplus

    def close(self) -> None:
        """Remove the file, and with it the custodian from the order."""
        try:
            os.unlink(self._path)
        except OSError:
            pass  # already removed; the lock decides
        os.close(self._fd)

    def _clients_of(self, name: str) -> int | None:
        """Return the number of clients of a custodian; None if it has exited."""
        if name == self.name + SUFFIX:
            return self._clients
        path = os.path.join(self.directory, name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        except BlockingIOError:
            return int(os.pread(fd, 10, 0) or b"0")
        except OSError:
            pass
        finally:
            os.close(fd)
        return None
