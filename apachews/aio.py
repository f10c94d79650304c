"""The library for asyncio: events in an ``async for``, or a coroutine per connection::

    async def chat(connection):
        async for message in connection:
            await connection.send(message)

    async def main():
        async with apachews.aio.serve("/var/www/html/ws/chat.ws", chat) as server:
            await server.wait_closed()

Contract: all objects belong to the event loop in which ``serve`` was entered.  Inside is an
``apachews.Server``, whose contract holds here.

How this works: asyncio watches the descriptor of the server's epoll, only while the server has
no event.  So messages that the program does not ask for stay in the kernel.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Final

from . import wire
from ._handled import (
    HANDLER_END_S,
    SEND_HIGH_BYTES,
    HandledConnection,
    HandlingServer,
    OnEvent,
)
from ._server.loop import Consumer
from .client import Client
from .events import AcceptEvent, Event, GapEvent, PongEvent
from .exceptions import ConnectionClosed, ServerClosed
from .server import Server, loop_of

Handler = Callable[["Connection"], Awaitable[object]]

# The other tasks run after this number of events, even if more wait.
EVENTS_IN_A_ROW: Final = 100

_logger: Final = logging.getLogger("apachews")


class Connection(HandledConnection):
    """One WebSocket, for its handler: ``async for message in connection``.

    Attributes:
        server: the server that accepted it.

    Example:
        >>> async def chat(connection):
        ...     async for message in connection:
        ...         await connection.send(message)
        >>> async with serve("/var/www/html/ws/news.ws", chat) as server:
        ...     await server.wait_closed()
    """

    def __init__(self, client: Client, server: AsyncServer) -> None:
        super().__init__(client)
        self.server = server
        self._changed = asyncio.Event()
        self._pongs: list[asyncio.Future[float]] = []

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self

    async def __anext__(self) -> str | bytes:
        try:
            return await self.receive()
        except ConnectionClosed:
            raise StopAsyncIteration from None

    async def receive(self) -> str | bytes:
        """Wait for the next message.

        Raises:
            ConnectionClosed: the connection has ended, and its last message was received.

        Example:
            >>> await asyncio.wait_for(connection.receive(), timeout=5)
            'hello'
        """
        while not self._mailbox:
            if self.close_code is not None:
                raise self._closed_error()
            await self._wait()
        return self._next_message()

    async def send(self, data: str | bytes | bytearray | memoryview) -> None:
        """Send a message, and wait while more than 64 KiB are queued for the client.

        Raises:
            ConnectionClosed: the client is gone or being closed.
            TypeError, UnicodeEncodeError: as ``Client.send``.

        Example:
            >>> await connection.send("hello to you, too")
        """
        await self._send_frame(wire.encode_message(data))

    async def receive_json(self) -> Any:
        """Wait for the next message; return its value, see ``Event.json``.

        Example:
            >>> await connection.receive_json()
            {'x': 1}
        """
        return wire.decode_json(await self.receive())

    async def send_json(self, value: Any) -> None:
        """Send a value as a JSON text, as ``send`` does; see ``Client.send_json``.

        Example:
            >>> await connection.send_json({"count": 3})
        """
        await self._send_frame(wire.encode_json(value))

    async def _send_frame(self, frame: bytes) -> None:
        if not self.client._send_frame(frame):
            raise self._closed_error()
        while self.client.queued_bytes > SEND_HIGH_BYTES:
            await self._wait()

    async def ping(self) -> float:
        """Send a PING; return the seconds until its answer.

        Raises:
            ConnectionClosed: the client is gone, or went before it answered.

        Example:
            >>> await connection.ping() < 10
            True
        """
        if self.close_code is not None or not self.client.ping():
            raise self._closed_error()
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._pongs.append(future)
        return await future

    def _deliver(self, event: Event) -> None:
        super()._deliver(event)
        if isinstance(event, PongEvent):
            while self._pongs:
                _resolve(self._pongs.pop(), event.latency_s)
        elif self.close_code is not None:
            while self._pongs:
                _resolve(self._pongs.pop(), self._closed_error())

    def _wake(self) -> None:
        self._changed.set()

    async def _wait(self) -> None:
        """Wait until an event was delivered or the queue has become shorter."""
        self._changed.clear()
        await self._changed.wait()


def _resolve(future: asyncio.Future[float], result: float | Exception) -> None:
    if future.done():
        return  # the waiting task was cancelled
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


class AsyncServer(HandlingServer):
    """The result of ``serve``: a server in the running event loop.

    Without a handler, ``async for event in server`` iterates over the events of
    ``apachews.Server``, and stops when it is closed or drained.

    Example:
        >>> async with serve("/var/www/html/ws/news.ws") as server:
        ...     async for event in server:
        ...         if event.type() is Event.IO:
        ...             event.write(event.read())
        True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        handler: Handler | None,
        on_event: OnEvent | None,
        settings: dict[str, Any],
    ) -> None:
        if settings.get("workers"):
            raise ValueError(
                "workers: not available in a running event loop; run several programs on a socket"
                " of systemd instead"
            )
        self._path = path
        self._handler = handler
        self._on_event = on_event
        self._settings = settings
        self._connections: dict[Client | None, Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dispatcher: asyncio.Task[None] | None = None
        self._in_a_row = 0

    async def __aenter__(self) -> AsyncServer:
        self.server = Server(self._path, **self._settings)
        self._loop = asyncio.get_running_loop()
        has_handler = self._handler is not None
        loop_of(self.server).consumer = Consumer.HANDLERS if has_handler else Consumer.EVENT_LOOP
        if self._handler is not None:
            self._dispatcher = asyncio.create_task(self._dispatch(self._handler))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._handler is not None:
            raise TypeError("this server has a handler, which receives all messages")
        try:
            return await self._next_event()
        except ServerClosed:
            raise StopAsyncIteration from None

    async def wait_closed(self) -> None:
        """Wait until the server was closed or drained, and all handlers have ended.

        Raises:
            Exception: from a function that was passed to ``call_soon()``.

        Example:
            >>> asyncio.get_running_loop().call_later(0.1, server.drain) is None
            False
            >>> await server.wait_closed()
        """
        if self._dispatcher is not None:
            await asyncio.shield(self._dispatcher)

    async def close(self, spread: float = 0.0) -> None:
        """Close every client; see ``Server.close``.  Waits for the handlers.

        Handlers that run for another ten seconds are cancelled.

        Example:
            >>> await server.close(spread=0.1)
            >>> connection.close_code
            1001
        """
        clients = self.server.clients()
        for client in clients if spread else ():
            client.close(wire.GOING_AWAY, "the server closes")
            await asyncio.sleep(spread / len(clients))
        self.server.close()
        if self._dispatcher is not None:
            await self._dispatcher
        else:
            loop_of(self.server).release()

    async def _next_event(self) -> Event:
        self._in_a_row += 1
        if self._in_a_row > EVENTS_IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)
        while (event := self.server.dequeue_nowait()) is None:
            self._in_a_row = 0
            await self._wait_readable(self.server.next_timer_s())
        return event

    async def _wait_readable(self, timeout_s: float | None) -> None:
        ready = self._loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        fd = self.server.fileno()
        self._loop.add_reader(fd, wake)
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, wake)
        try:
            await ready
        finally:
            self._loop.remove_reader(fd)
            if timer is not None:
                timer.cancel()

    async def _dispatch(self, handler: Handler) -> None:
        try:
            await self._deliver_events(handler)
        except Exception:  # for example from a function that was passed to call_soon()
            self.server.close()
            await self._deliver_events(handler)
            raise
        finally:
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=HANDLER_END_S)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)

    async def _deliver_events(self, handler: Handler) -> None:
        """Deliver every event to its connection, until the server ends."""
        try:
            while True:
                event = await self._next_event()
                if isinstance(event, AcceptEvent):
                    self._start_handler(event.client(), handler)
                elif isinstance(event, GapEvent):
                    self._deliver_event(event)
                elif (connection := self._connections.get(event.client_or_none())) is not None:
                    connection._deliver(event)
                else:
                    self._deliver_event(event)
        except ServerClosed:
            pass

    def _start_handler(self, client: Client, handler: Handler) -> None:
        connection = self._connections[client] = Connection(client, self)
        task = asyncio.create_task(self._handle(connection, handler))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, connection: Connection, handler: Handler) -> None:
        client = connection.client
        code = wire.NORMAL
        try:
            await handler(connection)
        except ConnectionClosed:
            pass  # it sent to a client that is gone: the usual end of a handler
        except Exception:
            code = wire.INTERNAL_ERROR
            _logger.exception("%s: the handler failed", client)
        finally:
            del self._connections[client]
            connection._finish(code)


def serve(
    path: str | os.PathLike[str],
    handler: Handler | None = None,
    *,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> AsyncServer:
    """Return a server for ``async with``.

    Args:
        path: the socket file.
        handler: called with each ``Connection``, in a task of its own.  When it returns, the
            connection is closed with 1000; its exception is logged, and the connection is
            closed with 1011.  None: ``async for event in server``.
        on_event: called with each event without a client, if there is a handler: of the relay,
            of members of groups, errors of the server; and with each ``GapEvent``; must not
            block.
        settings: as ``apachews.Server``, except ``workers``.

    Raises:
        ServerError, OSError: as ``apachews.Server``, from the ``async with``.

    Example:
        >>> async def shout(connection):
        ...     async for message in connection:
        ...         await connection.send(message.upper())
        >>> async with serve("/var/www/html/ws/news.ws", shout, max_message_bytes=65536) as server:
        ...     await server.wait_closed()
    """
    return AsyncServer(path, handler, on_event, settings)
