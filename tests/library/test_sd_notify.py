"""apachews._processes.sd_notify: what systemd hears, in a process and from several servers."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews import Event, Server, wire
from apachews._processes import sd_notify
from apachews._processes.sd_notify import Heartbeat, NotifyReceiver

from ..conftest import wait_for
from ..support.bridge_by_hand import Bridge


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
