"""Random scripts of broadcasts for minutes, and a crowd that stops reading in a large group."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from apachews import Event, Server

from ..conftest import wait_for
from ..handler.test_channel_order import Step, play, small_buffers
from ..support.raw_client import RawClient
from ..support.site import running_site
from .conftest import scaled
from .test_slow_peers import BUFFER_BYTES, CONNECTION_BYTES, dial_slow

__all__ = ["small_buffers"]  # the fixture

KINDS = (
    *("send", "broadcast", "multicast", "join", "bridge", "program") * 4,
    *("open", "read", "settle", "lag", "move") * 2,
    *("part", "close", "leave", "fork", "drain", "kill"),
)
SCRIPTS = scaled(5000, 40)
SLOW, FAST = scaled(1000, 60), scaled(4000, 60)
BROADCASTS = scaled(2000, 300)
MESSAGE = "x" * 1000


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.timeout(3600)
def test_every_client_gets_its_messages_in_order(short_path: Path) -> None:
    for seed in range(SCRIPTS):
        chance = random.Random(seed)
        steps: list[Step] = [
            (chance.choice(KINDS), chance.randint(0, 30), chance.randint(0, 30)) for _ in range(150)
        ]
        directory = short_path / str(seed)
        directory.mkdir()
        try:
            play(str(directory / "a.ws"), steps)
        except AssertionError as error:
            raise AssertionError(f"script {seed}: {error}"[:500]) from error


@pytest.mark.timeout(600)
def test_the_memory_of_clients_that_stop_reading() -> None:
    """They stop at different times, while their group gets messages all the while."""
    with running_site("event", 25, 25) as site, ExitStack() as stack:
        server: Server | None = None

        def handle(event: Event) -> None:
            if server and event.type() is Event.Accept:
                server.group("room").add(event.client())

        server = stack.enter_context(site.producer("room.ws", handle))
        for _ in range(SLOW):
            sock = dial_slow(site)
            stack.callback(sock.close)
            RawClient(sock).upgrade("/room.ws")
        readers = [RawClient(site.dial("ws")).upgrade("/room.ws") for _ in range(FAST)]
        for client in readers:
            stack.callback(client.socket.close)
        room = server.group("room")
        wait_for(lambda: len(room) == SLOW + FAST, 60)
        before = most = site.resident_bytes()
        for number in range(BROADCASTS):
            delivery = room.broadcast(MESSAGE)
            assert delivery == (SLOW + FAST, 0)
            for client in readers:
                assert client.read_frame() == (0x81, MESSAGE.encode()), number
            if number % 50 == 0:
                most = max(most, site.resident_bytes())
        per_client = (max(most, site.resident_bytes()) - before) / SLOW
        print(f"Apache: {per_client / 1024:.1f} KiB for a client that does not read")
        slack_bytes = 8 * 1024 * 1024 / SLOW
        assert per_client <= BUFFER_BYTES + CONNECTION_BYTES + slack_bytes
