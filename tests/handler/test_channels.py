"""Groups at the edge: bridge.channels with the library's lanes, over sockets in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews import Client, Event, Server, wire
from apachews._server import lane_user, lanes
from apachews._server.connection import Connection as Link
from apachews.wire.channel import (
    ADD,
    ASK,
    MAX_FRAME_BYTES,
    MAX_GROUPS,
    Multicast,
    Unicast,
    encode_join,
    encode_lane,
    encode_numbers,
)
from apachews.wire.channel import Item as ChannelItem
from apachews.wire.reader import Item
from apachews_handler.bridge import channel as channel_module
from apachews_handler.bridge.channels import MAX_CHANNELS, Channels
from apachews_handler.bridge.connection import Connection
from apachews_handler.bridge.loop import Loop
from apachews_handler.bridge.transport import PlainTransport
from apachews_handler.protocol import new_session
from apachews_handler.protocol.deflate import Agreement, Inflater, compressed_alone
from apachews_handler.settings import Settings

from ..support.bridge_by_hand import Bridge
from ..support.frames import masked
from .test_bridge import Lines

SETTINGS = Settings(hold_s=30.0, ping_interval_s=0.0, max_buffer_bytes=4096)


class Browser:
    """A client, and its bridge's connection."""

    def __init__(self, world: World, name: str, deflate: Agreement | None) -> None:
        self.name = name
        self.socket, near = socket.socketpair()
        for sock in (self.socket, near):
            sock.setblocking(False)
            # The kernel's buffers are small, so that a client that does not read is soon slow.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        self._parts = b""
        self._opcode = 0
        self._is_compressed = False
        self._inflater = Inflater(deflate.server_window_bits) if deflate else None
        self._deflate = deflate
        self._data = b""
        self.received: list[Item] = []
        self.has_left = False
        self.pings = 0
        producer = socket.socket(socket.AF_UNIX)
        producer.connect(world.path)
        producer.setblocking(False)
        session = new_session(world.settings, deflate)
        session.open(wire.Open(id=name, uri="/", bridge=world.loop.bridge_id))
        self.connection = Connection(
            transport=PlainTransport(near),
            producer_socket=producer,
            session=session,
            settings=world.settings,
            endpoint=world.path,
            name=name,
            log=world.log,
        )

    def read(self) -> None:
        """Read what has arrived, and inflate it."""
        while self.socket.fileno() != -1:
            try:
                data = self.socket.recv(1 << 20)
            except (BlockingIOError, OSError):
                return
            if not data:
                return
            self._data += data
            self._take_frames()

    def leave(self) -> None:
        """Disconnect without a CLOSE."""
        self.read()
        self.has_left = True
        self.socket.close()

    def _take_frames(self) -> None:
        while (header := wire.decode_header(self._data, 0)) is not None:
            first, length, start = header
            if len(self._data) < start + length:
                return
            payload, self._data = self._data[start : start + length], self._data[start + length :]
            opcode = first & wire.OPCODE
            if opcode >= wire.CLOSE:
                self._take_control(opcode, payload)
                continue
            if opcode != wire.CONTINUATION:
                self._opcode, self._is_compressed = opcode, bool(first & 0x40)
            self._parts += self._inflated(payload) if self._is_compressed else payload
            if first & wire.FIN:
                message, self._parts = self._parts, b""
                if self._is_compressed:
                    self._end_compressed()
                is_text = self._opcode == wire.TEXT
                self.received.append(message.decode() if is_text else message)

    def _take_control(self, opcode: int, payload: bytes) -> None:
        self.pings += opcode == wire.PING
        if opcode == wire.CLOSE:
            self.received.append(wire.decode_close(payload))

    def _inflated(self, payload: bytes) -> bytes:
        assert self._inflater is not None, "a frame is compressed without an agreement"
        self._inflater.feed(payload)
        return self._inflater.read(1 << 24)

    def _end_compressed(self) -> None:
        assert self._inflater is not None and self._deflate is not None
        self._inflater.end_message()
        if not self._deflate.server_keeps_context:
            self._inflater = Inflater(self._deflate.server_window_bits)


class World:
    """One bridge process and one producer process, in this process and on this thread."""

    def __init__(self, path: str, settings: Settings = SETTINGS) -> None:
        self.path = path
        self.settings = settings
        self.log = Lines()
        self.server = Server(path)
        self.loop = Loop()
        self.browsers: list[Browser] = []

    def open(self, deflate: Agreement | None = None) -> tuple[Browser, Client]:
        """Return a client, and the program's object of it."""
        browser = Browser(self, f"client-{len(self.browsers)}", deflate)
        self.browsers.append(browser)
        self.loop.add(browser.connection)
        while (event := self.server.dequeue(0)) is None or event.type() is not Event.Accept:
            self.loop.turn(0)
        return browser, event.client()

    def settle(self, *, reads: bool = True, turns: int = 20) -> None:
        """Let both processes do all that there is to do."""
        for _ in range(turns):
            self.loop.turn(0)
            self.server.dequeue(0)
            if reads:
                for browser in self.browsers:
                    browser.read()

    def close(self) -> None:
        self.server.close()
        self.loop.close()
        for browser in self.browsers:
            browser.socket.close()


@pytest.fixture
def world(short_path: Path) -> Iterator[World]:
    made = World(str(short_path / "a.ws"))
    yield made
    made.close()


def link_of(client: Client) -> Link:
    assert isinstance(client._link, Link)
    return client._link


def kill(server: Server) -> None:
    """End as a process does that is killed: the kernel closes its descriptors."""
    loop = server._loop
    for connection in loop.connections.by_fd.values():
        connection._socket.close()
    for process in [*loop.connections._processes.values()]:
        if process._socket is not None:
            process._socket.close()
    loop._poller.close()
    server._file.close()


def on_channel(world: World, count: int, deflate: Agreement | None = None) -> list[Client]:
    """Return clients that are on the channel."""
    for _ in range(count):
        world.open(deflate)
    clients = world.server.clients()
    world.server.broadcast("the first asks for a channel")
    world.settle()
    world.server.broadcast("the second asks to go there")
    world.settle()
    assert lanes_of(clients) == [lane_user.ON_CHANNEL] * len(clients)
    for browser in world.browsers:
        browser.received.clear()
    return clients


def test_one_write_reaches_all_clients(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    on_channel(world, 10)
    written: list[bytes] = []
    write = lanes.BridgeProcess._write

    def record(process: lanes.BridgeProcess, frame: bytes) -> None:
        written.append(frame)
        write(process, frame)

    monkeypatch.setattr(lanes.BridgeProcess, "_write", record)
    assert world.server.broadcast("hello") == 10
    assert len(written) == 1
    world.settle()
    assert [browser.received for browser in world.browsers] == [["hello"]] * 10
    messages_out = [browser.connection.session.traffic()[2] for browser in world.browsers]
    assert messages_out == [3] * 10


class OnlyCounted(list[Link]):
    """Connections that must not be looked at."""

    def __iter__(self) -> Iterator[Link]:
        raise AssertionError("a broadcast looked at its clients")


def test_a_broadcast_does_not_look_at_clients_on_the_channel(world: World) -> None:
    clients = on_channel(world, 5)
    links = [link_of(client) for client in clients]
    (process,) = {link.process for link in links}
    assert isinstance(process, lanes.BridgeProcess)
    frame = wire.encode_message("hello")
    assert lanes.broadcast(None, [process], OnlyCounted(links), [], frame) == 5
    world.settle()
    assert [browser.received for browser in world.browsers] == [["hello"]] * 5
    # It does if one of them is elsewhere.
    process.leave(links[2])
    assert lanes.broadcast(None, [process], links, [], frame) == 5
    world.settle()
    assert [browser.received for browser in world.browsers] == [["hello"] * 2] * 5


def begin_a_broadcast(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a broadcast come to a few of ten clients."""
    on_channel(world, 10)
    monkeypatch.setattr(channel_module, "SENDS_A_TURN", 3)
    world.server.broadcast("hello")
    while not any(browser.received for browser in world.browsers):
        world.loop.turn(0)
        for browser in world.browsers:
            browser.read()
    assert sum(len(browser.received) for browser in world.browsers) < 10


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_broadcast_under_way_reaches_all_after_the_end_of_the_channel(
    world: World, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    begin_a_broadcast(world, monkeypatch)
    if is_killed:
        kill(world.server)
    else:
        world.server._loop.connections.close_channels()
    for _ in range(20):
        world.loop.turn(0)
        for browser in world.browsers:
            browser.read()
    assert [browser.received for browser in world.browsers] == [["hello"]] * 10
    if is_killed:
        world.server = Server(world.path)


def test_slow_clients_share_the_messages_that_joined(world: World) -> None:
    on_channel(world, 10)
    for browser in world.browsers:
        send = browser.connection.transport.sender()
        with contextlib.suppress(BlockingIOError):
            while True:
                send(bytes(1000))
    for _ in range(2):
        world.server.broadcast("hello")
    for _ in range(20):
        world.loop.turn(0)
    queued = [browser.connection.client.queue.undelivered() for browser in world.browsers]
    assert [unsent for unsent, _ in queued] == [wire.encode_message("hello") * 2] * 10
    assert len({id(unsent) for unsent, _ in queued}) == 1


def test_messages_of_a_client_pass_while_a_broadcast_is_under_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_a_broadcast(world, monkeypatch)
    world.browsers[9].socket.send(masked(0x81, b"and I"))
    world.loop.turn(0)
    assert sum(len(browser.received) for browser in world.browsers) < 10
    event = world.server.dequeue(0)
    assert event is not None and event.read() == "and I"
    # The answer joins the channel's order: it comes after the broadcast.
    event.write("and you")
    world.settle()
    assert world.browsers[9].received == ["hello", "and you"]
    assert [browser.received for browser in world.browsers[:9]] == [["hello"]] * 9


def test_counts_are_exact_while_a_broadcast_is_under_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_a_broadcast(world, monkeypatch)
    for browser in world.browsers:
        browser.read()
        # Two messages have come before.
        assert browser.connection.session.traffic()[2] == 2 + len(browser.received)


def process_of(world: World) -> lanes.BridgeProcess:
    (process,) = world.server._loop.connections._processes.values()
    return process


def lanes_of(clients: list[Client]) -> list[int]:
    return [link_of(client).lane for client in clients]


def test_a_broadcast_to_few_clients_asks_for_nothing(world: World) -> None:
    clients = [world.open()[1] for _ in range(lanes.MIN_CLIENTS - 1)]
    for _ in range(3):
        assert world.server.broadcast("few") == len(clients)
        world.settle()
    assert world.loop.channels.counts() == (0, 0)
    assert lanes_of(clients) == [lane_user.OWN] * len(clients)


def test_a_bridge_that_offers_no_channel_is_never_sent_a_lane(short_path: Path) -> None:
    with Server(short_path / "old.ws") as server:
        bridges = [Bridge(server.path) for _ in range(2 * lanes.MIN_CLIENTS)]
        for _ in bridges:
            assert server.dequeue(5)
        for number in range(3):
            assert server.broadcast(str(number)) == len(bridges)
            server.dequeue(0)
        # (``read_available`` knows only messages, MOVE and CLOSE.)
        assert [bridge.read_available() for bridge in bridges] == [["0", "1", "2"]] * len(bridges)
        for bridge in bridges:
            bridge.socket.close()


def test_groups_reach_their_members_on_the_channel(world: World) -> None:
    clients = on_channel(world, 8)
    first, second = world.server.group("first"), world.server.group("second")
    for client in clients[:6]:
        first.add(client)
    for client in clients[4:]:
        second.add(client)
    assert first.broadcast("a", exclude=clients[0]) == (5, 0)
    assert first.broadcast("b", exclude=clients[7]) == (6, 0)  # who is not a member
    first.discard(clients[1])
    assert first.broadcast("c", exclude=clients[2:4]) == (3, 0)
    assert second.broadcast("d") == (4, 0)
    clients[5].send("e")
    assert second.broadcast("f", exclude=clients[4:]) == (0, 0)
    world.settle()
    received = ["".join(map(str, browser.received)) for browser in world.browsers]
    assert received == ["bc", "ab", "ab", "ab", "abcd", "abcde", "d", "d"]
    assert lanes_of(clients) == [lane_user.ON_CHANNEL] * 8
    for client in clients:
        client.close()
    world.settle()
    assert not process_of(world).members and not process_of(world)._groups
    assert world.loop.channels.counts() == (1, 0)


def test_a_message_is_compressed_once_for_all_with_one_window(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settings = dataclasses.replace(world.settings, deflate_min_size_bytes=100)
    small = Agreement(server_window_bits=9)
    for agreement in (None, Agreement(), small, Agreement(server_keeps_context=False)) * 3:
        world.open(agreement)
    on_channel(world, 0)
    windows: list[int] = []

    def count(frame: bytes, payload_bytes: int, window_bits: int, level: int) -> bytes:
        windows.append(window_bits)
        return compressed_alone(frame, payload_bytes, window_bits, level)

    monkeypatch.setattr(channel_module, "compressed_alone", count)
    text = "text that comes again " * 40
    for _ in range(2):
        assert world.server.broadcast(text) == 12
        for client in world.server.clients():
            client.send(text + "!")  # compressed for each, with its own window
    world.server.broadcast("short")
    world.settle()
    assert sorted(windows) == [9, 9, 15, 15]
    expected = [text, text + "!"] * 2 + ["short"]
    assert [browser.received for browser in world.browsers] == [expected] * 12


def test_a_client_that_does_not_read_leaves_the_channel(world: World) -> None:
    clients = on_channel(world, 6)
    slow = world.browsers[0]
    sent = [f"{number:5}" * 100 for number in range(400)]
    most = 0
    for message in sent:
        assert world.server.broadcast(message) == 6
        for _ in range(2):
            world.loop.turn(0)
            world.server.dequeue(0)
        for browser in world.browsers[1:]:
            browser.read()
        most = max(most, slow.connection.client.queue.unsent_bytes)
    world.settle(reads=False)
    for browser in world.browsers[1:]:
        browser.read()
        assert browser.received == sent
    # The others never waited for it; it has a lane of its own, whose bounds hold.
    assert lanes_of(clients[1:]) == [lane_user.ON_CHANNEL] * 5
    assert link_of(clients[0]).lane != lane_user.ON_CHANNEL
    assert most < 3 * SETTINGS.max_buffer_bytes
    world.settle(turns=500)
    assert slow.received == sent
    world.server.broadcast("one asks again")
    world.settle()
    world.server.broadcast("and is back")
    world.settle()
    assert lanes_of(clients) == [lane_user.ON_CHANNEL] * 6


def test_a_long_message_goes_by_the_own_connections(world: World) -> None:
    clients = on_channel(world, 5)
    long = "x" * (MAX_FRAME_BYTES + 1)
    assert world.server.broadcast("before") == 5
    assert world.server.broadcast(long) == 5
    assert world.server.broadcast("after") == 5
    assert lane_user.ON_CHANNEL not in lanes_of(clients)
    world.settle(turns=100)
    assert [browser.received for browser in world.browsers] == [["before", long, "after"]] * 5


def test_a_full_channel_leads_to_the_own_connections(world: World) -> None:
    clients = on_channel(world, 5)
    message = "x" * 60_000
    count = most = 0
    while lanes_of(clients) == [lane_user.ON_CHANNEL] * 5:
        assert world.server.broadcast(message) == 5
        count += 1
        most = max(most, clients[0].queued_bytes)
    assert most > lanes.MAX_QUEUE_BYTES  # the program sees what waits for the client
    assert process_of(world).queued_bytes <= lanes.MAX_QUEUE_BYTES + 65_000
    world.settle(turns=500)
    assert [browser.received for browser in world.browsers] == [[message] * count] * 5


def test_what_a_producer_wrote_before_it_died_arrives(world: World) -> None:
    on_channel(world, 5)
    world.server.broadcast("last words")
    kill(world.server)
    for _ in range(5):
        world.loop.turn(0)
        for browser in world.browsers:
            browser.read()
    assert [browser.received for browser in world.browsers] == [["last words"]] * 5
    assert all(browser.connection.is_held for browser in world.browsers)
    assert world.loop.channels.counts() == (0, 0)
    world.server = Server(world.path)  # to be closed


def test_what_follows_a_lost_message_never_arrives(world: World) -> None:
    """A producer dies with a part of the channel's queue; the connection has gone on."""
    clients = on_channel(world, 5)
    process = process_of(world)
    assert process._socket
    fill = "x" * 50_000
    while not process.has_queue:
        world.server.broadcast(fill)
    world.server.broadcast("lost with the queue")
    process.leave(link_of(clients[0]))
    clients[0].send("after what was lost")
    kill(world.server)
    for _ in range(60):
        world.loop.turn(0)
        for browser in world.browsers:
            browser.read()
    for browser in world.browsers:
        assert set(browser.received) == {fill}
        assert browser.connection.is_held
    world.server = Server(world.path)  # to be closed


def test_a_frame_that_breaks_the_rules_closes_the_channel_and_its_clients(world: World) -> None:
    on_channel(world, 5)
    process = process_of(world)
    process._write(wire.encode_frame(wire.TEXT, b"not a frame of a channel"))
    world.settle()
    closes = [browser.received for browser in world.browsers]
    assert closes == [[wire.Close(wire.INTERNAL_ERROR, "")]] * 5
    assert world.loop.channels.counts() == (0, 0)
    assert [text for level, text in world.log.lines if level == "error"] != []


def test_a_client_in_many_groups_has_a_lane_of_its_own(world: World) -> None:
    clients = on_channel(world, 5)
    for number in range(MAX_GROUPS - 1):
        world.server.group(f"group {number}").add(clients[0])
        assert link_of(clients[0]).lane == lane_user.ON_CHANNEL
    last = world.server.group("last")
    last.add(clients[0])
    assert link_of(clients[0]).lane == lane_user.OWN
    for number in range(3):
        world.server.broadcast(str(number))
        world.settle()
    assert lanes_of(clients) == [lane_user.OWN] + [lane_user.ON_CHANNEL] * 4
    assert [browser.received for browser in world.browsers] == [["0", "1", "2"]] * 5


def test_a_producer_cannot_use_up_the_memory_and_the_descriptors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_channel(world, 5)
    asking = next(iter(world.server._loop.connections.by_fd.values()))
    for _ in range(2 * MAX_CHANNELS):
        asking.write_lane(encode_lane(ASK))
        world.settle(turns=2)
        asking._descriptors = None  # it takes none of them
    assert world.loop.channels.counts()[0] <= MAX_CHANNELS
    process = process_of(world)
    number = next(iter(process.members))
    for group in range(1, MAX_GROUPS + 2):
        process._write(encode_numbers(ADD, [number], group))
    world.settle()
    assert [browser.received for browser in world.browsers] == [
        [wire.Close(wire.INTERNAL_ERROR, "")]
    ] * 5


def test_a_producer_that_does_not_read_its_channel(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = on_channel(world, 5)
    monkeypatch.setattr(channel_module, "MAX_UNREAD_BYTES", 1000)
    link, process = link_of(clients[0]), process_of(world)
    world.server._loop._poller.remove_reader(process._socket.fileno())  # type: ignore[union-attr]
    number = 1_000_000
    while world.loop.channels.counts()[0]:
        link.write_lane(b"".join(encode_join(process._key, number + n) for n in range(500)))
        number += 500
        world.settle(turns=3)
    world.server._loop._poller.add_reader(process._socket.fileno(), process._on_ready)  # type: ignore[union-attr]
    world.settle()
    assert process.is_lost


def test_messages_that_wait_for_a_busy_bridge_are_sent_once_for_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [world.open()[1] for _ in range(20)]
    monkeypatch.setattr(lanes, "HOLD_AFTER_S", -1.0)  # every bridge counts as busy
    world.server.broadcast("asks")
    world.settle()
    world.server.broadcast("joins")
    for text in ("held", "held as well"):
        assert world.server.broadcast(text) == 20
    clients[0].send("held for one")
    assert clients[0].queued_bytes > clients[1].queued_bytes > 0
    items: list[type] = []
    on_item = channel_module.Channel._on_item

    def record(channel: channel_module.Channel, item: ChannelItem) -> int:
        items.append(type(item))
        return on_item(channel, item)

    monkeypatch.setattr(channel_module.Channel, "_on_item", record)
    world.settle()
    assert (items.count(Multicast), items.count(Unicast)) == (2, 3)
    expected = ["asks", "joins", "held", "held as well"]
    assert world.browsers[0].received == [*expected, "held for one"]
    assert [browser.received for browser in world.browsers[1:]] == [expected] * 19
    assert lanes_of(clients) == [lane_user.ON_CHANNEL] * 20


def test_a_bridge_without_descriptors_is_asked_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [world.open()[1] for _ in range(5)]
    monkeypatch.setattr(lanes, "ASK_AGAIN_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Channels, "_pair", staticmethod(fail))
        world.server.broadcast("one")
        world.settle()
        assert world.loop.channels.counts() == (0, 0)
    for number in range(3):
        world.server.broadcast(str(number))
        world.settle()
    assert lanes_of(clients) == [lane_user.ON_CHANNEL] * 5
    assert [browser.received for browser in world.browsers] == [["one", "0", "1", "2"]] * 5


def fail() -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


take_channel = Link.take_channel


def lose(link: Link) -> None:
    """Stand in for a process without room for another descriptor."""
    sock = take_channel(link)
    assert sock
    sock.close()


def test_a_descriptor_that_does_not_arrive_is_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [world.open()[1] for _ in range(5)]
    monkeypatch.setattr(lanes, "ASK_AGAIN_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Link, "take_channel", lose)
        world.server.broadcast("one")
        world.settle()
    for number in range(3):
        world.server.broadcast(str(number))
        world.settle()
    assert lanes_of(clients) == [lane_user.ON_CHANNEL] * 5
    assert world.loop.channels.counts() == (1, 5)


def test_the_bridge_ends_a_channel_with_its_process(world: World) -> None:
    clients = on_channel(world, 5)
    process = process_of(world)
    world.loop.close()
    while world.server.dequeue(0):
        pass
    assert process.is_lost and not process.members
    assert all(client.has_ended for client in clients)
    assert world.server.broadcast("to none") == 0


def test_a_ping_of_the_program_goes_by_the_lane(world: World) -> None:
    clients = on_channel(world, 5)
    messages = world.browsers[0].connection.session.traffic()[2]
    assert clients[0].ping()
    clients[0].send("after it")
    world.settle()
    assert world.browsers[0].received == ["after it"]
    assert world.browsers[0].pings == 1
    assert world.browsers[0].connection.session.traffic()[2] == messages + 1
