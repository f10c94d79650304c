"""Broadcasts of a PHP program by channels, through a real Apache.

The program numbers its broadcasts like that of ``tests/integration/test_groups.py``, whose clients
check that they miss none, and get none twice.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from ..conftest import wait_for
from ..integration.test_groups import Room, room
from ..support.raw_client import RawClient
from ..support.site import Site, running_site
from .test_behind_apache import php, program

# A broadcast every 4 ms: to all, to the room, without one client, or too long for a channel.
PROGRAM = r"""<?php
require $argv[2] . '/autoload.php';
$server = new apachews\Server($argv[1]);
$server->onSignal(SIGTERM, $server->drain(...));
$room = $server->group('room');
$own = getmypid();
$count = 0;
$at = hrtime(true);
while ($event = $server->dequeue(max(0, ($at - hrtime(true)) / 1e9))) {
    switch ($event->type()) {
        case ApacheWSAcceptEvent:
            $room->add($event->getClient());
            $event->getClient()->send("next $own $count");
            break;
        case ApacheWSIOEvent:
            $event->write("next $own $count " . $event->read());
            break;
        case ApacheWSConnectionClosed:
            file_put_contents("$argv[1].closed", $event->code);
            break;
    }
    if (hrtime(true) < $at) {
        continue;
    }
    $at = hrtime(true) + 4_000_000;
    $text = "broadcast $own $count " . str_repeat('x', PADDING);
    $members = iterator_to_array($room);
    if ($count % 3 === 0) {
        $server->broadcast($text);
    } elseif ($count % 50 === 1) {
        $room->broadcast($text . str_repeat('long', 20_000));
    } elseif ($count % 5 === 2 && $members !== []) {
        $one = $members[$count % count($members)];
        $room->broadcast($text, exclude: $one);
        $one->send($text);
    } else {
        $room->broadcast($text);
    }
    $count++;
}
"""

pytestmark = pytest.mark.skipif(
    not shutil.which("php"), reason="php is not installed: apt-get install php-cli"
)


@contextlib.contextmanager
def producer(site: Site, *options: str, padding: int = 1) -> Iterator[int]:
    """Run a producer whose broadcasts have so many more bytes; yield its process id."""
    text = PROGRAM.replace("PADDING", str(padding))
    with php(site, program(site, text), "room.ws", *options) as process:
        yield process.pid


def test_reloads_of_apache() -> None:
    with (
        running_site("event", workers=20, threads=10) as site,
        producer(site),
        room(site, 16) as clients,
    ):
        clients.wait_for_broadcasts()
        for _ in range(2):
            site.renew()
            clients.wait_for_broadcasts()
        assert len(clients.open) == 16
        wait_for(lambda: len(site.custodians()) == 1)
        clients.wait_for_channels(16)
        clients.wait_for_broadcasts(150)


def test_a_deploy_of_the_producer(event_site: Site) -> None:
    site = event_site
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(producer(site))
        clients = stack.enter_context(room(site))
        clients.wait_for_broadcasts()
        clients.wait_for_channels(24)
        stack.enter_context(producer(site))  # it replaces the socket file
        os.kill(first, signal.SIGTERM)
        wait_for(lambda: all(one.producers == 2 for one in clients.open))
        clients.wait_for_broadcasts()
        clients.wait_for_channels(24)
        assert len(clients.open) == 24


def test_a_producer_that_is_killed(event_site: Site) -> None:
    site = event_site
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(producer(site))
        clients = stack.enter_context(room(site))
        clients.wait_for_channels(24)
        for listener in clients.listeners:
            listener.may_lose = True
        os.kill(first, signal.SIGKILL)
        stack.enter_context(producer(site))
        wait_for(lambda: all(one.producers == 2 for one in clients.open))
        clients.wait_for_broadcasts()
        clients.wait_for_channels(24)
        assert len(clients.open) == 24


def test_a_client_that_does_not_read() -> None:
    with (
        running_site("event", extra="\nDefine APACHEWS_MAX_BUFFER 64K\n") as site,
        producer(site, padding=20_000),
        room(site, 8) as clients,
        RawClient(site.dial("ws")) as slow,
    ):
        clients.wait_for_channels(8)
        slow.upgrade("/room.ws")
        numbers: list[int] = []
        wait_for(lambda: read_broadcasts(slow, numbers, 20) and on_channels(clients) == 9)
        # From now on it does not read: the program closes it, and the others miss nothing.
        closed = site.docroot / "room.ws.closed"
        wait_for(closed.exists)
        clients.wait_for_broadcasts()
        assert (closed.read_text(), len(clients.open)) == ("1013", 8)
        while read_broadcasts(slow, numbers, 20):
            pass
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def on_channels(clients: Room) -> int:
    return sum(one.channel_clients for one in clients.processes())


def read_broadcasts(client: RawClient, numbers: list[int], count: int) -> bool:
    """Append the numbers of a client's next messages; return False after its CLOSE with 1013."""
    for _ in range(count):
        frame = client.read_data_frame()
        assert frame
        if frame[0] == 0x88:
            assert int.from_bytes(frame[1][:2], "big") == 1013
            return False
        kind, _, number, *_ = frame[1].decode().split()
        if kind == "broadcast":
            numbers.append(int(number))
    return True


def test_a_php_without_ext_sockets(event_site: Site) -> None:
    without = ("-d", "disable_functions=socket_recvmsg")
    with producer(event_site, *without), room(event_site, 8) as clients:
        clients.wait_for_broadcasts(150)
        assert sum(one.channels for one in clients.processes()) == 0
        assert len(clients.open) == 8
