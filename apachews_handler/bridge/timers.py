"""What is done when a deadline of a connection has passed.

Contract: the loop calls ``on_due`` for each connection whose deadline in ``Deadlines`` has
passed.  ``Timeouts`` says what is due, ``Progress`` says what the client has taken; this
module asks the kernel, sends PINGs, and closes.  On the loop's thread.
"""

from __future__ import annotations

import select
from typing import Final

from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.protocol.progress import SLOWEST_CLOSING_BYTES_S, Progress
from apachews_handler.protocol.states import ProducerState
from apachews_handler.protocol.timeouts import Due

from .connection import NOT_WATCHED, Connection
from .deadlines import Deadlines
from .poller import Poller
from .relay import Relay
from .transport import client_tcp_state, client_unsent_bytes, discard_client

_IN: Final = select.EPOLLIN


class Timers:
    """The deadlines of all connections of a loop.

    Args:
        poller: the loop's.
        deadlines: when to ask each connection's ``Timeouts``.
        relay: sends and closes.
    """

    def __init__(self, poller: Poller, deadlines: Deadlines[Connection], relay: Relay) -> None:
        self._poller = poller
        self._deadlines = deadlines
        self._relay = relay

    def on_due(self, connection: Connection) -> None:
        """Do what is due, and schedule the next deadline."""
        session, timeouts, now = connection.session, connection.timeouts, self._poller.now
        if connection.member is not None:
            connection.member.settle()
        due = timeouts.due(now)
        if due is Due.OVERDUE:
            self._on_overdue(connection)
            return
        if due is Due.HOLD_EXPIRED:
            timeouts.held_until = 0.0
            session.expire_hold()
            self._relay.flush(connection)
        elif due is Due.DRAIN:
            assert connection.drain_cause, "drain_at is set together with a cause"
            timeouts.drain_at = 0.0
            session.close(connection.drain_cause)
        elif due is Due.LOGIN_ENDED:
            session.close(CloseCause.LOGIN_ENDED, connection.settings.expiry_code)
        elif due is Due.MAX_AGE:
            session.close(CloseCause.MAX_AGE, connection.settings.expiry_code)
        elif due is Due.PING:
            self._ping(connection)
        elif due is Due.NO_PONG:
            # This loop may have been held up, with the PONG in the kernel: read first.
            self._relay.on_client(connection, _IN)
            if timeouts.heard_at < now:
                self._close_if_silent(connection)
        elif due is Due.TOO_SLOW:
            self._relay.send_to_client(connection)
            if timeouts.waiting_since and timeouts.waiting_since < now:
                self._close_if_slow(connection)
        elif due is Due.IDLE:
            if connection.is_client_receiving():
                timeouts.passed_at = now  # the kernel still sends it an earlier message
            else:
                session.close(CloseCause.IDLE)
        self._flush_and_schedule(connection)

    def ping_early(self, connection: Connection) -> None:
        """Send a client the PING that is due within half an interval; else do nothing."""
        if not connection.timeouts.ping_early(self._poller.now):
            return
        self._ping(connection)
        self._relay.flush(connection)
        if not connection.is_closed:
            # Its deadline is that of the PING, earlier than the next one.
            self._deadlines.cancel(connection)
            self._relay.schedule(connection)

    def _flush_and_schedule(self, connection: Connection) -> None:
        if connection.is_closed:
            return
        self._relay.flush(connection)
        if not connection.is_closed:
            self._relay.schedule(connection)

    def _on_overdue(self, connection: Connection) -> None:
        """Drop a client that was to be closed by now, unless it still takes what was sent."""
        session, timeouts = connection.session, connection.timeouts
        close_timeout_s, now = connection.settings.close_timeout_s, self._poller.now
        # An end that ignores the CLOSE and sends on makes progress without an end.  (Without
        # frames, one direction may go on for as long as it likes, as in any half-closed stream.)
        may_extend = now < timeouts.cut_at or not session.has_frames
        if session.is_finishing and may_extend and timeouts.passed_at + close_timeout_s > now:
            # One end has sent its CLOSE, and the other one still sends a long message.
            timeouts.close_by = timeouts.passed_at + close_timeout_s
            self._relay.schedule(connection)
            return
        if (may_extend or not session.awaits_close) and connection.is_client_receiving(
            int(SLOWEST_CLOSING_BYTES_S * close_timeout_s)
        ):
            # A reset would lose it the bytes before the CLOSE, and the CLOSE.
            timeouts.close_by = now + close_timeout_s
            self._relay.schedule(connection)
            return
        is_moving = session.producer_state is ProducerState.AWAITING_EOF and session.backlog_bytes
        if is_moving or connection.producer.mask == NOT_WATCHED:
            # Its end of file was awaited, or not read because of this client.
            self._relay.lose_producer(connection)
        session.receive_client_eof()
        if connection.client.fd != -1:
            discard_client(connection.transport)
        if not connection.is_held:
            self._relay.remove(connection)
            return
        # The client's last messages wait for the next producer; held_until bounds that.
        timeouts.close_by = 0.0
        self._flush_and_schedule(connection)

    def _ping(self, connection: Connection) -> None:
        session, timeouts, now = connection.session, connection.timeouts, self._poller.now
        # Before the PING, which changes both.
        is_answered, state = session.is_ping_answered, client_tcp_state(connection.transport)
        if not session.ping(now):
            timeouts.postpone_ping(now)  # it would stand inside a frame of the producer's
            return
        if connection.progress is None:
            connection.progress = Progress(state)
        connection.progress.note_ping(state, now, is_answered=is_answered)
        timeouts.way_s = state.way_s

    def _close_if_slow(self, connection: Connection) -> None:
        """Close a client that took nothing from its queue, unless it took some from the kernel's.

        The kernel asks for more only when it has sent a good part of what it holds.  With a
        client that reads slowly and steadily that may take minutes.
        """
        unacked_bytes = client_unsent_bytes(connection.transport)
        if unacked_bytes >= connection.unacked_bytes:
            connection.session.close(CloseCause.TOO_SLOW)
        else:
            connection.unacked_bytes = unacked_bytes
            connection.timeouts.waiting_since = self._poller.now

    def _close_if_silent(self, connection: Connection) -> None:
        """Close a client that has not answered the PING, unless it reads what came before it.

        A client that reads slowly has megabytes to read before it comes to the PING.
        """
        if connection.client.fd == -1:
            return
        now, progress = self._poller.now, connection.progress
        state = client_tcp_state(connection.transport)
        assert progress, "a PING was sent, by this process or the one before"
        if not progress.is_reading(state, now):
            connection.session.close(CloseCause.NO_PONG)
            return
        connection.timeouts.await_pong(now)
        if not state.unacked:
            # Everything has arrived.  A peer reports its window only with the acknowledgement
            # of new bytes: send some.
            connection.session.ping(now)
