"""The run directory: files that the processes of one Apache share.

Contract: ``open_directory(apache)`` creates it, removes the files of Apaches that have
exited, and returns its path.  ``path()`` returns the path without creating it.
``descriptor()`` returns the file descriptor that keeps it locked.  For any thread.

How this works: it is in the directory for temporary files and belongs to Apache's user; its
files are named ``<process id of Apache's parent>.<kind>``.  It stays open and locked so that
systemd-tmpfiles, which looks for that lock, does not remove it when it is old.
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

# The name in error messages that do not have a path.
NAME: Final = "the directory for temporary files"
_FILE: Final = re.compile(r"(\d+)\.[a-z0-9.]+")
_lock = threading.Lock()
_directory_fd = -1


def path() -> str:
    """Return the path of the directory, which may not exist.

    Raises:
        OSError: the system does not have a usable directory for temporary files.
    """
    return os.path.join(tempfile.gettempdir(), f"apachews-{os.geteuid()}")


def open_directory(apache: int) -> str:
    """Return the path of the directory, which is created if it does not exist.

    Args:
        apache: process id of this Apache's parent, whose files stay.

    Raises:
        OSError: it cannot be created, or belongs to another user; ``filename`` is its path.
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
    """Return the descriptor of the directory, None if it was not opened."""
    return None if _directory_fd == -1 else _directory_fd


def _remove_old(directory: str, apache: int) -> None:
    """Remove the files of Apaches that have exited."""
    for name in os.listdir(directory):
        match = _FILE.fullmatch(name)
        if match and int(match[1]) != apache and not _is_alive(int(match[1])):
            try:
                os.unlink(os.path.join(directory, name))
            except FileNotFoundError:
                pass  # another process removed it first


def _is_alive(pid: int) -> bool:
    """Tell whether a process exists.  (/proc can hide the processes of other users.)"""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it exists and belongs to root, as Apache's parent does
    return True
