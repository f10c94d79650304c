"""What handlers are served with, in asyncio and in threads alike.

Contract: bases for ``Connection`` and the servers of ``aio`` and ``threads``.  They wait
for nothing; these know how.  Whoever calls ``take_in`` or ``finish`` sees to it that no
other thread does at the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from apachews import wire
from apachews.client import Client, connection_of
from apachews.events import ConnectionClosedEvent, Event, MessageEvent
from apachews.exceptions import ConnectionClosed
from apachews.groups import Group
from apachews.server import DRAIN_TIMEOUT_S, Server

from .mailbox import Mailbox

# What may wait for a client before send() waits for it: what the kernel takes at once.
SEND_HIGH_BYTES: Final = 65536
# How long handlers may take to end when their server has.
HANDLER_END_S: Final = 10.0


class HandledConnection:
    """One WebSocket, for its handler.

    Iterating over it gives its messages, str for text and bytes for binary, and ends
    when it is closed, however that is.

    Attributes:
        client: what ``Server`` knows it as: for groups, and for sending without waiting.
        close_code, close_reason: how it ended, see ``Event.code``; None and "" before.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.close_code: int | None = None
        self.close_reason = ""
        self._mailbox = Mailbox()
        self._behind = connection_of(client)
        self._behind.on_flushed = self._wake

    @property
    def request(self) -> wire.Open:
        """The client's request, with ``uri``, ``headers``, ``user`` and more.

        Example:
            >>> connection.request.user
            'ann'
        """
        return self.client.request

    def accept(
        self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Let the client in, with ``APACHEWS_ACCEPT producer``; see ``Client.accept``.

        Example:
            >>> connection.accept("chat")
            True
        """
        return self.client.accept(subprotocol, headers)

    def reject(
        self, status: int = 403, body: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Refuse the client, with ``APACHEWS_ACCEPT producer``; see ``Client.reject``.

        Example:
            >>> connection.reject(404, "There is no such room.")
            True
        """
        return self.client.reject(status, body, headers)

    def close(self, code: int = wire.NORMAL, reason: str = "") -> None:
        """Say goodbye; see ``Client.close``.

        Example:
            >>> connection.close(4000, "the room is closed")
        """
        self.client.close(code, reason)

    def take_in(self, event: Event) -> None:
        """Take an event of this connection.

        :meta private:
        """
        if isinstance(event, MessageEvent):
            self._mailbox.put(event.data)
            if self._mailbox.is_full:
                self._behind.pause(True)
        elif isinstance(event, ConnectionClosedEvent):
            self.close_code, self.close_reason = event.code, event.reason
        self._wake()

    def finish(self, code: int) -> None:
        """Close it, if it is not: nobody takes its messages any more.

        :meta private:
        """
        self.client.close(code)
        self._behind.on_flushed = None
        self._behind.pause(False)
        self._behind.part()

    def _wake(self) -> None:
        """Have whoever waits look again."""
        raise NotImplementedError

    def _take(self) -> str | bytes:
        """Return the oldest message; there must be one."""
        message = self._mailbox.take()
        if not self._mailbox.is_full:
            self._behind.pause(False)
        return message

    def _ended(self) -> ConnectionClosed:
        """Return what tells the handler that the client is gone."""
        return ConnectionClosed(self.close_code or wire.ABNORMAL, self.close_reason)


class HandlingServer:
    """What is common to servers that have a handler for each connection.

    Attributes:
        server: the ``apachews.Server`` behind it.
    """

    server: Server

    @property
    def path(self) -> str:
        """The socket file.

        Example:
            >>> server.path
            '/var/www/html/ws/chat.ws'
        """
        return self.server.path

    def clients(self) -> list[Client]:
        """Return the clients that are connected; see ``Server.clients``.

        Example:
            >>> [client.request.user for client in server.clients()]
            ['ann']
        """
        return self.server.clients()

    def broadcast(self, data: str | bytes | bytearray | memoryview) -> int:
        """Send a message to every client, without waiting; see ``Server.broadcast``.

        Example:
            >>> server.broadcast("lunch is ready")
            1
        """
        return self.server.broadcast(data)

    def broadcast_json(self, value: Any) -> int:
        """Send a value to every client as a JSON text; see ``Server.broadcast_json``.

        Example:
            >>> server.broadcast_json({"menu": ["soup", "fish"]})
            1
        """
        return self.server.broadcast_json(value)

    def group(self, name: str) -> Group:
        """Return the group of this name; see ``Server.group``.

        Example:
            >>> server.group("room").add(connection.client)
            True
        """
        return self.server.group(name)

    def drain(self, timeout: float = DRAIN_TIMEOUT_S) -> None:
        """Hand every client on; see ``Server.drain``.  Then ``wait_closed()``.

        A handler goes on until it returns, and what it sends until then arrives.

        Example:
            >>> server.drain(timeout=10)
        """
        self.server.drain(timeout)
