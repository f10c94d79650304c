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
from ._listening import endpoint
from ._listening.endpoint import Outcome, Unreachable
from .client import Delivery
from .exceptions import NotASocket, NotListening, PublishError

# A producer answers between two events; a worker waits for its siblings for half of this time.
TIMEOUT_S: Final = 10.0


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
        NotListening: no producer listens there.
        PublishError: the producer ended before it answered, or does not know PUBLISH.
        TimeoutError: the producer is too busy; it may still send the message later.
        NotASocket: it is neither a socket nor the file of a loopback socket.
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
        sock = endpoint.connect(path, timeout_s)
    except Unreachable as failure:
        raise _error_of(failure, path) from failure
    sock.settimeout(timeout_s)
    return sock


def _error_of(failure: Unreachable, path: str) -> Exception:
    """Return the exception of ``publish`` for a failed connection."""
    if failure.outcome in (Outcome.NOT_THERE, Outcome.REFUSED):
        return NotListening(path)
    if failure.outcome is Outcome.NOT_A_SOCKET:
        return NotASocket(path)
    if failure.outcome is Outcome.BUSY:
        return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path)
    error = failure.error
    return OSError(error.errno, error.strerror, path) if isinstance(error, OSError) else error


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
