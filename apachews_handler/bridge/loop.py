"""The event loop of a process: epoll, dispatch, timers and readers.

Contract: ``add`` gives the loop a connection, which it owns from then on; ``turn`` waits once
and handles what happened.  ``add_reader`` watches other descriptors.  On one thread at a time:
the bridge's in a child of Apache, the only one in a custodian.  What happens on a connection
is in ``relay``, ``fast_path`` and ``timers``.

An exception in the handling of a connection ends that connection, with a traceback in the
log, and no other.
"""

from __future__ import annotations

import math
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from apachews_handler.monitoring.counters import Counters
from apachews_handler.protocol.close_causes import CloseCause

from .channels import Channels
from .connection import Connection
from .deadlines import Deadlines
from .fast_path import FastPath
from .poller import Poller
from .reconnect import Reconnector
from .relay import Relay
from .timers import Timers

_IN: Final = select.EPOLLIN
# How late a deadline may be handled, so that several are handled in one turn.  With thousands
# of idle clients a PING is due every few milliseconds, and to wake up for each costs several
# times as much as to send it.
TIMERS_S: Final = 0.05
# A turn that takes longer is slow, and remembered for so long.
SLOW_TURN_S: Final = 0.001
SLOW_TURNS_KEPT_S: Final = 60.0


class Loop:
    """All connections of a process.  Made before its thread, which alone calls it afterwards.

    Attributes:
        counters: the totals for the status.
        bridge_id: name of this process in OPEN.
        channels: the channels for groups.
        incoming: connections that other threads have given to the loop, for its next turn.
    """

    def __init__(self) -> None:
        self.counters = Counters()
        # Connections of the same bridge process can share a channel.
        self.bridge_id = os.urandom(8).hex()
        self._poller = Poller()
        self._deadlines: Deadlines[Connection] = Deadlines()
        self._reconnector = Reconnector()
        self._relay = Relay(
            self._poller, self._deadlines, self._reconnector, self.counters, self.bridge_id
        )
        self.channels = Channels(self._poller, self._relay, self.add_reader, self.remove_reader)
        self._relay.on_requests = self.channels.on_requests
        self._fast_path = FastPath(self._poller, self._relay)
        self._timers = Timers(self._poller, self._deadlines, self._relay)
        self._readers: dict[int, Callable[[], None]] = {}
        self.incoming: deque[Connection] = deque()
        # When the loop wakes up if nothing happens; 0.0 while it does not sleep.
        self._wakes_at = 0.0
        # (start, duration) of the slow turns, as a monotonic queue: durations decrease, so the
        # first one is the longest.
        self._slow_turns: deque[tuple[float, float]] = deque()

    def connections(self) -> set[Connection]:
        """Return the connections that are not closed."""
        return set(self.connections_by_age())

    def connections_by_age(self) -> list[Connection]:
        """Return the same, the oldest first, and last the ones whose client is gone."""
        found = dict.fromkeys(self._poller.clients.values())
        found.update(dict.fromkeys(self._poller.producers.values()))
        found.update(dict.fromkeys(self._reconnector.connections()))
        return list(found)

    @property
    def is_empty(self) -> bool:
        """True if there are no connections."""
        return not (self._poller.clients or self._poller.producers or self._reconnector)

    def add_reader(self, fd: int, on_ready: Callable[[], None], events: int = _IN) -> None:
        """Call a function in every turn in which a descriptor is ready.

        Any thread may call this; the loop's thread calls the function.

        Args:
            events: epoll's; that it is readable by default.

        Raises:
            OSError: the kernel has no room.
        """
        self._readers[fd] = on_ready  # before epoll can report it to the loop's thread
        try:
            self._poller.epoll.register(fd, events)
        except OSError:
            self._readers.pop(fd, None)
            raise

    def remove_reader(self, fd: int) -> None:
        """Stop watching a descriptor, which the caller then closes."""
        if not self._poller.epoll.closed:  # a custodian closes its loop before its reporter
            self._poller.unregister(fd)
        self._readers.pop(fd, None)

    def add(self, connection: Connection) -> None:
        """Own a new connection, and start it; an exception ends it here."""
        self._guard(self._relay.start, connection)

    def watch(self, connection: Connection) -> bool:
        """Watch both legs of a connection that is to be enqueued; any thread may call this.

        Returns:
            False if the kernel has no room; the next turn rejects the client then.
        """
        return self._poller.watch(connection)

    def enqueue(self, connection: Connection) -> bool:
        """Give the loop a new connection, which its next turn adds; any thread may call this.

        Args:
            connection: if it is watched, a byte on either leg begins that turn.

        Returns:
            True if the loop must be woken up for that turn.
        """
        # Before the append: from then on the connection is the loop's alone.
        has_work = connection.client.mask != _IN or connection.has_work()
        next_at = connection.timeouts.next_at()
        self.incoming.append(connection)
        # After the append: the loop looks for new connections after it has set this, so that one
        # of both threads notices the other.
        wakes_at = self._wakes_at
        return wakes_at > 0.0 and (has_work or next_at < wakes_at)

    def adopt(self, connection: Connection) -> None:
        """Own a connection that was released, by this process or another one."""
        self._guard(self._relay.adopt, connection)

    def release(self, connection: Connection) -> None:
        """Remove a connection at rest without closing it: another process gets it."""
        self._relay.release(connection)

    def ping_early(self, connections: Iterable[Connection]) -> None:
        """Send the clients whose PING is due within half an interval that PING now."""
        self._poller.now = time.monotonic()
        for connection in connections:
            self._guard(self._timers.ping_early, connection)

    def drain(
        self, connections: Iterable[Connection], cause: CloseCause, within_s: float | None = None
    ) -> float:
        """Close connections one after the other, at the pace of their settings.

        Args:
            connections: a connection that is drained earlier anyway keeps its time.
            cause: for the CLOSE and the log.
            within_s: limit for all of them, in spite of the pace; None: no limit.

        Returns:
            After how many seconds the last one is sent its CLOSE.
        """
        now = time.monotonic()
        going = [connection for connection in connections if connection.is_open]
        after_s = 0.0
        for connection in going:
            timeouts, rate = connection.timeouts, connection.settings.drain_rate
            at = now + after_s
            if not timeouts.drain_at or at < timeouts.drain_at:
                connection.drain_cause, timeouts.drain_at = cause, at
                self._relay.schedule(connection)
            pace_s = 1 / rate.per_s if rate else 0.0
            after_s += pace_s if within_s is None else min(pace_s, within_s / len(going))
        return after_s

    def reopen(self) -> None:
        """Continue in a forked process: with an epoll of its own, and without readers."""
        # The parent's sockets: its eventfd, its reporter, its attempts on loopback ports.
        self._readers.clear()
        self._reconnector.abort_attempts()
        self._poller.reopen()
        self.channels.reopen()

    def abandon(self) -> None:
        """Close the descriptors of all connections: another process has them."""
        for connection in self.connections():
            connection.abandon()
        self.channels.abandon()

    def descriptors(self) -> set[int]:
        """Return the descriptors of all connections, and the loop's own."""
        poller = self._poller
        descriptors = {*poller.clients, *poller.producers, poller.epoll.fileno()}
        return descriptors | self.channels.descriptors()

    def close(self) -> None:
        """Close all connections at once, without a CLOSE."""
        for connection in self.connections():
            connection.session.fail()  # its cause, unless it has one
            self._relay.remove(connection)
        self.channels.close()
        self._poller.epoll.close()

    def turn(self, max_wait_s: float | None = None) -> None:
        """Wait once, and handle what happened.

        Args:
            max_wait_s: limit of the wait; None: until something happens.
        """
        poller = self._poller
        wait_s = self._wait_s(max_wait_s)
        self._wakes_at = math.inf if wait_s is None else time.monotonic() + wait_s
        events = poller.epoll.poll(0 if self.incoming else wait_s)
        self._wakes_at = 0.0
        poller.now = time.monotonic()
        while self.incoming:
            # Before their events, and before this turn closes a descriptor.
            self.add(self.incoming.popleft())
        clients, producers, readers = poller.clients, poller.producers, []
        # A new dict, because a client that is read in this turn may become pending again.
        pending, poller.pending = poller.pending, {}
        poller.busy = len(pending) or 1
        fast_path, relay = self._fast_path, self._relay
        for fd, ready in events:
            # As _guard does, with direct calls, which are faster if this module is compiled.
            # EPOLLIN and nothing else: probably a message, and no error or hang-up.
            if (connection := clients.get(fd)) is not None:
                if pending:
                    pending.pop(connection, None)  # each client is read once per turn
                try:
                    if ready == _IN:
                        fast_path.relay_client(connection, ready)
                    else:
                        relay.on_client(connection, ready)
                except Exception:
                    relay.abort(connection)
            elif (connection := producers.get(fd)) is not None:
                try:
                    if ready == _IN:
                        fast_path.relay_producer(connection, ready)
                    else:
                        relay.on_producer(connection, ready)
                except Exception:
                    relay.abort(connection)
            elif fd in self._readers:
                readers.append(fd)
            # Else it is a descriptor that was closed earlier in this turn.
        # Run these last.  A reader may add a connection that reuses a descriptor closed earlier
        # in this turn; the connection must not receive that descriptor's stale events.
        for fd in readers:
            if fd in self._readers:
                self._readers[fd]()
        for connection in pending:
            # It may have been closed in this turn, or its producer may have become slow.
            if connection.client.fd != -1 and connection.client.mask & _IN:
                self._guard(relay.on_client, connection, _IN)
        if self._reconnector:
            for connection, sock in self._reconnector.connect_due(poller.now):
                self._guard(relay.resume, connection, sock)
        for connection in self._deadlines.pop_due(poller.now):
            if not connection.is_closed:
                self._guard(self._timers.on_due, connection)
        channels = self.channels
        if channels.changed or channels.working:
            channels.finish_turn()

    def _guard(self, handle: Callable[..., None], connection: Connection, *args: object) -> None:
        """Handle one connection; an exception ends that connection only."""
        try:
            handle(connection, *args)
        except Exception:
            self._relay.abort(connection)

    def _wait_s(self, max_wait_s: float | None) -> float | None:
        """End the accounting of the last turn, and return how long to wait in the next one."""
        now = time.monotonic()
        if now - self._poller.now > SLOW_TURN_S:
            self._note_slow_turn(now - self._poller.now)
        if self._poller.pending or self.channels.working:
            return 0  # they can be read at once; epoll is asked for the others
        wait_s = self._deadlines.next_at() - now
        if wait_s > 0:
            wait_s = max(wait_s, TIMERS_S)
        if self._reconnector:
            # Not batched: its delays are a few milliseconds while clients are resumed.
            wait_s = min(wait_s, self._reconnector.next_at() - now)
        if wait_s == math.inf:
            return max_wait_s
        return max(0.0, wait_s if max_wait_s is None else min(wait_s, max_wait_s))

    def longest_turn_s(self) -> float:
        """Return the duration of the longest turn of the last minute; 0.0 if none was slow."""
        turns = self._slow_turns
        while turns and turns[0][0] < self._poller.now - SLOW_TURNS_KEPT_S:
            turns.popleft()
        return turns[0][1] if turns else 0.0

    def _note_slow_turn(self, took_s: float) -> None:
        self.longest_turn_s()  # drops the old ones, so that the queue is bounded
        while self._slow_turns and self._slow_turns[-1][1] <= took_s:
            self._slow_turns.pop()
        self._slow_turns.append((self._poller.now, took_s))
