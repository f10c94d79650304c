"""The producer's server: the API that a program calls.

Contract: ``Server(path)`` listens; ``dequeue()`` returns one event after the other.  Only
``dequeue()`` blocks, and ``close()`` for its ``spread`` and at most a second more.  One thread
at a time calls ``dequeue()``, and sockets make progress only inside it; any thread may call the
other methods.

Long because one class is the API, and its docstrings are the reference.
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
from apachews._relay.relay import DEFAULT_MAX_MESSAGE_BYTES as DEFAULT_MAX_RELAYED_BYTES
from apachews._relay.relay import new_origin, open_relay
from apachews._server.connection import SENDING, State
from apachews._server.languages import preferred_language
from apachews._server.loop import Loop
from apachews.monitoring.relays import RelayStatus
from apachews.wire.reader import DEFAULT_MAX_MESSAGE_BYTES

from . import wire
from .client import Client, Group
from .delivery import Scope, relay_for
from .events import Event
from .exceptions import ServerClosed
from .history import DEFAULT_MAX_BYTES as DEFAULT_HISTORY_BYTES
from .history import DEFAULT_SECONDS, Bounds, Formatter

# Bytes of frames that may wait for one slow client.  The frame of a broadcast is one object for
# all clients that wait for it.
DEFAULT_MAX_QUEUE_BYTES: Final = 4 * 1024 * 1024
# The time limit of drain(); a bridge holds a client without a producer for as long
# (APACHEWS_HOLD).
DRAIN_TIMEOUT_S: Final = 30.0

# The class of the listening socket, by the name of the transport.
_FILES: Final = {"unix": SocketFile, "loopback": LoopbackFile}

# The servers of this process.
_servers: Final[weakref.WeakValueDictionary[int, Server]] = weakref.WeakValueDictionary()


def open_servers() -> list[Server]:
    """Return the servers of this process that are not closed.

    For ``_bootstrap.py``, which runs a program of the user; any thread and signal handlers
    may call it.
    """
    # valuerefs() copies in one step; a signal handler cannot iterate over the dictionary
    # safely.
    return [
        server
        for ref in _servers.valuerefs()
        if (server := ref()) is not None and not server._loop.is_closed
    ]


class Server:
    """Listens on a socket file for the WebSockets that Apache bridges to it.

    If systemd has made the socket (LISTEN_FDS), the server uses it, and leaves its file
    alone, which outlives the server.  Under systemd (NOTIFY_SOCKET) the server reports
    READY, STOPPING when the last server of the process closes or drains, and, with
    ``WatchdogSec=``, that the program calls ``dequeue()``.

    Args:
        path: the socket file, in Apache's document root.  The file of a producer that
            died is replaced.  The file of a producer that listens is taken over: new
            clients connect here, the other producer keeps its clients.
        mode: permissions of the file.  Apache's user needs the right to write.
        group: group of the file (name or number), for example ``www-data``, if the
            producer runs as another user than Apache; None leaves it.
        max_message_bytes: the longest message (16 MiB); a client that sends a longer one
            is closed with 1009.
        max_queue_bytes: bytes that may wait for a client that does not read (4 MiB); a
            client with more is closed with 1013 when the next message is sent.
        exclusive: fail with SocketInUse instead of taking a socket over.
        workers: number of worker processes; 0: this process serves.  With 1 or more the
            constructor forks them and returns in each of them.  In this process it does
            not return: it supervises the workers, and ends with SystemExit when all have
            exited (see ``apachews._processes.workers``).  ``broadcast()``, groups and
            ``publish()`` reach the clients of all workers; ``clients()``, the members of a
            group, ``close()`` and ``drain()`` are about those of one process.  On the main
            thread, and before the program starts another thread.
        transport: ``unix``; or ``loopback``, if the file system or the host does not
            support Unix sockets: the file is then a regular one with a port of 127.0.0.1
            and a token; Apache's user needs the right to read.  systemd's sockets are
            not used.
        relay: a Redis or Valkey through which ``broadcast()``, groups and ``publish()``
            reach the clients of every producer with the same relay and name, on any
            number of machines: ``redis://``, ``rediss://``, ``unix://``,
            ``redis+sentinel://`` or ``redis+cluster://``, or a client of redis-py; or NATS,
            ``nats://``.  None: the environment's ``APACHEWS_RELAY``; "": no relay.  Needs
            redis-py (``apachews[redis]``) or nats-py (``apachews[nats]``).  It never delays
            the program or a local client; while it is out of reach the program continues,
            and has ``RelayLost`` and ``RelayBack`` events.
        relay_name: of the relay; default: the name of the socket file, as ``chat.ws``.
        presence: keep the members of groups: ``Group.members()``, ``JoinEvent`` and
            ``LeaveEvent``, over all workers and all producers with the relay.
        relay_max_message_bytes: the longest message that is relayed (1 MiB), 4 MiB at most;
            broadcasting a longer one raises MessageTooLarge.
        history_file: an SQLite file for the histories of groups, on a local file system.
            They outlive the producer, and all workers share them.  None: in the relay,
            if it is a Redis; else in this process.

    Raises:
        HistoryError: ``history_file`` cannot be used.
        RelayError: the relay's address is invalid, or redis-py is not installed.
        SocketInUse: with ``exclusive``, another producer listens there.
        NotASocket: the path is a file of another type.
        ServerError: the path is longer than that of a Unix socket can be.
        OSError: the directory does not exist or is not writable.

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
        relay: Any = None,
        relay_name: str | None = None,
        relay_max_message_bytes: int = DEFAULT_MAX_RELAYED_BYTES,
        presence: bool = False,
        history_file: str | os.PathLike[str] | None = None,
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers={workers}: expected 0 or more")
        if workers and open_servers():
            raise ValueError("a server with workers must be the first and only one of its program")
        if transport not in _FILES:
            raise ValueError(f"transport={transport!r}: expected one of {', '.join(_FILES)}")
        if relay is None:
            relay = os.environ.get("APACHEWS_RELAY")
        if relay and history_file is not None:
            raise ValueError("history_file: with a relay, the histories are in the relay")
        name = relay_name or os.path.basename(os.fspath(path))
        # Before the socket file and the workers: a wrong address must not cost clients.
        broker = open_relay(relay, name, new_origin(), relay_max_message_bytes) if relay else None
        try:
            self._file = _FILES[transport](os.fspath(path), mode, group, exclusive)
        except OSError as error:
            # The traceback ends here: the text has the reason and what to do.
            raise error.with_traceback(None) from None
        try:
            notify_ready(f"listening on {self._file.path}")
            siblings = fork_workers(workers, self._file) if workers else None
            self._loop = Loop(
                self._file,
                max_message_bytes,
                max_queue_bytes,
                _notify_stopping,
                siblings,
                broker,
                presence,
                None if history_file is None else os.fspath(history_file),
            )
        except BaseException:
            # SystemExit as well: the handler of a signal may raise it here, and ``open_servers``
            # does not have this server yet.
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
        """Return the clients of this process: connected, accepted and not being closed.

        Other workers and other machines have theirs.  Clients whose Accept waits to be
        dequeued are among them: a broadcast may reach them before the program's greeting,
        and their ``state`` is None.  A group of its own holds only the clients that the
        program has added.

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
            timeout: seconds to wait at most; 0 does not wait; None: no limit.

        Returns:
            The event, or None at the timeout.

        Raises:
            ServerClosed: after ``close()``, or a complete ``drain()``, and the last
                event.

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
        """Return a descriptor for another event loop: select's or that of a toolkit.

        It is readable when ``dequeue_nowait()`` has work, which does not always make an
        event.  Call ``dequeue_nowait()`` until it returns None: when the descriptor is
        readable, after at most ``next_timer_s()`` seconds, and after other work of the
        program.

        Example:
            >>> import select
            >>> readable, _, _ = select.select([server.fileno()], [], [], server.next_timer_s())
            >>> server.dequeue_nowait().read()
            'hello'
        """
        with self._loop.lock:
            return self._loop.fileno()

    def next_timer_s(self) -> float | None:
        """Return the seconds until ``dequeue_nowait()`` is due; None: when readable.

        Example:
            >>> server.next_timer_s() is None
            True
            >>> client.close()  # the server waits for its answer, with a limit
            >>> 0 < server.next_timer_s() <= 10
            True
        """
        return self._loop.next_timer_s()

    def __iter__(self) -> Iterator[Event]:
        """Iterate over the events until the server is closed."""
        try:
            while True:
                yield self.dequeue()
        except ServerClosed:
            return

    def broadcast(
        self, data: str | bytes | bytearray | memoryview, scope: Scope = "everywhere"
    ) -> int:
        """Send a message to every client; return how many it was sent to or queued for.

        It is encoded once.  For a part of the clients, see ``group``.  The clients of other
        workers, and of other producers with the same relay, receive it as well, and are
        not counted.

        Args:
            data: as ``Client.send``.
            scope: ``here``: only to the clients of this process.

        Raises:
            TypeError, UnicodeEncodeError: as ``Client.send``.
            MessageTooLarge: the relay does not carry it; no client has received it.

        Example:
            >>> server.broadcast("lunch is ready")
            1
        """
        return self._broadcast_frame(wire.encode_message(data), scope)

    def broadcast_json(self, value: Any, scope: Scope = "everywhere") -> int:
        """Send a value to every client as a JSON text; see ``broadcast``.

        Raises:
            TypeError, ValueError: as ``Client.send_json``.

        Example:
            >>> server.broadcast_json({"menu": ["soup", "fish"]})
            1
        """
        return self._broadcast_frame(wire.encode_json(value), scope)

    def _broadcast_frame(self, frame: bytes, scope: Scope) -> int:
        relay = relay_for(scope, self._loop.relay)
        if relay is not None:
            relay.require_fitting(frame)
        with self._loop.lock:
            reached = self._loop.connections.broadcast(frame)
            if relay is not None:
                relay.publish(None, frame)
            return reached

    def relay_status(self) -> RelayStatus | None:
        """Return the state and the counters of the relay; None without one.

        Example:
            >>> server.relay_status() is None
            True
        """
        broker = self._loop.broker
        return None if broker is None else broker.status()

    def group(
        self,
        name: str,
        *,
        history: int | None = None,
        seconds: float = DEFAULT_SECONDS,
        history_bytes: int = DEFAULT_HISTORY_BYTES,
        formatter: Formatter | None = None,
    ) -> Group:
        """Return the group of this name; a new group is empty.

        With ``history`` the group keeps its last messages, for clients that come back:
        see ``Group.add``.  It keeps them until one of the three bounds is reached.  A
        further call without ``history`` returns the same group.

        Args:
            name: any text; without ``{`` and ``}`` for a history in the relay.
            history: number of messages to keep; None: leave the group as it is.
            seconds: how long to keep a message.
            history_bytes: how many bytes to keep.
            formatter: called with each message and its ``Position``; returns what the
                clients receive, for example a JSON text with both.  It must not raise.
                None: the message as it is.  Every producer of a relay needs the same.

        Raises:
            ValueError: a bound below 1; or the server has no place for histories: NATS
                as its relay, or workers without ``history_file``.

        Example:
            >>> server.group("room").add(client)
            True
            >>> server.group("room").broadcast("hello, room")
            Delivery(reached=1, skipped=0)
        """
        with self._loop.lock:
            group = self._loop.connections.group(name)
            if history is not None:
                if min(history, seconds, history_bytes) < 1:
                    raise ValueError(f"history={history}, seconds={seconds:g}: expected 1 or more")
                if group._history is None and len(group):
                    raise ValueError(f"group({name!r:.80}, history=...): call it before add()")
                bounds = Bounds(history, seconds, history_bytes)
                self._loop.histories.open(group, bounds, formatter)
            elif formatter is not None:
                raise ValueError("formatter=: needs history=")
            return group

    def on_unopened_group(self, function: Callable[[str], object]) -> None:
        """Call a function with the name of a group before a message from outside reaches it.

        For messages of ``publish()``, while the group has no history in this process.  The
        function may call ``group(name, history=…)``, so that the message is stored and has
        its form; it must not raise.  Groups that have had no message and are not used are then
        forgotten after five minutes, because the function can open them again.

        Example:
            >>> server.on_unopened_group(lambda name: server.group(name, history=100))
        """
        self._loop.on_unopened_group(function)

    @property
    def has_presence(self) -> bool:
        """True if the server keeps the members of groups, ``Server(presence=True)``.

        Example:
            >>> server.has_presence
            False
        """
        return self._loop.presence is not None

    @property
    def keeps_histories(self) -> bool:
        """True if groups may have a history.

        NATS keeps no messages, and workers need a store that they share.

        Example:
            >>> server.keeps_histories
            True
        """
        return self._loop.histories.has_store

    def language(self, client: Client) -> str | None:
        """Return the language that the client's browser prefers, as ``en-GB``, or None.

        Source: its Accept-Language header (RFC 9110 12.5.4).

        Example:
            >>> client.request.header("Accept-Language")
            'de;q=0.5,en-GB'
            >>> server.language(client)
            'en-GB'
        """
        return preferred_language(client.request.header("accept-language") or "")

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function in ``dequeue()``, on its thread, between two events.

        A waiting ``dequeue()`` calls it at once.  This is the only method that signal
        handlers may call::

            signal.signal(signal.SIGTERM, lambda *_: server.call_soon(server.close))

        ``dequeue()`` raises the exceptions of the function.  After ``close()`` the
        function is not called.

        Example:
            >>> server.call_soon(lambda: print("called"))
            >>> server.dequeue(timeout=0)
            called
        """
        self._loop.call_soon(function)

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function in ``dequeue()``, on its thread, after some seconds.

        For work that a program does from time to time; a function that calls
        ``call_later`` again repeats itself.  ``dequeue()`` calls it between two events and
        continues to wait; it raises the exceptions of the function.  After ``close()``, or
        a complete ``drain()``, the function is not called.

        Args:
            seconds: 0 or more.

        Example:
            >>> def tick():
            ...     print(server.broadcast("tick"), "clients")
            >>> server.call_later(0.1, tick)
            >>> server.dequeue(timeout=1)
            1 clients
        """
        if seconds < 0:
            raise ValueError(f"call_later({seconds:g}): expected 0 or more seconds")
        with self._loop.lock:
            self._loop.call_later(seconds, function)

    def drain(self, timeout: float = DRAIN_TIMEOUT_S) -> None:
        """Hand all clients over to the producer that listens next, without losing a message.

        Returns at once; continue with ``dequeue()`` until it raises ServerClosed, as
        ``for event in server`` does.  The server accepts no new clients, and removes the
        socket file if it is still its own.  Each client's events continue until it has
        moved: then its ConnectionClosed follows, code 1012, and until the next
        ``dequeue()`` the program can send to it.  Later answers are lost.

        If no producer listens, Apache holds the clients for ``APACHEWS_HOLD``.  Clients
        that wait to be accepted (APACHEWS_ACCEPT producer) are rejected with 503.
        ``close()`` ends the drain, and closes the remaining clients.  Draining again does
        nothing.

        Args:
            timeout: seconds after which the remaining clients are left without a CLOSE.
                Apache hands these over as well, but messages on their way to this
                producer are lost, and those that wait in ``max_queue_bytes`` for a slow
                client.

        Example:
            >>> server.drain(timeout=10)
            >>> for event in server:
            ...     print(repr(event.type()), event.code)
            Event.ConnectionClosed 1012
        """
        with self._loop.lock:
            self._loop.drain(timeout)

    def close(self, spread: float = 0.0) -> None:
        """Close every client with 1001, and remove the socket file.

        Waits for ``spread``, and at most a second until the last CLOSE frames are sent.  If
        another thread waits in ``dequeue()``, that thread closes the server, and this
        method returns at once.  (Other methods of the server wait meanwhile.)  Messages
        of the clients are not read any more.  Each client still causes its
        ConnectionClosed event.  Closing again does nothing.

        Args:
            spread: seconds over which the CLOSE frames are spread evenly, so that many
                clients do not all reconnect in the same second; 0 sends them at once.

        Example:
            >>> server.close()
            >>> [(event.type(), event.code) for event in server]
            [(Event.ConnectionClosed, 1001)]
        """
        with self._loop.lock:
            if self._loop.is_waiting:
                # That thread closes the server: this one cannot close the epoll that it waits for.
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
    """Return the loop of a server; for the library's own modules."""
    return server._loop
