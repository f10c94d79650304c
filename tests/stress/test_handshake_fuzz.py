"""Mutated handshakes against live Apache: an answer for each, and no child lost.

Every request is a good one with something done to it, from a seeded generator, so
that a run can be repeated; the seed is printed when it fails.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from ..support.raw_client import RawClient, request
from ..support.site import Site, running_site
from .conftest import scaled

REQUESTS = scaled(100_000, 3_000)
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# Those of the design's table that a request can cause, and httpd's own.
OURS = {101, 400, 403, 404, 426}
HTTPDS = {400, 403, 404, 405, 408, 411, 413, 414, 417, 431, 501, 505}
NAMES = [
    "Host",
    "Upgrade",
    "Connection",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
    "Origin",
    "Content-Length",
    "Transfer-Encoding",
    "Expect",
    "Cookie",
    "X-Forwarded-Host",
    "Forwarded",
    "TE",
    "Range",
    "Upgrade-Insecure-Requests",
]
VALUES = [
    "",
    "websocket",
    "WebSocket, h2c",
    "Upgrade",
    "keep-alive, upgrade",
    "close",
    "13",
    "12",
    "13, 13",
    "-1",
    "9" * 30,
    "0",
    "chunked",
    "permessage-deflate; client_max_window_bits",
    'permessage-deflate; server_max_window_bits=99, x; y="z',
    "chat, , chat",
    "http://localhost",
    "null",
    "http://[::1",
    "dGhlIHNhbXBsZSBub25jZQ==",
    "dGhlIHNhbXBsZSBub25jZQ",
    "A" * 24,
    "é" * 20,
    "a\x01b",
    "x" * 8100,
    "localhost:99999",
    "%00%0d%0a",
]
PATHS = ["/echo.ws", "/ws/echo", "/absent.ws", "/echo.ws/x", "/ws/..%2fecho", "/echo.ws?%00", "*"]


def drop(head: list[str], rng: random.Random) -> None:
    if len(head) > 1:
        del head[rng.randrange(1, len(head))]


def double(head: list[str], rng: random.Random) -> None:
    head.append(head[rng.randrange(1, len(head))] if len(head) > 1 else "X: y")


def set_value(head: list[str], rng: random.Random) -> None:
    head.append(f"{rng.choice(NAMES)}: {rng.choice(VALUES)}")


def replace_value(head: list[str], rng: random.Random) -> None:
    if len(head) > 1:
        index = rng.randrange(1, len(head))
        head[index] = f"{head[index].partition(':')[0]}: {rng.choice(VALUES)}"


def other_line(head: list[str], rng: random.Random) -> None:
    method = rng.choice(["GET", "POST", "HEAD", "CONNECT", "get", "PRI", "G\x01T", "OPTIONS"])
    version = rng.choice(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1 x", ""])
    head[0] = f"{method} {rng.choice(PATHS)} {version}"


def flip(head: list[str], rng: random.Random) -> None:
    index = rng.randrange(len(head))
    line = head[index]
    at = rng.randrange(len(line) + 1)
    head[index] = line[:at] + chr(rng.randrange(1, 256)) + line[at + 1 :]


def cut(head: list[str], rng: random.Random) -> None:
    index = rng.randrange(len(head))
    head[index] = head[index][: rng.randrange(len(head[index]) + 1)]


def many(head: list[str], rng: random.Random) -> None:
    head.extend(f"X-{number}: {number}" for number in range(rng.choice([10, 90, 120])))


MUTATIONS: list[Callable[[list[str], random.Random], None]] = [
    *(drop, double, set_value, set_value, replace_value, replace_value),
    *(other_line, flip, flip, cut, many),
]


def mutated(rng: random.Random) -> bytes:
    head = request(rng.choice(PATHS[:2])).decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3, 5])):
        rng.choice(MUTATIONS)(head, rng)
    text = "\r\n".join(line.replace("\r", "").replace("\n", "") for line in head)
    return (text + "\r\n\r\n").encode("latin-1")


def is_handshake(data: bytes) -> bool:
    """Tell whether a request is one by RFC 6455 4.2.1, read loosely and independently."""
    text = data.decode("latin-1")
    values: dict[str, list[str]] = {}
    for name, value in re.findall(r"^([^:\r\n]+):[ \t]*([^\r\n]*)", text, re.MULTILINE):
        values.setdefault(name.lower(), []).append(value.strip())
    joined = {name: ", ".join(items) for name, items in values.items()}
    return bool(
        text.startswith("GET ")
        and re.search(r"\bwebsocket\b", joined.get("upgrade", ""), re.IGNORECASE)
        and re.search(r"\bupgrade\b", joined.get("connection", ""), re.IGNORECASE)
        and joined.get("sec-websocket-version") == "13"
        and re.fullmatch(r"[A-Za-z0-9+/]{22}==", joined.get("sec-websocket-key", ""))
        and joined.get("content-length", "0") in ("0", "")
        and "transfer-encoding" not in joined
    )


def key_of(data: bytes) -> bytes:
    match = re.search(rb"^sec-websocket-key:[ \t]*(\S+)", data, re.MULTILINE | re.IGNORECASE)
    assert match
    return match[1]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site() as site:
        yield site


@pytest.mark.timeout(900)
def test_mutated_handshakes(site: Site) -> None:
    seed = int(os.environ.get("APACHEWS_SEED", "6455"))
    rng = random.Random(seed)
    statuses: Counter[int] = Counter()
    children = set(site.apache.children())
    client: RawClient | None = None
    for number in range(REQUESTS):
        data = mutated(rng)
        if client is None:
            client = RawClient(site.dial("wss1.3" if number % 50 == 0 else "ws"))
            client.socket.settimeout(2)
        try:
            client.send(data)
            status, headers = client.read_head()
        except (ConnectionError, AssertionError, TimeoutError):
            # httpd closed it after the answer before; or answers HTTP/0.9 with none;
            # or waits for a body that was announced.
            client.socket.close()
            client = RawClient(site.dial("ws"))
            client.send(data)
            client.socket.shutdown(socket.SHUT_WR)
            status, headers = read_any(client)
        statuses[status] += 1
        assert status in OURS | HTTPDS | {200, 0}, (seed, number, status, data)
        assert (status == 101) <= is_handshake(data), (seed, number, data)
        if status == 101:
            token = base64.b64encode(hashlib.sha1(key_of(data) + GUID).digest())
            assert headers["sec-websocket-accept"] == token.decode()
        if status == 101 or "content-length" not in headers or "close" in str(headers):
            client.socket.close()
            client = None
        elif not data.startswith(b"HEAD"):
            client.read(int(headers["content-length"]))
    if client:
        client.socket.close()
    print(dict(sorted(statuses.items())))
    assert statuses[101] > REQUESTS / 20
    assert set(site.apache.children()) >= children, "a child was lost"
    assert not site.log_lines("apachews: 5")
    RawClient(site.dial("ws")).upgrade().socket.close()


def read_any(client: RawClient) -> tuple[int, dict[str, str]]:
    """Return status and headers; 0 where the connection was closed without an answer."""
    try:
        return client.read_head()
    except (ConnectionError, AssertionError, ValueError, IndexError):
        return 0, {}
