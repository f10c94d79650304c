"""The custodians of one Apache, in the order in which they came, and how many clients each has.

Contract: a custodian makes a ``Generation`` when it begins, tells it how many clients it has
(``update``), and asks from time to time whether it is one too many (``is_surplus``).  Nothing
blocks.

How this works: each has a locked file in Apache's user's directory, whose name has the time it
was made at, and whose content is the number of clients.  The kernel takes the lock away
however a process ends; a file without a lock is a left-over, and is removed.  All custodians
read the same files, so they agree on which ones are to end without a word to each other.
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
        OSError: the directory or the file cannot be made.
    """

    def __init__(self, apache: int) -> None:
        self.directory = rundir.open_directory(apache)
        self._prefix = f"{apache}."
        # As wide for all, so that the names are in the order of the times.
        self.name = f"{self._prefix}{time.monotonic_ns():020}.{os.getpid()}"
        self._path = os.path.join(self.directory, self.name + SUFFIX)
        self._clients = 0
        self._changed_at = 0  # of the directory, when it was read
        self._count = 0  # custodians then
        # Locked before it has its name, or another one could take it for a left-over.
        self._fd = os.open(
            self._path + ".new",
            os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
        )
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.rename(self._path + ".new", self._path)

    def update(self, clients: int) -> None:
        """Tell the others how many clients this one has."""
        if clients != self._clients:
            self._clients = clients
            try:
                os.pwrite(self._fd, b"%010d" % clients, 0)
            except OSError:
                pass  # the disk is full; the order among custodians is not worth a client

    def is_surplus(self, limit: int) -> bool:
        """Tell whether there are more custodians than a limit, and this is one to end.

        Those with the fewest clients end, the oldest first among equals.
        """
        try:
            changed_at = os.stat(self.directory).st_mtime_ns
            if changed_at == self._changed_at and self._count <= limit:
                return False  # no custodian came since the last look
            names = [
                name
                for name in os.listdir(self.directory)
                if name.startswith(self._prefix) and name.endswith(SUFFIX)
            ]
            self._changed_at, self._count = changed_at, len(names)
            if len(names) <= limit:  # mostly; some of them may have ended
                return False
            counts = {name: self._clients_of(name) for name in names}
        except OSError:
            return False  # clients are not to be lost for a count
        alive = sorted((count, name) for name, count in counts.items() if count is not None)
        surplus = {name for _, name in alive[: max(0, len(alive) - limit)]}
        return self.name + SUFFIX in surplus

    def close(self) -> None:
        """Give the place up."""
        try:
            os.unlink(self._path)
        except OSError:
            pass  # the directory was cleaned; the lock is what counts
        os.close(self._fd)

    def _clients_of(self, name: str) -> int | None:
        """Return how many clients a custodian has; None if it has ended."""
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
