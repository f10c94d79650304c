"""The server's loop: one epoll over the listening socket and every client's.

Contract: for ``Server``, ``Client`` and what is built on them.  Whoever calls anything
here holds ``lock``; ``turn()`` lets go of it while it waits, so that other threads may
send, close and broadcast meanwhile.  One thread at a time waits.  Nothing blocks but
``turn()`` and what is made of it.

How this works: each client is one Unix socket, watched level-triggered.  A turn
of the loop takes at most ``READ_BYTES`` from each socket that is ready and turns
at most ``FRAMES_A_TURN`` of their frames into events, until there are ``TURN_EVENTS``;
the next turn goes on with the sockets that were not looked at, before epoll is asked again:
it would name the same ones first, and a client that floods would starve the others.  The
rest of what was read stays with its reader for the turns after that; the socket is not read
again before.  So what is buffered is bounded: one read and one unfinished message per
client, and the events of one turn.

How ``drain()`` loses nothing (docs/wire.md, *Moving*): each client is sent a MOVE.
What it sends before the bridge's answering MOVE becomes events as ever, and what the
program sends meanwhile goes to it as ever.  Behind these events comes its
ConnectionClosed, and when the program comes back for the event after that, it has
had its say: what it sent goes out, and the socket is closed.  The listening socket
stays open until the end, without its file: nobody finds it any more, but who was on
the way to it when the file went is let in and moved on like everybody else.

How another thread is heard: what it does to a client is done at once, under the
lock.  Where that makes an event or a deadline while this one waits, it is woken.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from apachews import wire
from apachews._connection import RECEIVING, Connection, State
from apachews._listening.acceptor import new_acceptor
from apachews._listening.socket_file import SocketFile
from apachews._processes.sd_notify import start_heartbeat
from apachews._processes.siblings import Siblings
from apachews.client import Client, encode_message
from apachews.events import (
    AcceptEvent,
    CloseEvent,
    ConnectionClosedEvent,
    ErrorEvent,
    Event,
    InvalidEvent,
    MessageEvent,
    PongEvent,
)
from apachews.exceptions import ServerClosed
from apachews.groups import Delivery, Group
from apachews.wire.reader import Moved

from .publications import Publications

# Events after which a turn ends.
TURN_EVENTS: Final = 1000
# How long a client that is being closed may take to go; Apache's side gives the
# browser as long (APACHEWS_CLOSE_TIMEOUT).
CLOSE_TIMEOUT_S: Final = 10.0
# How long close() waits for the last goodbyes to leave.
FLUSH_TIMEOUT_S: Final = 1.0

_logger: Final = logging.getLogger("apachews")
_OUT: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
_READABLE: Final = select.EPOLLIN | _GONE


class Loop:
    """Everything between the sockets and the events.

    Args:
        file: listens; closed here.
        max_message_bytes, max_queue_bytes: as ``Server``.
        on_ending: called once it closes or drains.
        siblings: other workers of the same socket; closed here.

    Attributes:
        lock: held by whoever calls anything or looks at anything here.
        events: what happened and nobody has taken yet.
        connections: by descriptor.
        is_closed: no event comes any more but those that wait.
        parts_when_told: a client that has moved is let go by ``Connection.part()``, and not
            when the program comes back for the next event.
        is_released_later: the descriptors stay open until ``next_event`` has told the end.
        is_awaited: a thread waits in ``turn()``.
    """

    def __init__(
        self,
        file: SocketFile,
        max_message_bytes: int,
        max_queue_bytes: int,
        on_ending: Callable[[], None],
        siblings: Siblings | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.events: deque[Event] = deque()
        self.connections: dict[int, Connection] = {}
        self.is_closed = False
        self.parts_when_told = False
        self.is_released_later = False
        self._on_ending = on_ending
        self._file = file
        self._max_message_bytes = max_message_bytes
        self._max_queue_bytes = max_queue_bytes
        self._leaving: deque[tuple[float, Connection]] = deque()  # deadlines, in order
        # What epoll found ready and no turn has looked at yet: descriptor, events.
        self._ready: deque[tuple[int, int]] = deque()
        # Descriptors whose readers made a pause.  A dict for its order.
        self._paused: dict[int, None] = {}
        self._busy = 1  # how many of these there were when epoll was asked last
        self._drain_deadline: float | None = None
        # Clients that have moved, by their last event, until that is taken; and the
        # one whose last event the program has in hand.
        self._moved: dict[Event, Connection] = {}
        self._parting: Connection | None = None
        self._calls: deque[Callable[[], object]] = deque()
        self.is_awaited = self._has_fileno = False
        self._heartbeat = start_heartbeat()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._wake_reader.fileno(), select.EPOLLIN)
        self._acceptor = new_acceptor(self._file, self._epoll)
        # A group lives as long as it has a member, or somebody has it in hand.
        self._groups: weakref.WeakValueDictionary[str, Group] = weakref.WeakValueDictionary()
        self._publications = Publications(self._deliver, self._epoll, siblings)

    def fileno(self) -> int:
        """Return what becomes readable when ``turn(0)`` has something to do."""
        self._has_fileno = True
        return self._epoll.fileno()

    @property
    def is_draining(self) -> bool:
        """True once ``drain()`` was called."""
        return self._drain_deadline is not None

    @property
    def is_ending(self) -> bool:
        """True once it was told to close or to drain."""
        return self.is_closed or self.is_draining

    def next_event(self, deadline: float | None) -> Event | None:
        """Wait for an event until a deadline (``time.monotonic()``), or for ever.

        Raises:
            ServerClosed: there is none any more.
        """
        if self._heartbeat is not None:
            self._heartbeat.beat()
        if self._parting is not None:
            self._parting.part()
            self._parting = None
        if self._calls:
            self._run_calls()
        while not self.events:
            if self.is_closed or self._is_drained():
                self.release()
                raise ServerClosed
            wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            self.turn(wait_s)
            if self._calls:
                self._run_calls()
            if not self.events and deadline is not None and time.monotonic() >= deadline:
                if self._paused and self._has_fileno:
                    self.wake()  # what was read already does not make the descriptor readable
                return None
        event = self.events.popleft()
        if self._moved and (moved := self._moved.pop(event, None)) is not None:
            # From here on closing it does nothing, as with any client that is gone: many
            # a program does that at ConnectionClosed, and means no goodbye.
            if moved.state is State.MOVED:
                moved.state = State.PARTING
            if not self.parts_when_told:
                self._parting = moved
        return event

    def group(self, name: str) -> Group:
        """Return the group of this name."""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(name, self.lock)
        return group

    def broadcast(self, frame: bytes) -> int:
        """Send a frame to all clients; return how many it was sent to or queued for."""
        return sum([connection.send_frame(frame) for connection in [*self.connections.values()]])

    def _deliver(self, group: str | None, message: str | bytes) -> Delivery:
        if group is not None:
            return self.group(group).broadcast(message)
        clients = sum(connection.client is not None for connection in self.connections.values())
        reached = self.broadcast(encode_message(message))
        return Delivery(reached, clients - reached)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have a function called between two events; from any thread, without the lock."""
        self._calls.append(function)
        self.wake()

    def wake(self) -> None:
        """Have the thread that waits look again; from any thread, without the lock."""
        try:
            self._wake_writer.send(b"\0")
        except OSError:
            pass  # full: it wakes up anyway; or closed: nobody is there to be woken

    def drain(self, timeout_s: float) -> None:
        """Begin to hand every client on; see ``Server.drain``."""
        if self.is_ending:
            return
        self._drain_deadline = time.monotonic() + timeout_s
        self._file.remove()
        self._accept()
        if self._file.is_shared and self._file.is_in_place():
            # Others go on accepting; what comes from here on is theirs.  (Not so where all
            # workers end: the supervisor has removed the file then.)
            self._acceptor.stop()
        for connection in list(self.connections.values()):
            if connection.state is State.PUBLISHING:
                self._forget(connection)  # it has to do with whoever listens next
            else:
                self._move(connection)
        self._on_ending()
        self._tell()

    def close(self, spread_s: float) -> None:
        """Say goodbye to everybody; see ``Server.close``."""
        if self.is_closed:
            return
        self.is_closed = True
        self._acceptor.stop()
        self._on_ending()
        connections = list(self.connections.values())
        for connection in connections:
            self._update(connection)  # who has had no goodbye is not read any more
        started_at = time.monotonic()
        for index, connection in enumerate(connections):
            self._serve_until(started_at + spread_s * index / len(connections))
            connection.send_close(wire.GOING_AWAY, "the server closes")
        self._serve_until(started_at + spread_s)
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while (
            any(connection.has_queue for connection in self.connections.values())
            and (wait_s := deadline - time.monotonic()) > 0
        ):
            self.turn(wait_s)
        self._leave(wire.GOING_AWAY, "the server closed")
        self._shut()

    def turn(self, wait_s: float | None) -> None:
        """Wait for the sockets once, and do what they are ready for."""
        next_timer_s = self._run_timers()
        if self.events and not self.is_closed:  # a timer's
            wait_s = 0.0
        elif next_timer_s is not None:
            wait_s = next_timer_s if wait_s is None else min(wait_s, next_timer_s)
        if not self._ready:
            self._look(wait_s)
        while self._ready:
            fd, ready = self._ready.popleft()
            connection = self.connections.get(fd)
            if connection is None:
                self._run(fd)
                continue
            if ready & _OUT:
                connection.flush_nowait()
                self._update(connection)
                if connection.on_flushed is not None:
                    connection.on_flushed()
            if ready & _READABLE and connection.fileno() == fd:
                if not connection.has_moved:
                    self._receive(connection)
                elif ready & _GONE:
                    self._forget(connection)  # its last event is out
            if len(self.events) >= TURN_EVENTS:
                break

    def _look(self, wait_s: float | None) -> None:
        """Fill ``_ready``: what epoll names, then the readers that made a pause, each once."""
        self._busy = len(self._paused) or 1
        if not self._paused:
            self._ready.extend(self._poll(wait_s))
            return
        found = self._poll(0.0)
        paused, self._paused = self._paused, {}
        for fd, _ in found:
            paused.pop(fd, None)
        self._ready.extend(found)
        for fd in paused:
            if self.connections[fd].watched & select.EPOLLIN:
                self._ready.append((fd, select.EPOLLIN))

    def _run(self, fd: int) -> None:
        """Do what a descriptor that is no connection's is ready for."""
        if fd == self._acceptor.fd:
            self._accept()
        elif fd == self._wake_reader.fileno():
            self._wake_reader.recv(4096)
        elif self._acceptor.receive(fd):
            self._accept()
        else:
            self._publications.run(fd)  # or it went away meanwhile

    def _poll(self, wait_s: float | None) -> list[tuple[int, int]]:
        """Wait, without the lock; a zero wait lets others have it as well."""
        if self.is_closed:
            # Nobody else is to find it half closed.
            return self._epoll.poll(wait_s)
        self.is_awaited = True
        self.lock.release()
        try:
            return self._epoll.poll(wait_s)
        finally:
            self.lock.acquire()
            self.is_awaited = False

    def _tell(self) -> None:
        """Wake the thread that waits: there is an event, or a time to wait for."""
        if self.is_awaited or self._has_fileno:
            self.wake()

    def next_timer_s(self) -> float | None:
        """Return after how many seconds ``turn(0)`` has something to do, whatever comes."""
        with self.lock:
            if self.events or self._calls or self._ready or self._paused:
                return 0.0
            if self._parting is not None:
                return 0.0
            next_timer_s = self._run_timers()
            return 0.0 if self._paused else next_timer_s  # a timer may have made one readable

    def _run_timers(self) -> float | None:
        """Do what is due; return the seconds until the next is, or None."""
        if not (
            self._leaving
            or self._heartbeat is not None
            or self._drain_deadline is not None
            or self._publications.has_timers
            or self._acceptor.has_timers
        ):
            return None
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
        if self._drain_deadline is not None and not self.is_closed:
            if self._drain_deadline <= now:
                self._acceptor.stop()
                self._leave(wire.SERVICE_RESTART, "left to another producer: it took too long")
            else:
                due.append(self._drain_deadline)
        if (late_at := self._publications.run_timers(now)) is not None:
            due.append(late_at)
        if (unproven_at := self._acceptor.expire(now)) is not None:
            due.append(unproven_at)
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
                self.events.append(ErrorEvent(None, reason=reason))
                return
            if sock is None:
                return
            connection = Connection(
                sock, self.lock, self._max_message_bytes, self._max_queue_bytes, self._update
            )
            self.connections[sock.fileno()] = connection
            connection.watched = select.EPOLLIN
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            if self._file.is_shared and self._drain_deadline is None:
                self._acceptor.let_others_go_first()
                return

    def _receive(self, connection: Connection) -> None:
        if connection.reader.is_paused:
            items = connection.reader.receive(b"", self._busy)
        else:
            data = connection.receive_nowait()
            if data is None:
                return
            if not data:
                self._receive_eof(connection)
                return
            items = connection.reader.receive(data, self._busy)
        if connection.reader.is_paused:
            self._paused[connection.fileno()] = None
        for item in items:
            if isinstance(item, (str, bytes)):
                if connection.state in RECEIVING:
                    self.events.append(MessageEvent(connection.client, item))
                elif connection.state is State.PUBLISHING:
                    self._publications.receive(connection, item)
            elif isinstance(item, wire.Publish):
                connection.state = State.PUBLISHING
                self._publications.begin(connection, item)
            elif isinstance(item, wire.Open):
                opening = connection.reader.pop_open_payload()
                connection.client = Client(connection, item.id, opening)
                connection.state = State.ASKED if item.answer_required else State.OPEN
                self.events.append(AcceptEvent(connection.client))
                if self.is_closed:
                    connection.send_close(wire.GOING_AWAY, "the server closes")
                if self._drain_deadline is not None:
                    self._move(connection)
            elif isinstance(item, wire.Close) and connection.state is State.PUBLISHING:
                self._forget(connection)
            elif isinstance(item, wire.Close):
                if connection.state is not State.CLOSED:
                    self.events.append(CloseEvent(connection.client, "", item.code, item.reason))
                connection.drop_queue()
                self._end(connection, item.code, item.reason)
            elif isinstance(item, Moved):
                self._receive_move(connection)
            elif isinstance(item, wire.Violation):
                self._refuse(connection, item)
            elif connection.client:
                latency_s = connection.client.receive_pong(item.payload)
                if latency_s is not None and connection.state in RECEIVING:
                    self.events.append(PongEvent(connection.client, latency_s))
        if ignored := connection.reader.ignored:
            opcodes = " ".join(f"{opcode:#x}" for opcode in sorted(set(ignored)))
            ignored.clear()
            _logger.warning("%s: ignored frames of opcodes %s", connection.client, opcodes)

    def _receive_eof(self, connection: Connection) -> None:
        may_leave = connection.state in (State.CONNECTING, State.PUBLISHING)
        if not may_leave or not connection.reader.is_idle:
            reason = "it was refused" if connection.was_rejected else "the connection broke off"
            self._end(connection, wire.ABNORMAL, reason)
        # Otherwise somebody looked whether a producer listens, and left.
        self._forget(connection)

    def _receive_move(self, connection: Connection) -> None:
        connection.has_moved = True
        if connection.state in RECEIVING:
            connection.state = State.MOVED
            event = ConnectionClosedEvent(
                connection.client, "", wire.SERVICE_RESTART, "moved to another producer"
            )
            self.events.append(event)
            self._moved[event] = connection
            self._update(connection)
        elif connection.state is State.CLOSING:
            self._end(connection, wire.ABNORMAL, "the close came too late to be answered")
        elif connection.state is State.ASKED:
            self._end(connection, wire.ABNORMAL, "it left before it was answered")

    def _refuse(self, connection: Connection, violation: wire.Violation) -> None:
        if connection.state in RECEIVING:
            self.events.append(ErrorEvent(connection.client, "", violation.code, violation.reason))
            connection.drop_queue()
            connection.send_close(violation.code, wire.truncate_reason(violation.reason))
        self._end(connection, violation.code, violation.reason)

    def _end(self, connection: Connection, code: int, reason: str) -> None:
        """Queue the connection's last event, once; it stays only to send its queue."""
        if connection.state is not State.CLOSED:
            connection.state = State.CLOSED
            kind = ConnectionClosedEvent if connection.client else InvalidEvent
            self.events.append(kind(connection.client, "", code, reason))
            self._tell()
            if connection.client:
                connection.client.leave_groups()
        self._update(connection)

    def _forget(self, connection: Connection) -> None:
        fd = connection.fileno()
        if fd != -1:
            del self.connections[fd]
            self._paused.pop(fd, None)
            self._epoll.unregister(fd)
            connection.state = State.CLOSED
            connection.close()
            if connection.client:
                connection.client.leave_groups()
            self._publications.end(connection)
            if self.is_draining and not self.connections:
                self._tell()

    def _move(self, connection: Connection) -> None:
        """Send a client on, or refuse one that waits to be accepted."""
        if connection.state is State.ASKED:
            connection.send_close(wire.GOING_AWAY, "the server closes")
        # (One that has sent no OPEN yet, but perhaps a message behind it, comes back
        # here with that.)
        connection.send_move()

    def _leave(self, code: int, reason: str) -> None:
        """End every connection that is left, without a word to it."""
        for connection in list(self.connections.values()):
            if connection.client and connection.state not in (State.MOVED, State.PARTING):
                self._end(connection, code, reason)
            self._forget(connection)

    def _is_drained(self) -> bool:
        """Return whether ``drain()`` is through, and end the server where it is."""
        if self._drain_deadline is None or self.connections:
            return False
        self._accept()  # a last look
        if self.connections or self.events:
            return False
        self._shut()
        return True

    def _serve_until(self, time_at: float) -> None:
        while (wait_s := time_at - time.monotonic()) > 0:
            self.turn(wait_s)

    def _shut(self) -> None:
        """Give everything back; all events stay."""
        self.is_closed = True
        self._acceptor.stop()
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        if self.is_released_later:
            self.wake()  # who watches the descriptor must see the end before it is closed
        else:
            self.release()

    def release(self) -> None:
        """Close the descriptors; again does nothing."""
        if not self._epoll.closed:
            self._publications.close()
        self._wake_reader.close()
        self._wake_writer.close()
        self._epoll.close()

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
            self._tell()
        is_over = self.is_closed and connection.state in RECEIVING
        is_read = connection.wants_reading and not is_over
        mask = (select.EPOLLIN if is_read else 0) | (select.EPOLLOUT if connection.has_queue else 0)
        if mask != connection.watched:
            if is_read and connection.reader.is_paused:
                self._paused[connection.fileno()] = None
                self._tell()  # what was read already does not make the socket readable
            connection.watched = mask
            self._epoll.modify(connection.fileno(), mask)
