"""``apachews status``: tables of what processes say, and what to do where they say nothing."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews.monitoring.collect import RunningApache
from apachews.monitoring.snapshot import CUSTODIAN, EndpointStatus, Status
from apachews_tools import cli
from apachews_tools.cli import figures, main
from apachews_tools.cli import status as command

from ..library.test_snapshot import RELAY, connection, process, status

COMMAND_LINE = Path(__file__).parents[2] / "docs" / "reference" / "command-line.md"


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (figures.count, None, "-"),
        (figures.count, 0, "0"),
        (figures.count, 0.25, "0.2"),
        (figures.count, 12345.6, "12346"),
        (figures.size, 999, "999 B"),
        (figures.size, 1000, "1.0 KiB"),
        (figures.size, 10 * 1024, "10 KiB"),
        (figures.size, 5e15, "4547 TiB"),
        (figures.span, 0.0004, "0.4 ms"),
        (figures.span, 0.25, "250 ms"),
        (figures.span, 0.9999, "1.0 s"),
        (figures.span, 59.4, "59 s"),
        (figures.span, 61, "1 min"),
        (figures.span, 7260, "2 h 1 min"),
        (figures.span, 9e5, "10 days"),
    ],
)
def test_figures(show: Callable[[float | None], str], value: float | None, text: str) -> None:
    assert show(value) == text


@given(st.text())
def test_no_text_moves_the_cursor(text: str) -> None:
    shown = connection(path=text, user=text, address=text)
    lines = list(command.render(status(process(connections=(shown,))), command.Rates(), 5))
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 11


def test_columns_stand_below_their_heads() -> None:
    lines = figures.table(["<NAME", "N"], [["a", "1"], ["longer", "22"]])
    assert lines == ["NAME     N", "a        1", "longer  22"]


def documented_columns() -> dict[str, list[str]]:
    """Return the columns that the page lists for each table of the command."""
    section = COMMAND_LINE.read_text().partition("\n### Columns\n")[2].partition("\n## ")[0]
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if begun := re.match(r"\| column of the (\w+) \|", line):
            columns = found[begun[1]] = []
        elif line.startswith("| ") and found:
            names = line.split("|")[1]
            columns += re.findall("`([^`]+)`", names) or [""]
    return found


def test_the_page_lists_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []

    def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        shown.append([head.removeprefix("<") for head in heads])
        return figures.table(heads, rows)

    monkeypatch.setattr(command, "table", table)
    made = dataclasses.replace(status(process()), relays=(RELAY,))
    assert list(command.render(made, command.Rates(), 5))
    documented = documented_columns()
    assert list(documented) == ["processes", "endpoints", "relays", "connections"]
    assert shown == [*documented.values()]


def test_each_column_has_its_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Sequence[str]] = []

    def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        shown.extend(rows)
        return figures.table(heads, rows)

    monkeypatch.setattr(command, "table", table)
    assert list(command.render(status(process()), command.Rates(), 5))
    assert shown == [
        ["101", "child", "1 min", "1", "0", "-", "-", "-", "12 MiB", "2.0 ms", "-"],
        [
            *("/srv/chat.ws", "1", "0", "0", "5", "-", "-", "300 B", "400 B", "5 B", "6 B"),
            "1000: 4",
        ],
        [
            *("203.0.113.7:51514", "-", "/chat.ws", "wss", "open", "1.5 s", "3", "4"),
            *("30 B", "40 B", "5 B", "6 B", "25 ms", "101"),
        ],
    ]


def test_everything_is_shown() -> None:
    held = connection(state="held", address="2001:db8::1", queued_in=2048)
    quiet = connection(queued_in=0, queued_out=0)
    busy = connection(queued_in=0, queued_out=0, port=1, bytes_in=10**6)
    whole = status(
        process(connections=(quiet, busy), connections_count=9),
        process(102, CUSTODIAN, connections=(held,)),
    )
    text = "\n".join(command.render(whole, command.Rates(), 2))
    assert "Apache 100: 10 connections (2 open, 0 held, 0 closing) with 2 processes" in text
    assert "including 1 custodian" in text
    assert "Process 109 did not answer" in text
    assert "1000: 8" in text
    listed = text.partition("CLIENT")[2].splitlines()[1:]
    # First who waits, then who talks most.
    assert [line.split()[0] for line in listed[:2]] == ["[2001:db8::1]:51514", "203.0.113.7:1"]
    assert "2.0 KiB" in listed[0]
    assert listed[-1] == "and 8 more"
    assert "CLIENT" not in "\n".join(command.render(whole, command.Rates(), 0))


def test_relays_are_shown_if_there_are_any() -> None:
    made = dataclasses.replace(status(process()), relays=(RELAY,))
    text = "\n".join(command.render(made, command.Rates(), 0))
    assert re.search(
        r"/srv/chat\.ws +redis://10\.0\.0\.1:6379/0 +chat\.ws +up +7 +8 +2 +1 +0\.5 ms", text
    )
    lost = dataclasses.replace(made, relays=(dataclasses.replace(RELAY, is_up=False),))
    assert " lost " in "\n".join(command.render(lost, command.Rates(), 0))
    assert "RELAY" not in "\n".join(command.render(status(process()), command.Rates(), 0))


def test_rates_are_those_since_the_last_time() -> None:
    rates = command.Rates()
    endpoint = EndpointStatus("/a.ws", messages_in=100, messages_out=10)
    first = Status(100, 1000.0, (process(endpoints=(endpoint,), connections=()),))
    text = "\n".join(command.render(first, rates, 0))
    row = text.partition("ENDPOINT")[2].splitlines()[1].split()
    assert row[5:7] == ["-", "-"]
    endpoint = EndpointStatus("/a.ws", messages_in=150, messages_out=10)
    # What a custodian begins with did not pass just now.
    custodian = process(102, CUSTODIAN, endpoints=(endpoint,), connections=())
    later = process(endpoints=(endpoint,), connections=(), cpu_s=1.5)
    second = Status(100, 1002.0, (later, custodian))
    text = "\n".join(command.render(second, rates, 0))
    assert text.partition("ENDPOINT")[2].splitlines()[1].split()[5:7] == ["25", "0"]
    assert "12.5%" in text


def test_the_memory_of_each_process_is_shown_if_it_is_known() -> None:
    told, silent = process(101), process(102, memory_bytes=0)
    lines = list(command.render(Status(100, 1000.0, (told, silent)), command.Rates(), 0))
    (head,) = (line for line in lines if "MEMORY" in line)
    end = head.index("MEMORY") + len("MEMORY")
    cells = [line[:end].split() for line in lines[lines.index(head) + 1 :][:2]]
    assert [cell[-2:] for cell in cells] == [["12", "MiB"], ["-", "-"]]


@pytest.fixture
def apaches(monkeypatch: pytest.MonkeyPatch) -> list[RunningApache]:
    """Those that are found; none at first."""
    found: list[RunningApache] = []
    monkeypatch.setattr(command, "find_apaches", lambda: found)
    return found


def test_where_there_is_no_apache(
    apaches: list[RunningApache], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 1
    assert "Apache httpd does not run on this machine; start it" in capsys.readouterr().err
    apaches.append(RunningApache(7, 7, ()))
    assert main(["status", "--apache", "8"]) == 1
    assert "process 8 is not an Apache parent process; running: 7" in capsys.readouterr().err


def test_an_apache_without_websockets(
    apaches: list[RunningApache], capsys: pytest.CaptureFixture[str]
) -> None:
    apaches.append(RunningApache(7, 7, (("/nowhere", 33),)))
    assert main(["status"]) == 0
    assert "This Apache has not had a WebSocket yet." in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["processes"] == []


def test_who_may_not_ask_is_told_who_may(
    apaches: list[RunningApache],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(path: object) -> list[str]:
        raise PermissionError(13, os.strerror(13), path)

    apaches.append(RunningApache(7, 7, (("/var/tmp/apachews-33", 33),)))
    monkeypatch.setattr("apachews.monitoring.collect.os.lstat", refuse)
    assert main(["status"]) == 1
    error = capsys.readouterr().err
    assert (
        "no permission to ask the processes of Apache 7 (/var/tmp/apachews-33: Permission denied)"
        in error
    )
    assert "status, or set up a status page" in error


def test_watching_goes_on_while_apache_is_away(
    apaches: list[RunningApache],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    apaches.append(RunningApache(7, 7, (("/nowhere", 33),)))
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        apaches.clear()
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert main(["status", "--watch", "0.5"]) == cli.INTERRUPTED
    assert slept == [0.5] * 3
    out = capsys.readouterr().out
    assert out.count("This Apache has not had a WebSocket yet.") == 1
    assert out.count("Apache httpd does not run") == 2


def test_a_terminal_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setenv("LINES", "3")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    screen = command.Screen()
    assert screen.bold("x") == "\033[1mx\033[0m"
    screen.show("a" * 20 + "\nb\nc\nd\n", is_redrawn=True)
    assert terminal.getvalue() == "\033[H\033[J" + "a" * 10 + "\nb\n"
    screen.show(screen.bold("b" * 20), is_redrawn=True)
    assert terminal.getvalue().endswith("\033[J\033[1m" + "b" * 10 + "\033[0m\n")
    monkeypatch.setenv("NO_COLOR", "1")
    assert command.Screen().bold("x") == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    screen = command.Screen()
    screen.show(screen.bold("ccc"), is_redrawn=True)
    assert terminal.getvalue().endswith("\033[0m\nccc\n")


@contextmanager
def page(code: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serve one answer; give the URL and what was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/websocket-status", asked
        finally:
            server.shutdown()
            thread.join()


def test_a_status_page_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    whole = status(process())
    with page(200, whole.encode()) as (url, asked):
        assert main(["status", "--apache", url, "--json"]) == 0
        assert Status.decode(capsys.readouterr().out.encode()) == whole
        assert main(["status", "--apache", url + "?metrics#x"]) == 0
        assert "/srv/chat.ws" in capsys.readouterr().out
        assert main(["status", "--apache", url + "/ä%20 b"]) == 0
    assert asked == ["/websocket-status?json"] * 2 + ["/websocket-status/%C3%A4%20%20b?json"]


@pytest.mark.parametrize(
    ("code", "body", "error"),
    [
        (403, b"", "answers 403; Require in its <Location>"),
        (404, b"", "the status page is missing"),
        (500, b"", "answers 500; see Apache's error log"),
        (200, b"<html>", "is it the status page of apachews?"),
    ],
)
def test_a_page_that_gives_none(
    code: int, body: bytes, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with page(code, body) as (url, _):
        assert main(["status", "--apache", url]) == 1
        assert error in capsys.readouterr().err


@pytest.mark.parametrize("url", ["file:///etc/passwd", "example.org", "-1", "http://"])
def test_what_is_no_url(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", f"--apache={url}"]) == 1
    assert "neither a process id nor an http or https URL" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://[::1", "http://a..b/"])
def test_what_cannot_be_asked_for(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", f"--apache={url}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"apachews status: {url}")
    assert "is not a URL" in said


def test_a_server_that_never_comes_to_an_end_is_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()

    def trickle() -> None:
        sock, _ = listener.accept()
        with sock, suppress(OSError):
            sock.sendall(b"HTTP/1.0 200 OK\r\nX: ")
            while not is_over.wait(0.01):
                sock.sendall(b"x")

    monkeypatch.setattr(command, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            assert main(["status", "--apache", url]) == 1
        finally:
            is_over.set()
            thread.join()
    assert capsys.readouterr().err == f"apachews status: {url}: no complete answer within 0.5 s\n"


def test_what_is_no_answer_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(b"\x1b[2Jnonsense\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert main(["status", "--apache", f"http://127.0.0.1:{listener.getsockname()[1]}/"]) == 1
        thread.join()
    said = capsys.readouterr().err
    assert "nonsense" in said
    assert "\x1b" not in said


def test_a_url_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--apache", "http://127.0.0.1:9/"]) == 1
    assert "cannot be read: [Errno 111] Connection refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--watch", "0"],
        ["--watch", "0.01"],
        ["--watch", "x"],
        ["--connections", "-1"],
        ["--connections", "x"],
    ],
)
def test_arguments_that_make_no_sense(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["status", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"apachews status: error: argument {arguments[0]}: ")
    assert arguments[1] in said
    assert "_" not in said
