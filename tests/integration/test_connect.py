"""``apachews connect``, to a real Apache: in a terminal, from a script, and refused."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from apachews import Event, publish
from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from ..support.site import IS_ROOT, Site, echo, running_site
from ..support.terminal import COLUMNS, in_terminal

ROOT = Path(__file__).parents[2]
CONNECT = ("-m", "apachews", "connect")
LOGIN = """
LoadModule auth_basic_module "${MODULES}/mod_auth_basic.so"
LoadModule authn_core_module "${MODULES}/mod_authn_core.so"
LoadModule authn_file_module "${MODULES}/mod_authn_file.so"
LoadModule authz_user_module "${MODULES}/mod_authz_user.so"
<Location /private.ws>
    AuthType Basic
    AuthName private
    AuthUserFile "${ROOT}/users"
    Require valid-user
</Location>
<Location /wrong.ws>
    SetEnv APACHEWS_MAX_MESSAGE lots
</Location>
<Location /plain.ws>
    SetHandler default-handler
</Location>
"""


def run_connect(*arguments: str, password: str | None = None) -> tuple[int, str, str]:
    """Run the command; return exit status, output, errors."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    if password is not None:
        environ["APACHEWS_PASSWORD"] = password
    done = subprocess.run(
        [sys.executable, "-W", "error", *CONNECT, *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(extra=LOGIN) as site:
        digest = base64.b64encode(hashlib.sha1(b"s3cret").digest()).decode()
        users = site.apache.root / "users"
        users.write_text(f"ann:{{SHA}}{digest}\n")
        users.chmod(0o644)
        yield site


def test_what_comes_does_not_garble_what_is_typed(site: Site) -> None:
    with in_terminal(*CONNECT, site.ws()) as terminal:
        terminal.wait_for_row(r"^connected in \d+ ms, permessage-deflate; Ctrl-D ends$")
        terminal.wait_for_rows(">")
        modes = terminal.modes
        terminal.type("half a li")
        terminal.wait_for_rows("> half a li")
        assert publish(site.docroot / "echo.ws", "one\ntwo\x1b[2J").reached == 1
        terminal.wait_for_rows("< one", "  two\\x1b[2J", "> half a li")
        terminal.type("n\x1b[De\x05\x7f")  # left, e; end, rub out
        terminal.wait_for_rows("> half a lie")
        assert publish(site.docroot / "echo.ws", b"\0\xff").reached == 1
        terminal.wait_for_rows("< [2 bytes] 00 ff", "> half a lie")
        terminal.type("\r")
        terminal.wait_for_rows("> half a lie", "< half a lie", ">")
        terminal.type("\x1b[A")
        terminal.wait_for_rows("> half a lie")
        terminal.type("\x15" + "x" * COLUMNS)
        wrapped = ("> " + "x" * (COLUMNS - 2), "xx")
        terminal.wait_for_rows(*wrapped)
        assert publish(site.docroot / "echo.ws", "three").reached == 1
        terminal.wait_for_rows("< three", *wrapped)
        assert terminal.modes == modes
        terminal.type("\r")
        terminal.wait_for_rows(*wrapped, "< " + "x" * (COLUMNS - 2), "xx", ">")
        terminal.type("\x04")
        assert terminal.wait() == 0
        terminal.wait_for_row(r"^closed, 1000 \(normal\)$")
        assert terminal.modes != modes  # those of a shell again
        assert "32" in terminal.screen.painted
    wait_for(lambda: site.log_lines(r"/echo\.ws closed by client .* code=1000 "))


def test_without_colours_there_are_none(site: Site) -> None:
    with in_terminal(*CONNECT, site.ws(), env={"NO_COLOR": "1"}) as terminal:
        terminal.type("hello\r")
        terminal.wait_for_row("^< hello$")
        terminal.type("\x04")
        assert terminal.wait() == 0
        assert not terminal.screen.painted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_puts_the_terminal_in_order(site: Site, number: signal.Signals) -> None:
    with site.producer("leaving.ws", echo) as server:
        with in_terminal(*CONNECT, site.ws("/leaving.ws")) as terminal:
            terminal.wait_for_rows(">")
            modes = terminal.modes
            if number == signal.SIGINT:
                terminal.type("\x03")
            else:
                terminal.process.terminate()
            assert terminal.wait() == 128 + number
            assert terminal.modes != modes
        wait_for(lambda: not server.clients())
    wait_for(lambda: site.log_lines(r"/leaving\.ws closed by client .* code=1001 "))


def test_a_close_of_the_server_ends_it(site: Site) -> None:
    def leave(event: Event) -> None:
        if event.type() is Event.IO:
            event.close(4000, "enough")

    with (
        site.producer("short.ws", leave),
        in_terminal(*CONNECT, site.ws("/short.ws")) as terminal,
    ):
        terminal.wait_for_rows(">")
        terminal.type("hello\r")
        assert terminal.wait() == 1
        terminal.wait_for_row("^the server closed the connection, 4000: enough$")


def test_a_script_over_tls(site: Site) -> None:
    trusted = ("--cafile", str(site.apache.certificate))
    assert run_connect(site.wss(), "-m", "hé", *trusted) == (0, "hé\n", "")
    assert run_connect(site.wss(), "-m", "hé", "--insecure") == (0, "hé\n", "")
    status, output, errors = run_connect(site.wss(), "-m", "hé")
    assert (status, output) == (1, "")
    assert re.search(r"certificate is not trusted \(self.signed certificate\): --cafile", errors)
    swapped = site.wss().replace(str(site.apache.tls_port), str(site.apache.port))
    assert "no TLS" in run_connect(swapped, "-m", "x")[2]
    swapped = site.ws().replace(str(site.apache.port), str(site.apache.tls_port))
    assert "wss:// instead of ws://" in run_connect(swapped, "-m", "x")[2]


def test_a_large_message_there_and_back(site: Site) -> None:
    text = "".join(map(str, range(150_000)))
    done = subprocess.run(
        [sys.executable, *CONNECT, site.ws()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{text}\n"


def test_a_login(site: Site) -> None:
    seen = []

    def note(event: Event) -> None:
        if event.type() is Event.Accept:
            seen.append(event.client().request.user)
        echo(event)

    with site.producer("private.ws", note):
        url = site.ws("/private.ws")
        assert "--user NAME" in run_connect(url)[2]
        assert "password is wrong" in run_connect(url, "--user", "ann", password="no")[2]
        done = run_connect(url, "--user", "ann", "-m", "hi", password="s3cret")
        assert done == (0, "hi\n", "")
        with in_terminal(*CONNECT, url, "--user", "ann") as terminal:
            terminal.wait_for_rows("Password of ann:")
            terminal.type("s3cret\r")
            terminal.wait_for_row("^connected")
            # A Ctrl-D before the prompt would be the kernel's end of file, of a line, and be lost.
            terminal.wait_for_row("^>")
            terminal.type("\x04")
            assert terminal.wait() == 0
            assert "s3cret" not in "".join(terminal.screen.rows)
    assert seen == ["ann", "ann"]


def test_a_producer_and_a_client_in_two_terminals(site: Site) -> None:
    path = str(site.docroot / "hand.ws")
    access = ("--group", private_apache.APACHE_USER) if IS_ROOT else ("--mode", "660")
    with in_terminal("-m", "apachews", "listen", path, *access) as producer, ExitStack() as stack:
        producer.wait_for_row("^listening on")
        client = stack.enter_context(in_terminal(*CONNECT, site.ws("/hand.ws?a=b")))
        name = producer.wait_for_row(r"^\+ (\w{8})  127\.0\.0\.1:\d+  /hand\.ws\?a=b$")[1]
        client.type("hello\r")
        producer.wait_for_row(f"^< {name}  hello$")
        producer.type(f"/to {name} hello yourself\r")
        client.wait_for_row("^< hello yourself$")
        producer.type(f"/ping {name}\r")
        producer.wait_for_row(f"^~ {name}  answered after")
        client.type("\x04")
        assert client.wait() == 0
        producer.wait_for_row(rf"^- {name}  1000 \(normal\)$")
        producer.type("\x04")
        assert producer.wait() == 0


def test_refusals_say_what_to_look_at(site: Site) -> None:
    (site.docroot / "file.ws").touch()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(site.docroot / "stale.ws"))
    (site.docroot / "stale.ws").chmod(0o666)
    stale.close()
    expected = {
        "/none.ws": ("404 Not Found", "start the producer"),
        "/file.ws": ("403 Forbidden", "is not a socket"),
        "/stale.ws": ("503 Service Unavailable", "start the producer"),
        "/wrong.ws": ("500 Internal Server Error", "apachews doctor finds it"),
        "/index.html": ("200 OK", "the path is not that of a socket"),
    }
    with site.producer("wrong.ws", echo):
        for path, (status, hint) in expected.items():
            code, output, errors = run_connect(site.ws(path))
            assert (code, output) == (1, "")
            assert f"the server answers {status}\n" in errors
            assert hint in errors
    errors = run_connect(site.ws(), "--origin", "https://elsewhere.example")[2]
    assert "403 Forbidden" in errors
    assert "APACHEWS_ORIGINS" in errors
    same = f"http://127.0.0.1:{site.apache.port}"
    assert run_connect(site.ws(), "--origin", same, "-m", "x") == (0, "x\n", "")
