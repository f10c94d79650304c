"""What systemd gives a producer, played by hand: sockets, and the socket for notifications."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews import Event, Server, wire
from apachews._listening.activation import inherited_descriptors, inherited_socket
from apachews._processes import sd_notify
from apachews._processes.sd_notify import Heartbeat, NotifyReceiver
from apachews.wire.reader import Moved

from ..conftest import wait_for
from ..support.bridge_by_hand import Bridge
from ..support.producers import AS_SYSTEMD, ROOT, program


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[NotifyReceiver]:
    receiver = NotifyReceiver()
    monkeypatch.setenv("NOTIFY_SOCKET", receiver.address)
    monkeypatch.setattr(sd_notify, "_ready_in", None)
    yield receiver
    receiver.close()


def heard(receiver: NotifyReceiver) -> list[list[str]]:
    messages = list(receiver.receive_nowait())
    assert {pid for pid, _ in messages} <= {os.getpid()}
    return [assignments for _, assignments in messages]


def test_ready_once_and_stopping_with_the_last(short_path: Path, receiver: NotifyReceiver) -> None:
    first, second = Server(short_path / "a.ws"), Server(short_path / "b.ws")
    assert heard(receiver) == [["READY=1", f"STATUS=listening on {first.path}"]]
    first.close()
    assert heard(receiver) == []
    second.drain()
    assert heard(receiver) == [["STOPPING=1"]]
    assert list(second) == []


def test_a_path_is_an_address_too(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(short_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        assert sd_notify.notify("STATUS=fine", "X=1")
        assert systemd.recv(100) == b"STATUS=fine\nX=1"


@pytest.mark.parametrize("address", ["", "@no-such-name", "/no/such/socket", "@" + "x" * 200])
def test_that_nobody_listens_is_no_fault(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not sd_notify.notify("READY=1")
    Server(short_path / "a.ws").close()


def test_a_queue_that_stays_full_is_given_up(
    receiver: NotifyReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sd_notify, "SEND_TIMEOUT_S", 0.01)
    sent = 0
    while sd_notify.notify("X=1"):
        sent += 1
        assert sent < 10_000
    assert len(heard(receiver)) == sent


WATCHED = [
    ({}, None),
    ({"WATCHDOG_USEC": "3000000"}, 3.0),
    ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
    ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
    ({"WATCHDOG_USEC": "0"}, None),
    ({"WATCHDOG_USEC": "soon"}, None),
]


@pytest.mark.parametrize(("env", "timeout_s"), WATCHED)
def test_whether_systemd_watches(
    receiver: NotifyReceiver,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    timeout_s: float | None,
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert sd_notify.watchdog_timeout_s() == timeout_s
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert sd_notify.watchdog_timeout_s() is None


def test_an_idle_server_gives_signs_of_life(
    short_path: Path, receiver: NotifyReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    with Server(short_path / "a.ws") as server:
        assert server.dequeue(0.5) is None
        signs = heard(receiver).count(["WATCHDOG=1"])
        assert 5 <= signs <= 11


def test_a_busy_program_gives_them_between_events(
    short_path: Path, receiver: NotifyReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    with Server(short_path / "a.ws") as server:
        bridge = Bridge(server.path)
        assert server.dequeue(5)
        for _ in range(3):
            bridge.send(wire.TEXT, b"x")
        assert server.dequeue(5)
        heard(receiver)
        now = 10.0**9
        monkeypatch.setattr(time, "monotonic", lambda: now)
        monkeypatch.setattr(sd_notify.Heartbeat, "_last", {})
        assert server.dequeue(5)
        assert heard(receiver) == [["WATCHDOG=1"]]
        now += 0.9
        event = server.dequeue(5)
        assert event is not None and event.type() is Event.IO
        assert heard(receiver) == []
        monkeypatch.undo()
        bridge.socket.close()


def test_of_two_servers_both_must_live(
    receiver: NotifyReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first, second = Heartbeat(10.0), Heartbeat(10.0)
    heard(receiver)
    for now, signs in ((5.0, 1), (9.0, 0), (10.0, 0), (15.0, 0)):
        first.beat()
        assert len(heard(receiver)) == signs, now
    second.beat()
    assert len(heard(receiver)) == 1
    second.stop()
    second.stop()
    for now, signs in ((20.0, 1), (25.0, 1)):
        first.beat()
        assert len(heard(receiver)) == signs, now
    first.stop()


def test_a_server_that_was_dropped_is_not_waited_for(receiver: NotifyReceiver) -> None:
    first, second = Heartbeat(10.0), Heartbeat(10.0)
    assert len(Heartbeat._last) >= 2
    before = len(Heartbeat._last)
    del second
    assert len(Heartbeat._last) == before - 1
    first.stop()


def test_a_server_in_a_thread_is_served_while_closing(
    short_path: Path, receiver: NotifyReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    server = Server(short_path / "a.ws")
    bridges = [Bridge(server.path) for _ in range(2)]
    for _ in bridges:
        assert server.dequeue(5)
    heard(receiver)
    thread = threading.Thread(target=server.close, args=(0.5,))
    thread.start()
    wait_for(lambda: not thread.is_alive())
    assert heard(receiver).count(["WATCHDOG=1"]) >= 4
    for bridge in bridges:
        bridge.socket.close()


# apachews._listening.activation: sockets that systemd made, played by hand.


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
