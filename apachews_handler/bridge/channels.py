"""The bridge channels of a loop: how they begin, and what the loop does with them.

Contract: ``on_requests`` handles the LANE frames of a client's connection; the loop calls
``finish_turn`` at the end of a turn in which ``changed`` is not empty, and does not wait while
one is in ``working``.  On the loop's thread.  ``channel`` has what happens on one channel.

How this works: a producer that broadcasts asks for a channel on one of its connections.  This
process makes a pair of sockets and passes one of them over that connection, so that the channel
leads to the very process that asked, whichever of several workers that is.

Roads not taken: a further connection from this process to the endpoint.  With several workers the
kernel would choose which of them accepts it, and old producers would see an OPEN of another kind.

Sources: docs/reference/wire.md, "Groups at the edge"; unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import Final

from apachews.wire import channel as wire
from apachews_handler.protocol.session import Session

from .channel import Channel
from .connection import Connection
from .poller import Poller
from .relay import Relay

# Channels of one endpoint: each worker of a producer has one.  A producer that asks for more
# could use up the descriptors of this process.
MAX_CHANNELS: Final = 64


class Channels:
    """The channels of a loop.

    Args:
        poller: the loop's.
        relay: sends and closes.
        add_reader, remove_reader: the loop's.

    Attributes:
        changed: channels with something to tell their producers at the end of the turn.
        working: channels that have read messages which wait for the next turn.
    """

    def __init__(
        self,
        poller: Poller,
        relay: Relay,
        add_reader: Callable[..., None],
        remove_reader: Callable[[int], None],
    ) -> None:
        self._poller = poller
        self._relay = relay
        self.changed: dict[Channel, None] = {}
        self.working: dict[Channel, None] = {}
        self._add_reader = add_reader
        self._remove_reader = remove_reader
        self._channels: dict[int, Channel] = {}

    def counts(self) -> tuple[int, int]:
        """Return the number of channels, and of the clients on them."""
        channels = self._channels.values()
        return len(channels), sum(len(one.members) for one in channels)

    def descriptors(self) -> set[int]:
        """Return the descriptors of all channels."""
        return {one.fileno() for one in self._channels.values()}

    def on_requests(self, connection: Connection) -> None:
        """Handle the LANE frames that a producer has sent on a client's connection."""
        session = connection.session
        if not isinstance(session, Session):
            return  # a tunnel's backend speaks no wire
        requests = [*session.requests]
        session.requests.clear()
        session.knows_lanes = True
        for payload in requests:
            kind = payload[0]
            if kind == wire.ASK:
                self._offer(connection)
            elif kind == wire.JOIN and (numbers := wire.decode_numbers(payload, 2)):
                found = self._channels.get(numbers[0])
                is_own = found is not None and found.endpoint == connection.endpoint
                if found is None or not is_own:
                    # The client has moved here before its producer used a channel.
                    self._relay.tell_bridge(connection)
                elif connection.is_open and connection.may_join:
                    found.join(connection, numbers[1])
                else:
                    found.refuse(numbers[1])

    def dismiss(self, connections: Iterable[Connection]) -> None:
        """Take clients off their channels soon, and put them on none: they are to move.

        Their producers go on with the clients' own connections, so that the clients come to rest.
        """
        for connection in connections:
            connection.may_join = False
            if connection.member is not None:
                connection.member.ask_to_leave()

    def readmit(self, connections: Iterable[Connection]) -> None:
        """Let clients go on a channel that were dismissed."""
        for connection in connections:
            connection.may_join = True
            if connection.session.knows_lanes and not connection.is_closed:
                self._relay.tell_bridge(connection)  # a JOIN may have had no answer

    def finish_turn(self) -> None:
        """Continue what the last turn has left, and tell producers what has happened."""
        for one in list(self.working):
            one.on_work()
        while self.changed:
            self.changed.popitem()[0].tell()

    def _forget(self, channel: Channel) -> None:
        """Stop watching a channel, which is closed afterwards."""
        self._remove_reader(channel.fileno())
        for key, one in list(self._channels.items()):
            if one is channel:
                del self._channels[key]

    def reopen(self) -> None:
        """Watch the channels again: the loop was forked, and has a new epoll."""
        for one in self._channels.values():
            one.watch_again(self._add_reader)

    def abandon(self) -> None:
        """Close the descriptors: another process has the channels."""
        for one in self._channels.values():
            one.abandon()

    def close(self) -> None:
        """Close all channels."""
        for one in list(self._channels.values()):
            one.close()

    @staticmethod
    def _pair() -> tuple[socket.socket, socket.socket]:
        return socket.socketpair()

    def _offer(self, connection: Connection) -> None:
        """Make a channel, and pass one end of it to the producer that asks.

        Without room for it nothing happens: the producer asks again.
        """
        if connection.producer.queue.unsent_bytes or connection.session.to_producer:
            return
        path = connection.endpoint
        if sum(one.endpoint == path for one in self._channels.values()) >= MAX_CHANNELS:
            return
        ours = theirs = None
        try:
            ours, theirs = self._pair()
            ours.setblocking(False)
            # At random: a JOIN with the key of another process, from which the client has moved,
            # must not be one of this process.
            key = int.from_bytes(os.urandom(4), "big")
            offer = wire.encode_lane(wire.OFFER, key)
            channel = Channel(
                ours,
                connection.endpoint,
                self._poller,
                self._relay,
                self.changed,
                self.working,
                self._forget,
            )
            self._add_reader(ours.fileno(), channel.on_ready)
            try:
                socket.send_fds(connection.producer_socket, [offer], [theirs.fileno()])
            except OSError:
                self._remove_reader(ours.fileno())
                raise
        except OSError:
            if ours is not None:
                ours.close()
        else:
            self._channels[key] = channel
        finally:
            if theirs is not None:
                theirs.close()
