"""apachews_handler.native.syscalls: what os and socket do, without letting go of the GIL."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apachews._listening.endpoint import MAX_PATH_BYTES
from apachews_handler.native import syscalls


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_duplicate_is_of_the_same_and_not_inherited() -> None:
    reader, writer = os.pipe()
    duplicate = syscalls.dup(writer)
    assert duplicate != writer
    assert not os.get_inheritable(duplicate)
    os.write(duplicate, b"x")
    assert os.read(reader, 1) == b"x"
    for fd in (reader, writer, duplicate):
        os.close(fd)


def test_one_takes_the_place_of_another() -> None:
    reader, writer = os.pipe()
    other = os.open(os.devnull, os.O_WRONLY)
    os.set_inheritable(other, True)
    syscalls.dup2(writer, other)
    assert not os.get_inheritable(other)
    os.write(other, b"x")
    assert os.read(reader, 1) == b"x"
    for fd in (reader, writer, other):
        os.close(fd)


@pytest.mark.parametrize("is_blocking", [True, False])
def test_nothing_waits_any_more(is_blocking: bool) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(is_blocking)
        flags = fcntl.fcntl(near, fcntl.F_GETFL)
        syscalls.set_nonblocking(near.fileno())
        assert fcntl.fcntl(near, fcntl.F_GETFL) == flags | os.O_NONBLOCK
        with pytest.raises(BlockingIOError):
            os.read(near.fileno(), 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: syscalls.dup(-1),
        lambda: syscalls.dup2(-1, 0),
        lambda: syscalls.set_nonblocking(-1),
        lambda: syscalls.eventfd_write(-1, 1),
        lambda: syscalls.close_path(-1),
        lambda: syscalls.open_entry(-1, b"x"),
        lambda: syscalls.target_of(-1),
        lambda: syscalls.owner_of(-1),
        lambda: syscalls.send(-1, b"x"),
        lambda: syscalls.recv(-1, 1),
        lambda: syscalls.getsockopt(-1, socket.SOL_SOCKET, socket.SO_TYPE, 4),
    ],
)
def test_a_descriptor_that_is_none(call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
        call()
    assert caught.value.errno == errno.EBADF


def test_an_eventfd_is_added_to() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    syscalls.eventfd_write(fd, 2)
    syscalls.eventfd_write(fd, 1 << 40)
    assert os.eventfd_read(fd) == (1 << 40) + 2
    os.close(fd)


@pytest.mark.parametrize("name", ["a.ws", "\N{GREEK SMALL LETTER ALPHA}.ws", "\udcff.ws", "x" * 80])
def test_a_connection_is_what_socket_makes_of_one(short_path: Path, name: str) -> None:
    path = str(short_path / name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with syscalls.connect(path) as made, listener.accept()[0] as accepted:
            assert (made.family, made.type, made.proto) == (
                socket.AF_UNIX,
                socket.SOCK_STREAM,
                0,
            )
            assert made.gettimeout() == 0
            assert fcntl.fcntl(made, fcntl.F_GETFL) & os.O_NONBLOCK
            assert not made.get_inheritable()
            assert made.getpeername() == path
            with pytest.raises(BlockingIOError):
                made.recv(1)
            made.sendall(b"hello")
            assert accepted.recv(100) == b"hello"


def test_a_path_has_as_many_bytes_as_the_kernel_takes(short_path: Path) -> None:
    room = MAX_PATH_BYTES - len(str(short_path)) - 1
    longest = str(short_path / ("x" * room))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(longest)
        listener.listen()
        syscalls.connect(longest).close()
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.connect(f"{longest}x")


@pytest.mark.parametrize("path", ["", "\0abstract", "/a\0b"])
def test_what_is_no_path_is_never_asked_for(path: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.connect(path)


def test_nobody_listens(short_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        syscalls.connect(str(short_path / "none.ws"))
    (short_path / "file.ws").touch()
    with pytest.raises(ConnectionRefusedError):
        syscalls.connect(str(short_path / "file.ws"))


def test_a_full_backlog_is_not_waited_for(short_path: Path) -> None:
    path = str(short_path / "a.ws")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = [syscalls.connect(path)]
        with pytest.raises(BlockingIOError):
            for _ in range(10):
                waiting.append(syscalls.connect(path))
        for made in waiting:
            made.close()


@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::1%lo")],
)
def test_a_tcp_connection_is_what_socket_makes_of_one(family: int, host: str) -> None:
    with socket.socket(family) as listener:
        listener.bind((host.partition("%")[0], 0))
        listener.listen()
        made, error = syscalls.connect_tcp(host, listener.getsockname()[1])
        with made, listener.accept()[0] as accepted:
            assert error == 0
            assert (made.family, made.type, made.proto) == (
                family,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
            )
            assert made.gettimeout() == 0
            assert fcntl.fcntl(made, fcntl.F_GETFL) & os.O_NONBLOCK
            assert not made.get_inheritable()
            assert made.getpeername()[:2] == listener.getsockname()[:2]
            assert syscalls.is_connected(made.fileno())
            with pytest.raises(BlockingIOError):
                syscalls.recv(made.fileno(), 100)
            assert syscalls.send(made.fileno(), b"he\0llo") == 6
            assert accepted.recv(100) == b"he\0llo"
            accepted.sendall(b"\0answer")
            assert select.select([made], [], [], 10)[0]
            assert syscalls.recv(made.fileno(), 3) == b"\0an"
            assert syscalls.recv(made.fileno(), 100) == b"swer"
            accepted.close()
            assert select.select([made], [], [], 10)[0]
            assert syscalls.recv(made.fileno(), 100) == b""


def test_a_port_without_a_listener() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # it does not listen
        made, error = syscalls.connect_tcp("127.0.0.1", unused.getsockname()[1])
        with made:
            # (connect(2) reports the refusal, or the socket does afterwards.)
            assert error in (errno.ECONNREFUSED, errno.EINPROGRESS)
            assert not syscalls.is_connected(made.fileno())
            if error == errno.EINPROGRESS:
                assert select.select([], [made], [], 10)[1]
                assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


@pytest.mark.parametrize("host", ["::1%none", "127.0.0.1%lo", "localhost", ""])
def test_only_an_address_is_connected_to(host: str) -> None:
    with pytest.raises(OSError, match=r"illegal IP address|no interface"):
        syscalls.connect_tcp(host, 80)


def test_a_connection_under_way_is_not_a_connection() -> None:
    with socket.socket() as sock:
        assert not syscalls.is_connected(sock.fileno())


def test_a_send_without_room_does_not_wait() -> None:
    near, far = socket.socketpair()
    with near, far:
        with pytest.raises(BlockingIOError):
            while True:
                assert syscalls.send(near.fileno(), b"x" * 65536) > 0
        far.close()
        with pytest.raises(BrokenPipeError):
            syscalls.send(near.fileno(), b"x")


def test_an_option_is_what_socket_says() -> None:
    with socket.socket() as sock:
        asked = (socket.SOL_SOCKET, socket.SO_LINGER, 8)  # a struct that does not change
        assert syscalls.getsockopt(sock.fileno(), *asked) == sock.getsockopt(*asked)
        with pytest.raises(OSError, match="Protocol not available"):
            syscalls.getsockopt(sock.fileno(), socket.IPPROTO_TCP, 9999, 4)


def test_signals_are_blocked_and_the_mask_comes_back() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        mask = syscalls.block_signals()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert blocked == signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        syscalls.restore_signals(mask)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGUSR1}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("keeps_gil", [True, False])
def test_a_path_without_links_is_named(tmp_path: Path, keeps_gil: bool) -> None:
    file = tmp_path / "\udcff x.ws"
    file.touch(0o000)
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "up").symlink_to(".")
    for path in (tmp_path / "link", tmp_path / "up" / file.name, tmp_path / "up" / "none"):
        assert syscalls.open_direct(os.fsencode(path), keeps_gil=keeps_gil) is None
    fd = syscalls.open_direct(os.fsencode(file), keeps_gil=keeps_gil)
    assert fd is not None
    assert not os.get_inheritable(fd)
    assert syscalls.path_of(fd) == os.fsencode(file.resolve())
    file.rename(tmp_path / "y")
    assert syscalls.path_of(fd) == os.fsencode(tmp_path.resolve() / "y")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(fd, 1)
    syscalls.close_path(fd)
    with pytest.raises(FileNotFoundError):
        syscalls.path_of(fd)
    with pytest.raises(FileNotFoundError):
        syscalls.open_direct(os.fsencode(file), keeps_gil=keeps_gil)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_a_kernel_without_openat2_is_told_from_a_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(syscalls, "_syscall", fail)
    assert syscalls.open_direct(os.fsencode(tmp_path), keeps_gil=True) is None


def test_the_root_is_named() -> None:
    fd = syscalls.open_root()
    assert syscalls.path_of(fd) == b"/"
    assert not os.get_inheritable(fd)
    syscalls.close_path(fd)


def test_an_entry_is_named_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("\udcff/x")
    (tmp_path / "file").touch()
    os.chown(tmp_path / "link", os.geteuid(), os.getegid(), follow_symlinks=False)
    directory = syscalls.open_direct(os.fsencode(tmp_path.resolve()), keeps_gil=True)
    assert directory is not None
    link = syscalls.open_entry(directory, b"link")
    file = syscalls.open_entry(directory, b"file")
    assert not os.get_inheritable(link)
    assert syscalls.target_of(link) == b"\xff/x"
    assert syscalls.target_of(file) is None
    assert syscalls.target_of(directory) is None
    for fd in (directory, link, file):
        assert syscalls.owner_of(fd) == os.geteuid()
    if os.geteuid() == 0:
        os.chown(tmp_path / "link", 70001, -1, follow_symlinks=False)
        assert syscalls.owner_of(link) == 70001
    with pytest.raises(FileNotFoundError):
        syscalls.open_entry(directory, b"none")
    for fd in (directory, link, file):
        syscalls.close_path(fd)
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.open_direct(b"/tmp\0x", keeps_gil=True)


def test_random_bytes() -> None:
    assert [len(syscalls.urandom(size)) for size in (1, 16, 256)] == [1, 16, 256]
    assert len({syscalls.urandom(16) for _ in range(100)}) == 100


def test_random_bytes_before_the_kernel_has_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_getrandom", lambda *_: -1)
    assert len({syscalls.urandom(16) for _ in range(100)}) == 100
