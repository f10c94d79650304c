"""From a request to the producer's socket.

Contract: ``locate(root, path_info)`` names a socket file inside a directory;
``connect(path, timeout_s)`` yields a connected, non-blocking socket, which the
caller closes.  Both raise ``Refusal`` with the HTTP answer.  ``connect`` may
block for the timeout; called on Apache's worker threads.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct

from .exceptions import Refusal

NOT_FOUND = "404 Not Found"
UNAVAILABLE = "503 Service Unavailable"
SERVER_ERROR = "500 Internal Server Error"
RETRY_AFTER = (("Retry-After", "5"),)  # seconds: what a producer needs to restart

_TOLD_BROKEN = "The WebSocket is not set up correctly."


def locate(root: str, path_info: str) -> str:
    """Return the path of the socket that ``/chat`` names: ``chat.ws`` in the root.

    Args:
        root: absolute path of a directory, or "" where none is set.
        path_info: rest of the URL's path, decoded by httpd.

    Raises:
        Refusal: 500 without a root; 404 for a name that is empty, or that leads
            out of the root, be it by ``..`` or by a symbolic link.
    """
    if not root:
        raise Refusal(
            SERVER_ERROR,
            _TOLD_BROKEN,
            "WSGIScriptAlias needs SetEnv APACHEWS_ROOT, the directory of the sockets",
        )
    name = path_info.strip("/")
    # WSGI gives bytes as ISO 8859-1; file names are bytes.
    wanted = os.path.join(os.fsencode(root), name.encode("latin-1") + b".ws")
    real_root = os.path.realpath(os.fsencode(root))
    if not name or "\0" in name or not os.path.realpath(wanted).startswith(real_root + b"/"):
        raise Refusal(
            NOT_FOUND,
            "There is no WebSocket here.",
            f"{path_info!r:.200} names no socket inside {root}",
        )
    return os.fsdecode(wanted)


def connect(path: str, timeout_s: float) -> socket.socket:
    """Connect to a producer.

    Raises:
        Refusal: 404 no such file, 403 no socket, 503 nobody listens there or the
            backlog stays full, 500 no permission.
    """
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise Refusal(
                "403 Forbidden",
                "There is no WebSocket here.",
                f"{path} is no socket: a producer must create it",
            )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refusal(
            NOT_FOUND,
            "There is no WebSocket here.",
            f"{path} does not exist: is the producer running?",
        ) from error
    except OSError as error:
        raise _refusal(path, timeout_s, error) from error
    producer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A blocking connect() waits while the backlog is full, for as long as the
        # socket may wait to send; a non-blocking one fails at once (unix(7)).
        producer.setsockopt(
            socket.SOL_SOCKET,
            socket.SO_SNDTIMEO,
            struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1_000_000)),
        )
        producer.connect(path)
        producer.setblocking(False)
    except OSError as error:
        producer.close()
        raise _refusal(path, timeout_s, error) from error
    return producer


def _refusal(path: str, timeout_s: float, error: OSError) -> Refusal:
    """Return the answer to a failed connect."""
    if error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET):
        return Refusal(
            UNAVAILABLE,
            "The WebSocket is not available at the moment.",
            f"nobody listens on {path}: start its producer",
            RETRY_AFTER,
        )
    if error.errno in (errno.EAGAIN, errno.ETIMEDOUT):
        return Refusal(
            UNAVAILABLE,
            "The WebSocket is busy at the moment.",
            f"the producer on {path} accepts no connection: its backlog"
            f" stayed full for {timeout_s:g} s",
            RETRY_AFTER,
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return Refusal(
            SERVER_ERROR,
            _TOLD_BROKEN,
            f"no permission to connect to {path}: user {_user()} needs the right to write"
            " to the socket and to enter its directories; see mode and group of Server()",
        )
    return Refusal(
        SERVER_ERROR, _TOLD_BROKEN, f"cannot connect to {path}: {error.strerror or error}"
    )


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
