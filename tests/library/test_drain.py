"""Server.drain() and the takeover: clients go to the next producer, and lose nothing."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from apachews import Client, ErrorEvent, Event, EventType, Server, ServerClosed, SocketInUse, wire
from apachews.wire.reader import Moved

from ..conftest import wait_for
from ..support.bridge_by_hand import OPEN, Bridge, Item, Load

MOVED = "moved to another producer"


@pytest.fixture
def server(short_path: Path) -> Iterator[Server]:
    with Server(short_path / "echo.ws") as server:
        yield server


def next_event(server: Server, type: EventType) -> Event:
    event = server.dequeue(5)
    assert event is not None, f"no {type!r} came"
    assert event.type() is type, event
    return event


def connected(server: Server) -> tuple[Bridge, Client]:
    bridge = Bridge(server.path)
    return bridge, next_event(server, Event.Accept).client()


def assert_closed(server: Server) -> None:
    with pytest.raises(ServerClosed):
        server.dequeue(5)


def test_a_client_moves_when_all_it_said_was_handled(server: Server) -> None:
    bridge, client = connected(server)
    server.drain()
    server.drain()
    assert bridge.read_available() == [Moved()]
    bridge.send(wire.TEXT, b"one")
    event = next_event(server, Event.IO)
    assert event.write("answer to one")
    assert server.clients() == [client]
    assert server.broadcast("all") == 1
    bridge.send(wire.TEXT, b"two")
    bridge.send(wire.MOVE)
    event = next_event(server, Event.IO)
    assert event.write("answer to two")
    assert server.clients() == [client]
    event = next_event(server, Event.ConnectionClosed)
    assert (event.code, event.reason) == (1012, MOVED)
    assert server.clients() == []
    assert event.write("last words")
    assert_closed(server)
    assert not client.send("late")
    said = ["answer to one", "all", "answer to two", "last words"]
    assert bridge.read_available() == said
    assert bridge.is_at_end  # and no CLOSE before
    bridge.socket.close()


def test_what_is_queued_for_a_slow_client_goes_first(server: Server) -> None:
    bridge, client = connected(server)
    data = "x" * 1_000_000
    assert client.send(data)
    server.drain()
    bridge.send(wire.MOVE)
    event = next_event(server, Event.ConnectionClosed)
    assert event.write("last words")
    # A bridge that has nothing more to send may say so.
    bridge.socket.shutdown(socket.SHUT_WR)
    received: list[Item] = []
    while len(received) < 3:
        with suppress(ServerClosed):
            assert server.dequeue(0.01) is None
        received += bridge.read_available()
    assert received == [data, Moved(), "last words"]
    assert_closed(server)
    assert bridge.is_at_end
    bridge.socket.close()


def test_for_ends_by_itself(server: Server) -> None:
    bridges = [connected(server)[0] for _ in range(3)]
    for bridge in bridges:
        bridge.send(wire.TEXT, b"hi")
        bridge.send(wire.MOVE)
    seen = []
    for event in server:
        seen.append(event.type())
        server.drain()
    assert sorted(map(repr, seen)) == ["Event.ConnectionClosed"] * 3 + ["Event.IO"] * 3
    for bridge in bridges:
        bridge.socket.close()


def test_a_client_that_closes_meanwhile_is_closed(server: Server) -> None:
    bridge, _ = connected(server)
    server.drain()
    bridge.send(wire.CLOSE, wire.encode_close(4001, "bye"))
    next_event(server, Event.Close)
    assert next_event(server, Event.ConnectionClosed).code == 4001
    assert_closed(server)
    bridge.socket.close()


def test_a_bridge_that_dies_meanwhile_is_gone(server: Server) -> None:
    bridge, _ = connected(server)
    moved, _ = connected(server)
    server.drain()
    bridge.socket.close()
    assert next_event(server, Event.ConnectionClosed).code == 1006
    moved.send(wire.MOVE)
    moved.socket.close()
    assert next_event(server, Event.ConnectionClosed).code == 1012
    assert_closed(server)


def test_the_program_closes_a_client_that_moves(server: Server) -> None:
    bridge, _ = connected(server)
    server.drain()
    bridge.socket.sendall(wire.encode_frame(wire.TEXT, b"a") + wire.encode_frame(wire.MOVE, b""))
    event = next_event(server, Event.IO)
    event.close(4000, "enough")
    assert next_event(server, Event.ConnectionClosed).code == 1012
    assert_closed(server)
    assert bridge.read_available() == [Moved(), wire.Close(4000, "enough")]
    assert bridge.is_at_end
    bridge.socket.close()


def test_close_at_the_last_event_sends_no_frame(server: Server) -> None:
    """As the seed's program does."""
    bridge, _ = connected(server)
    server.drain()
    bridge.send(wire.MOVE)
    event = next_event(server, Event.ConnectionClosed)
    event.close()
    assert event.write("a last word")
    assert_closed(server)
    assert bridge.read_available() == [Moved(), "a last word"]
    assert bridge.is_at_end
    bridge.socket.close()


def test_a_close_that_crosses_the_move(server: Server) -> None:
    bridge, client = connected(server)
    server.drain()
    client.close(4000)
    bridge.send(wire.MOVE)
    assert next_event(server, Event.ConnectionClosed).code == 1006
    assert_closed(server)
    bridge.socket.close()


def test_a_bridge_that_moves_before_it_is_answered_has_left(server: Server) -> None:
    """A bridge never does; but an accepted client must cause its ConnectionClosed."""
    with Bridge(server.path, dataclasses.replace(OPEN, answer_required=True)).socket as sock:
        client = next_event(server, Event.Accept).client()
        sock.sendall(wire.encode_frame(wire.MOVE, b""))
        assert next_event(server, Event.ConnectionClosed).code == 1006
        assert not client.accept()


def test_a_bridge_that_does_not_know_move_is_left_in_time(server: Server) -> None:
    bridge, _ = connected(server)
    half_open = Bridge(server.path, None)
    assert server.dequeue(0) is None
    server.drain(timeout=0.05)
    bridge.send(wire.TEXT, b"and on")
    next_event(server, Event.IO)
    event = next_event(server, Event.ConnectionClosed)
    assert event.code == 1012
    assert not event.write("late")
    assert_closed(server)
    assert bridge.read_available() == [Moved()]
    assert bridge.is_at_end
    assert half_open.is_at_end
    for end in (bridge, half_open):
        end.socket.close()


def test_a_program_too_slow_for_its_events_is_left_too(server: Server) -> None:
    bridge, _ = connected(server)
    other, _ = connected(server)
    server.drain(timeout=0.2)
    bridge.send(wire.TEXT, b"hard")
    bridge.send(wire.MOVE)
    hard = next_event(server, Event.IO)
    other.send(wire.TEXT, b"easy")
    started = time.monotonic()
    while time.monotonic() - started < 0.2:
        pass  # the program works
    seen = list(server)
    assert sorted((event.type().name, event.code) for event in seen) == [
        ("ConnectionClosed", 1012),
        ("ConnectionClosed", 1012),
    ]
    assert not hard.write("late")
    for end in (bridge, other):
        end.socket.close()


def test_who_has_come_but_not_been_heard_is_moved_with_his_messages(server: Server) -> None:
    early = Bridge(server.path, None)
    assert server.dequeue(0) is None  # accepted
    waiting = Bridge(server.path)
    waiting.send(wire.TEXT, b"hi")
    server.drain()
    assert not os.path.exists(server.path)  # no new client connects
    early.socket.sendall(OPEN.encode())
    for bridge in (early, waiting):
        wait_for(lambda: server.dequeue(0) or True)
        bridge.send(wire.MOVE)
    seen = list(server)
    assert not any(event.type() is Event.Invalid for event in seen)
    assert waiting.read_available() == early.read_available() == [Moved()]
    for bridge in (early, waiting):
        bridge.socket.close()


def test_who_waits_to_be_accepted_is_refused(server: Server) -> None:
    asking = Bridge(server.path, dataclasses.replace(OPEN, answer_required=True))
    event = next_event(server, Event.Accept)
    late = Bridge(server.path, dataclasses.replace(OPEN, answer_required=True))
    server.drain()
    assert not event.accept()
    assert not next_event(server, Event.Accept).accept()
    for bridge in (asking, late):
        assert b'"status":503' in bridge.socket.recv(1000)
        bridge.socket.close()
    assert [event.reason for event in server] == ["it was rejected"] * 2


def test_close_during_a_drain_closes_the_rest(server: Server) -> None:
    bridge, _ = connected(server)
    moved, _ = connected(server)
    server.drain()
    moved.send(wire.MOVE)
    assert server.dequeue(5) is not None
    server.close()
    assert [event.code for event in server] == [1001]
    close = wire.Close(1001, "the server closes")
    assert bridge.read_available() == [Moved(), close]
    assert moved.read_available() == [Moved()]  # the program knew that it had gone
    for end in (bridge, moved):
        end.socket.close()


def test_draining_without_clients_or_after_the_end(short_path: Path) -> None:
    server = Server(short_path / "a.ws")
    server.drain()
    assert list(server) == []
    assert not os.path.exists(server.path)
    server.drain()
    server.close()
    assert_closed(server)


def test_an_accept_says_whether_another_producer_had_the_client(server: Server) -> None:
    first = Bridge(server.path)
    event = next_event(server, Event.Accept)
    assert not event.resumed
    again = Bridge(server.path, dataclasses.replace(OPEN, resumed=True))
    event = next_event(server, Event.Accept)
    assert event.resumed
    again.send(wire.TEXT, b"x")
    assert not next_event(server, Event.IO).resumed
    assert not ErrorEvent(None).resumed
    for bridge in (first, again):
        bridge.socket.close()


def test_after_a_takeover_each_keeps_its_own(server: Server) -> None:
    old, _ = connected(server)
    with Server(server.path) as second:
        new, _ = connected(second)
        for bridge, its_server in ((old, server), (new, second)):
            bridge.send(wire.TEXT, b"hi")
            assert next_event(its_server, Event.IO).write("yo")
            assert bridge.read_available() == ["yo"]
        server.close()
        assert os.path.exists(second.path)
        third, _ = connected(second)
        for bridge in (old, new, third):
            bridge.socket.close()


def test_exclusive_refuses(server: Server) -> None:
    with pytest.raises(SocketInUse):
        Server(server.path, exclusive=True)


class Echo(threading.Thread):
    """A producer in a thread, until its server ends."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.server = Server(path)
        self.resumed = 0
        self.start()

    def run(self) -> None:
        for event in self.server:
            self.resumed += event.resumed
            if event.type() is Event.IO:
                event.write(event.read())

    def end_by(self, call: Callable[[], object]) -> None:
        self.server.call_soon(call)
        self.join(10)
        assert not self.is_alive()


def test_under_load_every_message_is_answered_once_and_in_order(short_path: Path) -> None:
    path = str(short_path / "e.ws")
    echo = Echo(path)
    load = Load(path, 20)
    try:
        for _ in range(5):
            enough = load.answered + 20
            wait_for(lambda enough=enough: load.answered >= enough)  # type: ignore[misc]
            successor = Echo(path)
            echo.end_by(echo.server.drain)
            echo = successor
        wait_for(lambda: load.accepts == 6)
        wait_for(lambda: echo.resumed == 20)  # it may still have events to dequeue
    finally:
        load.stop()
        echo.end_by(echo.server.close)
    assert (load.faults, load.lost, load.refused) == ([], 0, 0)
    assert all(client.sent == client.answered for client in load.clients)


def test_without_a_successor_they_are_held_until_one_comes(short_path: Path) -> None:
    path = str(short_path / "e.ws")
    echo = Echo(path)
    load = Load(path, 5)
    try:
        wait_for(lambda: load.answered >= 20)
        echo.end_by(echo.server.drain)
        assert not os.path.exists(path)
        echo = Echo(path)
        enough = load.answered + 20
        wait_for(lambda: load.answered >= enough)
    finally:
        load.stop()
        echo.end_by(echo.server.close)
    assert (load.faults, load.lost) == ([], 0)
