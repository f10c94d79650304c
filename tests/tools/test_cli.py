"""The command line: what all commands share, and ``publish``."""

from __future__ import annotations

import errno
import io
import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apachews import NotListening, Server
from apachews_tools.cli import COMMANDS, listen, main, publish

from ..conftest import wait_for
from ..library.test_publishing import serving
from ..support.bridge_by_hand import Bridge
from ..support.producers import ROOT


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Return a function that says what standard input has."""

    def type_in(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return type_in


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_says_what_it_is_for(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: apachews {name}" in text
    assert "examples:\n" in text
    assert "exit status:" in text
    assert "--help" in text


@pytest.mark.parametrize("name", ["connect", "listen", "publish", "run"])
def test_every_option_is_documented(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    options = set(re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert len(options) > 2
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert {option for option in options if option not in section} == set()


def test_without_a_command_there_is_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "usage: apachews" in capsys.readouterr().err


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"apachews (\d+\.\d+\.\d+|\(not installed\))\n", capsys.readouterr().out)


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "apachews", "--help"], capture_output=True, text=True, check=True
    )
    for name, command in COMMANDS.items():
        assert name in done.stdout
        assert command.SUMMARY in " ".join(done.stdout.split())


def test_a_reader_that_has_had_enough_is_no_failure() -> None:
    script = """
import sys
from apachews_tools import cli
cli.COMMANDS["publish"].run = lambda arguments: print("x" * 100_000, flush=True)
sys.exit(cli.main(["publish", "x"]))
"""
    pipeline = '"$0" -c "$1" | head -c 1; exit "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["/bin/bash", "-c", pipeline, sys.executable, script], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x", b"")


@contextmanager
def one_client(path: Path) -> Iterator[Bridge]:
    """Serve, with one client."""
    with serving(path) as server:
        bridge = Bridge(str(path))
        wait_for(server.clients)
        yield bridge
        bridge.socket.close()


def test_publish_sends_an_argument(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(short_path / "a.ws")
    with one_client(Path(path)) as bridge:
        assert main(["publish", path, "-m", "hé"]) == 0
        assert capsys.readouterr().out == "1 reached\n"
        assert wait_for(bridge.read_available) == ["hé"]
        assert main(["publish", path, "nobody's", "-m", "x", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "reached": 0,
            "skipped": 0,
            "relayed": False,
            "position": None,
        }


@pytest.mark.parametrize(
    ("data", "flags", "message"),
    [(b"two\nlines\n", [], "two\nlines\n"), (b"\xff\x00", ["--binary"], b"\xff\x00")],
)
def test_publish_sends_standard_input(
    short_path: Path,
    type_in: Callable[[bytes], None],
    data: bytes,
    flags: list[str],
    message: object,
) -> None:
    path = str(short_path / "a.ws")
    with one_client(Path(path)) as bridge:
        type_in(data)
        assert main(["publish", path, *flags]) == 0
        assert wait_for(bridge.read_available) == [message]


def test_publish_sends_nothing_where_there_is_nothing(
    type_in: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(b"")
    assert main(["publish", "absent.ws"]) == 0
    assert capsys.readouterr() == ("", "nothing was sent: standard input is empty\n")


def test_publish_tells_what_is_no_text(
    type_in: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(b"ab\xff")
    assert main(["publish", "a.ws"]) == 1
    assert "is not UTF-8 (byte 2)" in capsys.readouterr().err


def test_publish_says_why_it_could_not(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = short_path / "a.ws"
    assert main(["publish", str(path), "-m", "x"]) == 1
    assert capsys.readouterr().err == (
        f"apachews publish: {path}: no producer listens here; start it, or check the path\n"
    )
    with Server(path):  # which does nothing
        assert main(["publish", str(path), "-m", "x", "--timeout", "0.2"]) == 1
        assert "did not answer within 0.2 s" in capsys.readouterr().err
    assert main(["publish", str(short_path), "-m", "x"]) == 1
    assert str(short_path) in capsys.readouterr().err
    assert main(["publish", "", "-m", "x"]) == 1
    assert "no socket file given" in capsys.readouterr().err
    long = "x" * 200
    assert main(["publish", long, "-m", "x"]) == 1
    assert capsys.readouterr().err == f"apachews publish: {NotListening(long)}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--timeout", "-1"],
        ["--timeout", "nan"],
        ["--timeout", "inf"],
        ["--timeout", "86401"],
        ["--timeout", "soon"],
        ["--message", "\udcff"],
    ],
)
def test_publish_refuses_arguments_that_make_no_sense(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["publish", "a.ws", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert arguments[0] in said
    assert repr(arguments[1]) in said


def test_listen_and_publish_say_who_has_the_permission(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: str, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(sys, "argv", ["/opt/apachews/bin/apachews"])
    monkeypatch.setattr(listen, "Server", refuse)
    monkeypatch.setattr(publish, "publish", refuse)
    path = str(short_path / "a.ws")
    Path(path).touch()
    assert main(["listen", path]) == 1
    told = capsys.readouterr().err
    assert f"sudo -u www-data /opt/apachews/bin/apachews listen {path}, or as root" in told
    assert main(["publish", path, "-m", "hello"]) == 1
    owner = pwd.getpwuid(os.geteuid()).pw_name
    told = capsys.readouterr().err
    assert f"sudo -u {owner} /opt/apachews/bin/apachews publish" in told
