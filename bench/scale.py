"""Many sockets on one Apache with Debian's stock settings of the event MPM.

One run answers: whether 10,000 ws and 10,000 wss sockets are open at once and each of them
echoes; how that affects plain HTTP in the same Apache; the cost of a message when most sockets are
idle; and whether any of 5,000 clients that connect at once is lost.

Several load generators and several producers share the sockets, because a process may not have
descriptors for all; each generator has its own loopback address, for its ports.  The handler has
its default settings, so idle sockets get keep-alive pings.
"""

from __future__ import annotations

import resource
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apachews_tools.httpd.private_apache import PrivateApache

from . import cpu, peers, processes
from .cases import FDS_A_CONNECTION, FDS_RESERVE, UNEVEN, Kind
from .generator import Generator
from .limits import require_descriptors
from .peers import Backend
from .results import CaseResults, Figures

# Debian's mods-available/mpm_event.conf.
STOCK_SERVERS: Final = 2
STOCK_THREADS: Final = 25
STOCK_WORKERS: Final = 150
STOCK: Final = """
LogLevel warn
StartServers {servers}
MinSpareThreads 25
MaxSpareThreads 75
ThreadLimit 64
MaxConnectionsPerChild 0
"""
# Generators, and producers: each generator's clients have one.
PARTS: Final = 4
SOCKETS: Final = 10_000  # by ws, and as many by wss
FEW: Final = 100
ACTIVE: Final = 50
STORM: Final = 5_000
QUICK_DIVISOR: Final = 50
# Handshakes at once of each generator.
AT_ONCE: Final = 16
MESSAGE_BYTES: Final = 64
WARM_UP_S: Final = 0.5
WINDOW_S: Final = 2.0
WINDOWS: Final = 3
# httpd ends one child a second of those it started for a rush; no change for so long.
SETTLE_S: Final = 5.0
SETTLE_LIMIT_S: Final = 60.0
# Plain HTTP: a request each 5 ms, on a connection of its own.
HTTP_RATE: Final = 200
HTTP_S: Final = 30.0
# The p99 is the median of the p99 of so many parts: other load of the machine for a moment
# spoils one part, not the figure.
HTTP_PARTS: Final = 5
HTTP_TIMEOUT_S: Final = 10.0
# The failures that a generator counts.
_HARM: Final = ("lost", "extra", "wrong", "dropped")
HTTP_REQUEST: Final = b"GET /index.html HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass
class Site:
    """The Apache, its producers, and the load generators.

    Attributes:
        bare: an Apache with the same configuration, without sockets.
    """

    apache: PrivateApache
    bare: PrivateApache
    producers: list[Backend]
    generators: list[Generator]

    def all(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Send a command to all generators at once; return their answers."""
        for generator in self.generators:
            generator.begin(do, **arguments)
        return [generator.finish() for generator in self.generators]

    def connect(self, count: int, *, tls: bool, at_once: int = AT_ONCE) -> list[str]:
        """Open so many more connections over all generators; return the errors, one per failure."""
        for part, generator in enumerate(self.generators):
            share = count // PARTS + (part < count % PARTS)
            port = self.apache.tls_port if tls else self.apache.port
            generator.begin(
                "connect",
                url=f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/{part}.ws",
                count=share,
                at_once=at_once,
                size=MESSAGE_BYTES,
                certificate=str(self.apache.certificate) if tls else "",
                source=f"127.0.0.{2 + part}",
            )
        failures = []
        for part, generator in enumerate(self.generators):
            answer = generator.finish()
            missing = count // PARTS + (part < count % PARTS) - answer["opened"]
            failures += (answer["failures"] * missing)[:missing]
        return failures

    def pids(self) -> list[int]:
        """Return all processes that serve."""
        return processes.of_apache(self.apache.root) + [p.process.pid for p in self.producers]

    def halt(self) -> dict[str, int]:
        """Wait for the answers under way; return the failures since the connections opened."""
        answers = self.all("halt", timeout_s=30.0)
        return {name: sum(answer[name] for answer in answers) for name in answers[0]}


@contextmanager
def site(servers: int) -> Iterator[Site]:
    """Run the Apache, its producers and the generators."""
    with ExitStack() as stack:
        apache, bare = (
            stack.enter_context(
                peers.apache(
                    stack.enter_context(peers.directory()),
                    ours=True,
                    workers=STOCK_WORKERS,
                    threads=STOCK_THREADS,
                    extra=STOCK.format(servers=servers),
                )
            )
            for _ in range(2)
        )
        producers = [
            stack.enter_context(
                peers.backend(
                    apache.root / f"producer-{part}.log",
                    peers.producer("echo", apache.docroot / f"{part}.ws"),
                )
            )
            for part in range(PARTS)
        ]
        generators = [stack.enter_context(Generator()) for _ in range(PARTS)]
        yield Site(apache, bare, producers, generators)


def check(quick: bool) -> None:
    """Check that a generator, and a producer, may open its part of the sockets.

    Raises:
        TooFewDescriptors
    """
    sockets = SOCKETS // QUICK_DIVISOR if quick else SOCKETS
    require_descriptors(2 * sockets // PARTS + FDS_RESERVE)


def run(quick: bool) -> tuple[CaseResults, list[str]]:
    """Run the whole case; return the figures, and notes for the report.

    Raises:
        PeerFailed, GeneratorFailed
    """
    divisor = QUICK_DIVISOR if quick else 1
    sockets, storm = SOCKETS // divisor, STORM // divisor
    few, active = (FEW // 5, ACTIVE // 5) if quick else (FEW, ACTIVE)
    servers, notes = servers_for(2 * sockets, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    with site(servers) as running:
        figures: Figures = {}
        lost = len(_connect(running, few, tls=False))
        few_us = cost_us(running, active, quick)
        begun_at = time.monotonic()
        lost += len(_connect(running, sockets - few, tls=False))
        figures["ws_handshakes_per_second"] = (sockets - few) / (time.monotonic() - begun_at)
        many_us = cost_us(running, active, quick)
        begun_at = time.monotonic()
        lost += len(_connect(running, sockets, tls=True))
        figures["wss_handshakes_per_second"] = sockets / (time.monotonic() - begun_at)
        _settle(running)
        figures |= http_figures(running, HTTP_S / 10 if quick else HTTP_S)
        figures["processes_with_all_open"] = len(processes.of_apache(running.apache.root)) - 1
        running.all("echo_once")
        harm = running.halt()
        lost += sum(answer["open_still"] for answer in running.all("close"))
        figures |= {
            "cpu_us_among_few": few_us,
            "cpu_us_among_many": many_us,
            "cost_ratio": many_us / few_us,
            "sockets": 2 * sockets,
            "lost": lost + harm["lost"],
            **{name: harm[name] for name in _HARM if name != "lost"},
            **_storm(running, storm),
        }
    found = CaseResults("scale", Kind.SCALE.value, 2 * sockets, [{"ours": figures}])
    return found, notes


def _settle(running: Site) -> None:
    """Wait until Apache has ended the children that it started for the rush, with a limit."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    seen, since = set(processes.of_apache(running.apache.root)), time.monotonic()
    while time.monotonic() < min(since + SETTLE_S, deadline):
        time.sleep(0.1)
        found = set(processes.of_apache(running.apache.root))
        if found != seen:
            seen, since = found, time.monotonic()


def _connect(running: Site, count: int, *, tls: bool) -> list[str]:
    """Open connections; print the errors."""
    failures = running.connect(count, tls=tls)
    for failure in sorted(set(failures)):
        print(f"bench: scale: {failures.count(failure)} of {count}: {failure}", flush=True)
    return failures


def _storm(running: Site, count: int) -> Figures:
    """Connect all clients at once; each echoes once."""
    begun_at = time.monotonic()
    failures = running.connect(count, tls=False, at_once=count)
    seconds = time.monotonic() - begun_at
    running.all("echo_once")
    harm = running.halt()
    left = sum(answer["open_still"] for answer in running.all("close"))
    return {
        "storm": count,
        "storm_s": seconds,
        "storm_lost": len(failures) + sum(harm[name] for name in _HARM) + left,
    }


def servers_for(sockets: int, descriptors: int) -> tuple[int, list[str]]:
    """Return the number of initial children of Apache, and a note if it is not the default."""
    needed = -(-int(sockets * FDS_A_CONNECTION * UNEVEN) // descriptors)
    if needed <= STOCK_SERVERS:
        return STOCK_SERVERS, []
    return needed, [
        f"scale: a process may have {descriptors:,} descriptors here, and {sockets:,} sockets need"
        f" {sockets * FDS_A_CONNECTION:,}: StartServers {needed}, in the place of Debian's"
        f" {STOCK_SERVERS}."
    ]


def cost_us(running: Site, active: int, quick: bool) -> float:
    """Return the servers' CPU per message while so many clients echo, in µs: the median window."""
    found: list[float] = []
    for _ in range(1 if quick else WINDOWS):
        running.all("echo", window=1, active=-(-active // PARTS))
        time.sleep(WARM_UP_S)
        begin = running.all("mark")
        before = cpu.read(running.pids())
        time.sleep(WINDOW_S / 4 if quick else WINDOW_S)
        end = running.all("mark")
        used = cpu.used(before, cpu.read(running.pids()))
        running.halt()
        count = sum(answer["received"] for answer in end) - sum(a["received"] for a in begin)
        if not count:
            raise peers.PeerFailed(f"scale: no message was answered\n{_log(running)}")
        found.append(used.seconds * 1e6 / count)
    return statistics.median(found)


@dataclass(frozen=True)
class Http:
    """The response times of plain HTTP.

    Attributes:
        p50_s, p99_s: the medians, over the parts of the time, of each part's p50 and p99.
    """

    p50_s: float
    p99_s: float

    @classmethod
    def of(cls, taken: list[float]) -> Http:
        """Return the figures of response times in seconds, in the order of the requests."""
        each = len(taken) // HTTP_PARTS
        parts = [sorted(taken[part * each : (part + 1) * each]) for part in range(HTTP_PARTS)]
        return cls(
            statistics.median(part[each // 2] for part in parts),
            statistics.median(part[each * 99 // 100] for part in parts),
        )


def http_figures(running: Site, seconds: float) -> Figures:
    """Request a small file from both Apaches in turn: other load of the machine affects both."""
    with_them: list[float] = []
    without: list[float] = []
    before, begun_at = cpu.read(running.pids()), time.monotonic()
    for number in range(int(seconds * HTTP_RATE)):
        due = begun_at + number / HTTP_RATE
        if number % 2:
            with_them.append(_ask(running.apache.port, due))
        else:
            without.append(_ask(running.bare.port, due))
    used = cpu.used(before, cpu.read(running.pids()))
    among, bare = Http.of(with_them), Http.of(without)
    return {
        "http_p50_ms": among.p50_s * 1000,
        "http_p50_without_ms": bare.p50_s * 1000,
        "http_p50_ratio": among.p50_s / bare.p50_s,
        "http_p99_ms": among.p99_s * 1000,
        "http_p99_without_ms": bare.p99_s * 1000,
        "http_p99_ratio": among.p99_s / bare.p99_s,
        "http_cores": used.seconds / (time.monotonic() - begun_at),
    }


def _ask(port: int, due: float) -> float:
    """Request a small file; return the time from the moment it was due to its answer.

    (Not from the moment it was sent: a late request must count as a delay.)
    """
    time.sleep(max(0.0, due - time.monotonic()))
    with socket.create_connection(("127.0.0.1", port), HTTP_TIMEOUT_S) as connection:
        connection.sendall(HTTP_REQUEST)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise peers.PeerFailed(f"plain HTTP got {answer[:60]!r}")
    return time.monotonic() - due


def _log(running: Site) -> str:
    return peers.tail(Path(running.apache.root / "error.log"))
