"""A server's relay: what it sends to other producers, and what arrives from them.

Contract: for ``Loop``, ``Group`` and ``Server``, under the server's lock, which the relay never
holds while it waits for the broker.  Local clients come first: the caller broadcasts here, then
calls ``publish``.  What arrives is delivered inside ``dequeue()``, on the loop's thread.

Bounds: messages of other producers wait in a queue of ``MAX_QUEUE_BYTES`` for a program that is
busy; the oldest ones are dropped and counted.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from apachews._processes.board import Board, Counters
from apachews._processes.siblings import Siblings
from apachews.events import Event, RelayBackEvent, RelayLostEvent
from apachews.exceptions import MessageTooLarge, RelayError, WireError
from apachews.history import Bounds, Position, Reading
from apachews.monitoring.relays import RelayStatus

from . import address, stream
from .engine import Engine, Message, Question, Stored
from .envelope import ORIGIN_BYTES, Envelope
from .sibling_relay import SiblingRelay
from .stream import Place
from .thread import MAX_QUEUE_BYTES, MAX_QUEUE_MESSAGES, RelayThread

# Redis closes the connection of a subscriber for which 32 MiB wait (its default
# client-output-buffer-limit); some tens of the longest messages are far below.
DEFAULT_MAX_MESSAGE_BYTES: Final = 1024 * 1024
# The other events of the program come after this number of messages.
MESSAGES_IN_A_ROW: Final = 100

# For messages from outside, which belong into a history if the group has one.
STORED_IF_KEPT: Final = Stored(None, Position("", 0), 0)

_logger: Final = logging.getLogger("apachews")


class Port(Protocol):
    """What a relay needs of its loop."""

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function inside ``dequeue()``; from any thread."""

    def call_later(self, delay_s: float, function: Callable[[], object]) -> None:
        """Call a function inside ``dequeue()`` after some seconds."""

    def deliver_relayed(self, group: str | None, frame: bytes) -> object:
        """Send a frame to the clients of this process."""

    def deliver_stored(self, group: str, place: Place, envelope: Envelope, is_own: bool) -> object:
        """Deliver a message of the history of a group; ``is_own``: of this producer."""

    def deliver_reading(self, group: str, reading: Reading, number: int) -> object:
        """Deliver what a history has asked for."""

    def update_history(self, group: str) -> object:
        """Let a history ask for what it has missed."""

    def add_event(self, event: Event) -> None:
        """Queue an event for the program."""


class _Item(NamedTuple):
    """What waits for the loop: a message, one of a history, or the answer to a history."""

    group: str | None
    envelope: Envelope | None
    place: Place | None = None
    reading: Reading | None = None
    number: int = 0

    @property
    def size_bytes(self) -> int:
        if self.envelope is not None:
            return len(self.envelope.payload)
        return sum(len(entry.data) for entry in self.reading.entries) if self.reading else 0


class Relay:
    """Connects the broadcasts of a server to those of all producers of the same name.

    Args:
        engine: the broker's.
        name: of the relay.
        origin: of this producer, as in its envelopes.
        max_message_bytes: the longest message that is published.

    Attributes:
        counters: what it has done.
    """

    def __init__(self, engine: Engine, name: str, origin: bytes, max_message_bytes: int) -> None:
        self.name = name
        self.address = engine.address
        self.counters = Counters()
        self._board: Board | None = None
        self._place = 0
        self._origin = origin
        self._max_message_bytes = max_message_bytes
        if engine.max_message_bytes is not None:
            self._max_message_bytes = min(max_message_bytes, engine.max_message_bytes)
        self._port: Port | None = None
        # Held for a few instructions only, by the relay's thread and by the loop's.
        self._inbox_lock = threading.Lock()
        self._inbox: deque[_Item] = deque()
        # The groups for whose histories a message was dropped.
        self._missed: set[str] = set()
        self._inbox_bytes = 0
        self._is_scheduled = False
        self._engine = engine
        self._thread: RelayThread | None = None

    def start(self, port: Port, siblings: Siblings | None = None) -> None:
        """Connect, on a thread of its own; once.

        Args:
            port: the loop.
            siblings: the other workers, whose counters ``status`` adds; or None.
        """
        self._port = port
        if siblings is not None:
            self._board, self._place = siblings.board, siblings.place
            before = self._board.read(self._place)
            self.counters.published = before.published
            self.counters.received = before.received
            self.counters.dropped_out = before.dropped_out
            self.counters.dropped_in = before.dropped_in
            self.counters.dropped_beside = before.dropped_beside
            self.counters.gaps = before.gaps
        # Here and not before: the workers must not share its sockets.
        self._thread = RelayThread(
            self._engine,
            self.counters,
            self._receive,
            self._report_loss,
            self._report_return,
            self._show,
            self._receive_answers,
        )
        self._thread.start()

    def require_fitting(self, frame: bytes) -> None:
        """Check the size of a message, before any client receives it.

        Raises:
            MessageTooLarge
        """
        # The frame's header has at most 10 bytes: exact only near the bound.
        if len(frame) > self._max_message_bytes:
            size = len(Envelope.of_frame(self._origin, frame).payload)
            if size > self._max_message_bytes:
                raise MessageTooLarge(size, self._max_message_bytes)

    def publish(self, group: str | None, frame: bytes) -> bool:
        """Queue a message for all other producers; return whether the broker is connected."""
        return self._running().publish(group, Envelope.of_frame(self._origin, frame).encode())

    @property
    def has_history(self) -> bool:
        """True if the broker can keep the messages of groups."""
        return self._engine.has_history

    def append(self, group: str, frame: bytes, bounds: Bounds, seen: Position) -> bool:
        """Queue a message for the history of a group, in which it comes back here as well.

        Args:
            bounds: what the history keeps.
            seen: the position of this process in it.

        Returns:
            Whether the broker is connected.
        """
        data = Envelope.of_frame(self._origin, frame).encode()
        return self._running().publish(group, data, Stored(bounds, seen, 0))

    def publish_outside(self, group: str | None, frame: bytes) -> bool:
        """Queue a message of a program that does not know whether the group has a history."""
        if group is None or not self.has_history:
            return self.publish(group, frame)
        data = Envelope.of_frame(self._origin, frame).encode()
        return self._running().publish(group, data, STORED_IF_KEPT)

    def read(self, question: Question) -> None:
        """Ask for the messages of a history; the loop's ``deliver_reading`` has the answer."""
        self._running().ask(question)

    def subscribe(self, group: str) -> None:
        """Receive the messages of a group: it has its first client here."""
        self._running().subscribe(group)

    def unsubscribe(self, group: str) -> None:
        """Receive the messages of a group no more: its last client here has left."""
        self._running().unsubscribe(group)

    def is_subscribed(self, group: str) -> bool:
        """Return whether the messages of other producers for a group arrive."""
        return self._running().is_subscribed(group)

    def status(self) -> RelayStatus:
        """Return the counters, for the program and the status page."""
        counters = [self.counters]
        if self._board is not None:
            counters += self._board.others(self._place)
        return RelayStatus(
            address=self.address,
            name=self.name,
            is_up=all(one.is_up for one in counters),
            published=sum(one.published for one in counters),
            received=sum(one.received for one in counters),
            dropped=sum(one.dropped_out + one.dropped_in + one.dropped_beside for one in counters),
            gaps=sum(one.gaps for one in counters),
            lag_s=max(one.lag_s for one in counters),
        )

    def close(self) -> None:
        """Publish what is queued, as far as a second allows, and end the thread."""
        self._running().close()

    def _running(self) -> RelayThread:
        assert self._thread, "started with the loop"
        return self._thread

    def _receive(self, messages: list[Message]) -> None:
        """Queue what has arrived for the loop; on the relay's thread."""
        new = []
        for group, data, _ in messages:
            place = None
            try:
                if data.startswith(stream.MARK):
                    place, data = stream.split(data)
                envelope = Envelope.decode(data)
            except WireError as error:
                _logger.warning("%s: %s", self.address, error.reason)
                continue
            # Local clients have received our own already, except those of a history.
            if place is not None or envelope.origin != self._origin:
                new.append(_Item(group, envelope, place))
        self._enqueue(new)

    def _receive_answers(self, answers: list[tuple[Question, Reading]]) -> bool:
        """Queue answers for the loop; return whether there is room for more."""
        self._enqueue(
            [
                _Item(question.group, None, None, reading, question.number)
                for question, reading in answers
            ]
        )
        return self._inbox_bytes <= MAX_QUEUE_BYTES // 2

    def _enqueue(self, new: list[_Item]) -> None:
        with self._inbox_lock:
            self._inbox.extend(new)
            self._inbox_bytes += sum(item.size_bytes for item in new)
            if self._inbox_bytes > MAX_QUEUE_BYTES or len(self._inbox) > MAX_QUEUE_MESSAGES:
                self._drop_oldest()
            # What was dropped of them is counted already.
            self.counters.received += sum(item.envelope is not None for item in new)
            if not self._inbox or self._is_scheduled:
                return
            self._is_scheduled = True
        assert self._port, "the thread was started"
        self._port.call_soon(self._deliver)

    def _drop_oldest(self) -> None:
        """Drop the oldest messages; not the answers to histories, whose number is limited."""
        kept: deque[_Item] = deque()
        while self._inbox and (
            self._inbox_bytes > MAX_QUEUE_BYTES or len(self._inbox) > MAX_QUEUE_MESSAGES
        ):
            item = self._inbox.popleft()
            if item.reading is not None:
                kept.append(item)
                continue
            self._inbox_bytes -= item.size_bytes
            self.counters.dropped_in += 1
            if item.place is not None and item.group is not None:
                self._missed.add(item.group)  # the history reads it again
        self._inbox.extendleft(reversed(kept))

    def _deliver(self) -> None:
        """Deliver some messages to the clients; on the loop's thread."""
        port = self._port
        assert port, "the thread was started"
        with self._inbox_lock:
            count = min(len(self._inbox), MESSAGES_IN_A_ROW)
            some = deque(self._inbox.popleft() for _ in range(count))
            self._inbox_bytes -= sum(item.size_bytes for item in some)
            missed, self._missed = self._missed, set()
        try:
            while some:
                self._deliver_item(port, some.popleft())
            while missed:
                port.update_history(missed.pop())
        finally:
            with self._inbox_lock:
                # A function of the program has raised if some are left: they come next.
                self._inbox.extendleft(reversed(some))
                self._inbox_bytes += sum(item.size_bytes for item in some)
                self._missed |= missed
                self._is_scheduled = has_more = bool(self._inbox)
            if has_more:
                # Not call_soon(), which would come before the sockets of the clients.
                port.call_later(0.0, self._deliver)

    def _deliver_item(self, port: Port, item: _Item) -> None:
        if item.envelope is None:
            assert item.group is not None and item.reading is not None, "an answer"
            port.deliver_reading(item.group, item.reading, item.number)
        elif item.place is not None:
            assert item.group is not None, "only groups have histories"
            is_own = item.envelope.origin == self._origin
            port.deliver_stored(item.group, item.place, item.envelope, is_own)
        else:
            port.deliver_relayed(item.group, item.envelope.frame())

    def _show(self) -> None:
        if self._board is not None:
            self._board.write(self._place, self.counters)

    def _report_loss(self, why: str) -> None:
        _logger.warning("the relay %s is lost: %s", self.address, why)
        self._report(RelayLostEvent(None, reason=why))

    def _report_return(self, gap_s: float) -> None:
        _logger.warning("the relay %s is back after a gap of %.1f s", self.address, gap_s)
        self._report(RelayBackEvent(gap_s))

    def _report(self, event: Event) -> None:
        port = self._port
        assert port, "the thread was started"
        port.call_soon(lambda: port.add_event(event))


class Relays:
    """All ways to other producers at once: the workers of this machine, and the broker.

    Contract: as ``Relay``.
    """

    def __init__(self, relays: Sequence[Relay | SiblingRelay]) -> None:
        self._relays = relays

    def require_fitting(self, frame: bytes) -> None:
        """Raise MessageTooLarge for a message that one of them does not carry."""
        for relay in self._relays:
            relay.require_fitting(frame)

    def publish(self, group: str | None, frame: bytes) -> bool:
        """Queue a message for all other producers; return whether all are within reach."""
        # A list first: all() would stop at the first one that is out of reach.
        reached = [relay.publish(group, frame) for relay in self._relays]
        return all(reached)

    def subscribe(self, group: str) -> None:
        """Receive the messages of a group."""
        for relay in self._relays:
            relay.subscribe(group)

    def unsubscribe(self, group: str) -> None:
        """Receive the messages of a group no more."""
        for relay in self._relays:
            relay.unsubscribe(group)

    def is_subscribed(self, group: str) -> bool:
        """Return whether the messages of all other producers for a group arrive."""
        return all(relay.is_subscribed(group) for relay in self._relays)


def join_relays(
    siblings: Siblings | None,
    broker: Relay | None,
    call_later: Callable[[float, Callable[[], object]], None],
) -> Relay | SiblingRelay | Relays | None:
    """Return the way to all other producers; None without any.

    Args:
        siblings: the other workers, or None.
        broker: the relay to other machines, or None.
        call_later: of the loop.
    """
    relays: list[Relay | SiblingRelay] = []
    if siblings is not None and siblings.others:
        relays.append(SiblingRelay(siblings, call_later, broker.counters if broker else Counters()))
    if broker is not None:
        relays.append(broker)
    # One of them directly: it is called for every broadcast.
    return Relays(relays) if len(relays) > 1 else relays[0] if relays else None


def new_origin() -> bytes:
    """Return an origin for a producer; its workers share it."""
    return os.urandom(ORIGIN_BYTES)


def open_relay(target: Any, name: str, origin: bytes, max_message_bytes: int) -> Relay:
    """Return the relay of a server, not started.

    Args:
        target: an address (``apachews._relay.address``), or a client of redis-py.
        name: of the relay; the address's parameter ``name`` wins.
        origin: of the producer.
        max_message_bytes: the longest message that is published.

    Raises:
        RelayError: the address is not one, or redis-py is missing.
        ValueError: a client that cannot be used, or a bound that is too large for the queues.
    """
    if not 1 <= max_message_bytes <= MAX_QUEUE_BYTES:
        raise ValueError(
            f"relay_max_message_bytes={max_message_bytes}: expected 1 to {MAX_QUEUE_BYTES}"
        )
    if isinstance(target, str):
        target = address.parse(target)
        name = target.name or name
    return Relay(open_engine(target, name), name, origin, max_message_bytes)


def open_engine(target: Any, name: str) -> Engine:
    """Return the engine for a target of ``open_relay``, not connected.

    Raises:
        RelayError, ValueError: as ``open_relay``.
    """
    is_nats = isinstance(target, address.Address) and target.kind == "nats"
    extra, package = ("nats", "nats-py") if is_nats else ("redis", "redis-py")
    try:
        if is_nats:
            from .nats_engine import NatsEngine

            return NatsEngine(target, name)
        from .redis_engine import RedisEngine
    except ImportError as error:
        raise RelayError(
            target.shown if isinstance(target, address.Address) else "the relay",
            f"{package} is not installed",
            f"pip install 'apachews[{extra}]'"
            + ("" if is_nats else ", or on Debian: apt-get install python3-redis"),
        ) from error
    return RedisEngine(target, name)
