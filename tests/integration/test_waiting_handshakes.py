"""Handshakes that wait for a producer leave Apache's workers to the pages."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from apachews import Event
from apachews.monitoring.collect import TIMEOUT_S as STATUS_S
from apachews_handler.shared.waiting import MAX_COLLECTING
from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from ..support.producers import program, running
from ..support.raw_client import RawClient, request
from ..support.site import IS_ROOT, Site, running_site

WORKERS = 25
CLIENTS = 40
# Handshakes wait until a test ends their wait, however slow the machine is.
TIMEOUT_S = 60.0
BRIEF_S = 0.2
# A page takes some milliseconds.  It took as long as the handshakes wait without a bound.
PAGE_S = 5.0
PAGES = 50
# A quarter of the workers that httpd keeps idle: of all 25 (MinSpareThreads is 75), or of
# MinSpareServers, which is 5.
WAITING = {"event": 7, "prefork": 2}

DIRECTIVES = f"""
SetEnv APACHEWS_CONNECT_TIMEOUT {TIMEOUT_S:g}s
<LocationMatch "/([0-9]?silent|prompt|brief-silent)\\.ws$">
    SetEnv APACHEWS_ACCEPT producer
</LocationMatch>
<LocationMatch "/brief-">
    SetEnv APACHEWS_CONNECT_TIMEOUT {BRIEF_S * 1000:g}ms
</LocationMatch>
"""

# Accepts connections with a small backlog, and reads nothing from them.
SMALL_BACKLOG = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    os.chmod(sys.argv[1], 0o666)
    listener.listen(2)
    kept = []
    while True:
        kept.append(listener.accept()[0])
"""


# Children that httpd starts at its own pace, so that each has its idle workers.
CHILDREN = {"event": 1, "prefork": 5}


@pytest.fixture(scope="module", params=["event", "prefork"])
def mpm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def waiting_site(mpm: str) -> Iterator[Site]:
    with running_site(mpm, workers=WORKERS, threads=WORKERS, extra=DIRECTIVES) as site:
        yield site


# Ends the wait of the handshakes that have a place.
EndWait = Callable[[], None]


@contextlib.contextmanager
def stopped(path: Path, directory: Path) -> Iterator[EndWait]:
    """Run a producer, stop it with SIGSTOP, and fill its backlog; it continues at the end."""
    with running(program(directory, SMALL_BACKLOG), str(path)) as process:
        wait_for(path.exists)
        wait_for(lambda: _connects(path))
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: _is_stopped(process.pid))
        with contextlib.ExitStack() as pending:
            while True:
                client = pending.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                try:
                    client.connect(str(path))
                except BlockingIOError:
                    break
            try:
                yield lambda: process.send_signal(signal.SIGCONT)
            finally:
                path.unlink()


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextlib.contextmanager
def silent(path: Path) -> Iterator[EndWait]:
    """Run a program that accepts connections and never answers a handshake; it leaves at the end.

    (The kernel accepts them for it.)
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(2 * CLIENTS)
        try:
            yield listener.close
        finally:
            path.unlink()


@contextlib.contextmanager
def silent_port(path: Path) -> Iterator[EndWait]:
    """Like ``silent``, with the socket file of a loopback port."""
    with socket.create_server(("127.0.0.1", 0), backlog=2 * CLIENTS) as listener:
        path.write_text(f"apachews-loopback 1 {listener.getsockname()[1]} {'0' * 64}\n")
        path.chmod(0o640)
        if IS_ROOT:
            shutil.chown(path, group=private_apache.APACHE_USER)
        try:
            yield listener.close
        finally:
            path.unlink()


@dataclass
class Attempt:
    """The answer to one handshake."""

    status: int
    headers: dict[str, str]
    after_s: float

    @property
    def is_surplus(self) -> bool:
        """Tell whether the client was refused because too many handshakes waited."""
        return self.headers.get("apachews-refused") == "waiting-limit"


class Attack:
    """Clients that try one handshake each, all at the same time."""

    def __init__(self, site: Site, path: str, clients: int = CLIENTS) -> None:
        self.attempts: list[Attempt] = []
        self._site = site
        self._path = path
        self._threads = [threading.Thread(target=self._try) for _ in range(clients)]

    def __enter__(self) -> Attack:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    @property
    def surplus(self) -> list[Attempt]:
        return [one for one in list(self.attempts) if one.is_surplus]

    @property
    def waited(self) -> list[Attempt]:
        return [one for one in list(self.attempts) if not one.is_surplus]

    def _try(self) -> None:
        begun_at = time.monotonic()
        with RawClient(self._site.dial("ws")) as client:
            client.send(request(self._path))
            status, headers = client.read_head()
        self.attempts.append(Attempt(status, headers, time.monotonic() - begun_at))


def fetch_pages(site: Site) -> float:
    """Fetch pages, each by a connection of its own; return how long the slowest took."""
    slowest_s = 0.0
    for _ in range(PAGES):
        begun_at = time.monotonic()
        requests.get(site.http(), timeout=2 * TIMEOUT_S).raise_for_status()
        slowest_s = max(slowest_s, time.monotonic() - begun_at)
    return slowest_s


def warm_up(site: Site, mpm: str) -> None:
    """Wait for httpd's idle workers, and have handshakes prepare their children."""
    wait_for(lambda: len(site.apache.children()) >= CHILDREN[mpm])
    with Attack(site, "/echo.ws"):
        pass


def check(site: Site, mpm: str, path: str, end_wait: EndWait, status: int) -> None:
    """Attack an endpoint, and then end the wait.

    Args:
        status: for those that waited.
    """
    warm_up(site, mpm)
    with Attack(site, path) as attack:
        try:
            # Some wait, and the surplus has its answer.
            wait_for(lambda: len(attack.surplus) >= CLIENTS // 2)
            assert fetch_pages(site) < PAGE_S
            wait_for(lambda: len(attack.surplus) == CLIENTS - WAITING[mpm])
            assert not attack.waited
        finally:
            end_wait()
    assert {one.status for one in attack.surplus} == {503}
    assert {one.headers["retry-after"] for one in attack.surplus} == {"5"}
    # Those that had a place waited for the producer, which could have come back.
    assert [one.status for one in attack.waited] == [status] * WAITING[mpm]
    refused = site.log_lines(rf"apachews: 503 .* for {path}: .*APACHEWS_MAX_WAITING")
    assert len(refused) == len(attack.surplus)


def test_a_stopped_producer_with_a_full_backlog(
    waiting_site: Site, mpm: str, short_path: Path
) -> None:
    with stopped(waiting_site.docroot / "stopped.ws", short_path) as proceed:
        check(waiting_site, mpm, "/stopped.ws", proceed, 101)


def test_a_program_that_does_not_answer(waiting_site: Site, mpm: str) -> None:
    with silent(waiting_site.docroot / "silent.ws") as leave:
        check(waiting_site, mpm, "/silent.ws", leave, 503)


def test_a_loopback_port_whose_owner_does_not_answer(waiting_site: Site, mpm: str) -> None:
    with silent_port(waiting_site.docroot / "port.ws") as leave:
        check(waiting_site, mpm, "/port.ws", leave, 503)


def test_a_wait_ends_in_time(waiting_site: Site, short_path: Path) -> None:
    """The first of many waits, so the others test only that it does not wait for less."""
    docroot = waiting_site.docroot
    with (
        stopped(docroot / "brief-stopped.ws", short_path),
        silent(docroot / "brief-silent.ws"),
        silent_port(docroot / "brief-port.ws"),
    ):
        for name, token, reason in (
            ("stopped", "backlog-full", "backlog stayed full"),
            ("silent", "no-answer", "did not answer within"),
            ("port", "no-answer", "did not answer within"),
        ):
            path = f"/brief-{name}.ws"
            with Attack(waiting_site, path, clients=1) as attack:
                pass
            (one,) = attack.attempts
            assert (one.status, one.headers["apachews-refused"]) == (503, token)
            assert BRIEF_S <= one.after_s < TIMEOUT_S / 2
            assert waiting_site.log_lines(rf"apachews: 503 .* for {path}: .*{reason}")


def test_many_endpoints_that_stopped_at_once(waiting_site: Site, mpm: str) -> None:
    warm_up(waiting_site, mpm)
    with contextlib.ExitStack() as stack:
        leave = [
            stack.enter_context(silent(waiting_site.docroot / f"{number}silent.ws"))
            for number in range(10)
        ]
        attacks = [
            stack.enter_context(Attack(waiting_site, f"/{number}silent.ws", CLIENTS // 10))
            for number in range(10)
        ]
        try:
            wait_for(lambda: sum(len(attack.surplus) for attack in attacks) >= CLIENTS // 3)
            assert fetch_pages(waiting_site) < PAGE_S
            assert not any(attack.waited for attack in attacks)
        finally:
            for end_wait in leave:
                end_wait()


def test_a_status_that_waits_for_a_process_that_hangs(waiting_site: Site, mpm: str) -> None:
    answers: list[tuple[requests.Response, float]] = []

    def ask() -> None:
        begun_at = time.monotonic()
        response = requests.get(waiting_site.http("/websocket-status?json"), timeout=30)
        answers.append((response, time.monotonic() - begun_at))

    warm_up(waiting_site, mpm)
    with RawClient(waiting_site.dial("ws")).upgrade():
        waiting_site.renew()
        warm_up(waiting_site, mpm)
        custodian = wait_for(waiting_site.custodians)[0]
        os.kill(custodian, signal.SIGSTOP)
        try:
            threads = [threading.Thread(target=ask) for _ in range(CLIENTS // 2)]
            for thread in threads:
                thread.start()
            wait_for(lambda: len(answers) >= CLIENTS // 4)
            assert fetch_pages(waiting_site) < STATUS_S / 2
            for thread in threads:
                thread.join()
        finally:
            os.kill(custodian, signal.SIGCONT)
    collected = [response.json() for response, _ in answers if response.status_code == 200]
    assert len(collected) == MAX_COLLECTING
    assert all(custodian in status["silent"] for status in collected)
    refused = [(response, took_s) for response, took_s in answers if response.status_code == 503]
    assert len(refused) == len(answers) - MAX_COLLECTING
    assert {response.headers["Retry-After"] for response, _ in refused} == {"5"}
    # The surplus had its answer while the others collected.
    assert [response.status_code for response, _ in answers[: len(refused)]] == [503] * len(refused)
    assert max(took_s for _, took_s in refused) < STATUS_S
    wait_for(lambda: not waiting_site.custodians())


def accept(event: Event) -> None:
    """Let every client in."""
    if event.type() is Event.Accept:
        event.accept()


def test_handshakes_that_are_answered_are_not_refused(waiting_site: Site) -> None:
    with waiting_site.producer("prompt.ws", accept), Attack(waiting_site, "/prompt.ws") as attack:
        pass
    assert [one.status for one in attack.attempts] == [101] * CLIENTS


def test_a_burst_that_one_thread_answers_in_turn_is_not_refused(waiting_site: Site) -> None:
    """The last of them waits for longer than a surplus handshake of a stopped producer."""
    has_time = threading.Event()

    def accept_slowly(event: Event) -> None:
        if event.type() is Event.Accept:
            has_time.wait(0.06)  # never set: the time that an answer needs
            event.accept()

    with (
        waiting_site.producer("prompt.ws", accept_slowly),
        Attack(waiting_site, "/prompt.ws") as attack,
    ):
        pass
    assert [one.status for one in attack.attempts] == [101] * CLIENTS


def test_a_program_that_answers_again_has_its_handshakes(waiting_site: Site) -> None:
    with (
        silent(waiting_site.docroot / "silent.ws") as leave,
        Attack(waiting_site, "/silent.ws") as attack,
    ):
        try:
            wait_for(lambda: len(attack.surplus) >= CLIENTS // 2)
        finally:
            leave()
    with (
        waiting_site.producer("silent.ws", accept),
        Attack(waiting_site, "/silent.ws", clients=1) as attack,
    ):
        pass
    assert [one.status for one in attack.attempts] == [101]
