"""One connected client, as the producer sees it.

Contract: made by ``Server``; every method returns at once, whatever the client
does.  For the thread that runs ``dequeue()``.
"""

from __future__ import annotations

from . import wire
from .connection import Connection


class Client:
    """A connected client.

    Attributes:
        request: the client's request: ``uri``, ``headers``, ``header(name)``,
            ``remote``, ``user`` and more; see ``apachews.wire.Open``.
    """

    __slots__ = ("__weakref__", "_connection", "request")

    def __init__(self, connection: Connection, request: wire.Open) -> None:
        self._connection = connection
        self.request = request

    def __repr__(self) -> str:
        return f"<Client {self.request.id} {self.request.uri}>"

    def guid(self) -> str:
        """Return the connection's id: unique, and safe as a dictionary key."""
        return self.request.id

    def send(self, data: str | bytes | bytearray | memoryview) -> bool:
        """Send a message: str as text, bytes and the like as binary.

        Returns:
            True: sent, or queued for a client that is slow.  False: the client
            is gone or being closed; or more than ``max_queue_bytes`` wait for it
            already, and this message cost it the connection, with code 1013.  A
            ConnectionClosed event tells.

        Raises:
            TypeError: neither text nor bytes.
            UnicodeEncodeError: text with surrogates, which UTF-8 cannot carry.
        """
        return self._connection.send_frame(encode_message(data))

    def close(self, code: int = wire.NORMAL, reason: str = "") -> None:
        """Say goodbye: queued messages go first; a ConnectionClosed event follows.

        Closing again, or closing a client that is gone, does nothing.

        Raises:
            ValueError: a code that may not be sent (use 1000-1003, 1007-1014 or
                3000-4999), or a reason of more than 123 bytes in UTF-8.
        """
        self._connection.send_close(code, reason)


def encode_message(data: str | bytes | bytearray | memoryview) -> bytes:
    """Return the frame of one message: TEXT for str, BINARY for bytes and the like.

    Raises:
        TypeError: something else.
        UnicodeEncodeError: text with surrogates.
    """
    if isinstance(data, str):
        return wire.encode_frame(wire.TEXT, data.encode())
    if isinstance(data, (bytes, bytearray, memoryview)):
        return wire.encode_frame(wire.BINARY, bytes(data))
    raise TypeError(f"a message is str or bytes, not {type(data).__name__}: {data!r:.80}")
