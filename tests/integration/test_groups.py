"""Broadcasts by channels through a real Apache: no client misses one, or gets one twice.

The producers are a program in Python, and bindings/c/tests/room.c with sanitizers.

A producer numbers its broadcasts, and every other message to a client says which number comes
next.  So a client knows of each message whether it is the right one, also when Apache reloads,
when another producer takes over, and when processes are killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from apachews.monitoring.collect import find_apaches
from apachews.monitoring.snapshot import ProcessStatus

from ..c.build import built, why_not
from ..conftest import DEADLINE_S, wait_for
from ..support.frames import masked
from ..support.producers import children_of, program, running
from ..support.raw_client import RawClient
from ..support.site import Site, running_site
from .conftest import RESTART_MPMS

# The first of them that needs the producer in C builds it, with sanitizers.
pytestmark = pytest.mark.timeout(600)

# Its arguments: the socket file, and how many workers.
# As in test_handover.py: a custodian looks for a taker at once, and again after twenty seconds.
MERGE_S = 60.0

PROGRAM = """
import os, signal, sys
from apachews import Event, Server

server = Server(sys.argv[1], workers=int(sys.argv[2]), mode=0o666)
room = server.group("room")
own = os.getpid()
count = 0

def tick():
    global count
    text = f"broadcast {own} {count}"
    if count % 3 == 0:
        server.broadcast(text)
    elif count % 50 == 1:
        room.broadcast(text + " " + "long" * 20_000)
    else:
        room.broadcast(text)
    count += 1
    server.call_later(0.004, tick)

signal.signal(signal.SIGTERM, lambda *_: server.call_soon(server.drain))
server.call_later(0, tick)
for event in server:
    if event.type() is Event.Accept:
        room.add(event.client())
        event.client().send(f"next {own} {count}")
    elif event.type() is Event.IO:
        event.write(f"next {own} {count} {event.read()}")
"""


class Listener(threading.Thread):
    """A client that knows which message comes next.

    Attributes:
        broadcasts: how many came, in order.
        producers: how many producers it has met.
        faults: what was wrong.
        may_lose: answers of a producer that was killed may be missing.
        is_over: the connection has ended.
    """

    def __init__(self, site: Site, scheme: str, path: str = "/room.ws") -> None:
        super().__init__(daemon=True)
        self.client = RawClient(site.dial(scheme)).upgrade(path)
        self.broadcasts = self.producers = 0
        self.faults: list[str] = []
        self.is_over = self.may_lose = False
        self._expected = ("", -1)
        self._sent = self._answered = 0
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while frame := self.client.read_data_frame():
                if frame[0] != 0x81 or self.is_over:
                    break  # CLOSE, or a frame that stop() may have cut
                self._check(frame[1].decode())
        self.is_over = True

    def _check(self, text: str) -> None:
        kind, producer, number, *rest = text.split()
        message = (producer, int(number))
        if producer != self._expected[0]:
            # A broadcast may come before the greeting: the program had not taken the Accept.
            self.producers += 1
        elif message != self._expected:
            self.faults.append(f"{text[:60]}, expected {self._expected}")
        if kind == "next" and rest:
            is_next = int(rest[0]) == self._answered + 1
            if not is_next and not (self.may_lose and int(rest[0]) > self._answered):
                self.faults.append(f"{text[:60]}, expected the answer {self._answered + 1}")
            self._answered = int(rest[0])
        self._expected = (producer, int(number) + (kind == "broadcast"))
        if kind == "broadcast":
            self.broadcasts += 1
            if self.broadcasts % 20 == 0:
                self._sent += 1
                self.client.send(masked(0x81, b"%d" % self._sent))

    def stop(self) -> None:
        """Disconnect, and wait for the thread."""
        self.is_over = True
        with contextlib.suppress(OSError):
            self.client.socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self.client.socket.close()


class Room:
    """Listeners, half of them with TLS."""

    def __init__(self, site: Site, count: int) -> None:
        self.site = site
        self.listeners = [Listener(site, "wss1.3" if index % 2 else "ws") for index in range(count)]

    @property
    def open(self) -> list[Listener]:
        return [one for one in self.listeners if not one.is_over]

    def wait_for_broadcasts(self, count: int = 50) -> None:
        """Wait until every client has got so many more."""
        before = {one: one.broadcasts for one in self.open}
        wait_for(lambda: all(one.broadcasts >= before[one] + count for one in before))
        self.check()

    def check(self) -> None:
        faults = [fault for one in self.listeners for fault in one.faults]
        assert not faults, faults[:5]

    def processes(self) -> list[ProcessStatus]:
        (apache,) = [one for one in find_apaches() if one.pid == self.site.apache.pid]
        return list(apache.collect().processes)

    def wait_for_channels(self, count: int) -> None:
        """Wait until so many clients are on channels."""
        wait_for(lambda: sum(one.channel_clients for one in self.processes()) == count)


@contextlib.contextmanager
def room(site: Site, count: int = 24) -> Iterator[Room]:
    made = Room(site, count)
    try:
        yield made
        made.check()
    finally:
        for listener in made.listeners:
            listener.stop()


@contextlib.contextmanager
def producer(site: Site, directory: Path, workers: int = 0) -> Iterator[int]:
    """Run a producer; yield its process id."""
    path = program(directory, PROGRAM)
    with running(path, str(site.docroot / "room.ws"), str(workers)) as process:
        wait_for(lambda: is_listening(site.docroot / "room.ws"))
        yield process.pid


@contextlib.contextmanager
def producer_in_c(site: Site, directory: Path) -> Iterator[int]:
    """Run the producer in C; yield its process id.  If it exits, its status must be 0."""
    path = site.docroot / "room.ws"
    log = directory / f"room-{len(list(directory.iterdir()))}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [built("sanitized") / "room", path], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: is_listening(path), what=process.poll)
        yield process.pid
        if process.poll() is None:
            process.terminate()
        assert process.wait(DEADLINE_S) in (0, -signal.SIGKILL), log.read_text()
    finally:
        process.kill()
        process.wait()


Producer: TypeAlias = Callable[[Site, Path], contextlib.AbstractContextManager[int]]
PRODUCERS: dict[str, Producer] = {"python": producer, "c": producer_in_c}


@pytest.fixture
def can_build() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(params=PRODUCERS)
def any_producer(request: pytest.FixtureRequest) -> Producer:
    if request.param == "c":
        request.getfixturevalue("can_build")
    return PRODUCERS[request.param]


def is_listening(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        return True
    return False


@pytest.mark.parametrize("mpm", RESTART_MPMS)
def test_reloads_of_apache(mpm: str, tmp_path: Path) -> None:
    reload_apache(mpm, 3, tmp_path, producer)


def test_a_reload_of_apache_with_a_producer_in_c(tmp_path: Path, can_build: None) -> None:
    reload_apache("event", 1, tmp_path, producer_in_c)


def reload_apache(mpm: str, reloads: int, directory: Path, a_producer: Producer) -> None:
    with (
        running_site(mpm, workers=20, threads=10) as site,
        a_producer(site, directory),
        room(site) as clients,
    ):
        clients.wait_for_broadcasts()
        for _ in range(reloads):
            site.renew()
            clients.wait_for_broadcasts()
        assert len(clients.open) == 24
        # All are with one custodian in the end, on one channel; those with TLS have a relay.
        wait_for(lambda: len(site.custodians()) == 1, MERGE_S, what=site.custodians)
        clients.wait_for_channels(24)
        clients.wait_for_broadcasts()


def test_a_deploy_of_the_producer(event_site: Site, tmp_path: Path, any_producer: Producer) -> None:
    site = event_site
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(any_producer(site, tmp_path))
        clients = stack.enter_context(room(site))
        clients.wait_for_broadcasts()
        clients.wait_for_channels(24)
        stack.enter_context(any_producer(site, tmp_path))  # it takes the socket file over
        os.kill(first, signal.SIGTERM)
        wait_for(lambda: all(one.producers == 2 for one in clients.open))
        clients.wait_for_broadcasts()
        clients.wait_for_channels(24)
        assert len(clients.open) == 24


def test_a_producer_that_is_killed(
    event_site: Site, tmp_path: Path, any_producer: Producer
) -> None:
    site = event_site
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(any_producer(site, tmp_path))
        clients = stack.enter_context(room(site))
        clients.wait_for_broadcasts()
        clients.wait_for_channels(24)
        for listener in clients.listeners:
            listener.may_lose = True
        os.kill(first, signal.SIGKILL)
        stack.enter_context(any_producer(site, tmp_path))
        wait_for(lambda: all(one.producers == 2 for one in clients.open))
        clients.wait_for_broadcasts()
        clients.wait_for_channels(24)
        assert len(clients.open) == 24


def test_a_child_of_apache_that_is_killed(tmp_path: Path) -> None:
    with (
        running_site("event", workers=20, threads=10) as site,
        producer(site, tmp_path),
        room(site, 48) as clients,
    ):
        clients.wait_for_broadcasts()
        site.renew()
        more = [Listener(site, "ws") for _ in range(8)]
        clients.listeners += more
        clients.wait_for_broadcasts()
        site.expected_harm = "exit signal Killed"
        wait_for(lambda: len(site.custodians()) == 1)
        os.kill(site.custodians()[0], signal.SIGKILL)
        wait_for(lambda: not set(clients.open) & set(clients.listeners) - set(more))
        clients.wait_for_broadcasts()
        assert set(clients.open) == set(more)


def test_each_worker_has_a_channel_of_its_own(event_site: Site, tmp_path: Path) -> None:
    with producer(event_site, tmp_path, 2) as pid, room(event_site, 32) as clients:
        assert len(children_of(pid)) == 2
        clients.wait_for_broadcasts()
        wait_for(lambda: sum(one.channel_clients for one in clients.processes()) >= 16)
        clients.wait_for_broadcasts()
        assert len(clients.open) == 32
