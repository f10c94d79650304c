"""Every client gets exactly the program's messages, in order, whatever lanes they took.

Random scripts of a program, its clients and their bridges are played over sockets in one process:
sends, broadcasts, groups, long messages, slow readers, clients of every compression, two bridge
processes, bridges that are forked, producers that hand over and producers that are killed.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from apachews import Client, Event, Server, ServerClosed
from apachews._server import lanes
from apachews._server.connection import SENDING
from apachews_handler.bridge import channel, channels
from apachews_handler.bridge.connection import Connection
from apachews_handler.bridge.loop import Loop
from apachews_handler.lifecycle.portable import encode
from apachews_handler.protocol.deflate import Agreement
from apachews_handler.settings import Settings

from ..conftest import DEADLINE_S
from .test_channels import Browser, World, kill

SETTINGS: Final = Settings(
    hold_s=30.0, ping_interval_s=0.0, max_buffer_bytes=4096, deflate_min_size_bytes=64
)
AGREEMENTS: Final = (
    None,
    None,
    Agreement(),
    Agreement(server_keeps_context=False),
    Agreement(server_window_bits=9),
    Agreement(server_window_bits=9, server_keeps_context=False),
)
SIZES: Final = (1, 30, 300, 3000, 70_000)
GROUPS: Final = ("a", "b")
Step = tuple[str, int, int]


class Program:
    """A producer: the server, its clients, and what it has sent to each."""

    def __init__(self, path: str, members: dict[str, set[str]]) -> None:
        self.server = Server(path)
        self.clients: dict[str, Client] = {}
        self.members = members
        self.sent: dict[str, list[str]] = {}
        self.is_over = False

    def turn(self) -> None:
        """Handle one event, if there is one."""
        try:
            event = self.server.dequeue(0)
        except ServerClosed:
            self.is_over = True
            return
        if event is None:
            return
        client = event.client()
        name = client.guid()
        if event.type() is Event.Accept:
            self.clients[name] = client
            self.sent.setdefault(name, [])
            for group, names in self.members.items():
                if name in names:
                    self.server.group(group).add(client)
        elif event.type() is Event.ConnectionClosed:
            self.clients.pop(name, None)

    def send(self, name: str, message: str) -> None:
        client = self.clients.get(name)
        if client is not None and client.send(message):
            self.sent[name].append(message)

    def broadcast(self, group: str | None, message: str, excluded: set[str]) -> None:
        connections = self.server._loop.connections.by_fd.values()
        # Among them are clients whose Accept the program has not taken yet.
        sending = [one.client for one in connections if one.client and one.state in SENDING]
        live = {client.guid(): client for client in sending}
        if group is None:
            expected = set(live)
            assert self.server.broadcast(message) == len(expected)
        else:
            room = self.server.group(group)
            members = {client.guid() for client in room}
            excluded = excluded & set(live)
            expected = {name for name in live if name in members} - excluded
            out = [live[name] for name in excluded if name in live]
            delivery = room.broadcast(message, exclude=out)
            assert delivery == (len(expected), len(members - excluded - expected))
        for name in expected:
            self.sent.setdefault(name, []).append(message)


class Play:
    """Two bridges, their clients, and the programs that follow each other."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.members: dict[str, set[str]] = {group: set() for group in GROUPS}
        self.world = World(path, SETTINGS)
        self.world.server.close()
        self.loops = [self.world.loop, Loop()]
        self.program = Program(path, self.members)
        self.ending: list[Program] = []  # they drain
        self.names: list[str] = []
        # What each program sent to each client, and whether the end of it may be lost.
        self.expected: list[tuple[Program, bool]] = [(self.program, False)]
        self.number = 0
        self.is_replaced = False

    def message(self, choice: int) -> str:
        self.number += 1
        return f"{self.number:04}" * (SIZES[choice % len(SIZES)] // 4 + 1)

    def open(self, choice: int) -> None:
        if len(self.names) >= 12:
            return
        loop = self.loops[choice % 2]
        self.world.loop = loop
        browser = Browser(self.world, f"c{len(self.names)}", AGREEMENTS[choice % len(AGREEMENTS)])
        self.world.browsers.append(browser)
        self.names.append(browser.name)
        loop.add(browser.connection)

    def step(self, step: Step) -> None:
        kind, one, two = step
        name = self.names[one % len(self.names)] if self.names else ""
        program, group = self.program, GROUPS[one % len(GROUPS)]
        if kind == "open":
            self.open(one)
        elif kind == "send":
            program.send(name, self.message(two))
        elif kind == "broadcast":
            program.broadcast(None, self.message(two), set())
        elif kind == "multicast":
            excluded = {self.names[two % len(self.names)]} if self.names and two % 3 == 0 else set()
            program.broadcast(group, self.message(two), excluded)
        elif kind == "join" and name in program.clients:
            if program.server.group(group).add(program.clients[name]):
                self.members[group].add(name)
        elif kind == "part" and name in program.clients:
            program.server.group(group).discard(program.clients[name])
            self.members[group].discard(name)
        elif kind == "bridge":
            self.loops[one % 2].turn(0)
        elif kind == "program":
            for each in (program, *self.ending):
                if not each.is_over:
                    each.turn()
        elif kind == "read" and self.names:
            self.world.browsers[one % len(self.names)].read()
        elif kind == "close" and two % 4 == 0 and name in program.clients:
            program.clients[name].close(4000)
        elif kind == "leave" and two % 8 == 0 and self.names:
            self.world.browsers[one % len(self.names)].leave()
        elif kind == "fork":
            self.loops[one % 2].reopen()
        elif kind == "move" and self.names:
            self.move(self.world.browsers[one % len(self.names)].connection)
        elif kind == "lag":
            lanes.HOLD_AFTER_S = -1.0 if one % 2 else 60.0  # type: ignore[misc]
        elif kind == "settle":
            self.settle(self.is_still)
        elif kind in ("drain", "kill") and not self.is_replaced:
            self.replace(kind)

    def move(self, connection: Connection) -> None:
        """Move a client to the other bridge, as a custodian does."""
        here, there = self.loops
        if connection not in here.connections():
            here, there = there, here
        here.channels.dismiss([connection])
        if not connection.is_closed and encode(connection) is not None:
            here.release(connection)
            there.adopt(connection)
        elif self.number % 3 == 0 and not connection.is_closed:
            here.channels.readmit([connection])

    def replace(self, kind: str) -> None:
        """Let another program take over."""
        self.is_replaced = True
        old = self.program
        if kind == "drain":
            old.server.drain(DEADLINE_S)
            self.ending.append(old)
        else:
            kill(old.server)
            self.expected[-1] = (old, True)
        self.program = Program(self.path, self.members)
        self.expected.append((self.program, False))

    def turn(self) -> None:
        for loop in self.loops:
            loop.turn(0)
        for program in (self.program, *self.ending):
            if not program.is_over:
                program.turn()
        for browser in self.world.browsers:
            browser.read()

    def is_still(self) -> bool:
        """Tell whether a few more turns change nothing."""
        before = [len(browser.received) for browser in self.world.browsers]
        for _ in range(20):
            self.turn()
        held = any(browser.connection.is_held for browser in self.world.browsers)
        return not held and before == [len(browser.received) for browser in self.world.browsers]

    def settle(self, is_done: Callable[[], bool]) -> None:
        end_at = time.monotonic() + DEADLINE_S
        while not is_done():
            assert time.monotonic() < end_at, "the bridges and programs do not come to rest"

    def check(self) -> None:
        for browser in self.world.browsers:
            rest = [message for message in browser.received if isinstance(message, str)]
            if browser.has_left:
                continue
            for program, is_killed in self.expected:
                sent = program.sent.get(browser.name, [])
                count = 0
                while count < min(len(sent), len(rest)) and sent[count] == rest[count]:
                    count += 1
                if not is_killed:
                    assert count == len(sent), f"{browser.name} got {rest[:3]}, not {sent[count:]}"
                rest = rest[count:]
            assert not rest, f"{browser.name} got {rest}"

    def close(self) -> None:
        for loop in self.loops:
            loop.close()
        for program in (self.program, *self.ending):
            program.server.close()
        for browser in self.world.browsers:
            browser.socket.close()


STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(
            ["open"] * 2
            + ["send", "broadcast", "multicast", "join", "bridge", "program"] * 4
            + ["read", "settle"] * 2
            + ["part", "close", "leave", "fork", "move", "lag", "drain", "kill"]
        ),
        st.integers(0, 30),
        st.integers(0, 30),
    ),
    max_size=120,
)


def small_pair() -> tuple[socket.socket, socket.socket]:
    """Return a channel whose buffer in the kernel is soon full."""
    pair = socket_pair()
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
    return pair


socket_pair = socket.socketpair


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_QUEUE_BYTES", 8000)
    monkeypatch.setattr(lanes, "ASK_AGAIN_S", 0.0)
    monkeypatch.setattr(lanes, "HOLD_AFTER_S", 60.0)  # the scripts change it
    monkeypatch.setattr(channel, "SENDS_A_TURN", 3)
    monkeypatch.setattr(channels.Channels, "_pair", staticmethod(small_pair))


def play(path: str, steps: list[Step]) -> None:
    game = Play(path)
    try:
        for number in range(6):
            game.open(number)
        game.settle(game.is_still)
        for step in steps:
            game.step(step)
        game.settle(game.is_still)
        game.check()
    finally:
        game.close()


@pytest.mark.usefixtures("small_buffers")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(STEPS)
# A client moves before its producer knows of channels, and the bridge is busy.
@example([("lag", 7, 0), ("move", 23, 0), *[("broadcast", 0, 6), ("settle", 0, 0)] * 3])
def test_every_client_gets_the_messages_of_the_program_in_order(
    short_path: Path, steps: list[Step]
) -> None:
    play(str(short_path / "a.ws"), steps)
