"""What becomes of clients whose producer is odd, dies, or floods; no child is ever lost."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import requests

from apachews import Client, Event, wire
from apachews.wire.reader import Item, MessageReader

from ..conftest import wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import Site, echo

# Clients whose test is over.  Where their producer went first Apache holds them for a
# moment, until it sees that they have gone too, and offers them to the next one.
_over: set[str] = set()


class HandMade:
    """A producer that takes one client and does as it is told."""

    def __init__(self, site: Site, name: str) -> None:
        self._path = site.docroot / name
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self._path))
        self._path.chmod(0o666)
        self.listener.listen()
        self.listener.settimeout(10)
        self.opened: wire.Open
        self.received: list[Item] = []  # what came together with it
        self.ids: set[str] = set()  # of all that it accepted

    def accept(self) -> socket.socket:
        """Return the socket of the next client, whose OPEN is ``self.opened`` then."""
        while True:
            sock = self.listener.accept()[0]
            sock.settimeout(10)
            self.reader = MessageReader()
            while not (items := self.reader.receive(data := sock.recv(65536))):
                assert data, "the end, before OPEN"
            assert isinstance(items[0], wire.Open)
            self.opened, self.received = items[0], items[1:]
            if self.opened.id not in _over:
                self.ids.add(self.opened.id)
                return sock
            sock.close()

    def close(self) -> None:
        self.listener.close()
        self._path.unlink(missing_ok=True)


@contextmanager
def by_hand(site: Site, name: str) -> Iterator[HandMade]:
    """A producer that is played by hand."""
    producer = HandMade(site, name)
    try:
        yield producer
    finally:
        producer.close()
        _over.update(producer.ids)


@contextmanager
def hand_made(site: Site, scheme: str) -> Iterator[tuple[RawClient, socket.socket]]:
    """A client and the producer's end of its connection."""
    with (
        by_hand(site, "hand.ws") as producer,
        RawClient(site.dial(scheme)).upgrade("/hand.ws") as client,
        producer.accept() as sock,
    ):
        yield client, sock


@pytest.mark.parametrize(
    "bad",
    [
        b"\xc1\x01a",
        b"\x81\x81aaaab",
        b"\x80\x00",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"\x88\x01\x00",
        b"\x82\x7f" + b"\xff" * 8,
    ],
)
def test_a_producer_that_does_not_speak_the_wire(event_site: Site, bad: bytes) -> None:
    with hand_made(event_site, "ws") as (client, producer):
        producer.sendall(bad)
        assert client.read_close() == 1011
        client.send(masked(0x88, b"\x03\xf3"))
        assert client.read(1) == b""
    assert wait_for(lambda: event_site.log_lines(r"wsgi:warn.*hand\.ws.*PRODUCER_ERROR.*code=1011"))


def test_pings_of_the_producer_are_answered_by_the_client(event_site: Site, scheme: str) -> None:
    with hand_made(event_site, scheme) as (client, producer):
        producer.sendall(wire.encode_frame(wire.PING, b"p"))
        assert client.read_frame() == (0x89, b"p")
        client.send(masked(0x8A, b"p"))
        assert producer.recv(100) == wire.encode_frame(wire.PONG, b"p")
        client.send(masked(0x89, b"q"))
        assert client.read_frame() == (0x8A, b"q")


def test_codes_and_reasons_pass_both_ways(site: Site, scheme: str) -> None:
    closed: list[tuple[int, str]] = []

    def serve(event: Event) -> None:
        if event.type() is Event.IO:
            event.close(4002, "asked to")
        elif event.type() is Event.ConnectionClosed:
            closed.append((event.code, event.reason))

    with site.producer("close.ws", serve):
        with RawClient(site.dial(scheme)).upgrade("/close.ws") as client:
            client.send(masked(0x88, b"\x0f\xa1because"))
            assert client.read_close() == 4001
        wait_for(lambda: closed)
        assert closed == [(4001, "because")]
        with RawClient(site.dial(scheme)).upgrade("/close.ws") as client:
            client.send(masked(0x81, b"close"))
            frame = client.read_frame()
            assert frame == (0x88, b"\x0f\xa2asked to")
            client.send(masked(0x88, b"\x0f\xa2"))
            assert client.read(1) == b""
        wait_for(lambda: len(closed) == 2)
        assert closed[1] == (4002, "")


def test_a_client_in_the_middle_of_many_leaves(event_site: Site) -> None:
    clients: list[Client] = []

    def serve(event: Event) -> None:
        if event.type() is Event.Accept:
            clients.append(event.client())
        elif event.type() is Event.ConnectionClosed:
            clients.remove(event.client())
        echo(event)

    with event_site.producer("many.ws", serve) as server:
        browsers = [RawClient(event_site.dial("ws")).upgrade("/many.ws") for _ in range(9)]
        wait_for(lambda: len(clients) == 9)
        browsers.pop(4).socket.close()  # without a word
        wait_for(lambda: len(clients) == 8)
        for number, browser in enumerate(browsers):
            browser.send(masked(0x81, str(number).encode()))
            assert browser.read_frame() == (0x81, str(number).encode())
        assert server.broadcast("all") == 8
        for browser in browsers:
            assert browser.read_frame() == (0x81, b"all")
            browser.socket.close()


def test_a_slow_client_is_closed_and_the_others_are_served(event_site: Site) -> None:
    codes: list[int] = []
    data = "x" * 100_000
    clients: dict[str, Client] = {}

    def serve(event: Event) -> None:
        if event.type() is Event.Accept:
            clients[event.client().request.uri] = event.client()
        elif event.type() is Event.IO:
            clients["/slow.ws?slow"].send(data)
            event.write("more is on its way")
        elif event.type() is Event.ConnectionClosed:
            codes.append(event.code)

    with event_site.producer("slow.ws", serve, max_queue_bytes=1_000_000):
        slow = RawClient(event_site.dial("ws")).upgrade("/slow.ws?slow")
        fast = RawClient(event_site.dial("ws")).upgrade("/slow.ws?fast")
        wait_for(lambda: len(clients) == 2)
        turns = 0
        while not codes:
            fast.send(masked(0x81, b"next"))
            assert fast.read_frame() == (0x81, b"more is on its way")
            turns += 1
            assert turns < 500
        assert codes == [1013]
        fast.send(masked(0x81, b"still"))
        assert fast.read_frame() == (0x81, b"more is on its way")
        slow.socket.close()
        fast.socket.close()


def no_masks(data: bytes) -> bytes:
    return wire.encode_frame(wire.TEXT, data)


BAD: dict[str, tuple[bytes, int]] = {
    "not masked": (no_masks(b"hi"), 1002),
    "RSV": (masked(0xC1, b"x"), 1002),
    "opcode 3": (masked(0x83, b"x"), 1002),
    "bad text": (masked(0x81, b"\xff"), 1007),
    "too long": (b"\x82\xff" + (2**62).to_bytes(8, "big") + b"\0\0\0\0", 1009),
    "absurd length": (b"\x82\xff" + b"\xff" * 8 + b"\0\0\0\0", 1002),
    "long ping": (masked(0x89, b"x" * 126), 1002),
    "bad close": (masked(0x88, b"\x00"), 1002),
}


@pytest.mark.parametrize("what", sorted(BAD))
def test_violations_of_a_client(site: Site, scheme: str, what: str) -> None:
    data, code = BAD[what]
    with RawClient(site.dial(scheme)).upgrade() as client:
        client.send(masked(0x81, b"good"))
        assert client.read_frame() == (0x81, b"good")
        client.send(data)
        assert client.read_close() == code


ENDS: dict[str, Callable[[RawClient], None]] = {
    "reset": lambda client: client.socket.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
    ),
    "half a header": lambda client: client.send(b"\x81"),
    "half a frame": lambda client: client.send(masked(0x82, b"x" * 1000)[:500]),
    "half a message": lambda client: client.send(masked(0x02, b"x")),
    "after a close": lambda client: client.send(masked(0x88)),
    "garbage": lambda client: client.send(os.urandom(200)),
}


def test_no_child_dies_of_what_clients_do(site: Site) -> None:
    """Two hundred ends of all kinds; ``running_site`` looks for dead children."""
    random.seed(7)
    for number in range(200):
        how = random.choice(sorted(ENDS))
        scheme = random.choice(["ws", "wss1.2", "wss1.3"])
        client = RawClient(site.dial(scheme))
        if number % 10:
            client.upgrade()
        else:
            client.send(request())  # and gone before the 101
        try:
            ENDS[how](client)
        except OSError:
            pass  # the bridge was faster
        client.socket.close()
    assert requests.get(site.http(), timeout=5).ok
    assert not site.log_lines("exit signal")
    with RawClient(site.dial("wss1.3")).upgrade() as client:
        client.send(masked(0x81, b"hi"))
        assert client.read_frame() == (0x81, b"hi")
