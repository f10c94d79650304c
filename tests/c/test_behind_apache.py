"""The examples in C, with Apache: the default build, and with sanitizers."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from apachews_tools.httpd import private_apache

from ..conftest import DEADLINE_S, wait_for
from ..support.crowd import crowd
from ..support.frames import masked
from ..support.raw_client import RawClient
from ..support.site import Site, for_two_threads, running_site

SIZE = 1024 * 1024  # APACHEWS_MAX_MESSAGE
MANY = 2000
# Both ends of each connection, and a descriptor of the client in this process.
DESCRIPTORS = 4 * MANY
ASKING = """
    <Location /asking.ws>
        SetEnv APACHEWS_ACCEPT producer
    </Location>
"""


@pytest.fixture(scope="module")
def site(can_build: None) -> Iterator[Site]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS)), hard))
    try:
        with running_site("event", extra=ASKING) as site:
            yield site
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def start(program: Path, path: Path) -> subprocess.Popen[str]:
    """Start a program, as Apache's user if that differs; return when its socket file exists."""
    before = identity(path)
    process = subprocess.Popen(
        [program, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **private_apache.as_apache_user(),
    )
    wait_for(lambda: identity(path) not in (None, before), what=process.poll)
    return process


def identity(path: Path) -> tuple[int, int] | None:
    """Return the identity of a socket file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def ended(process: subprocess.Popen[str], *statuses: int) -> None:
    """Wait for a clean exit, without a report of a sanitizer."""
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode in statuses, output) == (True, "")


def kill(process: subprocess.Popen[str]) -> None:
    """Terminate it in any state."""
    process.kill()
    process.communicate()


@contextmanager
def running(program: Path, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program; at the end it gets SIGTERM, and must exit cleanly."""
    process = start(program, path)
    try:
        yield process
        process.terminate()
        ended(process, 0, -signal.SIGTERM)
    finally:
        kill(process)
        path.unlink(missing_ok=True)


@pytest.fixture(params=["echo", "original_echo"])
def echo(request: pytest.FixtureRequest, programs: Path) -> Path:
    return programs / str(request.param)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_echo(site: Site, echo: Path, scheme: str) -> None:
    context = for_two_threads(site.tls_context()) if scheme == "wss" else None
    with running(echo, site.docroot / "c.ws"):
        url = site.wss("/c.ws") if scheme == "wss" else site.ws("/c.ws")
        with connect(url, ssl=context, max_size=None) as client:
            for message in ("grüße 🙂", b"\x00\xff", "x" * SIZE, b"\x07" * SIZE, "é" * 100_000):
                client.send(message)
                assert client.recv(DEADLINE_S) == message
            client.send("é" * 1000 for _ in range(500))
            assert client.recv(DEADLINE_S) == "é" * 500_000
            assert client.ping().wait(DEADLINE_S)
        with RawClient(site.dial("ws")).upgrade("/c.ws") as raw:
            raw.send(masked(0x88, b"\x0f\xa0bye"))
            assert raw.read_close() == 4000


def test_two_thousand_clients(site: Site, echo: Path) -> None:
    """More clients than select(2) supports."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < DESCRIPTORS:
        pytest.skip(f"ulimit -n allows less than {DESCRIPTORS} descriptors")
    with (
        running(echo, site.docroot / "many.ws") as process,
        crowd(site, MANY, "/many.ws", round_s=2.0) as clients,
    ):
        clients.wait_for_everybody()
        assert len(os.listdir(f"/proc/{process.pid}/fd")) > MANY
        clients.fall_silent()
        assert (clients.report.faults, clients.report.closes) == ([], [])
        assert clients.open_count == MANY


def test_a_program_that_is_killed_again_and_again(site: Site, echo: Path) -> None:
    """No client is dropped; no message is lost, repeated or out of order."""
    path = site.docroot / "mortal.ws"
    with contextlib.ExitStack() as stack:
        process = start(echo, path)
        stack.callback(lambda: kill(process))
        clients = stack.enter_context(crowd(site, 50, "/mortal.ws", may_lose=True))
        for _ in range(3):
            clients.wait_for_echoes(300)
            process.kill()
            ended(process, -signal.SIGKILL)
            process = start(echo, path)
        clients.wait_for_echoes(300)
        clients.wait_for_everybody()
        assert (clients.report.faults, clients.report.closes) == ([], [])
        assert clients.open_count == 50


def test_a_deploy_loses_nothing(site: Site, programs: Path) -> None:
    """The next program replaces the socket file; at SIGHUP the first one moves its clients."""
    path = site.docroot / "deploy.ws"
    with contextlib.ExitStack() as stack:
        process = start(programs / "echo", path)
        stack.callback(lambda: kill(process))
        clients = stack.enter_context(crowd(site, 50, "/deploy.ws"))
        for _ in range(5):
            clients.wait_for_echoes(300)
            before, process = process, start(programs / "echo", path)
            before.send_signal(signal.SIGHUP)
            ended(before, 0)
            clients.join(2)
        clients.wait_for_echoes(300)
        clients.fall_silent()
        assert (clients.report.faults, clients.report.closes) == ([], [])
        assert clients.open_count == 60
        process.terminate()
        wait_for(lambda: clients.report.closes == [1001] * 60)
        ended(process, 0)


def test_who_asks_is_let_in_by_a_program_of_the_original(site: Site, programs: Path) -> None:
    """The first interface has no call for accepting."""
    with (
        running(programs / "original_echo", site.docroot / "asking.ws"),
        RawClient(site.dial("ws")).upgrade("/asking.ws") as client,
    ):
        client.send(masked(0x81, b"hello"))
        assert client.read_data_frame() == (0x81, b"hello")


def test_publish_from_the_command_line(site: Site, echo: Path) -> None:
    path = site.docroot / "news.ws"
    with running(echo, path), connect(site.ws("/news.ws")) as client:
        client.send("here")
        assert client.recv(DEADLINE_S) == "here"
        said = subprocess.run(
            [sys.executable, "-m", "apachews", "publish", path, "-m", "lunch"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "1 reached" in said.stdout
        assert client.recv(DEADLINE_S) == "lunch"


# The chat: like examples/chat/producer.py, for the same page.


def enter(site: Site, room: str, name: str) -> ClientConnection:
    return connect(site.ws(f"/chat.ws?room={room}&name={name}"))


def receive(client: ClientConnection) -> Any:
    return json.loads(client.recv(DEADLINE_S))


def receive_until(client: ClientConnection, key: str, value: Any = ...) -> Any:
    """Return the next message that has a key, and that value if one is given."""
    while True:
        message = receive(client)
        if key in message and value in (..., message[key]):
            return message


def close_of(client: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            client.recv(DEADLINE_S)
    assert caught.value.rcvd
    return caught.value.rcvd.code


def test_chat(site: Site, programs: Path) -> None:
    with (
        running(programs / "chat", site.docroot / "chat.ws"),
        enter(site, "tea", "Ann") as ann,
        enter(site, "tea", "%20Zo%C3%AB+%20B%22 ".strip()) as zoe,
        enter(site, "coffee", "Eve") as eve,
    ):
        assert receive(ann) == {"room": "tea", "said": []}
        for client in (ann, zoe):
            receive_until(client, "people", ["Ann", 'Zoë B"'])
        receive_until(eve, "people", ["Eve"])
        for number in range(40):
            ann.send(f'"{number}"\n\x01é')
        for client in (ann, zoe):
            said = receive_until(client, "text", '"39"\n\x01é')
            assert said["name"] == "Ann"
        with enter(site, "tea", "Late") as late:
            greeting = receive(late)
            assert [line["text"] for line in greeting["said"]] == [
                f'"{number}"\n\x01é' for number in range(10, 40)
            ]
            receive_until(ann, "people", ["Ann", "Late", 'Zoë B"'])
        receive_until(ann, "people", ["Ann", 'Zoë B"'])
        eve.send("alone?")
        assert receive(eve)["text"] == "alone?"
        for nothing in (" \n", b"binary", ""):
            eve.send(nothing)
        eve.send("x" * 1001)
        assert "1000" in receive(eve)["problem"]
        eve.send("é" * 1000)
        assert receive(eve)["text"] == "é" * 1000


def test_what_the_chat_does_not_take(site: Site, programs: Path) -> None:
    queries = ("room=Tea&name=Ann", "room=tea", "room=tea&name=%20", f"name={'x' * 31}")
    with running(programs / "chat", site.docroot / "chat.ws"):
        for query in (*queries, "name=%ff", "name=a%00b", "name=%07", f"room={'r' * 31}&name=a"):
            with connect(site.ws(f"/chat.ws?{query}")) as client:
                assert close_of(client) == 1008
        with connect(site.ws("/chat.ws?name=" + "%C3%A9" * 30)) as client:
            assert receive(client) == {"room": "lobby", "said": []}


def test_a_deploy_of_the_chat_goes_unnoticed(site: Site, programs: Path) -> None:
    path = site.docroot / "chat.ws"
    first = start(programs / "chat", path)
    try:
        with enter(site, "tea", "Ann") as ann, enter(site, "tea", "Bob") as bob:
            for client in (ann, bob):
                receive_until(client, "people", ["Ann", "Bob"])
            with running(programs / "chat", path):
                first.send_signal(signal.SIGHUP)
                ended(first, 0)
                # Without a second greeting: the next message is the list of people.
                assert receive(ann) == {"people": ["Ann", "Bob"]}
                bob.send("still here")
                assert receive_until(ann, "text")["text"] == "still here"
    finally:
        kill(first)
