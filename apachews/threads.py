"""The library for threads: a function per connection, each call in a thread of a pool::

    def chat(connection):
        for message in connection:
            connection.send(message)

    with apachews.threads.serve("/var/www/html/ws/chat.ws", chat) as server:
        server.wait_closed()

Contract: any thread may call ``serve``; a handler's connection is for its thread, and its
``client`` for any.  Inside is an ``apachews.Server``, whose contract holds here.

How this works: one thread takes the events and puts messages into the mailboxes of the
connections.  A handler that waits occupies a thread of the pool.  If all threads are occupied,
a new connection waits for one, and is not read beyond the mailbox's bound meanwhile.  All threads
wait under the server's one lock, so that no change is lost between a check and the wait.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
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

Handler = Callable[["Connection"], object]

# A waiting thread takes some tens of KB; Linux allows a user some ten thousand threads.
MAX_THREADS: Final = 100

_logger: Final = logging.getLogger("apachews")
_here: Final = threading.local()  # ``server``: whose handler this thread runs


class Connection(HandledConnection):
    """One WebSocket, for its handler: ``for message in connection``.

    Attributes:
        server: the server that accepted it.

    Example:
        >>> def chat(connection):
        ...     for message in connection:
        ...         connection.send(message)
        >>> with serve("/var/www/html/ws/news.ws", chat) as server:
        ...     server.wait_closed()
    """

    def __init__(self, client: Client, server: ThreadServer) -> None:
        self._condition = threading.Condition(loop_of(server.server).lock)
        super().__init__(client)
        self.server = server
        self._latency_s: float | None = None

    def __iter__(self) -> Iterator[str | bytes]:
        try:
            while True:
                yield self.receive()
        except ConnectionClosed:
            return

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Wait for the next message.

        Args:
            timeout: seconds to wait at most; None: no limit.

        Raises:
            ConnectionClosed: the connection has ended, and its last message was received.
            TimeoutError: no message arrived in time.

        Example:
            >>> connection.receive(timeout=5)
            'hello'
        """
        with self._condition:
            self._wait_until(lambda: bool(self._mailbox) or self.close_code is not None, timeout)
            if not self._mailbox:
                raise self._closed_error()
            return self._next_message()

    def send(
        self, data: str | bytes | bytearray | memoryview, timeout: float | None = None
    ) -> None:
        """Send a message, and wait while more than 64 KiB are queued for the client.

        Args:
            data: as ``Client.send``.
            timeout: seconds to wait at most; the message is sent or queued in any case.

        Raises:
            ConnectionClosed: the client is gone or being closed.
            TimeoutError: the client is slow.
            TypeError, UnicodeEncodeError: as ``Client.send``.

        Example:
            >>> connection.send("hello to you, too", timeout=5)
        """
        self._send_frame(wire.encode_message(data), timeout)

    def receive_json(self, timeout: float | None = None) -> Any:
        """Wait for the next message; return its value, see ``receive`` and ``Event.json``.

        Example:
            >>> connection.receive_json()
            {'x': 1}
        """
        return wire.decode_json(self.receive(timeout))

    def send_json(self, value: Any, timeout: float | None = None) -> None:
        """Send a value as a JSON text, as ``send`` does; see ``Client.send_json``.

        Example:
            >>> connection.send_json({"count": 3})
        """
        self._send_frame(wire.encode_json(value), timeout)

    def _send_frame(self, frame: bytes, timeout: float | None) -> None:
        with self._condition:
            if not self.client._send_frame(frame):
                raise self._closed_error()
            self._wait_until(lambda: self.client.queued_bytes <= SEND_HIGH_BYTES, timeout)

    def ping(self, timeout: float | None = None) -> float:
        """Send a PING; return the seconds until its answer.

        Raises:
            ConnectionClosed: the client is gone, or went before it answered.
            TimeoutError: it did not answer in time.

        Example:
            >>> connection.ping(timeout=10) < 10
            True
        """
        with self._condition:
            self._latency_s = None
            if self.close_code is not None or not self.client.ping():
                raise self._closed_error()
            self._wait_until(
                lambda: self._latency_s is not None or self.close_code is not None, timeout
            )
            if self._latency_s is None:
                raise self._closed_error()
            return self._latency_s

    def _deliver(self, event: Event) -> None:
        with self._condition:
            if isinstance(event, PongEvent):
                self._latency_s = event.latency_s
            super()._deliver(event)

    def _finish(self, code: int) -> None:
        with self._condition:
            super()._finish(code)

    def _wake(self) -> None:
        self._condition.notify_all()

    def _wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> None:
        if not self._condition.wait_for(condition, timeout_s):
            raise TimeoutError(f"{self.client}: timeout after {timeout_s:g} s")


class ThreadServer(HandlingServer):
    """The result of ``serve``: a server with a thread of its own, and those of the handlers.

    Example:
        >>> def greet(connection):
        ...     connection.send("hello")
        >>> with serve("/var/www/html/ws/news.ws", greet) as server:
        ...     server.wait_closed()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        handler: Handler,
        max_threads: int,
        on_event: OnEvent | None,
        settings: dict[str, Any],
    ) -> None:
        self.server = Server(path, **settings)
        self._on_event = on_event
        loop_of(self.server).consumer = Consumer.HANDLERS
        self._handler = handler
        self._connections: dict[Client | None, Connection] = {}
        self._pool = ThreadPoolExecutor(max_threads, "apachews-handler")
        self._running: set[Future[None]] = set()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._dispatch, name="apachews-server")
        self._thread.start()

    def __enter__(self) -> ThreadServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def wait_closed(self) -> None:
        """Wait until the server was closed or drained, and all handlers have ended.

        Raises:
            Exception: from a function that was passed to ``call_soon()``.

        Example:
            >>> threading.Timer(0.1, server.drain).start()
            >>> server.wait_closed()
        """
        self._join()

    def close(self, spread: float = 0.0) -> None:
        """Close every client; see ``Server.close``.  Waits for the handlers.

        The wait has a limit of ten seconds; handlers that run longer are logged, and
        continue.  A call from a handler does not wait.

        Example:
            >>> server.close(spread=0.1)
            >>> connection.close_code
            1001
        """
        clients = self.server.clients()
        for client in clients if spread else ():
            client.close(wire.GOING_AWAY, "the server closes")
            time.sleep(spread / len(clients))
        self.server.close()
        if getattr(_here, "server", None) is not self:
            self._join()

    def _dispatch(self) -> None:
        try:
            self._deliver_events()
        except BaseException as error:  # for example from a function passed to call_soon()
            self._failure = error
            self.server.close()
            self._deliver_events()
        late = wait(self._running, HANDLER_END_S).not_done
        if late:
            _logger.error("%s: %d handlers still run after the end", self.path, len(late))
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _deliver_events(self) -> None:
        """Deliver every event to its connection, until the server ends."""
        for event in self.server:
            if isinstance(event, AcceptEvent):
                self._start_handler(event.client())
            elif isinstance(event, GapEvent):
                self._deliver_event(event)
            elif (connection := self._connections.get(event.client_or_none())) is not None:
                connection._deliver(event)
            else:
                self._deliver_event(event)

    def _join(self) -> None:
        self._thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _start_handler(self, client: Client) -> None:
        connection = self._connections[client] = Connection(client, self)
        future = self._pool.submit(self._handle, connection)
        self._running.add(future)
        future.add_done_callback(self._running.discard)

    def _handle(self, connection: Connection) -> None:
        client = connection.client
        code = wire.NORMAL
        _here.server = self
        try:
            self._handler(connection)
        except (ConnectionClosed, ServerClosed):
            pass  # it sent to a client that is gone: the usual end of a handler
        except Exception:
            code = wire.INTERNAL_ERROR
            _logger.exception("%s: the handler failed", client)
        finally:
            self._connections.pop(client, None)
            connection._finish(code)


def serve(
    path: str | os.PathLike[str],
    handler: Handler,
    *,
    max_threads: int = MAX_THREADS,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> ThreadServer:
    """Serve; the result is a context manager that closes the server.

    Args:
        path: the socket file.
        handler: called with each ``Connection``, in a thread of a pool.  When it returns, the
            connection is closed with 1000; its exception is logged, and the connection is
            closed with 1011.
        max_threads: the number of handlers that run at the same time; other clients wait.
        on_event: called with each event without a client: of the relay, of members of groups,
            errors of the server; and with each ``GapEvent``; on the thread that takes the
            events; must not block.
        settings: as ``apachews.Server``.  With ``workers`` each has threads of its own.

    Raises:
        ServerError, OSError: as ``apachews.Server``.

    Example:
        >>> def shout(connection):
        ...     for message in connection:
        ...         connection.send(message.upper())
        >>> with serve("/var/www/html/ws/news.ws", shout, max_threads=200) as server:
        ...     server.wait_closed()
    """
    return ThreadServer(path, handler, max_threads, on_event, settings)
