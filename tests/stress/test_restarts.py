"""Restarts of both kinds under load, again and again; and what mod_proxy makes of them.

``deploy/test -e restarts`` runs all of it, half an hour on two cores, and prints the figures
that docs/howto/operations.md quotes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from apachews import wire

from ..conftest import let_pass, wait_for
from ..support.brokers import free_port
from ..support.crowd import crowd, plain_http, wait_for_answer
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import Site, private_mib, running_site
from .conftest import scaled


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mpm", ["event", "worker", "prefork"])
def test_graceful_restarts_of_apache(mpm: str) -> None:
    """Thousands of clients through a hundred restarts, and some more with each of them."""
    count, rounds = scaled(5000 if mpm == "event" else 1000, 100), scaled(100, 3)
    with running_site(mpm, workers=20, threads=10) as site:
        before = len(site.apache.children())
        with crowd(site, count, round_s=scaled(count * 2, 100) / 1000) as clients:
            clients.wait_for_echoes(count)
            most = longest_s = 0.0
            with plain_http(site) as answers:
                for _ in range(rounds):
                    clients.join(4)
                    longest_s = max(longest_s, site.renew(60))
                    most = max(most, len(site.apache.children()))
                    wait_for_answer(answers)
                clients.wait_for_echoes(count)
            clients.fall_silent(60)
            report = clients.report
            custodians = site.custodians()
            own = sorted(private_mib(pid) for pid in custodians)
            print(
                f"{mpm}: {count + 4 * rounds} clients, half of them wss, {rounds} graceful"
                f" restarts: {report.echoes} echoes, {len(report.faults)} faults,"
                f" {len(report.closes)} dropped; longest stall {report.longest_stall_s * 1000:.0f}"
                f" ms; old children gone after {longest_s:.1f} s at most; at most {most:.0f}"
                f" children ({before} before); {len(answers)} pages, the slowest after"
                f" {max(answers):.2f} s; {len(custodians)} custodians with"
                f" {own[0]:.1f} to {own[-1]:.1f} MiB of their own"
            )
            assert (report.faults, report.closes) == ([], [])
            assert clients.open_count == count + 4 * rounds
            assert most <= before + 1  # httpd may have a spare one for a moment
        wait_for(lambda: not site.carriers(), 30)


# What docs/explanation/how-it-works.md gives for one idle connection, KiB: plain, and with TLS.
PLAIN_KIB, TLS_KIB = 4, 18


@pytest.mark.timeout(3600)
def test_reloads_do_not_pile_up_processes() -> None:
    """A day of reloads in minutes, with clients that leave and come, so that each has some."""
    count, rounds, turnover = scaled(1000, 40), scaled(136, 6), 8
    with (
        running_site("event", workers=20, threads=10) as site,
        crowd(site, count, round_s=scaled(5000, 500) / 1000) as clients,
    ):
        clients.wait_for_echoes(count)
        for _ in range(rounds):
            clients.join(turnover)
            clients.leave(turnover)
            site.renew(60)
        clients.wait_for_everybody(60)
        clients.fall_silent(60)
        wait_until_settled(site)
        let_pass(scaled(30, 1))  # a keep-alive PING, after which a custodian asks all at once
        custodians, relays = site.custodians(), site.relays()
        processes = custodians + relays
        sizes = sorted(pss_mib(pid) for pid in relays)
        own_mib = count * (PLAIN_KIB + TLS_KIB) / 2 / 1024
        above_mib = sum(pss_mib(pid) for pid in processes) - own_mib
        began_at, before_s = time.monotonic(), processor_s(processes)
        let_pass(scaled(60, 5))
        idle = (processor_s(processes) - before_s) / (time.monotonic() - began_at)
        report = clients.report
        print(
            f"{count} clients, half of them wss, {turnover} leave and come before each of"
            f" {rounds} reloads: {report.echoes} echoes, {len(report.faults)} faults,"
            f" {len(report.closes)} dropped; {len(custodians)} custodians with"
            f" {sum(map(pss_mib, custodians)):.0f} MiB (PSS), {len(relays)} relays with"
            f" {sizes[0]:.1f} to {sizes[-1]:.1f}, {above_mib:.0f} MiB above the connections' own;"
            f" idle {idle:.2%} of a"
            f" core; longest stall {report.longest_stall_s * 1000:.0f} ms"
        )
        assert (report.faults, report.closes) == ([], [])
        assert clients.open_count == count
        # A relay for each child that had clients with TLS; all sessions are with a custodian.
        assert len(custodians) <= 2
        assert len(relays) <= 2 * rounds
        assert above_mib < 3.2 * len(processes) + 20
        assert idle < 0.01


def wait_until_settled(site: Site) -> None:
    """Wait until the processes have stayed the same for some seconds."""
    seen: tuple[float, object] = (0.0, None)

    def is_settled() -> bool:
        nonlocal seen
        processes = site.custodians(), site.relays()
        if processes != seen[1]:
            seen = (time.monotonic(), processes)
        return time.monotonic() - seen[0] > 5

    wait_for(is_settled, 60)


def pss_mib(pid: int) -> float:
    """Return the memory of a process, of shared pages its share, MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def processor_s(pids: list[int]) -> float:
    """Return the processor time that processes of one thread have used, seconds."""
    # proc(5): schedstat, in nanoseconds; stat's ticks miss what sleeps most of the time.
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


PROXY = """
LoadModule proxy_module ${{MODULES}}/mod_proxy.so
LoadModule proxy_http_module ${{MODULES}}/mod_proxy_http.so
LoadModule proxy_wstunnel_module ${{MODULES}}/mod_proxy_wstunnel.so
ProxyPass /proxied ws://127.0.0.1:{port}/
ProxyTimeout 600
"""
ECHO_SERVER = """
import asyncio, sys
from websockets.asyncio.server import serve
async def echo(socket):
    async for message in socket:
        await socket.send(message)
async def main():
    async with serve(echo, "127.0.0.1", int(sys.argv[1])) as server:
        print("listening", flush=True)
        await server.serve_forever()
asyncio.run(main())
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", ["/proxied", "/echo.ws"])
def test_mod_proxy_and_apachews_side_by_side(path: str) -> None:
    """Debian's 150 workers; a few clients come before each reload, and stay."""
    rounds, joining = scaled(25, 3), 4
    # A page of mod_proxy may never come; a busy machine gets time for ours.
    timeout_s = 5 if path == "/proxied" else 30
    port = free_port()
    with ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", ECHO_SERVER, str(port)], stdout=subprocess.PIPE)
        )
        stack.callback(server.kill)
        assert server.stdout
        server.stdout.readline()
        site = stack.enter_context(
            running_site("event", workers=150, threads=25, extra=PROXY.format(port=port))
        )
        clients = stack.enter_context(crowd(site, joining, path, round_s=0.1))
        lines = []
        for number in range(1, rounds + 1):
            let_pass(1.0)
            site.apache.graceful()
            let_pass(1.5)
            try:
                begun_at = time.monotonic()
                requests.get(site.http(), timeout=timeout_s)
                page = f"{(time.monotonic() - begun_at) * 1000:.0f} ms"
            except requests.RequestException:
                page = f"none in {timeout_s} s"
            lines.append(
                f"  reload {number}: {len(site.apache.children())} children,"
                f" {clients.open_count} sockets, a page: {page}"
            )
            if page.startswith("none"):
                break
            with contextlib.suppress(Exception):
                clients.join(joining, 10)
        print(f"{path}, {joining} more clients before each reload")
        print("\n".join(lines))
        if path == "/echo.ws":
            assert "none" not in lines[-1]
            wait_for(lambda: len(site.apache.children()) <= 6, 30)


class Mortal:
    """An echo that is killed and started again."""

    def __init__(self, site: Site, name: str = "mortal.ws") -> None:
        self._site = site
        self._name = name
        self._stack = ExitStack()
        self._process = self._stack.enter_context(site.echo_process(name))

    def __enter__(self) -> Mortal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        self._stack.close()
        self._process = self._stack.enter_context(self._site.echo_process(self._name))


@pytest.mark.timeout(1800)
def test_a_producer_is_killed_again_and_again() -> None:
    count, rounds = scaled(500, 50), scaled(100, 3)
    with (
        running_site("event", workers=20, threads=10) as site,
        Mortal(site) as producer,
        crowd(site, count, "/mortal.ws", round_s=0.2, may_lose=True) as clients,
    ):
        for _ in range(rounds):
            clients.wait_for_echoes(count)
            producer.kill()
            producer.start()
        clients.wait_for_everybody(60)
        report = clients.report
        print(
            f"{count} clients, their producer killed {rounds} times: {report.echoes} echoes,"
            f" {report.lost} lost with it, {len(report.faults)} twice or out of order,"
            f" {len(report.closes)} dropped; longest stall {report.longest_stall_s:.2f} s"
        )
        assert (report.faults, report.closes) == ([], [])
        assert clients.open_count == count


@pytest.mark.timeout(600)
def test_many_clients_are_resumed_at_once() -> None:
    count = scaled(5000, 200)
    with (
        running_site("event", workers=20, threads=10) as site,
        Mortal(site) as producer,
        crowd(site, count, "/mortal.ws", round_s=1.0, may_lose=True) as clients,
    ):
        clients.wait_for_everybody(60)
        producer.kill()
        let_pass(1.0)
        begun_at = time.monotonic()
        producer.start()
        clients.wait_for_everybody(60)
        took_s = time.monotonic() - begun_at
        print(f"{count} clients, resumed and answered {took_s:.1f} s after their producer's start")
        assert clients.report.closes == []


def test_a_child_of_apache_is_killed() -> None:
    """Only its own clients are cut off; those of custodians, and the site, go on."""
    count = scaled(1000, 50)
    with running_site("event", workers=50, threads=10) as site:
        site.expected_harm = "exit signal Killed"
        with crowd(site, count, round_s=0.5) as kept:
            site.renew(60)
            with crowd(site, count, round_s=0.5) as lost:
                victims = site.apache.children()
                for pid in victims:
                    os.kill(pid, signal.SIGKILL)
                wait_for(lambda: len(lost.report.closes) == count, 30)
                begun_at = time.monotonic()
                with plain_http(site) as answers:
                    wait_for(lambda: set(site.apache.children()) - set(victims), 30)
                    with crowd(site, 10) as later:
                        later.wait_for_echoes(100)
                    took_s = time.monotonic() - begun_at
                    kept.wait_for_everybody(60)
                    wait_for_answer(answers)
            kept.fall_silent(60)
            print(
                f"kill -9 of the child that has {count} of {2 * count} clients: these are cut off,"
                f" the others: {kept.report.echoes} echoes, {len(kept.report.faults)} faults,"
                f" {len(kept.report.closes)} dropped; new clients served after {took_s:.1f} s;"
                f" {len(answers)} pages, the slowest after {max(answers):.2f} s"
            )
            assert set(lost.report.closes) == {wire.ABNORMAL}
            assert (kept.report.faults, kept.report.closes) == ([], [])


EVERYTHING = ["reload", "kill", "deploy", "join", "join", "slow", "half", "bad"]


class Turmoil:
    """Everything that can happen to a site, by chance, with three crowds on it."""

    def __init__(
        self, site: Site, producer: Mortal, runner: subprocess.Popen[bytes], stack: ExitStack
    ) -> None:
        self._site = site
        self._producer = producer
        self._runner = runner
        self._slow = stack
        self._chance = random.Random(1)
        self.counts: Counter[str] = Counter()
        self.faithful = stack.enter_context(crowd(site, 100, round_s=0.1))
        self.tried = stack.enter_context(crowd(site, 100, "/mortal.ws", round_s=0.1, may_lose=True))
        self.moved = stack.enter_context(crowd(site, 50, "/rolling.ws", round_s=0.1))
        self.crowds = (self.faithful, self.tried, self.moved)

    def run(self, seconds: float, what_happens: list[str]) -> None:
        """Let things happen for so long; after each all clients must have an answer."""
        end_at = time.monotonic() + seconds
        while time.monotonic() < end_at:
            what = self._chance.choice(what_happens)
            self.counts[what] += 1
            self._do(what)
            for clients in self.crowds:
                clients.wait_for_everybody(60)
        for clients in self.crowds:
            assert (clients.report.faults, clients.report.closes) == ([], [])
        for clients in (self.faithful, self.moved):
            clients.fall_silent(60)

    def _do(self, what: str) -> None:
        chance, site = self._chance, self._site
        if what == "reload":
            site.renew(60)
        elif what == "kill":
            self._producer.kill()
            self._producer.start()
        elif what == "deploy":
            self._runner.send_signal(signal.SIGHUP)
        elif what == "join":
            for clients in self.crowds:
                number = chance.randrange(1, 10)
                clients.join(number)
                clients.leave(number)
        elif what in ("slow", "half"):
            path = chance.choice(["/echo.ws", "/mortal.ws", "/rolling.ws"])
            client = RawClient(site.dial("ws")).upgrade(path)
            self._slow.enter_context(client)
            client.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                if what == "half":
                    client.send(masked(0x82, b"x" * 1000)[:500])
                while what == "slow":  # and it never reads
                    client.send(masked(0x82, b"x" * 60_000))
        else:
            with RawClient(site.dial("wss1.3")) as client:
                client.send(request())
                client.send(os.urandom(50))


@pytest.mark.timeout(1800)
def test_everything_at_once() -> None:
    """Restarts, kills, deploys, joins, leaves, slow and bad clients; then it is as before."""
    seconds = scaled(600, 15)
    with (
        running_site("event", workers=50, threads=10) as site,
        Mortal(site) as producer,
        site.echo_process("rolling.ws", "-m", "apachews.runner") as runner,
    ):
        warm_up(site)
        lasting = {"Apache": site.apache.pid, "producer": site.echo.pid, "runner": runner.pid}
        before = {name: held_by(pid) for name, pid in lasting.items()}
        processes = len(others_of(site))
        with ExitStack() as stack:
            turmoil = Turmoil(site, producer, runner, stack)
            turmoil.run(seconds, EVERYTHING)
            clients = sum(clients.open_count for clients in turmoil.crowds)
            most = 3 * (clients + turmoil.counts["slow"] + turmoil.counts["half"]) + 20

            def sockets() -> int:
                return sum(count_sockets(pid) for pid in (*site.carriers(), *lasting.values()))

            # Processes with much to do close those of clients that have left after a moment.
            wait_for(lambda: sockets() <= most, 30, sockets)
            print(
                f"{seconds} s: {dict(turmoil.counts)};"
                f" {sum(clients.report.echoes for clients in turmoil.crowds)} echoes,"
                f" {turmoil.tried.report.lost} lost with killed producers, none wrong, none"
                " dropped"
            )
        wait_for(lambda: not site.carriers(), 60)
        # Who was there all the time.  (What clients that never read had waiting in a
        # program stays with its allocator, for the next ones: so it is asked twice.)
        after = {name: held_by(pid) for name, pid in lasting.items()}
        for name in lasting:
            assert after[name][0] <= before[name][0] + 2
        wait_for(lambda: len(others_of(site)) <= processes, 60)
        # A child through all of it but reloads.
        site.renew(60)
        warm_up(site)
        child = site.apache.children()[0]
        held = held_by(child)
        with ExitStack() as stack:
            turmoil = Turmoil(site, producer, runner, stack)
            turmoil.run(seconds / 5, EVERYTHING[1:])
            counts = dict(turmoil.counts)
        assert child in site.apache.children()
        wait_for(lambda: count_descriptors(child) <= held[0])
        print(f"a child, {seconds / 5:g} s with {counts}: {held}, then {held_by(child)}")
        assert held_by(child)[1] <= held[1] * 1.3 + 1
        wait_for(lambda: not site.carriers(), 60)
        for name, pid in lasting.items():
            wait_for(lambda: count_descriptors(pid) <= before[name][0] + 2, 30)  # noqa: B023
            at_last = held_by(pid)
            print(
                f"{name}, descriptors and MiB of its own: {before[name]}, {after[name]}, {at_last}"
            )
            if scaled(1, 0):  # with a few clients chance decides
                assert at_last[1] <= after[name][1] * 1.3 + 4


def count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def count_sockets(pid: int) -> int:
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(entry.readlink()).startswith("socket:")
    return count


def held_by(pid: int) -> tuple[int, float]:
    """Return how many descriptors a process has, and its own memory, MiB."""
    return count_descriptors(pid), round(private_mib(pid), 1)


def others_of(site: Site) -> list[int]:
    """Return all processes that have to do with a site, but Apache's children.

    (httpd decides how many children there are.)  These are Apache, custodians, producers.
    """
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(site.apache.root).encode() in (
                (entry / "cmdline").read_bytes()
            ):
                found.append(int(entry.name))
    return [pid for pid in found if pid not in site.apache.children()]


def warm_up(site: Site) -> None:
    """Let a child load what it loads once."""
    with crowd(site, 50) as clients:
        clients.wait_for_echoes(500)
    wait_for(lambda: not site.carriers())
