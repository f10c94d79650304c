"""The loop that carries a process's WebSockets: one epoll, and what becomes of each.

Contract: ``add`` gives it a connection, which it owns from then on; ``turn`` waits
once and does what is due.  ``watch`` has it look after other descriptors.  On one
thread at a time: the bridge's in a child of Apache, the only one in a custodian.

How this works: a level-triggered epoll over two descriptors a connection, client
and producer.  What is read from one is given to the session, and what that puts
out is sent to the other.  Bytes that a side does not take wait here, and while
they do, the side they came from is not read: so at most one read (APACHEWS_MAX_BUFFER,
and a header) and a few frames of the bridge's own wait in each direction, and the kernel's
buffers carry the backpressure to the other end.

Time is looked at once a turn.  Every connection has a place in ``Deadlines``, for
when its ``Timeouts`` wants to be asked again.  What is due within ``TIMERS_S`` is done
together: among thousands of idle clients one is to be pinged every few milliseconds,
and to wake up for each by itself costs several times as much as the ping.

A client whose producer is gone is in ``Reconnector`` until there is another one; it is
read meanwhile, up to a buffer.

Nothing is allocated for an idle connection beyond its few objects, no closure and
no buffer.  An exception in the handling of a connection ends that connection,
with a traceback in the log, and no other.

A busy loop mostly passes messages from one side to the other, with both sides open and
nothing waiting.  ``_pass_on`` and ``_pass_back`` are that case of ``_on_client`` and
``_on_producer``, without the steps that do nothing then (bench/run --case 'echo-64B-*').
Whatever else they meet they leave to those.
"""

from __future__ import annotations

import errno
import math
import select
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from apachews_handler.monitoring.counters import Counters
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.protocol.progress import SLOWEST_CLOSING_BYTES_S, Progress
from apachews_handler.protocol.session import HEADER_BYTES, ClientState, ProducerState
from apachews_handler.protocol.timeouts import Due

from .connection import Connection
from .deadlines import Deadlines
from .reconnect import MAX_DELAY_S, SETTLED_S, Reconnector
from .transport import client_state, client_unsent_bytes, discard_client

# (To look a member of an Enum up costs as much as a call in Python 3.11.)
_OPEN: Final = ClientState.OPEN
_CONNECTED: Final = ProducerState.CONNECTED
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
_NOT_WATCHED: Final = -1
# epoll_ctl(2): the kernel cannot watch another descriptor (fs.epoll.max_user_watches).
_NO_ROOM: Final = (errno.ENOSPC, errno.ENOMEM)
# How late what is due may be, so that it is done together.
TIMERS_S: Final = 0.05
# A turn that takes longer is remembered, for so long.
LONG_TURN_S: Final = 0.001
LONG_TURNS_KEPT_S: Final = 60.0


class Loop:
    """All connections of a process.  Made before its thread, which alone calls it then."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._clients: dict[int, Connection] = {}
        self._producers: dict[int, Connection] = {}
        self._holds = Reconnector()
        self._others: dict[int, Callable[[], None]] = {}
        self._deadlines: Deadlines[Connection] = Deadlines()
        # Clients to handle in the next turn whether epoll names them or not: their TLS
        # holds bytes, or their reader made a pause.  A dict for its order.
        self._pending: dict[Connection, None] = {}
        self._busy = 1  # how many of these there were in the last turn
        self._now = time.monotonic()
        # When a turn began and how long it took: none before a longer one.
        self._long_turns: deque[tuple[float, float]] = deque()
        self.counters = Counters()

    def connections(self) -> set[Connection]:
        """Return those that are not closed."""
        return {
            *self._clients.values(),
            *self._producers.values(),
            *self._holds.connections(),
        }

    def connections_by_age(self) -> list[Connection]:
        """Return the same, the oldest first but for those whose client is gone."""
        found = dict.fromkeys(self._clients.values())
        found.update(dict.fromkeys(self._producers.values()))
        found.update(dict.fromkeys(self._holds.connections()))
        return list(found)

    @property
    def is_empty(self) -> bool:
        """True where there is no connection."""
        return not (self._clients or self._producers or self._holds)

    def watch(self, fd: int, on_ready: Callable[[], None], events: int = _IN) -> None:
        """Have a function called in every turn in which a descriptor is readable.

        This may be called from any thread; the function is called on the loop's.

        Args:
            events: epoll's, if others than that it is readable.

        Raises:
            OSError: the kernel has no room.
        """
        self._others[fd] = on_ready
        try:
            self._epoll.register(fd, events)
        except OSError:
            self._others.pop(fd, None)
            raise

    def unwatch(self, fd: int) -> None:
        """Look after a descriptor no more; the caller closes it."""
        if not self._epoll.closed:
            self._unregister(fd)
        self._others.pop(fd, None)

    def add(self, connection: Connection) -> None:
        """Take a connection over; one with a fault is ended here."""
        self._guard(self._begin, connection)

    def ping_early(self, connections: Iterable[Connection]) -> None:
        """Send those a PING that will be due within half an interval anyway."""
        self._now = time.monotonic()
        for connection in connections:
            if connection.watch.ask_early(self._now):
                self._guard(self._ping_early, connection)

    def _ping_early(self, connection: Connection) -> None:
        self._ping(connection)
        self._flush(connection)
        if not connection.is_closed:
            self._deadlines.drop(connection)  # when the PING was due
            self._schedule(connection)

    def release(self, connection: Connection) -> None:
        """Let go of a connection at rest without closing it: another process takes it over."""
        self._unregister(connection.client_fd)
        self._unregister(connection.producer_fd)
        del self._clients[connection.client_fd], self._producers[connection.producer_fd]
        self._pending.pop(connection, None)
        self._deadlines.drop(connection)
        self.counters.leave(connection.path, connection.session.traffic())

    def adopt(self, connection: Connection) -> None:
        """Take over a connection that was released, by this process or by another one."""
        self._guard(self._adopt, connection)

    def send_away(
        self, connections: Iterable[Connection], end: CloseCause, within_s: float | None = None
    ) -> float:
        """Close connections one after the other, at the pace of their settings.

        Args:
            connections: those that would go earlier anyway are left as they are.
            end: why.
            within_s: all are told within so many seconds, whatever the pace.

        Returns:
            After how many seconds the last one is told.
        """
        now = time.monotonic()
        going = [
            connection
            for connection in connections
            if connection.session.client_state is ClientState.OPEN
        ]
        after_s = 0.0
        for connection in going:
            watch, rate = connection.watch, connection.settings.drain_rate
            at = now + after_s
            if not watch.goodbye_at or at < watch.goodbye_at:
                connection.goodbye, watch.goodbye_at = end, at
                self._schedule(connection)
            pace_s = 1 / rate.per_s if rate else 0.0
            after_s += pace_s if within_s is None else min(pace_s, within_s / len(going))
        return after_s

    def renew(self) -> None:
        """Begin anew with an epoll of our own: this process was forked.

        The old one is shared with the process that it was forked from.  What
        ``watch`` was told of is forgotten.
        """
        self._epoll.close()
        self._others.clear()
        self._holds.give_up()
        self._epoll = select.epoll()
        for fd, connection in self._clients.items():
            self._epoll.register(fd, connection.client_mask)
        for fd, connection in self._producers.items():
            if connection.producer_mask != _NOT_WATCHED:
                self._epoll.register(fd, connection.producer_mask)

    def descriptors(self) -> set[int]:
        """Return those of all connections, and its own."""
        return {*self._clients, *self._producers, self._epoll.fileno()}

    def close(self) -> None:
        """Close whatever there is, without a word."""
        for connection in self.connections():
            connection.session.fail()  # where it has no end yet: the loop broke off
            self._forget(connection)
        self._epoll.close()

    def turn(self, max_wait_s: float | None = None) -> None:
        """Wait once, and do what is due.

        Args:
            max_wait_s: at most so long; None: until something happens.
        """
        events = self._epoll.poll(self._wait_s(max_wait_s))
        self._now = time.monotonic()
        clients, producers, others = self._clients, self._producers, []
        pending, self._pending = self._pending, {}
        self._busy = len(pending) or 1
        for fd, ready in events:
            if (connection := clients.get(fd)) is not None:
                handle = self._pass_on if ready == _IN else self._on_client
                if pending:
                    pending.pop(connection, None)  # each connection once a turn
            elif (connection := producers.get(fd)) is not None:
                handle = self._pass_back if ready == _IN else self._on_producer
            else:
                if fd in self._others:
                    others.append(fd)
                continue  # or it was closed earlier in this turn
            try:  # (as _guard, without a call for every message)
                handle(connection, ready)
            except Exception:
                self._fail(connection)
        # Not before all events were looked at: a new connection may have the
        # number of a descriptor that was just closed, and is not to get its.
        for fd in others:
            if fd in self._others:
                self._others[fd]()
        for connection in pending:
            if connection.client_fd != -1 and connection.client_mask & _IN:
                self._guard(self._on_client, connection, _IN)
        if self._holds:
            self._run_holds()
        for connection in self._deadlines.take_due(self._now):
            if not connection.is_closed:
                self._guard(self._on_due, connection)

    def _guard(self, handle: Callable[..., None], *args: object) -> None:
        """Handle one connection; whatever goes wrong ends that one only."""
        try:
            handle(*args)
        except Exception:
            connection = args[0]
            assert isinstance(connection, Connection)
            self._fail(connection)

    def _fail(self, connection: Connection) -> None:
        """End a connection whose handling has just raised an exception."""
        connection.log.write("error", f"{connection.name}: {traceback.format_exc()}")
        connection.session.fail()
        self._forget(connection)

    def _wait_s(self, max_wait_s: float | None) -> float | None:
        now = time.monotonic()
        if now - self._now > LONG_TURN_S:
            self._note_long_turn(now - self._now)
        if self._pending:
            return 0
        wait_s = self._deadlines.next_at() - now
        if wait_s > 0:
            wait_s = max(wait_s, TIMERS_S)
        if self._holds:
            wait_s = min(wait_s, self._holds.next_at() - now)
        if wait_s == math.inf:
            return max_wait_s
        return max(0.0, wait_s if max_wait_s is None else min(wait_s, max_wait_s))

    def longest_turn_s(self) -> float:
        """Return how long the longest turn of the last minute took; 0.0 where none took long."""
        turns = self._long_turns
        while turns and turns[0][0] < self._now - LONG_TURNS_KEPT_S:
            turns.popleft()
        return turns[0][1] if turns else 0.0

    def _note_long_turn(self, took_s: float) -> None:
        self.longest_turn_s()
        while self._long_turns and self._long_turns[-1][1] <= took_s:
            self._long_turns.pop()
        self._long_turns.append((self._now, took_s))

    def _begin(self, connection: Connection) -> None:
        self.counters.begin(connection.path)
        connection.session.round_trips = self.counters.round_trips
        connection.transport.limit_unsent(connection.settings.max_buffer)
        self._clients[connection.client_fd] = connection
        try:
            self._epoll.register(connection.client_fd, _IN)
            connection.client_mask = _IN
            self._take_producer(connection)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            turn_away(connection)
            self._forget(connection)
            return
        self._flush(connection)  # the OPEN is in the session
        self._schedule(connection)
        if connection.transport.has_pending():
            self._pending[connection] = None

    def _adopt(self, connection: Connection) -> None:
        self.counters.adopt(connection.path, connection.session.traffic())
        connection.session.round_trips = self.counters.round_trips
        self._clients[connection.client_fd] = connection
        self._epoll.register(connection.client_fd, _IN)
        connection.client_mask = _IN
        self._take_producer(connection)
        self._schedule(connection)

    def _take_producer(self, connection: Connection) -> None:
        """Look after the connection's producer, a new one."""
        self._producers[connection.producer_fd] = connection
        self._epoll.register(connection.producer_fd, _IN)
        connection.producer_mask = _IN

    def _pass_on(self, connection: Connection, ready: int) -> None:
        """Do what ``_on_client`` does where there is nothing but a client's messages to send."""
        session, transport = connection.session, connection.transport
        # The mask says that nothing waits for either side.
        if connection.client_mask != _IN or session.client_state is not _OPEN or session.is_paused:
            self._on_client(connection, ready)
            return
        data = transport.recv(connection.settings.max_buffer + HEADER_BYTES)
        if data:
            watch = connection.watch
            watch.heard_at = self._now
            session.receive_client(data, self._now, self._busy)
            frames = session.to_producer
            if (
                frames
                and session.client_state is _OPEN
                and session.producer_state is _CONNECTED
                and not session.to_client
                and not session.is_paused
                and (connection.can_use_fast_path or not self._has_more(connection))
            ):
                queue = frames[0] if len(frames) == 1 else b"".join(frames)
                try:
                    sent = connection.producer.send(queue)
                except OSError:
                    sent = -1  # it is sent again below, and fails again
                if sent >= 0:
                    watch.passed_at = self._now
                    frames.clear()
                    if sent == len(queue):
                        return
                    connection.producer_queue, connection.producer_sent = queue, sent
        elif data is not None:
            session.receive_client_eof()
        if transport.has_pending():
            self._pending[connection] = None
        self._flush(connection)

    @staticmethod
    def _has_more(connection: Connection) -> bool:
        """Tell whether the client is to be looked at again, or watched for something else."""
        return connection.transport.needs_writing or connection.transport.has_pending()

    def _on_client(self, connection: Connection, ready: int) -> None:
        session, transport = connection.session, connection.transport
        if ready & _OUT:
            self._send_client_queue(connection)
        may_read = connection.client_mask & _IN or (
            transport.needs_writing and not connection.producer_queue
        )
        if session.is_paused and may_read:
            connection.watch.heard_at = self._now  # its PONG may be in what is kept
            session.receive_client(b"", self._now, self._busy)
        elif may_read and (ready & (_IN | _GONE) or transport.needs_writing):
            data = transport.recv(connection.settings.max_buffer + HEADER_BYTES)
            if data:
                connection.watch.heard_at = self._now
                session.receive_client(data, self._now, self._busy)
            elif data is not None:
                session.receive_client_eof()
        elif ready & _GONE:
            # Not read, because its producer is slow; and it is gone.
            session.receive_client_eof()
        if transport.has_pending():
            self._pending[connection] = None
        if ready & select.EPOLLRDHUP:
            # It has sent its last, and its producer is slow to take that.
            self._limit_leaving(connection)
        self._flush(connection)

    def _pass_back(self, connection: Connection, ready: int) -> None:
        """Do what ``_on_producer`` does where there is nothing but its messages to send."""
        session = connection.session
        # The mask says that nothing waits for the client.
        if connection.producer_mask != _IN or session.client_state is not _OPEN:
            self._on_producer(connection, ready)
            return
        try:
            data = connection.producer.recv(session.producer_room)
        except OSError:
            data = b""
        if not data:
            self._on_producer(connection, ready)  # reading again has the same end
            return
        watch = connection.watch
        watch.passed_at = self._now
        session.receive_producer(data)
        frames = session.to_client
        if (
            len(frames) == 1
            and session.client_state is _OPEN
            and session.producer_state is _CONNECTED
            and not session.ignored
            and not session.to_producer
            and not connection.write_failed
        ):
            queue = frames[0]
            try:
                sent = connection.transport.send(queue)
            except OSError:
                sent = -1  # it is sent again below, and fails again
            if sent >= 0:
                frames.clear()
                if sent == len(queue):
                    return
                connection.client_queue = memoryview(queue)[sent:]
                self._send_client_queue(connection)
        if session.ignored:
            self._log_ignored(connection)
        self._flush(connection)

    def _on_producer(self, connection: Connection, ready: int) -> None:
        session = connection.session
        if ready & _OUT:
            self._send_producer_queue(connection)
        if ready & (_IN | _GONE) and connection.producer_fd != -1:
            if connection.producer_mask & _IN:
                data: bytes | None
                try:
                    data = connection.producer.recv(session.producer_room)
                except BlockingIOError:
                    data = None
                except OSError:
                    data = b""
                if data:
                    connection.watch.passed_at = self._now
                    session.receive_producer(data)
                    if session.ignored:
                        self._log_ignored(connection)
                elif data is not None:
                    self._lose_producer(connection)
            elif ready & _GONE:
                # It is gone, and what it wrote before waits in the kernel for the
                # client to read.  epoll would report it for ever: look away, for as
                # long as the client takes something now and then (APACHEWS_SEND_TIMEOUT).
                self._epoll.unregister(connection.producer_fd)
                connection.producer_mask = _NOT_WATCHED
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        """Send what the session put out, and follow its phase."""
        session = connection.session
        if session.to_producer:
            connection.watch.passed_at = self._now
            connection.producer_queue += _take(session.to_producer)
            self._send_producer_queue(connection)
        if session.to_client and connection.write_failed:
            session.to_client.clear()
        if session.to_client:
            data = _take(session.to_client)
            connection.client_queue = (
                bytes(connection.client_queue) + data if connection.client_queue else data
            )
            self._send_client_queue(connection)
        if session.client_state is not ClientState.OPEN:
            self._close_what_is_finished(connection)
        self._watch(connection)

    def _send_client_queue(self, connection: Connection) -> None:
        queue = connection.client_queue
        try:
            sent = connection.transport.send(queue) if queue else 0
        except OSError:
            # The client is gone.  Its last words may still be there to read; the
            # end of file comes after them.
            connection.write_failed = True
            sent = len(queue)
        watch = connection.watch
        if sent == len(queue):
            if watch.waiting_since:
                watch.waiting_since, watch.passed_at = 0.0, self._now
                connection.session.set_congested(False)
            connection.client_queue = b""
            return
        connection.client_queue = memoryview(queue)[sent:]
        if not watch.waiting_since:
            connection.session.set_congested(True)
        elif not sent:
            return
        watch.waiting_since = watch.passed_at = self._now
        connection.unsent_bytes = client_unsent_bytes(connection.transport)
        self._schedule(connection)

    def _send_producer_queue(self, connection: Connection) -> None:
        queue, sent = connection.producer_queue, connection.producer_sent
        try:
            sent += connection.producer.send(memoryview(queue)[sent:] if sent else queue)
        except BlockingIOError:
            return
        except OSError:
            # The producer is gone.  Its last words may still be there to read;
            # the end of file comes after them.
            connection.session.receive_producer_deafness(queue, sent)
            sent = len(queue)
        if sent == len(queue):
            connection.producer_queue, connection.producer_sent = b"", 0
        else:
            connection.producer_sent = sent

    def _lose_producer(self, connection: Connection) -> None:
        """The producer has gone: wait for another one, or close."""
        session, watch = connection.session, connection.watch
        is_moving = session.is_moving
        session.receive_producer_eof(connection.producer_queue, connection.producer_sent)
        self._close_producer(connection)
        if session.producer_state is not ProducerState.AWAY:
            return
        # One that ends at once, again, may end because of this client: it is not asked
        # again at once, nor, where it has not said a word, for longer than at first.
        is_short = not is_moving and self._now - connection.resumed_at < SETTLED_S
        if not is_short or session.producer_said != connection.said_before:
            connection.hold_ends_at = self._now + connection.settings.hold
        watch.held_until = connection.hold_ends_at
        if session.client_state is ClientState.OPEN:
            watch.leaves_at = 0.0  # the client stays
        self._holds.add(connection, self._now + (MAX_DELAY_S if is_short else 0.0))
        self._schedule(connection)

    def _run_holds(self) -> None:
        for connection, producer in self._holds.take_resumable(self._now):
            self._guard(self._resume, connection, producer)

    def _resume(self, connection: Connection, producer: socket.socket) -> None:
        connection.watch.held_until = 0.0
        connection.resumed_at = self._now
        connection.said_before = connection.session.producer_said
        connection.take_producer(producer)
        self._take_producer(connection)
        connection.session.resume()
        self._flush(connection)
        if not connection.is_closed:
            self._schedule(connection)

    def _watch(self, connection: Connection) -> None:
        """Bring epoll's masks up to date: a side is read while the other one keeps up."""
        session = connection.session
        if connection.client_fd != -1:
            mask = _OUT if connection.client_queue else 0
            if session.client_state is ClientState.CLOSED or not (
                connection.producer_queue or session.waiting_bytes >= connection.settings.max_buffer
            ):
                mask = _OUT if connection.transport.needs_writing else mask | _IN
            elif not connection.watch.leaves_at:
                mask |= select.EPOLLRDHUP
            if mask != connection.client_mask:
                if mask & ~connection.client_mask & _IN and connection.transport.has_pending():
                    self._pending[connection] = None
                connection.watch.is_heard = bool(mask & _IN)
                connection.client_mask = mask
                self._epoll.modify(connection.client_fd, mask)
            if mask & _IN and session.is_paused:
                self._pending[connection] = None
        if connection.producer_fd != -1:
            mask = _OUT if connection.producer_queue else 0
            if session.client_finished:
                # Of one that moves, the end is still awaited: the next one waits for it.
                mask |= _IN if session.producer_state is ProducerState.MOVED else 0
            elif not connection.client_queue:
                mask |= _IN
            if mask != connection.producer_mask:
                if connection.producer_mask == _NOT_WATCHED:
                    if not mask & _IN:
                        return
                    self._epoll.register(connection.producer_fd, mask)
                else:
                    self._epoll.modify(connection.producer_fd, mask)
                connection.producer_mask = mask

    def _close_what_is_finished(self, connection: Connection) -> None:
        session = connection.session
        if session.client_state is ClientState.GONE:
            self._close_client(connection)
        elif (
            session.client_finished and not connection.client_queue and not connection.is_shut_down
        ):
            # The client closes when it has read the CLOSE; closing here while it
            # still sends would reset the connection and lose it that.
            connection.is_shut_down = True
            connection.transport.shutdown()
        if session.producer_finished and not connection.producer_queue:
            self._close_producer(connection)
        if session.producer_state is not ProducerState.AWAY:
            self._holds.discard(connection)
        if connection.is_closed:
            self._finish(connection)
        elif connection.client_fd != -1 or connection.producer_fd != -1:
            self._limit_leaving(connection)

    def _close_client(self, connection: Connection) -> None:
        if connection.client_fd != -1:
            self._unregister(connection.client_fd)
            self._clients.pop(connection.client_fd, None)
            connection.client_fd = -1
            connection.client_queue = b""
            connection.write_failed = True
            connection.watch.has_client = False
            connection.transport.close()

    def _close_producer(self, connection: Connection) -> None:
        if connection.producer_fd != -1:
            self._unregister(connection.producer_fd)
            self._producers.pop(connection.producer_fd, None)
            connection.producer_fd, connection.producer_mask = -1, 0
            connection.producer_queue, connection.producer_sent = b"", 0
            connection.producer.close()

    def _unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except FileNotFoundError:
            pass  # a producer that is looked away from, or the kernel had no room

    def _forget(self, connection: Connection) -> None:
        self._close_client(connection)
        self._close_producer(connection)
        self._holds.discard(connection)
        self._finish(connection)

    def _finish(self, connection: Connection) -> None:
        self._deadlines.drop(connection)
        connection.close()
        if connection.is_finished:
            return  # what came after failed, and the guard tries again
        connection.is_finished = True
        session = connection.session
        self.counters.end(connection.path, session.traffic(), session.close_code)
        connection.log_close()

    def _limit_leaving(self, connection: Connection) -> None:
        """Give a connection that is closing ``APACHEWS_CLOSE_TIMEOUT`` and no more."""
        if not connection.watch.leaves_at:
            connection.watch.leaves_at = self._now + connection.settings.close_timeout
            self._is_taking(connection)  # since now, when it is asked again
            self._schedule(connection)

    def _schedule(self, connection: Connection) -> None:
        """Have the connection's watch asked when it wants to be."""
        self._deadlines.schedule(connection, connection.watch.next_at())

    def _on_due(self, connection: Connection) -> None:
        session, watch = connection.session, connection.watch
        due = watch.due(self._now)
        if due is Due.OVERDUE:
            least = int(SLOWEST_CLOSING_BYTES_S * connection.settings.close_timeout)
            if self._is_taking(connection, least):
                # What was sent to it before the CLOSE would be lost, and the CLOSE as well.
                watch.leaves_at = self._now + connection.settings.close_timeout
                self._schedule(connection)
                return
            is_away = session.producer_state is ProducerState.MOVED and session.waiting_bytes
            if is_away or connection.producer_mask == _NOT_WATCHED:
                self._lose_producer(connection)
            session.receive_client_eof()
            if connection.client_fd != -1:
                discard_client(connection.transport)
            if session.producer_state is not ProducerState.AWAY:
                self._forget(connection)
                return
            # Only what it said before it left is still to be delivered.
            watch.leaves_at = 0.0
        elif due is Due.NOBODY_CAME:
            watch.held_until = 0.0
            session.give_up_holding()
            self._flush(connection)
        elif due is Due.GOODBYE:
            assert connection.goodbye, "its turn comes with a reason"
            watch.goodbye_at = 0.0
            session.close(connection.goodbye)
        elif due is Due.PING:
            self._ping(connection)
        elif due is Due.NO_PONG:
            # What it sent may wait: this loop was held up, or did not read it.
            self._on_client(connection, _IN)
            if watch.heard_at < self._now:
                self._judge_silence(connection)
        elif due is Due.TOO_SLOW:
            self._send_client_queue(connection)
            if watch.waiting_since and watch.waiting_since < self._now:
                self._judge_slowness(connection)
        elif due is Due.IDLE:
            if self._is_taking(connection):
                watch.passed_at = self._now
            else:
                session.close(CloseCause.IDLE)
        if connection.is_closed:
            return
        self._flush(connection)
        if not connection.is_closed:
            self._schedule(connection)

    def _judge_slowness(self, connection: Connection) -> None:
        """Close a client for which nothing more could be sent, unless it takes what was.

        The kernel asks for more only when a good part of what it has is on its way:
        for a client that reads a little and steadily that may take minutes.
        """
        unsent = client_unsent_bytes(connection.transport)
        if unsent >= connection.unsent_bytes:
            connection.session.close(CloseCause.TOO_SLOW)
        else:
            connection.unsent_bytes = unsent
            connection.watch.waiting_since = self._now

    def _ping(self, connection: Connection) -> None:
        session, watch = connection.session, connection.watch
        is_answered, state = session.is_ping_answered, client_state(connection.transport)
        if not session.ping(self._now):
            watch.postpone_ping(self._now)
            return
        if connection.progress is None:
            connection.progress = Progress(state)
        connection.progress.ask(state, self._now, is_answered=is_answered)
        watch.way_s = state.way_s

    def _judge_silence(self, connection: Connection) -> None:
        """Close a client that has not answered the PING, unless it takes what came before it.

        A client that reads slowly has megabytes to read before it comes to the PING.
        """
        if connection.client_fd == -1:
            return
        state, progress = client_state(connection.transport), connection.progress
        assert progress, "a PING was sent, by this process or by the one before"
        if not progress.is_reading(state, self._now):
            connection.session.close(CloseCause.NO_PONG)
            return
        connection.watch.await_pong(self._now)
        if not state.unacked:
            # All has arrived.  Only the acknowledgement of something new tells the window.
            connection.session.ping(self._now)

    @staticmethod
    def _is_taking(connection: Connection, least_bytes: int = 1) -> bool:
        """Tell whether what was sent to the client still arrives there, since last asked."""
        if connection.client_fd == -1:
            return False
        state, progress = client_state(connection.transport), connection.progress
        if progress is None:
            connection.progress = Progress(state)
            return state.unacked > 0
        return progress.is_taking(state, least_bytes)

    def _log_ignored(self, connection: Connection) -> None:
        opcodes = " ".join(f"{opcode:#x}" for opcode in sorted(set(connection.session.ignored)))
        connection.session.ignored.clear()
        connection.log.write(
            "warn", f"{connection.name} ignored frames of the producer, reserved opcodes {opcodes}"
        )


def turn_away(connection: Connection) -> None:
    """Say goodbye to a client that was never begun with; the caller closes the connection."""
    connection.session.close(CloseCause.GOING_AWAY)
    try:
        connection.transport.send(b"".join(connection.session.to_client))
    except OSError:
        pass  # it has gone


def _take(chunks: list[bytes]) -> bytes:
    """Return what is in the list as one, and empty it."""
    data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    chunks.clear()
    return data
