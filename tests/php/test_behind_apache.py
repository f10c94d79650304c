"""Producers in PHP, with Apache: examples, restarts, publications."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from apachews import publish
from apachews_tools.cli import main as apachews
from apachews_tools.httpd import private_apache

from ..conftest import DEADLINE_S, wait_for
from ..support.crowd import crowd
from ..support.site import ROOT, Site, for_two_threads, running_site

LIBRARY = ROOT / "bindings" / "php"
EXAMPLES = LIBRARY / "examples"
# An echo that drains at SIGTERM.
DRAINING = """<?php
require $argv[2] . '/autoload.php';
$server = new apachews\\Server($argv[1]);
$server->onSignal(SIGTERM, $server->drain(...));
foreach ($server as $event) {
    if ($event->type() === ApacheWSIOEvent) {
        $event->write($event->read());
    }
}
"""
# Accepts clients with a ticket.
DECIDING = """<?php
require $argv[2] . '/autoload.php';
$server = new apachews\\Server($argv[1]);
while ($event = $server->dequeue()) {
    switch ($event->type()) {
        case ApacheWSAcceptEvent:
            $request = $event->getClient()->request;
            if ($request->query['ticket'] ?? null) {
                $event->accept($request->offered[0] ?? null, ['Set-Cookie' => 'seen=1']);
                $event->write(json_encode([$request->path, $request->cookies, $request->scheme]));
            } else {
                $event->reject(402, 'Tickets, please.', ['X-Price' => '3']);
            }
            break;
        case ApacheWSIOEvent:
            $event->close(4001, 'no talking');
            break;
    }
}
"""

pytestmark = pytest.mark.skipif(
    not shutil.which("php"), reason="php is not installed: apt-get install php-cli"
)


@contextlib.contextmanager
def php(site: Site, program: Path, name: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Start a producer as Apache's user, with options of PHP; return when it listens."""
    path = site.docroot / name
    before = path.stat().st_ino if path.exists() else None
    process = subprocess.Popen(
        ["php", *options, str(program), str(path), str(LIBRARY)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        **private_apache.as_apache_user(),
    )
    try:
        wait_for(lambda: path.exists() and path.stat().st_ino != before, what=process.poll)
        yield process
    finally:
        process.kill()
        said, _ = process.communicate()
    assert not any(word in said for word in ("Warning", "Notice", "Fatal", "Deprecated")), said


def program(site: Site, text: str) -> Path:
    path = site.apache.root / "program.php"
    path.write_text(text)
    return path


@contextlib.contextmanager
def client(
    site: Site, path: str, scheme: str = "ws", **settings: Any
) -> Iterator[ClientConnection]:
    url = site.ws(path) if scheme == "ws" else site.wss(path)
    if scheme != "ws":
        settings["ssl"] = for_two_threads(site.tls_context())
    with connect(url, max_size=None, **settings) as connection:
        yield connection


@pytest.fixture(params=["ws", "wss"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_echo(site: Site, scheme: str) -> None:
    with php(site, EXAMPLES / "echo.php", "php.ws"), client(site, "/php.ws", scheme) as one:
        for text in ("hello", "1002", "1001", "0", "grüße", "é" * 1000):
            one.send(text)
            assert one.recv(DEADLINE_S) == text
            one.send(text.encode())
            assert one.recv(DEADLINE_S) == text.encode()
        one.send(["in ", "three ", "fragments"])
        assert one.recv(DEADLINE_S) == "in three fragments"
        one.ping().wait(DEADLINE_S)
        one.close(4000, "done")
        assert one.close_code == 4000


def test_large_messages(event_site: Site, scheme: str) -> None:
    text = "é" * (1 << 19)  # 1 MiB, the most that Apache lets through by default
    with (
        php(event_site, EXAMPLES / "echo.php", "php.ws"),
        client(event_site, "/php.ws", scheme) as one,
    ):
        one.send(text)
        assert one.recv(DEADLINE_S) == text
        one.send([text[at : at + 999] for at in range(0, len(text), 999)])
        assert one.recv(DEADLINE_S) == text
        one.send(bytes(range(256)) * 4096)
        assert one.recv(DEADLINE_S) == bytes(range(256)) * 4096
        one.send(text + "x")
        with pytest.raises(ConnectionClosed) as caught:
            one.recv(DEADLINE_S)
        assert caught.value.rcvd and caught.value.rcvd.code == 1009


def receive_until(one: ClientConnection, key: str, value: Any = ...) -> Any:
    """Return the next message that has a key, and that value if one is given."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        message = json.loads(one.recv(DEADLINE_S))
        if key in message and value in (..., message[key]):
            return message
    raise AssertionError(f"no {key} of {value}")


def test_chat(event_site: Site, scheme: str) -> None:
    def enter(name: str, room: str) -> contextlib.AbstractContextManager[ClientConnection]:
        return client(event_site, f"/chat.ws?room={room}&name={name}", scheme)

    with (
        php(event_site, EXAMPLES / "chat.php", "chat.ws"),
        enter("Zo%C3%AB", "tea") as zoe,
        enter("Ann", "tea") as ann,
        enter("Eve", "coffee") as eve,
    ):
        assert json.loads(ann.recv(DEADLINE_S)) == {"room": "tea", "said": []}
        for one in (ann, zoe):
            receive_until(one, "people", ["Ann", "Zoë"])
        receive_until(eve, "people", ["Eve"])
        ann.send("hello")
        for one in (ann, zoe):
            said = receive_until(one, "text")
            assert (said["name"], said["text"]) == ("Ann", "hello")
            assert abs(said["at"] - time.time()) < 60
        with enter("Late", "tea") as late:
            assert json.loads(late.recv(DEADLINE_S)) == {"room": "tea", "said": [said]}
            receive_until(ann, "people", ["Ann", "Late", "Zoë"])
        receive_until(ann, "people", ["Ann", "Zoë"])
        ann.send("é" * 1001)
        assert receive_until(ann, "problem") == {"problem": "At most 1000 characters, please."}
        ann.send("é" * 1000)
        assert receive_until(ann, "text")["text"] == "é" * 1000
        eve.send("alone?")
        assert json.loads(eve.recv(DEADLINE_S))["text"] == "alone?"
        for name, room in (("Ann", "Tea"), ("", "tea"), ("%20", "tea"), ("x" * 31, "tea")):
            with enter(name, room) as refused, pytest.raises(ConnectionClosed) as caught:
                refused.recv(DEADLINE_S)
            assert caught.value.rcvd and caught.value.rcvd.code == 1008


def test_a_restart_of_the_chat_goes_unnoticed(event_site: Site) -> None:
    """Stopped, then started, like "systemctl restart"."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(php(event_site, EXAMPLES / "chat.php", "chat.ws"))
        one = stack.enter_context(client(event_site, "/chat.ws?room=tea&name=Ann"))
        receive_until(one, "people", ["Ann"])
        first.terminate()
        assert first.wait(DEADLINE_S) == 0
        assert not (event_site.docroot / "chat.ws").exists()
        one.send("did you notice?")
        stack.enter_context(php(event_site, EXAMPLES / "chat.php", "chat.ws"))
        heard: list[dict[str, Any]] = []
        while not heard or "text" not in heard[-1]:
            heard.append(json.loads(one.recv(DEADLINE_S)))
        assert heard[-1]["text"] == "did you notice?"
        assert not any("said" in message for message in heard)


@pytest.mark.parametrize("mpm", ["event", "prefork"])
def test_many_clients_through_takeovers(sites: dict[str, Site], mpm: str) -> None:
    """The next producer replaces the socket file, and the old one moves its clients."""
    site = sites[mpm]
    echo = program(site, DRAINING)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(php(site, echo, "many.ws"))
        clients = stack.enter_context(crowd(site, 200, "/many.ws", round_s=0.1))
        for _ in range(3):
            clients.wait_for_echoes(1000)
            old, process = process, stack.enter_context(php(site, echo, "many.ws"))
            old.terminate()
            assert old.wait(DEADLINE_S) == 0
        clients.wait_for_everybody()
        clients.fall_silent()
        assert (clients.report.faults, clients.report.closes) == ([], [])
        assert (clients.report.lost, clients.open_count) == (0, 200)


def test_a_producer_that_is_killed_again_and_again(event_site: Site) -> None:
    with contextlib.ExitStack() as stack:
        echo = EXAMPLES / "echo.php"
        process = stack.enter_context(php(event_site, echo, "mortal.ws"))
        clients = stack.enter_context(crowd(event_site, 50, "/mortal.ws", may_lose=True))
        for _ in range(5):
            clients.wait_for_echoes(500)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = stack.enter_context(php(event_site, echo, "mortal.ws"))
        clients.wait_for_echoes(500)
        clients.wait_for_everybody()
        assert (clients.report.faults, clients.report.closes) == ([], [])
        assert clients.open_count == 50


def test_other_programs_publish(event_site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    path = event_site.docroot / "chat.ws"
    with (
        php(event_site, EXAMPLES / "chat.php", "chat.ws"),
        client(event_site, "/chat.ws?room=tea&name=Ann") as ann,
        client(event_site, "/chat.ws?room=coffee&name=Bob") as bob,
    ):
        for one in (ann, bob):
            receive_until(one, "people")
        assert apachews(["publish", str(path), "tea", "-m", '{"problem": "for tea"}']) == 0
        assert "1 reached" in capsys.readouterr().out
        assert receive_until(ann, "problem") == {"problem": "for tea"}
        assert publish(path, '{"problem": "for all"}') == (2, 0)
        for one in (ann, bob):
            assert receive_until(one, "problem") == {"problem": "for all"}
        assert publish(path, "to an empty group", group="garden") == (0, 0)


def test_php_publishes_to_python(event_site: Site) -> None:
    call = "require $argv[2]; $d = apachews\\publish($argv[1], 'from PHP'); echo $d->reached;"
    with event_site.producer("py.ws", lambda event: None), client(event_site, "/py.ws") as one:
        said = subprocess.run(
            ["php", "-r", call, "--", str(event_site.docroot / "py.ws"), LIBRARY / "autoload.php"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert said == "1"
        assert one.recv(DEADLINE_S) == "from PHP"


def test_the_producer_decides() -> None:
    extra = """
        <Location /door.ws>
            SetEnv APACHEWS_ACCEPT producer
        </Location>
    """
    with running_site("event", extra=extra) as site, php(site, program(site, DECIDING), "door.ws"):
        with pytest.raises(InvalidStatus) as caught, client(site, "/door.ws"):
            pass
        response = caught.value.response
        assert (response.status_code, response.headers["X-Price"]) == (402, "3")
        assert response.body == b"Tickets, please."
        with client(
            site,
            "/door.ws?ticket=1",
            "wss",
            subprotocols=[Subprotocol("chat")],
            additional_headers={"Cookie": "a=b"},
        ) as one:
            assert one.subprotocol == "chat"
            assert one.response and one.response.headers["Set-Cookie"] == "seen=1"
            assert json.loads(one.recv(DEADLINE_S)) == ["/door.ws", {"a": "b"}, "wss"]
            one.send("hello")
            with pytest.raises(ConnectionClosed) as closed:
                one.recv(DEADLINE_S)
            close = closed.value.rcvd
            assert close and (close.code, close.reason) == (4001, "no talking")


def test_a_client_that_does_not_read_does_not_delay_others(event_site: Site) -> None:
    with (
        php(event_site, EXAMPLES / "echo.php", "php.ws"),
        client(event_site, "/php.ws", max_queue=1) as slow,
        client(event_site, "/php.ws") as quick,
    ):
        talking = threading.Thread(target=_send_until_blocked, args=[slow])
        talking.start()
        try:
            for number in range(200):
                quick.send(str(number))
                assert quick.recv(DEADLINE_S) == str(number)
        finally:
            slow.socket.close()
            talking.join()


def _send_until_blocked(slow: ClientConnection) -> None:
    """Send without reading, until the socket is closed."""
    with contextlib.suppress(ConnectionClosed, OSError):
        for _ in range(1000):
            slow.send(b"x" * 100_000)
