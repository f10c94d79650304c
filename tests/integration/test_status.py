"""The status, asked of real Apaches: all processes are in it, and none that has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from apachews.monitoring.collect import find_apaches
from apachews.monitoring.snapshot import CHILD, CUSTODIAN, Status
from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from ..support.crowd import crowd
from ..support.frames import masked
from ..support.raw_client import RawClient
from ..support.site import ROOT, Site, running_site
from .conftest import MPMS

PAGE = "/websocket-status"
# (private.conf has the page itself.)
EXTRA = """
<IfDefine WSGI_MODULE>
    WSGIScriptAlias /private-status "${APACHEWS_HANDLER}/status_page.py" \\
        process-group=%{GLOBAL} application-group=%{GLOBAL}
</IfDefine>
<Location /private-status>
    Require all denied
</Location>
"""


def status_of(site: Site) -> Status:
    answer = requests.get(site.http(f"{PAGE}?json"), timeout=10)
    assert answer.status_code == 200, answer.text
    return Status.decode(answer.content)


def asked_directly(site: Site) -> Status:
    """Ask as ``apachews status`` does."""
    (apache,) = (found for found in find_apaches() if found.pid == site.apache.pid)
    return apache.collect()


def when(
    site: Site, condition: Callable[[Status], bool], ask: Callable[[Site], Status] = status_of
) -> Status:
    """Return the status for which the condition holds."""
    seen: list[Status] = []

    def holds() -> bool:
        seen.append(ask(site))
        return condition(seen[-1])

    wait_for(holds, 20, lambda: seen[-1])
    return seen[-1]


@pytest.fixture(params=MPMS)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with running_site(request.param, workers=20, threads=10, extra=EXTRA) as site:
        yield site


@contextlib.contextmanager
def open_clients(site: Site, count: int) -> Iterator[list[RawClient]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RawClient(site.dial("ws"))).upgrade() for _ in range(count)]


def test_processes_come_and_go(site: Site) -> None:
    """Nothing at first; children; a custodian after a reload; none that was killed."""
    empty = status_of(site)
    assert (empty.processes, empty.silent) == ((), ())
    page = requests.get(site.http(PAGE), timeout=10)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert requests.get(site.http("/private-status"), timeout=10).status_code == 403
    assert requests.post(site.http(PAGE), timeout=10).status_code == 405

    with crowd(site, 12) as old:
        old.wait_for_echoes(50)
        before = when(site, lambda status: status.connections_count == 12)
        assert {process.kind for process in before.processes} == {CHILD}
        assert {process.pid for process in before.processes} <= set(site.apache.children())
        site.renew()
        with crowd(site, 8) as new:
            new.wait_for_echoes(50)
            echoes = old.report.echoes
            both = when(site, lambda status: status.connections_count == 20)
            check_both(site, before, both, echoes)
            assert old.report.faults == new.report.faults == []
            # Root, from outside, sees the same processes.
            direct = when(site, lambda status: status.connections_count == 20, asked_directly)
            assert [p.pid for p in direct.processes] == [p.pid for p in both.processes]
            check_metrics(site, both)
            victims = [p.pid for p in both.processes if p.kind == CHILD]
            site.expected_harm = "exit signal Killed"
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            rest = when(site, lambda status: status.connections_count == 12)
            assert {process.kind for process in rest.processes} == {CUSTODIAN}
            assert not set(victims) & {*rest.silent, *(p.pid for p in rest.processes)}
        old.fall_silent()
    wait_for(lambda: not site.custodians())
    when(site, lambda status: all(process.kind == CHILD for process in status.processes))


def check_both(site: Site, before: Status, status: Status, echoes: int) -> None:
    assert status.silent == ()
    custodians = {p.pid: p for p in status.processes if p.kind == CUSTODIAN}
    assert set(custodians) == set(site.custodians())
    assert sum(p.connections_count for p in custodians.values()) == 12
    (endpoint,) = status.endpoints()
    assert endpoint.path == str(site.docroot / "echo.ws")
    assert endpoint.open == 20
    # The totals of a custodian that gave its clients to the oldest one have ended with it.
    if len(custodians) == len(before.processes):
        assert endpoint.total == 20
        # Every answer that came was counted, in the child as in what became of it.
        assert endpoint.messages_out >= echoes
        assert endpoint.messages_in >= endpoint.messages_out
    assert {c.scheme for _, c in status.connections()} == {"ws", "wss"}
    assert {(c.path, c.address) for _, c in status.connections()} == {("/echo.ws", "127.0.0.1")}


def check_metrics(site: Site, status: Status) -> None:
    answer = requests.get(site.http(f"{PAGE}?metrics"), timeout=10)
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    connections = families["apachews_connections"]
    assert sum(sample.value for sample in connections.samples) == 20
    assert {s.labels["pid"] for s in connections.samples} == {
        str(process.pid) for process in status.processes
    }


@pytest.fixture(scope="module")
def event() -> Iterator[Site]:
    with running_site("event", extra=EXTRA) as site:
        yield site


def test_asking_leaves_no_descriptor(event: Site) -> None:
    with open_clients(event, 3):
        when(event, lambda status: status.connections_count == 3)
        before = event.descriptors()
        for _ in range(30):
            status_of(event)
            asked_directly(event)
        wait_for(lambda: event.descriptors() <= before, what=event.descriptors)
    wait_for(lambda: status_of(event).connections_count == 0)


def test_nobodys_messages_query_or_cookies_are_in_it(event: Site) -> None:
    with RawClient(event.dial("ws")) as client:
        client.upgrade(
            "/echo.ws?token=sesame", Cookie="session=open", Referer="http://localhost/?x"
        )
        client.send(masked(0x81, b"a secret"))
        assert client.read_data_frame() == (0x81, b"a secret")
        status = when(event, lambda status: status.connections_count == 1)
        ((_, connection),) = status.connections()
        assert (connection.messages_in, connection.bytes_out) == (1, 8)
        for query in ("json", "metrics"):
            text = requests.get(event.http(f"{PAGE}?{query}"), timeout=10).text
            for word in ("sesame", "session", "secret", "/?x"):
                assert word not in text
    wait_for(lambda: status_of(event).connections_count == 0)


def test_the_command_line_asks_the_processes_or_the_page(event: Site) -> None:
    with open_clients(event, 2):
        when(event, lambda status: status.connections_count == 2)
        for apache in (str(event.apache.pid), event.http(PAGE)):
            command = [sys.executable, "-m", "apachews", "status", "--apache", apache]
            done = subprocess.run(
                [*command, "--json"], cwd=ROOT, capture_output=True, check=True, timeout=60
            )
            assert Status.decode(done.stdout).connections_count == 2
            shown = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
            ).stdout
            assert f"Apache {event.apache.pid}: 2 connections (2 open" in shown
            assert shown.count("/echo.ws") == 3
    wait_for(lambda: status_of(event).connections_count == 0)


def test_closes_are_counted_by_code(event: Site) -> None:
    with RawClient(event.dial("ws")) as client:
        client.upgrade()
        client.send(masked(0x88, (3003).to_bytes(2, "big")))
        assert client.read_close() == 3003
    status = when(event, lambda status: "3003" in status.total().closes)
    assert status.connections_count == 0


def test_where_the_directory_cannot_be_used_all_else_works(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = private_apache.as_apache_user().get("user", os.geteuid())
    (short_path / f"apachews-{user}").touch()  # it should be a directory
    short_path.chmod(0o777)
    monkeypatch.setenv("TMPDIR", str(short_path))
    with running_site("event", extra=EXTRA) as site, open_clients(site, 2) as clients:
        for client in clients:
            client.send(masked(0x81, b"x"))
            assert client.read_data_frame() == (0x81, b"x")
        assert requests.get(site.http(f"{PAGE}?json"), timeout=10).status_code == 500
        (line,) = site.log_lines("is not in the status")
        assert f"apachews-{user}: it belongs to another user" in line
        assert len(site.log_lines("the status cannot be collected: ")) == 1
