"""What the bridge keeps of one WebSocket.

Contract: data, and nothing decided here; the bridge's thread alone reads and
writes it once it was adopted.  Slots and no buffers: an idle connection is this
object, its session and watch, and two sockets.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from typing import Protocol

from .session import Session
from .settings import Settings
from .transport import Transport
from .watch import Watch


class Log(Protocol):
    """Where lines about a connection go; ``httpd.ErrorLog`` is one."""

    def write(self, level: str, text: str) -> None:
        """Log a line at a level: error, warn, notice, info, debug."""


class Connection:
    """One WebSocket.

    Args:
        transport: the client; owned from here on.
        producer: the producer's socket, connected, non-blocking; owned as well.
        session: the protocol's state.
        settings: for buffers and times.
        name: client, user and URI, for the log.
        log: where its lines go.
        release: called once when it is closed: its place is free.
    """

    __slots__ = (
        "_release",
        "client_fd",
        "client_mask",
        "client_queue",
        "close_timeout_s",
        "is_deaf",
        "is_shut_down",
        "log",
        "max_buffer_bytes",
        "name",
        "opened_at",
        "producer",
        "producer_fd",
        "producer_mask",
        "producer_queue",
        "scheduled_at",
        "session",
        "ticket",
        "transport",
        "unsent_bytes",
        "watch",
    )

    def __init__(
        self,
        transport: Transport,
        producer: socket.socket,
        session: Session,
        settings: Settings,
        name: str,
        log: Log,
        release: Callable[[], None] | None = None,
    ) -> None:
        self.transport = transport
        self.producer = producer
        self.session = session
        self.name = name
        self.log = log
        self.max_buffer_bytes = settings.max_buffer  # of one read, and so of what waits
        self.close_timeout_s = settings.close_timeout
        self._release = release
        self.client_fd = transport.fileno()  # -1 once closed
        self.producer_fd = producer.fileno()  # -1 once closed
        self.client_mask = 0  # what epoll watches for
        self.producer_mask = 0  # -1: not registered
        self.client_queue: bytes | memoryview = b""  # what the client did not take yet
        self.producer_queue: bytes | memoryview = b""
        self.is_deaf = False  # nothing reaches the client any more
        self.is_shut_down = False  # nothing more will be sent to it
        self.opened_at = time.monotonic()
        self.watch = Watch(settings, self.opened_at)
        self.scheduled_at = math.inf  # when the loop asks the watch
        self.ticket = 0  # for that, in the loop's heap
        self.unsent_bytes = 0  # in the kernel, when the client was last seen to take some

    @property
    def is_closed(self) -> bool:
        """Both sides are closed and the loop knows no more of it."""
        return self.client_fd == -1 and self.producer_fd == -1

    def close(self) -> None:
        """Close both sides, whatever their state; again does nothing."""
        self.transport.close()
        self.producer.close()
        release, self._release = self._release, None
        if release:
            release()
