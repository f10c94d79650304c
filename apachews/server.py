"""The producer's server: one epoll loop behind ``dequeue()``.

Contract: ``Server(path)`` listens; ``dequeue()`` hands out one event after the
other.  Nothing here blocks but ``dequeue()`` itself and, for at most a second,
``close()``.  For one thread; sockets make progress only inside ``dequeue()``.

How this works: each client is one Unix socket, watched level-triggered.  A turn
of the loop takes at most ``READ_BYTES`` from each socket that is ready and turns
them into events, until there are ``TURN_EVENTS``; the next turn goes on with the
sockets that were not looked at, before epoll is asked again: it would name the
same ones first, and a client that floods would starve the others.  No socket is
read again before all events were taken, so what is buffered is bounded: one
unfinished message a client, and the events of one turn.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Final, overload

from . import wire
from .client import Client, encode_message
from .connection import Connection, State
from .events import Event, EventType
from .exceptions import ServerClosed
from .languages import preferred_language
from .listener import SocketFile
from .messages import DEFAULT_MAX_MESSAGE_BYTES, Violation

# Frames that may wait for one slow client.  A broadcast's frame is one object
# however many clients wait for it.
DEFAULT_MAX_QUEUE_BYTES: Final = 4 * 1024 * 1024
# Events after which a turn ends; one read of the smallest messages gives 32768.
TURN_EVENTS: Final = 1000
# How long a client that is being closed may take to go; Apache's side gives the
# browser as long (APACHEWS_CLOSE_TIMEOUT).
CLOSE_TIMEOUT_S: Final = 10.0
# How long close() waits for the goodbyes to leave.
FLUSH_TIMEOUT_S: Final = 1.0
# How long accepting rests when the process has no descriptor left.
ACCEPT_REST_S: Final = 1.0

_logger: Final = logging.getLogger("apachews")
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_READABLE: Final = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR


class Server:
    """Listens on a socket file for the WebSockets that Apache bridges to it.

    Args:
        path: the socket file, in Apache's document root.  A file left by a
            producer that died is replaced.
        mode: permissions of the file.  Apache's user needs the right to write.
        group: group of the file (name or number), ``www-data`` say, where the
            producer runs as another user than Apache; None leaves it.
        max_message_bytes: the longest message taken; a client that sends more
            is closed with 1009.
        max_queue_bytes: what may wait for a client that does not read; one for
            whom more waits when another message is sent is closed with 1013.

    Raises:
        SocketInUse: another producer listens there.
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
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._max_queue_bytes = max_queue_bytes
        self._events: deque[Event] = deque()
        self._connections: dict[int, Connection] = {}
        self._leaving: deque[tuple[float, Connection]] = deque()  # deadlines, in order
        self._accepting_again_at: float | None = None
        # What epoll found ready and no turn has looked at yet: descriptor, events.
        self._ready: deque[tuple[int, int]] = deque()
        self._closed = False
        self._file = SocketFile(os.fspath(path), mode, group)
        self._epoll = select.epoll()
        self._listen_fd = self._file.socket.fileno()
        self._epoll.register(self._listen_fd, select.EPOLLIN)

    @property
    def path(self) -> str:
        """The socket file."""
        return self._file.path

    def clients(self) -> list[Client]:
        """Return the clients that are connected, accepted and not being closed."""
        return [
            connection.client
            for connection in self._connections.values()
            if connection.client and connection.state is State.OPEN
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
            ServerClosed: after ``close()``, once all events were taken.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._events:
            if self._closed:
                raise ServerClosed
            wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._turn(wait_s)
            if not self._events and deadline is not None and time.monotonic() >= deadline:
                return None
        return self._events.popleft()

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

    def close(self) -> None:
        """Say goodbye to every client (1001), and remove the socket file.

        Waits at most a second for the goodbyes to leave.  Each client still gets
        its ConnectionClosed event.  Closing again does nothing.
        """
        if self._closed:
            return
        self._closed = True
        self._file.close()
        for connection in list(self._connections.values()):
            connection.send_close(wire.GOING_AWAY, "the server closes")
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while (
            any(connection.has_queue for connection in self._connections.values())
            and (wait_s := deadline - time.monotonic()) > 0
        ):
            self._turn(wait_s)
        for connection in list(self._connections.values()):
            if connection.client:
                self._end(connection, wire.GOING_AWAY, "the server closed")
            self._forget(connection)
        self._epoll.close()

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
        if self._events:  # a timer's
            wait_s = 0.0
        elif next_timer_s is not None:
            wait_s = next_timer_s if wait_s is None else min(wait_s, next_timer_s)
        if not self._ready:
            self._ready.extend(self._epoll.poll(wait_s))
        while self._ready:
            fd, ready = self._ready.popleft()
            if fd == self._listen_fd:
                if not self._closed:
                    self._accept()
                continue
            connection = self._connections.get(fd)
            if connection is None:
                continue  # it went away meanwhile
            if ready & select.EPOLLOUT:
                connection.flush_nowait()
                self._update(connection)
            if ready & _READABLE and connection.fileno() == fd:
                self._receive(connection)
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
        if self._accepting_again_at is not None:
            if self._accepting_again_at <= now:
                self._rest_accepting(False)
            else:
                due.append(self._accepting_again_at)
        return max(0.0, min(due) - now) if due else None

    def _accept(self) -> None:
        while True:
            try:
                sock = self._file.socket.accept()[0]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._rest_accepting(True)
                    reason = f"cannot accept a client: {error.strerror}"
                    self._events.append(Event(EventType.Error, None, "", 0, reason))
                    return
                if error.errno == errno.ECONNABORTED:
                    continue
                raise
            sock.setblocking(False)
            connection = Connection(
                sock, self._max_message_bytes, self._max_queue_bytes, self._update
            )
            self._connections[sock.fileno()] = connection
            connection.watched = select.EPOLLIN
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _rest_accepting(self, resting: bool) -> None:
        # A listening socket that cannot be accepted from stays ready: watching
        # it on would turn the loop into a spin.
        self._accepting_again_at = time.monotonic() + ACCEPT_REST_S if resting else None
        if not self._closed:
            self._epoll.modify(self._listen_fd, 0 if resting else select.EPOLLIN)

    def _receive(self, connection: Connection) -> None:
        data = connection.receive_nowait()
        if data is None:
            return
        if not data:
            self._receive_eof(connection)
            return
        for item in connection.reader.receive(data):
            if isinstance(item, (str, bytes)):
                if connection.state is State.OPEN:
                    kind = EventType.IO if item else EventType.NoData
                    self._events.append(Event(kind, connection.client, item))
            elif isinstance(item, wire.Open):
                connection.client = Client(connection, item)
                connection.state = State.ASKED if item.answer_required else State.OPEN
                self._events.append(Event(EventType.Accept, connection.client))
            elif isinstance(item, wire.Close):
                if connection.state is not State.CLOSED:
                    self._events.append(
                        Event(EventType.Close, connection.client, "", item.code, item.reason)
                    )
                connection.drop_queue()
                self._end(connection, item.code, item.reason)
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

    def _refuse(self, connection: Connection, violation: Violation) -> None:
        if connection.state is State.OPEN:
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
            connection.close()

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
        mask = (select.EPOLLIN if connection.wants_reading else 0) | (
            select.EPOLLOUT if connection.has_queue else 0
        )
        if mask != connection.watched:
            connection.watched = mask
            self._epoll.modify(connection.fileno(), mask)
