"""Destinations of log lines besides httpd's API: the log of closes, a file, syslog.

Contract: ``append(directory, path, line, log)`` appends a whole line.  On failure it writes
the reason to the error log, once until the file can be written again.  For any thread; it can
block on a disk, never on a reader.  ``FileLog`` writes to an error log that httpd opened in
another process; ``Syslog`` replaces an error log that is a pipe.

The server's configuration names the directory, but the author of an .htaccess file may have
chosen the path.  The path is therefore opened component by component, each relative to the
descriptor of its parent and without following symbolic links: a concurrent rename cannot
lead outside of the directory.

How this works: the file is opened for every line.  It can be moved at any time, by logrotate
too, and the next line creates a new file; a custodian does not inherit a descriptor; and
lines of several processes do not mix (O_APPEND).  This costs 20 µs per closed WebSocket.

Sources: open(2), O_APPEND, O_NONBLOCK, O_PATH, and its "Rationale for openat()"; write(2).
"""

from __future__ import annotations

import errno
import os
import pwd
import syslog
import time
from typing import Final, Protocol

_DIRECTORY_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FLAGS: Final = (
    os.O_WRONLY
    | os.O_APPEND
    | os.O_CREAT
    | os.O_CLOEXEC
    | os.O_NOCTTY
    | os.O_NONBLOCK
    # A link would lead to any file.
    | os.O_NOFOLLOW
)
_MODE: Final = 0o640
_PROBLEMS: Final = {
    errno.ELOOP: "it is a symbolic link",
    errno.ENOTDIR: "its path has a file or a symbolic link in the place of a directory",
}
# Files whose failure is in the error log; few, because they come from Apache's configuration.
_broken: set[str] = set()


class Log(Protocol):
    """A log for problems; ``httpd.ErrorLog`` is one."""

    def write(self, level: str, text: str) -> None:
        """Log a line at a level."""


# syslog(3).
LEVELS: Final = {"error": 3, "warn": 4, "notice": 5, "info": 6, "debug": 7}
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)
# A line of httpd's log has at most 8192 bytes.
_MAX_LINE_CHARACTERS: Final = 4096


class Syslog:
    """Replaces an error log that is a pipe; ``syslog.openlog`` was called before."""

    def write(self, level: str, text: str) -> None:
        """Log a line."""
        syslog.syslog(LEVELS[level], text)

    def descriptor(self) -> int | None:
        """Return None: the C library owns the descriptor."""
        return None

    def style(self) -> tuple[str, int]:
        """Return the name and the last level that is kept, as ``ErrorLog.style``."""
        return "apachews", LEVELS["debug"]


class FileLog:
    """An error log of httpd's, by its descriptor.

    Lines have the format of httpd's default ``ErrorLogFormat``.

    Args:
        fd: of a file, closed with the last reference to this object.
        module: name of httpd's module in the lines.
        threshold: number of the last level that is kept, as in ``LEVELS``.
    """

    def __init__(self, fd: int, module: str, threshold: int) -> None:
        self._fd = fd
        self._module = module
        self._threshold = threshold

    def __del__(self) -> None:
        os.close(self._fd)

    def descriptor(self) -> int | None:
        """Return the descriptor."""
        return self._fd

    def style(self) -> tuple[str, int]:
        """Return the name of the module, and the last level that is kept."""
        return self._module, self._threshold

    def write(self, level: str, text: str) -> None:
        """Log a line.  On a full disk the line is lost, as httpd's own lines are."""
        if LEVELS[level] > self._threshold:
            return
        now = time.time()
        local = time.localtime(now)
        # In English, whatever the locale.
        day, month = _DAYS[local.tm_wday], _MONTHS[local.tm_mon - 1]
        clock = time.strftime("%H:%M:%S", local)
        at = f"{day} {month} {local.tm_mday:02} {clock}.{int(now % 1 * 1e6):06} {local.tm_year}"
        line = f"[{at}] [{self._module}:{level}] [pid {os.getpid()}] {_escape(text)}\n"
        try:
            os.write(self._fd, line.encode("ascii"))
        except OSError:  # ENOSPC: a log about the failure would fail as well
            pass


def _escape(text: str) -> str:
    """Return a text on one line, in ASCII."""
    text = text[:_MAX_LINE_CHARACTERS].encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def append(directory: str, path: str, line: bytes, log: Log) -> None:
    """Append a line to a file.

    Args:
        directory: absolute path, as in WSGI: one character per byte.
        path: of a file in the directory or below, likewise.
        line: with its newline.
        log: gets the reason of a failure.
    """
    try:
        fd = _open(directory.encode("latin-1"), path.encode("latin-1"))
        try:
            written = os.write(fd, line)
        finally:
            os.close(fd)
    except OSError as error:
        problem = _PROBLEMS.get(error.errno or 0, error.strerror)
    except ValueError as error:  # not ISO 8859-1, or a NUL
        problem = str(error)
    else:
        problem = "the disk is full" if written < len(line) else ""
    if problem and path not in _broken:
        _broken.add(path)
        log.write(
            "error",
            f"APACHEWS_CLOSE_LOG {path} cannot be written: {problem}; closes are not logged"
            f" until it can.  Its directory must belong to {_user()}:"
            f" install -d -o {_user()} -m 2750 {os.path.dirname(path)}",
        )
    elif not problem and path in _broken:
        _broken.discard(path)
        log.write("notice", f"APACHEWS_CLOSE_LOG {path} can be written again")


def _open(directory: bytes, path: bytes) -> int:
    """Open a file for ``append``; return the descriptor, which the caller closes.

    Raises:
        OSError
    """
    *parents, name = path[len(directory.rstrip(b"/")) + 1 :].split(b"/")
    fd = os.open(directory, _DIRECTORY_FLAGS)
    try:
        for parent in parents:
            inner = os.open(parent, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = inner
        return os.open(name, _FLAGS, _MODE, dir_fd=fd)
    finally:
        os.close(fd)


def _user() -> str:
    """Return the name of Apache's user."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
