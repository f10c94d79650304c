"""apachews._listening.loopback, and what listens and connects by it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import (
    Event,
    NotASocket,
    NotListening,
    Server,
    ServerError,
    SocketInUse,
    publish,
    wire,
)
from apachews._listening import acceptor, loopback
from apachews._listening.acceptor import LoopbackAcceptor
from apachews._listening.loopback import Address, Answerer, Caller, NotAnAddress, NotProven
from apachews._listening.socket_file import LoopbackFile
from apachews._server.poller import Poller
from apachews_handler.exceptions import Refusal
from apachews_handler.handshake import producer

from ..conftest import DEADLINE_S, wait_for
from ..support.bridge_by_hand import OPEN

Result = TypeVar("Result")
TOKEN = bytes(range(32))
OTHER = bytes(32)


def converse(caller: Caller, answerer: Answerer, size: int = 1000) -> None:
    """Pass bytes between the two until both want no more, so many at once."""
    to_answerer, to_caller = caller.hello, b""
    while to_answerer or to_caller:
        taken = min(size, answerer.wanted)
        if to_answerer and taken:
            to_caller += answerer.receive(to_answerer[:taken])
            to_answerer = to_answerer[taken:]
        taken = min(size, caller.wanted)
        if to_caller and taken:
            to_answerer += caller.receive(to_caller[:taken])
            to_caller = to_caller[taken:]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_both_are_proven(size: int) -> None:
    caller, answerer = Caller(TOKEN), Answerer(TOKEN)
    converse(caller, answerer, size)
    assert (caller.wanted, answerer.wanted) == (0, 0)


def test_another_token_proves_nothing() -> None:
    caller, answerer = Caller(TOKEN), Answerer(OTHER)
    with pytest.raises(NotProven, match="does not know the token"):
        converse(caller, answerer)
    assert answerer.wanted


def test_a_caller_that_does_not_know_the_token() -> None:
    answerer = Answerer(TOKEN)
    answerer.receive(Caller(OTHER).hello)
    with pytest.raises(NotProven, match="does not know the token"):
        answerer.receive(b"0" * 64 + b"\n")
    assert Answerer(TOKEN).wanted == len(Caller(TOKEN).hello)


def test_nobody_proves_himself_with_what_others_have_said() -> None:
    """Neither the producer's proof sent back, nor an earlier conversation again."""
    answerer = Answerer(TOKEN)
    answer = answerer.receive(Caller(TOKEN).hello)
    with pytest.raises(NotProven):
        answerer.receive(answer[33:])

    caller, answerer = Caller(TOKEN), Answerer(TOKEN)
    answer = answerer.receive(caller.hello)
    proof = caller.receive(answer)
    again = Answerer(TOKEN)
    again.receive(caller.hello)
    with pytest.raises(NotProven):
        again.receive(proof)
    with pytest.raises(NotProven):
        Caller(TOKEN).receive(answer)


@given(st.binary(max_size=200))
def test_whatever_is_said_neither_is_proven(data: bytes) -> None:
    for end in (Caller(TOKEN), Answerer(TOKEN)):
        rest = data
        try:
            while end.wanted and rest:
                taken, rest = rest[: end.wanted], rest[end.wanted :]
                end.receive(taken)
        except NotProven:
            continue
        assert end.wanted, data


def test_the_file() -> None:
    data = Address(40123, TOKEN).encode()
    assert data == b"apachews-loopback 1 40123 " + TOKEN.hex().encode() + b"\n"
    assert Address.decode(data) == Address(40123, TOKEN)
    for port in (1, 65535):
        assert len(Address(port, TOKEN).encode()) in loopback.FILE_BYTES


GOOD = Address(40123, TOKEN).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\n",
        GOOD.replace(b" 1 ", b" 2 "),
        GOOD.replace(b"40123", b"0"),
        GOOD.replace(b"40123", b"65536"),
        GOOD.replace(b"40123", b"040123"),
        GOOD.replace(b"40123", b"-1"),
        GOOD.upper(),
        b"\xff" * len(GOOD),
        GOOD * 2,
    ],
)
def test_what_is_no_address(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(NotAnAddress):
        Address.decode(data)
    (tmp_path / "a.ws").write_bytes(data)
    (tmp_path / "a.ws").chmod(0o640)
    with pytest.raises(NotAnAddress):
        Address.read(str(tmp_path / "a.ws"))


def test_a_file_that_everybody_may_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    path.write_bytes(GOOD)
    for mode in (0o644, 0o642, 0o641):
        path.chmod(mode)
        with pytest.raises(NotAnAddress, match="chmod o= the file"):
            Address.read(str(path))
    path.chmod(0o640)
    assert Address.read(str(path)).port == 40123


@contextmanager
def serving(path: Path) -> Iterator[Server]:
    with Server(path, transport="loopback") as server:
        yield server


def call(server: Server, function: Callable[[], Result]) -> Result:
    """Call a function on another thread, while this one serves."""
    found: list[Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(function())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: server.dequeue(0.01) is None and (found or failed))
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def test_a_server_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    with serving(path) as server:
        status = path.stat()
        assert stat.S_ISREG(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o660
        address = Address.read(str(path))
        with call(server, lambda: loopback.connect(address, DEADLINE_S)) as sock:
            sock.sendall(OPEN.encode() + wire.encode_frame(wire.TEXT, b"hi"))
            accepted, message = server.dequeue(DEADLINE_S), server.dequeue(DEADLINE_S)
            assert accepted and accepted.type() is Event.Accept
            assert message
            message.write(message.read())
            assert sock.recv(100) == wire.encode_frame(wire.TEXT, b"hi")
    assert not path.exists()


def test_a_mode_that_shows_the_token(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use 0o660"):
        Server(tmp_path / "a.ws", mode=0o664, transport="loopback")
    with pytest.raises(ValueError, match="expected one of unix, loopback"):
        Server(tmp_path / "a.ws", transport="tcp")
    assert not list(tmp_path.iterdir())


def test_a_path_may_be_long(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 200)
    directory.mkdir()
    with serving(directory / "a.ws"):
        assert (directory / "a.ws").exists()


def test_the_next_server_takes_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.ws"
    path.write_bytes(GOOD)  # of one that is gone
    path.chmod(0o600)
    with serving(path) as first:
        assert "taken over" not in caplog.text
        with pytest.raises(SocketInUse):
            call(first, lambda: Server(path, transport="loopback", exclusive=True))
        second = call(first, lambda: Server(path, transport="loopback"))
        with second:
            assert "taken over" in caplog.text
            assert not first.dequeue(0.01)
        assert not path.exists()


def test_either_transport_takes_over_from_the_other(short_path: Path) -> None:
    path = short_path / "a.ws"
    with Server(path), serving(path):
        assert stat.S_ISREG(path.stat().st_mode)
    assert not path.exists()


@pytest.mark.parametrize("text", ["my notes", ""])
def test_a_file_of_somebody_elses_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.ws"
    path.write_text(text)
    with pytest.raises(NotASocket):
        Server(path, transport="loopback")
    with pytest.raises(NotASocket):
        publish(path, "hi")
    assert path.read_text() == text


def test_strangers_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "PROOF_TIMEOUT_S", 0.05)
    path = tmp_path / "a.ws"
    with serving(path) as server:
        port = Address.read(str(path)).port
        address = (loopback.HOST, port)
        with (
            closing(socket.create_connection(address)) as silent,
            closing(socket.create_connection(address)) as http,
            closing(socket.create_connection(address)) as guesses,
        ):
            http.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"x" * 100)
            guesses.sendall(Caller(OTHER).hello + b"0" * 64 + b"\n" + OPEN.encode())
            strangers = (silent, http, guesses)
            wait_for(lambda: server.dequeue(0.01) is None and all(map(is_over, strangers)))
        assert not server.clients()
    # One line for any number of them: foreign programs must not fill the log.
    assert caplog.text.count("refused") == 1


def is_over(sock: socket.socket) -> bool:
    """Tell whether the other end has closed; a reset is that as well."""
    sock.setblocking(False)
    try:
        while sock.recv(1000):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def test_there_is_room_for_a_few_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MAX_UNPROVEN", 3)
    path = tmp_path / "a.ws"
    with serving(path) as server, contextlib.ExitStack() as stack:
        address = Address.read(str(path))
        where = (loopback.HOST, address.port)
        strangers = [
            stack.enter_context(closing(socket.create_connection(where))) for _ in range(5)
        ]
        wait_for(lambda: server.dequeue(0.01) is None and is_over(strangers[1]))
        assert [is_over(sock) for sock in strangers] == [True, True, False, False, False]
        call(server, lambda: loopback.connect(address, DEADLINE_S)).close()


class Flooded:
    """A listening socket with a connection at every accept()."""

    def __init__(self) -> None:
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.accepted = 0

    def accept(self) -> tuple[socket.socket, None]:
        self.accepted += 1
        pair = socket.socketpair()
        self._pairs.append(pair)
        return pair[0], None

    def close(self) -> None:
        for pair in self._pairs:
            for sock in pair:
                sock.close()


def test_a_flood_of_strangers_does_not_stop_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "send_at_once", lambda sock: None)
    file = LoopbackFile(str(tmp_path / "a.ws"), 0o660, None)
    with closing(Poller(threading.RLock())) as poller, closing(Flooded()) as flooded:
        accepting = LoopbackAcceptor(file, poller, list)
        with monkeypatch.context() as patch:
            patch.setattr(file, "socket", flooded)
            assert accepting.accept_nowait() is None
            assert flooded.accepted == acceptor.MAX_ACCEPTED
            assert accepting.accept_nowait() is None
        accepting.stop()


def test_a_stranger_makes_room_where_there_is_no_descriptor_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "send_at_once", lambda sock: None)
    file = LoopbackFile(str(tmp_path / "a.ws"), 0o660, None)
    with closing(Poller(threading.RLock())) as poller, closing(Flooded()) as flooded:
        accepting = LoopbackAcceptor(file, poller, list)

        def accept() -> tuple[socket.socket, None]:
            if flooded.accepted == 2:
                flooded.accepted += 1
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if flooded.accepted > 3:
                raise BlockingIOError
            return Flooded.accept(flooded)

        with monkeypatch.context() as patch:
            patch.setattr(file, "socket", SimpleNamespace(accept=accept))
            assert accepting.accept_nowait() is None
            assert not accepting.is_resting, "it does not rest"
            patch.setattr(flooded, "accepted", 2)
            accepting.drop_waiting()
            with pytest.raises(OSError, match="open files"):
                accepting.accept_nowait()
            assert accepting.is_resting, "no connection is left to drop"
        accepting.stop()


def test_a_file_that_is_replaced_between_reading_and_connecting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ws"
    with closing(socket.socket()) as gone, serving(path) as server:
        gone.bind((loopback.HOST, 0))
        old = Address(gone.getsockname()[1], TOKEN)
        reads = [old, Address.read(str(path))]
        monkeypatch.setattr(Address, "read", lambda path: reads.pop(0))
        call(server, lambda: loopback.dial(str(path), DEADLINE_S)).close()
        assert not reads
        reads += [old, old]
        with pytest.raises(ConnectionRefusedError):
            loopback.dial(str(path), DEADLINE_S)


def test_the_file_has_the_token_when_its_permissions_are_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bytes]] = []

    def chown(beside: str, group: object) -> None:
        seen.append((Path(beside).stat().st_mode & 0o777, Path(beside).read_bytes()))

    monkeypatch.setattr("apachews._listening.socket_file.shutil.chown", chown)
    with Server(tmp_path / "a.ws", group=os.getegid(), transport="loopback"):
        assert seen == [(0o600, b"")]
        assert Address.read(str(tmp_path / "a.ws"))


def test_what_a_producer_left_is_replaced_whoever_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    path.write_bytes(GOOD)
    path.chmod(0o666)
    with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_file_system_with_a_mode_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of CIFS or FAT: chmod is refused, and inodes are new each time."""

    def refuse(path: str, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("apachews._listening.socket_file.os.chmod", refuse)
    path = tmp_path / "a.ws"
    with serving(path):
        another = tmp_path / "another"
        another.write_bytes(path.read_bytes())
        another.rename(path)
    assert not path.exists()


def test_a_file_system_that_shows_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chmod = os.chmod
    monkeypatch.setattr(
        "apachews._listening.socket_file.os.chmod", lambda path, mode: chmod(path, 0o777)
    )
    with pytest.raises(ServerError, match=r"a\.ws: all users can read .* mount it with"):
        Server(tmp_path / "a.ws", transport="loopback")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("apachews._listening.socket_file.os.fsync", fsync)
    with pytest.raises(OSError, match=r"No space left .*/a\.ws"):
        Server(tmp_path / "a.ws", transport="loopback")
    assert not list(tmp_path.iterdir())


def test_publish(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    with serving(path) as server:
        assert call(server, lambda: publish(path, "hi")).reached == 0


@contextmanager
def squatter(path: Path, says: bytes) -> Iterator[None]:
    """Listen on the port of a producer that is gone."""
    with socket.create_server((loopback.HOST, 0)) as listener:
        path.write_bytes(Address(listener.getsockname()[1], TOKEN).encode())
        path.chmod(0o660)
        heard = bytearray()

        def serve() -> None:
            with listener.accept()[0] as sock:
                sock.settimeout(DEADLINE_S)
                sock.sendall(says)
                while data := sock.recv(1000):
                    heard.extend(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()
        # It is told a random number, and nothing of a client.
        assert len(heard) == len(Caller(TOKEN).hello)
        assert TOKEN.hex().encode() not in heard


@pytest.mark.parametrize("says", [b"", b"x" * 98, b"0" * 32 + b" " + b"0" * 64 + b"\n"])
def test_who_listens_on_the_port_of_a_producer_that_is_gone(tmp_path: Path, says: bytes) -> None:
    path = tmp_path / "a.ws"
    with squatter(path, says), pytest.raises(Refusal) as caught:
        producer.connect(str(path), 0.3)
    assert caught.value.status.startswith("503")
    if says:
        with squatter(path, says), pytest.raises(NotListening):
            publish(path, "hi", timeout=0.3)


def test_the_handler_connects_and_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    with serving(path) as server:
        with call(server, lambda: producer.connect(str(path), DEADLINE_S)) as sock:
            assert not sock.getblocking()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        path.chmod(0o664)
        with pytest.raises(Refusal, match="chmod o= the file"):
            producer.connect(str(path), 1)
    path.write_bytes(GOOD)
    path.chmod(0o660)
    with closing(socket.socket()) as unused:
        unused.bind((loopback.HOST, 0))
        path.write_bytes(Address(unused.getsockname()[1], TOKEN).encode())
        with pytest.raises(Refusal, match="no producer listens") as caught:
            producer.connect(str(path), 1)
        with pytest.raises(NotListening):
            publish(path, "hi")
    assert caught.value.status.startswith("503")
    path.write_text("my notes")
    with pytest.raises(Refusal) as caught:
        producer.connect(str(path), 1)
    assert caught.value.status.startswith("403")


@pytest.mark.parametrize(
    ("number", "status", "text"),
    [
        (errno.EMFILE, "503", "raise Apache's limit"),
        (errno.EADDRNOTAVAIL, "503", "net.ipv4.ip_local_port_range"),
        (errno.ECONNRESET, "503", "no producer listens"),
        (errno.EACCES, "500", "no permission to read"),
    ],
)
def test_what_the_handler_says_of_a_failure(
    number: int, status: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, timeout_s: float, read: object) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(loopback, "dial", fail)
    (tmp_path / "a.ws").write_bytes(GOOD)
    (tmp_path / "a.ws").chmod(0o660)
    with pytest.raises(Refusal, match=text) as caught:
        producer.connect(str(tmp_path / "a.ws"), 1.0)
    assert caught.value.status.startswith(status)


def test_a_drained_server_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    with serving(path) as server:
        address = Address.read(str(path))
        server.drain()
        assert list(server) == []
        with pytest.raises(OSError):
            loopback.connect(address, 1)
    assert not list(tmp_path.iterdir())
