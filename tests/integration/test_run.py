"""``apachews run``: a real Apache and real producers, from the start to the last process."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from apachews import Server
from apachews_tools.httpd import private_apache

from ..conftest import DEADLINE_S, wait_for
from ..support.producers import children_of
from ..support.site import IS_ROOT, for_two_threads, make_readable
from ..support.terminal import in_terminal

ROOT = Path(__file__).parents[2]
RUN = ("-m", "apachews", "run")

# Says its version, and who asks.
PRODUCER = """
import sys
import answers
from apachews import *

server = Server(sys.argv[1])
print("here I am")
for event in server:
    if event.type() is Event.Accept:
        print("resumed" if event.resumed else "new", flush=True)
    elif event.type() is Event.IO and event.read() == "die":
        raise SystemExit(3)
    elif event.type() is Event.IO:
        event.write(f"{answers.VERSION} {event.client().guid()}")
"""


class Run:
    """The command, running; what it writes goes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for a line."""
        found = wait_for(
            lambda: re.search(pattern, self.output, re.MULTILINE) or self.process.poll(),
            timeout_s=30,
            what=lambda: self.output,
        )
        assert isinstance(found, re.Match), self.output
        return found

    @property
    def url(self) -> str:
        """That of the first socket."""
        return self.wait_for(r"^  (ws://.*)$")[1]

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def running(
    directory: Path, *arguments: str, python: str = sys.executable, **account: Any
) -> Iterator[Run]:
    """Run the command on any free port; at its end nothing of it may be there."""
    temporary = directory / "tmp"
    temporary.mkdir(exist_ok=True)
    if account:
        os.chown(temporary, account["user"], account["group"])
    output = directory / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [python, "-W", "error", *RUN, "--port", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={
                name: value
                for name, value in {**os.environ, "TMPDIR": str(temporary)}.items()
                if name != "PYTHONPATH"
            }
            | ({"PYTHONPATH": str(ROOT)} if python == sys.executable else {}),
            start_new_session=True,
            **account,
        )
    try:
        yield Run(process, output)
    finally:
        for _ in range(2):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        process.wait(30)
    assert processes_in(directory) == []
    # (Every Apache shares the directory of its user, apachews_handler/shared/rundir.py.)
    shared = temporary / f"apachews-{account.get('user', os.geteuid())}"
    assert [path for path in temporary.rglob("*") if path != shared] == []
    assert "Traceback" not in output.read_text()


def processes_in(directory: Path) -> list[str]:
    """Return the command lines in which a directory stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended
        if str(directory) in command:
            found.append(command)
    return found


@pytest.fixture
def directory(short_path: Path) -> Path:
    """A directory with a program and its module, which Apache's user can read."""
    make_readable()
    short_path.chmod(0o755)
    (short_path / "chat.py").write_text(PRODUCER)
    (short_path / "answers.py").write_text("VERSION = 1\n")
    return short_path


def ask(client: ClientConnection, question: str = "?") -> list[str]:
    client.send(question)
    return str(client.recv(10)).split()


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_it_serves_and_ends_in_order(directory: Path) -> None:
    with running(directory, "chat.py", "--tls-port", "0", "--verbose") as run:
        http = run.wait_for(r"^  (http://127\.0\.0\.1:\d+)/$")[1]
        wss = run.wait_for(r"^  (wss://localhost:\d+/chat\.ws)$")[1]
        assert run.url == http.replace("http", "ws") + "/chat.ws"
        page = urllib.request.urlopen(http, timeout=10).read().decode()
        assert 'id="sockets">["/chat.ws"]<' in page
        # Apache serves the page and the sockets only, without a listing.
        assert [status_of(f"{http}/{path}") for path in ("x", ".git/config")] == [404, 403]
        insecure = for_two_threads(ssl.create_default_context())
        insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
        with connect(run.url) as client, connect(wss, ssl=insecure) as secure:
            assert ask(client)[0] == ask(secure)[0] == "1"
            assert run.end() == 0
            for each in (client, secure):
                with pytest.raises(Exception, match="1001"):
                    each.recv(10)
        run.wait_for(r'^access \| 127\.0\.0\.1 - "GET / HTTP/1\.1" 200')
        run.wait_for(r"^apache \| \[wsgi:info\] \[client .* /chat\.ws closed by producer")
        assert run.output.count("chat   | new\n") == 2
    for port in re.findall(r":(\d+)", http + wss):
        private_apache.require_free_port(int(port))


def test_a_change_of_the_source_reaches_the_clients_that_are_there(directory: Path) -> None:
    (directory / "tools").mkdir()
    with running(directory, "chat.py", "--reload") as run, connect(run.url) as client:
        version, name = ask(client)
        assert version == "1"
        # A module of the program.
        (directory / "answers.py").write_text("VERSION = 22\n")
        run.wait_for(r"^apachews run: answers\.py has changed: starting the next chat$")
        run.wait_for(r"^chat +\| resumed$")
        assert ask(client) == ["22", name]
        # The program itself, with a mistake: the old one goes on.
        (directory / "chat.py").write_text(f"{PRODUCER}\nx = = 1\n")
        run.wait_for(r"^chat +\| SyntaxError")
        run.wait_for(r"the new .*chat\.py exited with status 1 before it listened; the old one")
        assert ask(client) == ["22", name]
        # The corrected program.
        (directory / "chat.py").write_text(PRODUCER.replace("{answers", "3 {answers"))
        wait_for(lambda: ask(client) == ["3", "22", name], what=lambda: run.output)
        assert run.end(signal.SIGTERM) == 0


def test_channels_with_a_configuration_that_changes(directory: Path) -> None:
    def error_of_a_subscription(url: str) -> int:
        with connect(url) as client:
            client.send('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"chat:a"}}')
            answer = ""
            while '"id":2' not in answer:
                answer = str(client.recv(10))
        found = re.search(r'"code":(\d+)', answer)
        return int(found[1]) if found else 0

    (directory / "live.toml").write_text("[default]\n")
    with running(directory, "--channels", "live.toml", "--reload") as run:
        url = run.url
        assert url.endswith("/live.ws")
        assert error_of_a_subscription(url) == 102
        (directory / "live.toml").write_text("[namespaces.chat]\nx = 1\n")
        run.wait_for(r"live\.toml: namespaces\.chat\.x: unknown")
        (directory / "live.toml").write_text("[namespaces.chat]\n")
        wait_for(lambda: error_of_a_subscription(url) == 0, what=lambda: run.output)
        assert run.end() == 0


def test_a_producer_that_ends_is_started_again(directory: Path) -> None:
    with running(directory, "chat.py") as run, connect(run.url) as client:
        _, name = ask(client)
        for delay in ("0.5", "1"):
            client.send("die")
            run.wait_for(rf"^apachews run: chat exited with status 3; restart in {delay} s$")
            assert ask(client) == ["1", name]
        wait_for(lambda: run.output.count("chat   | resumed\n") == 2, what=lambda: run.output)
        assert run.end() == 0


def test_a_producer_that_cannot_start_is_said_and_tried_again(directory: Path) -> None:
    (directory / "chat.py").write_text("import nothing_of_that_name\n")
    with running(directory, "chat.py", "--reload") as run:
        run.wait_for("^chat +\\| ModuleNotFoundError: .*nothing_of_that_name")
        run.wait_for("chat exited with status 1; restart in 0.5 s")
        url = run.url  # Apache is there all the same
        (directory / "chat.py").write_text(PRODUCER)
        run.wait_for(r"^chat +\| here I am")
        with connect(url) as client:
            assert ask(client)[0] == "1"
        assert run.end() == 0
        (directory / "output.txt").write_text("")  # whose traceback was wanted


def test_a_program_that_listens_elsewhere_is_told(directory: Path) -> None:
    elsewhere = directory / "tmp" / "elsewhere.ws"
    (directory / "chat.py").write_text(PRODUCER.replace("sys.argv[1]", repr(str(elsewhere))))
    with running(directory, "chat.py", **private_apache.as_apache_user()) as run:
        run.wait_for(r"chat does not listen on \S+/chat\.ws: the program must take the path")
        assert run.end() == 0


def test_a_second_ctrl_c_ends_it_at_once(directory: Path) -> None:
    (directory / "chat.py").write_text(
        PRODUCER + "import os, time\nprint('hanging')\nos.fork()\nwhile True: time.sleep(60)\n"
    )
    with running(directory, "chat.py") as run:
        socket_file = Path(run.wait_for(r"^chat +\| here I am")[0] and directory)
        assert run.url
        run.process.send_signal(signal.SIGINT)
        run.wait_for(r"^chat +\| hanging$")
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(DEADLINE_S) == 130
        run.wait_for("^apachews run: killing all processes at once$")
    assert not list(socket_file.rglob("*.ws"))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_ends_before_it_has_started_leaves_nothing(
    directory: Path, number: signal.Signals
) -> None:
    with running(directory, "chat.py") as run:
        wait_for(lambda: list((directory / "tmp").iterdir()))
        for _ in range(2):
            run.process.send_signal(number)
        # 0: nothing has started, or two signals were one and it has ended in order.
        assert run.process.wait(30) in (128 + number, 0)
        # Python warns of a file of its own that was being read just then.
        assert "apachews/" not in run.output
        (directory / "output.txt").write_text("")


def test_a_site_of_ones_own(directory: Path) -> None:
    site = directory / "site"
    site.mkdir()
    (site / "index.html").write_text("<!doctype html><title>mine</title>")
    (site / "secret.py").write_text("password = 1")
    (site / "logo.svg").write_text("<svg/>")
    if IS_ROOT:
        os.chown(site, private_apache.as_apache_user()["user"], -1)
    options = ("--docroot", "site", "--path", "/ws/room.ws=chat.py", "--mpm", "prefork")
    with running(directory, *options) as run:
        assert run.url.endswith("/ws/room.ws")
        http = run.url.replace("ws:", "http:").removesuffix("/ws/room.ws")
        with urllib.request.urlopen(http, timeout=10) as response:
            assert b"mine" in response.read()
        with urllib.request.urlopen(f"{http}/logo.svg", timeout=10) as response:
            assert response.headers["content-type"] == "image/svg+xml"
        assert status_of(f"{http}/secret.py") == 403
        with connect(run.url) as client:
            assert ask(client)[0] == "1"
        assert run.end() == 0
    assert sorted(path.name for path in site.iterdir()) == ["index.html", "logo.svg", "secret.py"]


def test_what_is_wrong_is_said_and_nothing_is_left(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running(directory, "chat.py", "--port", port) as run:
            assert run.process.wait(30) == 1
            assert f"apachews run: port {port} cannot be used" in run.output
    with running(directory, "chat.py", "--listen", "192.0.2.1") as run:
        assert run.process.wait(30) == 1
        assert "is 192.0.2.1 an address of this machine?" in run.output
    with running(directory, "none.py") as run:
        assert run.process.wait(30) == 1
        assert run.output == "apachews run: none.py: No such file or directory\n"


def test_a_producer_that_runs_already_keeps_its_socket(directory: Path) -> None:
    site = directory / "site"
    site.mkdir()
    if IS_ROOT:
        os.chown(site, private_apache.as_apache_user()["user"], -1)
    (directory / "my chat.py").write_text(PRODUCER)
    options = ("--docroot", "site", "my chat.py")
    with Server(site / "my chat.ws"):
        with running(directory, *options) as run:
            assert run.process.wait(30) == 1
            assert "my chat.ws: another producer listens here; end it" in run.output
        assert (site / "my chat.ws").exists()
    with running(directory, *options) as run:
        assert run.url.endswith("/my%20chat.ws")
        with connect(run.url) as client:
            assert ask(client)[0] == "1"
        assert run.end() == 0


def test_an_apache_that_ends_is_said(directory: Path) -> None:
    with running(directory, "chat.py") as run:
        assert run.url
        (pid,) = (directory / "tmp").glob("apachews-run-*/apache.pid")
        os.kill(int(pid.read_text()), signal.SIGTERM)
        assert run.process.wait(30) == 1
        run.wait_for("^apachews run: Apache exited unexpectedly, with status 0$")


def test_in_a_terminal_it_has_colours_and_ctrl_c(directory: Path) -> None:
    (directory / "tmp").mkdir()
    command = (*RUN, str(directory / "chat.py"), "--port", "0")
    with in_terminal(*command, env={"TMPDIR": str(directory / "tmp")}) as terminal:
        terminal.wait_for_row(r"^  ws://.*/chat\.ws$")
        terminal.wait_for_row(r"^chat   \| here I am$")
        assert terminal.screen.painted
        terminal.type("\x03")
        assert terminal.wait() == 0
    assert processes_in(directory) == []


@pytest.mark.skipif(not IS_ROOT, reason="root only: other users cannot change their user")
def test_a_plain_user_runs_it_too(directory: Path) -> None:
    with running(directory, "chat.py", **private_apache.as_apache_user()) as run:
        with connect(run.url) as client:
            assert ask(client)[0] == "1"
        assert run.end() == 0


@pytest.mark.skipif(not IS_ROOT, reason="root only: otherwise Apache is the user itself")
def test_what_apaches_user_cannot_reach_is_said(directory: Path) -> None:
    (directory / "chat.py").chmod(0o600)
    with running(directory, "chat.py") as run:
        assert run.process.wait(30) == 1
        assert f"chmod o+r {directory / 'chat.py'}" in run.output
    (directory / "chat.py").chmod(0o644)
    (directory / "site").mkdir()
    with running(directory, "chat.py", "--docroot", "site") as run:
        assert run.process.wait(30) == 1
        assert f"install -d -o www-data {directory / 'site'}/ws" in run.output
    closed = directory / "closed"
    closed.mkdir(0o700)
    (directory / "chat.py").rename(closed / "chat.py")
    with running(directory, "closed/chat.py") as run:
        assert run.process.wait(30) == 1
        assert f"chmod o+x {closed}" in run.output


@pytest.mark.skipif(not IS_ROOT, reason="root only: otherwise all processes have one user")
def test_roots_environment_stays_roots(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", "hunter2")
    with running(directory, "chat.py") as run:
        assert run.url
        children = children_of(run.process.pid)
        family = children + [pid for child in children for pid in children_of(child)]
        assert len(family) >= 4, family  # httpd and the runner, and theirs
        for pid in family:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"PATH=" in environ
            assert b"hunter2" not in environ
        assert run.end() == 0


@pytest.mark.skipif(not IS_ROOT, reason="root only: otherwise Apache is the user itself")
@pytest.mark.parametrize("is_own_mode", [False, True])
def test_an_environment_that_apaches_user_cannot_read_is_copied(
    directory: Path, is_own_mode: bool
) -> None:
    closed = directory / "closed"
    closed.mkdir(0o755 if is_own_mode else 0o700)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", closed / "venv"], check=True)
    if is_own_mode:
        (closed / "venv").chmod(0o700)
    (packages,) = (closed / "venv").glob("lib/python*/site-packages")
    for name in ("apachews", "apachews_handler", "apachews_tools", "wsproto", "h11", "mod_wsgi"):
        package = Path(sysconfig.get_path("purelib")) / name
        if package.exists():  # (Debian's mod_wsgi is not a package)
            (packages / name).symlink_to(package)
    with running(directory, "chat.py", python=str(closed / "venv/bin/python")) as run:
        run.wait_for(rf"^apachews run: www-data cannot read {closed / 'venv'}; Apache gets a copy")
        with connect(run.url) as client:
            assert ask(client)[0] == "1"
        assert run.end() == 0
