"""Bridge channels: one message of a producer for many clients of this process.

Contract: ``Channels`` belongs to a loop.  ``on_requests`` handles the LANE frames of a client's
connection; the loop calls ``finish_turn`` at the end of every turn, and does not wait while
``has_work``.  On the loop's thread.

How this works: a producer that broadcasts asks for a channel on one of its connections.  This
process makes a pair of sockets and passes one of them over that connection, so that the channel
leads to the very process that asked, whichever of several workers that is.

A client goes on the channel with JOIN, which its producer sends on the client's own connection
after all earlier messages, and which is answered with READY.  From then on the messages come by
the channel, each at most once, until the channel has OFF for the client; what its own connection
has after OWN is read then.  So a client gets its messages in the order in which they were sent.

A channel never waits for a client.  What a client does not take waits in its queue, as with its
own connection.  If that is more than one buffer (APACHEWS_MAX_BUFFER), SLOW tells the producer to
use the client's own connection, which is not read while the client is slow.  Until the producer
has done so the queue takes what is on its way: at most the channel's buffer in the kernel and
``apachews._server.lanes.MAX_QUEUE_BYTES``; the frames are those of all other slow clients.

Sources: docs/reference/wire.md, "Groups at the edge"; unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import os
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
from apachews_handler.protocol.session import Session

from .connection import Connection
from .poller import Poller
from .relay import Relay
from .send_queue import SendQueue

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
READ_BYTES: Final = 65536
# A turn of the loop ends the work on a channel after so many sends: some milliseconds.
SENDS_A_TURN: Final = 2000

# Window, level and shortest length of a client's compression; None without one.
Compression = tuple[int, int, int] | None
# The members of a group that get the same bytes, by number.
Members = dict[int, "Member"]


class Member:
    """A client on a channel.

    Attributes:
        groups: numbers of its groups.
        is_slow: the producer was told so.
    """

    __slots__ = (
        "_channel",
        "compression",
        "connection",
        "groups",
        "is_slow",
        "number",
        "queue",
        "reader",
        "send",
        "timeouts",
    )

    def __init__(self, channel: Channel, connection: Connection, number: int) -> None:
        assert isinstance(connection.session, Session), "tunnels have no producer that asks"
        self._channel = channel
        self.connection = connection
        self.number = number
        self.groups: set[int] = set()
        self.is_slow = False
        # What each message needs, without a path of attributes.
        self.reader = connection.session.producer_reader
        self.compression: Compression = self.reader.compression
        self.queue: SendQueue = connection.client.queue
        self.timeouts = connection.timeouts
        self.send: Callable[[bytes], int] = connection.transport.sender()

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
        owner: of all channels.
        sock: this end, non-blocking; owned from here on.
        endpoint: path of the socket file of the producer.
        log: for violations.
    """

    def __init__(self, owner: Channels, sock: socket.socket, endpoint: str) -> None:
        self._owner = owner
        self._relay, self._poller = owner.relay, owner.poller
        self._socket = sock
        self.endpoint = endpoint
        self.members: Members = {}
        self._groups: dict[int, dict[Compression, Members]] = {}
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

    @property
    def has_work(self) -> bool:
        """True while items were read and not handled."""
        return bool(self._items)

    @property
    def is_closed(self) -> bool:
        return self._socket.fileno() == -1

    # Members.

    def join(self, connection: Connection, number: int) -> None:
        """Put a client on the channel, and tell the producer at the end of the turn."""
        if connection.member is not None:
            connection.member.leave()  # a message has made its last JOIN void
        if number in self.members:
            self._on_violation(f"client {number} joins twice")
            return
        member = Member(self, connection, number)
        member.reader.is_on_channel = True
        connection.member = self.members[number] = member
        self._ready.append(number)
        self._owner.changed[self] = None

    def remove(self, member: Member) -> None:
        """Take a client off the channel."""
        if self.members.get(member.number) is not member:
            return
        del self.members[member.number]
        for group in member.groups:
            self._remove_from(group, member)
        member.groups.clear()
        member.connection.member = None
        member.reader.is_on_channel = False

    def note_slow(self, member: Member) -> None:
        """Ask the producer, once, to use the client's own connection."""
        if not member.is_slow:
            member.is_slow = True
            self._slow.append(member.number)
            self._owner.changed[self] = None

    def tell(self) -> None:
        """Send the producer READY and SLOW for the clients of this turn."""
        frames = []
        if self._ready:
            frames.append(wire.encode_numbers(wire.READY, self._ready))
            self._ready.clear()
        if self._slow:
            frames.append(wire.encode_numbers(wire.SLOW, self._slow))
            self._slow.clear()
        if frames and not self.is_closed:
            self._queue.push_all(frames)
            self._flush()

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
            while items and sends < SENDS_A_TURN:
                sends += self._on_item(items.popleft())
        finally:
            self._is_handling = False

    def drain(self) -> None:
        """Handle all that the producer has written so far; it has perhaps ended."""
        if self._is_handling:
            return  # what follows in the channel is handled next
        while not self.is_closed:
            while self._items:
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
        forms = self._groups.setdefault(group, {})
        for number in numbers:
            member = self.members.get(number)
            if member is not None:
                member.groups.add(group)
                forms.setdefault(member.compression, {})[number] = member
        if not forms:
            del self._groups[group]

    def _remove_from(self, group: int, member: Member) -> None:
        forms = self._groups[group]
        members = forms[member.compression]
        del members[member.number]
        if not members:
            del forms[member.compression]
            if not forms:
                del self._groups[group]

    def _off(self, member: Member) -> None:
        """Continue with the client's own connection."""
        connection = member.connection
        self.remove(member)
        if member.reader.is_waiting:
            member.reader.is_waiting = False
            self._relay.continue_reading(connection)

    # Messages.

    def _multicast(self, item: wire.Multicast) -> int:
        compressed: dict[tuple[int, int], bytes] = {}
        sends = 0
        for compression, members in self._groups.get(item.group, {}).items():
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
            sends += len(members)
            late = self._send(members, frame, item, is_compressed)
            # The dictionary is not iterated any more: an error may end a connection here.
            for member, sent in late:
                self._guard(self._queue_for, member, frame, sent)
        return sends

    def _send(
        self, members: Members, frame: bytes, item: wire.Multicast, is_compressed: bool
    ) -> list[tuple[Member, int]]:
        """Send a frame to members; return those that have not taken all of it.

        With each of these how many bytes it has taken, -1 for an error.
        """
        late: list[tuple[Member, int]] = []
        size, payload_bytes, now = len(frame), item.payload_bytes, self._poller.now
        excluded = frozenset(item.excluded)
        for number, member in members.items():
            if excluded and number in excluded:
                continue
            if member.queue.unsent_bytes:
                sent = 0  # after what it has not taken yet
            else:
                try:
                    sent = member.send(frame)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    sent = -1
            reader = member.reader
            reader.messages += 1
            reader.payload_bytes += payload_bytes
            if is_compressed:
                reader.forget_compressed()
            if sent == size:
                member.timeouts.passed_at = now
            else:
                late.append((member, sent))
        return late

    def _queue_for(self, member: Member, frame: bytes, sent: int) -> None:
        """Queue what a client has not taken of a frame."""
        connection = member.connection
        if connection.write_failed:
            return
        was_empty = not member.queue.unsent_bytes
        member.queue.push(frame, max(sent, 0))
        if was_empty:
            # It notes that the client is slow, or that it is gone, and watches for writing.
            self._relay.send_to_client(connection)
            self._relay.flush(connection)
        if member.queue.unsent_bytes > connection.settings.max_buffer_bytes:
            self.note_slow(member)

    def _unicast(self, member: Member, item: wire.Unicast) -> None:
        connection = member.connection
        session = connection.session
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
        if self.is_closed:
            return
        self._owner.forget(self)
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


class Channels:
    """The channels of a loop.

    Args:
        poller: the loop's.
        relay: sends and closes.
        add_reader, remove_reader: the loop's.

    Attributes:
        changed: channels with something to tell their producers at the end of the turn.
    """

    def __init__(
        self,
        poller: Poller,
        relay: Relay,
        add_reader: Callable[..., None],
        remove_reader: Callable[[int], None],
    ) -> None:
        self.poller = poller
        self.relay = relay
        self.changed: dict[Channel, None] = {}
        self._add_reader = add_reader
        self._remove_reader = remove_reader
        self._channels: dict[int, Channel] = {}

    @property
    def has_work(self) -> bool:
        """True while a channel has read messages that wait for the next turn."""
        return any(one.has_work for one in self._channels.values())

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
                if found is not None and is_own and connection.is_open and connection.may_join:
                    found.join(connection, numbers[1])

    def dismiss(self, connection: Connection) -> None:
        """Take a client off its channel soon, and put it on none: it is to move.

        Its producer goes on with the client's own connection, so that the client comes to rest.
        """
        connection.may_join = False
        if connection.member is not None:
            connection.member.ask_to_leave()

    def readmit(self, connection: Connection) -> None:
        """Let a client go on a channel that was dismissed, by this process or another one."""
        connection.may_join = True
        if connection.session.knows_lanes:
            # A JOIN may have had no answer, and the producer may know another process.
            self.relay.tell_bridge(connection)

    def finish_turn(self) -> None:
        """Continue what the last turn has left, and tell producers what has happened."""
        for one in list(self._channels.values()):
            if one.has_work:
                one.on_work()
        while self.changed:
            self.changed.popitem()[0].tell()

    def forget(self, channel: Channel) -> None:
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
        ours = theirs = None
        try:
            ours, theirs = self._pair()
            ours.setblocking(False)
            # At random: a JOIN with the key of another process, from which the client has moved,
            # must not be one of this process.
            key = int.from_bytes(os.urandom(4), "big")
            offer = wire.encode_lane(wire.OFFER, key)
            channel = Channel(self, ours, connection.endpoint)
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
