"""Tunnels in numbers: stock Debian settings beside mod_proxy, reloads, memory.

``deploy/test -e stress -- tests/stress/test_tunnel.py`` runs all of it, and prints the figures.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from ..conftest import wait_for
from ..integration.test_doctor import doctor
from ..integration.test_tunnel import alias
from ..support.backends import echo_server
from ..support.crowd import crowd
from ..support.raw_client import RawClient, request
from ..support.site import MOD_PYTHON, Site, running_site
from .conftest import scaled

pytestmark = pytest.mark.skipif(
    MOD_PYTHON is not None, reason="tunnels are for mod_wsgi: mod_python's directive is FileInfo's"
)

# Debian's mpm_event.conf: MaxRequestWorkers, ThreadsPerChild.
WORKERS, THREADS = 150, 25
SOCKETS = scaled(2000, 200)
PAGES = scaled(5000, 200)
# Of pages with the sockets open to those before.  A few pages of a short run are noise.
MOST_RATIO = scaled(12, 30) / 10
# Below this, two p99 of one run differ without a cause.
NOISE_S = scaled(1, 200) / 10_000
# How long a page of the control may take before it counts as not answered.
HANGS_S = scaled(4, 1) / 2
# How much Apache may have for an idle tunnel.
MOST_KIB = 4

STATUS = """
LoadModule status_module "${MODULES}/mod_status.so"
<Location /server-status>
    SetHandler server-status
</Location>
"""
PROXY = """
LoadModule proxy_module "${{MODULES}}/mod_proxy.so"
LoadModule proxy_http_module "${{MODULES}}/mod_proxy_http.so"
ProxyPass /app http://127.0.0.1:{port} upgrade=websocket
"""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with echo_server(tmp_path_factory.mktemp("echo")) as port:
        yield port


def tunnel_to(port: int, *settings: str) -> str:
    return STATUS + alias("app", f"http://127.0.0.1:{port}", *settings)


# A process of its own: the sockets' clients would hold its interpreter's lock.
PAGES_PROGRAM = """
import http.client, math, sys, time
port, count = map(int, sys.argv[1:])
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
times = []
for _ in range(count + 1):
    begun_at = time.monotonic()
    connection.request("GET", "/index.html")
    response = connection.getresponse()
    response.read()
    assert response.status == 200
    times.append(time.monotonic() - begun_at)
print(sorted(times[1:])[math.ceil(count * 0.99) - 1])
"""


def p99_s(site: Site) -> float:
    """Return the 99th percentile of the times of many pages, on one connection."""
    command = [sys.executable, "-c", PAGES_PROGRAM, str(site.apache.port), str(PAGES)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def best_p99_s(site: Site) -> float:
    """Return the best of some runs: other programs use the machine."""
    return min(p99_s(site) for _ in range(scaled(5, 2)))


def busy_workers(site: Site) -> int:
    """Return how many workers are busy, besides the one that answers this."""
    text = requests.get(site.http("/server-status?auto"), timeout=10).text
    lines = (line.partition(": ") for line in text.splitlines())
    return next(int(value) for name, _, value in lines if name == "BusyWorkers") - 1


@pytest.mark.timeout(300)
def test_pages_are_as_fast_beside_thousands_of_tunnels(port: int) -> None:
    with running_site("event", WORKERS, THREADS, extra=tunnel_to(port)) as site:
        p99_s(site)  # what is loaded once
        alone = best_p99_s(site)
        # The clients and the backend cost processor time, too: the same without Apache.
        with crowd(site, SOCKETS, path="/app", round_s=60, tls=False, port=port):
            before = best_p99_s(site)
        # A round of all sockets in a minute: they are open, and nearly idle.
        with crowd(site, SOCKETS, path="/app", round_s=60, tls=False) as clients:
            assert clients.open_count == SOCKETS
            wait_for(lambda: busy_workers(site) == 0)
            with_them = best_p99_s(site)
            assert clients.open_count == SOCKETS
            assert (clients.report.faults, clients.report.closes) == ([], [])
        print(
            f"{SOCKETS} tunnels, {WORKERS} workers, none busy: p99 of a page"
            f" {with_them * 1000:.2f} ms; {before * 1000:.2f} ms with the sockets at the"
            f" backend itself; {alone * 1000:.2f} ms without sockets"
        )
        assert with_them <= before * MOST_RATIO + NOISE_S


@pytest.mark.timeout(300)
def test_mod_proxy_answers_no_page_beside_150_sockets(port: int) -> None:
    """The control: what the tunnel replaces, with a small Apache in the short run."""
    workers = scaled(WORKERS, THREADS)
    with (
        running_site("event", workers, THREADS, extra=PROXY.format(port=port)) as site,
        ExitStack() as stack,
    ):
        clients = []
        for _ in range(workers):
            client = stack.enter_context(RawClient(site.dial("ws")))
            client.send(request("/app"))
            clients.append(client)
        for client in clients:
            assert client.read_head()[0] == 101
        begun_at = time.monotonic()
        with pytest.raises(requests.Timeout):
            requests.get(site.http(), timeout=HANGS_S)
        print(
            f"mod_proxy: {workers} sockets hold {workers} workers, no page in"
            f" {time.monotonic() - begun_at:.1f} s"
        )
        for client in clients:
            client.socket.close()
        wait_for(lambda: requests.get(site.http(), timeout=10).ok)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mpm", ["event", "worker", "prefork"])
def test_reloads_with_proxied_sockets(
    mpm: str, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of reloads after which the doctor says that httpd stops, for each MPM."""
    places = 3
    limit = "" if mpm == "prefork" else f"ServerLimit {places}\n"
    with running_site(mpm, 2 * THREADS, THREADS, extra=limit + PROXY.format(port=port)) as site:
        _, (found,) = doctor(capsys, site.apache)
        told = "after 2 to 3 reloads" if mpm == "event" else "with or without reloads"
        assert told in found["when"]
        with ExitStack() as stack:
            answered = 0
            while answered <= places and _has_page(site):
                client = stack.enter_context(RawClient(site.dial("ws")))
                client.send(request("/app"))
                assert client.read_head()[0] == 101
                reload_with_old_children(site)
                answered += 1
        # One old child for each reload: the last one leaves event without a place.
        assert answered == (places if mpm == "event" else places + 1)
        wait_for(lambda: _has_page(site))


def reload_with_old_children(site: Site) -> None:
    """Reload, and wait until httpd has begun its work; old children may remain."""
    site.settle()
    begins = site.apache.error_log.count("-- resuming normal operations")
    site.apache.graceful()
    wait_for(lambda: site.apache.error_log.count("-- resuming normal operations") > begins)


def _has_page(site: Site) -> bool:
    # httpd starts children once a second, after those that have ended.
    try:
        return requests.get(site.http(), timeout=20).ok
    except requests.Timeout:
        return False


@pytest.mark.timeout(600)
def test_reloads_drop_no_tunnel(port: int) -> None:
    """All clients echo all the time, half of them by wss."""
    count, rounds = scaled(500, 50), scaled(20, 2)
    with (
        running_site("event", WORKERS, THREADS, extra=tunnel_to(port)) as site,
        crowd(site, count, path="/app", round_s=scaled(10, 2) / 10) as clients,
    ):
        clients.wait_for_everybody(60)
        for _ in range(rounds):
            site.renew(60)
            clients.wait_for_everybody(60)
        clients.fall_silent(60)
        report = clients.report
        print(
            f"{count} tunnels, half of them wss, {rounds} reloads: {report.echoes} echoes,"
            f" {report.lost} lost, {len(report.closes)} dropped, longest wait"
            f" {report.longest_stall_s * 1000:.0f} ms; {len(site.custodians())} custodians,"
            f" {len(site.relays())} relays"
        )
        assert clients.open_count == count
        assert (report.faults, report.closes, report.lost) == ([], [], 0)


@contextlib.contextmanager
def idle_tunnels(site: Site, count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(RawClient(site.dial("ws")))
            client.upgrade("/app")
        yield


def pss_kib(pids: list[int]) -> int:
    """Return the memory of processes; what they share is divided between them."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


@pytest.mark.timeout(300)
def test_memory_of_an_idle_tunnel(port: int) -> None:
    extra = tunnel_to(port, "SetEnv APACHEWS_PING_INTERVAL off")
    with running_site("event", THREADS, THREADS, extra=extra) as site:
        with idle_tunnels(site, 100):  # what is loaded once
            pass
        wait_for(lambda: site.log_lines("closed by client"))
        with idle_tunnels(site, 100):
            before = pss_kib(site.apache.children())
            with idle_tunnels(site, SOCKETS):
                each = (pss_kib(site.apache.children()) - before) / SOCKETS
        print(f"{each:.2f} KiB of Apache's memory for each of {SOCKETS} idle tunnels")
        # A page of memory here and there is much among few connections.
        assert each <= MOST_KIB * scaled(10, 15) / 10
