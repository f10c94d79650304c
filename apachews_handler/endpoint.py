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

from .exceptions import NotSetUp, Refusal, Unavailable

NOT_FOUND = "404 Not Found"


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
        raise NotSetUp(
            "WSGIScriptAlias needs SetEnv APACHEWS_ROOT, the directory of the sockets",
        )
    name = path_info.strip("/")
    # WSGI gives bytes as ISO 8859-1, httpd's variables too; file names are bytes.
    base = root.encode("latin-1")
    wanted = os.path.join(base, name.encode("latin-1") + b".ws")
    inside = os.path.realpath(base).rstrip(b"/") + b"/"
    if not name or "\0" in name or not os.path.realpath(wanted).startswith(inside):
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
            backlog stays full or no descriptor is left, 500 no permission.
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
    try:
        producer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(out_of_descriptors(error)) from error
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


def out_of_descriptors(error: OSError) -> str:
    """Return what the log says where no socket can be made."""
    return (
        f"no descriptor for another WebSocket ({error.strerror}): raise Apache's limit"
        " (LimitNOFILE= of its systemd unit, or ulimit -n)"
    )


def _refusal(path: str, timeout_s: float, error: OSError) -> Refusal:
    """Return the answer to a failed connect."""
    if error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET):
        return Unavailable(f"nobody listens on {path}: start its producer")
    if error.errno in (errno.EAGAIN, errno.ETIMEDOUT):
        return Unavailable(
            f"the producer on {path} accepts no connection: its backlog"
            f" stayed full for {timeout_s:g} s"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotSetUp(
            f"no permission to connect to {path}: user {_user()} needs the right to write"
            " to the socket and to enter its directories; see mode and group of Server()"
        )
    return NotSetUp(f"cannot connect to {path}: {error.strerror or error}")


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
