"""Peers that vanish, in every way and at every moment; none costs a descriptor or the processor.

How a test makes a half-open connection: the client's socket requires a TTL that no packet has
(ip(7), IP_MINTTL).  The kernel then drops every packet that arrives there: Apache sees no
acknowledgement, no FIN and no reset, as after a pulled cable.  IP_MINTTL needs no privilege;
SO_ATTACH_FILTER, another way, needs CAP_NET_ADMIN on some kernels.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from apachews import Event, wire

from ..conftest import let_pass, wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import Site, echo, running_site
from .test_producers import HandMade

SETTINGS = """
SetEnv APACHEWS_PING_INTERVAL 300ms
SetEnv APACHEWS_PING_TIMEOUT 300ms
SetEnv APACHEWS_SEND_TIMEOUT 600ms
SetEnv APACHEWS_CLOSE_TIMEOUT 300ms
"""
IP_MINTTL = 21
HIGHEST_TTL = 255  # packets of the loopback interface have 64
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(extra=SETTINGS) as site:
        yield site


def pull_the_cable(sock: socket.socket) -> None:
    """Drop every packet that arrives at a socket of a loopback connection."""
    sock.setsockopt(socket.IPPROTO_IP, IP_MINTTL, HIGHEST_TTL)


class Ends:
    """A producer that keeps what becomes of its clients, by their URI."""

    def __init__(self) -> None:
        self.opened: set[str] = set()
        self.codes: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        if event.type() is Event.Accept:
            self.opened.add(event.client().request.uri)
        elif event.type() is Event.ConnectionClosed:
            self.codes[event.client().request.uri] = event.code
        echo(event)


@pytest.mark.parametrize("scheme", ["ws", "wss1.2", "wss1.3"])
def test_half_open(site: Site, scheme: str) -> None:
    ends = Ends()
    with site.producer("dead.ws", ends):
        path = f"/dead.ws?half-open-{scheme}"
        client = RawClient(site.dial(scheme)).upgrade(path)
        client.send(masked(0x81, b"hi"))
        assert client.read_data_frame() == (0x81, b"hi")
        pull_the_cable(client.socket)
        wait_for(lambda: ends.codes)
        assert ends.codes == {path: 1011}
        wait_for(lambda: site.log_lines(rf"half-open-{scheme} .*\(NO_PONG\)"))
        client.socket.close()


@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
def test_half_open_while_the_producer_sends(site: Site, scheme: str) -> None:
    producer = HandMade(site, "flood.ws")
    path = f"/flood.ws?{scheme}"
    try:
        client = RawClient(site.dial(scheme)).upgrade(path)
        with producer.accept() as sock:
            pull_the_cable(client.socket)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                while True:
                    sock.sendall(wire.encode_frame(wire.BINARY, b"x" * 60_000))
        wait_for(lambda: site.log_lines(rf"flood\.ws\?{scheme} .*\(TOO_SLOW\) code=1013"))
        client.socket.close()
    finally:
        producer.close()


def test_a_client_that_never_answers_a_close(site: Site) -> None:
    ends = Ends()

    def serve(event: Event) -> None:
        if event.type() is Event.IO:
            event.close(4000, "go")
        ends(event)

    with (
        site.producer("dead.ws", serve),
        RawClient(site.dial("ws")).upgrade("/dead.ws?stays") as client,
    ):
        client.send(masked(0x81, b"hi"))
        assert client.read_close() == 4000
        started = time.monotonic()
        assert client.read(1) == b""
        assert time.monotonic() - started < 5
        wait_for(lambda: ends.codes)
        assert ends.codes == {"/dead.ws?stays": 1006}
    (line,) = wait_for(lambda: site.log_lines(r"dead\.ws\?stays"))
    assert "(PRODUCER_CLOSED) code=4000" in line


def test_a_client_that_answers_a_close_and_stays(site: Site) -> None:
    with RawClient(site.dial("ws")).upgrade("/echo.ws?lingers") as client:
        client.send(masked(0x88, b"\x03\xe8"))
        assert client.read_close() == 1000
        assert client.read(1) == b""
        wait_for(lambda: site.log_lines(r"lingers .*\(CLIENT_CLOSED\)"))


def reset(client: RawClient) -> None:
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def do_nothing(client: RawClient) -> None:
    """Leave at once."""


def say_and_hear(client: RawClient) -> None:
    client.send(masked(0x81, b"hi"))
    assert client.read_data_frame() == (0x81, b"hi")


def in_a_header(client: RawClient) -> None:
    client.send(masked(0x82, b"x" * 200)[:3])


def in_a_frame(client: RawClient) -> None:
    client.send(masked(0x82, b"x" * 70_000)[:40_000])


def in_a_message(client: RawClient) -> None:
    client.send(masked(0x01, b"x"))


def with_echoes_unread(client: RawClient) -> None:
    client.socket.settimeout(0.2)
    try:
        while True:
            client.send(masked(0x82, b"x" * 60_000))
    except TimeoutError:
        pass


def after_its_close(client: RawClient) -> None:
    client.send(masked(0x88, b"\x03\xe8"))


def after_both_closes(client: RawClient) -> None:
    client.send(masked(0x88, b"\x03\xe8"))
    assert client.read_close() == 1000


def after_a_violation(client: RawClient) -> None:
    client.send(b"\xff\xff\xff")


def after_a_ping_of_ours(client: RawClient) -> None:
    frame = client.read_frame()
    assert frame is not None
    assert frame[0] == 0x89


MOMENTS = [
    do_nothing,
    say_and_hear,
    in_a_header,
    in_a_frame,
    in_a_message,
    with_echoes_unread,
    after_its_close,
    after_both_closes,
    after_a_violation,
    after_a_ping_of_ours,
]


def tcp_fin(client: RawClient) -> None:
    """End without a close_notify where there is TLS: only the TCP connection is closed."""
    # detach() keeps Python's ssl from a word of its own.
    socket.close(client.socket.detach())


def tcp_reset(client: RawClient) -> None:
    reset(client)
    socket.close(client.socket.detach())


def tcp_half_close(client: RawClient) -> None:
    """Send FIN, and stay: what an orderly client does after the last CLOSE."""
    duplicate = socket.socket(fileno=client.socket.detach())
    duplicate.shutdown(socket.SHUT_WR)
    client.socket = duplicate


@pytest.mark.parametrize("scheme", ["ws", "wss1.2", "wss1.3"])
@pytest.mark.parametrize("how", [tcp_fin, tcp_reset, tcp_half_close], ids=lambda f: f.__name__)
@pytest.mark.parametrize("when", MOMENTS, ids=lambda f: f.__name__)
def test_every_way_to_leave_at_every_moment(
    site: Site,
    scheme: str,
    when: Callable[[RawClient], None],
    how: Callable[[RawClient], None],
) -> None:
    ends = Ends()
    with site.producer("leave.ws", ends):
        path = f"/leave.ws?{scheme}-{when.__name__}-{how.__name__}"
        client = RawClient(site.dial(scheme)).upgrade(path)
        wait_for(lambda: ends.opened)
        when(client)
        how(client)
        wait_for(lambda: ends.codes)  # the producer hears of it, once
        lines = wait_for(lambda: site.log_lines(rf"{path.replace('?', '.')} closed by"))
        assert len(lines) == 1
        client.socket.close()


@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
def test_a_client_that_resets_before_it_has_its_answer(site: Site, scheme: str) -> None:
    for _ in range(20):
        client = RawClient(site.dial(scheme))
        client.send(request("/echo.ws?impatient"))
        tcp_reset(client)
    RawClient(site.dial(scheme)).upgrade().socket.close()


def test_nothing_is_left_of_them_and_nothing_spins(site: Site) -> None:
    """After all of the above: an idle Apache."""
    wait_for(lambda: site.descriptors() < 60, what=site.descriptors)
    used = site.processor_s()
    let_pass(1)
    assert site.processor_s() - used < 0.2
