"""apachews_handler.handshake.detach: what it takes descriptors from and puts in their place.

(What httpd and mod_ssl have a part in is in tests/integration/test_upgrade.py.)
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from apachews_handler.exceptions import CheckFailed, Refusal
from apachews_handler.handshake import detach
from apachews_handler.native import syscalls


def tcp_pair(protocol: int) -> tuple[socket.socket, socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        far = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
        far.connect(listener.getsockname())
        return far, listener.accept()[0]


@pytest.fixture(autouse=True)
def no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(detach, "_sink_fd", -1)
    before = len(os.listdir("/proc/self/fd"))
    yield
    if detach._sink_fd != -1:
        os.close(detach._sink_fd)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, socket.IPPROTO_MPTCP])
def test_the_clients_socket_is_duplicated(protocol: int) -> None:
    try:
        far, near = tcp_pair(protocol)
    except OSError as error:
        if error.errno not in (errno.EPROTONOSUPPORT, errno.ENOPROTOOPT):
            raise
        pytest.skip("this kernel has no Multipath TCP")
    with far, near:
        with detach._duplicate(near.fileno()) as client:
            assert client.fileno() != near.fileno()
            assert client.gettimeout() == 0
            with pytest.raises(BlockingIOError):
                client.recv(1)
            assert not client.get_inheritable()
            client.sendall(b"hello")
        assert far.recv(100) == b"hello"


def test_what_is_no_connection_of_tcp_is_refused() -> None:
    near, far = socket.socketpair()
    with near, far, pytest.raises(CheckFailed, match="the connection is TCP"):
        detach._duplicate(near.fileno())
    with open(os.devnull) as file, pytest.raises(CheckFailed, match="the connection is a socket"):
        detach._duplicate(file.fileno())


def test_there_is_no_descriptor_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(syscalls, "dup", none_left)
    with pytest.raises(Refusal) as caught:
        detach._duplicate(0)
    assert "LimitNOFILE" in caught.value.logged
    monkeypatch.setattr(os, "open", none_left)
    with pytest.raises(Refusal) as caught:
        detach._sink()
    assert "LimitNOFILE" in caught.value.logged


def test_there_is_nothing_to_put_in_a_clients_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "devnull", "/none/of/this/name")
    with pytest.raises(CheckFailed, match="/none/of/this/name can be opened"):
        detach._sink()


def test_there_is_one_for_all_clients() -> None:
    found: list[int] = []
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait()
        found.append(detach._sink())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert not os.get_inheritable(found[0])
    assert os.write(found[0], b"HTTP/1.1 101 Switching Protocols\r\n\r\n") == 36
    assert os.read(found[0], 1) == b""
