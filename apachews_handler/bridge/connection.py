"""What the bridge keeps of one WebSocket.

Contract: a ``Connection`` owns its two sockets, from its construction until ``close`` or
``abandon``.  Once it was adopted, only the bridge's thread reads and writes it.  ``relay``
moves its bytes; ``portable`` exports and restores it.

An idle connection is this object, its two legs, its session, its timeouts and two sockets:
no closure, and no buffer.
"""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import time
import zlib
from typing import Final, Protocol

from apachews_handler.monitoring.close_log import CloseLine, Ending
from apachews_handler.monitoring.log_file import LEVELS, append
from apachews_handler.protocol import AnySession
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.protocol.progress import Progress
from apachews_handler.protocol.states import ClientState, ProducerState
from apachews_handler.protocol.timeouts import Timeouts
from apachews_handler.settings import Settings

from .send_queue import SendQueue
from .transport import Transport, client_tcp_state

# The mask of a leg that epoll does not watch, though its file descriptor is open.
NOT_WATCHED: Final = -1


class Log(Protocol):
    """The log for the lines about a connection; ``httpd.ErrorLog`` is one."""

    def write(self, level: str, text: str) -> None:
        """Log a line at a level: error, warn, notice, info, debug."""

    def descriptor(self) -> int | None:
        """Return the file descriptor that it writes to; None if it has no descriptor."""

    def style(self) -> tuple[str, int]:
        """Return the name of httpd's module in its lines, and the last level that it keeps.

        Levels are those of syslog(3): 3 is error, 6 info.
        """


class Permit(Protocol):
    """The slots of a connection under the limits; ``limits.Permit`` is one."""

    def release(self) -> None:
        """Release the slots; a second call does nothing."""


class Membership(Protocol):
    """The client's place on a bridge channel; ``channels.Member`` is one."""

    def leave(self) -> None:
        """Take the client off the channel: it gets nothing more from there."""

    def drain(self) -> None:
        """Handle what the producer has written to the channel so far."""

    def ask_to_leave(self) -> None:
        """Ask the producer to use the client's own connection."""

    def hold(self) -> None:
        """Note that the client's queue is not empty: the channel's messages wait there, too."""

    def settle(self) -> None:
        """Add what the client got by the channel to its reader's counts and its timeouts."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What the status shows of a connection besides its traffic.

    Attributes:
        id: the id that its producer was told.
        path: of the URI, without its query.
        address, port: the client's.
        user, subprotocol: "" for none.
        scheme: ``ws`` or ``wss``.
    """

    id: str = ""
    path: str = ""
    address: str = ""
    port: int = 0
    user: str = ""
    scheme: str = "ws"
    subprotocol: str = ""


_NO_INFO: Final = ConnectionInfo()


class Leg:
    """One side of a connection, as epoll sees it.

    Attributes:
        fd: the file descriptor; -1 once it is closed.
        mask: the events that epoll watches for, or ``NOT_WATCHED``.
        queue: the bytes that this side has not taken yet.
    """

    __slots__ = ("fd", "mask", "queue")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.mask = 0
        self.queue = SendQueue()


class Connection:
    """One WebSocket.

    Args:
        transport: the client's socket; the connection owns it.
        producer_socket: connected and non-blocking; the connection owns it.
        session: the protocol's state.
        settings: for sizes and times.
        endpoint: path of the socket file at which its producers listen.
        name: client, user and URI, for the log.
        log: for its lines.
        admission: its slots under the limits, released when it is closed; None: no slots.
        info: for the status.
        close_line: the line of the close log, as far as it is known; None: no close log.
        login_ends_at: when the client's login ends, on the clock of ``time.monotonic``; 0.0: never.

    Attributes:
        client, producer: the two legs.
        can_use_fast_path: the transport buffers no input, so epoll alone says when to read.
        write_failed: the client takes nothing more; its last bytes may still be read.
        is_shut_down: the client's socket is shut down for writing.
        is_half_closed: the producer's socket is shut down for writing.
        is_finished: the connection is closed, counted and logged.
        drain_cause: why it is drained; None unless ``timeouts.drain_at`` was set.
        entrusted_at: when its child of Apache was replaced; 0.0 before.
        member: its place on a bridge channel; None while it has none.
        may_join: False once the connection is to move to another process.
        scheduled_at, ticket: for ``Deadlines`` alone.
        progress: what the client takes since the last PING, or since it is being closed.
        unacked_bytes: what the kernel held for the client when it last took some.
    """

    __slots__ = (
        "admission",
        "can_use_fast_path",
        "client",
        "close_line",
        "drain_cause",
        "endpoint",
        "entrusted_at",
        "info",
        "is_finished",
        "is_half_closed",
        "is_shut_down",
        "log",
        "may_join",
        "member",
        "name",
        "opened_at",
        "producer",
        "producer_socket",
        "progress",
        "scheduled_at",
        "session",
        "settings",
        "ticket",
        "timeouts",
        "transport",
        "unacked_bytes",
        "write_failed",
    )

    def __init__(
        self,
        *,
        transport: Transport,
        producer_socket: socket.socket,
        session: AnySession,
        settings: Settings,
        endpoint: str,
        name: str,
        log: Log,
        admission: Permit | None = None,
        info: ConnectionInfo = _NO_INFO,
        close_line: CloseLine | None = None,
        login_ends_at: float = 0.0,
    ) -> None:
        self.transport = transport
        self.producer_socket = producer_socket
        self.session = session
        self.settings = settings
        self.endpoint = endpoint
        self.name = name
        self.log = log
        self.admission = admission
        self.info = info
        self.close_line = close_line
        self.client = Leg(transport.fileno())
        self.producer = Leg(producer_socket.fileno())
        self.can_use_fast_path = not transport.buffers_input
        self.write_failed = False
        self.is_shut_down = False
        self.is_half_closed = False
        self.is_finished = False
        self.opened_at = time.monotonic()
        self.timeouts = Timeouts(settings, self.opened_at)
        # The id is random: it spreads the ends of connections that opened together.
        spread = zlib.crc32(info.id.encode()) / 0xFFFFFFFF
        self.timeouts.limit_age(self.opened_at, spread, login_ends_at)
        self.entrusted_at = 0.0
        self.drain_cause: CloseCause | None = None
        self.scheduled_at = math.inf
        self.ticket = 0
        self.member: Membership | None = None
        self.may_join = True
        self.progress: Progress | None = None
        self.unacked_bytes = 0

    @property
    def is_open(self) -> bool:
        """True until one of the sides closes, or an error does."""
        return self.session.client_state is ClientState.OPEN

    @property
    def is_held(self) -> bool:
        """True while it has no producer, and waits for the next one."""
        return self.session.producer_state is ProducerState.DETACHED

    @property
    def is_closed(self) -> bool:
        """True once both sides are closed, and nothing waits for the next producer."""
        return self.client.fd == -1 and self.producer.fd == -1 and not self.is_held

    @property
    def queued_in_bytes(self) -> int:
        """How many bytes of the client's wait for a producer."""
        return self.producer.queue.unsent_bytes + self.session.backlog_bytes

    @property
    def queued_out_bytes(self) -> int:
        """How many bytes of the producer's wait for the client, or for the rest of a frame."""
        return self.client.queue.unsent_bytes + self.session.partial_bytes

    def attach_producer(self, producer_socket: socket.socket) -> None:
        """Own another producer's socket, connected and non-blocking; the last one is closed."""
        self.producer_socket = producer_socket
        self.producer.fd = producer_socket.fileno()

    def has_work(self) -> bool:
        """Tell whether there is something to do for a new connection before an event."""
        session = self.session
        return bool(
            session.to_client
            or session.to_producer
            or session.requests
            or self.producer.queue.unsent_bytes
            or self.transport.has_pending()
        )

    def is_client_receiving(self, least_bytes: int = 1) -> bool:
        """Tell whether sent bytes have arrived at the client since the last call.

        Args:
            least_bytes: fewer bytes do not count.

        Returns:
            False also if the client is gone, or if all that was sent had arrived before.
        """
        if self.client.fd == -1:
            return False
        state = client_tcp_state(self.transport)
        if self.progress is None:
            # No PING was sent, so there is nothing to compare with yet.
            self.progress = Progress(state)
            return state.unacked > 0
        return self.progress.is_receiving(state, least_bytes)

    def reject(self) -> None:
        """Send a client that no loop has added a CLOSE with 1001; the caller closes both sides."""
        self.session.close(CloseCause.GOING_AWAY)
        try:
            self.transport.send(b"".join(self.session.to_client))
        except OSError:
            pass  # ECONNRESET, EPIPE: the client has gone first

    def close(self) -> None:
        """Close both sides in any state; a second call does nothing."""
        self.transport.close()
        self.producer_socket.close()
        # Once: another connection may get the slots as soon as they are released.
        admission, self.admission = self.admission, None
        if admission:
            admission.release()

    def abandon(self) -> None:
        """Close the file descriptors and send nothing: another process has the connection."""
        self.transport.abandon()
        self.producer_socket.close()

    def log_close(self) -> None:
        """Log how it ended, in the error log and, if there is one, in the close log."""
        session = self.session
        end = session.close_cause
        assert end, "a connection is closed for a cause"
        after_s = time.monotonic() - self.opened_at
        # A line that the log drops is not written at all.
        if LEVELS[end.level] <= self.log.style()[1]:
            self.log.write(
                end.level,
                f"{self.name} closed by {end.by} ({end.name})"
                f" code={session.close_code} reason={session.close_reason!r}"
                f" after={after_s:.3f}s {session.counts()}",
            )
        if self.close_line:
            ending = Ending(
                session.close_code,
                session.close_reason,
                end.by,
                end.name,
                after_s,
                time.time(),
                session.traffic(),
                session.round_trip_s,
                os.getpid(),
            )
            settings = self.settings
            append(
                settings.log_directory,
                settings.close_log,
                self.close_line.finish(ending),
                self.log,
            )
