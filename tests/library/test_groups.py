"""apachews.client.Group: which clients get a broadcast, and which have left."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apachews import Client, Delivery, Event, Server, wire

from ..support.bridge_by_hand import Bridge

Connect = Callable[[], tuple[Bridge, Client]]


@pytest.fixture
def server(short_path: Path) -> Iterator[Server]:
    with Server(short_path / "rooms.ws", max_queue_bytes=100_000) as server:
        yield server


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    bridges = []

    def connect() -> tuple[Bridge, Client]:
        bridge = Bridge(server.path)
        bridges.append(bridge)
        event = server.dequeue(5)
        assert event
        return bridge, event.client()

    yield connect
    for bridge in bridges:
        bridge.socket.close()


def until_closed(server: Server) -> Event:
    while (event := server.dequeue(5)) and event.type() is not Event.ConnectionClosed:
        pass
    assert event
    return event


def test_a_broadcast_reaches_the_members_and_nobody_else(server: Server, connect: Connect) -> None:
    bridges, clients = zip(*(connect() for _ in range(4)), strict=True)
    room = server.group("room")
    for client in clients[:3]:
        assert room.add(client)
    assert (len(room), list(room), clients[3] in room) == (3, list(clients[:3]), False)
    assert room.broadcast("to all") == Delivery(reached=3, skipped=0)
    assert room.broadcast(b"but one", exclude=clients[0]) == (2, 0)
    assert room.broadcast("but two", exclude=clients[:2]) == (1, 0)
    received = [bridge.read_available() for bridge in bridges]
    assert received == [["to all"], ["to all", b"but one"], ["to all", b"but one", "but two"], []]


def test_a_client_is_in_a_group_once_and_in_as_many_as_it_likes(
    server: Server, connect: Connect
) -> None:
    bridge, client = connect()
    first, second = server.group("a"), server.group("b")
    for group in (first, first, second):
        assert group.add(client)
    assert set(client.groups) == {first, second}
    assert first.broadcast("once") == (1, 0)
    assert bridge.read_available() == ["once"]
    first.discard(client)
    first.discard(client)
    assert client.groups == [second]
    assert first.broadcast("to an empty group") == (0, 0)


def test_one_name_is_one_group_while_somebody_is_in_it(server: Server, connect: Connect) -> None:
    _, client = connect()
    server.group("room").add(client)
    gc.collect()
    assert client in server.group("room")
    server.group("room").discard(client)
    gc.collect()
    assert client not in server.group("room")
    assert repr(server.group("room")) == "<Group 'room' of 0>"


@pytest.mark.parametrize("way", ["the client leaves", "it is closed", "it breaks the rules"])
def test_who_is_gone_is_in_no_group(server: Server, connect: Connect, way: str) -> None:
    bridge, client = connect()
    room = server.group("room")
    room.add(client)
    if way == "the client leaves":
        bridge.socket.close()
    elif way == "it is closed":
        client.close()
        assert room.broadcast("too late") == Delivery(reached=0, skipped=1)
        bridge.send(wire.CLOSE, wire.encode_close(1000))
    else:
        bridge.socket.sendall(b"\xff\xff")
    until_closed(server)
    assert (len(room), client.groups) == (0, [])
    assert not room.add(client)


def test_a_slow_member_keeps_nobody_waiting(server: Server, connect: Connect) -> None:
    (_, slow), (bridge, fast) = connect(), connect()
    room = server.group("room")
    room.add(slow)
    data = b"x" * 50_000
    while room.broadcast(data).reached:
        pass
    assert slow.has_ended
    room.add(fast)
    assert room.broadcast("go on") == Delivery(reached=1, skipped=0)
    assert bridge.read_available() == ["go on"]
    assert until_closed(server).code == 1013
    assert list(room) == [fast]


def test_a_client_that_has_moved_is_in_no_group(server: Server, connect: Connect) -> None:
    bridge, client = connect()
    room = server.group("room")
    room.add(client)
    server.drain()
    bridge.send(wire.MOVE)
    assert until_closed(server).code == 1012
    assert room.broadcast("a last word") == (1, 0)
    assert list(server) == []
    assert len(room) == 0


def test_values_are_sent_as_json(server: Server, connect: Connect) -> None:
    bridge, client = connect()
    room = server.group("room")
    room.add(client)
    assert room.broadcast_json({"grüße": 1}) == (1, 0)
    assert room.broadcast_json([], exclude=client) == (0, 0)
    assert server.broadcast_json(None) == 1
    assert bridge.read_available() == ['{"grüße":1}', "null"]
    for broadcast in (room.broadcast_json, server.broadcast_json):
        with pytest.raises(TypeError):
            broadcast({1, 2})
        with pytest.raises(ValueError):
            broadcast(float("inf"))
    assert bridge.read_available() == []
