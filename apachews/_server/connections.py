"""The connections of a server: epoll masks, deadlines, last events, and groups.

Contract: for ``Loop``, under its lock.  Every connection that had an OPEN gets exactly one
ConnectionClosed event, from ``end``; ``forget`` closes the socket without an event.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection
from typing import cast

from apachews import wire
from apachews.client import Group, Link, Presence
from apachews.delivery import Relay
from apachews.events import ConnectionClosedEvent, Event, InvalidEvent

from . import lanes
from .connection import RECEIVING, Connection, State
from .lane_user import OWN, LaneUser
from .lanes import BridgeProcess
from .poller import IN, OUT, Poller

# The time limit for a client to answer a CLOSE; the handler gives the browser as long
# (APACHEWS_CLOSE_TIMEOUT).
CLOSE_TIMEOUT_S = 10.0  # (Not Final, which a compiled module inlines: tests shorten it.)


class Connections:
    """All connections of one server, and its groups.

    Args:
        lock: the server's.
        poller: watches them.
        max_message_bytes, max_queue_bytes: as ``Server``.
        on_forget: called with each connection whose socket was closed.
        relay: to the clients of other producers, or None.

    Attributes:
        by_fd: the connections by descriptor.
        events: queued events.
        closing: connections that are closing, with their deadlines.  All have the same
            timeout, so that the queue is in the order of the deadlines.
        presence: the members of the groups, or None.
        ignores_messages: the server closes: it reads only to receive the answers to its CLOSE.
    """

    def __init__(
        self,
        lock: threading.RLock,
        poller: Poller,
        max_message_bytes: int,
        max_queue_bytes: int,
        on_forget: Callable[[Connection], None],
        relay: Relay | None = None,
    ) -> None:
        self.by_fd: dict[int, Connection] = {}
        self.events: deque[Event] = deque()
        self.ignores_messages = False
        self._lock = lock
        self._poller = poller
        self._max_message_bytes = max_message_bytes
        self._max_queue_bytes = max_queue_bytes
        self._on_forget = on_forget
        self._relay = relay
        self.presence: Presence | None = None
        self.closing: deque[tuple[float, Connection]] = deque()
        # Weak: a group lives as long as it has a member, or the program refers to it.
        self._groups: weakref.WeakValueDictionary[str, Group] = weakref.WeakValueDictionary()
        # By id; a process lives as long as it has a connection or a channel.
        self._processes: weakref.WeakValueDictionary[str, BridgeProcess] = (
            weakref.WeakValueDictionary()
        )

    def add(self, sock: socket.socket) -> None:
        """Add an accepted socket."""
        connection = Connection(
            sock, self._lock, self._max_message_bytes, self._max_queue_bytes, self.update
        )
        self.by_fd[sock.fileno()] = connection
        connection.watched = IN
        self._poller.add(sock.fileno(), IN)

    def group(self, name: str) -> Group:
        """Return the group of this name."""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(
                name, self._lock, self._send_to_group, self._relay, self.presence
            )
        return group

    def broadcast(self, frame: bytes) -> int:
        """Send a frame to all clients; return how many it was sent to or queued for."""
        return self._broadcast(None, self.by_fd.values(), [], frame)

    def open_channel(self, connection: Connection, key: int) -> None:
        """Use the channel of an OFFER, whose descriptor the connection has received."""
        sock = connection.take_channel()
        if sock is None:
            return  # no descriptor was left for it; the next broadcast asks again
        if connection.process is None:
            sock.close()  # the client is being closed, or moves
        else:
            connection.process.open(sock, key)

    def _send_to_group(
        self, group: Group, links: Collection[Link], excluded: list[Link], frame: bytes
    ) -> int:
        return self._broadcast(
            group, cast(Collection[Connection], links), cast(list[LaneUser], excluded), frame
        )

    def _broadcast(
        self,
        group: Group | None,
        connections: Collection[Connection],
        excluded: list[LaneUser],
        frame: bytes,
    ) -> int:
        every = [*self._processes.values()]
        for process in every:
            process.poll()
        processes = [process for process in every if process.count(group)]
        return lanes.broadcast(group, processes, connections, excluded, frame)

    def set_process(self, connection: Connection, bridge: str | None) -> None:
        """Note which bridge process has a client; None: one that offers no channel."""
        if connection.lane != OWN and connection.process is not None:
            connection.process.leave(connection)
        connection.process = None
        if bridge is not None and connection.can_pass_descriptors:
            process = self._processes.get(bridge)
            if process is None:
                process = BridgeProcess(self._poller)
                self._processes[bridge] = process
            connection.process = process

    @property
    def has_queues(self) -> bool:
        """True while bytes wait for a bridge to read, on a connection or a channel."""
        return any(process.has_queue for process in [*self._processes.values()]) or any(
            connection.has_queue for connection in self.by_fd.values()
        )

    def close_channels(self) -> None:
        """Close the channels to all bridge processes."""
        for process in [*self._processes.values()]:
            process.close()

    def update(self, connection: Connection) -> None:
        """React to a change of state or queue: last event, deadline, epoll mask, end."""
        if connection.fileno() == -1:
            return
        if connection.has_overflowed and connection.state is State.CLOSING:
            self.end(connection, wire.TRY_AGAIN_LATER, "too slow: the send queue was full")
            return
        if connection.state is State.CLOSED and not connection.has_queue:
            self.forget(connection)
            return
        if connection.deadline is None and connection.state in (State.CLOSING, State.CLOSED):
            connection.deadline = time.monotonic() + CLOSE_TIMEOUT_S
            self.closing.append((connection.deadline, connection))
            self._poller.wake_if_waited_for()
        # Unread messages of clients that wait for their CLOSE stay in the kernel.
        is_over = self.ignores_messages and connection.state in RECEIVING
        is_read = connection.wants_reading and not is_over
        mask = (IN if is_read else 0) | (OUT if connection.has_queue else 0)
        if mask != connection.watched:
            if is_read and connection.reader.is_paused:
                # Bytes that were read already do not make the socket readable.
                self._poller.serve_again(connection.fileno())
                self._poller.wake_if_waited_for()
            connection.watched = mask
            self._poller.modify(connection.fileno(), mask)

    def end(self, connection: Connection, code: int, reason: str) -> None:
        """Queue the last event, once; the connection stays only to send its queue."""
        if connection.state is not State.CLOSED:
            connection.state = State.CLOSED
            kind = ConnectionClosedEvent if connection.client else InvalidEvent
            self.events.append(kind(connection.client, "", code, reason))
            self._poller.wake_if_waited_for()
            # 1001: a page is loaded again; 1006, 1012: the connection broke off or moves.
            self._leave(connection, is_on_purpose=code in (wire.NORMAL, wire.NO_CODE))
        self.update(connection)

    def forget(self, connection: Connection) -> None:
        """Close the socket, without an event; a second time does nothing."""
        fd = connection.fileno()
        if fd != -1:
            del self.by_fd[fd]
            self._poller.remove(fd)
            connection.state = State.CLOSED
            connection.close()
            self._leave(connection, is_on_purpose=False)
            self._on_forget(connection)

    def abandon_all(self, code: int, reason: str) -> None:
        """End all connections without sending anything."""
        for connection in list(self.by_fd.values()):
            if connection.client and connection.state not in (State.MOVED, State.LAST_EVENT):
                self.end(connection, code, reason)
            self.forget(connection)

    def run_timers(self, now: float) -> float | None:
        """Drop the closing connections whose time is over; return the next deadline, or None."""
        while self.closing:
            deadline, connection = self.closing[0]
            is_closed = connection.fileno() == -1
            if not is_closed and deadline > now:
                return deadline
            self.closing.popleft()
            if not is_closed:
                self.end(connection, wire.ABNORMAL, "the close was not answered in time")
                self.forget(connection)
        return None

    def _leave(self, connection: Connection, *, is_on_purpose: bool) -> None:
        """Take a client that has ended off its channel and out of its groups."""
        if connection.lane != OWN and connection.process is not None:
            connection.process.forget(connection)
        connection.process = None
        if connection.client:
            connection.client._leave_groups(at_once=is_on_purpose)
