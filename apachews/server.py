"""The producer's server: what a program calls.

Contract: ``Server(path)`` listens; ``dequeue()`` hands out one event after the
other.  Nothing here blocks but ``dequeue()`` itself and, for as long as it was told
to and at most a second more, ``close()``.  One thread at a time takes events, and
sockets make progress only inside ``dequeue()``; everything else is for any thread.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, overload

from apachews._listening.socket_file import LoopbackFile, SocketFile
from apachews._processes.sd_notify import notify, notify_ready
from apachews._processes.workers import fork_workers
from apachews._server.connection import SENDING, State
from apachews._server.languages import preferred_language
from apachews._server.loop import Loop
from apachews.wire.reader import DEFAULT_MAX_MESSAGE_BYTES

from . import wire
from .client import Client, Group
from .events import Event
from .exceptions import ServerClosed

# Frames that may wait for one slow client.  A broadcast's frame is one object
# however many clients wait for it.
DEFAULT_MAX_QUEUE_BYTES: Final = 4 * 1024 * 1024
# How long drain() gives clients and program to move; as long as a bridge holds a
# client that nobody serves (APACHEWS_HOLD).
DRAIN_TIMEOUT_S: Final = 30.0

# What listens, by the transport's name.
_FILES: Final = {"unix": SocketFile, "loopback": LoopbackFile}

# The servers of this process.
_servers: Final[weakref.WeakValueDictionary[int, Server]] = weakref.WeakValueDictionary()


def open_servers() -> list[Server]:
    """Return the servers of this process that are not closed.

    For whoever looks after a program that is not his own (``bootstrap.py``); may be
    called by any thread and by signal handlers.
    """
    # (valuerefs() copies in one step; to iterate over the rest is not safe there.)
    return [
        server
        for ref in _servers.valuerefs()
        if (server := ref()) is not None and not server._loop.is_closed
    ]


class Server:
    """Listens on a socket file for the WebSockets that Apache bridges to it.

    Where systemd has made the socket (LISTEN_FDS), that one is used; its file is
    left as it is, and outlives the server.  Under systemd (NOTIFY_SOCKET) it is told
    READY, STOPPING when the last server of the process closes or drains, and, with
    ``WatchdogSec=``, that ``dequeue()`` is called.

    Args:
        path: the socket file, in Apache's document root.  A file left by a
            producer that died is replaced.  One on which another producer listens
            is taken over: new clients come here, the other keeps those it has.
        mode: permissions of the file.  Apache's user needs the right to write.
        group: group of the file (name or number), ``www-data`` say, where the
            producer runs as another user than Apache; None leaves it.
        max_message_bytes: the longest message taken (16 MiB); a client that sends more
            is closed with 1009.
        max_queue_bytes: what may wait for a client that does not read (4 MiB); one for
            whom more waits when another message is sent is closed with 1013.
        exclusive: refuse to take a socket over.
        workers: processes to serve with.  With 0 this one does.  With more, that
            many are forked, and the constructor returns in each of them; here it
            never returns, but looks after them, and ends with SystemExit when all
            have ended (see ``apachews._processes.workers``).  They share the socket, and
            nothing else: ``clients()``, ``broadcast()``, ``close()`` and ``drain()``
            are about the clients of one.  From the main thread, and before the
            program starts another.
        transport: ``unix``; or ``loopback``, where the file system, or the host, knows no
            Unix sockets: the file is a regular one then, which says how to reach a
            port of 127.0.0.1; Apache's user needs the right to read.  systemd's sockets
            are not looked at.

    Raises:
        SocketInUse: with ``exclusive``, another producer listens there.
        NotASocket: the path holds something else.
        ServerError: the path is longer than a socket's can be.
        OSError: the directory is missing or may not be written to.

    Example:
        >>> with Server("/var/www/html/ws/news.ws", max_message_bytes=65536) as server:
        ...     for event in server:
        ...         if event.type() is Event.IO:
        ...             event.write(event.read())
        True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mode: int = 0o660,
        group: str | int | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        max_queue_bytes: int = DEFAULT_MAX_QUEUE_BYTES,
        exclusive: bool = False,
        workers: int = 0,
        transport: str = "unix",
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers={workers}: there can be 0 or more")
        if workers and open_servers():
            raise ValueError("a server with workers must be the only one of its program")
        if transport not in _FILES:
            raise ValueError(f"transport={transport!r}: use one of {', '.join(_FILES)}")
        self._file = _FILES[transport](os.fspath(path), mode, group, exclusive)
        notify_ready(f"listening on {self._file.path}")
        siblings = fork_workers(workers, self._file) if workers else None
        try:
            self._loop = Loop(
                self._file, max_message_bytes, max_queue_bytes, _notify_stopping, siblings
            )
        except OSError:
            self._file.close()
            raise
        _servers[id(self)] = self

    @property
    def path(self) -> str:
        """The socket file.

        Example:
            >>> server.path
            '/var/www/html/ws/chat.ws'
        """
        return self._file.path

    def clients(self) -> list[Client]:
        """Return the clients that are connected, accepted and not being closed.

        Also those whose Accept waits to be dequeued: a broadcast may reach them before
        the program's greeting does, and their ``state`` is None.  Those whom the program
        has met are what a group of its own is for.

        Example:
            >>> [client.request.remote[0] for client in server.clients()]
            ['203.0.113.7']
        """
        with self._loop.lock:
            return [
                connection.client
                for connection in self._loop.connections.by_fd.values()
                if connection.client
                and connection.state in SENDING
                and connection.state is not State.LAST_EVENT
            ]

    @overload
    def dequeue(self) -> Event: ...
    @overload
    def dequeue(self, timeout: float | None) -> Event | None: ...
    def dequeue(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event.

        Args:
            timeout: seconds to wait at most; 0 does not wait; None waits for
                ever.

        Returns:
            The event, or None when the time is over.

        Raises:
            ServerClosed: after ``close()``, or when ``drain()`` is through, once
                all events were taken.

        Example:
            >>> event = server.dequeue(timeout=5)
            >>> event.type(), event.read()
            (Event.IO, 'hello')
            >>> server.dequeue(timeout=0) is None
            True
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._loop.lock:
            return self._loop.next_event(deadline)

    def dequeue_nowait(self) -> Event | None:
        """Return the next event, or None: ``dequeue(0)``.

        Example:
            >>> while (event := server.dequeue_nowait()) is not None:
            ...     print(event.read())
            hello
        """
        return self.dequeue(0)

    def fileno(self) -> int:
        """Return a descriptor for a loop of your own, select's or a toolkit's.

        It is readable when ``dequeue_nowait()`` has something to do, which is not
        always an event.  Call that until it gives None, also after at most
        ``next_timer_s()`` seconds, and after whatever else the program did.

        Example:
            >>> import select
            >>> readable, _, _ = select.select([server.fileno()], [], [], server.next_timer_s())
            >>> server.dequeue_nowait().read()
            'hello'
        """
        with self._loop.lock:
            return self._loop.fileno()

    def next_timer_s(self) -> float | None:
        """Return after how many seconds ``dequeue_nowait()`` is due; None: when readable.

        Example:
            >>> server.next_timer_s() is None
            True
            >>> client.close()  # its answer is waited for, but not for ever
            >>> 0 < server.next_timer_s() <= 10
            True
        """
        return self._loop.next_timer_s()

    def __iter__(self) -> Iterator[Event]:
        """Give event after event until the server is closed."""
        try:
            while True:
                yield self.dequeue()
        except ServerClosed:
            return

    def broadcast(self, data: str | bytes | bytearray | memoryview) -> int:
        """Send a message to every client; return how many it was sent to or queued for.

        It is encoded once.  For some of them, see ``group``.

        Raises:
            TypeError, UnicodeEncodeError: as ``Client.send``.

        Example:
            >>> server.broadcast("lunch is ready")
            1
        """
        return self._broadcast_frame(wire.encode_message(data))

    def broadcast_json(self, value: Any) -> int:
        """Send a value to every client as a JSON text; see ``broadcast``.

        Raises:
            TypeError, ValueError: as ``Client.send_json``.

        Example:
            >>> server.broadcast_json({"menu": ["soup", "fish"]})
            1
        """
        return self._broadcast_frame(wire.encode_json(value))

    def _broadcast_frame(self, frame: bytes) -> int:
        with self._loop.lock:
            return self._loop.connections.broadcast(frame)

    def group(self, name: str) -> Group:
        """Return the group of this name; one that nobody has joined yet is empty.

        Example:
            >>> server.group("room").add(client)
            True
            >>> server.group("room").broadcast("hello, room")
            Delivery(reached=1, skipped=0)
        """
        with self._loop.lock:
            return self._loop.group(name)

    def language(self, client: Client) -> str | None:
        """Return the language the client's browser prefers, as ``en-GB``, or None.

        Source: its Accept-Language header (RFC 9110 12.5.4).

        Example:
            >>> client.request.header("Accept-Language")
            'de;q=0.5,en-GB'
            >>> server.language(client)
            'en-GB'
        """
        return preferred_language(client.request.header("accept-language") or "")

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have a function called by ``dequeue()``, in its thread, between two events.

        At once where ``dequeue()`` waits.  This is the one method for signal
        handlers::

            signal.signal(signal.SIGTERM, lambda *_: server.call_soon(server.close))

        What the function raises, ``dequeue()`` raises.  After ``close()`` it is not
        called any more.

        Example:
            >>> server.call_soon(lambda: print("called"))
            >>> server.dequeue(timeout=0)
            called
        """
        self._loop.call_soon(function)

    def drain(self, timeout: float = DRAIN_TIMEOUT_S) -> None:
        """Hand every client on to the producer that listens next, losing nothing.

        Returns at once; go on with ``dequeue()`` until it raises ServerClosed, as
        ``for event in server`` does by itself.  No new client comes, and the socket
        file is removed where it is still this server's.  Of each client the events
        go on until it has moved: then comes its ConnectionClosed, code 1012, and
        until the next ``dequeue()`` the program can send to it.  An answer that is
        given later than that is lost.

        Where nobody listens, Apache holds the clients for ``APACHEWS_HOLD``.  Who
        waits to be accepted (APACHEWS_ACCEPT producer) is refused with 503.
        ``close()`` ends it, with a goodbye to who is left.  Draining again does
        nothing.

        Args:
            timeout: seconds after which who is still here is left without a word;
                Apache hands these on as well, but what was on its way to this
                producer is lost, and so is what waited in ``max_queue_bytes`` for a
                client that is slow.

        Example:
            >>> server.drain(timeout=10)
            >>> for event in server:
            ...     print(repr(event.type()), event.code)
            Event.ConnectionClosed 1012
        """
        with self._loop.lock:
            self._loop.drain(timeout)

    def close(self, spread: float = 0.0) -> None:
        """Say goodbye to every client (1001), and remove the socket file.

        Waits for ``spread``, and at most a second for the last goodbyes to leave; where
        another thread waits in ``dequeue()``, that does this, and here it returns at
        once.  (Other threads wait meanwhile with whatever they want of the server.)
        Nothing more is read of the clients.  Each still gets its ConnectionClosed
        event.  Closing again does nothing.

        Args:
            spread: seconds over which the goodbyes are spread evenly, so that many
                clients do not all come back in the same second; 0 says them at once.

        Example:
            >>> server.close()
            >>> [(event.type(), event.code) for event in server]
            [(Event.ConnectionClosed, 1001)]
        """
        with self._loop.lock:
            if self._loop.is_waiting:
                # That thread does it: what it waits for cannot be closed here.
                self._loop.call_soon(lambda: self._loop.close(spread))
            else:
                self._loop.close(spread)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _notify_stopping() -> None:
    servers = [server for ref in _servers.valuerefs() if (server := ref()) is not None]
    if all(server._loop.is_ending for server in servers):
        notify("STOPPING=1")


def loop_of(server: Server) -> Loop:
    """Return what is behind a server; for the library's own forms of serving."""
    return server._loop
