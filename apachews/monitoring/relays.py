"""The relay of a producer: its state, and how to ask for it.

Contract: ``RelayStatus`` is data.  ``ask_relays`` asks producers by their sockets at the same time
(PUBLISH with ``status``, docs/reference/wire.md), blocks for at most its time limit, and keeps no
state.  A producer without a relay, an older one or one in another language has none.
"""

from __future__ import annotations

import dataclasses
import select
import socket
import time
from collections.abc import Iterable
from typing import Any, Final

from apachews import wire
from apachews._listening import endpoint
from apachews._listening.endpoint import Unreachable
from apachews.exceptions import WireError

# A producer answers between two events; the status page does not wait longer for a busy one.
TIMEOUT_S: Final = 0.5
# An answer has some hundred bytes.
MAX_ANSWER_BYTES: Final = 65536


@dataclasses.dataclass(frozen=True, slots=True)
class RelayStatus:
    """The relay of one producer; with workers, the sum of all of them.

    Attributes:
        address: the broker's, without user and password.
        name: of the relay: producers with the same name form one.
        is_up: connected, and all subscriptions are proven; of workers: of all.
        published: messages that the broker has accepted.
        received: messages of other producers.
        dropped: messages that were dropped: the broker was out of reach for too long, this
            program was too slow, or another worker of it.
        gaps: how often the connection was lost and restored; messages may have been missed.
        lag_s: the latest round trip to the broker; of workers: the longest.
        endpoint: the producer's socket file; "" in the producer itself.
    """

    address: str
    name: str
    is_up: bool
    published: int
    received: int
    dropped: int
    gaps: int
    lag_s: float
    endpoint: str = ""

    def document(self) -> dict[str, Any]:
        """Return it as an object for JSON."""
        return {field: getattr(self, field) for field in _FIELDS}

    @classmethod
    def from_document(cls, document: Any, endpoint: str) -> RelayStatus | None:
        """Return what ``document`` returned; None if it is something else."""
        if not isinstance(document, dict):
            return None
        try:
            values: dict[str, Any] = {field: document[field] for field in _TYPES}
        except KeyError:
            return None
        for field, value in values.items():
            # Not isinstance(): a bool is an int to Python.
            if type(value) not in _TYPES[field]:
                return None
            if field in _NUMBERS and not 0 <= value < 1e300:
                return None
        return cls(**values, endpoint=endpoint)


_FIELDS: Final = tuple(field.name for field in dataclasses.fields(RelayStatus))
_NUMBERS: Final = ("published", "received", "dropped", "gaps", "lag_s")
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "address": (str,),
    "name": (str,),
    "is_up": (bool,),
    "published": (int,),
    "received": (int,),
    "dropped": (int,),
    "gaps": (int,),
    "lag_s": (int, float),
}


def ask_relays(paths: Iterable[str], timeout_s: float = TIMEOUT_S) -> tuple[RelayStatus, ...]:
    """Return the relays of the producers that listen on these socket files.

    Args:
        paths: the socket files.
        timeout_s: for all of them together.
    """
    deadline = time.monotonic() + timeout_s
    asked: dict[int, tuple[str, socket.socket]] = {}
    answers: dict[str, bytes] = {}
    try:
        for path in paths:
            try:
                sock = endpoint.connect(path, max(0.01, deadline - time.monotonic()))
                sock.settimeout(timeout_s)
                sock.sendall(wire.Publish(None, asks_status=True).encode())
                # Its end tells a producer that does not know the question that no message
                # follows, so that it closes the connection at once.
                sock.shutdown(socket.SHUT_WR)
            except (Unreachable, OSError):
                continue
            asked[sock.fileno()] = path, sock
            answers[path] = b""
        poll = select.poll()
        for fd in asked:
            poll.register(fd, select.POLLIN)
        left = set(asked)
        while left and (wait_s := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(wait_s * 1000):
                path, sock = asked[fd]
                data = _receive(sock)
                answers[path] += data
                if not data or len(answers[path]) > MAX_ANSWER_BYTES:
                    poll.unregister(fd)
                    left.discard(fd)
    finally:
        for _, sock in asked.values():
            sock.close()
    found = (_read(path, answer) for path, answer in answers.items())
    return tuple(relay for relay in found if relay is not None)


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(4096)
    except OSError:
        return b""


def _read(path: str, answer: bytes) -> RelayStatus | None:
    header = wire.decode_header(answer, 0)
    if header is None or header[0] != wire.FIN | wire.PUBLISH:
        return None
    _, length, start = header
    try:
        published = wire.Published.decode(answer[start : start + length])
    except WireError:
        return None
    return RelayStatus.from_document(published.relay, path)
