"""Messages for a producer's clients, from any other program on the machine.

Contract: one call, which blocks; no thread, no state.  It sends PUBLISH
(docs/reference/wire.md), which takes a few lines in any language.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from . import wire
from ._listening import loopback
from .client import Delivery
from .exceptions import NobodyListens, NotASocket, PublishError

# A producer answers between two events; a worker waits for its siblings for half of this time.
TIMEOUT_S: Final = 10.0

_NOBODY: Final = frozenset({errno.ENOENT, errno.ECONNREFUSED})


def publish(
    path: str | os.PathLike[str],
    data: str | bytes | bytearray | memoryview,
    group: str | None = None,
    *,
    timeout: float = TIMEOUT_S,
) -> Delivery:
    """Send a message to the clients of the producer that listens on a socket file.

    For any program: a cron job, another web application, a shell (``apachews publish``).
    It needs the right to write to the file.

    Args:
        path: the socket file, or a loopback socket's.
        data: as ``Client.send``.
        group: name of the group that receives it (``Server.group``); None: every client.
        timeout: seconds to wait at most, for the connection and for the answer.

    Returns:
        The number of clients that it reached: 0 without a client, or without such a group.

    Raises:
        NobodyListens: no producer listens there.
        PublishError: the producer ended before it answered, or does not know PUBLISH.
        TimeoutError: it is too busy; the message may still be delivered later.
        NotASocket: the file is neither a socket nor that of a loopback socket.
        OSError: no permission; the path is in it.
        TypeError, UnicodeEncodeError: as ``Client.send``.

    Example:
        >>> publish("/var/www/html/ws/chat.ws", "the site is closed at noon")
        Delivery(reached=1, skipped=0)
    """
    name = os.fspath(path)
    frame = wire.encode_message(data)
    with _connect(name, timeout) as sock:
        try:
            sock.sendall(wire.Publish(group).encode() + frame)
            return _receive_answer(sock, name)
        except ConnectionError as error:
            raise PublishError(name) from error


def _connect(path: str, timeout_s: float) -> socket.socket:
    try:
        if os.path.isfile(path):
            sock = loopback.dial(path, timeout_s)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout_s)
            try:
                sock.connect(path)
            except BaseException:
                sock.close()
                raise
    except loopback.NotAnAddress as error:
        raise NotASocket(path) from error
    except loopback.NotProven as error:
        raise NobodyListens(path) from error
    except OSError as error:
        if error.errno in _NOBODY:
            raise NobodyListens(path) from error
        if error.errno is None and not isinstance(error, TimeoutError):  # Python's own check
            error = OSError(errno.ENAMETOOLONG, str(error))
        error.filename = path
        raise error
    sock.settimeout(timeout_s)
    return sock


def _receive_answer(sock: socket.socket, path: str) -> Delivery:
    data = b""
    while True:
        more = sock.recv(4096)
        if not more:
            raise PublishError(path)
        data += more
        header = wire.decode_header(data, 0)
        if header is not None:
            first, length, start = header
            if first != wire.FIN | wire.PUBLISH:
                raise PublishError(path)
            if len(data) >= start + length:
                published = wire.Published.decode(data[start : start + length])
                return Delivery(published.reached, published.skipped)
