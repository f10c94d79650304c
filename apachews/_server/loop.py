"""The server's loop: sockets in, events out.

Contract: for ``Server``, ``Client`` and the modules built on them.  Every caller holds ``lock``;
``turn()`` releases it while it waits, so that other threads can send, close and broadcast
meanwhile.  What they do takes effect at once, under the lock; if it makes an event or a deadline,
the waiting thread is woken.  One thread at a time waits.  Only ``turn()`` and its callers block.

Bounds: a turn reads at most ``READ_BYTES`` from each ready socket, makes events of a limited
number of frames per connection (``wire.reader``), and ends after ``TURN_EVENTS`` events.  The
rest of a read stays in its connection's reader, and the socket is not read again before it is
parsed.  So the library buffers one read and one unfinished message per client, and the events
of one turn.

Long because each kind of frame and of ending is a method of the one loop.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from typing import Final

from apachews import wire
from apachews._listening.acceptor import new_acceptor
from apachews._listening.socket_file import SocketFile
from apachews._processes.sd_notify import start_heartbeat
from apachews._processes.siblings import Siblings
from apachews._relay.envelope import NEWS, PRESENCE, Envelope
from apachews._relay.presence import PresenceTimer
from apachews._relay.relay import Relay, join_relays
from apachews._relay.stream import Place
from apachews.client import Client
from apachews.delivery import Delivery
from apachews.events import (
    AcceptEvent,
    CloseEvent,
    ConnectionClosedEvent,
    ErrorEvent,
    Event,
    MessageEvent,
    PongEvent,
    RelayBackEvent,
)
from apachews.exceptions import ServerClosed
from apachews.history import Entry, Reading
from apachews.wire.reader import BridgeChanged, Moved, Offered

from .calls import Calls
from .connection import RECEIVING, Connection, State
from .connections import Connections
from .histories import Histories, MemoryStore, RelayStore, Store
from .poller import GONE, IN, OUT, READABLE, Poller
from .publications import Publications

# A turn ends after this number of events.
TURN_EVENTS: Final = 1000
# The time limit for close() to send the last CLOSE frames.
FLUSH_TIMEOUT_S = 1.0  # (Not Final, as CLOSE_TIMEOUT_S is not.)


_NEWS: Final = wire.encode_frame(NEWS, b"")
# Why a group cannot have a history.
HISTORY_OF_WORKERS: Final = (
    "history=: workers share a history in a file; use Server(..., history_file=PATH)"
)
HISTORY_OF_NATS: Final = "history=: NATS keeps none; use Redis or Valkey as the relay"


class Consumer(enum.Enum):
    """Who takes the events, which decides when moved clients and descriptors are closed."""

    PROGRAM = "dequeue(): the call after a last event ends its client; close() closes everything"
    EVENT_LOOP = "as PROGRAM, but an event loop watches fileno(): it stays open until ServerClosed"
    HANDLERS = "a function per client: its return ends the client; descriptors as EVENT_LOOP"


class Loop:
    """Makes events of what the sockets receive.

    Args:
        file: the listening socket; closed here.
        max_message_bytes, max_queue_bytes: as ``Server``.
        on_ending: called when it begins to close or to drain.
        siblings: other workers of the same socket; closed here.
        broker: the relay to other machines, not started; closed here.
        has_presence: it keeps the members of groups.
        history_file: as ``Server``.

    Attributes:
        lock: held by every caller.
        events: queued events.
        connections: those of the clients and of publishers.
        is_closed: no further events occur; queued ones remain.
        consumer: who takes the events.
        relay: to the clients of other producers, or None.
        broker: the part of it that leads to other machines, or None.
        presence: the members of the groups, or None.
        histories: of the groups that have one.
    """

    def __init__(
        self,
        file: SocketFile,
        max_message_bytes: int,
        max_queue_bytes: int,
        on_ending: Callable[[], None],
        siblings: Siblings | None = None,
        broker: Relay | None = None,
        has_presence: bool = False,
        history_file: str | None = None,
    ) -> None:
        # First: it may fail, and the other parts have descriptors.
        store = _open_store(history_file, broker, siblings, self._announce)
        self.lock = threading.RLock()
        self.is_closed = False
        self.consumer = Consumer.PROGRAM
        self._on_ending = on_ending
        self._file = file
        self._drain_deadline: float | None = None
        # Clients that have moved, by their last event until the program takes it; and the one
        # whose last event the program has.
        self._moved: dict[Event, Connection] = {}
        self._last_event_of: Connection | None = None
        self._calls = Calls()
        self._heartbeat = start_heartbeat()
        self._poller = Poller(self.lock)
        self.broker = broker
        if broker is not None:
            broker.start(self, siblings)
        self.relay = join_relays(siblings, broker, self.call_later)
        self.connections = Connections(
            self.lock,
            self._poller,
            max_message_bytes,
            max_queue_bytes,
            self._on_forget,
            self.relay,
        )
        self.presence: PresenceTimer | None = None
        if has_presence:
            self.presence = self.connections.presence = PresenceTimer(self)
        self.events = self.connections.events  # the same queue
        self._acceptor = new_acceptor(self._file, self._poller, self._accept)
        refusal = HISTORY_OF_WORKERS if broker is None else HISTORY_OF_NATS
        self._open_group: Callable[[str], object] | None = None
        self.histories = Histories(store, refusal, self.call_later, self.add_event)
        self._publications = Publications(
            self._poller,
            siblings,
            broker,
            self.deliver_relayed,
            self._store_published,
            lambda group: self.histories.get(group) is not None,
        )

    def fileno(self) -> int:
        """Return a descriptor that is readable when ``turn(0)`` has something to do."""
        return self._poller.fileno()

    @property
    def is_waiting(self) -> bool:
        """True while a thread waits in ``turn()``."""
        return self._poller.is_waiting

    @property
    def is_draining(self) -> bool:
        """True once ``drain()`` was called."""
        return self._drain_deadline is not None

    @property
    def is_ending(self) -> bool:
        """True once ``close()`` or ``drain()`` was called."""
        return self.is_closed or self.is_draining

    def next_event(self, deadline: float | None) -> Event | None:
        """Wait for an event until a deadline (``time.monotonic()``); None: no limit.

        Raises:
            ServerClosed: no event is left, and none will occur.
        """
        if self._heartbeat is not None:
            self._heartbeat.beat()
        if self._last_event_of is not None:
            # The program is back: it has sent its last messages to the client that moved.
            self._last_event_of.finish_move()
            self._last_event_of = None
        calls = self._calls
        if calls.soon or calls.later:
            calls.run_due()
        while not self.events:
            if self.is_closed or self._is_drained():
                self.release()
                raise ServerClosed
            wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            self.turn(wait_s)
            if calls.soon or calls.later:
                calls.run_due()
            if not self.events and deadline is not None and time.monotonic() >= deadline:
                if self._poller.has_paused:
                    # Bytes that were read already do not make the descriptor readable.
                    self._poller.wake_if_watched()
                return None
        event = self.events.popleft()
        if self._moved and (moved := self._moved.pop(event, None)) is not None:
            if moved.state is State.MOVED:
                moved.state = State.LAST_EVENT
            if self.consumer is not Consumer.HANDLERS:
                self._last_event_of = moved
        return event

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function between two events; from any thread, without the lock."""
        self._calls.call_soon(function)
        self._poller.wake()

    def call_later(self, delay_s: float, function: Callable[[], object]) -> None:
        """Call a function between two events after some seconds; never after the end."""
        if not self.is_closed:
            self._calls.call_later(delay_s, function)
            self._poller.wake_if_waited_for()

    def deliver_relayed(self, group: str | None, frame: bytes) -> Delivery:
        """Send a frame of another producer or worker to the clients of this process."""
        if frame[0] == wire.FIN | PRESENCE:
            if self.presence is not None:
                _, length, start = wire.decode_header(frame, 0) or (0, 0, 0)
                self.presence.receive(group, frame[start : start + length])
            return Delivery(0, 0)
        if frame[0] == wire.FIN | NEWS:
            self.update_history(group)
            return Delivery(0, 0)
        if group is not None:
            return self.connections.group(group)._deliver(frame)
        clients = sum(one.client is not None for one in self.connections.by_fd.values())
        reached = self.connections.broadcast(frame)
        return Delivery(reached, clients - reached)

    def deliver_stored(self, group: str, place: Place, envelope: Envelope, is_own: bool) -> None:
        """Deliver a message that the relay has stored in the history of a group."""
        history = self.histories.get(group)
        if history is None:
            # The program uses the group without a history: as a message of a plain group,
            # which local clients receive before the relay does.
            if not is_own:
                self.deliver_relayed(group, envelope.frame())
        else:
            position, stamp, before = place
            data = envelope.message()
            entry = Entry(position.offset, time.monotonic(), data, stamp, before)
            history.receive(position, entry)

    def deliver_reading(self, group: str, reading: Reading, number: int) -> None:
        """Deliver what a history has asked the relay for."""
        if (history := self.histories.get(group)) is not None:
            history.receive_reading(reading, number)

    def update_history(self, group: str | None) -> None:
        """Let a history read on: it has missed a message, or another worker has stored one."""
        self.histories.update(group)

    def on_unopened_group(self, function: Callable[[str], object]) -> None:
        """Call a function with the group of a message from outside that has no history here."""
        self._open_group = function
        self.histories.can_reopen = True

    def _store_published(self, group: str, frame: bytes) -> Delivery | None:
        """Store a message of a publisher; None if the group has no history."""
        if self._open_group is not None and self.histories.get(group) is None:
            self._open_group(group)
        history = self.histories.find(group, self.connections.group)
        return None if history is None else history.broadcast(frame)

    def _announce(self, group: str) -> None:
        """Tell the other workers that the history of a group has a new message."""
        if self.relay is not None:
            self.relay.publish(group, _NEWS)

    def add_event(self, event: Event) -> None:
        """Queue an event of the relay or of the members of a group."""
        self.events.append(event)
        self._poller.wake_if_waited_for()
        if isinstance(event, RelayBackEvent):
            if self.presence is not None:
                self.presence.resynchronize()
            self.histories.update_all()

    @property
    def is_relay_up(self) -> bool:
        """Whether other producers can be heard, if there are any."""
        return self.broker is None or self.broker.counters.is_up

    def publish_presence(self, group: str | None, frame: bytes) -> None:
        """Send a frame about members to other producers."""
        if self.relay is not None:
            self.relay.publish(group, frame)

    def end_subscription(self, group: str) -> None:
        """Receive nothing of a group any more, if it has no clients here, and none that wait."""
        if self.relay is not None and self.connections.group(group)._is_empty:
            self.relay.unsubscribe(group)

    def drain(self, timeout_s: float) -> None:
        """Start handing over all clients: ``Server.drain``; docs/reference/wire.md, *Moving*."""
        if self.is_ending:
            return
        self._drain_deadline = time.monotonic() + timeout_s
        # Only the file goes.  The socket listens until all clients have moved: connections
        # that found the file before are accepted and handed over like all others.
        self._file.remove()
        self._accept()
        if self._file.is_shared and self._file.is_in_place():
            # Other workers go on accepting: new connections are theirs.  (If all workers end,
            # their supervisor has removed the file, and the last one accepts what is left.)
            self._acceptor.stop()
        for connection in list(self.connections.by_fd.values()):
            if connection.state is State.PUBLISHING:
                self.connections.forget(connection)  # the publisher can retry with the successor
            else:
                self._move(connection)
        self._on_ending()
        self._poller.wake_if_waited_for()

    def close(self, spread_s: float) -> None:
        """Close all clients with 1001; see ``Server.close``."""
        if self.is_closed:
            return
        self.is_closed = self.connections.ignores_messages = True
        self._calls.later.clear()  # a function that is due would end every wait below at once
        self._acceptor.stop()
        self._on_ending()
        connections = list(self.connections.by_fd.values())
        for connection in connections:
            self.connections.update(connection)  # reads no more, also before its CLOSE is sent
        started_at = time.monotonic()
        for index, connection in enumerate(connections):
            self._serve_until(started_at + spread_s * index / len(connections))
            connection.send_close(wire.GOING_AWAY, "the server closes")
        self._serve_until(started_at + spread_s)
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while self.connections.has_queues and (wait_s := deadline - time.monotonic()) > 0:
            self.turn(wait_s)
        self.connections.abandon_all(wire.GOING_AWAY, "the server closed")
        self._shut()

    def turn(self, wait_s: float | None) -> None:
        """Wait for the sockets once, and serve those that are ready."""
        next_timer_s = self._run_timers()
        if self.events and not self.is_closed:  # a timer made one
            wait_s = 0.0
        elif next_timer_s is not None:
            wait_s = next_timer_s if wait_s is None else min(wait_s, next_timer_s)
        poller, connections = self._poller, self.connections.by_fd
        ready = poller.ready
        if not ready:
            # While it closes, other threads must not see it half closed.
            for fd in poller.wait(wait_s, keeps_lock=self.is_closed):
                # The handler's mailbox may have filled since the reader paused.
                if connections[fd].watched & IN:
                    ready.append((fd, IN))
        while ready:
            fd, mask = ready.popleft()
            connection = connections.get(fd)
            if connection is None:
                poller.run_reader(fd)
                continue
            if mask & OUT:
                connection.flush_nowait()
                self.connections.update(connection)
                if connection.on_flushed is not None:
                    connection.on_flushed()
            if mask & READABLE and connection.fileno() == fd:
                if not connection.has_moved:
                    self._receive(connection)
                elif mask & GONE:
                    self.connections.forget(connection)  # its last event is queued already
            if len(self.events) >= TURN_EVENTS:
                break  # the next turn continues with the rest of ready

    def next_timer_s(self) -> float | None:
        """Return after how many seconds ``turn(0)`` has work even if no socket is ready."""
        with self.lock:
            if self.events or self._calls.soon or self._poller.ready or self._poller.has_paused:
                return 0.0
            if self._last_event_of is not None:
                return 0.0
            next_timer_s = self._run_timers()
            # A timer may have let a paused connection be read.
            return 0.0 if self._poller.has_paused else next_timer_s

    def _run_timers(self) -> float | None:
        """Run the expired timers; return the seconds until the next one, or None."""
        # Fast path: every turn comes here, and most servers have no timer most of the time.
        if not (
            self.connections.closing
            or self._calls.later
            or self._heartbeat is not None
            or self._drain_deadline is not None
            or self._publications.waiting
            or self._acceptor.has_timers
        ):
            return None
        now = time.monotonic()
        timers = [
            self.connections.run_timers(now),
            self._calls.next_at(),  # next_event() calls the functions
            self._heartbeat.beat() if self._heartbeat is not None else None,
            self._check_drain_deadline(now),
            self._publications.run_timers(now),
            self._acceptor.run_timers(now),
        ]
        due = [at for at in timers if at is not None]
        return max(0.0, min(due) - now) if due else None

    def _check_drain_deadline(self, now: float) -> float | None:
        """Abandon the clients that have not moved in time; return the deadline before."""
        if self._drain_deadline is None or self.is_closed:
            return None
        if self._drain_deadline > now:
            return self._drain_deadline
        self._acceptor.stop()
        self.connections.abandon_all(wire.SERVICE_RESTART, "not handed over in time")
        return None

    def _accept(self) -> None:
        """Accept all waiting connections, or one if other processes accept from the socket."""
        while True:
            try:
                sock = self._acceptor.accept_nowait()
            except OSError as error:
                if not self._acceptor.is_resting:
                    raise
                reason = f"cannot accept a client: {error.strerror}"
                self.events.append(ErrorEvent(None, reason=reason))
                return
            if sock is None:
                return
            self.connections.add(sock)
            if self._file.is_shared and self._drain_deadline is None:
                self._acceptor.let_others_go_first()
                return

    def _receive(self, connection: Connection) -> None:
        reader = connection.reader
        if reader.is_paused:
            items = reader.receive(b"", self._poller.busy)
        else:
            data = connection.receive_nowait()
            if data is None:
                return
            if not data:
                self._receive_eof(connection)
                return
            items = reader.receive(data, self._poller.busy)
        if reader.is_paused:
            self._poller.serve_again(connection.fileno())
        for item in items:
            # Messages first: nearly all items are messages.
            if isinstance(item, (str, bytes)):
                if connection.state in RECEIVING:
                    self.events.append(MessageEvent(connection.client, item))
                elif connection.state is State.PUBLISHING:
                    self._publications.receive(connection, item)
            elif isinstance(item, wire.Publish):
                connection.state = State.PUBLISHING
                self._publications.add(connection, item)
            elif isinstance(item, wire.Open):
                self._receive_open(connection, item)
            elif isinstance(item, wire.Close):
                self._receive_close(connection, item)
            elif isinstance(item, Moved):
                self._receive_move(connection)
            elif isinstance(item, wire.Violation):
                self._close_for_violation(connection, item)
            elif isinstance(item, Offered):
                self.connections.open_channel(connection, item.key)
            elif isinstance(item, BridgeChanged):
                self.connections.set_process(connection, item.bridge)
            elif connection.client:
                latency_s = connection.client._receive_pong(item.payload)
                if latency_s is not None and connection.state in RECEIVING:
                    self.events.append(PongEvent(connection.client, latency_s))
        if reader.ignored:
            connection.log_ignored_frames()

    def _receive_open(self, connection: Connection, item: wire.Open) -> None:
        connection.client = Client(connection, item.id, connection.reader.pop_open_payload())
        connection.state = State.ASKED if item.answer_required else State.OPEN
        self.connections.set_process(connection, item.bridge)
        self.events.append(AcceptEvent(connection.client))
        if self.is_closed:
            connection.send_close(wire.GOING_AWAY, "the server closes")
        if self._drain_deadline is not None:
            self._move(connection)

    def _receive_close(self, connection: Connection, item: wire.Close) -> None:
        if connection.state is State.PUBLISHING:
            self.connections.forget(connection)
            return
        if connection.state is not State.CLOSED:
            self.events.append(CloseEvent(connection.client, "", item.code, item.reason))
        connection.drop_queue()  # the client reads nothing after its CLOSE
        self.connections.end(connection, item.code, item.reason)

    def _receive_eof(self, connection: Connection) -> None:
        may_leave = connection.state in (State.CONNECTING, State.PUBLISHING)
        if not may_leave or not connection.reader.is_idle:
            reason = "it was rejected" if connection.was_rejected else "the connection broke off"
            self.connections.end(connection, wire.ABNORMAL, reason)
        # Otherwise it was a probe whether a producer listens, or a publisher has finished.
        self.connections.forget(connection)

    def _receive_move(self, connection: Connection) -> None:
        connection.has_moved = True
        if connection.state in RECEIVING:
            # The socket stays open: the program may still send while it handles this event.
            connection.state = State.MOVED
            event = ConnectionClosedEvent(
                connection.client, "", wire.SERVICE_RESTART, "moved to another producer"
            )
            self.events.append(event)
            self._moved[event] = connection
            self.connections.update(connection)
        elif connection.state is State.CLOSING:
            self.connections.end(connection, wire.ABNORMAL, "it moved before it answered the close")
        elif connection.state is State.ASKED:
            self.connections.end(connection, wire.ABNORMAL, "it moved before it was answered")

    def _close_for_violation(self, connection: Connection, violation: wire.Violation) -> None:
        if connection.state in RECEIVING:
            self.events.append(ErrorEvent(connection.client, "", violation.code, violation.reason))
            connection.drop_queue()
            connection.send_close(violation.code, wire.truncate_reason(violation.reason))
        self.connections.end(connection, violation.code, violation.reason)

    def _on_forget(self, connection: Connection) -> None:
        self._publications.remove(connection)
        if self.is_draining and not self.connections.by_fd:
            self._poller.wake_if_waited_for()  # the drain is complete

    def _move(self, connection: Connection) -> None:
        """Hand a client over, or reject one that waits to be accepted."""
        if connection.state is State.ASKED:
            connection.send_close(wire.GOING_AWAY, "the server closes")
        # A connection without an OPEN so far is handed over when its OPEN arrives.
        connection.send_move()

    def _is_drained(self) -> bool:
        """Return whether ``drain()`` is complete, and shut the server if so."""
        if self._drain_deadline is None or self.connections.by_fd:
            return False
        self._accept()  # connections that arrived since the last turn
        if self.connections.by_fd or self.events:
            return False
        self._shut()
        return True

    def _serve_until(self, time_at: float) -> None:
        while (wait_s := time_at - time.monotonic()) > 0:
            self.turn(wait_s)

    def _shut(self) -> None:
        """End the server; queued events stay."""
        self.is_closed = True
        self._calls.later.clear()
        self._acceptor.stop()
        if self.presence is not None and not self.is_draining:
            self.presence.close()
        if self.broker is not None:
            self.broker.close()
        self.histories.close()
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        if self.consumer is Consumer.PROGRAM:
            self.release()
        else:
            # An event loop must remove its reader before the descriptor is closed: wake it,
            # and release with ServerClosed.
            self._poller.wake()

    def release(self) -> None:
        """Close the descriptors; again does nothing."""
        if not self._poller.is_closed:
            self._publications.close()
            self.connections.close_channels()
        self._poller.close()


def _open_store(
    history_file: str | None,
    broker: Relay | None,
    siblings: Siblings | None,
    announce: Callable[[str], object],
) -> Store | None:
    """Return the store of the histories; None if there is no place for them."""
    if history_file is not None:
        from .history_file import FileStore

        return FileStore(history_file, announce)
    if broker is not None:
        return RelayStore(broker) if broker.has_history else None
    return MemoryStore() if siblings is None else None
