"""A client's connection, as its lane sees it.

Contract: ``lanes`` explains what a lane is.  In a module of its own, because ``Connection`` is
compiled, and so its base class has to be; ``lanes.BridgeProcess``, which is weakly referenced,
cannot be.
"""

from __future__ import annotations

import socket
from typing import Final, Protocol

from apachews.client import Client, Group
from apachews.wire import channel

# The lane of a client.  Integers, because every message compares one.
OWN: Final = 0  # its own connection
JOINING: Final = 1  # its own connection; JOIN was sent last
STALE: Final = 2  # its own connection; a message has followed the JOIN, whose READY is void
ON_CHANNEL: Final = 3


class Process(Protocol):
    """What a connection needs of its bridge process (``lanes.BridgeProcess``)."""

    def open(self, sock: socket.socket, key: int) -> None:
        """Own the socket of an OFFER."""

    def send_and_join(self, connection: LaneUser, frame: bytes) -> bool:
        """Send a frame on a client's own connection, and ask to have it on the channel later."""

    def take(self, connection: LaneUser, frame: bytes) -> bool:
        """Send a frame on the channel, or hold it; return False if the caller is to send it."""

    def waiting_bytes(self, connection: LaneUser) -> int:
        """Return how many bytes wait here for a client."""

    def leave(self, connection: LaneUser) -> None:
        """Change a client's lane to its own connection, which may send more."""

    def forget(self, connection: LaneUser) -> None:
        """Take a client off the channel; its connection sends nothing more."""

    def add(self, group: Group, numbers: list[int]) -> None:
        """Tell the bridge that clients on the channel have joined a group."""

    def remove(self, group: Group, number: int) -> None:
        """Tell the bridge that a client on the channel has left a group."""


class LaneUser:
    """A client's connection, as its lane sees it; ``Connection`` is one.

    Attributes:
        client: the program's object, once an OPEN has arrived.
        process: the bridge process of a client that can go on a channel; else None.
        lane: OWN, JOINING, STALE or ON_CHANNEL.
        lane_number: its number on the channel, or in its last JOIN.
    """

    __slots__ = ("client", "lane", "lane_number", "process")

    def __init__(self) -> None:
        self.client: Client | None = None
        self.process: Process | None = None
        self.lane = OWN
        self.lane_number = 0

    @property
    def may_join(self) -> bool:
        """True if the client may ask to go on a channel: it is open and reads what it is sent."""
        raise NotImplementedError

    def send_frame(self, frame: bytes) -> bool:
        """Send or queue one whole data frame; return False if it cannot be sent."""
        raise NotImplementedError

    def write_lane(self, frame: bytes) -> None:
        """Send or queue a LANE frame."""
        raise NotImplementedError

    def ask_for_channel(self, frame: bytes) -> bool:
        """Send ASK, and expect a descriptor; return False if the client is not open."""
        raise NotImplementedError

    def join_group(self, group: Group) -> None:
        """Note that the client is in a group."""
        if self.lane == ON_CHANNEL and self.process is not None:
            self.process.add(group, [self.lane_number])
            if self._is_in_many_groups():
                self.process.leave(self)

    def _is_in_many_groups(self) -> bool:
        """Tell whether the client is in as many groups as a channel allows."""
        return self.client is not None and len(self.client.groups) >= channel.MAX_GROUPS

    def leave_group(self, group: Group) -> None:
        """Note that the client is in a group no more."""
        if self.lane == ON_CHANNEL and self.process is not None:
            self.process.remove(group, self.lane_number)
