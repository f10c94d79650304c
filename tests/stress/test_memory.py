"""What an open connection costs Apache: idle, over TLS, and once it has compressed.

The figures stand in docs/explanation/how-it-works.md, and are read from there: what is measured
may be no more than half as much again.
"""

from __future__ import annotations

import re
import ssl
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from apachews import Event

from ..conftest import wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import Site, echo, running_site
from .conftest import scaled

CLIENTS = scaled(1000, 200)
KIB = 1024
DOCUMENTED = Path(__file__).parents[2] / "docs" / "explanation" / "how-it-works.md"
# A session of OpenSSL 3.5 is larger; half of that is for the post-quantum key exchange.
IDLE_WSS = "idle, `wss`" if ssl.OPENSSL_VERSION_INFO < (3, 5) else "idle, `wss`, OpenSSL 3.5"
# Name, scheme, window bits, and the row of the documentation.
CASES = [
    ("idle", "ws", 0, "idle, `ws`"),
    ("idle-tls", "wss1.3", 0, IDLE_WSS),
    ("deflate-9", "ws", 9, "has compressed and inflated, window of 9 bits both ways"),
    ("deflate-12", "ws", 12, "the same, 12 bits (the default)"),
    ("deflate-15", "ws", 15, "the same, 15 bits"),
    ("no-context", "ws", 15, "idle, `ws`"),
]
# What a page here and there makes of a small figure.
SLACK_KIB = 4
SETTINGS = """
SetEnv APACHEWS_PING_INTERVAL off
SetEnv APACHEWS_DEFLATE_MIN_SIZE 0
<Location /w9.ws>
    SetEnv APACHEWS_DEFLATE_WINDOW_BITS 9
</Location>
<Location /w15.ws>
    SetEnv APACHEWS_DEFLATE_WINDOW_BITS 15
</Location>
<Location /none.ws>
    SetEnv APACHEWS_DEFLATE_WINDOW_BITS 15
    SetEnv APACHEWS_DEFLATE_CONTEXT_TAKEOVER off
</Location>
"""


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site("event", 25, 25, extra=SETTINGS) as site:
        yield site


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("name", "scheme", "bits", "row"), CASES, ids=[c[0] for c in CASES])
def test_memory(site: Site, name: str, scheme: str, bits: int, row: str) -> None:
    match = re.search(rf"^\| {re.escape(row)} \| (\d+) \|", DOCUMENTED.read_text(), re.MULTILINE)
    assert match, "the figure is not in the documentation"
    path = "/none.ws" if name == "no-context" else f"/w{bits or 12}.ws"
    opened = 0

    def serve(event: Event) -> None:
        nonlocal opened
        opened += event.type() is Event.Accept
        echo(event)

    with site.producer(path[1:], serve), ExitStack() as stack:
        for _ in range(20):  # what is loaded once
            RawClient(site.dial(scheme)).upgrade(path).socket.close()
        wait_for(lambda: opened == 20)
        before = site.resident_bytes()
        for _ in range(CLIENTS):
            client = RawClient(site.dial(scheme))
            stack.callback(client.socket.close)
            if bits:
                compress_both_ways(client, path)
            else:
                client.upgrade(path)
        wait_for(lambda: opened == CLIENTS + 20)
        each_kib = (site.resident_bytes() - before) / CLIENTS / KIB
        print(f"{name}: {each_kib:.1f} KiB for each of {CLIENTS} connections")
        assert each_kib <= 1.5 * int(match[1]) + SLACK_KIB


def compress_both_ways(client: RawClient, path: str) -> None:
    """Have Apache inflate a message that fills its window, and compress one."""
    client.send(
        request(path, Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")
    )
    status, headers = client.read_head()
    assert status == 101
    assert "permessage-deflate" in headers["sec-websocket-extensions"]
    stream = zlib.compressobj(1, zlib.DEFLATED, -9)
    data = b"".join(b"%d " % number for number in range(20_000))
    payload = (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    client.send(masked(0xC1, payload))
    # The echo comes in as many frames as it was cut into.
    while True:
        frame = client.read_frame()
        assert frame is not None
        if frame[0] & 0x80:
            return
