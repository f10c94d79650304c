"""What the bridge keeps of one WebSocket.

Contract: data, and nothing decided here; the bridge's thread alone reads and
writes it once it was adopted.  Slots and no buffers: an idle connection is this
object, its session, and two sockets.
"""

from __future__ import annotations

import socket
import time
from typing import Protocol

from .session import Session
from .transport import Transport


class Log(Protocol):
    """Where lines about a connection go; ``httpd.ErrorLog`` is one."""

    def write(self, level: str, text: str) -> None:
        """Log a line at a level: error, warn, notice, info, debug."""


class Connection:
    """One WebSocket: its client, its producer, and the session between them.

    Args:
        transport: the client; owned from here on.
        producer: the producer's socket, connected, non-blocking; owned as well.
        session: the protocol's state.
        name: client and URI, for the log.
        log: where its lines go.
        close_timeout_s: how long closing may take.
    """

    __slots__ = (
        "client_fd",
        "client_mask",
        "client_queue",
        "close_timeout_s",
        "deadline",
        "is_deaf",
        "is_shut_down",
        "log",
        "name",
        "opened_at",
        "producer",
        "producer_fd",
        "producer_mask",
        "producer_queue",
        "session",
        "transport",
    )

    def __init__(
        self,
        transport: Transport,
        producer: socket.socket,
        session: Session,
        name: str,
        log: Log,
        close_timeout_s: float,
    ) -> None:
        self.transport = transport
        self.producer = producer
        self.session = session
        self.name = name
        self.log = log
        self.close_timeout_s = close_timeout_s
        self.client_fd = transport.fileno()  # -1 once closed
        self.producer_fd = producer.fileno()  # -1 once closed
        self.client_mask = 0  # what epoll watches for
        self.producer_mask = 0  # -1: not registered
        self.client_queue: bytes | memoryview = b""  # what the client did not take yet
        self.producer_queue: bytes | memoryview = b""
        self.is_deaf = False  # nothing reaches the client any more
        self.is_shut_down = False  # nothing more will be sent to it
        self.deadline = 0.0  # when it must be gone, once it is closing
        self.opened_at = time.monotonic()

    @property
    def is_closed(self) -> bool:
        """Both sides are closed and the loop knows no more of it."""
        return self.client_fd == -1 and self.producer_fd == -1

    def close(self) -> None:
        """Close both sides, whatever their state."""
        self.transport.close()
        self.producer.close()
