"""The producer's server: one epoll loop behind ``dequeue()``.

Contract: ``Server(path)`` listens; ``dequeue()`` hands out one event after the
other.  Nothing here blocks but ``dequeue()`` itself and, for as long as it was told
to and at most a second more, ``close()``.  For one thread, but for ``call_soon()``;
sockets make progress only inside ``dequeue()``.

How this works: each client is one Unix socket, watched level-triggered.  A turn
of the loop takes at most ``READ_BYTES`` from each socket that is ready and turns
them into events, until there are ``TURN_EVENTS``; the next turn goes on with the
sockets that were not looked at, before epoll is asked again: it would name the
same ones first, and a client that floods would starve the others.  No socket is
read again before all events were taken, so what is buffered is bounded: one
unfinished message a client, and the events of one turn.

How ``drain()`` loses nothing (docs/wire.md, *Moving*): each client is sent a MOVE.
What it sends before the bridge's answering MOVE becomes events as ever, and what the
program sends meanwhile goes to it as ever.  Behind these events comes its
ConnectionClosed, and when the program comes back for the event after that, it has
had its say: what it sent goes out, and the socket is closed.  The listening socket
stays open until the end, without its file: nobody finds it any more, but who was on
the way to it when the file went is let in and moved on like everybody else.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, overload

from . import wire
from .acceptor import Acceptor
from .client import Client, encode_message
from .connection import RECEIVING, SENDING, Connection, State
from .events import Event, EventType
from .exceptions import ServerClosed
from .languages import preferred_language
from .listener import SocketFile
from .messages import DEFAULT_MAX_MESSAGE_BYTES, Moved, Violation
from .notify import notify, notify_ready, start_heartbeat
from .workers import fork_workers

# Frames that may wait for one slow client.  A broadcast's frame is one object
# however many clients wait for it.
DEFAULT_MAX_QUEUE_BYTES: Final = 4 * 1024 * 1024
# Events after which a turn ends; one read of the smallest messages gives 32768.
TURN_EVENTS: Final = 1000
# How long a client that is being closed may take to go; Apache's side gives the
# browser as long (APACHEWS_CLOSE_TIMEOUT).
CLOSE_TIMEOUT_S: Final = 10.0
# How long close() waits for the last goodbyes to leave.
FLUSH_TIMEOUT_S: Final = 1.0
# How long drain() gives clients and program to move; as long as a bridge holds a
# client that nobody serves (APACHEWS_HOLD).
DRAIN_TIMEOUT_S: Final = 30.0

_logger: Final = logging.getLogger("apachews")
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
_READABLE: Final = select.EPOLLIN | _GONE

# The servers of this process that are neither closed nor drained.
_open_servers: Final[weakref.WeakValueDictionary[int, Server]] = weakref.WeakValueDictionary()


def open_servers() -> list[Server]:
    """Return the servers of this process that are neither closed nor drained.

    For whoever looks after a program that is not his own (``program.py``); may be
    called by any thread and by signal handlers.
    """
    # (valuerefs() copies in one step; to iterate over the rest is not safe there.)
    return [server for ref in _open_servers.valuerefs() if (server := ref()) is not None]


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
        max_message_bytes: the longest message taken; a client that sends more
            is closed with 1009.
        max_queue_bytes: what may wait for a client that does not read; one for
            whom more waits when another message is sent is closed with 1013.
        exclusive: refuse to take a socket over.
        workers: processes to serve with.  With 0 this one does.  With more, that
            many are forked, and the constructor returns in each of them; here it
            never returns, but looks after them, and ends with SystemExit when all
            have ended (see ``apachews.workers``).  They share the socket, and
            nothing else: ``clients()``, ``broadcast()``, ``close()`` and ``drain()``
            are about the clients of one.  From the main thread, and before the
            program starts another.

    Raises:
        SocketInUse: with ``exclusive``, another producer listens there.
        NotASocket: the path holds something else.
        ServerError: the path is longer than a socket's can be.
        OSError: the directory is missing or may not be written to.
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
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers={workers}: there can be 0 or more")
        if workers and open_servers():
            raise ValueError("a server with workers must be the only one of its program")
        self._max_message_bytes = max_message_bytes
        self._max_queue_bytes = max_queue_bytes
        self._events: deque[Event] = deque()
        self._connections: dict[int, Connection] = {}
        self._leaving: deque[tuple[float, Connection]] = deque()  # deadlines, in order
        # What epoll found ready and no turn has looked at yet: descriptor, events.
        self._ready: deque[tuple[int, int]] = deque()
        self._closed = False
        self._drain_deadline: float | None = None
        # Clients that have moved, by their last event, until that is taken; and the
        # one whose last event the program has in hand.
        self._moved: dict[Event, Connection] = {}
        self._parting: Connection | None = None
        self._calls: deque[Callable[[], object]] = deque()
        self._file = SocketFile(os.fspath(path), mode, group, exclusive)
        notify_ready(f"listening on {self._file.path}")
        if workers:
            fork_workers(workers, self._file)
        self._heartbeat = start_heartbeat()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._wake_reader.fileno(), select.EPOLLIN)
        self._acceptor = Acceptor(self._file, self._epoll)
        _open_servers[id(self)] = self

    @property
    def path(self) -> str:
        """The socket file."""
        return self._file.path

    def clients(self) -> list[Client]:
        """Return the clients that are connected, accepted and not being closed."""
        return [
            connection.client
            for connection in self._connections.values()
            if connection.client
            and connection.state in SENDING
            and connection.state is not State.PARTING
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
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._heartbeat is not None:
            self._heartbeat.beat()
        if self._parting is not None:
            self._part()
        if self._calls:
            self._run_calls()
        while not self._events:
            if self._closed or self._is_drained():
                raise ServerClosed
            wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._turn(wait_s)
            if self._calls:
                self._run_calls()
            if not self._events and deadline is not None and time.monotonic() >= deadline:
                return None
        event = self._events.popleft()
        if self._moved and (moved := self._moved.pop(event, None)) is not None:
            # From here on closing it does nothing, as with any client that is gone: many
            # a program does that at ConnectionClosed, and means no goodbye.
            if moved.state is State.MOVED:
                moved.state = State.PARTING
            self._parting = moved
        return event

    def __iter__(self) -> Iterator[Event]:
        """Give event after event until the server is closed."""
        try:
            while True:
                yield self.dequeue()
        except ServerClosed:
            return

    def broadcast(self, data: str | bytes | bytearray | memoryview) -> int:
        """Send a message to every client; return how many it was sent to or queued for.

        Raises:
            TypeError, UnicodeEncodeError: as ``Client.send``.
        """
        frame = encode_message(data)
        return sum(connection.send_frame(frame) for connection in list(self._connections.values()))

    def language(self, client: Client) -> str | None:
        """Return the language the client's browser prefers, as ``en-GB``, or None.

        Source: its Accept-Language header (RFC 9110 12.5.4).
        """
        return preferred_language(client.request.header("accept-language") or "")

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have a function called by ``dequeue()``, in its thread, between two events.

        At once where ``dequeue()`` waits.  This is the one method that another
        thread or a signal handler may call; it is how they send, close or drain::

            signal.signal(signal.SIGTERM, lambda *_: server.call_soon(server.close))

        What the function raises, ``dequeue()`` raises.  After ``close()`` it is not
        called any more.
        """
        self._calls.append(function)
        try:
            self._wake_writer.send(b"\0")
        except OSError:
            pass  # full: it wakes up anyway; or closed: nobody is there to be woken

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
        """
        if self._closed or self._drain_deadline is not None:
            return
        self._drain_deadline = time.monotonic() + timeout
        self._file.remove()
        self._accept()
        if self._file.is_shared and self._file.is_in_place():
            # Others go on accepting; what comes from here on is theirs.  (Not so where all
            # workers end: the supervisor has removed the file then.)
            self._acceptor.stop()
        for connection in list(self._connections.values()):
            self._move(connection)
        self._notify_stopping()

    def close(self, spread: float = 0.0) -> None:
        """Say goodbye to every client (1001), and remove the socket file.

        Waits for ``spread``, and at most a second for the last goodbyes to leave.
        Nothing more is read of the clients.  Each still gets its ConnectionClosed
        event.  Closing again does nothing.

        Args:
            spread: seconds over which the goodbyes are spread evenly, so that many
                clients do not all come back in the same second; 0 says them at once.
        """
        if self._closed:
            return
        self._closed = True
        self._acceptor.stop()
        self._notify_stopping()
        connections = list(self._connections.values())
        for connection in connections:
            self._update(connection)  # who has had no goodbye is not read any more
        started_at = time.monotonic()
        for index, connection in enumerate(connections):
            self._serve_until(started_at + spread * index / len(connections))
            connection.send_close(wire.GOING_AWAY, "the server closes")
        self._serve_until(started_at + spread)
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while (
            any(connection.has_queue for connection in self._connections.values())
            and (wait_s := deadline - time.monotonic()) > 0
        ):
            self._turn(wait_s)
        self._leave(wire.GOING_AWAY, "the server closed")
        self._shut()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _turn(self, wait_s: float | None) -> None:
        """Wait for the sockets once, and do what they are ready for."""
        next_timer_s = self._run_timers()
        if self._events and not self._closed:  # a timer's
            wait_s = 0.0
        elif next_timer_s is not None:
            wait_s = next_timer_s if wait_s is None else min(wait_s, next_timer_s)
        if not self._ready:
            self._ready.extend(self._epoll.poll(wait_s))
        while self._ready:
            fd, ready = self._ready.popleft()
            if fd == self._acceptor.fd:
                self._accept()
                continue
            if fd == self._wake_reader.fileno():
                self._wake_reader.recv(4096)
                continue
            connection = self._connections.get(fd)
            if connection is None:
                continue  # it went away meanwhile
            if ready & select.EPOLLOUT:
                connection.flush_nowait()
                self._update(connection)
            if ready & _READABLE and connection.fileno() == fd:
                if not connection.has_moved:
                    self._receive(connection)
                elif ready & _GONE:
                    self._forget(connection)  # its last event is out
            if len(self._events) >= TURN_EVENTS:
                break

    def _run_timers(self) -> float | None:
        """Do what is due; return the seconds until the next is, or None."""
        now = time.monotonic()
        while self._leaving and (self._leaving[0][0] <= now or self._leaving[0][1].fileno() == -1):
            connection = self._leaving.popleft()[1]
            if connection.fileno() != -1:
                self._end(connection, wire.ABNORMAL, "the close was not answered in time")
                self._forget(connection)
        due = [self._leaving[0][0]] if self._leaving else []
        if self._heartbeat is not None:
            self._heartbeat.beat()
            due.append(self._heartbeat.next_at)
        if self._drain_deadline is not None and not self._closed:
            if self._drain_deadline <= now:
                self._acceptor.stop()
                self._leave(wire.SERVICE_RESTART, "left to another producer: it took too long")
            else:
                due.append(self._drain_deadline)
        if self._acceptor.again_at is not None:
            if self._acceptor.again_at <= now:
                self._acceptor.end_rest()
            else:
                due.append(self._acceptor.again_at)
        return max(0.0, min(due) - now) if due else None

    def _accept(self) -> None:
        """Let in who waits: all of them, but one at a time of those that others let in too."""
        while True:
            try:
                sock = self._acceptor.accept_nowait()
            except OSError as error:
                if self._acceptor.again_at is None:
                    raise
                reason = f"cannot accept a client: {error.strerror}"
                self._events.append(Event(EventType.Error, None, "", 0, reason))
                return
            if sock is None:
                return
            connection = Connection(
                sock, self._max_message_bytes, self._max_queue_bytes, self._update
            )
            self._connections[sock.fileno()] = connection
            connection.watched = select.EPOLLIN
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            if self._file.is_shared and self._drain_deadline is None:
                self._acceptor.let_others_go_first()
                return

    def _receive(self, connection: Connection) -> None:
        data = connection.receive_nowait()
        if data is None:
            return
        if not data:
            self._receive_eof(connection)
            return
        for item in connection.reader.receive(data):
            if isinstance(item, (str, bytes)):
                if connection.state in RECEIVING:
                    kind = EventType.IO if item else EventType.NoData
                    self._events.append(Event(kind, connection.client, item))
            elif isinstance(item, wire.Open):
                connection.client = Client(connection, item)
                connection.state = State.ASKED if item.answer_required else State.OPEN
                self._events.append(Event(EventType.Accept, connection.client))
                if self._closed:
                    connection.send_close(wire.GOING_AWAY, "the server closes")
                if self._drain_deadline is not None:
                    self._move(connection)
            elif isinstance(item, wire.Close):
                if connection.state is not State.CLOSED:
                    self._events.append(
                        Event(EventType.Close, connection.client, "", item.code, item.reason)
                    )
                connection.drop_queue()
                self._end(connection, item.code, item.reason)
            elif isinstance(item, Moved):
                self._receive_move(connection)
            elif isinstance(item, Violation):
                self._refuse(connection, item)
            # A Pong answers a PING, which producers cannot send yet.
        if ignored := connection.reader.ignored:
            opcodes = " ".join(f"{opcode:#x}" for opcode in sorted(set(ignored)))
            ignored.clear()
            _logger.warning("%s: ignored frames of opcodes %s", connection.client, opcodes)

    def _receive_eof(self, connection: Connection) -> None:
        if connection.state is not State.CONNECTING or not connection.reader.is_idle:
            reason = "it was refused" if connection.was_rejected else "the connection broke off"
            self._end(connection, wire.ABNORMAL, reason)
        # Otherwise somebody looked whether a producer listens, and left.
        self._forget(connection)

    def _receive_move(self, connection: Connection) -> None:
        connection.has_moved = True
        if connection.state in RECEIVING:
            connection.state = State.MOVED
            event = Event(
                EventType.ConnectionClosed,
                connection.client,
                "",
                wire.SERVICE_RESTART,
                "moved to another producer",
            )
            self._events.append(event)
            self._moved[event] = connection
            self._update(connection)
        elif connection.state is State.CLOSING:
            self._end(connection, wire.ABNORMAL, "the close came too late to be answered")

    def _part(self) -> None:
        """Let a client go that has moved: the program has had its say."""
        connection, self._parting = self._parting, None
        if connection is not None and connection.state is State.PARTING:
            connection.state = State.CLOSED
            self._update(connection)

    def _refuse(self, connection: Connection, violation: Violation) -> None:
        if connection.state in RECEIVING:
            self._events.append(
                Event(EventType.Error, connection.client, "", violation.code, violation.reason)
            )
            connection.drop_queue()
            connection.send_close(violation.code, wire.truncate_reason(violation.reason))
        self._end(connection, violation.code, violation.reason)

    def _end(self, connection: Connection, code: int, reason: str) -> None:
        """Queue the connection's last event, once; it stays only to send its queue."""
        if connection.state is not State.CLOSED:
            connection.state = State.CLOSED
            kind = EventType.ConnectionClosed if connection.client else EventType.Invalid
            self._events.append(Event(kind, connection.client, "", code, reason))
        self._update(connection)

    def _forget(self, connection: Connection) -> None:
        fd = connection.fileno()
        if fd != -1:
            del self._connections[fd]
            self._epoll.unregister(fd)
            connection.state = State.CLOSED
            connection.close()

    def _move(self, connection: Connection) -> None:
        """Send a client on, or refuse one that waits to be accepted."""
        if connection.state is State.ASKED:
            connection.send_close(wire.GOING_AWAY, "the server closes")
        # (One that has sent no OPEN yet, but perhaps a message behind it, comes back
        # here with that.)
        connection.send_move()

    def _leave(self, code: int, reason: str) -> None:
        """End every connection that is left, without a word to it."""
        for connection in list(self._connections.values()):
            if connection.client and connection.state not in (State.MOVED, State.PARTING):
                self._end(connection, code, reason)
            self._forget(connection)

    def _is_drained(self) -> bool:
        """Return whether ``drain()`` is through, and end the server where it is."""
        if self._drain_deadline is None or self._connections:
            return False
        self._accept()  # a last look
        if self._connections or self._events:
            return False
        self._shut()
        return True

    def _serve_until(self, time_at: float) -> None:
        while (wait_s := time_at - time.monotonic()) > 0:
            self._turn(wait_s)

    def _shut(self) -> None:
        """Give everything back; all events stay."""
        self._closed = True
        self._acceptor.stop()
        _open_servers.pop(id(self), None)
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        self._wake_reader.close()
        self._wake_writer.close()
        self._epoll.close()

    def _notify_stopping(self) -> None:
        if all(server._closed or server._drain_deadline is not None for server in open_servers()):
            notify("STOPPING=1")

    def _run_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def _update(self, connection: Connection) -> None:
        """Follow a change of state or queue: event, deadline, epoll mask, end."""
        if connection.fileno() == -1:
            return
        if connection.has_overflowed and connection.state is State.CLOSING:
            self._end(connection, wire.TRY_AGAIN_LATER, "too slow: the send queue was full")
            return
        if connection.state is State.CLOSED and not connection.has_queue:
            self._forget(connection)
            return
        if connection.deadline is None and connection.state in (State.CLOSING, State.CLOSED):
            connection.deadline = time.monotonic() + CLOSE_TIMEOUT_S
            self._leaving.append((connection.deadline, connection))
        is_read = connection.wants_reading and not (self._closed and connection.state in RECEIVING)
        mask = (select.EPOLLIN if is_read else 0) | (select.EPOLLOUT if connection.has_queue else 0)
        if mask != connection.watched:
            connection.watched = mask
            self._epoll.modify(connection.fileno(), mask)
