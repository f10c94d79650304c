"""apachews_handler.lifecycle.handover: one owner at any moment, whichever process ends."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apachews.wire.reader import Item, MessageReader
from apachews_handler.bridge.connection import Connection
from apachews_handler.bridge.loop import Loop
from apachews_handler.bridge.transport import PlainTransport, RelayedTransport, client_tcp_state
from apachews_handler.lifecycle import handover
from apachews_handler.lifecycle.handover import SUFFIX, Giver, Taker
from apachews_handler.lifecycle.portable import FORMAT, encode
from apachews_handler.native import tls_relay
from apachews_handler.native.openssl import TlsSession
from apachews_handler.native.tls_relay import Relay
from apachews_handler.protocol.session import Session
from apachews_handler.settings import Settings
from apachews_handler.shared import rundir, slots

from ..conftest import wait_for
from ..support.frames import masked
from .test_bridge import OPEN, Lines, tcp_pair

APACHE = os.getpid()
OLDEST, ELDER, YOUNGER = (f"{APACHE}.{number:020}.1" for number in range(3))


class FileLines(Lines):
    """A log with a descriptor."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = path.open("ab")

    def descriptor(self) -> int | None:
        return self.file.fileno()


class Client:
    """The far ends of a connection of a loop."""

    def __init__(self, loop: Loop, log: Lines, admission: slots.Permit | None = None) -> None:
        settings = Settings()
        self.socket, near = tcp_pair()
        self.producer, producer_near = socket.socketpair()
        for sock in (near, producer_near):
            sock.setblocking(False)
        session = Session(settings)
        session.open(OPEN)
        self.connection = Connection(
            transport=PlainTransport(near),
            producer_socket=producer_near,
            session=session,
            settings=settings,
            endpoint="/a.ws",
            name="[x]",
            log=log,
            admission=admission,
        )
        self._reader = MessageReader(2**30)
        self._items: list[Item] = []
        loop.add(self.connection)
        for sock in (self.socket, self.producer):
            sock.settimeout(0)

    def says(self, text: bytes, *loops: Loop) -> None:
        """Check that a message reaches the producer, and its answer the client."""
        self.socket.sendall(masked(0x81, text))
        turn(*loops)
        self._items += self._reader.receive(self.producer.recv(1 << 16))
        assert self._items.pop() == text.decode()
        self.producer.sendall(b"\x81" + bytes([len(text)]) + text)
        turn(*loops)
        assert self.socket.recv(1 << 16) == b"\x81" + bytes([len(text)]) + text

    def close(self) -> None:
        self.socket.close()
        self.producer.close()


def turn(*loops: Loop, times: int = 6) -> bool:
    """Let each loop do what is due; return False."""
    for _ in range(times):
        for loop in loops:
            loop.turn(0.001)
    return False


class Site:
    """An elder custodian and a younger one, in one process."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(rundir.open_directory(APACHE))
        self.log = FileLines(directory / "error.log")
        self.elder, self.younger = Loop(), Loop()
        self.load = 0.0
        self._clients: list[Client] = []
        self._takers: list[Taker] = []
        self.relay = Relay()
        self.giver = Giver(self.younger, str(self.directory), YOUNGER, lambda: 0.0, self.relay)

    def taker(self) -> Taker:
        taker = Taker(self.elder, str(self.directory), ELDER, lambda: self.load)
        self._takers.append(taker)
        return taker

    def client(self, admission: slots.Permit | None = None) -> Client:
        self._clients.append(Client(self.younger, self.log, admission))
        turn(self.younger)
        return self._clients[-1]

    def give(self) -> None:
        self.giver.run(time.monotonic())
        turn(self.younger, self.elder)
        wait_for(lambda: turn(self.younger, self.elder) or not self.giver.is_busy)

    def close(self) -> None:
        self.giver.stop()
        for taker in self._takers:
            taker.close()
        for loop in (self.elder, self.younger):
            loop.close()
        for client in self._clients:
            client.close()
        self.log.file.close()
        gc.collect()  # a log's descriptor is closed with its last user


@pytest.fixture
def site(temporary: Path, short_path: Path) -> Iterator[Site]:
    made = Site(short_path)
    yield made
    made.close()


@contextlib.contextmanager
def taker_by_hand(site: Site, name: str = OLDEST) -> Iterator[socket.socket]:
    """A listener in the place of an older custodian."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(site.directory / (name + SUFFIX)))
        listener.listen(8)
        listener.settimeout(5)
        yield listener
    (site.directory / (name + SUFFIX)).unlink(missing_ok=True)


@contextlib.contextmanager
def giver_by_hand(site: Site) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(site.directory / (ELDER + SUFFIX)))
        sock.settimeout(0)
        turn(site.elder)
        yield sock


def answer_to(site: Site, sock: socket.socket, data: bytes, fds: list[int] | None = None) -> bytes:
    socket.send_fds(sock, [data], fds or [])
    turn(site.elder)
    try:
        return sock.recv(10)
    except BlockingIOError:
        return b"nothing"


HELLO = f"H{FORMAT} 0.000".encode()


def test_connections_move_to_the_elder_and_go_on(site: Site) -> None:
    site.taker()
    clients = [site.client() for _ in range(20)]
    for client in clients:
        client.says(b"before", site.younger)
    site.give()
    assert site.younger.is_empty
    assert not site.giver.is_busy
    assert len(site.elder.connections()) == 20
    for client in clients:
        client.says(b"after", site.elder)
        assert client.connection.transport.fileno() == -1
        assert client.connection.producer_socket.fileno() == -1


def test_what_is_on_its_way_moves_along(site: Site) -> None:
    site.taker()
    client = site.client()
    client.socket.sendall(masked(0x81, b"first") + masked(0x81, b"second")[:7])
    turn(site.younger)
    site.give()
    assert site.elder.is_empty, "half a frame was read"
    client.socket.sendall(masked(0x81, b"second")[7:])
    turn(site.younger)
    site.giver.run(time.monotonic())
    turn(site.younger)  # it is offered, and in neither loop
    client.socket.sendall(masked(0x81, b"third"))
    client.producer.sendall(b"\x81\x05reply")
    turn(site.elder, site.younger, times=30)
    assert len(site.elder.connections()) == 1
    items = MessageReader(2**20).receive(client.producer.recv(1 << 16))
    assert items[-3:] == ["first", "second", "third"]
    assert client.socket.recv(100) == b"\x81\x05reply"


def test_a_busy_elder_refuses(site: Site) -> None:
    site.taker()
    client = site.client()
    site.load = handover.MAX_LOAD + 0.01
    site.give()
    assert site.elder.is_empty
    assert not site.giver.is_needed, "asked again later, not at once"
    client.says(b"here", site.younger)
    site.load = 0.0
    site.give()
    client.says(b"there", site.elder)


def test_the_next_older_one_is_asked(site: Site) -> None:
    site.taker()
    client = site.client()
    with taker_by_hand(site) as oldest:
        site.giver.run(time.monotonic())
        sock, _ = oldest.accept()
        with sock:
            assert sock.recv(100) == HELLO
            sock.send(b"n")
        turn(site.younger, site.elder, times=30)
    client.says(b"there", site.elder)


@pytest.mark.parametrize("hello", [b"H", b"H0 0.0", b"H99 0.0", b"Hx", b"H1 nan", b"H1 0.0 more"])
def test_a_giver_of_another_version_is_refused(site: Site, hello: bytes) -> None:
    site.taker()
    with giver_by_hand(site) as sock:
        assert answer_to(site, sock, hello) == b"n"
        # Whatever it says then ends the conversation.
        assert answer_to(site, sock, b"O{}") == b""


@pytest.mark.parametrize("data", [b"O{}", b"C", b"?", b"yes"])
def test_without_a_greeting_nothing_is_taken(site: Site, data: bytes) -> None:
    site.taker()
    with giver_by_hand(site) as sock:
        assert answer_to(site, sock, data) == b""


def test_an_offer_that_does_not_fit_is_refused_and_its_descriptors_are_closed(site: Site) -> None:
    site.taker()
    client = site.client()
    document = b"O" + (encode(client.connection) or b"")
    fds = [client.connection.client.fd, client.connection.producer.fd]
    log = site.log.file.fileno()
    before = _descriptors()
    for data, offered in (
        (b"O{}", [*fds, log]),
        (document, []),
        (document, fds),
        (document, [*fds, log, log]),
        (document, [log, log, log]),
        (document.replace(b'"session"', b'"sessions"'), [*fds, log]),
    ):
        with giver_by_hand(site) as sock:
            assert answer_to(site, sock, HELLO) == b"y"
            assert answer_to(site, sock, data, offered) == b"n"
    turn(site.elder)
    assert _descriptors() == before
    assert site.elder.is_empty
    client.says(b"here", site.younger)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_giver_that_ends_before_it_commits_keeps_its_client(site: Site) -> None:
    site.taker()
    client = site.client()
    document = b"O" + (encode(client.connection) or b"")
    fds = [client.connection.client.fd, client.connection.producer.fd, site.log.file.fileno()]
    with giver_by_hand(site) as sock:
        assert answer_to(site, sock, HELLO) == b"y"
        assert answer_to(site, sock, document, fds) == b"y"
        # One at a time.
        assert answer_to(site, sock, document, fds) == b""
    turn(site.elder)
    assert site.elder.is_empty
    client.says(b"here", site.younger)


def test_places_of_an_offer_without_commit_stay_with_the_giver(site: Site) -> None:
    places = slots.SlotFile(str(site.directory / f"{APACHE}.slots"))
    others = slots.SlotFile(str(site.directory / f"{APACHE}.slots"))
    position = places.acquire("all of 1", 1)
    assert position is not None
    site.taker()
    client = site.client(slots.Permit(places, [position]))
    document = b"O" + (encode(client.connection) or b"")
    fds = [client.connection.client.fd, client.connection.producer.fd, site.log.file.fileno()]
    with giver_by_hand(site) as sock:
        assert answer_to(site, sock, HELLO) == b"y"
        before = _descriptors()
        assert answer_to(site, sock, document, [*fds, places.fileno()]) == b"y"
    turn(site.elder)
    assert _descriptors() <= before, "all copies are closed but that of the log, for the next"
    assert others.acquire("all of 1", 1) is None
    client.close()
    turn(site.younger)
    others._regions.clear()
    assert others.acquire("all of 1", 1) == position
    for opened in (places, others):
        opened.close()


@pytest.mark.parametrize("stage", ["greeting", "offer"])
def test_a_taker_that_ends_leaves_the_client_to_the_giver(site: Site, stage: str) -> None:
    client = site.client()
    with taker_by_hand(site) as oldest:
        site.giver.run(time.monotonic())
        sock, _ = oldest.accept()
        with sock:
            sock.recv(100)
            if stage == "offer":
                sock.send(b"y")
                turn(site.younger)
                data, fds, _, _ = socket.recv_fds(sock, 1 << 17, 8)
                assert data[:1] == b"O"
                assert site.younger.is_empty, "no process reads it now"
                assert site.giver.is_busy
                for fd in fds:
                    os.close(fd)
        turn(site.younger)
    assert not site.giver.is_busy
    client.says(b"here", site.younger)


def test_a_taker_that_ends_before_the_commit_leaves_the_client_to_the_giver(site: Site) -> None:
    client = site.client()
    with taker_by_hand(site) as oldest:
        site.giver.run(time.monotonic())
        sock, _ = oldest.accept()
        with sock:
            sock.recv(100)
            sock.send(b"y")
            turn(site.younger)
            _, fds, _, _ = socket.recv_fds(sock, 1 << 17, 8)
            sock.send(b"y")
        for fd in fds:
            os.close(fd)
        turn(site.younger)
    client.says(b"here", site.younger)


def test_a_taker_that_says_nothing_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = site.client()
    with taker_by_hand(site) as oldest:
        site.giver.run(time.monotonic())
        sock, _ = oldest.accept()
        with sock:
            sock.send(b"y")
            turn(site.younger)
            _, fds, _, _ = socket.recv_fds(sock, 1 << 17, 8)
            _, fds, _, _ = socket.recv_fds(sock, 1 << 17, 8)
            site.giver.run(time.monotonic())
            assert site.giver.is_busy, "it has some time"
            site.giver.run(time.monotonic() + handover.ANSWER_S + 1)
            assert not site.giver.is_busy
            with pytest.raises(BrokenPipeError):
                sock.send(b"y")  # too late
            assert sock.recv(100) == b"", "there was no commit"
            for fd in fds:
                os.close(fd)
    client.says(b"here", site.younger)


def test_what_was_offered_is_taken_back_at_the_end(site: Site) -> None:
    client = site.client()
    with taker_by_hand(site) as oldest:
        site.giver.run(time.monotonic())
        sock, _ = oldest.accept()
        with sock:
            sock.send(b"y")
            turn(site.younger)
            assert site.younger.is_empty
            site.giver.stop()
    assert site.younger.connections() == {client.connection}
    client.says(b"here", site.younger)


def test_the_socket_of_a_process_that_was_killed_is_removed(site: Site) -> None:
    path = site.directory / (OLDEST + SUFFIX)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    client = site.client()
    site.give()
    assert not path.exists()
    client.says(b"here", site.younger)


def test_a_younger_one_is_not_asked(site: Site) -> None:
    client = site.client()
    with taker_by_hand(site, f"{APACHE}.{9:020}.1") as younger:
        younger.settimeout(0)
        site.give()
        with pytest.raises(BlockingIOError):
            younger.accept()
    assert not site.giver.is_needed
    client.says(b"here", site.younger)


def test_a_request_with_long_headers_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.taker()
    long, short = site.client(), site.client()
    limit = len(encode(short.connection) or b"") + 10
    monkeypatch.setattr(handover, "MAX_DOCUMENT_BYTES", limit)
    session = long.connection.session
    assert isinstance(session, Session)
    session._open_frame += b"x" * 100
    site.give()
    long.says(b"here", site.younger)
    short.says(b"there", site.elder)


def test_places_stay_taken_until_the_client_leaves(site: Site) -> None:
    places = slots.SlotFile(str(site.directory / f"{APACHE}.slots"))
    others = slots.SlotFile(str(site.directory / f"{APACHE}.slots"))
    taken = [places.acquire("all of 2", 2) for _ in range(2)]
    site.taker()
    clients = [site.client(slots.Permit(places, [p])) for p in taken if p is not None]
    site.give()
    assert site.younger.is_empty
    places.close()  # its process ends
    assert others.acquire("all of 2", 2) is None
    clients[0].close()
    turn(site.elder)
    others._regions.clear()
    assert others.acquire("all of 2", 2) == taken[0]
    clients[1].close()
    turn(site.elder)
    others._regions.clear()
    others._ours.clear()
    assert others.acquire("all of 2", 2) is not None
    others.close()


def test_the_taker_logs_to_the_same_file(site: Site, short_path: Path) -> None:
    site.taker()
    client = site.client()
    site.give()
    client.close()
    turn(site.elder)
    log = (short_path / "error.log").read_text()
    assert f"[wsgi:info] [pid {os.getpid()}] [x] closed by client" in log
    assert log.endswith("\n")


def test_the_socket_is_removed_at_the_end(site: Site) -> None:
    taker = site.taker()
    assert list(site.directory.glob("*" + SUFFIX))
    taker.close()
    taker.close()
    assert not list(site.directory.glob("*" + SUFFIX))


class Libssl:
    """As much of a library as an offer asks for."""

    def SSL_has_pending(self, ssl: int) -> int:
        return 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_: 1


class Relaying:
    """A relay by hand: what it was given."""

    def __init__(self) -> None:
        self.reserved: list[tuple[TlsSession, socket.socket]] = []
        self.started: list[socket.socket] = []
        self.withdrawn: list[int] = []
        self.is_full = False

    def reserve(self, session: TlsSession, pair: socket.socket) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.reserved.append((session, pair))
        return len(self.reserved)

    def start(self, handle: int, session: TlsSession, pair: socket.socket) -> None:
        self.started += (socket.socket(fileno=session.fileno()), pair.dup())
        session.detach()
        pair.close()

    def withdraw(self, handle: int) -> None:
        self.withdrawn.append(handle)

    def close(self) -> None:
        for sock in self.started:
            sock.close()


class TlsClient(Client):
    """A client whose connection has a TLS session."""

    def __init__(self, loop: Loop, log: Lines) -> None:
        super().__init__(loop, log)
        turn(loop)
        connection = self.connection
        loop.release(connection)
        tls = TlsSession(Libssl(), 1)  # type: ignore[arg-type]
        self.tcp = socket.socket(fileno=os.dup(connection.client.fd))
        tls.take_over(self.tcp)
        connection.transport.close()
        connection.transport = tls
        connection.client.fd = tls.fileno()
        loop.adopt(connection)


@pytest.fixture
def relaying(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relaying]:
    made = Relaying()
    monkeypatch.setattr(tls_relay, "is_available", True)
    site.giver._relay = made  # type: ignore[assignment]
    yield made
    made.close()


def test_the_session_of_a_client_with_tls_moves_and_its_tls_stays(
    site: Site, relaying: Relaying
) -> None:
    site.taker()
    client = TlsClient(site.younger, site.log)
    site.give()
    tcp, pair = relaying.started
    assert site.younger.is_empty
    assert relaying.withdrawn == []
    (moved,) = site.elder.connections()
    assert isinstance(moved.transport, RelayedTransport)
    pair.sendall(masked(0x81, b"decrypted"))
    turn(site.elder)
    items = MessageReader(2**20).receive(client.producer.recv(1 << 16))
    assert items[-1] == "decrypted"
    client.producer.sendall(b"\x81\x05reply")
    turn(site.elder)
    assert pair.recv(100) == b"\x81\x05reply"
    # It asks the client's own connection what has arrived: with no relay, nothing of the reply.
    tcp.sendall(b"x" * 100)
    assert client_tcp_state(moved.transport).acked >= 100
    pair.close()
    turn(site.elder)
    assert site.elder.connections() == set() or moved.session.client_finished
    client.close()


def test_a_session_moves_on_from_one_custodian_to_the_next(site: Site, relaying: Relaying) -> None:
    taker = site.taker()
    client = TlsClient(site.younger, site.log)
    site.give()
    taker.close()
    oldest = Loop()
    last = Taker(oldest, str(site.directory), OLDEST, lambda: 0.0)
    giver = Giver(site.elder, str(site.directory), ELDER, lambda: 0.0, site.relay)
    giver.run(time.monotonic())
    wait_for(lambda: turn(site.elder, oldest) or not giver.is_busy)
    assert site.elder.is_empty
    (moved,) = oldest.connections()
    assert isinstance(moved.transport, RelayedTransport)
    relaying.started[1].sendall(masked(0x81, b"still here"))
    turn(oldest)
    assert MessageReader(2**20).receive(client.producer.recv(1 << 16))[-1] == "still here"
    last.close()
    oldest.close()
    client.close()


@pytest.mark.parametrize("how", ["refused", "no answer", "no room", "no compiler"])
def test_a_client_with_tls_that_cannot_move_stays_as_it_was(
    site: Site, relaying: Relaying, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    client = TlsClient(site.younger, site.log)
    before = _descriptors()
    relaying.is_full = how == "no room"
    if how == "no compiler":
        monkeypatch.setattr(tls_relay, "is_available", False)
    with taker_by_hand(site) as oldest:
        oldest.setblocking(False)
        site.giver.run(time.monotonic())
        turn(site.younger)
        if how == "no compiler":
            with pytest.raises(BlockingIOError):
                oldest.accept()
        else:
            sock, _ = oldest.accept()
            with sock:
                sock.recv(100)
                sock.send(b"y")
                turn(site.younger)
                if how != "no room":
                    _, fds, _, _ = socket.recv_fds(sock, 1 << 17, 8)
                    assert len(fds) == 4
                    if how == "refused":
                        sock.send(b"n")
                    for fd in fds:
                        os.close(fd)
            turn(site.younger)
    assert not site.giver.is_busy
    assert site.younger.connections() == {client.connection}
    assert len(relaying.withdrawn) == len(relaying.reserved)
    assert relaying.started == []
    assert _descriptors() <= before + 1, "the listener's"
    client.producer.close()
    client.socket.close()
