"""apachews_handler.handshake.producer: from a path to a producer, or a refusal with the cause."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews._listening.loopback import Address
from apachews.monitoring import refusals
from apachews_handler.endpoints.endpoint_access import MAX_STEPS
from apachews_handler.exceptions import Refusal
from apachews_handler.handshake.producer import connect, found_by_httpd, locate, user_of
from apachews_handler.native import syscalls
from apachews_handler.settings import Settings


@pytest.fixture
def listener(short_path: Path) -> Iterator[tuple[str, socket.socket]]:
    path = str(short_path / "a.ws")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen(0)
        yield path, sock


def refusal_of(path: str, timeout_s: float = 0.05) -> Refusal:
    with pytest.raises(Refusal) as caught:
        connect(path, timeout_s).close()
    assert path in caught.value.logged
    assert path not in caught.value.told  # nothing internal goes to the client
    return caught.value


def test_connects_without_blocking_afterwards(listener: tuple[str, socket.socket]) -> None:
    with connect(listener[0], 1) as producer, listener[1].accept()[0] as accepted:
        accepted.send(b"x")
        assert producer.recv(9) == b"x"
        with pytest.raises(BlockingIOError):
            producer.recv(9)


def test_a_full_backlog_is_waited_for_and_then_refused(
    listener: tuple[str, socket.socket],
) -> None:
    with connect(listener[0], 1):
        refusal = refusal_of(listener[0])
    assert refusal.status.startswith("503")
    assert "backlog" in refusal.logged
    assert dict(refusal.headers)["Retry-After"] == "5"


class Place:
    """Counts how often it is entered; refuses if it is told to.

    Attributes:
        entered: how often.
        users: ids of the users that it was asked for.
    """

    def __init__(self, is_full: bool = False) -> None:
        self.entered = 0
        self.users: set[int] = set()
        self._is_full = is_full

    @contextlib.contextmanager
    def __call__(self, user: int) -> Iterator[None]:
        self.entered += 1
        self.users.add(user)
        if self._is_full:
            raise Refusal(refusals.WAITING_LIMIT, "all places are taken")
        yield


def test_only_a_connection_that_waits_takes_a_place(
    listener: tuple[str, socket.socket], short_path: Path
) -> None:
    path, place = listener[0], Place()
    with connect(path, 1, place=place):
        assert place.entered == 0
        with pytest.raises(Refusal, match="backlog"):
            connect(path, 0.05, place=place)
        assert place.entered == 1
    listener[1].close()
    for other in (path, str(short_path / "absent.ws"), str(short_path)):
        with pytest.raises(Refusal):
            connect(other, 1, place=place)
        assert place.entered == 1
    (short_path / "file.ws").write_text("not an address")
    with pytest.raises(Refusal, match="403"):
        connect(str(short_path / "file.ws"), 1, place=place)
    assert place.entered == 1  # what the file is, is known without waiting
    assert place.users == {os.geteuid()}


def test_the_user_of_a_producer(listener: tuple[str, socket.socket], short_path: Path) -> None:
    with connect(listener[0], 1) as producer:
        assert user_of(producer, listener[0], ()) == os.geteuid()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as producer,
    ):
        file = short_path / "port.ws"
        with pytest.raises(Refusal, match="404"):
            user_of(producer, str(file), ())
        file.touch()
        assert user_of(producer, str(file), ()) == os.geteuid()


def test_without_a_place_a_connection_does_not_wait(
    listener: tuple[str, socket.socket], short_path: Path
) -> None:
    full = Place(is_full=True)
    with connect(listener[0], 1), pytest.raises(Refusal, match="places"):
        connect(listener[0], 60, place=full)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = short_path / "port.ws"
        file.write_bytes(Address(silent.getsockname()[1], bytes(32)).encode())
        file.chmod(0o600)
        with pytest.raises(Refusal, match="places"):
            connect(str(file), 60, place=full)


def test_a_producer_that_takes_over_is_found_at_the_second_try(
    listener: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def connect_once(path: str) -> socket.socket:
        tries.append(path)
        if len(tries) == 1:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "")
        return real(path)

    real = syscalls.connect
    monkeypatch.setattr(syscalls, "connect", connect_once)
    connect(listener[0], 1, place=Place(is_full=True)).close()
    assert len(tries) == 2


def test_a_stale_socket_is_refused(listener: tuple[str, socket.socket]) -> None:
    listener[1].close()
    refusal = refusal_of(listener[0])
    assert refusal.status.startswith("503")
    assert "no producer listens" in refusal.logged
    assert dict(refusal.headers)["Retry-After"] == "5"


def test_no_file_and_no_socket(short_path: Path) -> None:
    assert refusal_of(str(short_path / "absent.ws")).status.startswith("404")
    (short_path / "file.ws").write_text("text")
    assert refusal_of(str(short_path / "file.ws")).status.startswith("403")
    assert refusal_of(str(short_path / "file.ws" / "x")).status.startswith("404")
    assert refusal_of(str(short_path)).status.startswith("403")


def test_too_many_links_are_named(short_path: Path) -> None:
    (short_path / "a.ws").symlink_to("./" * MAX_STEPS + "b.ws")
    refusal = refusal_of(str(short_path / "a.ws"))
    assert refusal.status.startswith("500")
    assert f"may have {MAX_STEPS} components" in refusal.logged


def test_a_path_too_long_for_a_socket_is_not_found(short_path: Path) -> None:
    directory = short_path / ("d" * 100)
    refusal = refusal_of(str(directory / "a.ws"))
    assert refusal.status.startswith("404")
    length = len(str(directory / "a.ws"))
    assert f"it has {length} bytes" in refusal.logged
    assert "at most 107" in refusal.logged
    assert refusal_of(str(short_path / "a.ws")).logged.endswith(
        "start the producer, or check the path"
    )
    with pytest.raises(Refusal, match="at most 107") as caught:
        connect(f"/{'d' * 300}.ws", 1)
    assert caught.value.status.startswith("404")


def test_a_socket_that_was_moved_to_a_long_path_is_connected_to(
    listener: tuple[str, socket.socket], short_path: Path
) -> None:
    directory = short_path / ("d" * 100)
    directory.mkdir()
    moved = Path(listener[0]).rename(directory / "a.ws")
    connect(str(moved), 1).close()


@pytest.mark.parametrize("name", ["chat", "/chat", "/sub/chat", "/../base/chat"])
def test_names_inside_the_root(short_path: Path, name: str) -> None:
    root = short_path / "base"
    (root / "sub").mkdir(parents=True)
    located = Path(locate(str(root), name))
    assert located.name == "chat.ws"
    assert root in located.resolve().parents


@pytest.mark.parametrize(
    "name", ["", "/", "/../x", "/sub/../../x", "//..//x", "/a\0b", "/link/x", "/out"]
)
def test_names_that_lead_out_of_the_root(short_path: Path, name: str) -> None:
    root = short_path / "base"
    (root / "sub").mkdir(parents=True)
    (root / "link").symlink_to(short_path)
    (root / "out.ws").symlink_to(short_path / "x.ws")
    with pytest.raises(Refusal) as caught:
        locate(str(root), name)
    assert caught.value.status.startswith("404")


def test_a_root_is_bytes_as_httpd_gives_it(short_path: Path) -> None:
    root = short_path / "é"
    root.mkdir()
    as_wsgi_gives_it = os.fsencode(root).decode("latin-1")
    assert Path(locate(as_wsgi_gives_it, "/chat")) == root / "chat.ws"
    assert locate("/", "/chat") == "/chat.ws"


@pytest.mark.parametrize("name", ["chat", "grüße", "чат", "gr\udcfc\udcdfe"])
def test_the_file_that_httpd_found_has_its_name_behind_each_line_of_mod_wsgi(name: str) -> None:
    path = f"/srv/{name}.ws"
    as_bytes = os.fsencode(path).decode("latin-1")
    for version, variable in (((4, 9, 4), as_bytes), ((5, 0, 2), as_bytes), ((6, 0, 0), path)):
        environ = {"SCRIPT_FILENAME": variable, "mod_wsgi.version": version}
        assert found_by_httpd(environ, Settings()) == path, version


def test_without_descriptors_it_is_unavailable(
    listener: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("apachews._listening.endpoint.socket.socket", fail)
    with pytest.raises(Refusal, match="LimitNOFILE") as caught:
        connect(listener[0], 1)
    assert caught.value.status.startswith("503")


def test_a_root_is_needed() -> None:
    with pytest.raises(Refusal, match="APACHEWS_ROOT") as caught:
        locate("", "/chat")
    assert caught.value.status.startswith("500")
