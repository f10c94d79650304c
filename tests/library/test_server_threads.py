"""apachews.server: what other threads do while one waits for events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import apachews._server.connections
from apachews import Client, Event, Server, ServerClosed, wire

from ..conftest import wait_for
from ..support.bridge_by_hand import Bridge


@pytest.fixture
def server(short_path: Path) -> Iterator[Server]:
    with Server(short_path / "echo.ws", max_queue_bytes=100_000) as server:
        yield server


@pytest.fixture
def bridge(server: Server) -> Iterator[Bridge]:
    bridge = Bridge(server.path)
    yield bridge
    bridge.socket.close()


@contextmanager
def waiting(server: Server) -> Iterator[list[Event]]:
    """Take events in a thread that never asks for a timeout; give those it got."""
    events: list[Event] = []

    def take() -> None:
        try:
            while True:
                events.append(server.dequeue())
        except ServerClosed:
            pass

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield events
    finally:
        server.close()
        thread.join(10)
        assert not thread.is_alive()


def accepted(events: list[Event]) -> Client:
    wait_for(lambda: events)
    assert events[0].type() is Event.Accept
    return events[0].client()


def test_every_thread_may_send(server: Server, bridge: Bridge) -> None:
    with waiting(server) as events:
        client = accepted(events)

        def send(name: int) -> None:
            for number in range(200):
                assert client.send(f"{name} {number}")

        threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        received: list[str] = []
        while len(received) < 800:
            received += [str(item) for item in wait_for(bridge.read_available)]
        for thread in threads:
            thread.join()
    for name in range(4):
        mine = [text for text in received if text.startswith(f"{name} ")]
        assert mine == [f"{name} {number}" for number in range(200)]


def test_what_another_thread_queues_goes_out(server: Server, bridge: Bridge) -> None:
    with waiting(server) as events:
        client = accepted(events)
        data = b"x" * 50_000
        sent = 0
        while client.queued_bytes == 0:
            assert client.send(data)
            sent += 1
        received = 0
        while received < sent:
            received += len(wait_for(bridge.read_available))
        assert client.queued_bytes == 0


def flood(client: Client) -> None:
    while client.send(b"x" * 50_000):
        pass


@pytest.mark.parametrize(
    ("action", "code"), [(flood, 1013), (lambda client: client.close(), 1006)], ids=["1013", "1006"]
)
def test_what_another_thread_brings_about_is_an_event_at_once(
    server: Server,
    bridge: Bridge,
    monkeypatch: pytest.MonkeyPatch,
    action: Callable[[Client], None],
    code: int,
) -> None:
    monkeypatch.setattr(apachews._server.connections, "CLOSE_TIMEOUT_S", 0.05)
    with waiting(server) as events:
        action(accepted(events))  # the bridge does not answer
        wait_for(lambda: len(events) == 2)
        assert (events[1].type(), events[1].code) == (Event.ConnectionClosed, code)


def test_a_broadcast_while_clients_come_and_go(server: Server) -> None:
    with waiting(server) as events:
        ended = threading.Event()
        reached: list[int] = []

        def speak() -> None:
            while not ended.is_set():
                reached.append(server.broadcast("to all"))

        thread = threading.Thread(target=speak)
        thread.start()
        for _ in range(50):
            bridge = Bridge(server.path)
            assert wait_for(bridge.read_available)[0] == "to all"
            bridge.socket.close()
        ended.set()
        thread.join()
        assert max(reached) >= 1
        wait_for(lambda: sum(event.type() is Event.ConnectionClosed for event in events) == 50)


def test_another_thread_closes_the_server(server: Server, bridge: Bridge) -> None:
    with waiting(server) as events:
        accepted(events)
        server.close()
        assert wait_for(bridge.read_available) == [wire.Close(1001, "the server closes")]
        wait_for(lambda: events[-1].type() is Event.ConnectionClosed)


def test_another_thread_hands_the_clients_on(server: Server, bridge: Bridge) -> None:
    with waiting(server) as events:
        accepted(events)
        server.drain()
        wait_for(bridge.read_available)
        bridge.send(wire.MOVE)
        wait_for(lambda: events[-1].code == 1012)


def test_nobody_finds_a_server_half_closed(server: Server, bridge: Bridge) -> None:
    """A thread calls dequeue() while another closes a slow client."""
    accepted = server.dequeue(5)
    assert accepted
    flooded = accepted.client()
    while flooded.queued_bytes == 0:
        flooded.send(b"x" * 50_000)
    closing = threading.Thread(target=server.close)
    closing.start()
    wait_for(lambda: server._loop.is_closed)
    with pytest.raises(ServerClosed):
        while True:
            server.dequeue_nowait()
    assert not flooded.queued_bytes, "it was given up"
    closing.join(10)
    assert not closing.is_alive()
