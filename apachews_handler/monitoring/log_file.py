"""Where lines go besides httpd's own log: the log of closes, a file of httpd's, syslog.

Contract: ``append(directory, path, line, log)`` adds a whole line, or says in the error log
why it cannot, once until it can again.  On the bridge's thread mostly; any will do.  It
waits for a disk, never for a reader.  ``FileLog`` writes to an error log that httpd opened in
another process; ``Syslog`` stands in for one that is a pipe.

The server's configuration names the directory; the author of an .htaccess file may have
chosen the path.  So the way from the directory to the file follows no symbolic link, and
each step is taken from the descriptor of the one before: a rename meanwhile leads nowhere
else.

How this works: the file is opened for every line.  So it may be moved away at any time,
by logrotate too, and the next line makes a new one; no descriptor is kept, which a
custodian would have to carry along; and lines of several processes do not mix
(O_APPEND).  A WebSocket closes once: 20 µs.

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
# Files of which the error log has a line that they cannot be written; few, as they come
# from Apache's configuration.
_broken: set[str] = set()


class Log(Protocol):
    """Where it is told; ``httpd.ErrorLog`` is one."""

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
    """A log in place of one that is a pipe; ``syslog.openlog`` was called."""

    def write(self, level: str, text: str) -> None:
        """Log a line."""
        syslog.syslog(LEVELS[level], text)

    def descriptor(self) -> int | None:
        """Return None: libc has it."""
        return None

    def style(self) -> tuple[str, int]:
        """Return what ``Log.style`` wants; every level is kept."""
        return "apachews", LEVELS["debug"]


class FileLog:
    """An error log of httpd's, by its descriptor alone.

    Lines look as with httpd's default ``ErrorLogFormat``.

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
        """Log a line; without room on the disk it is lost, as httpd's own are."""
        if LEVELS[level] > self._threshold:
            return
        now = time.time()
        local = time.localtime(now)
        # No language but English, whatever the locale.
        day, month = _DAYS[local.tm_wday], _MONTHS[local.tm_mon - 1]
        clock = time.strftime("%H:%M:%S", local)
        at = f"{day} {month} {local.tm_mday:02} {clock}.{int(now % 1 * 1e6):06} {local.tm_year}"
        line = f"[{at}] [{self._module}:{level}] [pid {os.getpid()}] {_escape(text)}\n"
        try:
            os.write(self._fd, line.encode("ascii"))
        except OSError:
            pass


def _escape(text: str) -> str:
    """Return a text on one line, in ASCII."""
    text = text[:_MAX_LINE_CHARACTERS].encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def append(directory: str, path: str, line: bytes, log: Log) -> None:
    """Add a line to a file.

    Args:
        directory: absolute; as WSGI has it, a character for each byte.
        path: of a file in it, or below, as well.
        line: with its newline.
        log: for what is wrong.
    """
    try:
        fd = _open(directory.encode("latin-1"), path.encode("latin-1"))
        try:
            written = os.write(fd, line)
        finally:
            os.close(fd)
    except OSError as error:
        problem = _PROBLEMS.get(error.errno or 0, error.strerror)
    except ValueError as error:  # no bytes, or a NUL among them
        problem = str(error)
    else:
        problem = "the disk is full" if written < len(line) else ""
    if problem and path not in _broken:
        _broken.add(path)
        log.write(
            "error",
            f"APACHEWS_CLOSE_LOG {path} cannot be written: {problem}; closes are missing there"
            f" until it can.  Its directory must be {_user()}'s:"
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
