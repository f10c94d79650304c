"""The seed's program behind every MPM, word for word but for the path, and the seed's faults."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from apachews_tools.httpd.private_apache import as_apache_user

from ..conftest import let_pass, wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import Site

SEED = """\
from apachews import *
import os

path = '/var/www/public_html/websocket.ws'
server = Server(path)
while True:
    event = server.dequeue()
    if event.type() == Event.Accept:
        pass
    elif event.type() == Event.ConnectionClosed:
        event.close()
    elif event.type() == Event.IO:
        data = event.read()
        if data == Event.ConnectionClosed:
            event.close()
        elif data == Event.Error:
            pass
        else:
            event.write(data)
    elif event.type() == Event.Error:
        pass
    elif event.type() == Event.NoData:
        pass
"""


# The original knew messages as bytes only, and its answers reached the page as text.
BYTES = """\
from apachews import *

server = Server('/var/www/public_html/websocket.ws')
while True:
    event = server.dequeue()
    if event.type() == Event.Accept:
        event.respond(b'welcome')
    elif event.type() == Event.IO:
        event.respond(b'%d characters' % len(event.read()))
"""


@contextlib.contextmanager
def serving(site: Site, program: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of the original as Apache's user, with the path of this site."""
    path = site.docroot / "websocket.ws"
    program = program.replace("/var/www/public_html/websocket.ws", str(path))
    process = subprocess.Popen([sys.executable, "-c", program], cwd="/", **as_apache_user())
    try:
        wait_for(path.exists, what=process.poll)
        yield process
    finally:
        process.kill()
        process.wait()
        path.unlink(missing_ok=True)


def test_the_seeds_program_runs_unchanged(site: Site, scheme: str) -> None:
    with serving(site, SEED) as process:
        # A client that closes, one that vanishes, one that says nothing, one
        # that breaks the rules: the program goes on.
        for last in (masked(0x88, b"\x03\xe8"), b"", masked(0x81), b"\xff\xff"):
            with RawClient(site.dial(scheme)).upgrade("/websocket.ws") as client:
                for first, payload in ((0x81, "grüße".encode()), (0x82, b"\x00\xff")):
                    client.send(masked(first, payload))
                    assert client.read_frame() == (first, payload)
                client.send(last)
        with RawClient(site.dial(scheme)).upgrade("/websocket.ws") as client:
            client.send(masked(0x81, b"still there"))
            assert client.read_frame() == (0x81, b"still there")
        assert process.poll() is None


def test_answers_in_bytes_reach_the_page_as_text(event_site: Site) -> None:
    with (
        serving(event_site, BYTES),
        RawClient(event_site.dial("ws")).upgrade("/websocket.ws") as client,
    ):
        assert client.read_frame() == (0x81, b"welcome")
        client.send(masked(0x81, "grüße".encode()))
        assert client.read_frame() == (0x81, b"5 characters")
        client.send(masked(0x82, b"\x00\xff"))
        assert client.read_frame() == (0x82, b"2 characters")


# What the seed's C module did wrong, one test each, against the seed's own program.


TEXT, BINARY = 0x81, 0x82


def echoed(client: RawClient, first: int, payload: bytes) -> None:
    client.send(masked(first, payload))
    assert client.read_frame() == (first, payload)


def status_of(site: Site, data: bytes) -> int:
    with RawClient(site.dial("ws")) as client:
        client.send(data)
        return client.read_head()[0]


@pytest.mark.parametrize("size", [25, 128, 256, 1000, 8000])
def test_a_key_that_is_too_long_is_refused_and_overruns_nothing(site: Site, size: int) -> None:
    assert status_of(site, request(Sec_WebSocket_Key="A" * size)) == 400
    assert status_of(site, request()) == 101


@pytest.mark.parametrize("missing", ["Upgrade", "Connection", "Sec-WebSocket-Version"])
def test_a_header_that_is_missing_is_answered(site: Site, missing: str) -> None:
    assert status_of(site, request("/echo.ws", None, **{missing: None})) == 426
    assert status_of(site, request()) == 101


def test_several_frames_in_one_segment(event_site: Site) -> None:
    with RawClient(event_site.dial("ws")).upgrade() as client:
        client.send(b"".join(masked(TEXT, str(number).encode()) for number in range(100)))
        for number in range(100):
            assert client.read_frame() == (TEXT, str(number).encode())


def test_one_frame_over_many_segments(event_site: Site) -> None:
    frame = masked(BINARY, bytes(range(256)) * 2)
    with RawClient(event_site.dial("ws")).upgrade() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(len(frame)):
            client.send(frame[index : index + 1])
        assert client.read_frame() == (BINARY, bytes(range(256)) * 2)


@pytest.mark.parametrize("length", [2**20 + 1, 2**31, 2**32, 2**62, 2**63 - 1])
def test_an_absurd_length_is_refused_before_a_byte_of_it(event_site: Site, length: int) -> None:
    with RawClient(event_site.dial("ws")).upgrade() as client:
        client.send(b"\x82\xff" + length.to_bytes(8, "big") + b"mask")
        assert client.read_close() == 1009


def test_binary_stays_binary(event_site: Site) -> None:
    with RawClient(event_site.dial("ws")).upgrade() as client:
        echoed(client, BINARY, bytes(range(256)))
        echoed(client, TEXT, b"text")


def test_continuation_frames_are_one_message(event_site: Site) -> None:
    with RawClient(event_site.dial("ws")).upgrade() as client:
        client.send(masked(0x01, b"one ") + masked(0x00, b"and ") + masked(0x80, b"the same"))
        assert client.read_frame() == (TEXT, b"one and the same")


def test_a_ping_is_answered_with_its_payload(event_site: Site) -> None:
    with RawClient(event_site.dial("ws")).upgrade() as client:
        client.send(masked(0x89, b"\x00ping"))
        assert client.read_frame() == (0x8A, b"\x00ping")
        echoed(client, TEXT, b"and it goes on")


def test_a_close_is_answered_and_the_connection_closed(event_site: Site) -> None:
    with RawClient(event_site.dial("ws")).upgrade() as client:
        client.send(masked(0x88, b"\x03\xe8bye"))
        assert client.read_frame() == (0x88, b"\x03\xe8bye")
        assert client.read(1) == b""


def test_nul_bytes_are_bytes_like_others(event_site: Site) -> None:
    with RawClient(event_site.dial("ws")).upgrade() as client:
        echoed(client, TEXT, b"a\0b\0\0")
        echoed(client, BINARY, b"\0" * 1000)


def test_messages_keep_their_boundaries(event_site: Site) -> None:
    sizes = [1, 125, 126, 127, 4095, 4096, 4097, 65535, 65536, 100_000, 1]
    with RawClient(event_site.dial("ws")).upgrade() as client:
        client.send(b"".join(masked(BINARY, b"x" * size) for size in sizes))
        for size in sizes:
            assert client.read_frame() == (BINARY, b"x" * size)


@pytest.mark.parametrize("leaves", range(5))
def test_any_client_of_many_may_leave(event_site: Site, leaves: int) -> None:
    clients = [RawClient(event_site.dial("ws")).upgrade() for _ in range(5)]
    clients.pop(leaves).socket.close()
    for number, client in enumerate(clients):
        echoed(client, TEXT, str(number).encode())
        client.socket.close()


def test_nothing_spins_after_a_close(event_site: Site) -> None:
    path = f"/echo.ws?spin-{time.monotonic_ns()}"
    client = RawClient(event_site.dial("ws")).upgrade(path)
    client.send(masked(0x88))
    assert client.read_close() == 1005
    client.socket.close()
    wait_for(lambda: event_site.log_lines(path.replace("?", ".")))
    used = event_site.processor_s()
    let_pass(1)
    assert event_site.processor_s() - used < 0.2
