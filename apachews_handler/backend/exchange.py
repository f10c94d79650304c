"""The exchange of request and answer with a backend.

Contract: ``ask(sock, request, key, timeout_s)`` sends the request and returns the answer.  After
``Accepted`` the socket belongs to the tunnel, and is non-blocking; after ``Relayed`` it belongs to
the answer's body.  A failure is a ``Refusal``.  Blocks for the timeout at most; on Apache's worker
threads.

How this works: one deadline bounds the answer, however its bytes drip, and the body of an answer
that is not a 101.  Most of these bodies are short, and are read before the client gets a byte:
then a body that ends early is a 502, and the client's speed does not matter.  A long body is
passed on as it comes.  If it ends early, Apache must not end its own answer as if it were whole
(a following answer on the connection would be taken for the rest): the connection is cut.

Sources: RFC 9112 8. (incomplete messages).
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from apachews.monitoring import refusals
from apachews_handler.exceptions import Refusal
from apachews_handler.native import syscalls

from .answer import Accepted, Answered, AnswerReader, BadAnswer, BodyReader

READ_BYTES: Final = 64 * 1024
# Most answers are a head of some hundred bytes.
HEAD_READ_BYTES: Final = 4 * 1024
# A body up to this is read before the client gets the answer.
SHORT_BODY_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Relayed:
    """An answer of the backend's for the client.

    Attributes:
        status: code and phrase.
        headers: for the response.
        body: iterable once; WSGI's server calls its ``close``.
    """

    status: str
    headers: list[tuple[str, str]]
    body: Body


class Body:
    """The body of an answer.

    Args:
        first: what has been read.
        rest: reads on; None if the body is complete.
        on_close: called once at the end, also if not all was read.
    """

    def __init__(
        self, first: bytes, rest: Iterator[bytes] | None, on_close: Callable[[], None]
    ) -> None:
        self._first = first
        self._rest = rest
        self._on_close: Callable[[], None] | None = on_close

    def __iter__(self) -> Iterator[bytes]:
        if self._first:
            yield self._first
        if self._rest:
            yield from self._rest

    def close(self) -> None:
        """Release the backend; a second call does nothing."""
        on_close, self._on_close = self._on_close, None
        if on_close:
            on_close()


# An answer that does not upgrade: its head, the first bytes of its body, and what reads the rest,
# None for nothing.  The iterator raises ``BadAnswer`` if the body ends early.
NotAccepted: TypeAlias = tuple[Answered, bytes, Iterator[bytes] | None]


def ask(
    sock: socket.socket, request: bytes, key: bytes, name: str, timeout_s: float
) -> Accepted | NotAccepted:
    """Send a request and wait for its answer.

    Args:
        sock: connected and non-blocking, and so again afterwards.
        request: the head.
        key: Sec-WebSocket-Key.
        name: of the backend, for the log.
        timeout_s: how long the answer may take, with its body.

    Raises:
        Refusal: 504 no answer in time; 502 an invalid one.
    """
    exchange = _Exchange(sock, time.monotonic() + timeout_s)
    try:
        exchange.send(request)
        reader = AnswerReader(key)
        answer = None
        while answer is None:
            answer = reader.receive(exchange.recv(min(HEAD_READ_BYTES, reader.room)))
        if isinstance(answer, Accepted):
            return answer
        first = bytearray(answer.body.receive(None))
        while not answer.body.is_complete and len(first) < SHORT_BODY_BYTES:
            first += answer.body.receive(exchange.recv(READ_BYTES))
        rest = None if answer.body.is_complete else _rest_of(answer.body, exchange)
        return answer, bytes(first), rest
    except TimeoutError as error:
        fact = f"{name} did not answer within {timeout_s:g} s"
        raise Refusal(refusals.BACKEND_TIMEOUT, fact) from error
    except BadAnswer as error:
        fact = f"the answer of {name} is not valid: {error}"
        raise Refusal(refusals.BAD_BACKEND_ANSWER, fact) from error
    except OSError as error:
        fact = f"the connection to {name} failed: {error.strerror or error}"
        raise Refusal(refusals.BAD_BACKEND_ANSWER, fact) from error


class _Exchange:
    """A non-blocking socket, and the deadline for all that it does."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def send(self, data: bytes) -> None:
        """Send all bytes.

        Raises:
            OSError: TimeoutError after the deadline.
        """
        sent = 0
        while True:
            try:
                sent += syscalls.send(
                    self._sock.fileno(), data[sent:]
                )  # a new connection has room for it
            except BlockingIOError:
                pass  # the request is longer than the room of the socket
            if sent == len(data):
                return
            self._wait(select.POLLOUT)

    def recv(self, size: int) -> bytes:
        """Return some bytes; b"" at the end of file.

        Raises:
            OSError: TimeoutError after the deadline.
        """
        while True:
            self._wait(select.POLLIN)
            try:
                return syscalls.recv(self._sock.fileno(), size)
            except BlockingIOError:
                pass  # poll(2) may report a segment that the kernel discards later

    def _wait(self, events: int) -> None:
        rest_s = self._deadline - time.monotonic()
        poller = select.poll()  # a descriptor may be beyond what select(2) can watch
        poller.register(self._sock, events)
        if rest_s <= 0 or not poller.poll(math.ceil(rest_s * 1000)):
            raise TimeoutError


def _rest_of(body: BodyReader, exchange: _Exchange) -> Iterator[bytes]:
    """Yield the rest of a long body.

    Raises:
        BadAnswer: it ends early, or takes too long.
    """
    while not body.is_complete:
        try:
            piece = body.receive(exchange.recv(READ_BYTES))
        except OSError as error:
            raise BadAnswer(error.strerror or "it takes too long") from error
        if piece:
            yield piece
