"""The examples behind Apache, with the configuration that they come with."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from apachews import publish
from apachews_tools.httpd import private_apache
from deploy.examples import Examples

from ..conftest import DEADLINE_S, wait_for
from ..support.frames import masked
from ..support.producers import children_of, running
from ..support.raw_client import RawClient, request
from ..support.site import ROOT, Site, running_site

NOTIFY = ROOT / "examples" / "notify"
PASSWORDS = {"ann": "secret", "bob": "other"}
PHP = shutil.which("php")

needs_flask = pytest.mark.skipif(
    not Examples.has_login, reason="no Flask: pip install -r tests/requirements.txt"
)


@dataclass
class Stage:
    """A site with the examples' pages and configuration, and what runs of them."""

    site: Site
    examples: Examples

    def path(self, name: str) -> Path:
        """Return the socket file of a producer, as ``chat/chat.ws``."""
        return self.site.docroot / name

    @contextmanager
    def producer(
        self, name: str, *options: str, at: str = "", arguments: list[str] | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        """Run an example's program.

        Args:
            name: of the socket it is for.
            options: Python's own.
            at: another socket file, in the document root.
            arguments: others than the example has, behind the socket file.
        """
        (producer,) = (p for p in self.examples.producers if p.socket == self.path(name))
        path = self.path(at) if at else producer.socket
        more = producer.arguments if arguments is None else arguments
        command = [*options, str(producer.program), str(path), *more]
        with running(*command, **private_apache.as_apache_user()) as process:
            wait_for(path.exists, what=process.poll)
            yield process
            assert process.poll() is None, "it ended"
        path.unlink(missing_ok=True)

    def connect(self, path: str, user: str = "", cookie: str = "") -> ClientConnection:
        """Connect to ``/chat/chat.ws``, with a user's password or a cookie if wanted."""
        headers = {}
        if user:
            pair = f"{user}:{PASSWORDS[user]}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        if cookie:
            headers["Cookie"] = f"other=1; session={cookie}"
        return connect(self.site.ws(path), additional_headers=headers)

    def status(self, path: str, user: str = "", cookie: str = "") -> tuple[int, str]:
        """Return status and body of the answer to a client that is refused."""
        with pytest.raises(InvalidStatus) as caught:
            self.connect(path, user, cookie)
        body = caught.value.response.body or b""
        return caught.value.response.status_code, body.decode()


@contextmanager
def set_stage(is_embedded: bool = False) -> Iterator[Stage]:
    """Start an Apache, and have it read the examples' configuration."""
    with running_site("event") as site:
        examples = Examples(
            site.apache.root,
            site.docroot,
            log=site.apache.root / "access.log",
            python_home=Path(sys.prefix),
            passwords=PASSWORDS,
            is_embedded=is_embedded,
        )
        (site.apache.root / "conf.d" / "extra.conf").write_text(examples.configuration())
        site.renew()
        yield Stage(site, examples)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """The examples on one site; each test runs the programs that it needs."""
    with set_stage() as stage:
        yield stage


def receive(client: ClientConnection) -> Any:
    """Return the value of the next message."""
    return json.loads(client.recv(DEADLINE_S))


def receive_until(client: ClientConnection, key: str, value: Any = ...) -> Any:
    """Return the next message that has a key, and that value if one is given."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        message = receive(client)
        if key in message and value in (..., message[key]):
            return message
    raise AssertionError(f"no {key} of {value}")


def close_of(client: ClientConnection) -> tuple[int, str]:
    """Read to the end; return code and reason."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            client.recv(DEADLINE_S)
    close = caught.value.rcvd
    assert close
    return close.code, close.reason


# Echo.


def test_echo(stage: Stage) -> None:
    with stage.producer("echo/echo.ws"), stage.connect("/echo/echo.ws") as client:
        for message in ("grüße", b"\x00\xff", "x" * 100_000):
            client.send(message)
            assert client.recv(DEADLINE_S) == message
    for page in ("echo/", "echo/echo.js", "common/socket.js", "common/style.css"):
        assert requests.get(stage.site.http(f"/{page}"), timeout=DEADLINE_S).ok
    # Pages are for browsers; programs and configuration are not.
    files = {path.suffix for path in stage.site.docroot.rglob("*") if path.is_file()}
    assert files == {".html", ".css", ".js"}


# Chat.


def enter(stage: Stage, room: str, name: str) -> ClientConnection:
    return stage.connect(f"/chat/chat.ws?room={room}&name={name}")


def test_rooms(stage: Stage) -> None:
    with (
        stage.producer("chat/chat.ws"),
        enter(stage, "tea", "Ann") as ann,
        enter(stage, "tea", "Zo%C3%AB") as zoe,
        enter(stage, "coffee", "Eve") as eve,
    ):
        assert receive(ann) == {"room": "tea", "said": []}
        for client in (ann, zoe):
            receive_until(client, "people", ["Ann", "Zoë"])
        receive_until(eve, "people", ["Eve"])
        ann.send("hello")
        for client in (ann, zoe):
            said = receive_until(client, "text")
            assert (said["name"], said["text"]) == ("Ann", "hello")
            assert abs(said["at"] - time.time()) < 60
        with enter(stage, "tea", "Late") as late:
            assert receive(late) == {"room": "tea", "said": [said]}
            receive_until(ann, "people", ["Ann", "Late", "Zoë"])
        receive_until(ann, "people", ["Ann", "Zoë"])
        # And nobody heard it elsewhere.
        eve.send("alone?")
        assert receive(eve)["text"] == "alone?"


def test_what_the_chat_does_not_take(stage: Stage) -> None:
    with stage.producer("chat/chat.ws"):
        for query in ("room=Tea&name=Ann", "room=tea", "room=tea&name=%20", f"name={'x' * 31}"):
            with stage.connect(f"/chat/chat.ws?{query}") as client:
                assert close_of(client)[0] == 1008
        with enter(stage, "tea", "Ann") as ann:
            ann.send("x" * 1001)
            assert receive_until(ann, "problem") == {"problem": "At most 1000 characters, please."}
            ann.send("x" * 1000)
            assert receive_until(ann, "text")["text"] == "x" * 1000
            ann.send("x" * 9000)
            assert close_of(ann)[0] == 1009
        with enter(stage, "tea", "Bob") as bob:
            for _ in range(70):
                try:
                    bob.send("and another thing")
                except ConnectionClosed:
                    break
            assert close_of(bob)[0] == 1008


def test_a_deploy_of_the_chat_goes_unnoticed(stage: Stage) -> None:
    with (
        stage.producer("chat/chat.ws", "-m", "apachews.runner") as runner,
        enter(stage, "tea", "Ann") as ann,
        enter(stage, "tea", "Bob") as bob,
    ):
        for client in (ann, bob):
            receive_until(client, "people", ["Ann", "Bob"])
        [before] = children_of(runner.pid)
        runner.send_signal(signal.SIGHUP)
        wait_for(lambda: children_of(runner.pid) and before not in children_of(runner.pid))
        ann.send("did you notice?")
        heard: list[dict[str, Any]] = []
        while not heard or "text" not in heard[-1]:
            heard.append(receive(bob))
        assert heard[-1]["text"] == "did you notice?"
        # Nobody was greeted again, or said to have left.
        assert not any("said" in message for message in heard)
        with enter(stage, "tea", "Eve") as eve:
            receive_until(eve, "people", ["Ann", "Bob", "Eve"])


# Live log.


@contextmanager
def followed_log(stage: Stage) -> Iterator[Path]:
    """Follow a log that the test writes."""
    log = stage.site.apache.root / "followed.log"
    log.write_text("".join(f"line {number}\n" for number in range(300)))
    with stage.producer("logtail/logtail.ws", arguments=[str(log)]):
        yield log
    log.unlink()


def append(log: Path, *lines: str) -> None:
    with log.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def follow(stage: Stage) -> ClientConnection:
    return stage.connect("/logtail/logtail.ws", "ann")


def receive_lines(client: ClientConnection, count: int) -> list[str]:
    lines: list[str] = []
    while len(lines) < count:
        lines += receive(client)["lines"]
    return lines


def test_a_log_is_followed_and_filtered(stage: Stage) -> None:
    with followed_log(stage) as log, follow(stage) as all_of_it, follow(stage) as filtered:
        for client in (all_of_it, filtered):
            first = receive(client)
            assert first == {"of": "", "lines": [f"line {number}" for number in range(100, 300)]}
        filtered.send("LINE 2")
        found = receive(filtered)
        assert found["of"] == "LINE 2"
        expected = [f"line {number}" for number in [2, *range(20, 30), *range(200, 300)]]
        assert found["lines"] == expected
        append(log, "error <1>", "line 22", "ok")
        assert receive_lines(all_of_it, 3) == ["error <1>", "line 22", "ok"]
        assert receive_lines(filtered, 1) == ["line 22"]
        filtered.send("")
        assert receive(filtered)["lines"][-3:] == ["error <1>", "line 22", "ok"]


def test_a_log_is_followed_through_rotation(stage: Stage) -> None:
    with followed_log(stage) as log, follow(stage) as client:
        receive(client)
        rotated = log.rename(log.with_suffix(".log.1"))
        append(rotated, "from a worker that is not done")
        assert receive_lines(client, 1) == ["from a worker that is not done"]
        append(log, "the new file")
        assert receive_lines(client, 1) == ["the new file"]
        append(rotated, "and still not")
        assert receive_lines(client, 1) == ["and still not"]
        rotated.unlink()
        log.write_text("")  # copytruncate
        # (As small as it was not for a moment: only what is shorter can be seen to be.)
        append(log, "anew")
        assert receive_lines(client, 1) == ["anew"]


def test_only_who_may_sees_the_log(stage: Stage) -> None:
    with followed_log(stage):
        for user in ("", "bob"):
            assert stage.status("/logtail/logtail.ws", user)[0] == 401
        page = stage.site.http("/logtail/")
        assert requests.get(page, timeout=DEADLINE_S).status_code == 401
        assert requests.get(page, timeout=DEADLINE_S, auth=("bob", "other")).status_code == 401
        assert requests.get(page, timeout=DEADLINE_S, auth=("ann", "secret")).ok


def test_who_is_slow_skips_lines_and_holds_up_nobody(stage: Stage) -> None:
    count, size = 16_000, 1000
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)  # what the kernel has for it
    sock.settimeout(DEADLINE_S)
    sock.connect(("127.0.0.1", stage.site.apache.port))
    pair = base64.b64encode(b"ann:secret").decode()
    with followed_log(stage) as log, follow(stage) as fast, RawClient(sock) as slow:
        slow.upgrade("/logtail/logtail.ws", Authorization=f"Basic {pair}")
        slow.send(masked(0x81, b"number"))
        receive(fast)
        while receive_raw(slow).get("of") != "number":
            pass
        append(log, *(f"number {number} ".ljust(size, ".") for number in range(count)))
        append(log, "the last number")
        # The one gets to the end of it while the other reads nothing at all.
        seen = skipped = 0
        last = ""
        while last != "the last number":
            message = receive(fast)
            lines = message.get("lines", [])
            seen += len(lines)
            skipped += message.get("skipped", 0)
            last = lines[-1] if lines else last
        assert seen + skipped == count + 1
        # And that one is told what it has missed.
        seen = skipped = 0
        while seen + skipped < count + 1:
            message = receive_raw(slow)
            seen += len(message.get("lines", []))
            skipped += message.get("skipped", 0)
        assert skipped > 0
        assert seen + skipped == count + 1
        append(log, "number again")
        assert receive_raw(slow) == {"lines": ["number again"]}


def receive_raw(client: RawClient) -> Any:
    """Return the value of the next message."""
    frame = client.read_data_frame()
    assert frame
    return json.loads(frame[1])


# Dashboard.


def test_all_see_the_same_samples(stage: Stage) -> None:
    with stage.producer("dashboard/dashboard.ws"):
        with (
            stage.connect("/dashboard/dashboard.ws") as one,
            stage.connect("/dashboard/dashboard.ws") as other,
        ):
            for client in (one, other):
                assert receive(client)["every_s"] == 1
            samples = [receive(other) for _ in range(3)]
            # The one was there before, and has seen others perhaps; these as well.
            seen = [receive(one)]
            while seen[-1] != samples[-1]:
                seen.append(receive(one))
            assert seen[-3:] == samples
        with stage.connect("/dashboard/dashboard.ws") as later:
            history = receive(later)["samples"]
            assert [sample for sample in history if sample in samples] == samples
    for before, after in itertools.pairwise(samples):
        assert 0 < after["at"] - before["at"] < DEADLINE_S
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for sample in samples:
        assert all(0 <= share <= 100 for share in sample["cpu"].values())
        assert sum(sample["cpu"].values()) <= 100.2  # each is rounded
        assert 0 < sample["memory"]["used"] < sample["memory"]["total"] == total
        assert sample["processors"] == os.cpu_count()


# Notifications.


def test_a_notification_is_for_one_user_or_for_all(stage: Stage) -> None:
    path = str(stage.path("notify/notify.ws"))
    with (
        stage.producer("notify/notify.ws"),
        stage.connect("/notify/notify.ws", "ann") as ann,
        stage.connect("/notify/notify.ws", "bob") as bob,
    ):

        def send(*arguments: str) -> str:
            command = [sys.executable, str(NOTIFY / "send.py"), path, *arguments]
            return subprocess.run(
                command, env=environment(), check=True, capture_output=True, text=True
            ).stdout.strip()

        wait_for(lambda: send("Test", "for all") == "2")
        assert send("Disk", "is <full>", "ann") == "1"
        assert send("Nobody", "is here", "eve") == "0"
        assert send("Last", "for all") == "2"
        for client, titles in ((ann, ["Disk", "Last"]), (bob, ["Last"])):
            for title in titles:
                while (said := receive(client)) == {"title": "Test", "text": "for all"}:
                    pass
                assert said["title"] == title
        assert stage.status("/notify/notify.ws")[0] == 401
    assert send("Nobody", "listens") == "0"
    with (
        stage.producer("notify/notify.ws", at="open.ws"),
        stage.connect("/open.ws") as nobody,
    ):
        assert close_of(nobody) == (1008, "log in first")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def cron_commands(path: Path) -> list[str]:
    """Return the commands of the file for cron, as cron would run them."""
    lines = (NOTIFY / "notify.cron").read_text().splitlines()
    commands = [line.split(maxsplit=6)[6] for line in lines if line[0] != "#"]
    assert not any("%" in command for command in commands), "the end of the line, to cron"
    program = f"{shlex.quote(sys.executable)} -m apachews"
    return [
        command.replace("apachews publish", f"{program} publish")
        .replace("/var/www/html/notify/notify.ws", str(path))
        .replace(">/dev/null", "")
        for command in commands
    ]


def test_a_notification_from_cron(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "df").write_text("#!/bin/sh\necho Use%\necho ' 97%'\n")
    (tmp_path / "df").chmod(0o755)
    lunch, disk = cron_commands(stage.path("notify/notify.ws"))

    def run(command: str, path: str = "/usr/bin:/bin") -> str:
        # As cron does: sh, and next to no environment.
        return subprocess.run(
            ["/bin/sh", "-c", command],
            env={"PATH": path, "HOME": "/", "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    with (
        stage.producer("notify/notify.ws"),
        stage.connect("/notify/notify.ws", "ann") as ann,
        stage.connect("/notify/notify.ws", "bob") as bob,
    ):
        wait_for(lambda: run(lunch) == "2 reached\n")
        assert run(disk, f"{tmp_path}:/usr/bin:/bin") == "1 reached\n"
        receive_until(ann, "title", "Lunch")
        assert receive_until(ann, "title", "Disk") == {"title": "Disk", "text": "/ is 97% full."}
        (tmp_path / "df").write_text("#!/bin/sh\necho Use%\necho ' 90%'\n")
        assert run(disk, f"{tmp_path}:/usr/bin:/bin") == "", "there is no news"
        run(lunch)
        receive_until(bob, "title", "Lunch")
        # Bob had no part in that.
        while True:
            try:
                assert json.loads(bob.recv(0))["title"] == "Lunch"
            except TimeoutError:
                break


@pytest.mark.skipif(not PHP, reason="no PHP: apt-get install php-cli")
def test_a_notification_from_a_page_in_php(stage: Stage) -> None:
    port = private_apache.free_port()
    url = f"http://127.0.0.1:{port}/order.php"
    server = subprocess.Popen(
        [str(PHP), "-S", f"127.0.0.1:{port}", "-t", str(NOTIFY)],
        env=environment(NOTIFY_SOCKET=str(stage.path("notify/notify.ws"))),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: answers(port), what=server.poll)
        assert "Order" in requests.get(url, timeout=DEADLINE_S).text

        def order(item: str) -> str:
            page = requests.post(url, data={"item": item}, timeout=DEADLINE_S)
            assert page.status_code == (200 if item else 422)  # after the redirect
            return page.text

        with (
            stage.producer("notify/notify.ws"),
            stage.connect("/notify/notify.ws", "ann") as ann,
            stage.connect("/notify/notify.ws", "bob") as bob,
        ):
            wait_for(lambda: "1 notified" in order("Tee & <Töpfe>"))
            assert receive(ann) == {"title": "New order", "text": "Tee & <Töpfe>"}
            assert "1 notified" in order(
                "\udcff".encode(errors="surrogateescape").decode("latin-1")
            )
            assert "Say what to send" in order("")
            with pytest.raises(TimeoutError):
                bob.recv(0)
        # An order succeeds without a producer to notify.
        assert "0 notified" in order("Tea")
    finally:
        server.terminate()
        _, stderr = server.communicate(timeout=DEADLINE_S)
    assert "No such file or directory" in stderr
    assert "Warning" not in stderr


@pytest.mark.skipif(not PHP, reason="no PHP: apt-get install php-cli")
def test_php_writes_lengths_as_the_wire_has_them(stage: Stage) -> None:
    program = """
        require $argv[1];
        foreach ([0, 125, 126, 65535, 65536, 200000] as $length)
            echo apachews_publish($argv[2], str_repeat('x', $length)), ' ';
        echo apachews_publish($argv[2], 'grüße', 'ann'), ' ';
        echo apachews_publish($argv[2], 'to nobody', str_repeat('y', 200));
    """
    path = str(stage.path("notify/notify.ws"))
    command = [str(PHP), "-r", program, str(NOTIFY / "publish.php"), path]
    with (
        stage.producer("notify/notify.ws"),
        stage.connect("/notify/notify.ws", "ann") as ann,
    ):
        wait_for(lambda: publish(path, "here?").reached == 1)
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        assert result.stdout == "1 1 1 1 1 1 1 0", result.stderr
        while (message := ann.recv(DEADLINE_S)) == "here?":
            pass
        lengths = [len(message)] + [len(ann.recv(DEADLINE_S)) for _ in range(5)]
        assert lengths == [0, 125, 126, 65535, 65536, 200000]
        assert ann.recv(DEADLINE_S) == "grüße"
    failed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert failed.returncode == 255
    assert f"{path}: No such file or directory" in failed.stdout + failed.stderr


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# Login.


def log_in(stage: Stage, user: str, password: str) -> tuple[int, str]:
    """Send the form; return the status, and the session cookie."""
    response = requests.post(
        stage.site.http("/login/app/login"),
        data={"name": user, "password": password},
        timeout=30,
    )
    return response.status_code, response.cookies.get("session") or ""


@needs_flask
@pytest.mark.parametrize("is_embedded", [False, True], ids=["daemon", "embedded"])
def test_flasks_session_lets_in(is_embedded: bool) -> None:
    with set_stage(is_embedded) as stage, stage.producer("login/session.ws"):
        refused = (401, "Log in first.\n")
        assert stage.status("/login/session.ws") == refused
        for user, password in (("ann", "other"), ("eve", ""), ("", "")):
            assert log_in(stage, user, password) == (403, "")
        status, cookie = log_in(stage, "ann", "secret")
        assert status == 200
        with stage.connect("/login/session.ws", cookie=cookie) as ann:
            assert receive(ann) == {"you": "ann", "here": ["ann"]}
            with stage.connect("/login/session.ws", cookie=log_in(stage, "bob", "other")[1]) as bob:
                assert receive(bob) == {"you": "bob", "here": ["ann", "bob"]}
                bob.send("hello")
                assert receive_until(ann, "from") == {"from": "bob", "text": "hello"}
            receive_until(ann, "here", ["ann"])
        # Changed, cut off, of nobody's, of another secret, of another time.
        payload, _, signature = cookie.partition(".")
        forged = base64.urlsafe_b64encode(b'{"_permanent":true,"user":"bob"}').decode().rstrip("=")
        wrong = [
            f"{forged}.{signature}",
            cookie[:-1],
            payload,
            "x",
            signed("another secret", {"user": "ann"}),
            signed(secret_of(stage), {"user": "ann"}, age_s=9 * 3600),
            signed(secret_of(stage), {}),
            signed(secret_of(stage), ["user"]),
        ]
        for value in wrong:
            assert stage.status("/login/session.ws", cookie=value) == refused
        assert not stage.site.log_lines("Traceback")


@needs_flask
def test_a_login_ends_and_its_websocket_with_it(stage: Stage) -> None:
    from examples.login.producer import SESSION_S

    with stage.producer("login/session.ws"):
        # Time for a handshake on a busy machine.
        cookie = signed(secret_of(stage), {"user": "ann"}, age_s=SESSION_S - DEADLINE_S)
        with stage.connect("/login/session.ws", cookie=cookie) as ann:
            assert receive(ann)["you"] == "ann"
            with pytest.raises(ConnectionClosed) as caught:
                ann.recv(3 * DEADLINE_S)
            assert caught.value.rcvd
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (
                1008,
                "the login has expired",
            )


@needs_flask
def test_apaches_own_login_lets_in(stage: Stage) -> None:
    with stage.producer("login/basic.ws"):
        assert stage.status("/login/basic.ws")[0] == 401
        with stage.connect("/login/basic.ws", "bob") as bob:
            assert receive(bob) == {"you": "bob", "here": ["bob"]}
    # Without Apache's login nobody is believed.
    with (
        stage.producer("login/basic.ws", at="open.ws"),
        stage.connect("/open.ws", "bob") as nobody,
    ):
        assert close_of(nobody) == (1008, "log in first")


@needs_flask
def test_no_page_of_another_site_uses_the_login(stage: Stage) -> None:
    _, cookie = log_in(stage, "ann", "secret")
    with stage.producer("login/session.ws"), RawClient(stage.site.dial("ws")) as client:
        headers = {"Cookie": f"session={cookie}", "Origin": "https://elsewhere.example"}
        client.send(request("/login/session.ws", **headers))
        assert client.read_head()[0] == 403
        headers["Origin"] = f"http://127.0.0.1:{stage.site.apache.port}"
    with stage.producer("login/session.ws"), RawClient(stage.site.dial("ws")) as client:
        headers["Host"] = headers["Origin"].removeprefix("http://")
        client.upgrade("/login/session.ws", **headers)


def secret_of(stage: Stage) -> str:
    return (stage.site.apache.root / "login.secret").read_text()


def signed(secret: str, value: object, age_s: float = 0.0) -> str:
    """Return a session cookie, as Flask itself writes it."""
    from flask import Flask
    from flask.sessions import SecureCookieSessionInterface

    app = Flask(__name__)
    app.secret_key = secret
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer
    with mock.patch("time.time", return_value=time.time() - age_s):
        text = serializer.dumps(value)
    return text if isinstance(text, str) else text.decode()
