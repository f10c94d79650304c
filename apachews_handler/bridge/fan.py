"""The clients of a channel's group that get the same bytes, and a message's way to them.

Contract: ``Channel`` adds and removes clients between messages, begins messages, and calls ``step``
until ``is_idle``.  A client that is removed in between gets nothing more.  On the loop's thread.

How this works: the clients stand in a circle.  A message starts at the present position and is
complete when it comes there again.  A message that begins while others are on their way joins
them: a client gets all of them in one send.  So under load a message costs a part of a send.

``pump.send_to_all`` sends to the descriptors, and Python handles only the clients that have not
taken all, have bytes queued, or have TLS.  Their descriptor in the array is -1.  A client without
events costs no access to its objects, which are often not in the processor's cache: the messages
that it has got are counted in the fan, and ``settle`` adds them to the client's own figures.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from typing import Final

from apachews_handler.protocol.session import Session

from . import pump
from .connection import Connection
from .send_queue import SendQueue

# So many messages go to a client in one send, and so many bytes of them.
MAX_JOINED: Final = 64
MAX_JOINED_BYTES: Final = 65536
# The way around a large fan has so many steps at most, because each costs a turn of the loop.
STEPS: Final = 32
# Empty places of the circle that are not worth a rebuild.
SPARE_PLACES: Final = 64
_SKIPPED: Final = pump.SKIPPED


class Receiver:
    """A client, as its fans see it.

    Attributes:
        connection: the client's.
        number: its number on the channel.
        places: its place in each of its fans.
        plain_fd: to which plain bytes are sent; -1 for a client with TLS.
        send: as ``Transport.sender``.
        queue, reader, timeouts: those of its connection.
    """

    __slots__ = (
        "connection",
        "number",
        "places",
        "plain_fd",
        "queue",
        "reader",
        "send",
        "timeouts",
    )

    def __init__(self, connection: Connection, number: int) -> None:
        assert isinstance(connection.session, Session), "tunnels have no producer that asks"
        self.connection = connection
        self.number = number
        self.places: dict[Fan, int] = {}
        # (As with the fast path: a transport that buffers no input passes bytes as they are.)
        self.plain_fd = connection.client.fd if connection.can_use_fast_path else -1
        # What each message needs, without a path of attributes.
        self.reader = connection.session.producer_reader
        self.queue: SendQueue = connection.client.queue
        self.timeouts = connection.timeouts
        self.send: Callable[[bytes], int] = connection.transport.sender()

    def hold(self) -> None:
        """See ``Membership``."""
        for fan in self.places:
            fan.hold(self)

    def settle(self) -> None:
        """See ``Membership``."""
        for fan in self.places:
            fan.settle(self)


class _Message:
    """A message on its way.

    Attributes:
        frame: for all clients of the fan.
        payload_bytes: before compression.
        left: how many places it has not come to.
    """

    __slots__ = ("frame", "left", "payload_bytes")

    def __init__(self, frame: bytes, payload_bytes: int, left: int) -> None:
        self.frame = frame
        self.payload_bytes = payload_bytes
        self.left = left


class Fan:
    """Clients that get the same bytes.

    Args:
        on_late: called with a client that has not taken all, with the frames, with the same
            joined, and with how many of their bytes it has taken; -1 after an error.
    """

    __slots__ = (
        "_at",
        "_bytes_before",
        "_compressed_at",
        "_excluded",
        "_fds",
        "_joined",
        "_members",
        "_messages",
        "_messages_before",
        "_on_late",
        "_on_way",
        "_payload_bytes",
        "_sent_at",
        "_way_bytes",
        "count",
    )

    def __init__(self, on_late: Callable[[Receiver, list[bytes], bytes, int], None]) -> None:
        self._on_late = on_late
        self.count = 0  # of the clients
        self._members: list[Receiver | None] = []  # None: an empty place
        # For ``send_to_all``: -1 at an empty place, and if Python sends to the client.
        self._fds = array("i")
        self._at = 0  # the next place
        self._on_way: deque[_Message] = deque()  # the first one began first, and has least left
        self._way_bytes = 0  # length of their frames
        self._joined: bytes | None = None  # their frames
        self._excluded: frozenset[int] = frozenset()  # clients that do not get the one message
        # Messages and payload that have begun, and at a place how many of them its client has
        # in its own figures or was not to get.
        self._messages = self._payload_bytes = 0
        self._messages_before = array("q")
        self._bytes_before = array("q")
        self._compressed_at = 0  # ``_messages`` with the last one that was compressed
        self._sent_at = 0.0

    @property
    def is_idle(self) -> bool:
        """No message is on its way."""
        return not self._on_way

    def add(self, member: Receiver) -> None:
        """Add a client, once; only while the fan is idle."""
        if self in member.places:
            return
        self._close_gaps()
        member.places[self] = len(self._members)
        self._members.append(member)
        self._fds.append(-1 if member.queue.unsent_bytes else member.plain_fd)
        self._messages_before.append(self._messages)
        self._bytes_before.append(self._payload_bytes)
        self.count += 1

    def remove(self, member: Receiver) -> None:
        """Remove a client; its descriptor is still open."""
        self.settle(member)
        place = member.places.pop(self)
        # The place stays empty: messages on their way count places.
        self._members[place] = None
        self._fds[place] = -1
        self.count -= 1

    def hold(self, member: Receiver) -> None:
        """Let Python send to a client, which has bytes queued, until it has taken these."""
        self.settle(member)
        self._fds[member.places[self]] = -1

    def settle(self, member: Receiver) -> None:
        """Add what a client has got to its own figures."""
        place = member.places[self]
        messages = self._messages - self._messages_before[place]
        payload_bytes = self._payload_bytes - self._bytes_before[place]
        distance = (place - self._at) % len(self._members)
        for message in self._on_way:
            if distance < message.left:  # it has not come there
                messages -= 1
                payload_bytes -= message.payload_bytes
        if messages:
            has_compressed = self._compressed_at > self._messages_before[place]
            self._messages_before[place] += messages
            self._bytes_before[place] += payload_bytes
            member.reader.messages += messages
            member.reader.payload_bytes += payload_bytes
            member.timeouts.passed_at = max(member.timeouts.passed_at, self._sent_at)
            if has_compressed:
                member.reader.forget_compressed()

    def can_join(self, frame: bytes) -> bool:
        """Tell whether another message may begin while others are on their way."""
        return (
            not self._excluded
            and len(self._on_way) < MAX_JOINED
            and self._way_bytes + len(frame) <= MAX_JOINED_BYTES
        )

    def begin(
        self,
        frame: bytes,
        payload_bytes: int,
        excluded: frozenset[int],
        members: Callable[[int], Receiver | None],
        *,
        is_compressed: bool,
    ) -> None:
        """Begin a message.

        Args:
            frame: for the clients.
            payload_bytes: before compression.
            excluded: numbers of clients that do not get it; only while the fan is idle.
            members: the client of a number, on the channel.
            is_compressed: the frame is.
        """
        if not self._on_way:
            self._close_gaps()
        for number in excluded:
            member = members(number)
            if member is not None and self in member.places:
                self.hold(member)  # Python finds that it is excluded
        self._excluded = excluded
        self._messages += 1
        self._payload_bytes += payload_bytes
        if is_compressed:
            self._compressed_at = self._messages
        self._on_way.append(_Message(frame, payload_bytes, len(self._members)))
        self._way_bytes += len(frame)
        self._joined = None

    def step(self, most: int, now: float) -> int:
        """Send to the next clients; return how many places are done, at least 1.

        Args:
            most: how many at most, unless the fan is large.
            now: the loop's clock.
        """
        on_way, start = self._on_way, self._at
        if self._joined is None:
            self._joined = b"".join([message.frame for message in on_way])
        data, frames = self._joined, [message.frame for message in on_way]
        most = max(most, len(self._members) // STEPS)
        size = min(most, on_way[0].left, len(self._members) - start, pump.MAX_FDS)
        late = pump.send_to_all(self._fds[start : start + size].tobytes(), data)
        self._sent_at = now
        payload_bytes = 0
        if late:
            payload_bytes = sum(message.payload_bytes for message in on_way)
        # Before a client is handled, which may remove others.
        self._at = (start + size) % len(self._members)
        for message in on_way:
            message.left -= size
        excluded = self._excluded
        while on_way and not on_way[0].left:
            self._way_bytes -= len(on_way.popleft().frame)
            self._joined = None
        if not on_way:
            self._excluded = frozenset()
        for index in range(0, len(late), 2):
            place = start + late[index]
            member = self._members[place]
            if member is None:
                continue
            sent = late[index + 1]
            if sent != _SKIPPED:
                self._on_late(member, frames, data, sent)
            elif member.number in excluded:
                self._messages_before[place] += len(frames)
                self._bytes_before[place] += payload_bytes
            else:
                self._send(member, place, data, frames, now)
        return size

    def _send(
        self, member: Receiver, place: int, data: bytes, frames: list[bytes], now: float
    ) -> None:
        """Send to a client that has TLS, or had bytes queued.

        Args:
            data: the frames, joined.
        """
        if member.queue.unsent_bytes:
            sent = 0  # after what it has not taken yet
        else:
            self._fds[place] = member.plain_fd
            try:
                sent = member.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = -1
        if sent == len(data):
            member.timeouts.passed_at = now
        else:
            self._on_late(member, frames, data, sent)

    def _close_gaps(self) -> None:
        """Rebuild the circle without empty places, if it has many; only while it is idle."""
        if len(self._members) <= 2 * self.count + SPARE_PLACES:
            return
        places = [place for place, member in enumerate(self._members) if member is not None]
        self._fds = array("i", [self._fds[place] for place in places])
        self._messages_before = array("q", [self._messages_before[place] for place in places])
        self._bytes_before = array("q", [self._bytes_before[place] for place in places])
        self._members = [self._members[place] for place in places]
        self._at = 0
        for place, member in enumerate(self._members):
            assert member is not None
            member.places[self] = place
