"""apachews.history: the last messages of a group, and catching up, in each of the three stores."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apachews import (
    Client,
    Event,
    GapEvent,
    Group,
    HistoryError,
    LeaveEvent,
    Position,
    PublishError,
    Replay,
    Server,
    aio,
    publish,
    threads,
    wire,
)
from apachews._relay import relay, stream
from apachews._relay.engine import EngineError
from apachews._server import history_file
from apachews._server.histories import KEEP_EMPTY_S, KEEP_S, REFRESH_S
from apachews.exceptions import WireError
from apachews.history import Bounds, Entry, Log, position_of, without_holes

from ..conftest import DEADLINE_S, wait_for
from ..support.bridge_by_hand import Bridge
from ..support.brokers import SERVERS, Broker, OtherMachine, running_broker, running_cluster
from ..support.producers import ROOT, program, running

NOW = 1000.0
BOUNDS = Bounds(5, 60.0, 100)


def filled(last: int, bounds: Bounds = BOUNDS, epoch: str = "e") -> Log:
    log = Log(bounds)
    log.reset(epoch, 0)
    for offset in range(1, last + 1):
        log.append(Entry(offset, NOW, str(offset)), NOW)
    return log


# The log.


@pytest.mark.parametrize(
    ("since", "offsets", "has_gap"),
    [
        (None, [], False),
        (("", 0), [4, 5, 6, 7, 8], False),
        (("e", 8), [], False),
        (("e", 7), [8], False),
        (("e", 3), [4, 5, 6, 7, 8], False),
        (("e", 2), [4, 5, 6, 7, 8], True),
        (("e", 0), [4, 5, 6, 7, 8], True),
        (("e", 9), [4, 5, 6, 7, 8], True),
        (("e", -1), [4, 5, 6, 7, 8], True),
        (("f", 8), [4, 5, 6, 7, 8], True),
    ],
)
def test_a_client_gets_all_that_it_missed_or_a_gap(
    since: tuple[str, int] | None, offsets: list[int], has_gap: bool
) -> None:
    replay = filled(8).replay(since and Position(*since), NOW)
    assert [message.offset for message in replay.messages] == offsets
    assert [message.data for message in replay.messages] == [str(offset) for offset in offsets]
    assert replay.has_gap == has_gap and replay.position == ("e", 8)


def test_messages_leave_the_log_by_number_age_and_bytes() -> None:
    assert len(filled(8)) == 5
    log = filled(3)
    log.append(Entry(4, NOW + 59, "4"), NOW + 59)
    assert len(log) == 4
    assert log.replay(Position("e", 3), NOW + 60).messages == [(4, "4")]
    assert log.replay(Position("e", 2), NOW + 60).has_gap
    log.append(Entry(5, NOW + 60, "x" * 100), NOW + 60)
    assert len(log) == 1, "100 bytes at most"
    log.append(Entry(6, NOW + 60, "y" * 1000), NOW + 60)
    assert [entry.offset for entry in log.after(0)] == [6], "the last one stays"


@pytest.mark.parametrize(
    ("offsets", "kept"),
    [([], []), ([3], []), ([5], [5]), ([1, 2, 4, 5], [4, 5]), ([2, 3, 4, 5], [2, 3, 4, 5])],
)
def test_what_is_before_a_hole_is_lost(offsets: list[int], kept: list[int]) -> None:
    entries = [Entry(offset, NOW, "") for offset in offsets]
    assert [entry.offset for entry in without_holes(entries, 5)] == kept


@pytest.mark.parametrize("since", ["e", 3, (), ("e",), ("e", "3"), (3, "e"), ("e", True), {"e": 3}])
def test_what_is_not_a_position_is_refused(since: Any) -> None:
    with pytest.raises(ValueError, match="expected an epoch"):
        position_of(since)
    assert position_of(["e", 3]) == position_of(("e", 3)) == Position("e", 3)


@settings(deadline=None)
@given(
    length=st.integers(1, 6),
    steps=st.lists(st.sampled_from(["send", "time", "lose", "come", "go"]), max_size=60),
    seed=st.integers(0, 2**32),
)
def test_every_client_has_all_messages_once_or_knows_of_a_gap(
    length: int, steps: list[str], seed: int
) -> None:
    """Clients come and go at random, and the store loses messages."""
    pick = random.Random(seed)
    log, now, epoch = Log(Bounds(length, 10.0, 12)), NOW, 0
    log.reset("0", 0)
    sent: list[tuple[str, int]] = []
    # What each client has, and whether it may have missed something.
    have: list[list[tuple[str, int]]] = [[] for _ in range(3)]
    online = [False] * 3
    for step in steps:
        who = pick.randrange(3)
        if step == "send":
            log.append(Entry(log.top + 1, now, "x" * pick.randrange(8)), now)
            sent.append((log.epoch, log.top))
            for client in range(3):
                if online[client]:
                    have[client].append(sent[-1])
        elif step == "time":
            now += pick.choice([1.0, 6.0])
        elif step == "lose":
            epoch += 1
            log.reset(str(epoch), 0)
            sent.clear()
            have = [[] for _ in range(3)]
            online = [False] * 3
        elif step == "go":
            online[who] = False
        elif not online[who]:
            since = Position(*have[who][-1]) if have[who] else Position(log.epoch, 0)
            replay = log.replay(since, now)
            new = [(log.epoch, message.offset) for message in replay.messages]
            if replay.has_gap:
                have[who] = sent[: len(sent) - len(new)]  # the program starts it anew
            have[who] += new
            assert have[who] == sent
            online[who] = True


# The store of the process, and what all stores have in common.


class Room:
    """A server and its group, whose messages have their positions."""

    def __init__(self, path: Path, history: int = 100, **settings: Any) -> None:
        self.server = Server(path, **settings)
        self.events: list[Event] = []
        self.group = self.server.group("room", history=history, formatter=numbered)
        self._bridges: list[Bridge] = []

    def client(self) -> tuple[Bridge, Client]:
        bridge = Bridge(self.server.path)
        self._bridges.append(bridge)
        while (
            not isinstance(event := self.turn(DEADLINE_S), Event)
            or event.type() is not Event.Accept
        ):
            pass
        return bridge, event.client()

    def member(self, since: Any = None, **more: Any) -> Bridge:
        bridge, client = self.client()
        assert self.group.add(client, since=since, **more)
        return bridge

    def client_of_the_last_event(self) -> Client:
        return self.events[-1].client()

    def turn(self, timeout_s: float = 0.0) -> Event | None:
        event = self.server.dequeue(timeout_s)
        if event is not None:
            self.events.append(event)
        return event

    def read(self, bridge: Bridge, count: int) -> list[Any]:
        """Return the next messages of a client: offset and text."""
        items: list[Any] = []

        def has_all() -> bool:
            self.turn()
            items.extend(json.loads(item) for item in bridge.read_available())  # type: ignore[arg-type]
            return len(items) >= count

        wait_for(has_all, what=lambda: f"{len(items)} of {count}: {items[-3:]!r:.200}")
        return [(offset, text) for _, offset, text in items]

    def gaps(self) -> list[tuple[Client | None, str]]:
        self.turn()
        return [(e.client_or_none(), e.group) for e in self.events if isinstance(e, GapEvent)]

    def close(self) -> None:
        self.server.close()
        for bridge in self._bridges:
            bridge.socket.close()


def numbered(data: str | bytes, position: Position) -> str:
    text = data if isinstance(data, str) else data.decode()
    return json.dumps([*position, text])


@pytest.fixture
def room(short_path: Path) -> Iterator[Room]:
    room = Room(short_path / "a.ws", history=5)
    yield room
    room.close()


def test_a_client_that_comes_back_gets_what_it_missed_before_anything_else(room: Room) -> None:
    first = room.member()
    positions = [room.group.broadcast(str(number)).position for number in range(1, 4)]
    assert all(positions) and [p.offset for p in positions if p] == [1, 2, 3]
    assert room.group.broadcast(b"4") == (1, 0)
    assert room.read(first, 4) == [(1, "1"), (2, "2"), (3, "3"), (4, "4")]
    again = room.member(positions[1])
    room.group.broadcast("5")
    assert room.read(again, 3) == [(3, "3"), (4, "4"), (5, "5")]
    assert room.read(first, 1) == [(5, "5")] and not room.gaps()
    everything = room.member(("", 0))
    assert room.read(everything, 5)[0] == (1, "1") and not room.gaps()


def test_a_gap_is_said(room: Room) -> None:
    room.group.broadcast("1")
    since = room.group.broadcast("2").position
    for number in range(3, 9):
        room.group.broadcast(str(number))
    bridge, client = room.client()
    room.group.add(client, since=since)
    assert room.read(bridge, 5) == [(n, str(n)) for n in range(4, 9)]
    assert room.gaps() == [(client, "room")]
    stranger = room.member(("nowhere", 8))
    assert room.read(stranger, 5)[0] == (4, "4") and len(room.gaps()) == 2


def test_a_program_sends_what_was_missed_itself(room: Room) -> None:
    """As a channel layer does, which has them in its answer to a subscription."""
    epoch = room.group.broadcast("1").position
    assert epoch
    room.group.broadcast("2")
    replays: list[Replay] = []

    def reply(client: Client, replay: Replay) -> None:
        replays.append(replay)
        client.send_json([*replay.position, [message.data for message in replay.messages]])
        room.group.broadcast("during")  # the client is not a member yet

    bridge = room.member(epoch, on_replay=reply)
    room.group.broadcast("after")
    assert room.read(bridge, 3) == [(2, ["2"]), (3, "during"), (4, "after")]
    assert replays == [Replay(Position(epoch.epoch, 2), [(2, "2")], False)]  # type: ignore[list-item]
    late = room.member(on_replay=lambda client, replay: client.send_json([*replay.position, ""]))
    assert room.read(late, 1) == [(4, "")], "without since: only where it starts"


def test_the_order_holds_while_lanes_change(short_path: Path) -> None:
    """A replay to one member, and a broadcast to many, in one group."""
    room = Room(short_path / "a.ws")
    try:
        members = [room.member() for _ in range(8)]
        for round_ in range(5):
            for number in range(10):
                room.group.broadcast(f"{round_}.{number}")
            late = room.member(("", 0))
            members.append(late)
        for bridge in members[:8]:
            assert [offset for offset, _ in room.read(bridge, 50)] == [*range(1, 51)]
        for bridge in members[8:]:
            assert [offset for offset, _ in room.read(bridge, 50)] == [*range(1, 51)]
    finally:
        room.close()


def test_wrong_use_is_an_error(room: Room, short_path: Path) -> None:
    _, client = room.client()
    plain = room.server.group("plain")
    with pytest.raises(ValueError, match="history="):
        plain.add(client, since=("", 0))
    plain.add(client)
    with pytest.raises(ValueError, match="before add"):
        room.server.group("plain", history=1)
    with pytest.raises(ValueError, match="1 or more"):
        room.server.group("other", history=0)
    with pytest.raises(ValueError, match="needs history"):
        room.server.group("other", formatter=numbered)
    with pytest.raises(ValueError, match="same messages for all"):
        room.group.broadcast("x", exclude=client)
    with pytest.raises(ValueError, match="expected an epoch"):
        room.group.add(client, since="5")
    assert client not in room.group
    room.group.add(client)
    room.group.broadcast("only here", scope="here")
    assert room.group.broadcast("1").position.offset == 1  # type: ignore[union-attr]


def test_a_group_keeps_its_history_while_it_is_empty(room: Room) -> None:
    bridge, client = room.client()
    room.group.add(client)
    room.group.broadcast("1")
    room.group.discard(client)
    del room.group
    room.server.group("room").broadcast("2")
    room.group = room.server.group("room")
    again = room.member(("", 0))
    assert room.read(again, 2) == [(1, "1"), (2, "2")]
    assert room.read(bridge, 1) == [(1, "1")]


@pytest.mark.parametrize("is_file", [False, True])
def test_a_history_is_read_without_a_client(short_path: Path, is_file: bool) -> None:
    room = filed(short_path) if is_file else Room(short_path / "a.ws")
    try:
        since = room.group.broadcast("1").position
        room.group.broadcast(b"2")
        replays: list[Replay] = []
        room.group.replay(since or (), replays.append)
        room.group.replay(("", 0), replays.append)
        room.group.replay(("x", 1), replays.append)
        assert [[m.data for m in replay.messages] for replay in replays] == [
            [b"2"],
            ["1", b"2"],
            ["1", b"2"],
        ]
        assert [replay.has_gap for replay in replays] == [False, False, True]
        with pytest.raises(ValueError, match="history="):
            room.server.group("plain").replay(("", 0), replays.append)
    finally:
        room.close()


def test_a_group_that_is_not_used_is_forgotten(room: Room) -> None:
    histories = room.server._loop.histories
    bridge, client = room.client()
    room.group.add(client)
    room.group.broadcast("1")
    history = histories.get("room")
    assert history
    history.used_at -= 2 * KEEP_S
    histories._tick()
    assert histories.get("room") is history, "it has a client"
    room.group.discard(client)
    history.used_at -= 2 * KEEP_S
    histories._tick()
    assert histories.get("room") is None
    # The program refers to the group.
    assert room.group.broadcast("2").position == Position(history.log.epoch, 2)
    assert histories.get("room") is history
    history.used_at -= 2 * KEEP_S
    histories._tick()
    del room.group, history
    gc.collect()
    assert room.server.group("room")._history is None
    assert room.read(bridge, 1) == [(1, "1")]


@pytest.mark.parametrize("can_reopen", [False, True])
def test_a_group_without_a_message_is_forgotten_if_it_can_be_opened_again(
    short_path: Path, can_reopen: bool
) -> None:
    room = Room(short_path / "a.ws")
    try:
        server = room.server
        if can_reopen:
            server.on_unopened_group(lambda name: server.group(name, history=10))
        server.group("other", history=10)
        server.group("used", history=10).broadcast("1")
        histories = server._loop.histories
        for history in histories._by_name.values():
            history.used_at -= KEEP_EMPTY_S + 1
        histories._tick()
        assert (histories.get("other") is None) == can_reopen
        assert histories.get("used") is not None

        def is_stored() -> bool:
            room.turn()
            other = histories.get("other")
            return other is not None and len(other.log) == 1

        # Either way, what comes from outside is stored.
        with ThreadOf(lambda: publish(server.path, "2", group="other")):
            wait_for(is_stored)
            room.turn()
    finally:
        room.close()


def test_the_store_learns_that_a_group_has_clients(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = room.server._loop.histories
    _, client = room.client()
    room.group.add(client)
    history = histories.get("room")
    assert history and histories._store
    refreshed: list[object] = []
    monkeypatch.setattr(histories._store, "refresh", refreshed.append)
    histories._tick()
    assert not refreshed
    history.refreshed_at -= REFRESH_S + 1
    _, other = room.client()
    room.group.add(other)  # clients that join do not postpone it
    histories._tick()
    histories._tick()
    assert refreshed == [history]


def test_publish_from_outside_is_in_the_history(room: Room) -> None:
    member = room.member()
    with ThreadOf(lambda: publish(room.server.path, "from outside", group="room")) as thread:
        assert room.read(member, 1) == [(1, "from outside")]
        wait_for(lambda: room.turn() or not thread.is_alive())
    assert room.read(room.member(("", 0)), 1) == [(1, "from outside")]


class ThreadOf(threading.Thread):
    """Runs a function in a thread."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(target=function)

    def __enter__(self) -> ThreadOf:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join(DEADLINE_S)


def test_asyncio_handlers_catch_up(short_path: Path) -> None:
    async def run() -> list[Any]:
        events: list[Event] = []

        async def chat(connection: aio.Connection) -> None:
            group = connection.server.group("room", history=10, formatter=numbered)
            async for message in connection:
                since = json.loads(message)
                group.add(connection.client, since=since)

        async with aio.serve(short_path / "a.ws", chat, on_event=events.append) as server:
            group = server.group("room", history=10, formatter=numbered)
            position = group.broadcast("1").position
            group.broadcast("2")
            bridge = Bridge(server.path)
            bridge.send(wire.TEXT, json.dumps(position).encode())
            received: list[Any] = []
            while not received:
                await asyncio.sleep(0.01)
                received += bridge.read_available()
            stranger = Bridge(server.path)
            stranger.send(wire.TEXT, b'["x", 1]')
            while not events:
                await asyncio.sleep(0.01)
            assert [type(event) for event in events] == [GapEvent]
            bridge.socket.close()
            stranger.socket.close()
            return [json.loads(text)[1:] for text in received]

    assert asyncio.run(asyncio.wait_for(run(), DEADLINE_S)) == [[2, "2"]]


def test_handlers_in_threads_catch_up(short_path: Path) -> None:
    events: list[Event] = []

    def chat(connection: threads.Connection) -> None:
        group = connection.server.group("room", history=10, formatter=numbered)
        for message in connection:
            group.add(connection.client, since=json.loads(message))

    with threads.serve(short_path / "a.ws", chat, on_event=events.append) as server:
        group = server.group("room", history=10, formatter=numbered)
        group.broadcast("1")
        bridge = Bridge(server.path)
        bridge.send(wire.TEXT, b'["elsewhere", 1]')
        assert json.loads(wait_for(bridge.read_available)[0])[1:] == [1, "1"]  # type: ignore[arg-type]
        wait_for(lambda: [type(event) for event in events] == [GapEvent])
        wait_for(lambda: len(group) == 1)
        group.broadcast("2")
        assert json.loads(wait_for(bridge.read_available)[0])[1:] == [2, "2"]  # type: ignore[arg-type]
        bridge.socket.close()


def next_client(server: Server) -> Client:
    event = wait_for(lambda: server.dequeue(0.1))
    assert event is not None
    return event.client()


# The store in a file.


def filed(directory: Path, name: str = "a.ws", **settings: Any) -> Room:
    return Room(directory / name, history_file=directory / "history.db", **settings)


def test_a_file_outlives_its_producer(short_path: Path) -> None:
    one = filed(short_path)
    first = one.member()
    since = one.group.broadcast("1").position
    one.group.broadcast(b"2")
    assert one.read(first, 2) == [(1, "1"), (2, "2")]
    one.close()
    two = filed(short_path)
    try:
        again = two.member(since)
        assert two.group.broadcast("3").position == Position(since.epoch, 3)  # type: ignore[union-attr]
        assert two.read(again, 2) == [(2, "2"), (3, "3")] and not two.gaps()
    finally:
        two.close()


def test_two_producers_of_a_file_see_one_order(short_path: Path) -> None:
    """As during a deploy: each notices what the other stores."""
    one, two = filed(short_path), filed(short_path, "b.ws")
    try:
        near, far = one.member(), two.member()
        for number in range(1, 21):
            (one, two)[number % 2].group.broadcast(str(number))
        expected = [(number, str(number)) for number in range(1, 21)]
        assert one.read(near, 20) == two.read(far, 20) == expected
        assert two.read(two.member(("", 0)), 20) == expected
        assert not one.gaps() and not two.gaps()
    finally:
        one.close()
        two.close()


def test_other_users_may_not_read_the_file(short_path: Path) -> None:
    room = filed(short_path)
    try:
        room.group.broadcast("1")
        files = [*short_path.glob("history.db*")]
        assert len(files) == 3 and {file.stat().st_mode & 0o777 for file in files} == {0o600}
    finally:
        room.close()


def test_two_workers_create_the_file(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one comes in between, if it can, while the first looks whether the file is new."""
    path = str(short_path / "history.db")
    value = history_file.FileStore._value
    others: list[ThreadOf] = []

    def look(store: history_file.FileStore, query: str) -> Any:
        found = value(store, query)
        if query == "PRAGMA application_id" and not others:
            others.append(ThreadOf(lambda: history_file.FileStore(path, str).close()))
            others[0].__enter__()
            others[0].join(0.1)
        return found

    monkeypatch.setattr(history_file.FileStore, "_value", look)
    history_file.FileStore(path, str).close()
    others[0].__exit__(None, None, None)


def test_members_without_the_history_of_the_file_get_what_is_published(short_path: Path) -> None:
    filed(short_path).close()
    with Server(short_path / "old.ws", history_file=short_path / "history.db") as server:
        server.group("room", history=10).broadcast("the file has a history")
    server = Server(short_path / "a.ws", history_file=short_path / "history.db")
    bridge = Bridge(server.path)
    try:
        group = server.group("room")
        group.add(next_client(server))
        with ThreadOf(lambda: publish(server.path, "published", group="room")) as publisher:
            wait_for(lambda: server.dequeue(0.01) or not publisher.is_alive())
        group.broadcast("broadcast")
        items: list[Any] = []
        wait_for(lambda: items.extend(bridge.read_available()) or len(items) == 2)  # type: ignore[func-returns-value]
        assert items == ["published", "broadcast"]
    finally:
        bridge.socket.close()
        server.close()


def test_a_file_keeps_the_bounds(short_path: Path) -> None:
    room = filed(short_path, history=3)
    try:
        for number in range(1, 8):
            room.group.broadcast(str(number))
        assert room.read(room.member(("", 0)), 3)[0] == (5, "5")
        room.server.group("room", history=100, history_bytes=10)
        for _ in range(20):
            room.group.broadcast("1234")
        with sqlite3.connect(short_path / "history.db") as database:
            assert database.execute("SELECT count(*) FROM messages").fetchone() == (2,)
        database.close()
    finally:
        room.close()


def test_a_clock_that_is_set_back_leaves_no_hole(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [5000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    room = filed(short_path)
    try:
        room.group.broadcast("1")
        room.group.broadcast("2")
        clock[0] = 1000.0
        room.group.broadcast("3")
        clock[0] = 1400.0  # 3 is too old, 1 and 2 are not
        room.group.broadcast("4")
        assert room.read(room.member(("", 0)), 1) == [(4, "4")]
        room.server._loop.histories._store._drop_old(clock[0])  # type: ignore[union-attr]
        assert room.group.broadcast("5").position.offset == 5  # type: ignore[union-attr]
    finally:
        room.close()


def test_a_full_disk_loses_one_message_and_not_the_file(short_path: Path) -> None:
    room = filed(short_path)
    try:
        bridge = room.member()
        database = room.server._loop.histories._store._database  # type: ignore[union-attr]
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(HistoryError, match="full"):
            room.group.broadcast("x" * 100_000)
        database.execute(f"PRAGMA max_page_count = {pages + 1000}")
        room.group.broadcast("1")
        assert room.read(bridge, 1) == [(1, "1")]
    finally:
        room.close()


def test_the_file_of_an_earlier_boot_begins_new_epochs(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = filed(short_path)
    since = room.group.broadcast("1").position
    room.close()
    (short_path / "boot").write_text("another\n")
    monkeypatch.setattr(history_file, "BOOT_ID", short_path / "boot")
    room = filed(short_path)
    try:
        bridge = room.member(since)
        assert room.gaps() and since and room.group.broadcast("2").position.epoch != since.epoch  # type: ignore[union-attr]
        assert room.read(bridge, 1) == [(1, "2")]
    finally:
        room.close()


def test_a_file_of_another_program_is_left_alone(short_path: Path) -> None:
    with sqlite3.connect(short_path / "history.db") as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    with pytest.raises(HistoryError, match="not a history"):
        filed(short_path)
    (short_path / "history.db").write_bytes(b"text " * 1000)
    with pytest.raises(HistoryError, match="not a database"):
        filed(short_path)
    with pytest.raises(HistoryError, match=r"No such file .*; this user needs a directory"):
        Server(short_path / "a.ws", history_file=short_path / "no" / "history.db")
    with Server(short_path / "a.ws", history_file=short_path / "good.db"):
        pass  # the failures have left the socket file free


def test_a_message_that_cannot_be_stored_reaches_no_client(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = filed(short_path)
    try:
        bridge = room.member()
        monkeypatch.setattr(history_file, "BUSY_TIMEOUT_S", 0.0)
        blocker = sqlite3.connect(short_path / "history.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        room.server._loop.histories._store._database.execute("PRAGMA busy_timeout = 0")  # type: ignore[union-attr]
        with pytest.raises(HistoryError, match="locked"):
            room.group.broadcast("1")
        errors: list[str] = []

        def send() -> None:
            try:
                publish(room.server.path, "1", group="room")
            except PublishError as error:
                errors.append(str(error))

        with ThreadOf(send):
            wait_for(lambda: room.turn() or errors)
        assert "locked" in errors[0]
        blocker.close()
        assert room.group.broadcast("2").position.offset == 1  # type: ignore[union-attr]
        assert room.read(bridge, 1) == [(1, "2")]
    finally:
        room.close()


def test_a_server_that_is_closed_stores_nothing(short_path: Path) -> None:
    room = filed(short_path)
    room.member()
    room.group.broadcast("1")
    room.server.close()
    assert room.group.broadcast("as a program does at ConnectionClosed") == (0, 0)
    assert not room.server.group("room").add(room.client_of_the_last_event())
    room.close()
    room = filed(short_path)
    assert room.read(room.member(("", 0)), 1) == [(1, "1")]
    assert room.group.broadcast("2").position.offset == 2  # type: ignore[union-attr]
    room.close()


def test_without_a_history_file_sqlite_is_not_loaded(short_path: Path) -> None:
    code = (
        "import sys; from apachews import Server; s = Server(sys.argv[1]);"
        "s.group('room', history=1).broadcast('x'); s.close();"
        "assert not {'sqlite3', 'redis', 'apachews._server.history_file'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code, str(short_path / "a.ws")], check=True)


WORKER = """
import json, os, sys
from apachews import Event, Server
server = Server(sys.argv[1], workers=2, history_file=sys.argv[2])
group = server.group("room", history=1000, formatter=lambda data, p: json.dumps([*p, data]))
for event in server:
    if event.type() is Event.IO:
        kind, value = json.loads(event.read())
        if kind == "add":
            group.add(event.client(), since=value)
            event.write(str(os.getpid()))
        elif kind == "say":
            group.broadcast(value)
        else:
            event.write(str(group.is_relayed))
"""


def test_workers_share_a_history_and_one_may_be_killed(short_path: Path) -> None:
    path, history = short_path / "w.ws", short_path / "history.db"
    with running(program(short_path, WORKER), str(path), str(history)), ExitStack() as stack:
        wait_for(path.exists)

        def connect(since: Any = None) -> tuple[Bridge, int]:
            bridge = Bridge(str(path))
            stack.callback(bridge.socket.close)
            bridge.send(wire.TEXT, json.dumps(["add", since]).encode())
            items = wait_for(lambda: [i for i in bridge.read_available() if str(i).isdigit()])
            return bridge, int(str(items[0]))

        bridges: dict[int, Bridge] = {}

        def has_both() -> bool:
            bridge, pid = connect()
            bridges.setdefault(pid, bridge)
            return len(bridges) == 2

        wait_for(has_both)
        got: dict[int, list[Any]] = {pid: [] for pid in bridges}

        def read(count: int) -> bool:
            for pid, bridge in bridges.items():
                got[pid] += [json.loads(str(item)) for item in bridge.read_available()]
            return all(len(items) >= count for items in got.values())

        for number in range(100):
            for pid, bridge in bridges.items():
                bridge.send(wire.TEXT, json.dumps(["say", f"{pid}.{number}"]).encode())
        wait_for(lambda: read(200))
        one, two = got.values()
        assert one == two, "one order for the members of both workers"
        assert [offset for _, offset, _ in one] == [*range(1, 201)]
        victim, witness = bridges
        os.kill(victim, signal.SIGKILL)
        del bridges[victim], got[victim]
        bridges[witness].send(wire.TEXT, b'["say", "alone"]')
        wait_for(lambda: read(201))
        # The client of the worker that died comes back to either of the two.
        since = one[150][:2]
        bridge = Bridge(str(path))
        stack.callback(bridge.socket.close)
        bridge.send(wire.TEXT, json.dumps(["add", since]).encode())
        items: list[Any] = []

        def has_caught_up() -> bool:
            items.extend(json.loads(str(item)) for item in bridge.read_available())
            return len(items) >= 51

        wait_for(has_caught_up)
        missed = [item for item in items if isinstance(item, list)]
        assert missed == got[witness][151:201], "none lost, none doubled, in order"


def test_workers_without_a_file_say_what_they_need(short_path: Path) -> None:
    code = (
        "import sys; from apachews import Server; s = Server(sys.argv[1], workers=2)\n"
        "try: s.group('room', history=1)\n"
        "except ValueError as error: print(error, flush=True)\n"
        "s.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(short_path / "a.ws")],
        check=True,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.stdout.count("history_file=") == 2


# The store in the relay.


@pytest.mark.parametrize(
    "data",
    [b"h", b"hx:1:2:3", b"hx:1 z", b"hx:y:2:3 z", b"h:1:2:3 z", b"hx:-1:2:3 z", b"h\xff:1:2:3 z"],
)
def test_foreign_bytes_with_the_mark_are_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="invalid relay message"):
        stream.split(data)
    assert stream.split(b"h5f:12:1701:1700 1t rest") == (
        stream.Place(Position("5f", 12), "1701", "1700"),
        b"1t rest",
    )


def test_braces_are_not_in_the_names_of_groups() -> None:
    with pytest.raises(ValueError, match="braces"):
        stream.require_name("a{b}")


class Machine:
    """A producer with a relay, whose events a thread takes; a client sends where it is."""

    def __init__(self, path: Path, relay: str, history: int = 10_000, **settings: Any) -> None:
        self.server = Server(path, relay=relay, relay_name="chat.ws", **settings)
        self.events: list[Event] = []
        self._history = history
        self.group = self._room()
        self._bridges: list[Bridge] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _room(self) -> Group:
        return self.server.group("room", history=self._history, formatter=numbered)

    def _serve(self) -> None:
        for event in self.server:
            if event.type() is Event.IO:
                self._room().add(event.client(), since=json.loads(event.read()))
            else:
                self.events.append(event)

    def member(self, since: Any = None) -> Bridge:
        bridge = Bridge(self.server.path)
        self._bridges.append(bridge)
        before = len(self.group)
        bridge.send(wire.TEXT, json.dumps(since).encode())
        wait_for(lambda: len(self.group) > before and self.group.is_relayed)
        return bridge

    def member_now(self, other: Reader) -> Bridge:
        """Return a client that knows the last message of another one; the relay is lost."""
        other.has(0)
        bridge = Bridge(self.server.path)
        self._bridges.append(bridge)
        bridge.send(wire.TEXT, json.dumps(other.last).encode())
        return bridge

    def say(self, *texts: str) -> None:
        for text in texts:
            self.group.broadcast(text)

    @property
    def status(self) -> Any:
        return self.server.relay_status()

    def gaps(self) -> list[str]:
        return [event.group for event in self.events if isinstance(event, GapEvent)]

    def close(self) -> None:
        self.server.close()
        self._thread.join()
        for bridge in self._bridges:
            bridge.socket.close()


class Reader:
    """Collects what a client receives: its messages with their positions."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self.items: list[list[Any]] = []

    def has(self, count: int) -> bool:
        self.items += [json.loads(str(item)) for item in self._bridge.read_available()]
        return len(self.items) >= count

    def wait(self, count: int) -> list[Any]:
        """Return the first messages, which have no holes."""
        wait_for(lambda: self.has(count), what=lambda: f"{len(self.items)}: {self.items[-2:]}")
        offsets = [offset for _, offset, _ in self.items]
        assert offsets == [*range(offsets[0], offsets[0] + len(offsets))], "one epoch, in order"
        return [text for _, _, text in self.items]

    @property
    def last(self) -> list[Any]:
        return self.items[-1][:2]


@contextmanager
def machines(
    directory: Path, url: str, count: int = 2, there: OtherMachine | None = None, **more: Any
) -> Iterator[list[Machine]]:
    """Run some producers, all but the first on the other machine if there is one."""
    with ExitStack() as stack:
        made: list[Machine] = []
        for number in range(count):
            make = partial(Machine, directory / f"{number}.ws", url, **more)
            made.append(there.run(make) if there and made else make())
            stack.callback(made[-1].close)
        for machine in made:
            wait_for(lambda machine=machine: machine.status.is_up)  # type: ignore[misc]
        yield made


@pytest.fixture(scope="module", params=SERVERS)
def broker(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Broker]:
    with running_broker(tmp_path_factory.mktemp("r"), program=request.param) as broker:
        yield broker


@pytest.fixture
def clean(broker: Broker) -> Broker:
    broker.call("FLUSHALL")
    return broker


def test_all_machines_see_one_order(short_path: Path, clean: Broker) -> None:
    with machines(short_path, clean.url) as (one, two):
        near, far = Reader(one.member()), Reader(two.member())
        delivery = one.group.broadcast("first")
        assert delivery == (0, 0) and delivery.relayed and delivery.position is None
        assert near.wait(1) == far.wait(1) == ["first"]
        senders = [ThreadOf(lambda m=m: m.say(*[str(n) for n in range(200)])) for m in (one, two)]  # type: ignore[misc]
        with senders[0], senders[1]:
            pass
        assert near.wait(401) == far.wait(401)
        # A client that moves to the other machine, and one that has been here before.
        for machine in (one, two):
            assert Reader(machine.member(near.items[390][:2])).wait(10) == near.wait(401)[391:]
            assert len(Reader(machine.member(("", 0))).wait(401)) == 401
        assert not one.gaps() and not two.gaps()


def test_a_client_that_waits_keeps_the_subscription(short_path: Path) -> None:
    """The only member reloads its page while the relay is lost; its leave is confirmed later."""
    with (
        running_broker(short_path) as own,
        machines(short_path, own.url, 1, presence=True) as (one,),
    ):
        first = Reader(one.member())
        one.say("1")
        first.wait(1)
        own.kill()
        wait_for(lambda: not one.status.is_up)
        first._bridge.socket.close()
        wait_for(lambda: not one.group)
        bridge = Bridge(one.server.path)
        one._bridges.append(bridge)
        bridge.send(wire.TEXT, json.dumps(first.last).encode())
        second = Reader(bridge)
        wait_for(lambda: any(isinstance(event, LeaveEvent) for event in one.events))
        own.start()
        wait_for(lambda: one.status.is_up and len(one.group) == 1)
        one.say("2")
        assert second.wait(1) == ["2"]


def test_an_exception_of_a_formatter_delays_no_other_message(
    short_path: Path, clean: Broker
) -> None:
    def fragile(data: str | bytes, position: Position) -> str:
        if data == "bad":
            raise RuntimeError("the formatter")
        return numbered(data, position)

    with Server(short_path / "a.ws", relay=clean.url, relay_name="chat.ws") as server:
        group = server.group("room", history=1000, formatter=fragile)
        reader = Reader(Bridge(server.path))
        group.add(next_client(server))
        wait_for(lambda: server.dequeue(0.01) or group.is_relayed)
        # The program is busy meanwhile, so that all of them wait.
        for number in range(200):
            text = "bad" if number == 20 else str(number)
            publish(f"{clean.url}?name=chat.ws", text, group="room")
        errors = []

        def has_last() -> bool:
            try:
                server.dequeue(0.01)
            except RuntimeError as error:
                errors.append(str(error))
            reader.has(0)
            return bool(reader.items) and reader.items[-1][2] == "199"

        wait_for(has_last)
        assert errors == ["the formatter"] and len(reader.items) == 199
        reader._bridge.socket.close()


def test_a_history_in_the_relay_is_read_without_a_client(short_path: Path, clean: Broker) -> None:
    with machines(short_path, clean.url) as (one, two):
        near = Reader(one.member())
        one.say("1", "2")
        near.wait(2)
        for _ in range(2):
            replays: list[Replay] = []
            two.group.replay(near.items[0][:2], replays.append)
            assert wait_for(lambda replays=replays: replays)[0].messages == [(2, "2")]  # type: ignore[misc]
        assert not two.group.is_relayed, "it has no member"
        channel = "apachews:chat.ws:room"
        wait_for(lambda: clean.call("PUBSUB", "NUMSUB", channel).endswith(b":1\r\n"))
        assert not two.gaps()


def test_a_client_that_is_ahead_of_its_new_machine(short_path: Path, clean: Broker) -> None:
    with machines(short_path, clean.url) as (one, two):
        near, far = Reader(one.member()), Reader(two.member())
        for _ in range(5):
            with two.server._loop.lock:  # it hears nothing meanwhile
                one.say("1", "2", "3")
                near.wait(len(near.items) + 3)
                bridge = two.member_now(near)
            one.say("4")
            last = near.wait(len(near.items) + 1)
            late = Reader(bridge)
            assert late.wait(1) == ["4"] and late.items[0][1] == len(last)
        assert far.wait(20) == near.wait(20) and not two.gaps()


def test_a_message_from_outside_gets_an_offset(short_path: Path, clean: Broker) -> None:
    url = f"{clean.url}?name=chat.ws"
    assert not publish(url, "before", group="room").relayed, "no group, no history"
    with machines(short_path, clean.url) as (one, two):
        near = Reader(one.member())
        assert publish(url, "from outside", group="room").relayed
        # By the socket of a producer whose program has not called group() yet.
        two.server._loop.histories._by_name.clear()
        assert publish(two.server.path, b"by another machine", group="room").relayed
        assert near.wait(2) == ["from outside", "by another machine"]
        assert len(near.items[0]) == 3 and [item[1] for item in near.items] == [1, 2]
        long = "x" * 500_000
        publish(url, long, group="room")
        assert near.wait(3)[2] == long
    # No producer runs: the message is stored all the same.
    assert not publish(url, "while nothing ran", group="room").relayed
    with machines(short_path, clean.url, 1) as (one,):
        assert Reader(one.member(near.last)).wait(1) == ["while nothing ran"]


def test_the_bounds_hold_in_redis(short_path: Path, clean: Broker) -> None:
    with machines(short_path, clean.url, 1, history=5) as (one,):
        reader = Reader(one.member())
        one.say(*[str(number) for number in range(50)])
        reader.wait(50)
        key = "{apachews:chat.ws:room}:stream"
        assert clean.call("XLEN", key) == b":5\r\n"
        one.server.group("room", history=100, history_bytes=1000)
        one.say(*["x" * 100 for _ in range(100)])
        reader.wait(150)
        assert clean.call("XLEN", key) == b":8\r\n", "118 bytes each, with the envelope"
        assert 0 < int(clean.call("PTTL", key)[1:]) <= 86_400_000
        since = reader.items[10][:2]
        assert Reader(one.member(since)).wait(1)
        wait_for(one.gaps)


def test_a_message_whose_answer_is_lost_is_stored_once(short_path: Path, clean: Broker) -> None:
    with machines(short_path, clean.url, 1) as (one,):
        reader = Reader(one.member())
        engine = one.server._loop.broker._engine  # type: ignore[union-attr]
        publish_batch, failures = engine.publish, iter(["after", "before", "after"])

        def fail(messages: Any) -> None:
            failure = next(failures, "")
            if failure != "before":
                publish_batch(messages)
            if failure:
                raise EngineError(f"the connection broke {failure} the messages were stored")

        engine.publish = fail  # type: ignore[method-assign]
        one.say("1", "2", "3")
        wait_for(lambda: one.status.gaps == 3)
        one.say("4")
        assert reader.wait(4) == ["1", "2", "3", "4"]
        assert not one.gaps() and not one.status.dropped


def rejections(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "has rejected a command" in line]


def test_a_redis_without_memory_stores_the_message_later(
    short_path: Path, clean: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with machines(short_path, clean.url, 1) as (one,):
        reader = Reader(one.member())
        one.say("1")
        reader.wait(1)
        clean.call("CONFIG", "SET", "maxmemory", "1")
        try:
            one.say("2")
            (line,) = wait_for(lambda: rejections(caplog))
            assert "used memory" in line and "'room'" in line
            one.say("3")
        finally:
            clean.call("CONFIG", "SET", "maxmemory", "0")
        assert reader.wait(3) == ["1", "2", "3"]
        assert not one.gaps() and not one.status.gaps and not one.status.dropped


def test_a_history_that_cannot_be_stored_delays_no_other_group(
    short_path: Path, clean: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with machines(short_path, clean.url) as (one, other):
        readers = [Reader(machine.member()) for machine in (one, other)]
        clean.call("SET", "{apachews:chat.ws:hall}:meta", "of another program")
        hall = one.server.group("hall", history=100)
        hall.broadcast("lost for now")
        wait_for(lambda: rejections(caplog))
        one.say("1")
        assert [reader.wait(1) for reader in readers] == [["1"], ["1"]]
        replays: list[Replay] = []
        hall.replay(Position("", 0), replays.append)
        hall.broadcast("later")
        clean.call("DEL", "{apachews:chat.ws:hall}:meta")
        wait_for(lambda: replays)

        def has_both() -> bool:
            hall.replay(Position("", 0), replays.append)
            return [text for _, text in replays[-1].messages] == ["lost for now", "later"]

        wait_for(has_both)
        assert one.status.is_up and not one.status.gaps and not other.status.gaps


def test_a_message_that_is_rejected_among_others_keeps_its_place(
    short_path: Path, clean: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machines(short_path, clean.url, 1) as (one,):
        reader = Reader(one.member())
        one.say("first")
        reader.wait(1)
        node = one.server._loop.broker._engine._nodes[None]  # type: ignore[union-attr]
        answers = node.answers
        rejected: list[Any] = []

        def full_for_the_third(commands: list[Any]) -> list[Any]:
            if rejected or len(commands) < 6:
                return list(answers(commands))
            rejected.append(commands[2])
            limit = ("CONFIG", "SET", "maxmemory")
            more = [*commands[:2], (*limit, "1"), commands[2], (*limit, "0"), *commands[3:]]
            found = answers(more)
            return [*found[:2], found[3], *found[5:]]

        monkeypatch.setattr(node, "answers", full_for_the_third)
        # All of them are in one batch: the thread of the relay waits for the first.
        clean.pause()
        one.say("wait")
        thread: Any = one.server._loop.broker._thread  # type: ignore[union-attr]
        wait_for(lambda: not thread._outbox)
        texts = [str(number) for number in range(8)]
        one.say(*texts)
        clean.resume()
        assert reader.wait(10) == ["first", "wait", *texts]
        assert rejected and one.status.is_up and not one.gaps() and not one.status.dropped


LATE_WORKERS = """
import sys
from apachews import Event, Server
server = Server(sys.argv[1], workers=2, relay=sys.argv[2], relay_name="chat.ws")
for event in server:
    if event.type() is Event.IO:
        server.group("room", history=1000).add(event.client())
"""


def test_workers_do_not_double_what_is_published(short_path: Path, clean: Broker) -> None:
    # Only the worker that has the client has opened the group; the kernel chooses which of them
    # a publisher gets.
    path = short_path / "chat.ws"
    with running(program(short_path, LATE_WORKERS), str(path), clean.url):
        wait_for(path.exists)
        client = Bridge(str(path))
        client.send(wire.TEXT, b"join")
        received: list[Any] = []

        def has(text: str) -> bool:
            received.extend(client.read_available())
            return text in received

        def is_member() -> bool:
            publish(path, "begin", "room")
            return has("begin")

        wait_for(is_member)
        texts = [str(number) for number in range(8)]
        for text in texts:
            publish(path, text, "room")
        # The answers come before Redis has the messages, so that two workers may be out of order.
        wait_for(lambda: all(has(text) for text in texts))
        publish(clean.url + "?name=chat.ws", "end", "room")
        wait_for(lambda: has("end"))
        assert sorted(text for text in received if text not in ("begin", "end")) == texts
        client.socket.close()


def test_a_store_that_was_flushed_is_a_gap_everywhere(short_path: Path, clean: Broker) -> None:
    with machines(short_path, clean.url) as both:
        readers = [Reader(machine.member()) for machine in both]
        both[0].say("1", "2")
        for reader in readers:
            reader.wait(2)
        last = readers[0].last
        clean.call("FLUSHALL")
        both[1].say("3")
        for machine, reader in zip(both, readers, strict=True):
            wait_for(lambda reader=reader: reader.has(3))  # type: ignore[misc]
            wait_for(machine.gaps)
            (old, _, _), (new, offset, text) = reader.items[1:]
            assert new != old and (offset, text) == (1, "3")
        assert Reader(both[0].member(last)).wait(1) == ["3"]
        wait_for(lambda: len(both[0].gaps()) == 2)


def test_a_failover_to_a_replica_that_has_less_is_a_gap(short_path: Path, clean: Broker) -> None:
    with machines(short_path, clean.url, 1) as (one,):
        reader = Reader(one.member())
        one.say("1", "2", "3")
        reader.wait(3)
        # As a replica that has not received the last two.
        meta, kept = "{apachews:chat.ws:room}:meta", "{apachews:chat.ws:room}:stream"
        clean.call("HSET", meta, "top", "1")
        clean.call("XTRIM", kept, "MAXLEN", "0")
        one.say("4")
        wait_for(lambda: reader.has(4))
        wait_for(one.gaps)
        assert reader.items[3][1:] == [1, "4"] and reader.items[3][0] != reader.items[0][0]


@pytest.mark.parametrize("is_away", [False, True], ids=["connected", "away"])
def test_a_replica_that_gives_offsets_again_is_a_gap(
    short_path: Path, clean: Broker, is_away: bool
) -> None:
    with machines(short_path, clean.url, 1) as (one,):
        reader = Reader(one.member())
        one.say("1", "2", "3", "4", "5")
        reader.wait(5)
        thread: Any = one.server._loop.broker._thread  # type: ignore[union-attr]
        connect = thread._connect
        may_connect = threading.Event()
        may_connect.set()
        thread._connect = lambda: may_connect.wait(DEADLINE_S) and connect()
        if is_away:
            may_connect.clear()
            clean.call("CLIENT", "KILL", "TYPE", "pubsub")
            wait_for(lambda: not one.status.is_up)
        # As a replica that has not received the last two; a program has seen nothing of them.
        meta, kept = "{apachews:chat.ws:room}:meta", "{apachews:chat.ws:room}:stream"
        stamp = stamp_of(clean, kept, 3)
        clean.call("XTRIM", kept, "MAXLEN", "0")
        clean.call("XSETID", kept, "3-0")
        clean.call("HSET", meta, "top", "3", "stamp", stamp)
        for number in range(6, 10):
            publish(f"{clean.url}?name=chat.ws", str(number), "room")
        may_connect.set()
        wait_for(one.gaps)
        one.say("end")
        wait_for(lambda: reader.has(1) and reader.items[-1][2] == "end")
        first, last = reader.items[0], reader.items[-1]
        assert last[0] != first[0], "another epoch"
        texts = [text for _, _, text in reader.items]
        assert texts == sorted(set(texts)), "nothing twice"


def stamp_of(broker: Broker, kept: str, offset: int) -> str:
    """Return the stamp of an entry of a stream."""
    answer = broker.call("XRANGE", kept, f"{offset}-0", f"{offset}-0").split(b"\r\n")
    return answer[answer.index(b"t") + 2].decode()


def test_members_without_a_history_get_what_others_store(short_path: Path, clean: Broker) -> None:
    plain = Server(short_path / "plain.ws", relay=clean.url, relay_name="chat.ws")
    room = plain.group("room")
    thread = threading.Thread(
        target=lambda: [room.add(e.client()) for e in plain if e.type() is Event.IO]
    )
    thread.start()
    with machines(short_path, clean.url, 1) as (one,):
        reader, client = Reader(one.member()), Bridge(plain.path)
        client.send(wire.TEXT, b"join")
        wait_for(lambda: len(room) == 1 and room.is_relayed)
        one.say("stored")
        assert wait_for(client.read_available) == ["stored"]
        publish(plain.path, "published", "room")
        assert wait_for(client.read_available) == ["published"]
        assert reader.wait(2) == ["stored", "published"]
    plain.close()
    thread.join()
    client.socket.close()


def test_a_busy_program_reads_what_it_could_not_keep(
    short_path: Path, clean: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_QUEUE_MESSAGES", 20)
    with machines(short_path, clean.url, 2) as (one, two):
        reader = Reader(two.member())
        with two.server._loop.lock:  # the loop cannot take what arrives
            one.say(*[str(number) for number in range(500)])
            wait_for(lambda: two.status.dropped)
            wait_for(lambda: one.status.published == 500)
        assert reader.wait(500) == [str(number) for number in range(500)]
        assert not two.gaps()


def test_a_cluster_keeps_histories(short_path: Path) -> None:
    with running_cluster(short_path) as nodes:
        url = nodes[0].url.replace("redis://", "redis+cluster://").removesuffix("/0")
        with machines(short_path, url) as (one, two):
            near, far = Reader(one.member()), Reader(two.member())
            one.say("1")
            near.wait(1)
            two.say("2")
            assert publish(f"{url}?name=chat.ws", "3", group="room") is not None
            assert near.wait(3) == far.wait(3)
            assert Reader(two.member(near.items[0][:2])).wait(2) == near.wait(3)[1:]
            with pytest.raises(ValueError, match="braces"):
                one.server.group("a{b}", history=1)


def test_workers_with_a_relay_have_one_order(short_path: Path, clean: Broker) -> None:
    text = WORKER.replace("history_file=sys.argv[2]", "relay=sys.argv[2], relay_name='chat.ws'")
    path = short_path / "w.ws"
    with machines(short_path, clean.url, 1) as (far,), ExitStack() as stack:
        other = Reader(far.member())
        stack.enter_context(running(program(short_path, text), str(path), clean.url))
        wait_for(path.exists)
        bridges: dict[str, Bridge] = {}

        def has_both() -> bool:
            bridge = Bridge(str(path))
            stack.callback(bridge.socket.close)
            bridge.send(wire.TEXT, b'["add", null]')
            (pid,) = wait_for(bridge.read_available)
            bridges.setdefault(str(pid), bridge)
            return len(bridges) == 2

        wait_for(has_both)

        def is_member(bridge: Bridge) -> bool:
            bridge.send(wire.TEXT, b'["ready", null]')
            return wait_for(bridge.read_available) == ["True"]

        for bridge in bridges.values():
            wait_for(lambda bridge=bridge: is_member(bridge))  # type: ignore[misc]
        for number in range(50):
            for pid, bridge in bridges.items():
                bridge.send(wire.TEXT, json.dumps(["say", f"{pid}.{number}"]).encode())
        texts = other.wait(100)
        assert len({*texts}) == 100
        for bridge in bridges.values():
            assert Reader(bridge).wait(100) == texts


def test_a_user_without_rights_for_scripts_publishes_to_plain_groups(
    short_path: Path, clean: Broker
) -> None:
    rights = ["resetchannels", "&apachews:*", "&apachews-producer:*", "+@pubsub", "+@connection"]
    assert clean.call("ACL", "SETUSER", "narrow", "on", ">secret", *rights) == b"+OK\r\n"
    url = clean.url.replace("redis://", "redis://narrow:secret@")
    with Server(short_path / "a.ws", relay=url, relay_name="chat.ws") as server:
        wait_for(lambda: server.relay_status().is_up)  # type: ignore[union-attr]
        bridge = Bridge(server.path)
        event = server.dequeue(DEADLINE_S)
        assert event
        server.group("plain").add(event.client())
        wait_for(lambda: server.group("plain").is_relayed)
        assert publish(f"{url}?name=chat.ws", "hello", group="plain").relayed
        wait_for(lambda: server.dequeue(0) or bridge.read_available() == ["hello"])
        bridge.socket.close()


def test_the_documented_rights_suffice(short_path: Path, clean: Broker) -> None:
    text = (ROOT / "docs" / "howto" / "machines.md").read_text()
    plain = text.partition("ACL SETUSER apachews on >secret ")[2].partition("\n")[0]
    more = text.partition("then also include `")[2].partition("`")[0]
    rights = [*plain.split(), *more.split()]
    assert clean.call("ACL", "SETUSER", "wide", "on", ">secret", *rights) == b"+OK\r\n"
    with machines(short_path, clean.url.replace("redis://", "redis://wide:secret@"), 1) as (one,):
        reader = Reader(one.member())
        one.say("1")
        url = clean.url.replace("redis://", "redis://wide:secret@")
        assert publish(f"{url}?name=chat.ws", "2", group="room").relayed
        assert reader.wait(2) == ["1", "2"]


def test_nats_has_no_history(short_path: Path) -> None:
    server = Server(short_path / "a.ws", relay="nats://127.0.0.1:1")
    with server, pytest.raises(ValueError, match="NATS keeps none"):
        server.group("room", history=1)
    with pytest.raises(ValueError, match="in the relay"):
        Server(short_path / "a.ws", relay="redis://x", history_file=short_path / "h.db")
