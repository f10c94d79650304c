"""bridge.thread and bridge.relay over sockets, with clients that stall and vanish."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apachews import wire
from apachews.wire.reader import Item, MessageReader
from apachews_handler.bridge.connection import Connection
from apachews_handler.bridge.thread import Bridge
from apachews_handler.bridge.transport import PlainTransport
from apachews_handler.lifecycle.child import the_child
from apachews_handler.native import syscalls
from apachews_handler.protocol.client_reader import KEEPALIVE
from apachews_handler.protocol.deflate import Agreement
from apachews_handler.protocol.progress import TcpState
from apachews_handler.protocol.session import Session
from apachews_handler.protocol.timeouts import MAX_EXTENSION
from apachews_handler.setting_values import Rate
from apachews_handler.settings import Settings
from apachews_handler.shared import rundir

from ..conftest import let_pass, wait_for
from ..support.frames import masked

MAX_BUFFER = Settings().max_buffer_bytes
OPEN = wire.Open(id="1", uri="/a.ws")


class Lines:
    """A log that records its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def write(self, level: str, text: str) -> None:
        self.lines.append((level, text))

    def descriptor(self) -> int | None:
        return None

    def style(self) -> tuple[str, int]:
        return "wsgi", 6


class SlotFile:
    """The slots of a connection; counts how often they were released."""

    def __init__(self) -> None:
        self.released: list[bool] = []

    def release(self) -> None:
        self.released.append(True)


class Peers:
    """The peers of a connection: its client and its producer."""

    def __init__(
        self,
        bridge: Bridge,
        deflate_agreement: Agreement | None = None,
        transport: type[PlainTransport] = PlainTransport,
        path: str = "",
        **changes: Any,
    ) -> None:
        settings = Settings(
            **{"max_message_bytes": 2**30, "close_timeout_s": 5.0, "hold_s": 0, **changes}
        )
        self.client, client_near = tcp_pair()
        self.producer, producer_near = socket.socketpair()
        for sock in (client_near, producer_near):
            sock.setblocking(False)
        for sock in (self.client, self.producer):
            sock.settimeout(10)
        self.log = Lines()
        self._reader = MessageReader(2**30)
        self.messages: list[Item] = []
        slots = SlotFile()
        self.released = slots.released
        session = Session(settings, deflate_agreement)
        session.open(OPEN)
        self.connection = Connection(
            transport=transport(client_near),
            producer_socket=producer_near,
            session=session,
            settings=settings,
            endpoint=path,
            name="[client x] /a.ws",
            log=self.log,
            admission=slots,
        )
        bridge.adopt(self.connection)

    def next_item(self) -> Item | None:
        """Return what the producer receives next; None at the end of file."""
        while not self.messages:
            data = self.producer.recv(1 << 20)
            if not data:
                return None
            self.messages += self._reader.receive(data)
        return self.messages.pop(0)

    def client_reads(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.client.recv(size - len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        for sock in (self.client, self.producer):
            sock.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        return far, listener.accept()[0]


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    before = set(os.listdir("/proc/self/fd"))
    bridge = Bridge()
    bridge.start()
    yield bridge
    bridge.stop()
    assert not bridge._thread.is_alive()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def connect(bridge: Bridge) -> Iterator[Callable[..., Peers]]:
    made: list[Peers] = []

    def connect(**settings: Any) -> Peers:
        peers = Peers(bridge, **settings)
        made.append(peers)
        item = peers.next_item()
        assert isinstance(item, wire.Open)
        return peers

    yield connect
    for peers in made:
        peers.close()


def test_messages_pass_both_ways(connect: Callable[..., Peers]) -> None:
    peers = connect()
    peers.client.sendall(masked(0x81, b"hi") + masked(0x89, b"p"))
    assert peers.next_item() == "hi"
    peers.producer.sendall(wire.encode_frame(wire.TEXT, b"yo"))
    assert peers.client_reads(7) == b"\x8a\x01p" + b"\x81\x02yo"


def test_a_large_message_passes_in_small_pieces(connect: Callable[..., Peers]) -> None:
    peers = connect()
    data = os.urandom(5_000_000)
    writer = threading.Thread(target=peers.client.sendall, args=(masked(0x82, data),))
    writer.start()
    assert peers.next_item() == data
    writer.join()
    frame = wire.encode_frame(wire.BINARY, data)
    writer = threading.Thread(target=peers.producer.sendall, args=(frame,))
    writer.start()
    assert peers.client_reads(len(frame)) == frame
    writer.join()


def stalled(sock: socket.socket, data: bytes) -> int:
    """Send until the socket has been full for a while; return how many bytes were sent."""
    sent = 0
    while select.select([], [sock], [], 0.3)[1]:
        sent += sock.send(data)
    return sent


def test_a_client_that_does_not_read_stops_its_producer_only(
    connect: Callable[..., Peers],
) -> None:
    slow, fast = connect(), connect()
    frame = wire.encode_frame(wire.BINARY, b"x" * 10_000)
    slow.producer.setblocking(False)
    sent = stalled(slow.producer, frame * 10)
    queued = slow.connection.client.queue.unsent_bytes
    assert 0 < queued <= MAX_BUFFER
    fast.client.sendall(masked(0x81, b"hi"))
    assert fast.next_item() == "hi"
    # Everything arrives once it reads, and the last frame once the producer has sent all of it.
    frames, cut_at = divmod(sent, len(frame))
    assert slow.client_reads(frames * len(frame)) == frame * frames
    slow.producer.setblocking(True)
    slow.producer.sendall(frame[cut_at:])
    assert slow.client_reads(len(frame)) == frame


class Gauge(PlainTransport):
    """Notes the most bytes that waited for the client."""

    most_bytes = 0

    def send(self, data: bytes | memoryview) -> int:
        self.most_bytes = max(self.most_bytes, len(data))
        return super().send(data)


def test_bytes_of_an_incomplete_frame_count_against_the_buffer(
    connect: Callable[..., Peers],
) -> None:
    peers = connect(transport=Gauge)
    frame = wire.encode_frame(wire.BINARY, bytes(60_000))
    writer = threading.Thread(target=peers.producer.sendall, args=(frame * 200,))
    writer.start()
    assert peers.client_reads(200 * len(frame)) == frame * 200
    writer.join()
    transport = peers.connection.transport
    assert isinstance(transport, Gauge)
    assert len(frame) <= transport.most_bytes <= MAX_BUFFER


def test_a_producer_that_does_not_read_stops_its_client(connect: Callable[..., Peers]) -> None:
    peers = connect()
    frame = masked(0x82, b"x" * 10_000)
    peers.client.setblocking(False)
    sent = stalled(peers.client, frame * 10)
    assert 0 < peers.connection.producer.queue.unsent_bytes <= MAX_BUFFER + 1000
    messages = sent // len(frame)
    for _ in range(messages):
        assert peers.next_item() == b"x" * 10_000


@pytest.mark.parametrize("size", [4096, 1 << 20])
def test_the_buffer_of_each_direction_is_a_setting(
    connect: Callable[..., Peers], size: int
) -> None:
    peers = connect(max_buffer_bytes=size, max_message_bytes=1 << 40)
    peers.client.sendall(b"\x82\xff" + (1 << 35).to_bytes(8, "big") + b"mask")
    peers.producer.sendall(wire.encode_header(wire.FIN | wire.BINARY, 1 << 40))
    for sock in (peers.client, peers.producer):
        sock.setblocking(False)
        stalled(sock, b"x" * 60_000)
    for leg in (peers.connection.client, peers.connection.producer):
        assert 0 < leg.queue.unsent_bytes <= size + 100


def test_pings_of_a_client_that_does_not_read_cost_nothing(connect: Callable[..., Peers]) -> None:
    peers = connect()
    peers.producer.setblocking(False)
    stalled(peers.producer, wire.encode_frame(wire.BINARY, b"x" * 60_000))
    peers.producer.settimeout(10)
    before = peers.connection.client.queue.unsent_bytes
    for _ in range(5_000):
        peers.client.sendall(masked(0x89, b"p" * 125))
    peers.client.sendall(masked(0x81, b"end"))
    assert peers.next_item() == "end"
    assert peers.connection.client.queue.unsent_bytes <= before


def test_the_client_closes(connect: Callable[..., Peers]) -> None:
    peers = connect()
    peers.client.sendall(masked(0x88, b"\x03\xe8"))
    assert peers.next_item() == wire.Close(1000, "")
    assert peers.next_item() is None
    assert peers.client_reads(100) == b"\x88\x02\x03\xe8"
    peers.client.close()
    wait_for(lambda: peers.log.lines)
    level, line = peers.log.lines[0]
    assert level == "info"
    assert "closed by client (CLIENT_CLOSED) code=1000" in line


def test_a_client_that_does_not_close_is_dropped_in_time(connect: Callable[..., Peers]) -> None:
    peers = connect(close_timeout_s=0.1)
    peers.producer.sendall(wire.encode_frame(wire.CLOSE, b""))
    assert peers.client_reads(100) == b"\x88\x00"
    assert peers.next_item() is None


def test_a_producer_whose_frame_does_not_end_is_cut(
    connect: Callable[..., Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CLOSE waits for the end of the frame, of which the client always gets more."""
    monkeypatch.setattr(Connection, "is_client_receiving", lambda *_: True)
    peers = connect(close_timeout_s=0.05, max_message_bytes=10)
    peers.producer.sendall(b"\x82\x7f" + (1 << 50).to_bytes(8, "big") + b"x")
    assert peers.client_reads(11)[-1:] == b"x"
    peers.client.sendall(masked(0x81, b"x" * 11))
    wait_for(lambda: peers.log.lines)
    assert "(TOO_BIG) code=1009" in peers.log.lines[-1][1]


def test_a_slow_client_gets_its_close_however_long_that_takes(
    connect: Callable[..., Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that it is to get is queued: its speed bounds the time."""
    states: list[TcpState] = []

    def state(_: object) -> TcpState:
        """More has arrived at each call, until enough calls have been made."""
        arrived = min(len(states), 2 * MAX_EXTENSION) << 20
        states.append(TcpState(acked=arrived, unacked=1))
        return states[-1]

    monkeypatch.setattr("apachews_handler.bridge.connection.client_tcp_state", state)
    peers = connect(close_timeout_s=0.05)
    peers.producer.sendall(wire.encode_frame(wire.CLOSE, b""))
    assert peers.client_reads(100) == b"\x88\x00"
    assert len(states) > 2 * MAX_EXTENSION


def test_a_violation_is_logged_and_answered(connect: Callable[..., Peers]) -> None:
    peers = connect(max_message_bytes=10)
    peers.client.sendall(masked(0x81, b"x" * 11))
    item = peers.next_item()
    assert isinstance(item, wire.Close)
    assert item.code == 1009
    assert peers.client_reads(4)[:1] == b"\x88"
    peers.client.close()
    wait_for(lambda: peers.log.lines)
    assert peers.log.lines[0][0] == "warn"
    assert "more than 10 bytes" in peers.log.lines[0][1]


@pytest.mark.parametrize("half_sent", [False, True])
def test_the_producer_dies(connect: Callable[..., Peers], half_sent: bool) -> None:
    peers = connect(max_buffer_bytes=6)  # a longer frame is relayed in pieces
    frame = wire.encode_frame(wire.TEXT, b"hello")
    peers.producer.sendall(frame[:4] if half_sent else frame)
    peers.producer.close()
    received = peers.client_reads(9 if half_sent else len(frame) + 4)
    if half_sent:
        assert received == frame[:4]  # and the end of file
    else:
        assert received == frame + b"\x88\x16" + (1012).to_bytes(2, "big")


def test_a_producer_that_dies_while_its_client_is_slow_costs_no_processor(
    connect: Callable[..., Peers],
) -> None:
    peers = connect(send_timeout_s=1.0, close_timeout_s=0.5)
    peers.producer.setblocking(False)
    sent = stalled(peers.producer, wire.encode_frame(wire.BINARY, b"x" * 60_000))
    peers.producer.close()
    wait_for(lambda: peers.connection.producer.mask == -1)
    used = sum(os.times()[:2])
    wait_for(lambda: peers.log.lines)
    assert sum(os.times()[:2]) - used < 0.4
    with pytest.raises(ConnectionResetError):  # the kernel has dropped what it held
        peers.client_reads(sent)


def test_a_client_that_vanishes_while_its_producer_is_slow_is_noticed(
    connect: Callable[..., Peers],
) -> None:
    peers = connect(close_timeout_s=0.5)
    peers.client.setblocking(False)
    stalled(peers.client, masked(0x82, b"x" * 60_000))
    peers.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peers.client.close()  # sends a reset
    wait_for(lambda: peers.log.lines)


def ping() -> bytes:
    return wire.encode_frame(wire.PING, KEEPALIVE)


def test_a_silent_client_is_pinged_and_lives_while_it_answers(
    connect: Callable[..., Peers],
) -> None:
    peers = connect(ping_interval_s=0.05, ping_timeout_s=0.3)
    for _ in range(10):
        assert peers.client_reads(len(ping())) == ping()
        peers.client.sendall(masked(0x8A, KEEPALIVE))
    peers.client.sendall(masked(0x81, b"hi"))
    assert peers.next_item() == "hi"


def test_a_client_that_answers_no_ping_is_closed(connect: Callable[..., Peers]) -> None:
    peers = connect(ping_interval_s=0.05, ping_timeout_s=0.05, close_timeout_s=0.05)
    assert peers.client_reads(len(ping())) == ping()
    assert peers.next_item() == wire.Close(1011, "no answer to a ping")
    assert peers.client_reads(4)[2:] == (1011).to_bytes(2, "big")
    wait_for(lambda: peers.log.lines)
    assert peers.log.lines[0][0] == "info"
    assert "closed by bridge (NO_PONG) code=1011" in peers.log.lines[0][1]
    assert peers.released == [True]


def test_no_ping_is_missed_while_the_producer_is_slow(connect: Callable[..., Peers]) -> None:
    peers = connect(ping_interval_s=0.05, ping_timeout_s=0.05)
    peers.client.setblocking(False)
    stalled(peers.client, masked(0x82, b"x" * 60_000))  # for longer than interval and timeout
    assert not peers.log.lines
    assert peers.next_item() == b"x" * 60_000


def test_an_idle_connection_is_closed(connect: Callable[..., Peers]) -> None:
    peers = connect(idle_timeout_s=1)
    for _ in range(4):
        peers.producer.sendall(wire.encode_frame(wire.TEXT, b"tick"))
        assert peers.client_reads(6) == b"\x81\x04tick"
        let_pass(0.3)
    assert peers.next_item() == wire.Close(1001, "idle")


def test_a_client_that_takes_nothing_is_closed(connect: Callable[..., Peers]) -> None:
    peers = connect(send_timeout_s=0.3, close_timeout_s=0.1)
    peers.producer.setblocking(False)
    stalled(peers.producer, wire.encode_frame(wire.BINARY, b"x" * 60_000))
    peers.producer.settimeout(10)
    assert peers.next_item() == wire.Close(1013, "too slow")
    wait_for(lambda: peers.log.lines)
    assert peers.log.lines[0][0] == "warn"
    assert "(TOO_SLOW) code=1013" in peers.log.lines[0][1]


def test_a_client_that_takes_a_little_now_and_then_is_not(connect: Callable[..., Peers]) -> None:
    peers = connect(send_timeout_s=1.5)
    peers.producer.sendall(wire.encode_header(wire.FIN | wire.BINARY, 2**30))
    peers.producer.setblocking(False)
    sent, received = stalled(peers.producer, b"x" * 60_000), 0
    while received < sent * 0.9:
        received += len(peers.client.recv(sent // 12))
        let_pass(0.2)
    assert not peers.log.lines


def test_a_client_that_reads_slowly_but_steadily_is_not(connect: Callable[..., Peers]) -> None:
    """The kernel reports room only once it has sent much, later than the timeout."""
    peers = connect(send_timeout_s=1)
    peers.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peers.producer.sendall(wire.encode_header(wire.FIN | wire.BINARY, 2**30))
    peers.producer.setblocking(False)
    stalled(peers.producer, b"x" * 60_000)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        peers.client.recv(1024)
        let_pass(0.05)
    assert not peers.log.lines


def test_a_slow_transfer_is_not_idle(connect: Callable[..., Peers]) -> None:
    peers = connect(idle_timeout_s=0.3)
    peers.producer.sendall(wire.encode_header(wire.FIN | wire.BINARY, 2**30))
    peers.producer.setblocking(False)
    stalled(peers.producer, b"x" * 60_000)
    let_pass(0.6)
    assert not peers.log.lines


def test_a_pong_that_was_not_read_yet_counts(
    connect: Callable[..., Peers],
) -> None:
    """If the loop itself was busy for longer than the timeout, no client is closed."""
    peers, other = connect(ping_interval_s=0.1, ping_timeout_s=0.1), connect()
    held = threading.Event()
    other.log.write = lambda level, text: held.wait(5) and None  # type: ignore[assignment]
    assert peers.client_reads(len(ping())) == ping()
    other.producer.sendall(wire.encode_frame(0x7, b""))  # the loop logs it, and blocks
    peers.client.sendall(masked(0x8A, KEEPALIVE))
    let_pass(0.4)
    held.set()
    assert peers.client_reads(len(ping())) == ping()
    assert not peers.log.lines


def test_a_closed_connection_is_freed(bridge: Bridge, connect: Callable[..., Peers]) -> None:
    peers = connect(idle_timeout_s=3600.0, transport=BufferingTransport)  # it has weak references
    transport = weakref.ref(peers.connection.transport)
    peers.client.close()
    wait_for(lambda: peers.log.lines)
    del peers.connection
    wait_for(lambda: transport() is None)


def test_a_rate_that_is_exceeded(connect: Callable[..., Peers]) -> None:
    peers = connect(message_rate=Rate(3, 1.0))
    peers.client.sendall(masked(0x81, b"a") * 5)
    assert [peers.next_item() for _ in range(3)] == ["a"] * 3
    assert peers.next_item() == wire.Close(1008, "too many messages in a short time")


def test_a_bomb_passes_in_bounded_pieces_at_the_pace_of_its_producer(
    connect: Callable[..., Peers],
) -> None:
    peers = connect(deflate_agreement=Agreement())
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    bomb = (stream.compress(bytes(20_000_000)) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    peers.client.sendall(masked(0xC2, bomb) + masked(0x81, b"after it"))
    wait_for(lambda: peers.connection.producer.queue.unsent_bytes)
    assert peers.connection.producer.queue.unsent_bytes <= MAX_BUFFER + 100
    assert peers.next_item() == bytes(20_000_000)
    assert peers.next_item() == "after it"


def test_a_client_that_resets_after_a_bomb_costs_no_processor(
    connect: Callable[..., Peers],
) -> None:
    """Its message is only partly inflated, and the producer is slow, so it is not read."""
    peers = connect(deflate_agreement=Agreement())
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    bomb = (stream.compress(bytes(20_000_000)) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    peers.client.sendall(masked(0xC2, bomb))
    wait_for(lambda: peers.connection.producer.queue.unsent_bytes)
    assert peers.connection.session.is_paused
    peers.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peers.client.close()
    used = sum(os.times()[:2])
    wait_for(lambda: peers.connection.client.fd == -1)
    let_pass(0.5)
    assert sum(os.times()[:2]) - used < 0.3


class BufferingTransport(PlainTransport):
    """Reads all that the descriptor has, as OpenSSL does, and returns some of it."""

    buffers_input = True

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.buffer = b""

    def recv(self, size: int) -> bytes | None:
        data = super().recv(1 << 20)
        self.buffer += data or b""
        returned, self.buffer = self.buffer[:size], self.buffer[size:]
        return returned or data

    def has_pending(self) -> bool:
        return bool(self.buffer)


def test_bytes_that_the_transport_holds_during_a_pause_are_read(
    connect: Callable[..., Peers],
) -> None:
    peers = connect(
        deflate_agreement=Agreement(), max_buffer_bytes=4096, transport=BufferingTransport
    )
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    bomb = (stream.compress(bytes(1_000_000)) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    # One segment, so the transport holds everything after the first read.
    peers.client.sendall(masked(0xC2, bomb) + masked(0x82, b"x" * 9000) + masked(0x81, b"end"))
    assert [peers.next_item() for _ in range(3)] == [bytes(1_000_000), b"x" * 9000, "end"]


class Waiting(PlainTransport):
    """Must write before it reads on, as OpenSSL may."""

    needs_writing = True


def test_a_transport_that_must_write_does_not_bypass_backpressure(
    connect: Callable[..., Peers],
) -> None:
    peers = connect(transport=Waiting, max_message_bytes=1 << 40)
    peers.client.sendall(b"\x82\xff" + (1 << 35).to_bytes(8, "big") + b"mask")
    peers.client.setblocking(False)
    stalled(peers.client, b"x" * 60_000)
    used = sum(os.times()[:2])
    let_pass(0.5)
    assert peers.connection.producer.queue.unsent_bytes <= MAX_BUFFER + 100
    assert sum(os.times()[:2]) - used < 0.3
    peers.producer.setblocking(False)

    def is_read_again() -> bool:
        with contextlib.suppress(BlockingIOError):
            peers.producer.recv(1 << 20)
        return bool(select.select([], [peers.client], [], 0)[1])

    wait_for(is_read_again)


def test_what_the_producer_sends_is_compressed(connect: Callable[..., Peers]) -> None:
    peers = connect(deflate_agreement=Agreement())
    peers.producer.sendall(wire.encode_frame(wire.TEXT, b"hello " * 1000))
    first, length = peers.client_reads(2)
    assert first == 0xC1
    assert length < 100


def test_reserved_opcodes_are_logged(connect: Callable[..., Peers]) -> None:
    peers = connect()
    peers.producer.sendall(wire.encode_frame(0x7, b"x") + wire.encode_frame(wire.TEXT, b"a"))
    assert peers.client_reads(3) == b"\x81\x01a"
    wait_for(lambda: peers.log.lines)
    assert "0x7" in peers.log.lines[0][1]


def test_an_exception_ends_its_own_connection_only(
    connect: Callable[..., Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = connect(), connect()

    recv = PlainTransport.recv

    def fail(transport: PlainTransport, size: int) -> bytes | None:
        if transport is bad.connection.transport:
            raise RuntimeError("a fault of ours")
        return recv(transport, size)

    monkeypatch.setattr(PlainTransport, "recv", fail)
    bad.connection.can_use_fast_path = False  # the fast path in C does not call the transport
    bad.client.sendall(b"x")
    assert bad.next_item() is None
    with pytest.raises(ConnectionResetError):
        bad.client_reads(1)  # its bytes were never read
    assert bad.log.lines[0][0] == "error"
    assert "a fault of ours" in bad.log.lines[0][1]
    good.client.sendall(masked(0x81, b"hi"))
    assert good.next_item() == "hi"


def test_an_exception_while_it_is_logged_ends_only_that_connection(
    connect: Callable[..., Peers], bridge: Bridge
) -> None:
    bad, good = connect(), connect()
    write = bad.log.write

    def fail(level: str, text: str) -> None:
        bad.log.write = write  # type: ignore[method-assign]
        raise RuntimeError("a fault of ours")

    bad.log.write = fail  # type: ignore[method-assign]
    bad.client.sendall(masked(0x88, wire.encode_close(1000, "")))
    wait_for(lambda: bad.log.lines)
    assert "a fault of ours" in bad.log.lines[0][1]
    good.client.sendall(masked(0x81, b"hi"))
    assert good.next_item() == "hi"
    assert bridge.loop.counters.endpoints()[""].closes == {"1000": 1}


def block(bridge: Bridge) -> threading.Event:
    """Block the bridge's thread until the returned event is set."""
    is_busy, may_continue = threading.Event(), threading.Event()
    reader, writer = socket.socketpair()

    def wait() -> None:
        bridge.loop.remove_reader(reader.fileno())
        reader.close()
        writer.close()
        is_busy.set()
        may_continue.wait(10)

    bridge.loop.add_reader(reader.fileno(), wait)
    writer.send(b"x")
    assert is_busy.wait(5)
    return may_continue


@pytest.fixture
def wakeups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the writes to the eventfd."""
    written: list[int] = []
    write = syscalls.eventfd_write

    def noted(fd: int, value: int) -> None:
        written.append(value)
        write(fd, value)

    monkeypatch.setattr(syscalls, "eventfd_write", noted)
    return written


def is_asleep(bridge: Bridge) -> bool:
    return bridge.loop._wakes_at > 0.0


def test_a_connection_adopted_while_it_is_busy_wakes_nothing(
    bridge: Bridge, connect: Callable[..., Peers], wakeups: list[int]
) -> None:
    may_continue = block(bridge)
    for _ in range(3):
        connect()  # has its OPEN, which the thread of the handshake has sent
    may_continue.set()
    wait_for(lambda: len(bridge.loop.connections()) == 3)
    assert wakeups == []


def test_a_connection_wakes_the_bridge_only_if_there_is_something_to_do(
    bridge: Bridge, connect: Callable[..., Peers], wakeups: list[int]
) -> None:
    wait_for(lambda: is_asleep(bridge))
    first = connect(ping_interval_s=0)
    assert wakeups == []
    first.client.sendall(masked(0x81, b"hi"))
    assert first.next_item() == "hi"
    wait_for(lambda: is_asleep(bridge))
    timed = connect(ping_interval_s=50)  # nothing else would wake it in time
    assert wakeups == [1]
    wait_for(lambda: timed.connection in bridge.loop.connections() and is_asleep(bridge))
    connect(ping_interval_s=60)
    assert wakeups == [1]
    connect(ping_interval_s=40)
    assert wakeups == [1, 1]


def test_the_bridge_pings_a_client_that_it_has_not_heard_of(
    bridge: Bridge, connect: Callable[..., Peers]
) -> None:
    wait_for(lambda: is_asleep(bridge))
    assert connect(ping_interval_s=0.05).client_reads(1) == b"\x89"


def test_an_open_that_the_producer_does_not_take_at_once_arrives(
    bridge: Bridge, connect: Callable[..., Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "send", lambda fd, data: os.write(fd, data[:5]))
    connect(ping_interval_s=0)  # waits for it

    def fail(fd: int, data: bytes) -> int:
        raise BlockingIOError

    monkeypatch.setattr(syscalls, "send", fail)
    connect(ping_interval_s=0)


@pytest.mark.parametrize("order", ["stop", "freeze"])
def test_a_connection_adopted_just_before_the_end_is_handled(bridge: Bridge, order: str) -> None:
    may_continue = block(bridge)
    peers = Peers(bridge)
    ender = threading.Thread(target=getattr(bridge, order))
    ender.start()
    wait_for(lambda: not bridge.is_running)
    may_continue.set()
    assert isinstance(peers.next_item(), wire.Open)
    if order == "stop":
        assert peers.client_reads(4)[2:] == (1001).to_bytes(2, "big")
        peers.client.sendall(masked(0x88, b"\x03\xe9"))
        ender.join(5)
    else:
        ender.join(5)
        loop = bridge.thaw()
        peers.client.sendall(masked(0x81, b"hi"))
        loop.turn(5)
        assert peers.next_item() == "hi"
        loop.close()
    assert not ender.is_alive()
    peers.close()


class FullEpoll:
    """An epoll that has no room to register a descriptor."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)

    def register(self, fd: int, events: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_client_is_rejected_with_1001_if_epoll_has_no_room(bridge: Bridge) -> None:
    poller = bridge.loop._poller
    epoll = poller.epoll
    poller.epoll = FullEpoll(epoll)  # type: ignore[assignment]
    peers = Peers(bridge)
    assert peers.client_reads(100)[:4] == b"\x88\x1d" + (1001).to_bytes(2, "big")
    assert peers.next_item() is None
    wait_for(lambda: peers.log.lines)
    assert "(GOING_AWAY) code=1001" in peers.log.lines[0][1]
    assert peers.released == [True]
    poller.epoll = epoll
    peers.close()
    after = Peers(bridge)
    assert isinstance(after.next_item(), wire.Open)
    after.close()


def test_stop_closes_both_sides(bridge: Bridge, connect: Callable[..., Peers]) -> None:
    peers, silent = connect(), connect()
    stopper = threading.Thread(target=bridge.stop)
    stopper.start()
    item = peers.next_item()
    assert isinstance(item, wire.Close)
    assert item.code == 1001
    received = peers.client_reads(4)
    assert received[2:] == (1001).to_bytes(2, "big")
    peers.client.sendall(masked(0x88, b"\x03\xe9"))
    stopper.join(5)  # although the silent client does not answer
    assert not stopper.is_alive()
    assert silent.client_reads(4)[2:] == (1001).to_bytes(2, "big")


def test_a_connection_adopted_after_the_end_is_closed(bridge: Bridge) -> None:
    bridge.stop()
    peers = Peers(bridge)
    frame = wire.encode_frame(wire.CLOSE, wire.encode_close(1001, "the server is shutting down"))
    assert peers.client_reads(100) == frame  # and the end of file
    assert peers.next_item() is None
    assert "(GOING_AWAY) code=1001" in peers.log.lines[0][1]
    peers.close()


def test_another_thread_uses_no_connection_that_the_loop_has(bridge: Bridge) -> None:
    has_loop_got_it: list[bool] = []

    class Buffering(PlainTransport):
        """Stands for a TLS session, which one thread at a time may use."""

        def has_pending(self) -> bool:
            if threading.current_thread() is threading.main_thread():
                has_loop_got_it.append(bool(bridge.loop.incoming))
            return False

    wait_for(lambda: bridge.loop._wakes_at)  # it sleeps
    peers = Peers(bridge, transport=Buffering)
    assert has_loop_got_it == [False]
    peers.close()


def test_a_connection_adopted_during_the_stop_is_closed_like_the_others(
    bridge: Bridge, connect: Callable[..., Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apachews_handler.bridge.thread.STOP_GRACE_S", 30.0)
    silent = connect()  # it does not answer its CLOSE, so the thread waits for it
    bridge.stop_nowait()
    assert silent.client_reads(4)[2:] == (1001).to_bytes(2, "big")
    late = Peers(bridge)  # its handshake began before the stop
    assert isinstance(late.next_item(), wire.Open)
    assert late.client_reads(4)[2:] == (1001).to_bytes(2, "big")
    assert late.next_item() == wire.Close(1001, "the server is shutting down")
    late.close()


def test_the_thread_blocks_signals(bridge: Bridge) -> None:
    task = f"/proc/self/task/{bridge._thread.native_id}/status"
    with open(task) as status:
        blocked = next(line for line in status if line.startswith("SigBlk:")).split()[1]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGPIPE):
        assert int(blocked, 16) >> (number - 1) & 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_the_last_messages_of_a_client_arrive_though_writes_to_it_fail(
    connect: Callable[..., Peers],
) -> None:
    peers = connect()
    peers.producer.sendall(wire.encode_frame(wire.TEXT, b"unread"))
    wait_for(lambda: select.select([peers.client], [], [], 0)[0])
    # The loop is blocked while the client sends its last messages and resets the connection,
    # and while the producer sends.  Its write fails before it reads these messages.
    held = threading.Event()

    def hold(level: str, text: str) -> None:
        held.wait(5)

    peers.log.write = hold  # type: ignore[method-assign]
    peers.producer.sendall(wire.encode_frame(0x7, b""))
    peers.client.sendall(masked(0x81, b"last message") + masked(0x88, b"\x0f\xa0"))
    peers.client.close()  # with unread bytes, so this is a reset
    peers.producer.sendall(wire.encode_frame(wire.TEXT, b"too late") * 3)
    held.set()
    assert peers.next_item() == "last message"
    assert peers.next_item() == wire.Close(4000, "")


def test_a_client_that_leaves_while_its_producer_hangs_is_dropped(
    connect: Callable[..., Peers],
) -> None:
    peers = connect(close_timeout_s=0.2)
    while not peers.connection.producer.queue.unsent_bytes:
        peers.client.sendall(masked(0x82, b"x" * 10_000))
        let_pass(0.005)  # so that the client's window stays open
    peers.client.shutdown(socket.SHUT_WR)
    wait_for(lambda: peers.log.lines)


@pytest.mark.parametrize(
    ("rate", "least_s", "most_s"), [(Rate(20, 20.0), 0.4, 2.0), (None, 0, 0.5)]
)
def test_connections_are_drained_at_the_pace_of_the_setting(
    bridge: Bridge,
    connect: Callable[..., Peers],
    rate: Rate | None,
    least_s: float,
    most_s: float,
) -> None:
    many = [connect(drain_rate=rate) for _ in range(10)]
    started_at = time.monotonic()
    bridge.stop_nowait()
    closed_at = []
    for peers in many:
        assert peers.client_reads(4)[2:] == b"\x03\xe9"
        closed_at.append(time.monotonic() - started_at)
        peers.client.close()
    assert least_s < max(closed_at) < most_s


def test_a_stop_drains_in_time_however_slow_the_pace(
    bridge: Bridge, connect: Callable[..., Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpd kills a child that does not end."""
    monkeypatch.setattr("apachews_handler.bridge.thread.STOP_SPREAD_S", 0.5)
    many = [connect(drain_rate=Rate(1, 1.0)) for _ in range(10)]
    started_at = time.monotonic()
    bridge.stop_nowait()
    for peers in many:
        assert peers.client_reads(4)[2:] == b"\x03\xe9"
        peers.client.close()
    assert time.monotonic() - started_at < 2


def test_a_thread_that_cannot_start_leaves_no_file_or_descriptor(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    rundir.open_directory(os.getpid())
    before = set(os.listdir("/proc/self/fd"))

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    for _ in range(2):  # the next request tries again
        with pytest.raises(RuntimeError, match="new thread"):
            the_child.bridge(lambda: None, Lines())
    assert set(os.listdir("/proc/self/fd")) == before
    assert list(temporary.iterdir()) == []
