"""What happens on one connection: bytes move between its legs, and the legs close.

Contract: ``Loop`` calls ``on_client`` and ``on_producer`` with epoll's events, ``Timers`` and
``FastPath`` call the rest.  On the loop's thread.  An exception is a fault of ours: the loop
catches it and calls ``abort``, which ends that connection and no other.

How this works: bytes that are read from one leg are given to the session, and what the session
puts out is sent to the other leg.  Bytes that a leg does not take stay in its queue, and while
they do, the other leg is not read.  So each direction holds at most one read (APACHEWS_MAX_BUFFER
and a header) and a few frames of the bridge's own, and the kernel's buffers carry the
backpressure to the other end.

A client whose producer is gone waits in ``Reconnector`` for the next producer.  It is read
meanwhile, up to one buffer.
"""

from __future__ import annotations

import errno
import select
import socket
import traceback
from collections.abc import Callable
from typing import Final

from apachews.wire import channel
from apachews_handler.monitoring.counters import Counters
from apachews_handler.protocol.session import HEADER_BYTES
from apachews_handler.protocol.states import ClientState, ProducerState

from .connection import NOT_WATCHED, Connection
from .deadlines import Deadlines
from .poller import Poller
from .reconnect import Reconnector
from .transport import client_unsent_bytes

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
# epoll_ctl(2): the kernel cannot watch another descriptor (fs.epoll.max_user_watches).
_NO_ROOM: Final = (errno.ENOSPC, errno.ENOMEM)


class Relay:
    """Moves the bytes of all connections of a loop.

    Args:
        poller: the loop's.
        deadlines: when each connection's ``Timeouts`` is due.
        reconnector: the connections without a producer.
        counters: of the process.
        bridge: id of the process, which producers are told.

    Attributes:
        on_requests: handles the LANE frames of a connection's producer; the loop sets it.
    """

    def __init__(
        self,
        poller: Poller,
        deadlines: Deadlines[Connection],
        reconnector: Reconnector,
        counters: Counters,
        bridge: str,
    ) -> None:
        self._poller = poller
        self._deadlines = deadlines
        self._reconnector = reconnector
        self._counters = counters
        self._bridge = bridge
        self.on_requests: Callable[[Connection], None]

    def start(self, connection: Connection) -> None:
        """Start a new connection; reject its client if the kernel cannot watch it."""
        self._counters.begin(connection.endpoint)
        connection.session.round_trips = self._counters.round_trips
        connection.transport.limit_unsent(connection.settings.max_buffer_bytes)
        poller = self._poller
        try:
            if connection.client.mask == _IN:  # ``watch`` has registered both legs
                poller.clients[connection.client.fd] = connection
                poller.producers[connection.producer.fd] = connection
            else:
                poller.add_client(connection)
                poller.add_producer(connection)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            connection.reject()
            self.remove(connection)
            return
        if connection.session.requests:
            self.on_requests(connection)  # they came with the ANSWER
        self.flush(connection)  # the session holds the OPEN
        self.schedule(connection)
        if connection.transport.has_pending():
            self._poller.pending[connection] = None

    def adopt(self, connection: Connection) -> None:
        """Continue with a connection that was released, by this process or another one."""
        self._counters.adopt(connection.endpoint, connection.session.traffic())
        connection.session.round_trips = self._counters.round_trips
        self._poller.add_client(connection)
        self._poller.add_producer(connection)
        connection.may_join = True
        if connection.session.knows_lanes:
            self.tell_bridge(connection)
        self.schedule(connection)

    def tell_bridge(self, connection: Connection) -> None:
        """Tell the producer that this process has the client, which is on no channel."""
        session = connection.session
        if connection.is_open and session.producer_state is ProducerState.CONNECTED:
            session.to_producer.append(channel.encode_bridge(self._bridge))
            self.flush(connection)

    def release(self, connection: Connection) -> None:
        """Remove a connection at rest from the loop, and leave it open."""
        self._poller.remove_client(connection)
        self._poller.remove_producer(connection)
        self._poller.pending.pop(connection, None)
        self._deadlines.cancel(connection)
        self._counters.leave(connection.endpoint, connection.session.traffic())

    # What epoll reports.

    def on_client(self, connection: Connection, ready: int) -> None:
        """Read from the client, write to it, or notice that it is gone.

        Args:
            ready: epoll's events.
        """
        poller = self._poller
        session, transport, timeouts = connection.session, connection.transport, connection.timeouts
        if ready & _OUT:
            self.send_to_client(connection)
        # A TLS session that must write before it reads on has _OUT for a mask.
        may_read = connection.client.mask & _IN or (
            transport.needs_writing and not connection.producer.queue.unsent_bytes
        )
        if session.is_paused and may_read:
            # The reader holds input, perhaps a PONG: the client was heard.
            timeouts.heard_at = poller.now
            session.receive_client(b"", poller.now, poller.busy)
        elif may_read and (ready & (_IN | _GONE) or transport.needs_writing):
            data = transport.recv(connection.settings.max_buffer_bytes + HEADER_BYTES)
            if data:
                timeouts.heard_at = poller.now
                session.receive_client(data, poller.now, poller.busy)
            elif data is not None:
                session.receive_client_eof()
        elif ready & _GONE:
            # Its producer is slow, so the client is not read; and it has reset the connection.
            session.receive_client_eof()
        if transport.has_pending():
            poller.pending[connection] = None
        if ready & select.EPOLLRDHUP:
            # The client has sent its last bytes, which a slow producer may never take.
            self.start_close_timeout(connection)
        self.flush(connection)

    def on_producer(self, connection: Connection, ready: int) -> None:
        """Read from the producer, write to it, or notice that it is gone.

        Args:
            ready: epoll's events.
        """
        session = connection.session
        if ready & _OUT:
            self.send_to_producer(connection)
        if ready & (_IN | _GONE) and connection.producer.fd != -1:
            if connection.producer.mask & _IN:
                data: bytes | None
                try:
                    data = connection.producer_socket.recv(session.producer_room)
                except BlockingIOError:
                    data = None
                except OSError:
                    data = b""  # ECONNRESET: it died with bytes unread
                if data:
                    connection.timeouts.passed_at = self._poller.now
                    session.receive_producer(data)
                    if session.ignored:
                        self.log_ignored(connection)
                    if session.requests:
                        self.on_requests(connection)
                elif data is not None:
                    self.lose_producer(connection)
            elif ready & _GONE:
                # It is gone, and its last bytes wait in the kernel until the client has read
                # what came before.  A level-triggered epoll would report EPOLLHUP in every
                # turn, so stop watching; send_timeout bounds how long (APACHEWS_SEND_TIMEOUT).
                self._poller.unwatch_producer(connection)
        self.flush(connection)

    def flush(self, connection: Connection) -> None:
        """Send what the session put out, close what is finished, and update epoll's masks."""
        session = connection.session
        if session.to_producer:
            connection.timeouts.passed_at = self._poller.now
            connection.producer.queue.push_all(session.to_producer)
            self.send_to_producer(connection)
        if session.to_client and connection.write_failed:
            session.to_client.clear()
        if session.to_client:
            connection.client.queue.push_all(session.to_client)
            self.send_to_client(connection)
        if session.client_state is not ClientState.OPEN:
            self._close_finished(connection)
        self._update_interest(connection)

    def send_to_client(self, connection: Connection) -> None:
        """Send the client's queue as far as the client takes it."""
        queue, timeouts, now = connection.client.queue, connection.timeouts, self._poller.now
        sent = 0
        try:
            sent = queue.flush(connection.transport.send)
        except OSError:
            # EPIPE or ECONNRESET: it takes nothing more.  Bytes that it sent before may still
            # be in the kernel, so it is read until the end of file.
            connection.write_failed = True
            queue.clear()
        if not queue.unsent_bytes:
            if timeouts.waiting_since:
                timeouts.waiting_since, timeouts.passed_at = 0.0, now
                connection.session.set_congested(False)
            return
        if not timeouts.waiting_since:
            connection.session.set_congested(True)
            if connection.member is not None:
                connection.member.hold()
        elif not sent:
            return  # the time of a client that takes nothing goes on
        timeouts.waiting_since = timeouts.passed_at = now
        connection.unacked_bytes = client_unsent_bytes(connection.transport)
        self.schedule(connection)

    def send_to_producer(self, connection: Connection) -> None:
        """Send the producer's queue as far as the producer takes it."""
        queue = connection.producer.queue
        try:
            queue.flush(connection.producer_socket.send)
        except BlockingIOError:
            pass  # EAGAIN: epoll reports when there is room
        except OSError:
            # EPIPE: it takes nothing more.  Its last bytes may still be in the kernel; the end
            # of file comes after them.
            connection.session.receive_producer_write_error(*queue.undelivered())
            queue.clear()

    def log_ignored(self, connection: Connection) -> None:
        """Log the opcodes of the frames that the session ignored."""
        opcodes = " ".join(f"{opcode:#x}" for opcode in sorted(set(connection.session.ignored)))
        connection.session.ignored.clear()
        connection.log.write(
            "warn", f"{connection.name} ignored frames of the producer, reserved opcodes {opcodes}"
        )

    # Another producer.

    def lose_producer(self, connection: Connection) -> None:
        """Handle the producer's end of file: hold the client for the next one, or close."""
        if connection.member is not None:
            # The producer may have written to the channel before it ended.
            connection.member.drain()
        if connection.member is not None:
            connection.member.leave()
        session, timeouts, now = connection.session, connection.timeouts, self._poller.now
        is_moving = session.is_moving
        session.receive_producer_eof(*connection.producer.queue.undelivered())
        self._close_producer(connection)
        if not connection.is_held:
            return
        retry_at = timeouts.start_hold(now, session.producer_said, is_moving=is_moving)
        if connection.is_open:
            # EPOLLRDHUP started it, because a slow producer kept the client from being read.  It
            # is read again, so its end of file will be seen.
            timeouts.close_by = 0.0
        self._reconnector.add(connection, retry_at)
        self.schedule(connection)

    def resume(self, connection: Connection, producer_socket: socket.socket) -> None:
        """Continue with another producer.

        Args:
            producer_socket: connected and non-blocking; the connection owns it.
        """
        connection.timeouts.end_hold(self._poller.now, connection.session.producer_said)
        connection.attach_producer(producer_socket)
        self._poller.add_producer(connection)
        connection.session.resume(self._bridge)
        self.flush(connection)
        if not connection.is_closed:
            self.schedule(connection)

    def continue_reading(self, connection: Connection) -> None:
        """Read the producer's own connection on: the channel has sent what precedes."""
        session = connection.session
        session.receive_producer(b"")
        if session.ignored:
            self.log_ignored(connection)
        if session.requests:
            self.on_requests(connection)
        self.flush(connection)

    # Interest and deadlines.

    def _update_interest(self, connection: Connection) -> None:
        """Update epoll's masks: a leg is read while the other one keeps up."""
        session, client, producer = connection.session, connection.client, connection.producer
        if client.fd != -1:
            mask = _OUT if client.queue.unsent_bytes else 0
            if session.has_client_eof:
                # Only written to: its end of file would be reported in every turn.
                pass
            elif session.client_state is ClientState.CLOSED or not (
                producer.queue.unsent_bytes
                or session.backlog_bytes >= connection.settings.max_buffer_bytes
            ):
                # Read it.  A TLS session that must write first would be reported readable in
                # every turn.
                mask = _OUT if connection.transport.needs_writing else mask | _IN
            elif not connection.timeouts.close_by:
                # Not read, so the end of file would not be seen.  Once the deadline for closing
                # runs it is known, and a level-triggered epoll would report it in every turn.
                mask |= select.EPOLLRDHUP
            if mask != client.mask:
                if mask & ~client.mask & _IN and connection.transport.has_pending():
                    # Bytes that TLS holds are not reported by epoll.
                    self._poller.pending[connection] = None
                connection.timeouts.is_heard = bool(mask & _IN)
                client.mask = mask
                self._poller.epoll.modify(client.fd, mask)
            if mask & _IN and session.is_paused:
                self._poller.pending[connection] = None
        if producer.fd != -1:
            mask = _OUT if producer.queue.unsent_bytes else 0
            if session.client_finished:
                # Nothing it sends reaches the client.  If it moves, its end of file still
                # matters, because the next producer waits for it.
                mask |= _IN if session.producer_state is ProducerState.AWAITING_EOF else 0
            elif not client.queue.unsent_bytes and not session.is_waiting:
                mask |= _IN
            if mask != producer.mask:
                if producer.mask == NOT_WATCHED:
                    if not mask & _IN:
                        return  # it is gone: only its last bytes are of interest
                    self._poller.epoll.register(producer.fd, mask)
                else:
                    self._poller.epoll.modify(producer.fd, mask)
                producer.mask = mask

    def schedule(self, connection: Connection) -> None:
        """Schedule the connection for the next deadline of its timeouts."""
        self._deadlines.schedule(connection, connection.timeouts.next_at())

    def start_close_timeout(self, connection: Connection) -> None:
        """Start ``APACHEWS_CLOSE_TIMEOUT``, unless it runs."""
        if not connection.timeouts.close_by:
            connection.timeouts.start_close(self._poller.now)
            connection.is_client_receiving()  # what arrives is counted from now on
            self.schedule(connection)

    # The end.

    def abort(self, connection: Connection) -> None:
        """End a connection whose handling has just raised an exception, and log the traceback."""
        connection.log.write("error", f"{connection.name}: {traceback.format_exc()}")
        connection.session.fail()
        self.remove(connection)

    def remove(self, connection: Connection) -> None:
        """Close both sides at once, and remove the connection from the loop."""
        self._close_client(connection)
        self._close_producer(connection)
        self._reconnector.discard(connection)
        self._finish(connection)

    def _close_finished(self, connection: Connection) -> None:
        """Close the legs that are finished; once both are, finish the connection."""
        session = connection.session
        if connection.member is not None:
            connection.member.leave()  # a client that is being closed gets no message
        if session.client_state is ClientState.GONE:
            self._close_client(connection)
        elif (
            session.client_finished
            and not connection.client.queue.unsent_bytes
            and not connection.is_shut_down
        ):
            # The client closes the socket once it has read the CLOSE.  To close it here while
            # the client still sends would reset the connection, and the client would lose the
            # CLOSE.
            connection.is_shut_down = True
            connection.transport.shutdown()
        if session.producer_finished and not connection.producer.queue.unsent_bytes:
            self._close_producer(connection)
        elif session.is_half_closing and not connection.is_half_closed:
            self._half_close_producer(connection)
        if not connection.is_held:
            self._reconnector.discard(connection)
        if connection.is_closed:
            self._finish(connection)
        elif connection.client.fd != -1 or connection.producer.fd != -1:
            self.start_close_timeout(connection)

    def _close_client(self, connection: Connection) -> None:
        if connection.member is not None:
            connection.member.leave()
        client = connection.client
        if client.fd != -1:
            self._poller.remove_client(connection)
            client.fd = -1
            client.queue.clear()
            connection.write_failed = True
            connection.timeouts.has_client = False
            connection.transport.close()

    def _close_producer(self, connection: Connection) -> None:
        producer = connection.producer
        if producer.fd != -1:
            self._poller.remove_producer(connection)
            producer.fd, producer.mask = -1, 0
            producer.queue.clear()
            connection.producer_socket.close()

    def _half_close_producer(self, connection: Connection) -> None:
        """End the stream to a backend that has taken all of it; its output is still read."""
        if connection.producer.fd == -1 or connection.producer.queue.unsent_bytes:
            return
        connection.is_half_closed = True
        try:
            connection.producer_socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # ENOTCONN: the backend has reset the connection

    def _finish(self, connection: Connection) -> None:
        """Count and log the end of a connection, once."""
        self._deadlines.cancel(connection)
        connection.close()
        if connection.is_finished:
            return  # a line below has raised, and ``abort`` calls this a second time
        connection.is_finished = True
        session = connection.session
        self._counters.end(connection.endpoint, session.traffic(), session.close_code)
        connection.log_close()
