"""apachews._relay.presence: the members of groups over all producers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import ApachewsError, JoinEvent, LeaveEvent, Server, wire
from apachews._relay import presence
from apachews._relay.presence import (
    HEARTBEAT_S,
    LEAVE_DELAY_S,
    SNAPSHOT_INTERVALS,
    TIMEOUT_S,
    Presence,
)

from ..conftest import let_pass, wait_for
from ..support.bridge_by_hand import Bridge
from ..support.brokers import Broker, running_broker
from ..support.producers import program, running
from .test_relay import Producer, ask, received

# The core: several producers, a clock, and a network that can lose messages.


class Network:
    """Producers that hear each other, except those that are gone, and unless it loses messages."""

    def __init__(self, count: int = 3) -> None:
        self.now = 1000.0
        self.log: list[tuple[int, str, str, bool]] = []
        self.loses = False
        self.gone: set[int] = set()
        self.all = [self._new(number) for number in range(count)]
        self._queue: list[tuple[int, str | None, dict[str, Any]]] = []
        self.idle: list[tuple[int, str]] = []
        self.tick()

    def _new(self, number: int) -> Presence:
        def send(group: str | None, document: dict[str, Any]) -> None:
            if not self.loses:
                made = {"from": self.all[number].id, **document}
                self._queue.append((number, group, json.loads(json.dumps(made))))

        return Presence(
            send,
            lambda group, member, joined: self.log.append((number, group, member, joined)),
            lambda group: self.idle.append((number, group)),
        )

    def run(self) -> None:
        """Deliver what was sent, until nothing more is sent."""
        while self._queue:
            sender, group, document = self._queue.pop(0)
            for number, one in enumerate(self.all):
                if number != sender and number not in self.gone:
                    one.receive(group, document, self.now)

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass, in steps of a second."""
        end = self.now + seconds
        while True:
            for number, one in enumerate(self.all):
                if number not in self.gone:
                    one.tick(self.now, True)
            self.run()
            if self.now >= end:
                return
            self.now = min(end, self.now + 1.0)

    def join(self, number: int, member: str, group: str = "room") -> None:
        self.all[number].join(group, member)
        self.run()

    def leave(self, number: int, member: str, group: str = "room", at_once: bool = False) -> None:
        self.all[number].leave(group, member, self.now, at_once=at_once)
        self.run()

    def members(self, number: int, group: str = "room") -> set[str]:
        return set(self.all[number].members(group))

    def events(self, number: int) -> list[tuple[str, bool]]:
        """Return the changes that a producer was told since the last call."""
        mine = [(m, joined) for n, _, m, joined in self.log if n == number]
        self.log = [entry for entry in self.log if entry[0] != number]
        return mine


def test_members_of_all_producers() -> None:
    network = Network()
    network.join(0, "ann")
    network.join(1, "bob")
    assert network.members(0) == network.members(1) == {"ann", "bob"}
    assert network.members(2) == set(), "it has no client in the group"
    network.join(2, "cid")
    assert network.members(2) == {"ann", "bob", "cid"}
    assert sorted(network.events(2)) == [("ann", True), ("bob", True), ("cid", True)]
    assert network.events(0) == [("ann", True), ("bob", True), ("cid", True)]


def test_three_tabs_on_two_machines_are_one_member() -> None:
    network = Network()
    network.join(1, "bob")
    for number in (0, 0, 1):
        network.join(number, "ann")
    assert network.events(1) == [("bob", True), ("ann", True)]
    network.leave(0, "ann", at_once=True)
    network.leave(1, "ann", at_once=True)
    assert network.events(1) == [] and network.members(1) == {"bob", "ann"}
    network.leave(0, "ann", at_once=True)
    assert network.events(1) == [("ann", False)]
    assert network.members(0) == set() and network.idle == [(0, "room")]


def test_a_page_that_is_loaded_again_has_not_left() -> None:
    network = Network()
    network.join(0, "ann")
    network.join(1, "bob")
    network.events(1)
    network.leave(0, "ann")
    network.tick(LEAVE_DELAY_S - 1)
    network.join(0, "ann")
    network.tick(2 * LEAVE_DELAY_S)
    assert network.events(1) == []
    network.leave(0, "ann")
    network.tick(LEAVE_DELAY_S)
    assert network.events(1) == [("ann", False)]


def test_a_client_that_moves_to_the_next_producer_has_not_left() -> None:
    network = Network()
    network.join(1, "bob")
    network.join(0, "ann")
    network.events(1)
    network.leave(0, "ann")  # its connection to this producer has ended
    network.join(2, "ann")
    network.tick(2 * LEAVE_DELAY_S)
    assert network.events(1) == []


def test_members_of_a_producer_that_dies_are_gone_after_the_timeout() -> None:
    network = Network()
    network.join(0, "ann")
    network.join(1, "bob")
    network.join(1, "ann")
    network.events(0)
    network.gone.add(1)
    network.tick(TIMEOUT_S - 1)
    assert network.events(0) == [], "Apache holds its clients meanwhile"
    network.tick(HEARTBEAT_S + 1)
    assert network.events(0) == [("bob", False)]
    assert network.members(0) == {"ann"}


class CountedName(str):
    """A name that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        CountedName.compared += 1
        return str.__eq__(self, other)


def test_thousands_that_leave_at_once_are_not_compared_with_each_other() -> None:
    count = 1000
    idle: list[str] = []
    one = Presence(lambda *_: None, lambda *_: None, idle.append)
    groups = [CountedName(f"room {number}") for number in range(count)]
    for group in groups:
        one.join(group, "ann")
    for group in groups:
        one.leave(group, "ann", 0.0, at_once=False)
    CountedName.compared = 0
    one.tick(LEAVE_DELAY_S, True)
    assert idle == groups
    assert CountedName.compared < 20 * count


def test_a_producer_that_closes_says_so() -> None:
    network = Network()
    network.join(0, "ann")
    network.join(1, "bob")
    network.events(0)
    network.all[1].close()
    network.run()
    assert network.events(0) == [("bob", False)]


def test_a_relay_that_is_lost_makes_no_member_leave() -> None:
    network = Network(2)
    network.join(0, "ann")
    network.join(1, "bob")
    network.events(0)
    network.loses = True
    network.join(1, "cid")
    network.leave(1, "bob", at_once=True)
    for _ in range(100):
        network.now += HEARTBEAT_S
        for one in network.all:
            one.tick(network.now, False)
    assert network.events(0) == []
    network.loses = False
    for one in network.all:
        one.resynchronize(network.now)
    network.run()
    network.tick(HEARTBEAT_S)
    assert sorted(network.events(0)) == [("bob", False), ("cid", True)]
    assert network.members(0) == network.members(1) == {"ann", "cid"}


def test_a_lost_message_is_made_good() -> None:
    network = Network(2)
    network.join(0, "ann")
    network.join(1, "bob")
    network.loses = True
    network.join(1, "cid")
    network.leave(1, "bob", at_once=True)
    network.loses = False
    network.tick(2 * SNAPSHOT_INTERVALS * HEARTBEAT_S)
    assert network.members(0) == {"ann", "cid"}
    # The last one of a producer: nothing of this group comes from it any more.
    network.loses = True
    network.leave(1, "cid", at_once=True)
    network.loses = False
    network.tick(4 * SNAPSHOT_INTERVALS * HEARTBEAT_S)
    assert network.members(0) == {"ann"}


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"from": 1, "do": "+", "key": "x"},
        {"from": "x"},
        {"from": "x", "do": "+"},
        {"from": "x", "do": "+", "key": 7},
        {"from": "x", "do": "=", "keys": "abc"},
        {"from": "x", "do": "=", "keys": [1, None]},
        {"from": "x", "do": "-", "key": "never joined"},
        {"from": "x", "do": ["+"], "key": "x"},
    ],
)
def test_foreign_messages_change_nothing(document: dict[str, Any]) -> None:
    network = Network(1)
    network.join(0, "ann")
    for group in ("room", "other", None):
        network.all[0].receive(group, document, network.now)
    assert network.members(0) == {"ann"}


STEPS = st.lists(
    st.tuples(st.sampled_from("jlart"), st.integers(0, 2), st.sampled_from(["ann", "bob"])),
    max_size=30,
)


@given(STEPS)
def test_events_and_members_agree_after_any_history(
    steps: list[tuple[str, int, str]],
) -> None:
    network = Network()
    clients: dict[tuple[int, str], int] = {}
    seen: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}

    def check() -> None:
        for number, _, member, joined in network.log:
            assert (member in seen[number]) != joined, "each change is told once"
            (seen[number].add if joined else seen[number].discard)(member)
        network.log.clear()
        for number in range(3):
            if (number, "room") in network.idle:
                seen[number].clear()
        network.idle.clear()
        for number in range(3):
            assert seen[number] == network.members(number)

    for action, number, member in steps:
        key = number, member
        if action == "j":
            clients[key] = clients.get(key, 0) + 1
            network.join(number, member)
        elif action in "la" and clients.get(key):
            clients[key] -= 1
            network.leave(number, member, at_once=action == "a")
        elif action == "r":
            network.all[number].resynchronize(network.now)
            network.run()
        elif action == "t":
            network.tick(2.0)
        check()
    network.tick(2 * LEAVE_DELAY_S + 2 * HEARTBEAT_S)
    check()
    present = {member for (_, member), count in clients.items() if count}
    for number in range(3):
        has_client = any(count for (n, _), count in clients.items() if n == number)
        assert network.members(number) == (present if has_client else set())


# Producers.


@pytest.fixture
def broker(short_path: Path) -> Iterator[Broker]:
    with running_broker(short_path) as broker:
        yield broker


class Room(Producer):
    """A producer with presence whose clients join ``join:GROUP`` as their user."""

    def __init__(self, path: Path, relay: str) -> None:
        super().__init__(path, relay, relay_name="chat.ws", presence=True)
        wait_for(lambda: not relay or self.is_up)

    def enter(self, user: str, group: str = "room") -> Bridge:
        bridge = Bridge(
            self.path, wire.Open(id=f"{user}-{os.urandom(4).hex()}", uri="/", user=user)
        )
        self._clients.append(bridge)
        bridge.send(wire.TEXT, f"join:{group}".encode())
        assert received(bridge, 1) == ["joined"]
        return bridge

    def members(self, group: str = "room") -> list[str]:
        return sorted(self.server.group(group).members())

    def changes(self) -> list[tuple[str, bool]]:
        return [
            (event.member, isinstance(event, JoinEvent))
            for event in self.events
            if isinstance(event, (JoinEvent, LeaveEvent))
        ]


@contextmanager
def rooms(directory: Path, relay: str, count: int = 2) -> Iterator[list[Room]]:
    made: list[Room] = []
    try:
        for number in range(count):
            made.append(Room(directory / f"{number}.ws", relay))
        yield made
    finally:
        for one in made:
            one.close()


def test_without_presence_there_are_no_members(short_path: Path) -> None:
    with Server(short_path / "a.ws") as server, pytest.raises(ApachewsError, match="presence=True"):
        server.group("room").members()


def test_a_single_producer_has_members_too(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "LEAVE_DELAY_S", 0.2)
    with rooms(short_path, "", 1) as (one,):
        tabs = [one.enter("ann") for _ in range(3)]
        one.enter("bob")
        assert one.members() == ["ann", "bob"]
        for tab in tabs:
            tab.socket.close()
        wait_for(lambda: one.members() == ["bob"])
        assert one.changes() == [("ann", True), ("bob", True), ("ann", False)]


@pytest.mark.parametrize(
    ("payload", "is_at_once"),
    [(b"", True), (wire.encode_close(1000), True), (wire.encode_close(1001), False)],
)
def test_a_client_that_is_closed_on_purpose_has_left_at_once(
    short_path: Path, payload: bytes, is_at_once: bool
) -> None:
    with rooms(short_path, "", 1) as (one,):
        one.enter("bob")
        one.enter("ann").send(wire.CLOSE, payload)
        wait_for(lambda: len(one.server.clients()) == 1)
        if is_at_once:
            wait_for(lambda: one.members() == ["bob"], 1.0)
        else:
            assert one.members() == ["ann", "bob"]


def test_members_of_two_machines(
    short_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "LEAVE_DELAY_S", 0.2)
    with rooms(short_path, broker.url) as (one, two):
        ann, bob = one.enter("ann"), two.enter("bob")
        for room in (one, two):
            wait_for(lambda room=room: room.members() == ["ann", "bob"])  # type: ignore[misc]
        tab = two.enter("ann")
        ann.socket.close()
        let_pass(0.5)
        assert one.members() == [] and two.members() == ["ann", "bob"]
        assert sorted(two.changes()) == [("ann", True), ("bob", True)]
        # It follows the group again, from the beginning.
        ann = one.enter("cid")
        wait_for(lambda: one.members() == ["ann", "bob", "cid"])
        tab.socket.close()
        bob.socket.close()
        for room in (one, two):
            wait_for(lambda room=room: room.members() in (["cid"], []))  # type: ignore[misc]
        wait_for(lambda: one.members() == ["cid"])


def test_a_gap_of_the_relay_is_closed(
    short_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "LEAVE_DELAY_S", 0.2)
    with rooms(short_path, broker.url) as (one, two):
        one.enter("ann")
        bob = two.enter("bob")
        for room in (one, two):
            wait_for(lambda room=room: room.members() == ["ann", "bob"])  # type: ignore[misc]
        broker.kill()
        wait_for(lambda: not one.is_up and not two.is_up)
        bob.socket.close()
        two.enter("cid")
        wait_for(lambda: two.members() == ["ann", "cid"])
        assert one.members() == ["ann", "bob"]
        broker.start()
        for room in (one, two):
            wait_for(lambda room=room: room.members() == ["ann", "cid"])  # type: ignore[misc]


MEMBERS = """
import os, sys
from apachews import Event, Server
from apachews._relay import presence

presence.HEARTBEAT_S, presence.TIMEOUT_S = 0.2, 1.0
server = Server(
    sys.argv[1], workers=int(sys.argv[2]), relay=sys.argv[3], relay_name="chat.ws", presence=True
)
for event in server:
    if event.type() is Event.IO:
        word, _, rest = event.read().partition(" ")
        if word == "join":
            server.group("room").add(event.client(), member=rest)
            event.write("joined")
        elif word == "who":
            event.write(str(os.getpid()))
        else:
            event.write(",".join(sorted(server.group("room").members())))
"""


def test_members_of_all_workers(short_path: Path) -> None:
    path = str(short_path / "w.ws")
    with running(program(short_path, MEMBERS), path, "2", ""):
        wait_for(lambda: os.path.exists(path))
        clients: dict[str, Bridge] = {}
        while len(clients) < 2:
            bridge = Bridge(path)
            if (pid := ask(bridge, "who")) in clients:
                bridge.socket.close()
            else:
                clients[pid] = bridge
        for number, client in enumerate(clients.values()):
            ask(client, f"join member-{number}")
        for client in clients.values():
            wait_for(lambda client=client: ask(client, "list") == "member-0,member-1")  # type: ignore[misc]
        (pid, one), (_, two) = clients.items()
        os.kill(int(pid), signal.SIGKILL)
        wait_for(lambda: ask(two, "list") == "member-1")
        for client in (one, two):
            client.socket.close()


def test_members_of_a_machine_that_died_are_gone(
    short_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(presence, "TIMEOUT_S", 1.0)
    path = str(short_path / "p.ws")
    with rooms(short_path, broker.url, 1) as (one,):
        one.enter("ann")
        with running(program(short_path, MEMBERS), path, "0", broker.url) as process:
            wait_for(lambda: os.path.exists(path))
            bridge = Bridge(path)
            ask(bridge, "join bob")
            wait_for(lambda: one.members() == ["ann", "bob"])
            process.kill()
            process.wait()
            bridge.socket.close()
            wait_for(lambda: one.members() == ["ann"])
        assert one.changes()[-1] == ("bob", False)


def test_a_deploy_is_no_leave(
    short_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "LEAVE_DELAY_S", 0.3)
    monkeypatch.setattr(presence, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(presence, "TIMEOUT_S", 2.0)
    with rooms(short_path, broker.url) as (one, two):
        one.enter("ann")
        bob = two.enter("bob")
        wait_for(lambda: one.members() == ["ann", "bob"])
        successor = Room(short_path / "1.ws", broker.url)  # takes the socket over
        try:
            two.server.drain()
            wait_for(lambda: any(not isinstance(i, str) for i in bob.read_available()))
            bob.send(wire.MOVE)
            successor.enter("bob")
            wait_for(lambda: two.server._loop.is_closed)
            let_pass(2.5)  # the old producer is forgotten
            assert one.changes() == [("ann", True), ("bob", True)]
            assert one.members() == successor.members() == ["ann", "bob"]
        finally:
            successor.close()
        wait_for(lambda: one.members() == ["ann"])
