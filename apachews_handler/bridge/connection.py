"""What the bridge keeps of one WebSocket.

Contract: data, and nothing decided here; the bridge's thread alone reads and
writes it once it was adopted.  Slots and no buffers: an idle connection is this
object, its session and watch, and two sockets.
"""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import time
from typing import Final, Protocol

from apachews_handler.monitoring.close_log import CloseLine, Ending
from apachews_handler.monitoring.log_file import append
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.protocol.progress import Progress
from apachews_handler.protocol.session import Session
from apachews_handler.protocol.states import ProducerState
from apachews_handler.protocol.timeouts import Timeouts
from apachews_handler.settings import Settings

from .transport import Transport


class Log(Protocol):
    """Where lines about a connection go; ``httpd.ErrorLog`` is one."""

    def write(self, level: str, text: str) -> None:
        """Log a line at a level: error, warn, notice, info, debug."""

    def descriptor(self) -> int | None:
        """Return the descriptor that it writes to, None where there is none."""

    def style(self) -> tuple[str, int]:
        """Return the name of httpd's module in its lines, and the last level that it keeps.

        Levels are those of syslog(3): 3 is error, 6 info.
        """


class Permit(Protocol):
    """The places of a connection under the limits; ``limits.Admission`` is one."""

    def release(self) -> None:
        """Give the places back; again does nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What the status says of a connection besides what it has passed.

    Attributes:
        id: what its producer knows it by.
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


_NOTHING: Final = ConnectionInfo()


class Connection:
    """One WebSocket.

    Args:
        transport: the client; owned from here on.
        producer: the producer's socket, connected, non-blocking; owned as well.
        session: the protocol's state.
        settings: for buffers and times.
        path: the producer's socket file; where the next one is looked for.
        name: client, user and URI, for the log.
        log: where its lines go.
        admission: its places under the limits, released when it is closed; None: it has none.
        about: for the status.
        close_line: for the log of closes, as far as it is known; None: it has none.

    Attributes:
        entrusted_at: when its child of Apache was replaced; 0.0 before.
        is_simple: what came from the client and was not read is shown by its descriptor:
            no TLS record holds more.
    """

    __slots__ = (
        "about",
        "admission",
        "can_use_fast_path",
        "client_fd",
        "client_mask",
        "client_queue",
        "close_line",
        "entrusted_at",
        "goodbye",
        "hold_ends_at",
        "is_finished",
        "is_shut_down",
        "log",
        "name",
        "opened_at",
        "path",
        "producer",
        "producer_fd",
        "producer_mask",
        "producer_queue",
        "producer_sent",
        "progress",
        "resumed_at",
        "said_before",
        "scheduled_at",
        "session",
        "settings",
        "ticket",
        "transport",
        "unsent_bytes",
        "watch",
        "write_failed",
    )

    def __init__(
        self,
        transport: Transport,
        producer: socket.socket,
        session: Session,
        settings: Settings,
        path: str,
        name: str,
        log: Log,
        admission: Permit | None = None,
        about: ConnectionInfo = _NOTHING,
        close_line: CloseLine | None = None,
    ) -> None:
        self.transport = transport
        self.producer = producer
        self.session = session
        self.settings = settings
        self.path = path
        self.name = name
        self.log = log
        self.admission = admission
        self.about = about
        self.close_line = close_line
        self.client_fd = transport.fileno()  # -1 once closed
        self.producer_fd = producer.fileno()  # -1 once closed
        self.client_mask = 0  # what epoll watches for
        self.producer_mask = 0  # -1: not registered
        self.client_queue: bytes | memoryview = b""  # what the client did not take yet
        self.producer_queue = b""  # whole frames, the first of them perhaps half sent
        self.producer_sent = 0  # bytes of these
        self.hold_ends_at = 0.0  # when the search for a producer is given up
        self.resumed_at = 0.0  # when it was found last
        self.said_before = 0  # ``producer_said``, then
        self.write_failed = False  # nothing reaches the client any more
        self.is_finished = False  # it is closed, counted and logged
        self.is_shut_down = False  # nothing more will be sent to it
        self.can_use_fast_path = not transport.buffers_input
        self.opened_at = time.monotonic()
        self.watch = Timeouts(settings, self.opened_at)
        self.entrusted_at = 0.0
        self.goodbye: CloseCause | None = None  # why it is sent away, once it is to be
        self.scheduled_at = math.inf  # when the loop asks the watch
        self.ticket = 0  # for that, see Deadlines
        # What the client takes: since the last PING, or since it is being closed.
        self.progress: Progress | None = None
        self.unsent_bytes = 0  # in the kernel, when the client was last seen to take some

    @property
    def is_closed(self) -> bool:
        """Both sides are closed and the loop knows no more of it."""
        return (
            self.client_fd == -1
            and self.producer_fd == -1
            and self.session.producer_state
            is not ProducerState.DETACHED  # and there is nothing to say to the next one
        )

    def take_producer(self, producer: socket.socket) -> None:
        """Own another producer's socket, connected and non-blocking; the last one is closed."""
        self.producer = producer
        self.producer_fd = producer.fileno()

    def close(self) -> None:
        """Close both sides, whatever their state; again does nothing."""
        self.transport.close()
        self.producer.close()
        admission, self.admission = self.admission, None
        if admission:
            admission.release()

    def abandon(self) -> None:
        """Close the descriptors, and nothing else: another process has the connection."""
        self.transport.abandon()
        self.producer.close()

    def log_close(self) -> None:
        """Write the one line about its end; one more where there is a log of closes."""
        session = self.session
        end = session.close_cause
        assert end, "nothing is closed without an end"
        after_s = time.monotonic() - self.opened_at
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
