"""The fast path: a message passes while both sides are open and both queues are empty.

Contract: ``relay_client`` must do what ``Relay.on_client`` does, and ``relay_producer`` what
``Relay.on_producer`` does, to the byte, in the state of every object and in the order of
calls; only faster.  tests/handler/test_fast_path.py holds them to that: it plays random scripts
of both peers with the fast path and without it, and compares all that comes out.

How this works: a busy loop mostly moves messages, with nothing queued.  Then most steps of
the general functions do nothing.  These functions check that once, send the session's
output directly, and skip the queue, the closing and the masks.  At everything else they meet
they call the general functions (bench/run --case 'echo-64B-*').
"""

from __future__ import annotations

import select
from typing import Final

from apachews_handler.protocol.session import HEADER_BYTES, Session
from apachews_handler.protocol.states import ClientState, ProducerState

from . import pump
from .connection import Connection
from .poller import Poller
from .relay import Relay

# Hoisted: the lookup of an Enum's member costs as much as a call in Python 3.11.
_OPEN: Final = ClientState.OPEN
_CONNECTED: Final = ProducerState.CONNECTED
_IN: Final = select.EPOLLIN
# False: the build had no compiler, and the functions below do the same in Python.
IS_IN_C: Final = pump.IS_IN_C
COUNT_BITS: Final = pump.COUNT_BITS
SIZE_BITS: Final = pump.SIZE_BITS


class FastPath:
    """The two functions for a descriptor that is readable and nothing else.

    Args:
        poller: the loop's.
        relay: for the general case.
    """

    def __init__(self, poller: Poller, relay: Relay) -> None:
        self._poller = poller
        self._relay = relay

    def relay_client(self, connection: Connection, ready: int) -> None:
        """Do what ``Relay.on_client`` does.

        Args:
            ready: EPOLLIN.
        """
        poller, session, transport = self._poller, connection.session, connection.transport
        # A mask of EPOLLIN alone: neither queue holds bytes, and TLS need not write first.
        if connection.client.mask != _IN or session.client_state is not _OPEN or session.is_paused:
            self._relay.on_client(connection, ready)
            return
        size = connection.settings.max_buffer_bytes + HEADER_BYTES
        if (
            IS_IN_C
            and connection.can_use_fast_path
            and isinstance(session, Session)
            and (longest := session.longest_from_client) >= 0
        ):
            passed = pump.relay_client(connection.client.fd, connection.producer.fd, size, longest)
            if isinstance(passed, int):
                connection.timeouts.heard_at = connection.timeouts.passed_at = poller.now
                session.count_client(passed >> COUNT_BITS, passed & SIZE_BITS)
                return
            if isinstance(passed, tuple):
                self._queue_for_producer(connection, session, passed)
                return
            data = passed
        else:
            data = transport.recv(size)
        if data:
            timeouts = connection.timeouts
            timeouts.heard_at = poller.now
            session.receive_client(data, poller.now, poller.busy)
            frames = session.to_producer
            # Messages for a connected producer, and nothing else came of the bytes.
            if (
                frames
                and session.client_state is _OPEN
                and session.producer_state is _CONNECTED
                and not session.to_client
                and not session.is_paused
                and (connection.can_use_fast_path or not _needs_another_look(connection))
            ):
                output = frames[0] if len(frames) == 1 else b"".join(frames)
                try:
                    sent = connection.producer_socket.send(output)
                except OSError:
                    sent = -1  # ``flush`` below sends again, and handles the error
                if sent >= 0:
                    timeouts.passed_at = poller.now
                    frames.clear()
                    if sent == len(output):
                        return  # the queues are as empty as before: the masks stay
                    connection.producer.queue.push(output, sent)
        elif data is not None:
            session.receive_client_eof()
        if transport.has_pending():
            poller.pending[connection] = None
        self._relay.flush(connection)

    def relay_producer(self, connection: Connection, ready: int) -> None:
        """Do what ``Relay.on_producer`` does.

        Args:
            ready: EPOLLIN.
        """
        session = connection.session
        # A mask of EPOLLIN alone: neither queue holds bytes.
        if connection.producer.mask != _IN or session.client_state is not _OPEN:
            self._relay.on_producer(connection, ready)
            return
        data: bytes | None
        if (
            IS_IN_C
            and connection.can_use_fast_path
            and isinstance(session, Session)
            and not connection.write_failed
            and (longest := session.longest_from_producer) >= 0
        ):
            passed = pump.relay_producer(
                connection.producer.fd, connection.client.fd, session.producer_room, longest
            )
            if isinstance(passed, int):
                connection.timeouts.passed_at = self._poller.now
                session.count_producer(passed >> COUNT_BITS, passed & SIZE_BITS)
                return
            if isinstance(passed, tuple):
                self._queue_for_client(connection, session, passed)
                return
            data = passed
        else:
            try:
                data = connection.producer_socket.recv(session.producer_room)
            except OSError:
                data = b""
        if not data:
            # EAGAIN, an error or the end of file: ``on_producer`` reads again and handles it.
            self._relay.on_producer(connection, ready)
            return
        connection.timeouts.passed_at = self._poller.now
        session.receive_producer(data)
        frames = session.to_client
        # One chunk of messages for an open client, and nothing else came of the bytes.
        if (
            len(frames) == 1
            and session.client_state is _OPEN
            and session.producer_state is _CONNECTED
            and not session.ignored
            and not session.requests
            and not session.to_producer
            and not connection.write_failed
        ):
            output = frames[0]
            try:
                sent = connection.transport.send(output)
            except OSError:
                sent = -1  # ``flush`` below sends again, and handles the error
            if sent >= 0:
                frames.clear()
                if sent == len(output):
                    return  # the queues are as empty as before: the masks stay
                connection.client.queue.push(output, sent)
                self._relay.send_to_client(connection)
        if session.ignored:
            self._relay.log_ignored(connection)
        if session.requests:
            self._relay.on_requests(connection)
        self._relay.flush(connection)

    def _queue_for_producer(
        self, connection: Connection, session: Session, passed: tuple[int, bytes, int]
    ) -> None:
        """Queue what the producer has not taken of whole messages."""
        counts, output, sent = passed
        timeouts = connection.timeouts
        timeouts.heard_at = timeouts.passed_at = self._poller.now
        session.count_client(counts >> COUNT_BITS, counts & SIZE_BITS)
        if sent:
            connection.producer.queue.push(output, sent)
        else:
            session.to_producer.append(output)  # ``flush`` sends it again, and handles an error
        self._relay.flush(connection)

    def _queue_for_client(
        self, connection: Connection, session: Session, passed: tuple[int, bytes, int]
    ) -> None:
        """Queue what the client has not taken of whole messages."""
        counts, output, sent = passed
        connection.timeouts.passed_at = self._poller.now
        session.count_producer(counts >> COUNT_BITS, counts & SIZE_BITS)
        connection.client.queue.push(output, sent)
        self._relay.send_to_client(connection)
        self._relay.flush(connection)


def _needs_another_look(connection: Connection) -> bool:
    """Tell whether the client's TLS holds bytes, or must write before it reads on."""
    return connection.transport.needs_writing or connection.transport.has_pending()
