"""Every setting at work, in real Apache: who gets in, what passes, and what ends it."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from apachews import Event, wire

from ..conftest import wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import Site, echo, running_site

SETTINGS = """
<Location /protocols.ws>
    SetEnv APACHEWS_SUBPROTOCOLS "chat.v2 chat.v1"
</Location>
<Location /env.ws>
    SetEnv SITE_COLOUR green
    SetEnv APACHEWS_PASS_ENV "SITE_COLOUR DOCUMENT_ROOT SSL_PROTOCOL NOT_THERE"
    SSLOptions +StdEnvVars
</Location>
<Location /browsers.ws>
    SetEnv APACHEWS_REQUIRE_ORIGIN on
</Location>
<Location /proxied.ws>
    SetEnv APACHEWS_FORWARDED X-Forwarded
</Location>
<Location /decides.ws>
    SetEnv APACHEWS_ACCEPT producer
    SetEnv APACHEWS_CONNECT_TIMEOUT 300ms
</Location>
<Location /rate.ws>
    SetEnv APACHEWS_MESSAGE_RATE 5/m
</Location>
<Location /ping.ws>
    SetEnv APACHEWS_PING_INTERVAL 200ms
    SetEnv APACHEWS_PING_TIMEOUT 1s
    SetEnv APACHEWS_CLOSE_TIMEOUT 200ms
</Location>
<Location /idle.ws>
    SetEnv APACHEWS_IDLE_TIMEOUT 300ms
</Location>
<Location /plain.ws>
    SetEnv APACHEWS_DEFLATE off
</Location>
<Location /window.ws>
    SetEnv APACHEWS_DEFLATE_WINDOW_BITS 9
    SetEnv APACHEWS_DEFLATE_CONTEXT_TAKEOVER off
    SetEnv APACHEWS_DEFLATE_MIN_SIZE 10
    SetEnv APACHEWS_DEFLATE_LEVEL 9
</Location>
<Location /endpoint.ws>
    SetEnv APACHEWS_MAX_CONNECTIONS_PER_ENDPOINT 6
</Location>
<Location /address.ws>
    SetEnv APACHEWS_MAX_CONNECTIONS_PER_ADDRESS 6
</Location>
"""


@pytest.fixture(scope="module", params=["event", "prefork"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    # Prefork has a process for each request: what is counted is counted over all.
    with running_site(request.param, extra=SETTINGS) as site:
        yield site


def answer(site: Site, data: bytes) -> tuple[int, dict[str, str], str]:
    with RawClient(site.dial("ws")) as client:
        client.send(data)
        return client.read_response()


def test_a_subprotocol_of_the_sites_choice(site: Site) -> None:
    seen: list[wire.Open] = []

    def serve(event: Event) -> None:
        if event.type() is Event.Accept:
            seen.append(event.client().request)

    with site.producer("protocols.ws", serve):
        for offered, chosen in [
            ("chat.v1, chat.v2", "chat.v2"),
            ("x, chat.v1", "chat.v1"),
            ("x", None),
        ]:
            with RawClient(site.dial("ws")) as client:
                client.send(request("/protocols.ws", Sec_WebSocket_Protocol=offered))
                status, headers = client.read_head()
                assert (status, headers.get("sec-websocket-protocol")) == (101, chosen)
                (open_,) = wait_for(lambda: seen)
                assert open_.subprotocol == chosen
                seen.clear()


@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
def test_variables_the_producer_is_told(site: Site, scheme: str) -> None:
    seen: list[dict[str, str]] = []

    def serve(event: Event) -> None:
        if event.type() is Event.Accept:
            seen.append(event.client().request.env)

    with site.producer("env.ws", serve), RawClient(site.dial(scheme)).upgrade("/env.ws"):
        (env,) = wait_for(lambda: seen)
    expected = {"SITE_COLOUR": "green", "DOCUMENT_ROOT": str(site.docroot)}
    if scheme != "ws":
        expected["SSL_PROTOCOL"] = "TLSv1.3"
    assert env == expected


def test_only_browsers(site: Site) -> None:
    with site.producer("browsers.ws", echo):
        assert answer(site, request("/browsers.ws"))[0] == 403
        RawClient(site.dial("ws")).upgrade("/browsers.ws", Origin="http://localhost").socket.close()


def test_the_origin_behind_a_proxy(site: Site) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "site.example"}
    with site.producer("proxied.ws", echo):
        data = request("/proxied.ws", Origin="https://site.example", **headers)
        assert answer(site, data)[0] == 101
        assert answer(site, request("/proxied.ws", Origin="http://localhost", **headers))[0] == 403
        assert answer(site, request("/echo.ws", Origin="https://site.example", **headers))[0] == 403


@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
def test_the_producer_decides(site: Site, scheme: str) -> None:
    def serve(event: Event) -> None:
        if event.type() is Event.Accept:
            what = event.client().request.uri.partition("?")[2]
            if what == "yes":
                event.accept("b", [("Set-Cookie", "seen=1"), ("X-Latin", "é")])
                event.write("welcome")
            elif what == "no":
                event.reject(401, "Who are you?", [("WWW-Authenticate", "Basic realm=x")])
            elif what == "elsewhere":
                event.reject(302, headers=[("Location", "/other.ws"), ("Content-Type", "text/x")])
        echo(event)

    with site.producer("decides.ws", serve):
        with RawClient(site.dial(scheme)) as client:
            # On one connection: a refusal leaves it to Apache for the next.
            client.send(request("/decides.ws?no"))
            status, headers, body = client.read_response()
            assert (status, body) == (401, "Who are you?")
            assert headers["www-authenticate"] == "Basic realm=x"
            assert headers["content-type"] == "text/plain; charset=utf-8"
            client.send(request("/decides.ws?elsewhere"))
            status, headers, body = client.read_response()
            assert (status, headers["location"], body) == (302, "/other.ws", "")
            assert headers["content-type"] == "text/x"
            client.send(request("/decides.ws?yes", Sec_WebSocket_Protocol="a, b"))
            status, headers = client.read_head()
            assert status == 101
            assert headers["sec-websocket-protocol"] == "b"
            assert headers["set-cookie"] == "seen=1"
            assert headers["x-latin"] == "é"
            assert client.read_frame() == (0x81, b"welcome")
            client.send(masked(0x81, b"hi"))
            assert client.read_frame() == (0x81, b"hi")
        with RawClient(site.dial(scheme)) as client:
            client.send(request("/decides.ws?undecided"))
            status, headers, _ = client.read_response()
            assert (status, headers["retry-after"]) == (503, "5")
    assert site.log_lines(r"401 producer for /decides\.ws\?no: the producer rejected")
    assert site.log_lines(r"503 .* for /decides\.ws\?undecided: .* within 0\.3 s; .* needs accept")


BAD_ANSWERS: list[tuple[bytes, int, str]] = [
    (b"", 503, "closed the connection instead of answering"),
    (wire.encode_frame(wire.TEXT, b"hi"), 500, "expected an ANSWER"),
    (wire.encode_frame(wire.ANSWER, b"{}"), 500, "missing member"),
    (b"\x84\x7f" + (2**40).to_bytes(8, "big"), 500, "the limit is 65536"),
    (b"HTTP/1.1 200 OK\r\n\r\n", 500, "expected an ANSWER"),
    (b"\x84\xff\xff", 500, "masked frame"),
    (
        wire.encode_frame(wire.ANSWER, b'{"accept":true,"headers":[],"subprotocol":"unasked"}'),
        500,
        "'unasked'; the client offered",
    ),
]


@pytest.mark.parametrize(("data", "status", "text"), BAD_ANSWERS)
def test_invalid_answers(site: Site, data: bytes, status: int, text: str) -> None:
    from .test_producers import HandMade  # which has tests of its own to collect

    producer = HandMade(site, "decides.ws")
    try:
        with RawClient(site.dial("ws")) as client:
            client.send(request("/decides.ws?bad"))
            with producer.accept() as sock:
                sock.sendall(data)
                if not data:
                    sock.close()
                assert client.read_response()[0] == status
    finally:
        producer.close()
    assert any(text in line for line in site.log_lines(r"/decides\.ws\?bad"))


def test_what_a_producer_says_with_its_answer_is_not_lost(site: Site) -> None:
    from .test_producers import HandMade

    producer = HandMade(site, "decides.ws")
    accept = wire.encode_frame(wire.ANSWER, b'{"accept":true,"headers":[]}')
    try:
        with RawClient(site.dial("ws")) as client:
            client.send(request("/decides.ws"))
            with producer.accept() as sock:
                sock.sendall(accept + wire.encode_frame(wire.TEXT, b"in one") + b"\x81\x05ha")
                assert client.read_head()[0] == 101
                assert client.read_frame() == (0x81, b"in one")
                sock.sendall(b"lf!")
                assert client.read_frame() == (0x81, b"half!")
    finally:
        producer.close()


def test_a_rate(site: Site) -> None:
    with (
        site.producer("rate.ws", echo),
        RawClient(site.dial("ws")).upgrade("/rate.ws") as client,
    ):
        for _ in range(5):
            client.send(masked(0x81, b"a"))
            assert client.read_frame() == (0x81, b"a")
        client.send(masked(0x81, b"a"))
        assert client.read_close() == 1008
    wait_for(lambda: site.log_lines(r"wsgi:warn.*rate\.ws.*\(TOO_MANY_MESSAGES\) code=1008"))


@pytest.mark.parametrize("scheme", ["ws", "wss1.2", "wss1.3"])
def test_keep_alive(site: Site, scheme: str) -> None:
    with site.producer("ping.ws", echo):
        with RawClient(site.dial(scheme)).upgrade("/ping.ws") as client:
            for _ in range(4):
                frame = client.read_frame()
                assert frame is not None
                assert frame[0] == 0x89
                client.send(masked(0x8A, frame[1]))
            client.send(masked(0x81, b"hi"))
            assert client.read_frame() == (0x81, b"hi")
        with RawClient(site.dial(scheme)).upgrade("/ping.ws") as client:
            assert client.read_close() == 1011
            assert client.read(1) == b""  # it does not wait for ever for the answer
    wait_for(lambda: site.log_lines(r"wsgi:info.*ping\.ws.*\(NO_PONG\) code=1011"))


def test_idle(site: Site) -> None:
    with site.producer("idle.ws", echo), RawClient(site.dial("ws")).upgrade("/idle.ws") as client:
        assert client.read_close() == 1001
    wait_for(lambda: site.log_lines(r"wsgi:info.*idle\.ws.*\(IDLE\) code=1001"))


OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}


def test_compression_switched_off(site: Site) -> None:
    with site.producer("plain.ws", echo), RawClient(site.dial("ws")) as client:
        client.send(request("/plain.ws", **OFFER))
        status, headers = client.read_head()
        assert status == 101
        assert "sec-websocket-extensions" not in headers
        client.send(masked(0xC1, b"\0"))
        assert client.read_close() == 1002


@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
def test_compression_and_its_options(site: Site, scheme: str) -> None:
    text = b"over and over and over and over again"
    with site.producer("window.ws", echo), RawClient(site.dial(scheme)) as client:
        client.send(request("/window.ws", **OFFER))
        status, headers = client.read_head()
        assert status == 101
        assert set(re.split("; *", headers["sec-websocket-extensions"])) == {
            "permessage-deflate",
            "client_max_window_bits=9",
            "server_no_context_takeover",
            "client_no_context_takeover",
        }
        replies = []
        for _ in range(2):
            stream = zlib.compressobj(9, zlib.DEFLATED, -9)
            payload = stream.compress(text) + stream.flush(zlib.Z_SYNC_FLUSH)
            client.send(masked(0xC1, payload[:-4]))
            frame = client.read_frame()
            assert frame is not None
            assert frame[0] == 0xC1
            replies.append(frame[1])
            assert zlib.decompressobj(-9).decompress(frame[1] + b"\0\0\xff\xff") == text
        assert replies[0] == replies[1]  # nothing is referred to
        client.send(masked(0x81, b"short"))
        assert client.read_frame() == (0x81, b"short")


@pytest.mark.parametrize("level", [0, 9])
def test_a_message_may_end_with_a_final_block(site: Site, level: int) -> None:
    """As zlib.deflateRawSync() of Node compresses: no padding follows the block."""
    messages = [os.urandom(60), b"hello, hello, hello", os.urandom(60)]
    with RawClient(site.dial("ws")) as client:
        client.send(request("/echo.ws", Sec_WebSocket_Extensions="permessage-deflate"))
        assert client.read_head()[0] == 101
        for message in messages:
            stream = zlib.compressobj(level, zlib.DEFLATED, -15)
            client.send(masked(0xC2, stream.compress(message) + stream.flush()))
        inflater = zlib.decompressobj(-15)
        for message in messages:
            frame = client.read_frame()
            assert frame is not None
            if frame[0] == 0xC2:
                assert inflater.decompress(frame[1] + b"\0\0\xff\xff") == message
            else:
                assert frame == (0x82, message)


def test_a_bomb_is_stopped_at_the_limit(site: Site) -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (stream.compress(bytes(100 << 20)) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    with RawClient(site.dial("ws")) as client:
        client.send(request("/echo.ws?bomb", Sec_WebSocket_Extensions="permessage-deflate"))
        assert client.read_head()[0] == 101
        client.send(masked(0xC2, bomb))
        assert client.read_close() == 1009
    wait_for(lambda: site.log_lines(r"/echo\.ws\?bomb .*\(TOO_BIG\) code=1009"))


@pytest.mark.parametrize(
    ("name", "status"), [("endpoint", 503), ("address", 429)], ids=["endpoint", "address"]
)
def test_limits_count_over_all_children(site: Site, name: str, status: int) -> None:
    path = f"/{name}.ws"
    with site.producer(path[1:], echo):
        clients = [RawClient(site.dial("ws")).upgrade(path) for _ in range(6)]
        assert answer(site, request(path))[0] == status
        assert answer(site, request("/echo.ws"))[0] == 101  # another endpoint has room
        clients.pop().socket.close()
        clients.append(admitted(site, path))
        assert answer(site, request(path))[0] == status
        for client in clients:
            client.socket.close()
    setting = f"APACHEWS_MAX_CONNECTIONS_PER_{name.upper()}"
    assert any(setting in line for line in site.log_lines(f"{status} .* for {path}"))


def admitted(site: Site, path: str) -> RawClient:
    """Return a client that gets in once Apache has noticed that another one left."""

    def try_once() -> Any:
        client = RawClient(site.dial("ws"))
        client.send(request(path))
        if client.read_head()[0] == 101:
            return client
        client.socket.close()
        return None

    made = wait_for(try_once)
    assert isinstance(made, RawClient)
    return made


def test_a_killed_child_takes_none_of_the_places_along() -> None:
    limit = "SetEnv APACHEWS_MAX_CONNECTIONS 4"
    with running_site("prefork", extra=limit) as site:
        site.expected_harm = "exit signal Killed"
        clients = [RawClient(site.dial("ws")).upgrade() for _ in range(4)]
        assert answer(site, request("/echo.ws"))[0] == 503
        site.kill_children()
        admitted(site, "/echo.ws").socket.close()
        for client in clients:
            client.socket.close()
