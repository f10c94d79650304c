"""How much slower pages are while handshakes that are refused come again.

Clients come again at once, which loads the processor with any answer, or when the 503's
``Retry-After`` says so.  Prints the 99th percentile of the time for a page, as a ratio to that
without such clients.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from ..integration.test_waiting_handshakes import CLIENTS, DIRECTIVES, PAGE_S, WORKERS, silent
from ..support.site import Site, running_site
from .conftest import scaled

ROOT = Path(__file__).parents[2]


def p99_s(site: Site, pages: int) -> float:
    """Fetch pages, each by a connection of its own; return the 99th percentile of their times."""
    took_s = []
    for _ in range(pages):
        begun_at = time.monotonic()
        requests.get(site.http(), timeout=30).raise_for_status()
        took_s.append(time.monotonic() - begun_at)
    return sorted(took_s)[len(took_s) * 99 // 100]


# In a process of its own, because the threads of one process wait for each other.
ATTACKERS = """
import sys, threading, time
from tests.support.raw_client import RawClient, dial_tcp, request

port, path, clients, pause = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
statuses = []

def repeat():
    while True:
        with RawClient(dial_tcp(port)) as client:
            client.send(request(path))
            status, headers = client.read_head()
        statuses.append(status)
        time.sleep(float(headers["retry-after"] if pause == "Retry-After" else pause))

for _ in range(clients):
    threading.Thread(target=repeat, daemon=True).start()
print("begun", flush=True)
sys.stdin.read()
print(len(statuses), *set(statuses), flush=True)
"""


class Attackers:
    """Clients that repeat a request.

    Args:
        pause: seconds after an answer, or ``Retry-After``.

    Attributes:
        answers: how many they got, once they have ended.
        statuses: of these.
    """

    def __init__(self, site: Site, path: str, pause: str) -> None:
        self.answers = 0
        self.statuses: set[int] = set()
        self._arguments = [str(site.apache.port), path, str(CLIENTS), pause]

    def __enter__(self) -> Attackers:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ATTACKERS, *self._arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == b"begun\n"
        return self

    def __exit__(self, *_: object) -> None:
        said = self._process.communicate(timeout=30)[0]
        count, *statuses = map(int, said.split())
        self.answers, self.statuses = count, set(statuses)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mpm", ["event", "prefork"])
def test_pages_beside_handshakes_that_come_again(mpm: str) -> None:
    pages = scaled(3000, 200)
    with (
        running_site(mpm, workers=WORKERS, threads=WORKERS, extra=DIRECTIVES) as site,
        silent(site.docroot / "silent.ws"),
    ):
        p99_s(site, 200)
        alone_s = p99_s(site, pages)
        for what, path, pause in (
            ("at once", "/silent.ws", "0"),
            ("at once, for a page that is missing", "/missing.html", "0"),
            ("after 1 s", "/silent.ws", "1"),
            ("as Retry-After says", "/silent.ws", "Retry-After"),
        ):
            began_at = time.monotonic()
            with Attackers(site, path, pause) as attackers:
                among_s = p99_s(site, pages)
            rate = attackers.answers / (time.monotonic() - began_at)
            print(
                f"{mpm}: {CLIENTS} clients that come again {what}, {rate:.0f} answers a second:"
                f" p99 of {pages} pages {among_s * 1000:.1f} ms, alone {alone_s * 1000:.1f} ms,"
                f" ratio {among_s / alone_s:.2f}"
            )
            assert attackers.statuses <= {503, 404}
            assert attackers.answers
            assert among_s < PAGE_S
