"""The seed's program, word for word but for the path, behind every MPM."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from apachews_tools.httpd.private_apache import as_apache_user

from ..conftest import wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient
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
