"""The histories of a server's groups: one order for all members, and catching up.

Contract: for ``Group``, ``Loop`` and ``Publications``, under the server's lock.  A ``Store`` gives
each message its offset and keeps it: in this process (``MemoryStore``), in a file
(``history_file.FileStore``), or in the relay (``RelayStore``).

How this works: the store is the truth, and each process follows it.  A ``History`` has a log of
the last messages, up to the position that the members here have reached.  Its members receive a
message when it is the next one in the log, and in no other case.  If one is missing, the history
asks the store for everything after its position.

A client that is added with ``since`` receives what the log has after that place, and is a member
from then on: both under the lock, so that no message is doubled or lost between them.  If the log
does not know the place, because it is new or older than that of another process, the client
waits for the answer of the store.

Long because the two short stores stand beside the interface that they implement.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from apachews import wire
from apachews._relay import stream
from apachews._relay.engine import Question
from apachews._relay.envelope import NOWHERE, Envelope
from apachews._relay.relay import Relay
from apachews.client import Client, Group, OnReplay
from apachews.delivery import Delivery
from apachews.events import Event, GapEvent
from apachews.exceptions import HistoryError
from apachews.history import Bounds, Entry, Formatter, Log, Position, Reading, Replay

# A group that is not used is forgotten after this, or after its ``seconds`` if they are more; the
# next message begins a new epoch.
KEEP_S: Final = 86400.0
# A group that has had no message is forgotten sooner if the program opens it again when it is
# needed: clients may ask for any name.
KEEP_EMPTY_S: Final = 300.0
# A group that has clients and no messages is used, as the store learns in this interval.
REFRESH_S: Final = 3600.0
# The interval of dropping the messages that are too old.
SWEEP_S: Final = 30.0

_logger: Final = logging.getLogger("apachews")


class Store(Protocol):
    """Keeps the messages of all groups, in one order for each group.

    Attributes:
        keeps_logs: the logs are the store; otherwise a group without clients has none.
        tick_s: the interval of ``changed``.
    """

    keeps_logs: bool
    tick_s: float

    def append(self, history: History, frame: bytes) -> tuple[Position | None, Delivery]:
        """Store a message, and deliver it; None: its position is not known yet.

        Raises:
            HistoryError: it is not stored, and no client has received it.
        """

    def update(self, history: History, number: int) -> None:
        """Read what follows the log's position; call ``receive_reading``, now or later."""

    def require_name(self, name: str) -> None:
        """Raise ValueError for a group that cannot have a history here."""

    def find(self, name: str) -> Bounds | None:
        """Return the bounds of a group that another process has made, if it is known."""

    def changed(self) -> Sequence[str]:
        """Return the groups in which others have stored messages since the last call."""

    def refresh(self, history: History) -> None:
        """Note that a group is still used."""

    def close(self) -> None:
        """Close it."""


class _Waiting(NamedTuple):
    """A client that waits for the store.

    Attributes:
        number: of the reading that it waits for.
    """

    member: str | None
    since: Position | None
    on_replay: OnReplay | None
    number: int


class History:
    """The history of one group.

    Args:
        group: the group.
        store: of the server.
        bounds: what is kept.
        formatter: see ``Server.group``; None: the message as it is.
        add_event: queues an event for the program.
        on_use: called when the group is used.

    Attributes:
        log: the last messages, up to the position of the members here.
        used_at: when the group was used last.
        refreshed_at: when the store was told last that the group has clients.
    """

    def __init__(
        self,
        group: Group,
        store: Store,
        bounds: Bounds,
        formatter: Formatter | None,
        add_event: Callable[[Event], None],
        on_use: Callable[[History], None],
    ) -> None:
        self.group = group
        self.log = Log(bounds)
        self.formatter = formatter
        self.used_at = self.refreshed_at = time.monotonic()
        self._store = store
        self._add_event = add_event
        self._on_use = on_use
        self._waiting: dict[Client, _Waiting] = {}
        # Functions that wait for the answer of this number.
        self._readers: list[tuple[int, Position, Callable[[Replay], object]]] = []
        self.asked = 0
        self._answered = 0
        # Answers up to this number belong to a log that was forgotten.
        self._void = 0

    @property
    def has_waiting(self) -> bool:
        """True while clients or functions wait for the store."""
        return bool(self._waiting or self._readers)

    @property
    def is_active(self) -> bool:
        """True if the group has clients here, as members or waiting."""
        return self.has_waiting or len(self.group) > 0

    def broadcast(self, frame: bytes) -> Delivery:
        """Store a message, and send it to the members."""
        self._on_use(self)
        position, delivery = self._store.append(self, frame)
        return delivery._with_position(position)

    def add(
        self,
        client: Client,
        member: str | None,
        since: Position | None,
        on_replay: OnReplay | None,
    ) -> None:
        """Add a client to the group, now or once the store has answered."""
        self._on_use(self)
        if self.log.epoch and self.log.can_replay(since):
            self._admit(client, _Waiting(member, since, on_replay, 0))
            return
        self._waiting[client] = _Waiting(member, since, on_replay, self.asked + 1)
        self.update()

    def read(self, since: Position, function: Callable[[Replay], object]) -> None:
        """Call a function with what follows a place, now or once the store has answered."""
        self._on_use(self)
        if self.log.epoch and self.log.can_replay(since):
            function(self.log.replay(since, time.monotonic()))
            return
        self._readers.append((self.asked + 1, since, function))
        self.update()

    def cancel(self, client: Client) -> bool:
        """Forget a client that waits; return whether it did."""
        return self._waiting.pop(client, None) is not None

    def leave(self) -> None:
        """Forget the log after the last client, if the store keeps the messages elsewhere."""
        if not self._store.keeps_logs and not self.is_active:
            self.log.reset("", 0)
            self._void = self.asked

    def update(self) -> None:
        """Ask the store for what follows the log."""
        self.asked += 1
        self._store.update(self, self.asked)

    def receive(self, position: Position, entry: Entry) -> Delivery:
        """Deliver a message of the store, if it is the next one."""
        if not self.is_active and not self._store.keeps_logs:
            return Delivery(0, 0)
        log = self.log
        is_known = position.epoch == log.epoch and not log.has_other(entry)
        if is_known and position.offset == log.top + 1:
            return self._deliver(entry)
        is_old = is_known and position.offset <= log.top
        if not is_old and self.asked == self._answered:
            self.update()
        return Delivery(0, 0)

    def receive_reading(self, reading: Reading, number: int) -> Delivery:
        """Deliver everything that follows the log, and admit the clients that wait for it."""
        delivery = Delivery(0, 0)
        if number <= self._void:
            return delivery
        self._answered = max(number, self._answered)
        log, first = self.log, reading.top - len(reading.entries)
        is_new = not log.epoch
        if reading.epoch != log.epoch or first > log.top:
            # The store has lost messages, or dropped them before they were read here.
            log.reset(reading.epoch, first)
            if not is_new and len(self.group):
                self._add_event(GapEvent(None, self.group.name))
        for entry in reading.entries:
            if entry.offset <= log.top:
                continue
            if is_new:
                log.append(entry, time.monotonic())  # older than every member
            else:
                delivery = self._deliver(entry)
        failure: Exception | None = None
        for client, waiting in [*self._waiting.items()]:
            if waiting.number <= number and self._waiting.pop(client, None) is not None:
                try:
                    self._admit(client, waiting)
                except Exception as error:  # of the program's function, for one client
                    failure = error
        ready = [one for one in self._readers if one[0] <= number]
        if ready:
            self._readers = [one for one in self._readers if one[0] > number]
            for _, since, function in ready:
                function(log.replay(since, time.monotonic()))
            self.group._end_if_empty()
        if failure is not None:
            raise failure
        return delivery

    def _deliver(self, entry: Entry) -> Delivery:
        self.log.append(entry, time.monotonic())
        return self.group._broadcast_frame(self._frame(entry.offset, entry.data), ())

    def _frame(self, offset: int, data: str | bytes) -> bytes:
        if self.formatter is not None:
            data = self.formatter(data, Position(self.log.epoch, offset))
        return wire.encode_message(data)

    def _admit(self, client: Client, waiting: _Waiting) -> None:
        """Send a client what it has missed, and make it a member."""
        replay = self.log.replay(waiting.since, time.monotonic())
        if waiting.on_replay is not None:
            waiting.on_replay(client, replay)
        else:
            for message in replay.messages:
                client._send_frame(self._frame(message.offset, message.data))
            if replay.has_gap:
                self._add_event(GapEvent(client, self.group.name))
        # The function of the program may have broadcast.
        for entry in self.log.after(replay.position.offset):
            client._send_frame(self._frame(entry.offset, entry.data))
        self.group._join(client, waiting.member)


class MemoryStore:
    """Keeps messages in this process: in the logs themselves."""

    keeps_logs = True
    tick_s = SWEEP_S

    def append(self, history: History, frame: bytes) -> tuple[Position | None, Delivery]:
        """Store a message, and deliver it."""
        if not history.log.epoch:
            history.update()
        position = Position(history.log.epoch, history.log.top + 1)
        data = Envelope.of_frame(NOWHERE, frame).message()
        entry = Entry(position.offset, time.monotonic(), data)
        return position, history.receive(position, entry)

    def update(self, history: History, number: int) -> None:
        """Begin an epoch if the log has none yet; otherwise the log has everything."""
        epoch = history.log.epoch or new_epoch()
        history.receive_reading(Reading(epoch, history.log.top, ()), number)

    def require_name(self, name: str) -> None:
        """Accept every name."""

    def find(self, name: str) -> Bounds | None:
        """Return None: all groups are those of this process."""
        return None

    def changed(self) -> Sequence[str]:
        """Return nothing: this process knows of every message."""
        return ()

    def refresh(self, history: History) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class RelayStore:
    """Keeps messages in the relay: all producers see one order.

    Args:
        broker: the relay, whose engine has histories.
    """

    keeps_logs = False
    tick_s = SWEEP_S

    def __init__(self, broker: Relay) -> None:
        self._broker = broker

    def append(self, history: History, frame: bytes) -> tuple[Position | None, Delivery]:
        """Queue a message; it is delivered here when it comes back with its offset."""
        log = history.log
        is_up = self._broker.append(history.group.name, frame, log.bounds, log.position)
        return None, Delivery(0, 0)._with_relayed(is_up)

    def update(self, history: History, number: int) -> None:
        """Read, on the thread of the relay, once the subscription is confirmed."""
        log = history.log
        name = history.group.name
        self._broker.read(Question(name, log.bounds, log.position, log.stamp, number))

    def require_name(self, name: str) -> None:
        """Raise ValueError for a name that Redis takes for another slot."""
        stream.require_name(name)

    def find(self, name: str) -> Bounds | None:
        """Return None: the relay tells histories from other groups itself."""
        return None

    def changed(self) -> Sequence[str]:
        """Return nothing: this process knows of every message."""
        return ()

    def refresh(self, history: History) -> None:
        """Read, which makes the keys expire later."""
        history.update()

    def close(self) -> None:
        """Do nothing: the loop closes the relay."""


class Histories:
    """The histories of a server.

    Args:
        store: keeps the messages; None: the server has no place for them.
        refusal: what the program is to do to get a store.
        call_later, add_event: of the loop.

    Attributes:
        can_reopen: the program opens a group again that was forgotten.
    """

    def __init__(
        self,
        store: Store | None,
        refusal: str,
        call_later: Callable[[float, Callable[[], object]], None],
        add_event: Callable[[Event], None],
    ) -> None:
        self._store = store
        self._refusal = refusal
        self._call_later = call_later
        self._add_event = add_event
        self._by_name: dict[str, History] = {}
        self._is_ticking = False
        self.can_reopen = False

    @property
    def has_store(self) -> bool:
        """Whether the server has a place for them."""
        return self._store is not None

    def open(self, group: Group, bounds: Bounds, formatter: Formatter | None) -> None:
        """Give a group a history, or its history other bounds or another formatter.

        Raises:
            ValueError: the server has no store for it.
        """
        if self._store is None:
            raise ValueError(self._refusal)
        self._store.require_name(group.name)
        history = group._history
        if not isinstance(history, History):
            arguments = (self._store, bounds, formatter, self._add_event, self._note_use)
            history = group._history = History(group, *arguments)
        history.log.bounds = bounds
        history.formatter = formatter or history.formatter
        self._note_use(history)

    def _note_use(self, history: History) -> None:
        """Keep a history, which may have been forgotten while the program kept its group."""
        history.used_at = time.monotonic()
        self._by_name[history.group.name] = history
        if not self._is_ticking and self._store is not None:
            self._is_ticking = True
            self._call_later(self._store.tick_s, self._tick)

    def get(self, name: str | None) -> History | None:
        """Return the history of a group that has one in this process."""
        return None if name is None else self._by_name.get(name)

    def find(self, name: str, group: Callable[[str], Group]) -> History | None:
        """Return the history of a group that has one, here or in the store."""
        history = self._by_name.get(name)
        if history is None and self._store is not None:
            bounds = self._store.find(name)
            # Members that have joined without a history have no place in it.
            if bounds is not None and not len(found := group(name)):
                self.open(found, bounds, None)
                history = self._by_name[name]
        return history

    def update(self, name: str | None) -> None:
        """Read on in a group: it has missed a message, or another worker has stored one."""
        history = self.get(name)
        if history is not None and history.is_active:
            try:
                history.update()
            except HistoryError as error:
                # The next message tries again.
                _logger.warning("the history of group %r: %s", name, error)

    def update_all(self) -> None:
        """Read on in every group: messages may have been missed."""
        for name in [*self._by_name]:
            self.update(name)

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()

    def _keep_s(self, history: History) -> float:
        """Return how long a history stays here without use."""
        if self.can_reopen and not history.log.top:
            return KEEP_EMPTY_S
        return max(KEEP_S, history.log.bounds.seconds)

    def _tick(self) -> None:
        store = self._store
        assert store is not None, "it ticks for its histories"
        now = time.monotonic()
        for name, history in [*self._by_name.items()]:
            history.log.trim(now)
            if history.is_active:
                # Clients that join do not reach the store, so used_at says nothing of it.
                if history.refreshed_at + REFRESH_S < now:
                    history.used_at = history.refreshed_at = now
                    store.refresh(history)
            elif history.used_at + self._keep_s(history) < now:
                del self._by_name[name]  # the group as well, unless the program refers to it
        for name in store.changed():
            self.update(name)
        self._is_ticking = bool(self._by_name)
        if self._is_ticking:
            self._call_later(store.tick_s, self._tick)


def new_epoch() -> str:
    """Return an epoch that no other history has."""
    return os.urandom(6).hex()
