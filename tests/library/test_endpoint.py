"""apachews._listening.endpoint: every way to a producer, and one table of outcomes."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews import Server
from apachews._listening import endpoint, loopback
from apachews._listening.endpoint import (
    MAX_PATH_BYTES,
    Attempt,
    Outcome,
    Unreachable,
    connect,
    connect_nowait,
    is_listened_on,
    outcome_of,
)

from ..conftest import DEADLINE_S, wait_for


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "a.ws"


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(0)
        yield sock


def outcome(path: Path) -> Outcome:
    """Return the outcome, which is the same by every way."""
    with pytest.raises(Unreachable) as waiting:
        connect(str(path), 0.05)
    with pytest.raises(Unreachable) as at_once:
        connect_nowait(str(path))
    assert waiting.value.outcome is at_once.value.outcome
    assert str(waiting.value)
    return at_once.value.outcome


def test_a_producer_that_listens(path: Path, listener: socket.socket) -> None:
    with connect(str(path), 1) as sock, listener.accept()[0] as accepted:
        assert sock.gettimeout() is None
        # The time limit of connect(2) is not one of send(2).
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16) == bytes(16)
        accepted.send(b"x")
        assert sock.recv(9) == b"x"
    at_once = connect_nowait(str(path))
    assert isinstance(at_once, socket.socket)
    with at_once:
        assert at_once.gettimeout() == 0
    listener.accept()[0].close()
    assert is_listened_on(str(path))


def test_a_full_backlog(path: Path, listener: socket.socket) -> None:
    with connect(str(path), 1):
        assert outcome(path) is Outcome.BUSY
        assert is_listened_on(str(path))


def test_a_backlog_that_gets_room_is_waited_for(path: Path, listener: socket.socket) -> None:
    with connect(str(path), 1):
        begun_at = time.monotonic()
        with pytest.raises(Unreachable):
            connect(str(path), 0.1)
        assert time.monotonic() - begun_at >= 0.1
        made: list[socket.socket] = []
        thread = threading.Thread(target=lambda: made.append(connect(str(path), 30)))
        thread.start()
        listener.accept()[0].close()
        thread.join(DEADLINE_S)
        made[0].close()


def test_a_dead_producer(path: Path, listener: socket.socket) -> None:
    listener.close()
    assert outcome(path) is Outcome.REFUSED
    assert not is_listened_on(str(path))


def test_a_path_that_does_not_exist(path: Path) -> None:
    for absent in (path, path / "x", path.with_name("x" * 300)):
        if absent.parent == path:
            path.touch()
        assert outcome(absent) is Outcome.NOT_THERE
        assert not is_listened_on(str(absent))


def test_files_that_are_not_sockets(path: Path) -> None:
    path.write_text("my notes")
    fifo = path.with_name("fifo")
    os.mkfifo(fifo)
    datagrams = path.with_name("datagrams")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(datagrams))
        for other in (path, path.parent, fifo, datagrams):
            assert outcome(other) is Outcome.NOT_A_SOCKET, other
            with pytest.raises(Unreachable):
                is_listened_on(str(other))


def test_a_path_longer_than_an_address(path: Path, listener: socket.socket) -> None:
    directory = path.with_name("d" * MAX_PATH_BYTES)
    directory.mkdir()
    moved = path.rename(directory / "a.ws")
    connect(str(moved), 1).close()
    listener.accept()[0].close()
    connect_nowait(str(moved)).close()
    listener.accept()[0].close()
    assert is_listened_on(str(moved))


def test_a_loopback_socket(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    with Server(path, transport="loopback") as server:
        made: list[socket.socket] = []
        thread = threading.Thread(target=lambda: made.append(connect(str(path), 10)))
        thread.start()
        wait_for(lambda: server.dequeue(0.001) or made)
        thread.join()
        made[0].close()
        attempt = connect_nowait(str(path))
        assert isinstance(attempt, Attempt)

        def is_proven() -> bool:
            server.dequeue(0.001)
            if sock := attempt.advance():
                made.append(sock)
            return len(made) == 2

        wait_for(is_proven)
        assert made[1].gettimeout() == 0
        attempt.close()
        path.chmod(0o664)
        assert outcome(path) is Outcome.NOT_A_SOCKET
    with socket.socket() as unused:
        unused.bind((loopback.HOST, 0))
        address = loopback.Address(unused.getsockname()[1], bytes(32))
        path.write_bytes(address.encode())
        path.chmod(0o664)
        assert not is_listened_on(str(path))


def test_another_program_on_the_port(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    with socket.create_server((loopback.HOST, 0)) as other:
        address = loopback.Address(other.getsockname()[1], bytes(32))
        path.write_bytes(address.encode())
        path.chmod(0o600)

        def hang_up() -> None:
            other.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(Unreachable) as caught:
            connect(str(path), 10)
        thread.join()
        assert caught.value.outcome is Outcome.REFUSED
        with pytest.raises(Unreachable) as caught:
            connect(str(path), 0.05)  # which never answers
        assert caught.value.outcome is Outcome.BUSY


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, Outcome.FORBIDDEN),
        (errno.EPERM, Outcome.FORBIDDEN),
        (errno.ECONNRESET, Outcome.REFUSED),
        (errno.ETIMEDOUT, Outcome.BUSY),
        (errno.EMFILE, Outcome.OUT_OF_RESOURCES),
        (errno.ENFILE, Outcome.OUT_OF_RESOURCES),
        (errno.ENOBUFS, Outcome.OUT_OF_RESOURCES),
        (errno.ENOMEM, Outcome.OUT_OF_RESOURCES),
        (errno.EADDRNOTAVAIL, Outcome.OUT_OF_RESOURCES),
        (errno.EIO, Outcome.FAILED),
    ],
)
def test_outcomes_by_errno(
    path: Path,
    listener: socket.socket,
    number: int,
    expected: Outcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(sock: socket.socket, name: str) -> socket.socket:
        sock.close()
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(endpoint, "_connected", fail)
    assert outcome(path) is expected
    if expected in (Outcome.FORBIDDEN, Outcome.OUT_OF_RESOURCES, Outcome.FAILED):
        with pytest.raises(Unreachable, match=os.strerror(number)):
            is_listened_on(str(path))


def test_a_failure_without_an_errno() -> None:
    assert outcome_of(OSError("AF_UNIX path too long")) is Outcome.FAILED
    assert outcome_of(TimeoutError()) is Outcome.BUSY
    assert str(Unreachable(TimeoutError())) == Outcome.BUSY.value
