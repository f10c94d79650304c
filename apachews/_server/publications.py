"""Messages from outside, for the clients of a server: PUBLISH in the wire.

Contract: for ``Loop``, under its lock.  ``begin`` and ``receive`` take what publishers
send, ``run(fd)`` what siblings do, ``end`` lets go of a publisher.

How this works: a publisher's messages are delivered one after the other.  Where there
are sibling workers each goes to them as well, and the next one waits, unread, until all
of them have answered or ``ANSWER_TIMEOUT_S`` is over.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from apachews import wire
from apachews._connection import Connection
from apachews._processes.siblings import Siblings, read_answers
from apachews.groups import Delivery

# How long siblings may take: each between two events of its program.
ANSWER_TIMEOUT_S: Final = 5.0

Deliver = Callable[["str | None", "str | bytes"], Delivery]


class _Publisher:
    __slots__ = ("answers", "deadline", "delivery", "group", "messages")

    def __init__(self, group: str | None) -> None:
        self.group = group
        self.messages: deque[str | bytes] = deque()
        self.answers: socket.socket | None = None  # of siblings, awaited
        self.delivery = Delivery(0, 0)
        self.deadline = 0.0


class Publications:
    """All publishers of a server.

    Args:
        deliver: sends a message to a group's clients, or to all.
        epoll: the server's.
        siblings: other workers, or None.
    """

    def __init__(self, deliver: Deliver, epoll: select.epoll, siblings: Siblings | None) -> None:
        self._deliver = deliver
        self._epoll = epoll
        self._siblings = siblings
        self._publishers: dict[Connection, _Publisher] = {}
        self._awaited: dict[int, Connection] = {}  # by the descriptor of the answers
        if siblings:
            epoll.register(siblings.receiver.fileno(), select.EPOLLIN)

    def begin(self, connection: Connection, publish: wire.Publish) -> None:
        """Somebody wants to publish."""
        self._publishers[connection] = _Publisher(publish.group)

    def receive(self, connection: Connection, message: str | bytes) -> None:
        """Take a message that is to be published."""
        publisher = self._publishers[connection]
        publisher.messages.append(message)
        self._go_on(connection, publisher)

    def end(self, connection: Connection) -> None:
        """The connection is gone; one that is none of these is ignored."""
        publisher = self._publishers.pop(connection, None)
        if publisher and publisher.answers:
            self._stop_waiting(publisher)

    def run(self, fd: int) -> bool:
        """Do what a descriptor is ready for; False where it is none of these."""
        if (connection := self._awaited.get(fd)) is not None:
            publisher = self._publishers[connection]
            assert publisher.answers, "its descriptor is this one"
            more, is_all = read_answers(publisher.answers)
            publisher.delivery = _sum(publisher.delivery, more)
            if is_all:
                self._finish(connection, publisher)
            return True
        if self._siblings and fd == self._siblings.receiver.fileno():
            for relayed in self._siblings.receive_nowait():
                relayed.answer(self._deliver(relayed.group, relayed.message))
            return True
        return False

    @property
    def has_timers(self) -> bool:
        """Whether ``run_timers`` has something to do, now or later."""
        return bool(self._awaited)

    def run_timers(self, now: float) -> float | None:
        """Wait no more for who is late; return when the next one will be, or None."""
        for connection in list(self._awaited.values()):
            publisher = self._publishers[connection]
            if publisher.deadline <= now:
                self._finish(connection, publisher)
        waiting = [self._publishers[connection].deadline for connection in self._awaited.values()]
        return min(waiting, default=None)

    def close(self) -> None:
        """Let go of everybody."""
        for connection in list(self._publishers):
            self.end(connection)
        if self._siblings:
            self._epoll.unregister(self._siblings.receiver.fileno())
            self._siblings.close()
            self._siblings = None

    def _go_on(self, connection: Connection, publisher: _Publisher) -> None:
        while publisher.messages and publisher.answers is None:
            message = publisher.messages.popleft()
            publisher.delivery = self._deliver(publisher.group, message)
            answers = self._siblings and self._siblings.relay(publisher.group, message)
            if not answers:
                connection.send_published(wire.Published(*publisher.delivery))
                continue
            publisher.answers = answers
            publisher.deadline = time.monotonic() + ANSWER_TIMEOUT_S
            self._awaited[answers.fileno()] = connection
            self._epoll.register(answers.fileno(), select.EPOLLIN)
            connection.pause(True)

    def _finish(self, connection: Connection, publisher: _Publisher) -> None:
        self._stop_waiting(publisher)
        connection.send_published(wire.Published(*publisher.delivery))
        connection.pause(False)
        self._go_on(connection, publisher)

    def _stop_waiting(self, publisher: _Publisher) -> None:
        assert publisher.answers, "who waits has something to wait for"
        fd = publisher.answers.fileno()
        del self._awaited[fd]
        self._epoll.unregister(fd)
        publisher.answers.close()
        publisher.answers = None


def _sum(one: Delivery, other: Delivery) -> Delivery:
    return Delivery(one.reached + other.reached, one.skipped + other.skipped)
