"""Messages for a producer's clients, from any other program, on any machine with a relay.

Contract: one call, which blocks; no thread, no state.  It sends PUBLISH
(docs/reference/wire.md), which takes a few lines in any language; or it publishes on the channel
of a relay.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from . import wire
from ._listening import endpoint
from ._listening.endpoint import Outcome, Unreachable
from ._relay import address
from ._relay.engine import EngineError, Message
from ._relay.envelope import NOWHERE, Envelope
from ._relay.relay import DEFAULT_MAX_MESSAGE_BYTES, STORED_IF_KEPT, open_engine
from .delivery import Delivery
from .exceptions import MessageTooLarge, NotASocket, NotListening, PublishError, RelayError

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
        path: the socket file, or a loopback socket's.  Or the address of a relay with its
            name, ``redis://host:6379/0?name=chat.ws`` (see ``Server``): the message reaches
            the clients of every producer with this relay.
        data: as ``Client.send``.
        group: name of the group that receives it (``Server.group``); None: every client.
        timeout: seconds to wait at most, for the connection and for the answer.

    Returns:
        The number of clients that it reached: 0 without a client, or without such a group.
        Clients of other machines are not counted; ``relayed`` is True if the message was
        given to the relay, and with a relay's address, if a producer has received it.

    Raises:
        NotListening: no producer listens there.
        PublishError: the producer ended before it answered, refused the message because the
            relay does not carry it, or does not know PUBLISH.
        RelayError: the relay's address is invalid, or the relay cannot be reached.
        MessageTooLarge: for a relay, more than 1 MiB.
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
    if address.is_relay(name):
        return _publish_to_relay(name, frame, group)
    with _connect(name, timeout) as sock:
        try:
            sock.sendall(wire.Publish(group).encode() + frame)
            return _receive_answer(sock, name)
        except ConnectionError as error:
            raise PublishError(name) from error


def _publish_to_relay(url: str, frame: bytes, group: str | None) -> Delivery:
    target = address.parse(url)
    if target.name is None:
        raise RelayError(target.shown, "no name of a relay", "add ?name=chat.ws")
    envelope = Envelope.of_frame(NOWHERE, frame)
    if len(envelope.payload) > DEFAULT_MAX_MESSAGE_BYTES:
        raise MessageTooLarge(len(envelope.payload), DEFAULT_MAX_MESSAGE_BYTES)
    engine = open_engine(target, target.name)
    try:
        engine.connect()
        stored = STORED_IF_KEPT if group is not None and engine.has_history else None
        reached, position = engine.publish_once(Message(group, envelope.encode(), stored))
    except EngineError as error:
        raise RelayError(target.shown, str(error), "check that the relay runs") from error
    finally:
        engine.close()
    return Delivery(0, 0)._with_relayed(reached > 0)._with_position(position)


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
                if published.error is not None:
                    raise PublishError(path, published.error, "no client has received it")
                delivery = Delivery(published.reached, published.skipped)
                return delivery._with_relayed(published.relayed)
