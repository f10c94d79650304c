"""The bridge: one thread of an Apache child that carries all its WebSockets.

Contract: ``start`` once; ``adopt`` from any thread hands over a connection, which
the bridge owns from then on; ``stop`` says goodbye to all clients and joins the
thread.  The thread blocks all signals and touches nothing of httpd but the error
log it is given.

How this works: a level-triggered epoll over two descriptors a connection, client
and producer.  What is read from one is given to the session, and what that puts
out is sent to the other.  Bytes that a side does not take wait here, and while
they do, the side they came from is not read: so at most one read (APACHEWS_MAX_BUFFER)
and a few frames of the bridge's own wait in each direction, and the kernel's
buffers carry the backpressure to the other end.

Time is looked at once a turn.  Every connection has a ticket in a heap, for when
its ``Watch`` wants to be asked again; tickets are never moved, those that were
overtaken are skipped.

Nothing is allocated for an idle connection beyond its few objects, no closure and
no buffer.  An exception in the handling of a connection ends that connection,
with a traceback in the log, and no other.
"""

from __future__ import annotations

import collections
import collections.abc
import heapq
import itertools
import math
import os
import select
import socket
import threading
import time
import traceback
from typing import Final

from .connection import Connection
from .ends import End
from .session import Phase
from .signals import signals_blocked
from .transport import discard_unsent, limit_unsent, unsent_bytes
from .watch import Due

# How long clients have to take the goodbye when the child stops.  httpd waits 3 s
# before its second SIGTERM.
STOP_GRACE_S: Final = 1.0
# Joining the thread takes that and a little; a thread that hangs is left behind.
STOP_TIMEOUT_S: Final = 2.5
# Apache's response head, and no more: what a farewell is read in.
FAREWELL_BYTES: Final = 16384
# Times of connections that are gone stay in the heap until they come, but no more of
# them than of others, and these.
SPARE_DEADLINES: Final = 1000

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
_NOT_WATCHED: Final = -1


class Bridge:
    """The loop and its thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wakeup, _IN)
        # Guards the three below, nothing else.  Reentrant, because prefork ends a
        # child from within a signal handler, whatever the main thread is at.
        self._lock = threading.RLock()
        self._adopted: collections.deque[tuple[Connection, socket.socket]] = collections.deque()
        self._is_stopping = False
        self._has_ended = False
        # Below: for the thread alone.
        self._clients: dict[int, Connection] = {}
        self._producers: dict[int, Connection] = {}
        self._farewells: dict[int, socket.socket] = {}
        # A heap of times and tickets; whose ticket it is, unless that has gone or has
        # another one by now.  (So the heap keeps no connection alive.)
        self._deadlines: list[tuple[float, int]] = []
        self._tickets: dict[int, Connection] = {}
        self._next_ticket = itertools.count(1)
        # To be looked at again, whatever epoll says: their TLS holds bytes, or their
        # reader made a pause.  A dict for its order.
        self._pending: dict[Connection, None] = {}
        self._now = time.monotonic()
        self._stop_at = 0.0
        self._thread = threading.Thread(target=self._run, name="apachews", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        # Apache's signals are for Apache's main thread: a thread inherits the
        # mask of the one that starts it.
        with signals_blocked():
            try:
                self._thread.start()
            except BaseException:
                os.close(self._wakeup)
                self._epoll.close()
                raise

    @property
    def is_running(self) -> bool:
        """False once it was stopped; what is adopted then is closed at once."""
        return not (self._is_stopping or self._has_ended)

    def adopt(self, connection: Connection, farewell: socket.socket) -> None:
        """Take over a connection, from any thread.

        Args:
            connection: owned by the bridge from here on, also when it is stopping.
            farewell: the other end of Apache's dummy; closed when Apache is done.
        """
        with signals_blocked(), self._lock:
            if not self._has_ended:
                self._adopted.append((connection, farewell))
                os.eventfd_write(self._wakeup, 1)
                return
        self._give_up(connection, farewell)

    def stop(self) -> None:
        """Close all connections with 1001, and end the thread; waits a few seconds at most."""
        with self._lock:
            self._is_stopping = True
            if not self._has_ended:
                os.eventfd_write(self._wakeup, 1)
        self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            with self._lock:
                self._has_ended = True
                adopted = list(self._adopted)
            for connection, farewell in adopted:
                self._give_up(connection, farewell)
            for connection in {*self._clients.values(), *self._producers.values()}:
                connection.session.fail()  # where it has no end yet: the loop broke off
                connection.close()
                self._log_close(connection)
            for farewell in self._farewells.values():
                farewell.close()
            os.close(self._wakeup)
            self._epoll.close()

    def _turn(self) -> bool:
        """Wait once, and do what is due; return False when the thread is to end."""
        is_woken = False
        events = self._epoll.poll(self._wait_s())
        self._now = time.monotonic()
        for fd, ready in events:
            if (connection := self._clients.get(fd)) is not None:
                self._guard(self._on_client, connection, ready)
            elif (connection := self._producers.get(fd)) is not None:
                self._guard(self._on_producer, connection, ready)
            elif fd == self._wakeup:
                is_woken = True
            elif fd in self._farewells:
                self._on_farewell(fd)
            # Otherwise it was closed earlier in this turn.
        if is_woken:
            # Not before all events were looked at: a new connection may have the
            # number of a descriptor that was just closed, and is not to get its.
            self._on_wakeup()
        if self._pending:
            pending, self._pending = self._pending, {}
            for connection in pending:
                if connection.client_fd != -1 and connection.client_mask & _IN:
                    self._guard(self._on_client, connection, _IN)
        self._run_deadlines()
        if not self._stop_at:
            return True
        return self._now < self._stop_at and bool(
            self._clients or self._producers or self._farewells
        )

    def _guard(self, handle: collections.abc.Callable[..., None], *args: object) -> None:
        """Handle one connection; whatever goes wrong ends that one only."""
        try:
            handle(*args)
        except Exception:
            connection = args[0]
            assert isinstance(connection, Connection)
            connection.log.write("error", f"{connection.name}: {traceback.format_exc()}")
            connection.session.fail()
            self._forget(connection)

    def _wait_s(self) -> float | None:
        if self._pending:
            return 0
        at = self._deadlines[0][0] if self._deadlines else None
        if self._stop_at:
            at = self._stop_at if at is None else min(at, self._stop_at)
        return None if at is None else max(0.0, at - time.monotonic())

    def _on_wakeup(self) -> None:
        os.eventfd_read(self._wakeup)
        with self._lock:
            adopted = list(self._adopted)
            self._adopted.clear()
            is_stopping = self._is_stopping
        for connection, farewell in adopted:
            self._guard(self._begin, connection, farewell)
        if is_stopping:
            self._stop_at = self._stop_at or self._now + STOP_GRACE_S
            for connection in list(self._clients.values()):
                connection.session.close(End.GOING_AWAY)
                self._guard(self._flush, connection)

    def _on_farewell(self, fd: int) -> None:
        """Read what Apache wrote to its dummy, until it has shut it down."""
        try:
            if self._farewells[fd].recv(FAREWELL_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # Apache has closed it already
        self._epoll.unregister(fd)
        self._farewells.pop(fd).close()

    def _begin(self, connection: Connection, farewell: socket.socket) -> None:
        try:
            self._epoll.register(farewell.fileno(), _IN)
        except OSError:
            farewell.close()
            raise
        self._farewells[farewell.fileno()] = farewell
        limit_unsent(connection.client_fd, connection.max_buffer_bytes)
        self._clients[connection.client_fd] = connection
        self._producers[connection.producer_fd] = connection
        self._epoll.register(connection.client_fd, 0)
        self._epoll.register(connection.producer_fd, 0)
        self._flush(connection)  # the OPEN is in the session
        self._schedule(connection)
        if connection.transport.has_pending():
            self._pending[connection] = None

    def _on_client(self, connection: Connection, ready: int) -> None:
        session, transport = connection.session, connection.transport
        if ready & _OUT:
            self._send_client_queue(connection)
        may_read = connection.client_mask & _IN or (
            transport.needs_writing and not connection.producer_queue
        )
        if session.is_paused and may_read:
            session.receive_client(b"", self._now)
        elif may_read and (ready & (_IN | _GONE) or transport.needs_writing):
            data = transport.recv(connection.max_buffer_bytes)
            if data:
                connection.watch.heard_at = self._now
                session.receive_client(data, self._now)
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

    def _on_producer(self, connection: Connection, ready: int) -> None:
        session = connection.session
        if ready & _OUT:
            self._send_producer_queue(connection)
        if ready & (_IN | _GONE) and connection.producer_fd != -1:
            if connection.producer_mask & _IN:
                data: bytes | None
                try:
                    data = connection.producer.recv(connection.max_buffer_bytes)
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
                    session.receive_producer_eof()
                    self._close_producer(connection)
            elif ready & _GONE:
                # It is gone, and what it wrote before waits in the kernel for the
                # client to read.  epoll would report it for ever: look away, and
                # give the client as long as any other that is closing.
                self._epoll.unregister(connection.producer_fd)
                connection.producer_mask = _NOT_WATCHED
                self._limit_leaving(connection)
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        """Send what the session put out, and follow its phase."""
        session = connection.session
        if session.to_producer:
            connection.watch.passed_at = self._now
            data = _take(session.to_producer)
            connection.producer_queue = (
                bytes(connection.producer_queue) + data if connection.producer_queue else data
            )
            self._send_producer_queue(connection)
        if session.to_client and connection.is_deaf:
            session.to_client.clear()
        if session.to_client:
            data = _take(session.to_client)
            connection.client_queue = (
                bytes(connection.client_queue) + data if connection.client_queue else data
            )
            self._send_client_queue(connection)
        if session.phase is not Phase.OPEN:
            self._close_what_is_finished(connection)
        self._watch(connection)

    def _send_client_queue(self, connection: Connection) -> None:
        queue = connection.client_queue
        try:
            sent = connection.transport.send(queue) if queue else 0
        except OSError:
            # The client is gone.  Its last words may still be there to read; the
            # end of file comes after them.
            connection.is_deaf = True
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
        connection.unsent_bytes = unsent_bytes(connection.client_fd)
        self._schedule(connection)

    def _send_producer_queue(self, connection: Connection) -> None:
        queue = connection.producer_queue
        try:
            sent = connection.producer.send(queue) if queue else 0
        except BlockingIOError:
            return
        except OSError:
            # The producer is gone.  Its last words may still be there to read;
            # the end of file comes after them.
            sent = len(queue)
        connection.producer_queue = memoryview(queue)[sent:] if sent < len(queue) else b""

    def _watch(self, connection: Connection) -> None:
        """Bring epoll's masks up to date: a side is read while the other one keeps up."""
        session = connection.session
        if connection.client_fd != -1:
            mask = _OUT if connection.client_queue else 0
            if not connection.producer_queue or session.phase is Phase.CLOSED:
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
            if not connection.client_queue and not session.client_finished:
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
        if session.phase is Phase.GONE:
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
        if connection.is_closed:
            self._finish(connection)
        else:
            self._limit_leaving(connection)

    def _close_client(self, connection: Connection) -> None:
        if connection.client_fd != -1:
            self._unregister(connection.client_fd)
            self._clients.pop(connection.client_fd, None)
            connection.client_fd = -1
            connection.client_queue = b""
            connection.transport.close()

    def _close_producer(self, connection: Connection) -> None:
        if connection.producer_fd != -1:
            self._unregister(connection.producer_fd)
            self._producers.pop(connection.producer_fd, None)
            connection.producer_fd = -1
            connection.producer_queue = b""
            connection.producer.close()

    def _unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except FileNotFoundError:
            pass  # a producer that is looked away from, or the kernel had no room

    def _forget(self, connection: Connection) -> None:
        self._close_client(connection)
        self._close_producer(connection)
        self._finish(connection)

    def _finish(self, connection: Connection) -> None:
        self._tickets.pop(connection.ticket, None)
        connection.close()
        self._log_close(connection)

    def _give_up(self, connection: Connection, farewell: socket.socket) -> None:
        """Close a connection that came too late."""
        farewell.close()
        connection.session.close(End.GOING_AWAY)
        connection.close()
        self._log_close(connection)

    def _limit_leaving(self, connection: Connection) -> None:
        """Give a connection that is closing so much time and no more."""
        if not connection.watch.leaves_at:
            connection.watch.leaves_at = self._now + connection.close_timeout_s
            self._schedule(connection)

    def _schedule(self, connection: Connection) -> None:
        """Have the connection's watch asked when it wants to be."""
        at = connection.watch.next_at()
        if at < connection.scheduled_at:
            self._tickets.pop(connection.ticket, None)
            connection.scheduled_at = at
            connection.ticket = next(self._next_ticket)
            self._tickets[connection.ticket] = connection
            heapq.heappush(self._deadlines, (at, connection.ticket))

    def _run_deadlines(self) -> None:
        deadlines, tickets = self._deadlines, self._tickets
        if len(deadlines) > 2 * len(tickets) + SPARE_DEADLINES:
            deadlines[:] = [entry for entry in deadlines if entry[1] in tickets]
            heapq.heapify(deadlines)
        due = []
        while deadlines and deadlines[0][0] <= self._now:
            connection = tickets.pop(heapq.heappop(deadlines)[1], None)
            if connection is not None:
                connection.scheduled_at = math.inf
                due.append(connection)
        # Only now, so that one that asked for no time at all would not stop the loop.
        for connection in due:
            if not connection.is_closed:
                self._guard(self._on_due, connection)

    def _on_due(self, connection: Connection) -> None:
        session, watch = connection.session, connection.watch
        due = watch.due(self._now)
        if due is Due.OVERDUE:
            # Who only waited for the other side to leave did not close.
            if connection.producer_mask == _NOT_WATCHED:
                session.receive_producer_eof()
            session.receive_client_eof()
            if connection.client_fd != -1:
                discard_unsent(connection.client_fd)
            self._forget(connection)
            return
        if due is Due.PING:
            if not session.ping():
                watch.postpone_ping(self._now)
        elif due is Due.NO_PONG:
            # What it sent may wait: this loop was held up, or did not read it.
            self._on_client(connection, _IN)
            if watch.heard_at < self._now:
                session.close(End.NO_PONG)
        elif due is Due.TOO_SLOW:
            self._send_client_queue(connection)
            if watch.waiting_since and watch.waiting_since < self._now:
                self._judge_slowness(connection)
        elif due is Due.IDLE:
            session.close(End.IDLE)
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
        unsent = unsent_bytes(connection.client_fd)
        if unsent >= connection.unsent_bytes:
            connection.session.close(End.TOO_SLOW)
        else:
            connection.unsent_bytes = unsent
            connection.watch.waiting_since = self._now

    def _log_close(self, connection: Connection) -> None:
        session = connection.session
        end = session.end
        assert end, "nothing is closed without an end"
        connection.log.write(
            end.level,
            f"{connection.name} closed by {end.by} ({end.name})"
            f" code={session.close_code} reason={session.close_reason!r}"
            f" after={time.monotonic() - connection.opened_at:.3f}s {session.counts()}",
        )

    def _log_ignored(self, connection: Connection) -> None:
        opcodes = " ".join(f"{opcode:#x}" for opcode in sorted(set(connection.session.ignored)))
        connection.session.ignored.clear()
        connection.log.write(
            "warn", f"{connection.name} ignored frames of the producer, reserved opcodes {opcodes}"
        )


def _take(chunks: list[bytes]) -> bytes:
    """Return what is in the list as one, and empty it."""
    data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    chunks.clear()
    return data
