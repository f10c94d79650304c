"""Clients whose producer is gone: held, resumed, given up; over real Unix sockets."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apachews import wire
from apachews.wire.reader import Item, MessageReader, Moved
from apachews_handler.bridge import reconnect
from apachews_handler.bridge.thread import Bridge
from apachews_handler.endpoints import endpoint_access

from ..conftest import let_pass, wait_for
from ..support.frames import masked
from .test_bridge import OPEN, Peers, stalled

TEXT = wire.encode_frame(wire.TEXT, b"hi")


class Producer:
    """A program that listens on a path, played by hand."""

    def __init__(self, path: Path, backlog: int = 100) -> None:
        path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(backlog)
        self.listener.settimeout(10)
        self.sockets: list[socket.socket] = []

    def accept(self) -> Producer.Client:
        sock = self.listener.accept()[0]
        sock.settimeout(10)
        self.sockets.append(sock)
        return self.Client(sock)

    def close(self) -> None:
        for sock in (self.listener, *self.sockets):
            sock.close()

    class Client:
        """What it has of one client."""

        def __init__(self, sock: socket.socket) -> None:
            self.socket = sock
            self._reader = MessageReader(2**30)
            self._items: list[Item] = []

        def next_item(self) -> Item | None:
            while not self._items:
                data = self.socket.recv(1 << 20)
                if not data:
                    return None
                self._items += self._reader.receive(data)
            return self._items.pop(0)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    before = set(os.listdir("/proc/self/fd"))
    made = Bridge()
    made.start()
    yield made
    made.stop()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "a.ws"


@pytest.fixture
def connect(bridge: Bridge, path: Path) -> Iterator[Callable[..., Peers]]:
    made: list[Peers] = []

    def connect(**settings: object) -> Peers:
        peers = Peers(bridge, path=str(path), **{"hold": 30.0, **settings})  # type: ignore[arg-type]
        made.append(peers)
        assert peers.next_item() == OPEN
        return peers

    yield connect
    for peers in made:
        peers.close()


@pytest.fixture
def listen(path: Path) -> Iterator[Callable[..., Producer]]:
    made: list[Producer] = []

    def listen(backlog: int = 100) -> Producer:
        made.append(Producer(path, backlog))
        return made[-1]

    yield listen
    for producer in made:
        producer.close()


def is_resumed(item: Item | None) -> bool:
    return isinstance(item, wire.Open) and item.resumed and item.id == OPEN.id


def test_a_client_goes_on_with_the_next_producer(
    connect: Callable[..., Peers], listen: Callable[..., Producer]
) -> None:
    peers = connect()
    peers.client.sendall(masked(0x81, b"one"))
    assert peers.next_item() == "one"
    peers.producer.sendall(TEXT + TEXT[:2])
    peers.producer.close()
    assert peers.client_reads(4) == TEXT
    peers.client.sendall(masked(0x81, b"two") + masked(0x89, b"p") + masked(0x81, b"three"))
    assert peers.client_reads(3) == b"\x8a\x01p"  # answered though there is no producer
    client = listen().accept()
    assert is_resumed(client.next_item())
    assert (client.next_item(), client.next_item()) == ("two", "three")
    client.socket.sendall(TEXT)
    assert peers.client_reads(4) == TEXT
    assert not peers.log.lines


def test_what_is_sent_meanwhile_has_a_bound_and_is_all_delivered(
    connect: Callable[..., Peers], listen: Callable[..., Producer]
) -> None:
    peers = connect(max_buffer=8192)
    peers.producer.close()
    peers.client.setblocking(False)
    sent = 0
    while select.select([], [peers.client], [], 0.5)[1]:
        try:
            peers.client.sendall(masked(0x82, sent.to_bytes(4, "big") * 1000))
        except BlockingIOError:
            break  # half a frame: enough
        sent += 1
    assert sent > 100
    assert peers.connection.session.backlog_bytes <= 2 * 8192
    client = listen().accept()
    assert is_resumed(client.next_item())
    for count in range(sent):
        assert client.next_item() == count.to_bytes(4, "big") * 1000


@pytest.mark.parametrize("moves", [False, True])
def test_a_slow_client_gets_all_that_its_last_producer_said(
    connect: Callable[..., Peers], listen: Callable[..., Producer], moves: bool
) -> None:
    """However long it reads: for longer than it is held, or has to leave."""
    peers = connect(max_buffer=4096, hold=0.5, close_timeout=0.5)
    frame = wire.encode_frame(wire.BINARY, b"x" * 1000)
    if moves:
        peers.producer.sendall(wire.encode_frame(wire.MOVE, b""))
        assert peers.next_item() == Moved()
        peers.client.sendall(masked(0x81, b"for the next"))
    peers.producer.setblocking(False)
    sent, begun = divmod(stalled(peers.producer, frame), len(frame))
    assert not begun
    peers.producer.close()
    wait_for(lambda: peers.connection.producer_mask == -1)
    started_at = time.monotonic()
    while time.monotonic() - started_at < 2:  # it goes on taking a little
        assert peers.client_reads(len(frame)) == frame
        sent -= 1
        let_pass(0.05)
    next_one = listen()
    for _ in range(sent):
        assert peers.client_reads(len(frame)) == frame
    client = next_one.accept()
    assert is_resumed(client.next_item())
    if moves:
        assert client.next_item() == "for the next"
    client.socket.sendall(TEXT)
    assert peers.client_reads(4) == TEXT
    assert not peers.log.lines


def test_nobody_comes(connect: Callable[..., Peers]) -> None:
    peers = connect(hold=0.3)
    peers.producer.close()
    assert peers.client_reads(4) == b"\x88\x16\x03\xf4"
    peers.client.close()
    wait_for(lambda: peers.log.lines)
    assert "(PRODUCER_LEFT) code=1012" in peers.log.lines[0][1]
    assert peers.released == [True]


def test_one_probe_a_path_however_many_wait(
    connect: Callable[..., Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = []

    def fail(path: str, directories: tuple[str, ...]) -> object:
        probes.append(path)
        return reconnect._Found.NOBODY

    monkeypatch.setattr(reconnect, "_connect", fail)
    many = [connect() for _ in range(20)]
    for peers in many:
        peers.producer.close()
    let_pass(1.0)
    # Once for each that came, at the most, and then as if there were one.
    assert 5 <= len(probes) <= 30
    before = len(probes)
    let_pass(1.0)
    assert len(probes) - before <= 3


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Paths with links that the bridge walks."""
    walked: list[bytes] = []
    walk = endpoint_access._walk

    def count(path: bytes, links: list[endpoint_access._Link]) -> int:
        walked.append(path)
        return walk(path, links)

    monkeypatch.setattr(endpoint_access, "_walk", count)
    return walked


TOO_LONG = "./" * endpoint_access.MAX_STEPS + "other.ws"


def test_a_refused_path_is_tried_rarely(
    connect: Callable[..., Peers], walks: list[bytes], path: Path
) -> None:
    """A walk along many links takes the bridge's time; more clients cause no more walks."""
    many = [connect() for _ in range(20)]
    path.symlink_to(TOO_LONG)
    for peers in many:
        peers.producer.close()
        wait_for(lambda peers=peers: peers.connection.producer_fd == -1)  # type: ignore[misc]
    let_pass(1.0)
    assert walks == [os.fsencode(path)]


def test_a_path_that_was_refused_is_tried_again(
    connect: Callable[..., Peers],
    listen: Callable[..., Producer],
    monkeypatch: pytest.MonkeyPatch,
    walks: list[bytes],
    path: Path,
) -> None:
    monkeypatch.setattr(reconnect, "REFUSED_DELAY_S", 0.1)
    peers = connect()
    path.symlink_to(TOO_LONG)
    peers.producer.close()
    wait_for(lambda: len(walks) >= 2)
    assert is_resumed(listen().accept().next_item())


def test_many_are_resumed_through_a_small_backlog(
    connect: Callable[..., Peers], listen: Callable[..., Producer]
) -> None:
    many = [connect() for _ in range(50)]
    for peers in many:
        peers.producer.close()
    producer = listen(backlog=2)
    for _ in many:
        assert is_resumed(producer.accept().next_item())


@pytest.mark.parametrize("says_something", [False, True])
def test_a_producer_that_ends_with_each_client(
    connect: Callable[..., Peers], listen: Callable[..., Producer], says_something: bool
) -> None:
    """It is asked again at a pace; where it never says a word, until the hold is over."""
    peers = connect(hold=1.2)
    producer = listen()
    peers.producer.close()
    asked = 0
    end_at = time.monotonic() + 2.5
    while time.monotonic() < end_at and not select.select([peers.client], [], [], 0)[0]:
        if not select.select([producer.listener], [], [], 0.05)[0]:
            continue
        asked += 1
        client = producer.accept()
        if says_something:
            client.socket.sendall(TEXT)
            client.socket.close()
            assert peers.client_reads(4) == TEXT
        # (Also with OPEN still unread, which is a reset for the bridge.)
        client.socket.close()
    assert 2 <= asked <= 7
    if not says_something:
        assert time.monotonic() < end_at
        assert peers.client_reads(4) == b"\x88\x16\x03\xf4"


def test_a_slow_client_stays_when_it_has_taken_what_the_dead_one_said(
    connect: Callable[..., Peers], listen: Callable[..., Producer]
) -> None:
    peers = connect(close_timeout=0.5)
    message = wire.encode_frame(wire.BINARY, b"x" * 60_000)
    for _ in range(200):  # far more than the kernel and the bridge hold
        if not select.select([], [peers.producer], [], 0.2)[1]:
            break
        peers.producer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            peers.producer.send(message)
    peers.producer.close()
    let_pass(0.2)
    received = 0
    while select.select([peers.client], [], [], 0.5)[0]:
        received += len(peers.client.recv(1 << 20))
    client = listen().accept()
    assert is_resumed(client.next_item())
    let_pass(1.0)  # longer than it would have had to go
    client.socket.sendall(TEXT)
    assert peers.client_reads(4) == TEXT
    assert not peers.log.lines


@pytest.mark.parametrize("is_polite", [True, False])
def test_who_leaves_while_his_producer_moves_has_had_his_say(
    connect: Callable[..., Peers], listen: Callable[..., Producer], is_polite: bool
) -> None:
    peers = connect()
    peers.producer.sendall(wire.encode_frame(wire.MOVE, b""))
    assert peers.next_item() == Moved()
    peers.client.sendall(masked(0x81, b"last") + (masked(0x88, b"\x03\xe8") if is_polite else b""))
    if is_polite:
        assert peers.client_reads(4) == b"\x88\x02\x03\xe8"
    peers.client.close()
    wait_for(lambda: peers.connection.client_fd == -1)
    peers.producer.sendall(TEXT)  # to nobody
    peers.producer.close()
    client = listen().accept()
    assert is_resumed(client.next_item())
    assert client.next_item() == "last"
    assert client.next_item() == (wire.Close(1000, "") if is_polite else None)


def test_waiting_for_the_next_producer_takes_no_processor(connect: Callable[..., Peers]) -> None:
    peers = connect(idle_timeout=0.3, ping_interval=0.3, send_timeout=0.3, hold=2.0)
    peers.producer.close()
    peers.client.sendall(masked(0x81, b"last"))
    wait_for(lambda: peers.connection.session.backlog_bytes)
    peers.client.close()
    wait_for(lambda: peers.connection.client_fd == -1)
    used = sum(os.times()[:2])
    let_pass(1.0)
    assert sum(os.times()[:2]) - used < 0.3, "it spins"
    wait_for(lambda: peers.log.lines)


def test_a_producer_that_crashes_and_comes_again_is_waited_for(
    connect: Callable[..., Peers], path: Path
) -> None:
    """Another process each time; the client stays."""
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
        "s.listen(); s.accept()[0].recv(99)"
    )
    peers = connect()
    peers.producer.close()
    for _ in range(3):
        path.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=10)
    assert not peers.log.lines


def test_a_client_that_leaves_meanwhile_is_not_waited_for(connect: Callable[..., Peers]) -> None:
    silent, told = connect(), connect()
    for peers in (silent, told):
        peers.producer.close()
    told.client.sendall(masked(0x88, b"\x03\xe8"))
    assert told.client_reads(4) == b"\x88\x02\x03\xe8"
    for peers in (silent, told):
        peers.client.close()
        wait_for(lambda peers=peers: peers.log.lines)  # type: ignore[misc]
        assert peers.connection.is_closed


@pytest.mark.parametrize("is_polite", [True, False])
def test_the_last_words_of_one_who_left_are_delivered(
    connect: Callable[..., Peers], listen: Callable[..., Producer], is_polite: bool
) -> None:
    peers = connect()
    peers.producer.close()
    peers.client.sendall(masked(0x81, b"last") + (masked(0x88, b"\x03\xe8") if is_polite else b""))
    if is_polite:
        assert peers.client_reads(4) == b"\x88\x02\x03\xe8"
    peers.client.close()
    wait_for(lambda: peers.connection.client_fd == -1)
    client = listen().accept()
    assert is_resumed(client.next_item())
    assert client.next_item() == "last"
    assert client.next_item() == (wire.Close(1000, "") if is_polite else None)
    wait_for(lambda: peers.log.lines)


def test_a_producer_moves_its_client_and_nothing_is_lost(
    connect: Callable[..., Peers], listen: Callable[..., Producer]
) -> None:
    peers = connect()
    peers.client.sendall(masked(0x81, b"one") + masked(0x01, b"tw"))
    assert peers.next_item() == "one"
    producer = listen()
    peers.producer.sendall(wire.encode_frame(wire.MOVE, b""))
    let_pass(0.1)
    peers.client.sendall(masked(0x80, b"o") + masked(0x81, b"three"))
    assert (peers.next_item(), peers.next_item()) == ("two", Moved())
    peers.producer.sendall(TEXT)
    peers.producer.close()
    client = producer.accept()
    assert is_resumed(client.next_item())
    assert client.next_item() == "three"
    client.socket.sendall(TEXT)
    assert peers.client_reads(8) == TEXT * 2


def test_a_producer_that_takes_nothing_more_is_replaced_when_it_ends(
    connect: Callable[..., Peers], listen: Callable[..., Producer]
) -> None:
    peers = connect()
    peers.producer.shutdown(socket.SHUT_RD)
    peers.client.sendall(masked(0x81, b"one") + masked(0x81, b"two"))
    wait_for(lambda: peers.connection.session.backlog_bytes)
    used = sum(os.times()[:2])
    let_pass(0.5)
    assert sum(os.times()[:2]) - used < 0.3, "it spins"
    peers.producer.close()
    client = listen().accept()
    assert is_resumed(client.next_item())
    assert (client.next_item(), client.next_item()) == ("one", "two")


def test_a_stop_tells_those_that_are_held(bridge: Bridge, connect: Callable[..., Peers]) -> None:
    peers = connect()
    peers.producer.close()
    wait_for(lambda: peers.connection.producer_fd == -1)
    bridge.begin_stop()
    assert peers.client_reads(4)[2:] == b"\x03\xe9"
