"""One connected client, as the producer sees it.

Contract: made by ``Server``; every method returns at once, whatever the client
does.  For any thread.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from apachews.wire.answer import Answer

from . import wire
from ._connection import Connection, State
from .exceptions import NotAsked

if TYPE_CHECKING:
    from .groups import Group

_TEXT_WHOLE: Final = wire.FIN | wire.TEXT
_BINARY_WHOLE: Final = wire.FIN | wire.BINARY
_ENDED: Final = frozenset({State.PARTING, State.CLOSING, State.CLOSED})


class Client:
    """A connected client.

    Attributes:
        state: the program's own: whatever it wants to know of this client.

    Example:
        >>> client.state = {"name": "Ann"}
        >>> client.request.path, client.request.query, client.request.user
        ('/ws/chat.ws', {'room': ['1']}, 'ann')
        >>> client.send(f"hello, {client.state['name']}")
        True
    """

    __slots__ = ("__weakref__", "_connection", "_groups", "_id", "_ping", "_request", "state")

    def __init__(self, connection: Connection, open_id: str, opening: bytes) -> None:
        self._connection = connection
        self._groups: set[Group] | None = None
        self._id = open_id
        self._ping: tuple[bytes, float] | None = None  # the last: payload, when
        # The payload of the OPEN, until somebody asks: a third of the memory of what it
        # says, and most programs never ask, or about few.
        self._request: bytes | wire.Open = opening
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<Client {self._id} {self.request.uri}>"

    @property
    def request(self) -> wire.Open:
        """The client's request.

        It has ``uri``, ``headers``, ``header(name)``, ``path``, ``query``, ``cookies``,
        ``remote``, ``user`` and more; see ``apachews.wire.Open``.

        Example:
            >>> client.request.path, client.request.query, client.request.user
            ('/ws/chat.ws', {'room': ['1']}, 'ann')
        """
        request = self._request
        if isinstance(request, bytes):
            request = self._request = wire.Open.decode(request)
        return request

    @property
    def queued_bytes(self) -> int:
        """What waits for the client to read; 0 for one that is gone.

        Beside what the kernel has, some hundred KB, and Apache, ``APACHEWS_MAX_BUFFER``.

        Example:
            >>> client.send("hello")
            True
            >>> client.queued_bytes  # it reads as fast as the program writes
            0
        """
        return self._connection.queued_bytes

    @property
    def has_ended(self) -> bool:
        """True once nothing can be sent any more, because it is gone or being closed.

        Example:
            >>> client.has_ended
            False
            >>> client.close()
            >>> client.has_ended
            True
        """
        return self._connection.state in _ENDED

    @property
    def groups(self) -> list[Group]:
        """The groups it is in.

        Example:
            >>> server.group("room").add(client)
            True
            >>> client.groups
            [<Group 'room' of 1>]
        """
        return list(self._groups or ())

    def guid(self) -> str:
        """Return the connection's id: unique, and safe as a dictionary key.

        Example:
            >>> clients = {client.guid(): client}
            >>> event.client().guid() in clients
            True
        """
        return self._id

    def accept(
        self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Let the client in, where Apache leaves that to the producer.

        That is with ``SetEnv APACHEWS_ACCEPT producer``.  Until then the client has
        no response, is not among ``Server.clients()``, and nothing can be sent.

        Args:
            subprotocol: one of ``request.offered``, or None.
            headers: names and values to add to the response.

        Returns:
            False where nobody waits for it: it was answered, or Apache gave up
            (``APACHEWS_CONNECT_TIMEOUT``, 5 s), or accepts by itself.

        Raises:
            NotAsked: Apache accepts by itself, and there is a subprotocol or a
                header that would be lost.
            ValueError: a subprotocol that was not offered, or a header that may
                not be sent.

        Example:
            >>> client.request.offered
            ('chat',)
            >>> client.accept("chat", headers=[("Set-Cookie", "seen=1")])
            True
        """
        answer = Answer.accept(subprotocol, headers)
        if not self.request.answer_required and (subprotocol is not None or answer.headers):
            raise NotAsked("accept() with a subprotocol or headers")
        if subprotocol is not None and subprotocol not in self.request.offered:
            offered = ", ".join(self.request.offered) or "none"
            raise ValueError(f"the client did not offer {subprotocol!r:.80}, but {offered}")
        with self._connection.lock:
            return self._connection.send_answer(answer)

    def reject(
        self, status: int = 403, body: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Refuse the client with an HTTP response, where Apache leaves that to the producer.

        A ConnectionClosed event follows.

        Args:
            status: 300 to 599.
            body: text; the response says it is text/plain, unless a header does.
            headers: names and values to add to the response.

        Returns:
            False where nobody waits for it: it was answered, or Apache gave up.

        Raises:
            NotAsked: Apache accepts by itself; the client is in.
            ValueError: a status or a header that may not be sent, or too much.

        Example:
            >>> client.reject(404, "There is no such room.")
            True
        """
        answer = Answer.reject(status, headers, body)
        if not self.request.answer_required:
            raise NotAsked("reject()")
        with self._connection.lock:
            return self._connection.send_answer(answer)

    def send(self, data: str | bytes | bytearray | memoryview) -> bool:
        r"""Send a message: str as text, bytes and the like as binary.

        Returns:
            True: sent, or queued for a client that is slow.  False: the client
            is gone or being closed; or more than ``max_queue_bytes`` wait for it
            already, and this message cost it the connection, with code 1013.  A
            ConnectionClosed event tells.

        Raises:
            TypeError: neither text nor bytes.
            UnicodeEncodeError: text with surrogates, which UTF-8 cannot carry.

        Example:
            >>> client.send("text")
            True
            >>> client.send(b"\x00\x01 binary")
            True
        """
        frame = encode_message(data)
        connection = self._connection
        with connection.lock:
            return connection.send_frame(frame)

    def send_json(self, value: Any) -> bool:
        """Send a value as a JSON text; see ``send``.

        Raises:
            TypeError: something in it has no JSON.
            ValueError: it refers to itself, or has a number that is not finite.

        Example:
            >>> client.send_json({"count": 3})
            True
        """
        return self.send_frame(encode_json(value))

    def send_frame(self, frame: bytes) -> bool:
        """Send what ``encode_message`` gave, as ``send`` does.

        :meta private:
        """
        with self._connection.lock:
            return self._connection.send_frame(frame)

    def ping(self) -> bool:
        """Ask the client for a sign of life; a Pong event tells how long it took.

        Browsers answer by themselves.  (Apache pings every client too, by itself, and
        closes who does not answer: ``APACHEWS_PING_INTERVAL``.)

        Returns:
            False where the client is gone or being closed.

        Example:
            >>> client.ping()
            True
            >>> server.dequeue().latency_s < 10
            True
        """
        payload = os.urandom(8)
        with self._connection.lock:
            self._ping = payload, time.monotonic()
            return self._connection.send_frame(wire.encode_frame(wire.PING, payload))

    def receive_pong(self, payload: bytes) -> float | None:
        """Return the seconds since the ping that this answers; None: it answers none.

        :meta private:
        """
        if self._ping is None or self._ping[0] != payload:
            return None
        latency_s, self._ping = time.monotonic() - self._ping[1], None
        return latency_s

    def joined(self, group: Group) -> None:
        """Note that it is in a group.

        :meta private:
        """
        if self._groups is None:
            self._groups = set()
        self._groups.add(group)

    def left(self, group: Group) -> None:
        """Note that it is in a group no more.

        :meta private:
        """
        if self._groups is not None:
            self._groups.discard(group)

    def leave_groups(self) -> None:
        """Leave all groups: the connection has ended.

        :meta private:
        """
        for group in self.groups:
            group.discard(self)

    def close(self, code: int = wire.NORMAL, reason: str = "") -> None:
        """Say goodbye; a ConnectionClosed event follows.

        Queued messages go first, as far as the client takes them within 10 s
        (``APACHEWS_CLOSE_TIMEOUT`` in Apache, ``CLOSE_TIMEOUT_S`` here).

        To a client that was not accepted yet it is a ``reject(503)``.

        Closing again, or closing a client that is gone, does nothing.

        Raises:
            ValueError: a code that may not be sent (use 1000-1003, 1007-1014 or
                3000-4999), or a reason of more than 123 bytes in UTF-8.

        Example:
            >>> client.close(4000, "the room is closed")
            >>> server.dequeue().code  # what the client answered
            4000
        """
        with self._connection.lock:
            self._connection.send_close(code, reason)


def encode_message(data: str | bytes | bytearray | memoryview) -> bytes:
    """Return the frame of one message: TEXT for str, BINARY for bytes and the like.

    Raises:
        TypeError: something else.
        UnicodeEncodeError: text with surrogates.
    """
    if isinstance(data, str):
        first, payload = _TEXT_WHOLE, data.encode()
    elif isinstance(data, (bytes, bytearray, memoryview)):
        first, payload = _BINARY_WHOLE, bytes(data)
    else:
        raise TypeError(f"a message is str or bytes, not {type(data).__name__}: {data!r:.80}")
    length = len(payload)
    # (Short messages are many: their header without another call.)
    return (bytes((first, length)) if length < 126 else wire.encode_header(first, length)) + payload


def encode_json(value: Any) -> bytes:
    """Return the frame of one message with a JSON text.

    Raises:
        TypeError, ValueError: see ``Client.send_json``.
    """
    # Not finite numbers are no JSON (RFC 8259 6), though Python's module writes them.
    return encode_message(
        json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    )


def connection_of(client: Client) -> Connection:
    """Return what is behind a client; for the library's own forms of serving."""
    return client._connection
