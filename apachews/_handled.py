"""Base classes of ``aio`` and ``threads``: a handler function for each connection.

Contract: these bases wait for nothing; ``aio`` and ``threads`` do.  The caller of ``_deliver``
and ``_finish`` ensures that no other thread uses the connection at the time.

This module stands beside ``aio`` and ``threads`` and not in ``_server/``, because it uses
``Server``, which is above that folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from . import wire
from ._server.connection import connection_of
from ._server.mailbox import Mailbox
from .client import Client, Group
from .delivery import Scope
from .events import ConnectionClosedEvent, Event, GapEvent, MessageEvent
from .exceptions import ConnectionClosed
from .monitoring.relays import RelayStatus
from .server import DRAIN_TIMEOUT_S, Server

# send() waits while more is queued for the client: as much as the kernel accepts at once.
SEND_HIGH_BYTES: Final = 65536
# The time limit for handlers to return after their server has ended.
HANDLER_END_S: Final = 10.0


# A function for the events that belong to no connection.
OnEvent = Callable[[Event], object]


class HandledConnection:
    """One WebSocket, for its handler.

    Iterating over it returns its messages, str for text and bytes for binary, and stops
    when the connection is closed, for whatever reason.

    Attributes:
        client: the ``Client``: for groups, and for sending without waiting.
        close_code, close_reason: how it ended, see ``Event.code``; None and "" before.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.close_code: int | None = None
        self.close_reason = ""
        self._mailbox = Mailbox()
        self._connection = connection_of(client)
        self._connection.on_flushed = self._wake

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
        """Accept the client, with ``APACHEWS_ACCEPT producer``; see ``Client.accept``.

        Example:
            >>> connection.accept("chat")
            True
        """
        return self.client.accept(subprotocol, headers)

    def reject(
        self, status: int = 403, body: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Reject the client, with ``APACHEWS_ACCEPT producer``; see ``Client.reject``.

        Example:
            >>> connection.reject(404, "This room does not exist.")
            True
        """
        return self.client.reject(status, body, headers)

    def close(self, code: int = wire.NORMAL, reason: str = "") -> None:
        """Close the connection; see ``Client.close``.

        Example:
            >>> connection.close(4000, "the room is closed")
        """
        self.client.close(code, reason)

    def _deliver(self, event: Event) -> None:
        """Accept an event of this connection from the server."""
        if isinstance(event, MessageEvent):
            self._mailbox.put(event.data)
            if self._mailbox.is_full:
                self._connection.pause(True)
        elif isinstance(event, ConnectionClosedEvent):
            self.close_code, self.close_reason = event.code, event.reason
        self._wake()

    def _finish(self, code: int) -> None:
        """Close the connection, if it is open: its handler has returned."""
        self.client.close(code)
        self._connection.on_flushed = None
        # Read on: the answer to the CLOSE must arrive.  Messages are ignored from here on.
        self._connection.pause(False)
        self._connection.finish_move()

    def _wake(self) -> None:
        """Wake the handler, if it waits."""
        raise NotImplementedError

    def _next_message(self) -> str | bytes:
        """Remove and return the oldest message; there must be one."""
        message = self._mailbox.get()
        if not self._mailbox.is_full:
            self._connection.pause(False)
        return message

    def _closed_error(self) -> ConnectionClosed:
        """Return the exception that tells the handler that the client is gone."""
        return ConnectionClosed(self.close_code or wire.ABNORMAL, self.close_reason)


class HandlingServer:
    """What the servers of ``aio`` and ``threads`` have in common.

    Attributes:
        server: the ``apachews.Server`` inside.
    """

    server: Server
    _on_event: OnEvent | None = None

    def _deliver_event(self, event: Event) -> None:
        """Call the program's function for an event that belongs to no connection."""
        is_shared = event.client_or_none() is None or isinstance(event, GapEvent)
        if self._on_event is not None and is_shared:
            self._on_event(event)

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

    def broadcast(
        self, data: str | bytes | bytearray | memoryview, scope: Scope = "everywhere"
    ) -> int:
        """Send a message to every client, without waiting; see ``Server.broadcast``.

        Example:
            >>> server.broadcast("lunch is ready")
            1
        """
        return self.server.broadcast(data, scope)

    def broadcast_json(self, value: Any, scope: Scope = "everywhere") -> int:
        """Send a value to every client as a JSON text; see ``Server.broadcast_json``.

        Example:
            >>> server.broadcast_json({"menu": ["soup", "fish"]})
            1
        """
        return self.server.broadcast_json(value, scope)

    def group(self, name: str, **history: Any) -> Group:
        """Return the group of this name; see ``Server.group`` for further arguments.

        Example:
            >>> server.group("room").add(connection.client)
            True
        """
        return self.server.group(name, **history)

    def relay_status(self) -> RelayStatus | None:
        """Return the state of the relay; see ``Server.relay_status``.

        Example:
            >>> server.relay_status() is None
            True
        """
        return self.server.relay_status()

    def drain(self, timeout: float = DRAIN_TIMEOUT_S) -> None:
        """Hand all clients over; see ``Server.drain``.  Then ``wait_closed()``.

        A handler continues until it returns, and everything it sends until then arrives.

        Example:
            >>> server.drain(timeout=10)
        """
        self.server.drain(timeout)
