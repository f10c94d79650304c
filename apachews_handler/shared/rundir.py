"""A directory of Apache's user's own, for what its processes must know of each other.

Contract: ``open_directory(apache)`` makes it, removes what is left of Apaches that
have gone, and returns its path.  ``path()`` is where it would be.  ``descriptor()`` is
what keeps it.  For any thread.

How this works: it lies below the directory for temporary files, and its files are
named ``<process id of Apache's parent>.<what>``.  It is kept open and locked, so
that nobody who tidies up old files takes it away: systemd-tmpfiles looks for that
lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import tempfile
import threading
from typing import Final

# What is said to be wrong where there is no path to say it of.
NAME: Final = "the directory for temporary files"
_FILE: Final = re.compile(r"(\d+)\.[a-z0-9.]+")
_lock = threading.Lock()
_directory_fd = -1


def path() -> str:
    """Return the directory's path, whether it is there or not.

    Raises:
        OSError: no directory for temporary files can be used.
    """
    return os.path.join(tempfile.gettempdir(), f"apachews-{os.geteuid()}")


def open_directory(apache: int) -> str:
    """Return the path of the directory, made if it is not there.

    Args:
        apache: process id of the Apache that asks, whose files stay.

    Raises:
        OSError: it cannot be made, or is another user's; ``filename`` tells which.
    """
    global _directory_fd
    with _lock:
        directory = path()
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            status = os.lstat(directory)
            if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
                raise OSError(errno.EPERM, "it belongs to another user", directory) from None
        if _directory_fd == -1:
            _directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(_directory_fd, fcntl.LOCK_SH)
        _remove_old(directory, apache)
        return directory


def descriptor() -> int | None:
    """Return the descriptor that keeps the directory, None where it was not opened."""
    return None if _directory_fd == -1 else _directory_fd


def _remove_old(directory: str, apache: int) -> None:
    """Remove the files of Apaches that have gone."""
    for name in os.listdir(directory):
        match = _FILE.fullmatch(name)
        if match and int(match[1]) != apache and not _is_alive(int(match[1])):
            try:
                os.unlink(os.path.join(directory, name))
            except FileNotFoundError:
                pass  # another process was faster


def _is_alive(pid: int) -> bool:
    """Tell whether there is such a process; /proc may hide those of others."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is root's, as Apache's parent
    return True
