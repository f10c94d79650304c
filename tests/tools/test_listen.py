"""``apachews listen``: in a terminal, and in a script."""

from __future__ import annotations

import dataclasses
import grp
import json
import os
import re
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apachews import Server, wire
from apachews_tools.cli import main

from ..conftest import wait_for
from ..support.bridge_by_hand import OPEN, Bridge
from ..support.producers import ended, running
from ..support.terminal import Terminal, in_terminal

LISTEN = ("-m", "apachews", "listen")
GOODBYE = wire.Close(1001, "the server closes")


@contextmanager
def listening(path: str, *options: str) -> Iterator[Terminal]:
    with in_terminal(*LISTEN, path, *options) as terminal:
        terminal.wait_for_row(rf"^listening on {path}; Ctrl-D ends, /help$")
        terminal.wait_for_rows(">")
        yield terminal


@pytest.fixture
def path(short_path: Path) -> str:
    return str(short_path / "a.ws")


Client = Callable[..., Bridge]


@pytest.fixture
def client(path: str) -> Iterator[Client]:
    """Return a function that connects a client, with an id that has its number."""
    bridges = []

    def client(number: int, **members: Any) -> Bridge:
        bridges.append(
            Bridge(path, dataclasses.replace(OPEN, id=f"{number:08d}-{number}", **members))
        )
        return bridges[-1]

    yield client
    for bridge in bridges:
        bridge.socket.close()


def read(bridge: Bridge, count: int) -> list[object]:
    """Wait for so many messages."""
    messages: list[object] = []

    def has_all() -> bool:
        messages.extend(bridge.read_available())
        return len(messages) >= count

    wait_for(has_all, what=lambda: messages)
    return messages


def test_who_comes_what_they_say_and_who_goes(path: str, client: Client) -> None:
    with listening(path) as terminal:
        ann = client(1, uri="/a.ws?x\x1b", remote=("127.0.0.1", 5000), user="ann")
        terminal.wait_for_row(r"^\+ 00000001  127\.0\.0\.1:5000  /a\.ws\?x\\x1b  user ann$")
        terminal.type("hello th")
        bob = client(2, remote=("::1", 5001), resumed=True, subprotocol="chat")
        terminal.wait_for_row(r"^\+ 00000002  \[::1\]:5001  .*subprotocol chat  resumed$")
        ann.send(wire.TEXT, b"hi\nall\x1b[2J")
        bob.send(wire.BINARY, b"\0\xff")
        terminal.wait_for_row(r"^< 00000002  \[2 bytes\] 00 ff$")
        terminal.wait_for_row(r"^< 00000001  hi$")
        terminal.wait_for_row(r"^            all\\x1b\[2J$")
        terminal.type("ere\r")
        for bridge in (ann, bob):
            assert wait_for(bridge.read_available) == ["hello there"]
        ann.socket.close()
        terminal.wait_for_rows("- 00000001  1006 (broken off): the connection broke off", ">")
        terminal.type("\x04")
        assert terminal.wait() == 0
        assert bob.read_available() == [GOODBYE]
        bob.socket.close()
        terminal.wait_for_row(r"^- 00000002  100[16]")
    assert not os.path.exists(path)


def test_commands(path: str, client: Client) -> None:
    with listening(path) as terminal:
        terminal.type("hello?\r")
        terminal.wait_for_rows("> hello?", "no clients are connected", ">")
        one, two = client(1), client(2)
        terminal.wait_for_row(r"^\+ 00000002")
        terminal.type("/who\r")
        terminal.wait_for_row(r"^  00000002  -  /echo\.ws$")
        terminal.type("/to 00000002 only  you\r/to 00000001-1 \r//path\r")
        assert read(two, 2) == ["only  you", "/path"]
        assert read(one, 2) == ["", "/path"]
        terminal.type("/ping 00000001\r")
        one.socket.settimeout(10)
        ping = one.socket.recv(10)
        assert ping[0] == wire.FIN | wire.PING
        one.send(wire.PONG, ping[2:])
        terminal.wait_for_row(r"^~ 00000001  answered after \d+\.\d ms$")
        terminal.type("/close 00000002 4001 so long, Bob\r")
        assert wire.Close(4001, "so long, Bob") in wait_for(two.read_available)
        two.send(wire.CLOSE, wire.encode_close(4001))
        terminal.wait_for_row(r"^- 00000002  4001$")
        mistakes = {
            "/nothing": "unknown command /nothing; see /help; //… sends /…",
            "/to": "expected /to ID TEXT",
            "/to x y": "unknown client x; /who lists the clients",
            "/close": "no client given; /who lists the clients",
            "/close 0 way": "'way': expected a close code; /close ID [CODE [WHY]]",
            "/close 0 1006": "close code 1006 is not allowed",
        }
        for line, said in mistakes.items():
            terminal.type(f"{line}\r")
            terminal.wait_for_row(f"^{re.escape(said)}")
        client(3)
        terminal.wait_for_row(r"^\+ 00000003")
        terminal.type("/ping 0\r")
        terminal.wait_for_row("^2 ids begin with 0: type more of the id$")
        terminal.type("/help\r")
        terminal.wait_for_row("^//TEXT  +send /TEXT to all$")


def test_a_script_gets_json_and_echoes(path: str, client: Client) -> None:
    with running(*LISTEN, path, "--json", "--echo", "--mode", "600") as process:
        wait_for(lambda: os.path.exists(path))
        bridge = client(7, uri="/ü")
        bridge.send(wire.TEXT, "hé\n".encode())
        bridge.send(wire.BINARY, b"\0")
        bridge.send(wire.TEXT)
        assert read(bridge, 3) == ["hé\n", b"\0", ""]
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        process.send_signal(signal.SIGTERM)
        status, output = ended(process)
        assert bridge.read_available()[-1] == GOODBYE
        bridge.socket.close()
    assert status == 0
    opened, accepted, *rest = [json.loads(line) for line in output.splitlines()]
    assert opened == {"event": "listening", "path": path}
    assert accepted["event"] == "accept"
    assert (accepted["client"], accepted["uri"]) == ("00000007-7", "/ü")
    names = [event.pop("client") and event.pop("event") for event in rest]
    assert names == ["message", "message", "message", "close"]
    assert rest[:3] == [{"text": "hé\n"}, {"bytes": 1, "base64": "AA=="}, {"text": ""}]
    assert rest[3]["code"] in (1001, 1006)


def test_the_row_for_typing_survives_another_size_of_the_window(path: str) -> None:
    with in_terminal("-c", "import termios; print(termios.tcgetattr(0)[3])") as terminal:
        terminal.wait()
        of_a_shell = terminal.modes
    with listening(path) as terminal:
        terminal.type("x" * 40)
        terminal.wait_for_rows("> " + "x" * 40)
        terminal.resize(30)
        terminal.wait_for_rows("> " + "x" * 28, "x" * 12)
        terminal.type("\x15/who\r")
        terminal.wait_for_rows("> /who", "no clients are connected", ">")
        terminal.type("\x04")
        assert terminal.wait() == 0
        assert terminal.modes == of_a_shell


def test_json_cannot_steer_the_terminal(path: str, client: Client) -> None:
    with in_terminal(*LISTEN, path, "--json", env={"TERM": "dumb"}) as terminal:
        terminal.wait_for_row("listening")
        client(1).send(wire.TEXT, "\x9b2Jend".encode())
        terminal.wait_for_row(r"\\u009b2Jend")


def test_a_client_that_waits_for_an_answer_is_accepted(path: str, client: Client) -> None:
    with listening(path) as terminal:
        bridge = client(1, answer_required=True)  # APACHEWS_ACCEPT producer
        terminal.wait_for_row(r"^\+ 00000001")
        bridge.socket.settimeout(10)
        assert bridge.socket.recv(1)[0] == wire.FIN | wire.ANSWER


def test_a_peer_that_breaks_the_wire_is_shown(path: str) -> None:
    with listening(path) as terminal:
        stranger = Bridge(path, None)
        stranger.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
        terminal.wait_for_row("^!  ")
        stranger.socket.close()


def test_a_running_producer_keeps_its_socket(
    path: str, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(path) as server:
        assert main(["listen", path]) == 1
        assert "another producer listens here" in capsys.readouterr().err
        with listening(path, "--take-over") as terminal:
            bridge = client(1)
            terminal.wait_for_row(r"^\+ 00000001")
            bridge.socket.close()
            assert not server.clients()


@pytest.mark.skipif(os.geteuid() != 0, reason="root only: others' sockets have their group")
@pytest.mark.parametrize(
    ("options", "is_told"),
    [
        ((), True),
        (("--mode", "600"), False),
        (("--mode", "666"), False),
        (("--mode", "620"), True),
        (("--group", "www-data"), False),
        (("--group", "root"), False),
    ],
)
def test_root_is_told_of_a_socket_that_apache_cannot_connect_to(
    path: str, options: tuple[str, ...], is_told: bool
) -> None:
    if options[1:] == ("www-data",):
        try:
            grp.getgrnam("www-data")
        except KeyError:
            pytest.skip("no such group")
    with in_terminal(*LISTEN, path, *options) as terminal:
        terminal.wait_for_row(rf"^listening on {path}; Ctrl-D ends, /help$")
        shown = "".join(terminal.read())  # a long line takes two rows
    advice = f"apachews listen: {path} is root:root, mode 06"
    assert (advice in shown) is is_told
    assert ("--group www-data" in shown) is is_told


@pytest.mark.skipif(os.geteuid() != 0, reason="root only: others' sockets have their group")
def test_the_advice_to_root_is_no_json(path: str, client: Client) -> None:
    with running(*LISTEN, path, "--json", "--echo") as process:
        wait_for(lambda: os.path.exists(path))
        bridge = client(1)
        bridge.send(wire.TEXT, b"a")
        assert read(bridge, 1) == ["a"]  # it serves, and so takes its signals
        process.send_signal(signal.SIGTERM)
        _, output = ended(process)  # of both
    advice, opened, *_ = output.splitlines()
    assert advice.startswith("apachews listen: ")
    assert json.loads(opened)["event"] == "listening"


def test_what_cannot_be_served_is_said(
    short_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["listen", str(short_path / "none" / "a.ws")]) == 1
    assert "No such file or directory" in capsys.readouterr().err
    assert main(["listen", path, "--group", "no-such-group"]) == 1
    assert capsys.readouterr().err == "apachews listen: unknown group 'no-such-group'\n"
    with pytest.raises(SystemExit):
        main(["listen", path, "--mode", "999"])
    assert "invalid mode" in capsys.readouterr().err


def test_a_path_that_json_cannot_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["listen", "\udcff.ws"])
    assert ended.value.code == 2
    assert "is not UTF-8" in capsys.readouterr().err


def test_without_a_path_it_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", ""]) == 1
    assert capsys.readouterr().err == (
        "apachews listen: no socket file given; usage: apachews listen PATH\n"
    )
