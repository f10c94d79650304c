"""The interface under which a message broker stands: Redis, and any other one.

Contract: ``RelayThread`` alone calls an engine, on its own thread, so that every method may block
for a few seconds.  Groups are text; None is the channel of all clients.  After an
``EngineError`` only ``close`` and ``connect`` are called.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from apachews.history import Bounds, Position, Reading


class EngineError(Exception):
    """The broker cannot be used: why, in words for the program and the log, without a password."""


# SO_LINGER: on, zero seconds.
_NO_LINGER: Final = struct.pack("ii", 1, 0)


def discard_unsent(sock: socket.socket) -> None:
    """Let the close of a socket discard what the peer has not acknowledged.

    Otherwise the kernel goes on sending it after the close, until the network works again: a
    message would arrive after later ones, which another connection has carried meanwhile.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


class Stored(NamedTuple):
    """How the history of a group stores a message.

    Attributes:
        bounds: what it keeps; None: store the message if the group has a history.
        seen: what the sender has of the history.
        number: of the message among those of this process; 0: it is sent once only.
    """

    bounds: Bounds | None
    seen: Position
    number: int


class Message(NamedTuple):
    """Bytes for a group; None: for all clients.

    Attributes:
        stored: for a group that has a history, or may have one.
    """

    group: str | None
    data: bytes
    stored: Stored | None = None


class Question(NamedTuple):
    """What a history asks the broker for: the messages after a position.

    Attributes:
        bounds: what it keeps.
        stamp: of the message at the position; "" if it is not known.
        number: of the question, for the answer.
    """

    group: str
    bounds: Bounds
    after: Position
    stamp: str
    number: int


class Rejection(NamedTuple):
    """The broker works, and has rejected one command.

    Attributes:
        why: the broker's words.
    """

    why: str


class Engine(Protocol):
    """A connection to a broker.

    Attributes:
        address: the broker's, for messages, without a password.
        has_history: it can store messages, and ``read`` them.
        max_message_bytes: the longest message that the broker carries; None: any.
        wanted: the groups of ``subscribe`` since ``connect``, without those of ``unsubscribe``.
        subscribed: the groups whose subscription the broker has confirmed.
        heard_at: when the broker was heard last (``time.monotonic()``): up to then no message
            was missed.
        lag_s: the latest round trip of a ping on the subscriber's connection.
    """

    address: str
    has_history: bool
    max_message_bytes: int | None
    wanted: set[str | None]
    subscribed: set[str | None]
    heard_at: float
    lag_s: float

    def connect(self) -> None:
        """Connect, without any subscription."""

    def close(self) -> None:
        """Close the connections; closing again does nothing."""

    def publish(self, messages: Sequence[Message]) -> list[tuple[Message, Rejection]]:
        """Publish messages in this order, and wait until the broker has them.

        Returns:
            Those that the broker has rejected.  If one of them is for a history and has a
            number, all later ones for this history are among them.
        """

    def publish_once(self, message: Message) -> tuple[int, Position | None]:
        """Publish one message.

        Returns:
            The number of producers that receive it, and its position if a history stores it.
        """

    def read(self, questions: Sequence[Question]) -> list[Reading | Rejection]:
        """Return the answers to questions of histories."""

    def try_history(self, group: str) -> Rejection | None:
        """Store a message in a group, read it, and delete the history; for ``doctor``.

        Returns:
            Why the broker has rejected it, or None.
        """

    def subscribe(self, groups: Iterable[str | None]) -> None:
        """Ask for subscriptions; ``receive`` adds the confirmed ones to ``subscribed``."""

    def unsubscribe(self, groups: Iterable[str | None]) -> None:
        """End subscriptions, which leave ``subscribed`` at once."""

    def receive(self, timeout_s: float, wake_fd: int) -> list[Message]:
        """Wait for messages, until ``wake_fd`` is readable or the time is over."""

    def ping(self) -> None:
        """Send a ping on the subscriber's connection.

        Raises:
            EngineError: the previous ping was not answered and nothing waits to be read, or the
                broker answered it without having confirmed the subscriptions before it.
        """

    def information(self) -> dict[str, dict[str, Any]]:
        """Return what each server says of itself and of its settings, by its address."""

    def verify(self, groups: Sequence[str | None]) -> None:
        """Ask the broker for the number of subscribers of each group.

        Raises:
            EngineError: a group has no subscriber, not even this producer.
        """
