"""Whose clients a broadcast reaches, and how many it has reached.

Contract: pure; ``Relay`` is what a broadcast needs of a relay to other producers.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, Protocol

from .history import Position

# Whose clients a broadcast reaches: those of every producer with the same relay, or those of this
# process.
Scope = Literal["everywhere", "here"]
SCOPES: Final = ("everywhere", "here")


class Relay(Protocol):
    """What a group needs to reach the clients of other producers (``_relay/relay.py``)."""

    def require_fitting(self, frame: bytes) -> None:
        """Raise MessageTooLarge for a message that cannot be relayed."""

    def publish(self, group: str | None, frame: bytes) -> bool:
        """Queue a message for other producers; return whether they are within reach."""

    def subscribe(self, group: str) -> None:
        """Receive the messages of a group."""

    def unsubscribe(self, group: str) -> None:
        """Receive the messages of a group no more."""

    def is_subscribed(self, group: str) -> bool:
        """Return whether the messages of a group arrive."""


class _Counts(NamedTuple):
    reached: int
    skipped: int


class Delivery(_Counts):
    """The result of a broadcast: a tuple of two numbers.

    Attributes:
        reached: number of clients that it was sent to or queued for.
        skipped: number of clients that it was not sent to: those that are gone or being
            closed, and those that it closed with 1013 because more than
            ``max_queue_bytes`` were queued for them already.
        relayed: it was queued for other producers as well, and the relay is connected.
            False without a relay, with ``scope="here"``, and while the relay is lost: it
            then waits for the relay to return, up to a bound.
        position: of the message in the history of its group.  None without a history; and
            with a history in the relay, which gives the message its place a moment later.
            (``reached`` is 0 then.)

    Example:
        >>> delivery = server.group("room").broadcast("hello, room")
        >>> delivery.reached, delivery.skipped, delivery.relayed
        (0, 0, False)
    """

    # Not further elements: programs unpack the two.
    relayed: bool = False
    position: Position | None = None

    def __repr__(self) -> str:
        # As a tuple's, and what the program would otherwise have to ask for.
        more = ", relayed=True" if self.relayed else ""
        if self.position is not None:
            more += f", position={self.position!r}"
        return f"Delivery(reached={self.reached}, skipped={self.skipped}{more})"

    def _with_relayed(self, relayed: bool) -> Delivery:
        """Return a copy with this value of ``relayed``."""
        delivery = Delivery(self.reached, self.skipped)
        delivery.relayed, delivery.position = relayed, self.position
        return delivery

    def _with_position(self, position: Position | None) -> Delivery:
        """Return a copy with this value of ``position``."""
        delivery = self._with_relayed(self.relayed)
        delivery.position = position
        return delivery


def relay_for(scope: Scope, relay: Relay | None) -> Relay | None:
    """Return the relay if a message of this scope uses it.

    Raises:
        ValueError: an unknown scope.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r}: expected one of {', '.join(SCOPES)}")
    return relay if scope == "everywhere" else None
