"""Server(path, transport="loopback") behind a real Apache."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apachews import publish
from apachews._listening import loopback
from apachews._listening.loopback import Address
from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient
from ..support.site import IS_ROOT, Site, echo, running_site

PROGRAM = """
import os, sys
from apachews import Event, Server
path, number = sys.argv[1:]
with Server(path, transport="loopback", workers=int(number)) as server:
    for event in server:
        if event.type() is Event.IO:
            event.write(f"{os.getpid()} {event.client().request.id} {event.read()}")
"""
# Whose group may read the file.
GROUP = pwd.getpwnam(private_apache.APACHE_USER).pw_gid if IS_ROOT else None
LOOPBACK = {"transport": "loopback", "mode": 0o660, "group": GROUP}


@pytest.fixture(scope="module", params=["event", "worker", "prefork"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with running_site(mpm=request.param) as site:
        yield site


@contextmanager
def program(
    path: Path, workers: int = 0, runner: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a producer that says which process it is."""
    source = path.parent / "program.py"
    source.write_text(PROGRAM)
    module = ["-m", "apachews.runner"] if runner else []
    before = path.read_bytes() if path.exists() else b""
    process = subprocess.Popen(
        [sys.executable, *module, str(source), str(path), str(workers)],
        stderr=subprocess.PIPE,
        **private_apache.as_apache_user(),
    )
    try:
        wait_for(lambda: _is_replaced(path, before), what=process.poll)
        yield process
    finally:
        process.terminate()
        _, stderr = process.communicate()
        print(stderr.decode(), file=sys.stderr)
        path.unlink(missing_ok=True)
    assert b"Traceback" not in stderr, stderr.decode()


def _is_replaced(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() != content


def ask(client: RawClient, text: str) -> list[str]:
    """Send a text; return the producer's process, the client's id, and the text."""
    client.send(masked(0x81, text.encode()))
    first, answer = client.read_data_frame() or (0, b"")
    assert first == 0x81
    return answer.decode().split(" ")


@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
def test_echo(site: Site, scheme: str) -> None:
    with (
        site.producer("loop.ws", echo, **LOOPBACK),
        RawClient(site.dial(scheme)).upgrade("/loop.ws") as client,
    ):
        assert (site.docroot / "loop.ws").is_file()
        for size in (1, 125, 126, 65536, 1_000_000):
            client.send(masked(0x82, bytes(size)))
            got = b""
            first = 0
            while first < 0x80:
                first, piece = client.read_data_frame() or (0xFF, b"")
                got += piece
            assert got == bytes(size)


def test_the_file_is_not_served(site: Site) -> None:
    """Who asks for it by HTTP gets no token."""
    with (
        site.producer("loop.ws", echo, **LOOPBACK),
        RawClient(site.dial("ws")) as client,
    ):
        client.send(b"GET /loop.ws HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, _, body = client.read_response()
        assert status == 426
        assert "apachews-loopback" not in body


def test_publish(site: Site) -> None:
    with (
        site.producer("loop.ws", echo, **LOOPBACK),
        RawClient(site.dial("ws")).upgrade("/loop.ws") as client,
    ):
        client.send(masked(0x81, b"here"))
        assert client.read_data_frame() == (0x81, b"here")
        assert publish(site.docroot / "loop.ws", "to all").reached == 1
        assert client.read_data_frame() == (0x81, b"to all")


@pytest.mark.parametrize("number", [1, 150])
def test_clients_are_held_for_the_next_producer(site: Site, number: int) -> None:
    path = site.docroot / "loop.ws"
    clients: list[RawClient] = []
    try:
        with program(path) as first:
            clients += [RawClient(site.dial("ws")).upgrade("/loop.ws") for _ in range(number)]
            before = [ask(client, "one") for client in clients]
            first.kill()
        for client in clients:
            client.send(masked(0x81, b"meanwhile"))
        with program(path) as second:
            for client, (_, id_, _) in zip(clients, before, strict=True):
                _, answer = client.read_data_frame() or (0, b"")
                assert answer.decode() == f"{second.pid} {id_} meanwhile"
                assert ask(client, "two") == [str(second.pid), id_, "two"]
            for client in clients:
                client.socket.close()
    finally:
        for client in clients:
            client.socket.close()


def test_a_producer_that_moves(site: Site) -> None:
    path = site.docroot / "loop.ws"
    with (
        program(path, runner=True) as first,
        RawClient(site.dial("ws")).upgrade("/loop.ws") as client,
    ):
        pid, id_, _ = ask(client, "one")
        os.kill(first.pid, signal.SIGHUP)  # a deploy
        assert wait_for(lambda: ask(client, "again")[0] != pid)
        assert ask(client, "two")[1:] == [id_, "two"]


def test_workers(site: Site) -> None:
    path = site.docroot / "loop.ws"
    with program(path, workers=2):
        clients = [RawClient(site.dial("ws")).upgrade("/loop.ws") for _ in range(20)]
        assert len({ask(client, "hi")[0] for client in clients}) == 2
        for client in clients:
            client.socket.close()


def test_a_graceful_restart_drops_nobody(site: Site) -> None:
    with (
        site.producer("loop.ws", echo, **LOOPBACK),
        RawClient(site.dial("ws")).upgrade("/loop.ws") as client,
    ):
        client.send(masked(0x81, b"before"))
        assert client.read_data_frame() == (0x81, b"before")
        site.renew()
        client.send(masked(0x81, b"after"))
        assert client.read_data_frame() == (0x81, b"after")


def test_clients_that_are_held_through_a_restart(site: Site) -> None:
    """The search for a loopback producer is under way while the child leaves.

    That is: a stranger has got the port of the one that died, takes whoever comes, and
    says nothing.
    """
    path = site.docroot / "loop.ws"
    with (
        socket.create_server((loopback.HOST, 0)) as stranger,
        program(path) as first,
        RawClient(site.dial("ws")).upgrade("/loop.ws") as client,
    ):
        _, id_, _ = ask(client, "one")
        # Written over, for the right to read it to stay; and before the search begins.
        address = Address(stranger.getsockname()[1], bytes(32))
        path.write_bytes(address.encode())
        first.kill()
        stranger.settimeout(20)
        with stranger.accept()[0] as caller:
            assert caller.recv(1000).startswith(b"apachews-loopback 1 ")
            site.renew()
        with program(path) as second:
            assert ask(client, "two") == [str(second.pid), id_, "two"]


def test_a_file_that_everybody_may_read(site: Site) -> None:
    with site.producer("loop.ws", echo, **LOOPBACK):
        (site.docroot / "loop.ws").chmod(0o664)
        client = RawClient(site.dial("ws"))
        with pytest.raises(AssertionError, match="403"):
            client.upgrade("/loop.ws")
        assert site.log_lines("loop.ws.*chmod o= the file")
