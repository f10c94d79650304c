"""Files that lines are added to: the log of closes.

Contract: ``append(path, line, log)`` adds a whole line, or says in the error log why it
cannot, once until it can again.  On the bridge's thread mostly; any will do.  It waits
for a disk, never for a reader.

How this works: the file is opened for every line.  So it may be moved away at any time,
by logrotate too, and the next line makes a new one; no descriptor is kept, which a
custodian would have to carry along; and lines of several processes do not mix
(O_APPEND).  A WebSocket closes once: 20 µs.

Sources: open(2), O_APPEND and O_NONBLOCK; write(2).
"""

from __future__ import annotations

import errno
import os
import pwd
from typing import Final, Protocol

_FLAGS: Final = (
    os.O_WRONLY
    | os.O_APPEND
    | os.O_CREAT
    | os.O_CLOEXEC
    | os.O_NOCTTY
    | os.O_NONBLOCK
    # What the setting allows is a name; a link would lead to any file.
    | os.O_NOFOLLOW
)
_MODE: Final = 0o640
# Files of which the error log has a line that they cannot be written; few, as they come
# from Apache's configuration.
_broken: set[str] = set()


class Log(Protocol):
    """Where it is told; ``httpd.ErrorLog`` is one."""

    def write(self, level: str, text: str) -> None:
        """Log a line at a level."""


def append(path: str, line: bytes, log: Log) -> None:
    """Add a line to a file.

    Args:
        path: absolute; as WSGI has it, a character for each byte.
        line: with its newline.
        log: for what is wrong.
    """
    try:
        fd = os.open(path.encode("latin-1"), _FLAGS, _MODE)
        try:
            written = os.write(fd, line)
        finally:
            os.close(fd)
    except OSError as error:
        problem = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
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


def _user() -> str:
    """Return the name of Apache's user."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
