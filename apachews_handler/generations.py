"""The custodians of one Apache, in the order in which they came.

Contract: a custodian makes a ``Generation`` when it begins and asks ``younger()``
from time to time.  Nothing blocks.

How this works: each has a locked file in Apache's user's directory, whose name has
the time it was made at.  The kernel takes the lock away however a process ends; a
file without a lock is somebody's who did not come to remove it.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Final

from . import rundir

# How often the directory is looked through though no file came or went: for processes
# that were killed.
LOOK_S: Final = 10.0


class Generation:
    """One custodian among those of an Apache.

    Args:
        apache: process id of Apache's parent.

    Raises:
        OSError: the directory or the file cannot be made.
    """

    def __init__(self, apache: int) -> None:
        self._directory = rundir.open_directory(apache)
        self._suffix = ".custodian"
        self._prefix = f"{apache}."
        # As wide for all, so that the names are in the order of the times.
        self._name = f"{self._prefix}{time.monotonic_ns():020}.{os.getpid()}{self._suffix}"
        path = os.path.join(self._directory, self._name)
        # Locked before it has its name, or another one could take it for a left-over.
        self._fd = os.open(
            path + ".new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.rename(path + ".new", path)
        self._younger = 0
        self._changed_at = 0  # of the directory, when it was looked through
        self._looked_at = 0.0

    def younger(self) -> int:
        """Return how many custodians of this Apache came later and are there.

        Where somebody has removed the directory, as many as there were before.
        """
        now = time.monotonic()
        try:
            changed_at = os.stat(self._directory).st_mtime_ns
            if changed_at != self._changed_at or now - self._looked_at > LOOK_S:
                self._changed_at, self._looked_at = changed_at, now
                self._younger = sum(
                    self._is_locked(name)
                    for name in os.listdir(self._directory)
                    if name.startswith(self._prefix)
                    and name.endswith(self._suffix)
                    and name > self._name
                )
        except OSError:
            pass  # clients are not to be lost for a count
        return self._younger

    def close(self) -> None:
        """Give the place up."""
        try:
            os.unlink(os.path.join(self._directory, self._name))
        except OSError:
            pass  # somebody has tidied up; the lock is what counts
        os.close(self._fd)

    def _is_locked(self, name: str) -> bool:
        path = os.path.join(self._directory, name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False  # it has gone
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        except BlockingIOError:
            return True
        except OSError:
            pass
        finally:
            os.close(fd)
        return False
