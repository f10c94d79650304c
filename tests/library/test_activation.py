"""apachews._listening.activation: sockets that systemd made, played by hand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews import wire
from apachews._listening.activation import inherited_descriptors, inherited_socket
from apachews.wire.reader import Moved

from ..conftest import wait_for
from ..support.bridge_by_hand import Bridge
from ..support.producers import AS_SYSTEMD, ROOT, program

# Serves until a client stops it, twice.
TWICE = """
import os, stat, sys
from apachews import Event, Server

for _ in range(2):
    with Server(sys.argv[1], mode=0o600) as server:
        assert not os.get_inheritable(server._file.socket.fileno())
        for event in server:
            if event.read() == "end":
                server.close() if sys.argv[2] == "close" else server.drain()
            elif event.type() is Event.IO:
                event.write(event.read())
"""


@pytest.fixture
def systemd(short_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(short_path / "a.ws"))
        listening.listen()
        os.chmod(short_path / "a.ws", 0o666)
        yield listening


def started(*arguments: str, fds: list[int]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", AS_SYSTEMD, ",".join(map(str, fds)), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=fds,
    )


@pytest.mark.parametrize("end", ["close", "drain"])
def test_the_socket_is_used_and_survives(
    short_path: Path, systemd: socket.socket, end: str
) -> None:
    (short_path / "link").symlink_to(short_path)
    path = str(short_path / "link" / "a.ws")
    before = os.stat(path)
    bridge = Bridge(path)  # before a producer runs
    with socket.socket(socket.AF_UNIX) as other, open(os.devnull) as file:
        fds = [file.fileno(), other.fileno(), systemd.fileno()]
        process = started(program(short_path, TWICE), path, end, fds=fds)
    for _ in range(2):
        bridge.send(wire.TEXT, b"hi")
        assert wait_for(bridge.read_available) == ["hi"]
        bridge.send(wire.TEXT, b"end")
        (last_frame,) = wait_for(bridge.read_available)
        waiting = Bridge(path)  # in systemd's hands
        if isinstance(last_frame, Moved):
            bridge.send(wire.MOVE)
        wait_for(lambda bridge=bridge: bridge.is_at_end)  # type: ignore[misc]
        bridge.socket.close()
        bridge = waiting
    bridge.socket.close()
    stderr = process.communicate(timeout=10)[1]
    assert (process.returncode, stderr) == (0, "")
    after = os.stat(path)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    Bridge(path).socket.close()  # systemd still listens


def test_only_what_was_given_to_this_process(
    short_path: Path, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert list(inherited_descriptors()) == []
    monkeypatch.delenv("LISTEN_PID")
    assert list(inherited_descriptors()) == []
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    assert list(inherited_descriptors()) == [3, 4]
    monkeypatch.setenv("LISTEN_FDS", "-1")
    assert list(inherited_descriptors()) == []


def test_only_the_path_it_listens_on(
    short_path: Path, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(short_path / "a.ws")
    others = [
        socket.socket(socket.AF_UNIX),  # listens not
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        socket.create_server(("127.0.0.1", 0)),
        socket.socket(socket.AF_UNIX),
    ]
    others[3].bind("")  # an abstract name
    others[3].listen()
    for sock in (*others, systemd):
        monkeypatch.setattr("apachews._listening.activation.FIRST_FD", sock.fileno())
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        assert inherited_socket(str(short_path / "b.ws")) is None
        found = inherited_socket(path)
        assert (found is not None) is (sock is systemd)
        if found:
            assert found.fileno() != sock.fileno()
            assert not found.getblocking()
            assert not found.get_inheritable()
            found.close()
    monkeypatch.setattr(
        "apachews._listening.activation.FIRST_FD", 1_000_000
    )  # closed by the program
    assert inherited_socket(path) is None
    for sock in others:
        sock.close()
