"""A thousand clients that never read, a producer that never reads, and both together.

Those that read are served all the while; the slow ones are closed with 1013; and
Apache's memory stays under what docs/explanation/how-it-works.md reckons for a connection.
"""

from __future__ import annotations

import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from apachews import Client, Event, Server, wire

from ..conftest import wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import Site, running_site
from .conftest import scaled

CLIENTS = scaled(1000, 100)
FAST = 10
MESSAGE = b"x" * 16384
BUFFER_BYTES = 65536
# docs/explanation/how-it-works.md: "Memory"
CONNECTION_BYTES = 16 * 1024
INFLATER_BYTES = 44 * 1024  # with the largest window
# What the allocator keeps besides, however many connections there are.
SLACK_BYTES = 4 * 1024 * 1024 // CLIENTS
SETTINGS = """
SetEnv APACHEWS_SEND_TIMEOUT 5s
SetEnv APACHEWS_CLOSE_TIMEOUT 2s
SetEnv APACHEWS_MAX_MESSAGE 2000000M
"""


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site("event", 25, 25, extra=SETTINGS) as site:
        yield site


def dial_slow(site: Site) -> socket.socket:
    """Connect with a small receive buffer: the kernel is not to read for the client."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(30)
    sock.connect(("127.0.0.1", site.apache.port))
    return sock


class Room:
    """A producer that broadcasts to all that are there, and keeps their ends."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self.fast: list[Client] = []
        self.clients = 0
        self.codes: list[int] = []

    def __call__(self, event: Event) -> None:
        if event.type() is Event.Accept:
            self.clients += 1
        elif event.type() is Event.ConnectionClosed:
            self.codes.append(event.code)
        elif event.type() is Event.IO and self.server:
            # A fast client asks for more.
            self.server.broadcast(MESSAGE)


@pytest.mark.timeout(300)
def test_clients_that_never_read(site: Site) -> None:
    room = Room()
    with site.producer("room.ws", room, max_queue_bytes=1 << 20) as server, ExitStack() as stack:
        room.server = server
        for _ in range(CLIENTS):
            sock = dial_slow(site)
            stack.callback(sock.close)
            RawClient(sock).upgrade("/room.ws?slow")
        fast = [RawClient(site.dial("ws")).upgrade("/room.ws?fast") for _ in range(FAST)]
        for client in fast:
            stack.callback(client.socket.close)
        wait_for(lambda: room.clients == CLIENTS + FAST)
        before, most, latencies = site.resident_bytes(), 0, []
        deadline = time.monotonic() + 120
        while len(room.codes) < CLIENTS:
            assert time.monotonic() < deadline, f"{len(room.codes)} of {CLIENTS} are closed"
            started = time.monotonic()
            fast[0].send(masked(0x81, b"more"))
            for client in fast:
                assert client.read_frame() == (0x82, MESSAGE)
            latencies.append(time.monotonic() - started)
            most = max(most, site.resident_bytes())
        assert set(room.codes) == {1013}
        for number, client in enumerate(fast):
            client.send(masked(0x89, str(number).encode()))
            assert client.read_frame() == (0x8A, str(number).encode())
        per_client = (most - before) / CLIENTS
        latencies.sort()
        print(
            f"{len(latencies)} broadcasts; median {latencies[len(latencies) // 2] * 1000:.1f} ms,"
            f" longest {latencies[-1] * 1000:.1f} ms; Apache: {per_client / 1024:.1f} KiB for a"
            " client that does not read"
        )
        assert per_client <= BUFFER_BYTES + CONNECTION_BYTES + SLACK_BYTES
        assert latencies[len(latencies) // 2] < 1, "the others were not served meanwhile"
        # Apache drops them as well, with the code it had from the producer or its own.
        wait_for(
            lambda: len(site.log_lines(r"\?slow closed by .*code=1013")) == CLIENTS,
            30,
            what=lambda: site.log_lines(r"\?slow closed by")[-3:],
        )


class Deaf:
    """A producer that accepts and never reads, by hand."""

    def __init__(self, site: Site, name: str) -> None:
        self.path = site.docroot / name
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self.path.chmod(0o666)
        self._listener.listen(1000)
        self.sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        try:
            while True:
                self.sockets.append(self._listener.accept()[0])
        except OSError:
            pass  # closed

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for sock in self.sockets:
            sock.close()
        self.path.unlink()


def fill(sockets: list[socket.socket], data: bytes) -> None:
    """Send to each until none takes more for a while."""
    for sock in sockets:
        sock.setblocking(False)
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 1:
        for sock in sockets:
            try:
                if sock.send(data):
                    quiet_since = time.monotonic()
            except BlockingIOError:
                pass


@pytest.mark.timeout(300)
@pytest.mark.parametrize("both", [False, True], ids=["producer", "both"])
def test_a_producer_that_never_reads(site: Site, both: bool) -> None:
    deaf = Deaf(site, "deaf.ws")
    with ExitStack() as stack:
        stack.callback(deaf.close)
        clients: list[Any] = []
        for _ in range(CLIENTS):
            sock = dial_slow(site)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            stack.callback(sock.close)
            RawClient(sock).upgrade("/deaf.ws")
            clients.append(sock)
        wait_for(lambda: len(deaf.sockets) == CLIENTS)
        before = site.resident_bytes()
        # One frame each, whose header promises more than will ever come.
        for sock in clients:
            sock.sendall(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"mask")
        fill(clients, MESSAGE)
        ways = 1
        if both:
            ways = 2
            for sock in deaf.sockets:
                sock.sendall(wire.encode_header(wire.FIN | wire.BINARY, 1 << 40))
            fill(deaf.sockets, MESSAGE)
        per_client = (site.resident_bytes() - before) / CLIENTS
        print(f"Apache: {per_client / 1024:.1f} KiB for each")
        assert per_client <= ways * BUFFER_BYTES + CONNECTION_BYTES + SLACK_BYTES
        # Another producer's clients do not notice.
        with RawClient(site.dial("ws")).upgrade() as fast:
            for number in range(20):
                fast.send(masked(0x81, str(number).encode()))
                assert fast.read_frame() == (0x81, str(number).encode())
        if both:
            wait_for(lambda: len(site.log_lines(r"\(TOO_SLOW\) code=1013")) == CLIENTS, 60)
        else:
            # It is not their fault: they wait.
            assert not site.log_lines(r"deaf\.ws closed")
            assert re.search(r"deaf\.ws HTTP/1\.1\" 101", site.apache.access_log)


@pytest.mark.timeout(300)
def test_bombs_that_wait_for_their_producer(site: Site) -> None:
    """Each client's 60 KiB mean 60 MiB; what is held is what came, and one buffer of it."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = stream.compress(bytes(60 << 20)) + stream.flush(zlib.Z_SYNC_FLUSH)
    deaf = Deaf(site, "deaf.ws")
    with ExitStack() as stack:
        stack.callback(deaf.close)
        before = site.resident_bytes()
        for _ in range(CLIENTS):
            client = RawClient(site.dial("ws"))
            stack.callback(client.socket.close)
            client.send(request("/deaf.ws", Sec_WebSocket_Extensions="permessage-deflate"))
            assert client.read_head()[0] == 101
            client.send(masked(0xC2, bomb[:-4]))
        with RawClient(site.dial("ws")).upgrade() as fast:
            fast.send(masked(0x81, b"hi"))
            assert fast.read_frame() == (0x81, b"hi")
        per_client = (site.resident_bytes() - before) / CLIENTS
        print(f"Apache: {per_client / 1024:.1f} KiB for each bomb of {len(bomb) >> 10} KiB")
        assert per_client <= 2 * BUFFER_BYTES + INFLATER_BYTES + CONNECTION_BYTES + SLACK_BYTES
