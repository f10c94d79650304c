"""A bridge channel: one message of a producer for many clients of this process.

Contract: ``Channels`` makes one ``Channel`` for each producer process that asks, and calls it.  A
``Member`` is a client on it.  On the loop's thread.

How this works: a client goes on the channel with JOIN, which its producer sends on the client's own
connection after all earlier messages; READY answers it.  From then on the messages come by the
channel, until that has OFF for the client.  What its own connection has after OWN is read then.
So a client gets its messages in the order in which they were sent.

``Fan`` has a message's way to its clients.  Messages for the same group that follow each other
share that way.  Everything else on the channel is handled after their end, in its order.

A channel never waits for a client.  What a client does not take waits in its queue, as with its
own connection.  If that is more than one buffer (APACHEWS_MAX_BUFFER), SLOW tells the producer to
use the client's own connection, which is not read while the client is slow.  Until the producer
has done so the queue takes what is on its way: at most the channel's buffer in the kernel and
``apachews._server.lanes.MAX_QUEUE_BYTES``; the frames are those of all other slow clients.

Long because members, groups and messages are one state: each changes what the others may do.

Sources: docs/reference/wire.md, "Groups at the edge"; unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import select
import socket
import traceback
from collections import deque
from collections.abc import Callable
from typing import Final

from apachews.wire import channel as wire
from apachews.wire.violation import Violation
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.protocol.deflate import compressed_alone

from .connection import Connection
from .fan import Fan, Receiver
from .poller import Poller
from .relay import Relay
from .send_queue import SendQueue

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
READ_BYTES: Final = 65536
# A turn of the loop ends the work on a channel after so many sends, less than a millisecond.  The
# next turn reads the channel: messages that have come meanwhile join those on their way.
SENDS_A_TURN: Final = 128
# A producer that does not read so many bytes of READY and SLOW breaks the rules.
MAX_UNREAD_BYTES: Final = 1024 * 1024

# Window, level and shortest length of a client's compression; None without one.
Compression = tuple[int, int, int] | None


class Member(Receiver):
    """A client on a channel.

    Attributes:
        groups: numbers of its groups.
        is_slow: the producer was told so.
    """

    __slots__ = ("_channel", "compression", "groups", "is_slow")

    def __init__(self, channel: Channel, connection: Connection, number: int) -> None:
        super().__init__(connection, number)
        self._channel = channel
        self.groups: set[int] = set()
        self.is_slow = False
        self.compression: Compression = self.reader.compression

    def leave(self) -> None:
        """See ``Membership``."""
        self._channel.remove(self)

    def drain(self) -> None:
        """See ``Membership``."""
        self._channel.drain()

    def ask_to_leave(self) -> None:
        """See ``Membership``."""
        self._channel.note_slow(self)


class Channel:
    """The channel of one producer process.

    Args:
        sock: this end, non-blocking; owned from here on.
        endpoint: path of the socket file of the producer.
        poller, relay: the loop's.
        changed: gets this channel when it has something to tell at the end of the turn.
        working: has this channel while messages that were read wait for the next turn.
        on_end: called before the socket is closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        endpoint: str,
        poller: Poller,
        relay: Relay,
        changed: dict[Channel, None],
        working: dict[Channel, None],
        on_end: Callable[[Channel], None],
    ) -> None:
        self._relay, self._poller = relay, poller
        self._changed = changed
        self._working = working
        self._on_end = on_end
        self._socket = sock
        self.endpoint = endpoint
        self.members: dict[int, Member] = {}
        self._groups: dict[int, dict[Compression, Fan]] = {}
        # The fans with messages on their way, and their group.
        self._busy: deque[Fan] = deque()
        self._busy_group = wire.ALL
        self._reader = wire.ChannelReader()
        self._items: deque[wire.Item] = deque()  # read, and not handled yet
        self._ready: list[int] = []  # to be told in this turn
        self._slow: list[int] = []
        self._queue = SendQueue()
        self._mask = _IN
        self._is_handling = False

    def fileno(self) -> int:
        """Return the descriptor, -1 after ``close``."""
        return self._socket.fileno()

    # Members.

    def join(self, connection: Connection, number: int) -> None:
        """Put a client on the channel, and tell the producer at the end of the turn."""
        if connection.member is not None:
            connection.member.leave()  # a message has made its last JOIN void
        if number in self.members:
            self._on_violation(f"client {number} joins twice")
            return
        member = Member(self, connection, number)
        member.reader.is_on_channel, member.reader.settle = True, member.settle
        connection.member = self.members[number] = member
        self._ready.append(number)
        self._changed[self] = None

    def remove(self, member: Member) -> None:
        """Take a client off the channel."""
        if self.members.get(member.number) is not member:
            return
        del self.members[member.number]
        for group in member.groups:
            self._remove_from(group, member)
        member.groups.clear()
        member.connection.member = None
        member.reader.is_on_channel, member.reader.settle = False, None

    def note_slow(self, member: Member) -> None:
        """Ask the producer, once, to use the client's own connection."""
        if not member.is_slow:
            member.is_slow = True
            self._slow.append(member.number)
            self._changed[self] = None

    def refuse(self, number: int) -> None:
        """Answer a JOIN of a client that is to stay on its own connection."""
        self._slow.append(number)
        self._changed[self] = None

    def tell(self) -> None:
        """Send the producer READY and SLOW for the clients of this turn."""
        frames = []
        if self._ready:
            frames.append(wire.encode_numbers(wire.READY, self._ready))
            self._ready.clear()
        if self._slow:
            frames.append(wire.encode_numbers(wire.SLOW, self._slow))
            self._slow.clear()
        if frames and self._socket.fileno() != -1:
            self._queue.push_all(frames)
            self._flush()
            if self._queue.unsent_bytes > MAX_UNREAD_BYTES:
                self._on_violation("the producer does not read it")

    # Input.

    def on_ready(self) -> None:
        """Send what the producer has not taken, and read what it has sent."""
        try:
            if self._queue.unsent_bytes:
                self._flush()
            if not self._items:
                self._read()
                self.handle()
        except Exception:
            self._on_violation(traceback.format_exc())

    def on_work(self) -> None:
        """Handle more of what an earlier turn has read."""
        try:
            self.handle()
        except Exception:
            self._on_violation(traceback.format_exc())

    def handle(self) -> None:
        """Handle what was read, as far as a turn of the loop may take."""
        sends = 0
        items = self._items
        self._is_handling = True
        try:
            while (items or self._busy) and sends < SENDS_A_TURN:
                if items and (not self._busy or self._can_join(items[0])):
                    sends += self._on_item(items.popleft())
                else:
                    sends += self._step(SENDS_A_TURN - sends)
        finally:
            self._is_handling = False
        if self.has_work:
            self._working[self] = None
        else:
            self._working.pop(self, None)

    @property
    def has_work(self) -> bool:
        """Something that was read is not handled yet, or not by all clients."""
        return bool(self._items or self._busy)

    def drain(self) -> None:
        """Handle all that the producer has written so far; it has perhaps ended."""
        if self._is_handling:
            return  # what follows in the channel is handled next
        while self._socket.fileno() != -1:
            while self.has_work:
                self.handle()
            if not self._read():
                break

    def _read(self) -> bool:
        """Read once; return False if nothing is there."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""  # ECONNRESET: it died with bytes unread
        if not data:
            self._finish_messages()
            self.close()
            return False
        self._items.extend(self._reader.receive(data))
        return True

    def _on_item(self, item: wire.Item) -> int:
        """Handle one item; return how many clients it was for."""
        if isinstance(item, wire.Multicast):
            return self._multicast(item)
        if isinstance(item, wire.Unicast):
            member = self.members.get(item.number)
            if member is not None:
                self._guard(self._unicast, member, item)
            return 1
        if isinstance(item, Violation):
            self._on_violation(item.reason)
        elif item.kind == wire.OFF:
            for number in item.numbers:
                member = self.members.get(number)
                if member is not None:
                    self._guard(self._off, member)
        elif item.kind == wire.ADD:
            self._add(item.group, item.numbers)
        elif item.kind == wire.REMOVE:
            for number in item.numbers:
                member = self.members.get(number)
                if member is not None and item.group in member.groups:
                    member.groups.discard(item.group)
                    self._remove_from(item.group, member)
        else:
            self._on_violation(f"a producer sent kind {item.kind}")
        return len(item.numbers) // 10 if isinstance(item, wire.Numbers) else 1

    def _add(self, group: int, numbers: tuple[int, ...]) -> None:
        fans = self._groups.setdefault(group, {})
        for number in numbers:
            member = self.members.get(number)
            if member is not None:
                member.groups.add(group)
                fan = fans.get(member.compression)
                if fan is None:
                    fan = fans[member.compression] = Fan(self._on_late)
                fan.add(member)
                if len(member.groups) > wire.MAX_GROUPS + 1:  # ``ALL`` is one
                    self._on_violation(f"client {number} is in too many groups")
                    return
        if not fans:
            del self._groups[group]

    def _remove_from(self, group: int, member: Member) -> None:
        fans = self._groups[group]
        fan = fans[member.compression]
        fan.remove(member)
        if not fan.count:
            del fans[member.compression]
            if not fans:
                del self._groups[group]

    def _off(self, member: Member) -> None:
        """Continue with the client's own connection."""
        connection = member.connection
        self.remove(member)
        if member.reader.is_waiting:
            member.reader.is_waiting = False
            self._relay.continue_reading(connection)

    # Messages.

    def _can_join(self, item: wire.Item) -> bool:
        """Tell whether an item may begin while messages are on their way."""
        return (
            isinstance(item, wire.Multicast)
            and item.group == self._busy_group
            and not item.excluded
            and all(fan.can_join(item.frame) for fan in self._groups.get(item.group, {}).values())
        )

    def _multicast(self, item: wire.Multicast) -> int:
        """Begin a message; return how much of a turn this takes."""
        compressed: dict[tuple[int, int], bytes] = {}
        excluded = frozenset(item.excluded)
        self._busy_group = item.group
        for compression, fan in self._groups.get(item.group, {}).items():
            frame = item.frame
            is_compressed = compression is not None and item.payload_bytes >= compression[2]
            if compression is not None and is_compressed:
                # Once for all clients with this window.
                window_bits, level, _ = compression
                cached = compressed.get((window_bits, level))
                if cached is None:
                    cached = compressed_alone(frame, item.payload_bytes, window_bits, level)
                    compressed[window_bits, level] = cached
                frame = cached
            if fan.is_idle:
                self._busy.append(fan)
            fan.begin(
                frame,
                item.payload_bytes,
                excluded,
                self.members.get,
                is_compressed=is_compressed,
            )
        return 1

    def _step(self, most: int) -> int:
        """Send messages to some clients; return to how many."""
        fan = self._busy[0]
        sends = fan.step(most, self._poller.now)
        if self._busy and fan.is_idle:
            self._busy.popleft()
        return sends

    def _finish_messages(self) -> None:
        """Send the messages on their way to all: the channel has ended."""
        self._is_handling = True
        try:
            while self._busy:
                self._step(SENDS_A_TURN)
        finally:
            self._is_handling = False

    def _on_late(self, receiver: Receiver, frames: list[bytes], data: bytes, sent: int) -> None:
        member = self.members.get(receiver.number)
        if member is not None:
            self._guard(self._queue_for, member, frames, data, sent)

    def _queue_for(self, member: Member, frames: list[bytes], data: bytes, sent: int) -> None:
        """Queue what a client has not taken of frames.

        Args:
            data: the frames, joined.
        """
        connection = member.connection
        if connection.write_failed:
            return
        # The queue gets the objects that other slow clients have as well.
        if member.queue.unsent_bytes:
            for frame in frames:
                member.queue.push(frame)
        else:
            # One object: the queue would join several to send them.
            member.queue.push(data, max(sent, 0))
            # It notes that the client is slow, or that it is gone, and watches for writing.
            self._relay.send_to_client(connection)
            self._relay.flush(connection)
        if member.queue.unsent_bytes > connection.settings.max_buffer_bytes:
            self.note_slow(member)

    def _unicast(self, member: Member, item: wire.Unicast) -> None:
        connection = member.connection
        session = connection.session
        member.settle()  # a compressor may have to forget its window
        member.reader.insert_message(item.frame, item.payload_bytes)
        frames = session.to_client
        if member.queue.unsent_bytes:
            if connection.write_failed:
                frames.clear()
            else:
                member.queue.push_all(frames)
        elif len(frames) == 1 and not connection.write_failed:
            frame = frames[0]
            try:
                sent = member.send(frame)
            except OSError:  # BlockingIOError as well: ``flush`` sends again
                sent = 0
            if sent == len(frame):
                frames.clear()
                member.timeouts.passed_at = self._poller.now
                return
            frames.clear()
            member.queue.push(frame, sent)
            self._relay.send_to_client(connection)
            self._relay.flush(connection)
        else:
            self._relay.flush(connection)
        if member.queue.unsent_bytes > connection.settings.max_buffer_bytes:
            self.note_slow(member)

    def _guard(self, handle: Callable[..., None], member: Member, *args: object) -> None:
        """Handle one client; an exception ends that client only."""
        try:
            handle(member, *args)
        except Exception:
            self._relay.abort(member.connection)

    # Output and the end.

    def _flush(self) -> None:
        try:
            self._queue.flush(self._socket.send)
        except BlockingIOError:
            pass  # EAGAIN: epoll reports when there is room
        except OSError:
            self._queue.clear()  # the end of file follows
        mask = _IN | (_OUT if self._queue.unsent_bytes else 0)
        if mask != self._mask:
            self._mask = mask
            self._poller.epoll.modify(self._socket.fileno(), mask)

    def watch_again(self, add_reader: Callable[..., None]) -> None:
        """Register with a new epoll."""
        add_reader(self._socket.fileno(), self.on_ready, self._mask)

    def abandon(self) -> None:
        """Close the descriptor: another process has the channel."""
        self._socket.close()

    def close(self) -> None:
        """End the channel: its clients have their own connections, which may have ended too."""
        if self._socket.fileno() == -1:
            return
        self._on_end(self)
        self._working.pop(self, None)
        self._busy.clear()
        self._socket.close()
        self._queue.clear()
        for member in list(self.members.values()):
            is_waiting = member.reader.is_waiting
            self.remove(member)
            if is_waiting:
                # The messages between OFF and the end of the channel are lost: what follows
                # them must not reach the client.
                self._guard(self._lose_producer, member)

    def _lose_producer(self, member: Member) -> None:
        self._relay.lose_producer(member.connection)
        self._relay.flush(member.connection)

    def _on_violation(self, problem: str) -> None:
        """Close the channel, and all its clients: what they were to get is not known."""
        members = list(self.members.values())
        self._items.clear()
        if members:
            log = members[0].connection.log
            log.write("error", f"{self.endpoint}: the channel for groups is closed: {problem}")
        for member in members:
            member.reader.is_waiting = False
        self.close()
        for member in members:
            self._guard(self._close_client, member)

    def _close_client(self, member: Member) -> None:
        member.connection.session.close(CloseCause.PRODUCER_ERROR)
        self._relay.flush(member.connection)
