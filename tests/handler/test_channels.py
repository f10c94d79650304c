"""Groups at the edge: bridge.channels with the library's lanes, over sockets in one process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews import Client, Event, Server, wire
from apachews._server import lanes
from apachews._server.connection import Connection as Link
from apachews.wire.reader import Item
from apachews_handler.bridge.connection import Connection
from apachews_handler.bridge.loop import Loop
from apachews_handler.bridge.transport import PlainTransport
from apachews_handler.protocol import new_session
from apachews_handler.protocol.deflate import Agreement, Inflater
from apachews_handler.settings import Settings

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

    def settle(self, *, reads: bool = True) -> None:
        """Let both processes do all that there is to do."""
        for _ in range(20):
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


def on_channel(world: World, count: int, deflate: Agreement | None = None) -> list[Client]:
    """Return clients that are on the channel."""
    clients = [world.open(deflate)[1] for _ in range(count)]
    world.server.broadcast("the first asks for a channel")
    world.settle()
    world.server.broadcast("the second asks to go there")
    world.settle()
    assert [link_of(client).lane for client in clients] == [lanes.ON_CHANNEL] * count
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
