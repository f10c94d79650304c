"""The lanes of the clients of one bridge process, and the channel to it.

Contract: for ``Connection``, ``Connections`` and ``Group``, which hold the server's lock.  A
client's messages go by its *lane*: its own connection, or the channel of its bridge process,
which carries one message for many clients.  The program does not notice which one it is.

How this works: every message of a client goes by one lane at a time, and the lane changes only
when nothing can be overtaken.

- From its own connection to the channel: the connection sends JOIN after its last message.  The
  bridge answers READY on the channel when it has read the JOIN.  If nothing was sent on the
  connection meanwhile, the client is on the channel from then on.
- From the channel to its own connection: the channel sends OFF after the client's last message,
  and the connection sends OWN before its next one.  The bridge reads the connection no further
  than OWN before it has read OFF.  So this change needs no answer.

A busy bridge answers late.  If the next messages went by the connections meanwhile, each READY
would be void, and the bridge would stay busy.  So the library *holds* messages that follow a JOIN
until the READY comes.  The bridge would read them after the JOIN in any case.

A client that reads slowly (SLOW), a long message and a channel that fills lead to the second
change, so the bounds of slow clients are those of their own connections.  A program that sends
no broadcast never has a channel.

Long because lanes, groups and the channel are one state: each changes what the others may do.

Sources: docs/reference/wire.md, "Groups at the edge".
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Collection
from typing import Final

from apachews.client import Group
from apachews.wire import channel

from .lane_user import JOINING, ON_CHANNEL, OWN, STALE, LaneUser
from .poller import IN, OUT, Poller

# A broadcast to fewer clients does not lead to a channel: it would cost more than it saves.
MIN_CLIENTS: Final = 4
# With more bytes in its queue the channel accepts no message, and its clients get lanes of their
# own.  (The bridge reads a channel at once, whatever its clients do, so it is busy then.)
MAX_QUEUE_BYTES: Final = 256 * 1024
# A bridge that does not answer ASK, because it has no descriptor left, is asked again after this.
ASK_AGAIN_S: Final = 1.0
# A READY that takes longer shows a busy bridge: messages after a JOIN are held.
HOLD_AFTER_S: Final = 0.01
# So many bytes are held for one client; all clients of a broadcast share them.
MAX_HELD_BYTES: Final = 65536
READ_BYTES: Final = 65536

_OWN: Final = channel.encode_lane(channel.OWN)
_ASK: Final = channel.encode_lane(channel.ASK)


class _OnChannel:
    """A group on a channel: its number, and how many members are there."""

    __slots__ = ("count", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0


class _Join:
    """A JOIN without its READY, and the messages that wait for that."""

    __slots__ = ("at", "connection", "held", "held_bytes")

    def __init__(self, connection: LaneUser, at: float) -> None:
        self.connection = connection
        self.at = at
        self.held: list[bytes] = []
        self.held_bytes = 0


class BridgeProcess:
    """One bridge process, as its clients' connections know it.

    Args:
        poller: the server's, which watches the channel.

    Attributes:
        members: the clients on the channel, by their numbers.
        queued_bytes: bytes that wait for the bridge to read the channel.
    """

    __slots__ = (
        "__weakref__",
        "_asked_at",
        "_groups",
        "_head_sent",
        "_joining",
        "_key",
        "_lag_s",
        "_last_group",
        "_last_number",
        "_poller",
        "_queue",
        "_reader",
        "_socket",
        "is_lost",
        "members",
        "queued_bytes",
    )

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self.members: dict[int, LaneUser] = {}
        self.is_lost = False
        self._joining: dict[int, _Join] = {}
        self._lag_s = 0.0  # how long the last READY took
        # The groups that have members on the channel.
        self._groups: dict[Group, _OnChannel] = {}
        self._last_group = channel.ALL
        self._last_number = 0
        self._asked_at = 0.0
        self._key = 0
        self._socket: socket.socket | None = None
        self._reader = channel.ChannelReader()
        self._queue: deque[bytes] = deque()
        self._head_sent = 0
        self.queued_bytes = 0

    @property
    def has_queue(self) -> bool:
        return bool(self._queue)

    # The channel.

    def open(self, sock: socket.socket, key: int) -> None:
        """Own the socket of an OFFER, non-blocking; close it if there is a channel already."""
        if self._socket is not None or self.is_lost:
            sock.close()
            return
        self._socket, self._key = sock, key
        self._poller.add_reader(sock.fileno(), self._on_ready)

    def close(self) -> None:
        """Close the channel; its clients get lanes of their own, as after its end of file."""
        self.is_lost = True
        sock, self._socket = self._socket, None
        if sock is None:
            return
        self._poller.remove_reader(sock.fileno())
        sock.close()
        self._queue.clear()
        self.queued_bytes = self._head_sent = 0
        for connection in self.members.values():
            connection.lane = OWN
        joining, self._joining = self._joining, {}
        self.members.clear()
        self._groups.clear()
        for join in joining.values():
            join.connection.lane = OWN
            _send_held(join)

    # Lanes.

    def send_and_join(self, connection: LaneUser, frame: bytes) -> bool:
        """Send a frame on a client's own connection, and ask to have it on the channel later."""
        if self._socket is None:
            self._ask(connection)
        elif connection._is_in_many_groups():
            pass  # it stays on its own connection
        elif len(frame) <= channel.MAX_FRAME_BYTES and self.queued_bytes <= MAX_QUEUE_BYTES:
            number = self._next_number()
            # One write: the JOIN stands after the message.
            is_sent = connection.send_frame(frame + channel.encode_join(self._key, number))
            if is_sent:
                connection.lane, connection.lane_number = JOINING, number
                self._joining[number] = _Join(connection, time.monotonic())
            return is_sent
        return connection.send_frame(frame)

    def take(self, connection: LaneUser, frame: bytes) -> bool:
        """Send a frame on the channel, or hold it.

        Returns:
            False if the caller is to send the frame on the connection.
        """
        if connection.lane == ON_CHANNEL:
            return self._unicast(connection, frame)
        if connection.lane == JOINING:
            join = self._joining[connection.lane_number]
            is_busy = self._lag_s > HOLD_AFTER_S or time.monotonic() - join.at > HOLD_AFTER_S
            if is_busy and join.held_bytes + len(frame) <= MAX_HELD_BYTES:
                join.held.append(frame)
                join.held_bytes += len(frame)
                return True
            connection.lane = STALE  # the READY comes too late now
            _send_held(join)
        return False

    def waiting_bytes(self, connection: LaneUser) -> int:
        """Return how many bytes wait here for a client that is on the channel, or soon."""
        if connection.lane == ON_CHANNEL:
            return self.queued_bytes
        join = self._joining.get(connection.lane_number)
        return join.held_bytes if join is not None and connection.lane == JOINING else 0

    def poll(self) -> None:
        """Handle a READY that has come before another message makes it void."""
        if self._joining:
            self._on_ready()

    def _unicast(self, connection: LaneUser, frame: bytes) -> bool:
        """Send a frame on the channel; if it cannot carry the frame, change the lane."""
        if len(frame) > channel.MAX_FRAME_BYTES or self.queued_bytes > MAX_QUEUE_BYTES:
            self.leave(connection)
            return False
        self._write(channel.encode_unicast(connection.lane_number, frame))
        return True

    def count(self, group: Group | None) -> int:
        """Return how many members of a group are on the channel; None: how many clients."""
        if group is None:
            return len(self.members)
        found = self._groups.get(group)
        return found.count if found is not None else 0

    def multicast(self, group: Group | None, frame: bytes, excluded: list[LaneUser]) -> int | None:
        """Send a frame to the members of a group that are on the channel; there must be one.

        Args:
            group: None for all clients on the channel.
            excluded: members that do not get it.

        Returns:
            How many clients it was sent to; None if the channel cannot carry it: they are to
            have lanes of their own.
        """
        numbers = [one.lane_number for one in excluded if self.members.get(one.lane_number) is one]
        if (
            len(frame) > channel.MAX_FRAME_BYTES
            or self.queued_bytes > MAX_QUEUE_BYTES
            or len(numbers) > channel.MAX_NUMBERS
        ):
            return None
        number = channel.ALL if group is None else self._groups[group].number
        self._write(channel.encode_multicast(number, numbers, frame))
        return self.count(group) - len(numbers)

    def leave(self, connection: LaneUser) -> None:
        """Change a client's lane to its own connection, which may send more."""
        is_on_channel = connection.lane == ON_CHANNEL
        join = self._joining.get(connection.lane_number) if connection.lane == JOINING else None
        self.forget(connection)
        if is_on_channel:
            connection.write_lane(_OWN)
        elif join is not None:
            _send_held(join)

    def forget(self, connection: LaneUser) -> None:
        """Take a client off the channel; its connection sends nothing more."""
        number = connection.lane_number
        if connection.lane == ON_CHANNEL:
            del self.members[number]
            self._write(channel.encode_numbers(channel.OFF, (number,)))
            for group in connection.client.groups if connection.client else ():
                self._count_off(group)
        else:
            self._joining.pop(number, None)
        connection.lane = OWN

    # Groups.

    def add(self, group: Group, numbers: list[int]) -> None:
        """Tell the bridge that clients on the channel have joined a group."""
        found = self._groups.get(group)
        if found is None:
            self._last_group = self._last_group % channel.MAX_NUMBER + 1
            found = self._groups[group] = _OnChannel(self._last_group)
        found.count += len(numbers)
        self._write(channel.encode_numbers(channel.ADD, numbers, found.number))

    def remove(self, group: Group, number: int) -> None:
        """Tell the bridge that a client on the channel has left a group."""
        group_number = self._groups[group].number
        self._write(channel.encode_numbers(channel.REMOVE, (number,), group_number))
        self._count_off(group)

    def _count_off(self, group: Group) -> None:
        """Count a member less; a group without members on the channel has no number there."""
        found = self._groups[group]
        found.count -= 1
        if not found.count:
            del self._groups[group]

    def _next_number(self) -> int:
        """Return a number that no client on the channel has; JOIN never repeats one soon."""
        while True:
            self._last_number = self._last_number % channel.MAX_NUMBER + 1
            if self._last_number not in self.members and self._last_number not in self._joining:
                return self._last_number

    def _ask(self, connection: LaneUser) -> None:
        """Ask for a channel, unless the bridge was asked just before."""
        now = time.monotonic()
        is_due = not self.is_lost and now - self._asked_at >= ASK_AGAIN_S
        if is_due and connection.ask_for_channel(_ASK):
            self._asked_at = now

    # Input and output.

    def _on_ready(self) -> None:
        """Send the queue, and read what the bridge has sent."""
        if self._queue:
            self._flush()
        sock = self._socket
        if sock is None:
            return  # the bridge has gone
        try:
            data = sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        for item in self._reader.receive(data):
            if not isinstance(item, channel.Numbers):
                self.close()  # not a bridge
                return
            if item.kind == channel.READY:
                self._on_ready_clients(item.numbers)
            elif item.kind == channel.SLOW:
                for number in item.numbers:
                    if (connection := self.members.get(number)) is not None:
                        self.leave(connection)
                    elif (join := self._joining.get(number)) is not None:
                        self.leave(join.connection)  # the bridge refuses it

    def _on_ready_clients(self, numbers: tuple[int, ...]) -> None:
        """Put clients on the channel, unless a message has followed their JOIN."""
        on_channel: list[int] = []
        ready: list[_Join] = []
        added: dict[Group, list[int]] = {}
        for number in numbers:
            join = self._joining.pop(number, None)
            if join is None:
                continue
            connection = join.connection
            self._lag_s = time.monotonic() - join.at
            if connection.lane == STALE:
                connection.lane = OWN
                continue
            connection.lane = ON_CHANNEL
            self.members[number] = connection
            on_channel.append(number)
            if join.held:
                ready.append(join)
            for group in connection.client.groups if connection.client else ():
                added.setdefault(group, []).append(number)
        # The bridge knows by this that their JOIN is valid.
        self._write(channel.encode_numbers(channel.ADD, on_channel, channel.ALL))
        for group, some in added.items():
            self.add(group, some)
        self._catch_up(ready)

    def _catch_up(self, joins: list[_Join]) -> None:
        """Send the messages that waited for a READY, each once for all that wait for the same."""
        batches: dict[tuple[int, ...], list[_Join]] = {}
        for join in joins:
            # The clients of a broadcast hold the same objects.
            batches.setdefault(tuple(map(id, join.held)), []).append(join)
        for batch in batches.values():
            held = batch[0].held
            is_full = self.queued_bytes > MAX_QUEUE_BYTES
            if is_full or len(batch) == 1 or not all(map(channel.is_message, held)):
                for join in batch:
                    _send_held(join)
                continue
            self._last_group = self._last_group % channel.MAX_NUMBER + 1
            numbers = [join.connection.lane_number for join in batch]
            self._write(channel.encode_numbers(channel.ADD, numbers, self._last_group))
            for frame in held:
                self._write(channel.encode_multicast(self._last_group, [], frame))
            self._write(channel.encode_numbers(channel.REMOVE, numbers, self._last_group))

    def _write(self, frame: bytes) -> None:
        """Send one frame, or queue the rest of it."""
        sock = self._socket
        if sock is None or not frame:
            return
        sent = 0
        if not self._queue:
            try:
                sent = sock.send(frame)
            except BlockingIOError:
                pass
            except OSError:
                return  # the bridge has gone; the end of file tells what becomes of the clients
            if sent == len(frame):
                return
            self._head_sent = sent
            self._poller.modify(sock.fileno(), IN | OUT)
        self._queue.append(frame)
        self.queued_bytes += len(frame) - sent

    def _flush(self) -> None:
        """Send as much of the queue as the kernel accepts."""
        sock = self._socket
        assert sock is not None, "only an open channel has a queue"
        while self._queue:
            head = self._queue[0]
            try:
                sent = sock.send(memoryview(head)[self._head_sent :])
            except BlockingIOError:
                return
            except OSError:
                self._queue.clear()
                self.queued_bytes = self._head_sent = 0
                break
            self.queued_bytes -= sent
            self._head_sent += sent
            if self._head_sent < len(head):
                return
            self._queue.popleft()
            self._head_sent = 0
        self._poller.modify(sock.fileno(), IN)


def _send_held(join: _Join) -> None:
    """Send the messages that waited for a READY, by the lane that the client has now."""
    held, join.held, join.held_bytes = join.held, [], 0
    for frame in held:
        join.connection.send_frame(frame)


def broadcast(
    group: Group | None,
    processes: list[BridgeProcess],
    connections: Collection[LaneUser],
    excluded: list[LaneUser],
    frame: bytes,
) -> int:
    """Send a frame to many clients, by the lane of each; return how many it was sent to.

    Args:
        group: the group of the clients; None for all clients of the server.
        processes: the bridge processes with a member of the group on their channel.
        connections: those of the clients; they may leave it meanwhile.
        excluded: members of the group that do not get the frame.
    """
    own: list[LaneUser] = []
    # Fast path: all are on channels, and a message for thousands looks at none of them.
    if excluded or sum(process.count(group) for process in processes) != len(connections):
        own = [connection for connection in connections if connection.lane != ON_CHANNEL]
    reached = 0
    for process in processes:
        sent = process.multicast(group, frame, excluded)
        if sent is not None:
            reached += sent
            continue
        for connection in [*connections]:
            if connection.lane == ON_CHANNEL and connection.process is process:
                process.leave(connection)
                own.append(connection)
    may_join = bool(processes) or len(own) >= MIN_CLIENTS
    for connection in own:
        owner = connection.process
        if may_join and owner is not None and connection.may_join:
            reached += owner.send_and_join(connection, frame)
        else:
            reached += connection.send_frame(frame)
    return reached
