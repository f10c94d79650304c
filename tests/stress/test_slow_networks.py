"""Clients that read slowly: a phone on a bad network, with megabytes of buffers on the way.

By default 2 MiB at 1 MiB/s, with pings and timeouts to match; with
APACHEWS_STRESS=full 10 MiB at 64 KiB/s.  A client with delay and loss is not among them
where the kernel has no netem.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator

import pytest

from apachews import Event, wire

from ..conftest import let_pass, wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient
from ..support.site import Site, running_site
from .conftest import FULL, scaled

MESSAGE_BYTES = scaled(10 << 20, 2 << 20)
PACE_BYTES_S = scaled(64 << 10, 1 << 20)
BUFFERS = {"16K": 16 << 10, "256K": 256 << 10, "4M": 4 << 20}
# The settings of each site: pings by default or often; what a client has to go.
PINGS: dict[str, float] = {"seldom": 20.0, "often": 2.0} if FULL else {"often": 0.3}
CLOSE_TIMEOUT_S = scaled(5000, 200) / 1000
SCHEMES = ["ws", "wss1.2", "wss1.3"] if FULL else ["ws", "wss1.3"]


@pytest.fixture(scope="module", params=[*PINGS.values()], ids=[*PINGS])
def ping_s(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture(scope="module")
def site(ping_s: float) -> Iterator[Site]:
    settings = f"""
        SetEnv APACHEWS_PING_INTERVAL {ping_s}s
        SetEnv APACHEWS_PING_TIMEOUT {ping_s}s
        SetEnv APACHEWS_CLOSE_TIMEOUT {CLOSE_TIMEOUT_S}s
        SetEnv APACHEWS_MAX_MESSAGE 100M
    """
    with running_site(extra=settings) as site:
        yield site


class SlowReader(RawClient):
    """A client that reads so many bytes in a second, and no more."""

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            started_at = time.monotonic()
            data = self.socket.recv(16384)
            if not data:
                break
            self._buffer += data
            let_pass(max(0.0, len(data) / PACE_BYTES_S - (time.monotonic() - started_at)))
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


def read_message(client: RawClient) -> tuple[int, bytes]:
    """Return a message, and answer the PINGs that stand before it."""
    while frame := client.read_frame():
        if frame[0] != 0x89:
            return frame
        client.send(masked(0x8A, frame[1]))
    pytest.fail("the connection ended")


def dial(site: Site, scheme: str, buffer_bytes: int) -> SlowReader:
    """Connect with a receive buffer of a size."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    sock.settimeout(60)
    if scheme == "ws":
        sock.connect(("127.0.0.1", site.apache.port))
        return SlowReader(sock)
    sock.connect(("127.0.0.1", site.apache.tls_port))
    version = ssl.TLSVersion.TLSv1_2 if scheme == "wss1.2" else ssl.TLSVersion.TLSv1_3
    return SlowReader(site.tls_context(version).wrap_socket(sock, server_hostname="localhost"))


def sending(size: int, code: int = 0) -> Callable[[Event], None]:
    """Return a producer that answers a message with a long one, and a CLOSE behind it."""

    def serve(event: Event) -> None:
        if event.type() is Event.IO:
            event.write(b"x" * size)
            if code:
                event.close(code, "that was all")

    return serve


@pytest.mark.timeout(900)
@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_slow_download_arrives_whole(site: Site, scheme: str, buffer: str) -> None:
    with (
        site.producer("slow.ws", sending(MESSAGE_BYTES), max_queue_bytes=64 << 20),
        dial(site, scheme, BUFFERS[buffer]) as client,
    ):
        client.upgrade("/slow.ws")
        client.send(masked(0x81, b"go"))
        opcode, message = read_message(client)
        assert (opcode, len(message)) == (0x82, MESSAGE_BYTES)
        client.send(masked(0x88, wire.encode_close(1000, "")))
        assert client.read_close() == 1000
    assert not site.log_lines(r"slow\.ws.*(NO_PONG|TOO_SLOW)")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_close_does_not_cut_off_what_came_before_it(site: Site, scheme: str, buffer: str) -> None:
    with (
        site.producer("bye.ws", sending(MESSAGE_BYTES, 4001), max_queue_bytes=64 << 20),
        dial(site, scheme, BUFFERS[buffer]) as client,
    ):
        client.upgrade("/bye.ws")
        client.send(masked(0x81, b"go"))
        opcode, message = read_message(client)
        assert (opcode, len(message)) == (0x82, MESSAGE_BYTES)
        assert client.read_close() == 4001


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_slow_upload_arrives_whole(site: Site, scheme: str) -> None:
    """The client reads nothing until it has sent all, as a simple program may."""
    sizes = []

    def serve(event: Event) -> None:
        if event.type() is Event.IO:
            sizes.append(len(event.read()))

    with site.producer("up.ws", serve), dial(site, scheme, BUFFERS["256K"]) as client:
        client.upgrade("/up.ws")
        frame = masked(0x82, bytes(MESSAGE_BYTES))
        for start in range(0, len(frame), 16384):
            client.send(frame[start : start + 16384])
            let_pass(16384 / PACE_BYTES_S)
        wait_for(lambda: sizes)
        assert sizes == [MESSAGE_BYTES]
        client.send(masked(0x88, wire.encode_close(1000, "")))
        assert client.read_close() == 1000


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_client_that_has_stopped_is_closed(site: Site, scheme: str, ping_s: float) -> None:
    """Its kernel has room for all that was sent, and acknowledges it."""
    with (
        site.producer("stopped.ws", sending(10_000)),
        dial(site, scheme, BUFFERS["4M"]) as client,
    ):
        path = f"/stopped.ws?{scheme}-{ping_s}"
        client.upgrade(path)
        client.send(masked(0x81, b"go"))
        client.read(2000)  # it has begun to read
        started_at = time.monotonic()
        pattern = rf"stopped\.ws\?{scheme}-{ping_s} .*\(NO_PONG\)"
        wait_for(lambda: site.log_lines(pattern), 20 * ping_s)
        # The PING, its PONG, both again for a window that had grown before, what is unread at
        # the pace of a slow client, and the CLOSE.
        assert time.monotonic() - started_at < 4 * ping_s + 2 * CLOSE_TIMEOUT_S + 2
