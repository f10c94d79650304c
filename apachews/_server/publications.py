"""Messages from other programs for the clients of a server: PUBLISH in docs/reference/wire.md.

Contract: for ``Loop``, under its lock.  ``add``, ``receive`` and ``remove`` are about the
connection of a publisher; messages of sibling workers arrive through the poller.

A publisher's messages are delivered one after the other.  With sibling workers each message
goes to them as well, and the publisher is not read again before all of them have answered or
``ANSWER_TIMEOUT_S`` is over.
"""

from __future__ import annotations

import functools
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from apachews import wire
from apachews._processes.siblings import Siblings, read_answers
from apachews._relay.relay import Relay
from apachews.delivery import Delivery
from apachews.exceptions import HistoryError, MessageTooLarge

from .connection import Connection
from .poller import Poller

# The time limit for siblings: each answers between two events of its program.
ANSWER_TIMEOUT_S: Final = 5.0


class _Publisher:
    """One publisher; ``answers`` is the socket of the siblings' answers while they are awaited."""

    __slots__ = ("answers", "deadline", "delivery", "group", "messages")

    def __init__(self, group: str | None) -> None:
        self.group = group
        self.messages: deque[str | bytes] = deque()
        self.answers: socket.socket | None = None
        self.delivery = Delivery(0, 0)
        self.deadline = 0.0


class Publications:
    """All publishers of a server.

    Args:
        poller: the server's.
        siblings: other workers, or None.
        broker: the relay to other machines, or None.
        deliver: sends a frame to the clients of a group, or to all, of this process.
        store: stores a message of a group with a history, and delivers it everywhere; returns
            None for a group without one.
        has_history: whether a group has a history in this process.

    Attributes:
        waiting: the publishers whose siblings have not all answered.
    """

    def __init__(
        self,
        poller: Poller,
        siblings: Siblings | None,
        broker: Relay | None,
        deliver: Callable[[str | None, bytes], Delivery],
        store: Callable[[str, bytes], Delivery | None],
        has_history: Callable[[str | None], bool],
    ) -> None:
        self._deliver = deliver
        self._store = store
        self._has_history = has_history
        self._poller = poller
        self._siblings = siblings
        self._broker = broker
        self._publishers: dict[Connection, _Publisher] = {}
        self.waiting: dict[Connection, _Publisher] = {}
        if siblings:
            poller.add_reader(
                siblings.receiver.fileno(), functools.partial(self._receive_relayed, siblings)
            )

    def add(self, connection: Connection, publish: wire.Publish) -> None:
        """Add a connection that has sent PUBLISH; answer its question, if it is one."""
        if publish.asks_status:
            relay = None if self._broker is None else self._broker.status().document()
            connection.send_published(wire.Published(0, 0, relay=relay))
        self._publishers[connection] = _Publisher(publish.group)

    def receive(self, connection: Connection, message: str | bytes) -> None:
        """Deliver a message of a publisher, or queue it while siblings are awaited."""
        publisher = self._publishers[connection]
        publisher.messages.append(message)
        self._deliver_next(connection, publisher)

    def remove(self, connection: Connection) -> None:
        """Remove a connection that is closed; ignore one that is not a publisher."""
        publisher = self._publishers.pop(connection, None)
        if publisher and publisher.answers:
            self._stop_waiting(connection, publisher)

    def run_timers(self, now: float) -> float | None:
        """Stop waiting for late siblings; return the next deadline, or None."""
        for connection, publisher in list(self.waiting.items()):
            if publisher.deadline <= now:
                self._finish(connection, publisher)
        return min((one.deadline for one in self.waiting.values()), default=None)

    def close(self) -> None:
        """Remove all publishers and close the channels to siblings."""
        for connection in list(self._publishers):
            self.remove(connection)
        if self._siblings:
            self._poller.remove_reader(self._siblings.receiver.fileno())
            self._siblings.close()
            self._siblings = None

    def _receive_relayed(self, siblings: Siblings) -> None:
        for relayed in siblings.receive_nowait():
            # The worker that has the publisher does not know the history of this group, and so
            # the relay has the message, too: it comes back from there, with its offset.
            if relayed.is_published and self._broker and self._has_history(relayed.group):
                relayed.answer(Delivery(0, 0))
            else:
                relayed.answer(self._deliver(relayed.group, relayed.frame))

    def _receive_answers(self, connection: Connection) -> None:
        publisher = self._publishers[connection]
        assert publisher.answers, "the poller watches its descriptor"
        more, is_all = read_answers(publisher.answers)
        publisher.delivery = _sum(publisher.delivery, more)
        if is_all:
            self._finish(connection, publisher)

    def _deliver_next(self, connection: Connection, publisher: _Publisher) -> None:
        while publisher.messages and publisher.answers is None:
            message = publisher.messages.popleft()
            if (why := self._refusal(message)) is not None:
                connection.send_published(wire.Published(0, 0, error=why))
                continue
            if (published := self._publish_stored(publisher.group, message)) is not None:
                connection.send_published(published)
                continue
            publisher.delivery = self._deliver(publisher.group, wire.encode_message(message))
            self._relay(publisher, message)
            answers = self._siblings and self._siblings.relay(publisher.group, message)
            if not answers:
                connection.send_published(_published(publisher.delivery))
                continue
            publisher.answers = answers
            publisher.deadline = time.monotonic() + ANSWER_TIMEOUT_S
            self.waiting[connection] = publisher
            self._poller.add_reader(
                answers.fileno(), functools.partial(self._receive_answers, connection)
            )
            # Not read meanwhile, so that its messages wait in the kernel and not here.
            connection.pause(True)

    def _publish_stored(self, group: str | None, message: str | bytes) -> wire.Published | None:
        """Store a message for a group with a history; None for other ones."""
        if group is None:
            return None
        try:
            delivery = self._store(group, wire.encode_message(message))
        except HistoryError as error:
            return wire.Published(0, 0, error=str(error))
        return None if delivery is None else _published(delivery)

    def _refusal(self, message: str | bytes) -> str | None:
        """Return why the broker does not carry a message, so that no client receives it."""
        if self._broker is not None:
            try:
                self._broker.require_fitting(wire.encode_message(message))
            except MessageTooLarge as error:
                return str(error)
        return None

    def _relay(self, publisher: _Publisher, message: str | bytes) -> None:
        """Publish a message to other machines: the clients of this one come first."""
        if self._broker is not None:
            # From outside: the group may have a history that this process does not know.
            relayed = self._broker.publish_outside(publisher.group, wire.encode_message(message))
            publisher.delivery = publisher.delivery._with_relayed(relayed)

    def _finish(self, connection: Connection, publisher: _Publisher) -> None:
        self._stop_waiting(connection, publisher)
        connection.send_published(_published(publisher.delivery))
        connection.pause(False)
        self._deliver_next(connection, publisher)

    def _stop_waiting(self, connection: Connection, publisher: _Publisher) -> None:
        assert publisher.answers, "called only while siblings are awaited"
        del self.waiting[connection]
        self._poller.remove_reader(publisher.answers.fileno())
        publisher.answers.close()
        publisher.answers = None


def _published(delivery: Delivery) -> wire.Published:
    return wire.Published(delivery.reached, delivery.skipped, delivery.relayed)


def _sum(one: Delivery, other: Delivery) -> Delivery:
    total = Delivery(one.reached + other.reached, one.skipped + other.skipped)
    return total._with_relayed(one.relayed)
