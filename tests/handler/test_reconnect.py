"""bridge.reconnect: clients without a producer are held, resumed or closed; over real sockets."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from apachews import Server, wire
from apachews._listening import loopback
from apachews.wire.reader import Item, MessageReader, Moved
from apachews_handler.bridge import reconnect
from apachews_handler.bridge import reconnect as module
from apachews_handler.bridge.connection import Connection
from apachews_handler.bridge.reconnect import BATCH, Reconnector
from apachews_handler.bridge.thread import Bridge
from apachews_handler.endpoints import endpoint_access
from apachews_handler.settings import Settings

from ..conftest import let_pass, wait_for
from ..support.frames import masked
from .test_bridge import OPEN, Peers, stalled

TEXT = wire.encode_frame(wire.TEXT, b"hi")


class Producer:
    """A program that listens on a path, controlled by the test."""

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
        """Its end of one connection."""

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
        peers = Peers(bridge, path=str(path), **{"hold_s": 30.0, **settings})  # type: ignore[arg-type]
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


def test_a_client_continues_with_the_next_producer(
    connect: Callable[..., Peers], listen: Callable[..., Producer]
) -> None:
    peers = connect()
    peers.client.sendall(masked(0x81, b"one"))
    assert peers.next_item() == "one"
    peers.producer.sendall(TEXT + TEXT[:2])
    peers.producer.close()
    assert peers.client_reads(4) == TEXT
    peers.client.sendall(masked(0x81, b"two") + masked(0x89, b"p") + masked(0x81, b"three"))
    assert peers.client_reads(3) == b"\x8a\x01p"  # answered without a producer
    client = listen().accept()
    assert is_resumed(client.next_item())
    assert (client.next_item(), client.next_item()) == ("two", "three")
    client.socket.sendall(TEXT)
    assert peers.client_reads(4) == TEXT
    assert not peers.log.lines


def test_messages_during_a_hold_are_bounded_and_all_delivered(
    connect: Callable[..., Peers], listen: Callable[..., Producer]
) -> None:
    peers = connect(max_buffer_bytes=8192)
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
def test_a_slow_client_gets_everything_from_its_last_producer(
    connect: Callable[..., Peers], listen: Callable[..., Producer], moves: bool
) -> None:
    """Although it reads for longer than the hold and the close timeout last."""
    peers = connect(max_buffer_bytes=4096, hold_s=0.5, close_timeout_s=0.5)
    frame = wire.encode_frame(wire.BINARY, b"x" * 1000)
    if moves:
        peers.producer.sendall(wire.encode_frame(wire.MOVE, b""))
        assert peers.next_item() == Moved()
        peers.client.sendall(masked(0x81, b"for the next"))
    peers.producer.setblocking(False)
    sent, cut_at = divmod(stalled(peers.producer, frame), len(frame))
    assert not cut_at
    peers.producer.close()
    wait_for(lambda: peers.connection.producer.mask == -1)
    started_at = time.monotonic()
    while time.monotonic() - started_at < 2:  # it keeps reading a little
        assert peers.client_reads(len(frame)) == frame
        sent -= 1
        let_pass(0.05)
    successor = listen()
    for _ in range(sent):
        assert peers.client_reads(len(frame)) == frame
    client = successor.accept()
    assert is_resumed(client.next_item())
    if moves:
        assert client.next_item() == "for the next"
    client.socket.sendall(TEXT)
    assert peers.client_reads(4) == TEXT
    assert not peers.log.lines


def test_a_client_is_closed_when_the_hold_ends(connect: Callable[..., Peers]) -> None:
    peers = connect(hold_s=0.3)
    peers.producer.close()
    assert peers.client_reads(4) == b"\x88\x16\x03\xf4"
    peers.client.close()
    wait_for(lambda: peers.log.lines)
    assert "(PRODUCER_LEFT) code=1012" in peers.log.lines[0][1]
    assert peers.released == [True]


def test_one_attempt_per_endpoint_however_many_clients_wait(
    connect: Callable[..., Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def fail(path: str, directories: tuple[str, ...]) -> object:
        attempts.append(path)
        return reconnect._Failure.NOT_LISTENING

    monkeypatch.setattr(reconnect, "_connect", fail)
    many = [connect() for _ in range(20)]
    for peers in many:
        peers.producer.close()
    let_pass(1.0)
    # At most one attempt per added client, and then as for one client.
    assert 5 <= len(attempts) <= 30
    before = len(attempts)
    let_pass(1.0)
    assert len(attempts) - before <= 3


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
    """A walk along many links blocks the bridge; more clients must not cause more walks."""
    many = [connect() for _ in range(20)]
    path.symlink_to(TOO_LONG)
    for peers in many:
        peers.producer.close()
        wait_for(lambda peers=peers: peers.connection.producer.fd == -1)  # type: ignore[misc]
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
    """It gets the client again after a delay; until the hold ends, unless it sends something."""
    peers = connect(hold_s=1.2)
    producer = listen()
    peers.producer.close()
    attempts = 0
    end_at = time.monotonic() + 2.5
    while time.monotonic() < end_at and not select.select([peers.client], [], [], 0)[0]:
        if not select.select([producer.listener], [], [], 0.05)[0]:
            continue
        attempts += 1
        client = producer.accept()
        if says_something:
            client.socket.sendall(TEXT)
            client.socket.close()
            assert peers.client_reads(4) == TEXT
        # With the OPEN unread, this is a reset for the bridge.
        client.socket.close()
    assert 2 <= attempts <= 7
    if not says_something:
        assert time.monotonic() < end_at
        assert peers.client_reads(4) == b"\x88\x16\x03\xf4"


def test_a_slow_client_stays_once_it_has_read_everything_of_the_dead_producer(
    connect: Callable[..., Peers], listen: Callable[..., Producer]
) -> None:
    peers = connect(close_timeout_s=0.5)
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
    let_pass(1.0)  # longer than the close timeout
    client.socket.sendall(TEXT)
    assert peers.client_reads(4) == TEXT
    assert not peers.log.lines


@pytest.mark.parametrize("sends_close", [True, False])
def test_messages_of_a_client_that_leaves_during_a_move_are_delivered(
    connect: Callable[..., Peers], listen: Callable[..., Producer], sends_close: bool
) -> None:
    peers = connect()
    peers.producer.sendall(wire.encode_frame(wire.MOVE, b""))
    assert peers.next_item() == Moved()
    peers.client.sendall(
        masked(0x81, b"last") + (masked(0x88, b"\x03\xe8") if sends_close else b"")
    )
    if sends_close:
        assert peers.client_reads(4) == b"\x88\x02\x03\xe8"
    peers.client.close()
    wait_for(lambda: peers.connection.client.fd == -1)
    peers.producer.sendall(TEXT)  # the client is gone
    peers.producer.close()
    client = listen().accept()
    assert is_resumed(client.next_item())
    assert client.next_item() == "last"
    assert client.next_item() == (wire.Close(1000, "") if sends_close else None)


def test_messages_of_a_client_that_left_are_delivered_though_the_old_producer_hangs(
    connect: Callable[..., Peers], listen: Callable[..., Producer]
) -> None:
    peers = connect(close_timeout_s=0.3)
    peers.producer.sendall(wire.encode_frame(wire.MOVE, b""))
    assert peers.next_item() == Moved()
    peers.client.sendall(masked(0x81, b"last"))
    wait_for(lambda: peers.connection.session.backlog_bytes)
    peers.client.close()
    wait_for(lambda: peers.connection.client.fd == -1)
    assert peers.connection.producer.fd != -1  # it never closes its end
    client = listen().accept()
    assert is_resumed(client.next_item())
    assert client.next_item() == "last"
    assert client.next_item() is None


def test_a_hold_costs_no_processor(connect: Callable[..., Peers]) -> None:
    peers = connect(idle_timeout_s=0.3, ping_interval_s=0.3, send_timeout_s=0.3, hold_s=2.0)
    peers.producer.close()
    peers.client.sendall(masked(0x81, b"last"))
    wait_for(lambda: peers.connection.session.backlog_bytes)
    peers.client.close()
    wait_for(lambda: peers.connection.client.fd == -1)
    used = sum(os.times()[:2])
    let_pass(1.0)
    assert sum(os.times()[:2]) - used < 0.3, "it spins"
    wait_for(lambda: peers.log.lines)


def test_a_client_outlives_a_producer_that_crashes_several_times(
    connect: Callable[..., Peers], path: Path
) -> None:
    """Each producer is another process."""
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


def test_a_client_that_leaves_during_the_hold_is_closed(connect: Callable[..., Peers]) -> None:
    silent, closing = connect(), connect()
    for peers in (silent, closing):
        peers.producer.close()
    closing.client.sendall(masked(0x88, b"\x03\xe8"))
    assert closing.client_reads(4) == b"\x88\x02\x03\xe8"
    for peers in (silent, closing):
        peers.client.close()
        wait_for(lambda peers=peers: peers.log.lines)  # type: ignore[misc]
        assert peers.connection.is_closed


@pytest.mark.parametrize("sends_close", [True, False])
def test_the_last_messages_of_a_client_that_left_are_delivered(
    connect: Callable[..., Peers], listen: Callable[..., Producer], sends_close: bool
) -> None:
    peers = connect()
    peers.producer.close()
    peers.client.sendall(
        masked(0x81, b"last") + (masked(0x88, b"\x03\xe8") if sends_close else b"")
    )
    if sends_close:
        assert peers.client_reads(4) == b"\x88\x02\x03\xe8"
    peers.client.close()
    wait_for(lambda: peers.connection.client.fd == -1)
    client = listen().accept()
    assert is_resumed(client.next_item())
    assert client.next_item() == "last"
    assert client.next_item() == (wire.Close(1000, "") if sends_close else None)
    wait_for(lambda: peers.log.lines)


def test_a_producer_moves_its_client_without_loss(
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


def test_a_producer_that_stopped_reading_is_replaced_when_it_ends(
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


def test_a_stop_closes_clients_that_are_held(bridge: Bridge, connect: Callable[..., Peers]) -> None:
    peers = connect()
    peers.producer.close()
    wait_for(lambda: peers.connection.producer.fd == -1)
    bridge.stop_nowait()
    assert peers.client_reads(4)[2:] == b"\x03\xe9"


# bridge.reconnect: the search for a producer on a loopback port.


class Held:
    """The attributes of a connection that ``Reconnector`` reads."""

    def __init__(self, path: Path) -> None:
        self.endpoint = str(path)
        self.settings = Settings()


def hold(reconnector: Reconnector, path: Path, count: int = 1) -> list[Connection]:
    held = [cast(Connection, Held(path)) for _ in range(count)]
    for one in held:
        reconnector.add(one, 0.0)
    return held


def connect_due(reconnector: Reconnector) -> list[socket.socket]:
    """Make the attempts that are due, as the loop does."""
    now = time.monotonic()
    return (
        [sock for _, sock in reconnector.connect_due(now)] if reconnector.next_at() <= now else []
    )


@contextmanager
def squatter(path: Path, serve: Callable[[socket.socket], Any]) -> Iterator[list[socket.socket]]:
    """Listen on the port that a file names, without knowing its token."""
    accepted: list[socket.socket] = []
    with socket.create_server((loopback.HOST, 0)) as listener:
        address = loopback.Address(listener.getsockname()[1], loopback.new_token())
        path.write_bytes(address.encode())
        path.chmod(0o660)
        listener.settimeout(0.02)
        ended = threading.Event()

        def run() -> None:
            while not ended.is_set():
                try:
                    accepted.append(listener.accept()[0])
                except TimeoutError:
                    continue
                serve(accepted[-1])

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield accepted
        finally:
            ended.set()
            thread.join()
            for sock in accepted:
                sock.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resume(reconnector: Reconnector, path: Path, count: int) -> None:
    """Start a producer, and check that all clients get a socket to it."""
    with Server(path, transport="loopback") as server:
        found: list[socket.socket] = []

        def are_all_found() -> bool:
            server.dequeue(0.001)
            found.extend(connect_due(reconnector))
            return len(found) == count

        wait_for(are_all_found)
        for sock in found:
            assert not sock.getblocking()
            sock.close()
    assert not reconnector


@pytest.mark.parametrize(
    "serve",
    [
        lambda sock: None,
        lambda sock: sock.close(),
        lambda sock: sock.sendall(b"x" * 98),
        lambda sock: sock.sendall(b"0" * 32 + b" " + b"0" * 64 + b"\n"),
        lambda sock: sock.sendall(b"x" * 10),
    ],
    ids=["silent", "closes", "rubbish", "proof of another token", "stops"],
)
def test_another_program_on_the_port_of_a_dead_producer_gets_no_client(
    tmp_path: Path, serve: Callable[[socket.socket], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPT_TIMEOUT_S", 0.05)
    path = tmp_path / "a.ws"
    reconnector = Reconnector()
    before = descriptors()
    hold(reconnector, path, 20)
    with squatter(path, serve) as accepted:
        assert wait_for(lambda: connect_due(reconnector) == [] and len(accepted) == 2)
        # One at a time, as long as no producer is authenticated.
        assert len(accepted) == 2
    path.unlink()
    resume(reconnector, path, 20)
    assert descriptors() == before


def test_the_last_client_that_leaves_aborts_the_attempt(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    reconnector = Reconnector()
    with squatter(path, lambda sock: None) as accepted:
        held = hold(reconnector, path, 2)
        before = descriptors()
        wait_for(lambda: connect_due(reconnector) == [] and accepted)
        assert descriptors() == before + 2  # both ends of the attempt
        reconnector.discard(held[0])
        reconnector.discard(held[1])
        assert descriptors() == before + 1


def test_an_aborted_attempt_is_made_again(tmp_path: Path) -> None:
    """A process that was forked aborts the attempts of its parent."""
    path = tmp_path / "a.ws"
    reconnector = Reconnector()
    hold(reconnector, path)
    with squatter(path, lambda sock: None) as accepted:
        wait_for(lambda: connect_due(reconnector) == [] and accepted)
        before = descriptors()
        reconnector.abort_attempts()
        assert descriptors() == before - 1
        assert len(reconnector) == 1
    path.unlink()
    resume(reconnector, path, 1)


def test_many_clients_follow_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    reconnector = Reconnector()
    hold(reconnector, path, 2 * BATCH + 50)
    resume(reconnector, path, 2 * BATCH + 50)


def test_no_program_listens_on_the_port(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    with socket.socket() as unused:
        unused.bind((loopback.HOST, 0))
        address = loopback.Address(unused.getsockname()[1], loopback.new_token())
        path.write_bytes(address.encode())
        path.chmod(0o660)
        reconnector = Reconnector()
        hold(reconnector, path)
        before = descriptors()
        wait_for(
            lambda: (
                connect_due(reconnector) == [] and reconnector.next_at() > time.monotonic() + 0.1
            )
        )
        assert descriptors() == before
