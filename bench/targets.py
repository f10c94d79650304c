"""The targets of apachews: one table.

The comparison with ``websockets`` is with asyncio's own loop, its documented default; the ratio to
the same program on uvloop is shown in addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .cases import CHANNELS, COMPRESSED, NCHAN, ON_UVLOOP, ONE_BY_ONE, RELAYED, SOCKETIO, TUNNEL
from .results import Results, Spread

A: Final = "proxy+websockets"
B: Final = "websockets"
B_UVLOOP: Final = "websockets (uvloop)"
C: Final = "picows"
D: Final = "proxy+websockets, wss"
E: Final = "proxy+picows"
OURS: Final = "ours"
OURS_TLS: Final = "ours, wss"


@dataclass(frozen=True)
class Target:
    """One figure to reach.

    Attributes:
        case: name of the case.
        what: name of the figure, in words.
        metric: key of the figure.
        limit: of the ratio; with a unit, of the difference; without a comparison, of the figure.
        against: the peer to compare with, in the same round.
        peer: the peer whose figure it is.
        at_least: whether more is better.
        unit: of the figure, or of the difference to the other peer's.
    """

    case: str
    what: str
    metric: str
    limit: float
    against: str = ""
    peer: str = OURS
    at_least: bool = False
    unit: str = ""

    @property
    def wanted(self) -> str:
        """The target as text."""
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{self.unit and f' {self.unit}'}"


@dataclass(frozen=True)
class Outcome:
    """The result of a target.

    Attributes:
        measured: None if its case did not run.
        on_uvloop: the ratio to the peer on uvloop, if that ran.
        is_met: None if not measured.
    """

    target: Target
    measured: Spread | None
    on_uvloop: Spread | None
    is_met: bool | None


CPU: Final = "CPU per message"
DELIVERY: Final = "CPU per delivery"
PER_CPU: Final = "deliveries per second of CPU"
TARGETS: Final = (
    Target("echo-64B-c32-w1", CPU, "cpu_us", 2.0, C),
    Target("echo-64B-c32-w1", CPU, "cpu_us", 0.2, A),
    Target("echo-64B-c32-w1", CPU, "cpu_us", 0.4, E),
    Target("echo-64B-c32-w1", CPU, "cpu_us", 0.8, B_UVLOOP),
    Target("echo-64B-c32-w1", "messages a second", "per_second", 1.8, A, at_least=True),
    Target("echo-64B-c32-w1", "messages a second", "per_second", 1.0, E, at_least=True),
    Target("round-trip", "p50", "p50_us", 0.65, A),
    Target("round-trip", "p50", "p50_us", 1.0, E),
    Target("echo-64KiB-c32-w1", CPU, "cpu_us", 0.8, A),
    Target("wss-echo-64B-c32-w1", CPU, "cpu_us", 0.25, D, OURS_TLS),
    Target("wss-echo-64KiB-c32-w1", CPU, "cpu_us", 0.6, D, OURS_TLS),
    Target("fan-out-1000", DELIVERY, "cpu_us", 0.8, C),
    Target("fan-out-1000", DELIVERY, "cpu_us", 0.45, B),
    Target("fan-out-1000", DELIVERY, "cpu_us", 1.0, NCHAN),
    Target("fan-out-1000", "the producer's CPU per delivery", "backend_cpu_us", 0.1, ONE_BY_ONE),
    Target("fan-out-10000", "CPU of a broadcast to all", "broadcast_cpu_ms", 60, unit="ms"),
    Target("fan-out-json", DELIVERY, "cpu_us", 1.5, OURS, COMPRESSED),
    Target(
        "fan-out-stalled", "Apache's memory per client that stalls", "apache_kib", 64, unit="KB"
    ),
    Target("handshakes", "handshakes a second", "per_second", 1.3, A, at_least=True),
    Target("memory-ws", "Apache's memory per idle socket", "apache_kib", 3.5, unit="KB"),
    Target("memory-ws", "Apache's workers per idle socket", "workers_each", 0),
    Target(
        "memory-wss", "Apache's memory per idle socket", "apache_kib", 24, "", OURS_TLS, unit="KB"
    ),
    Target("memory-wss", "Apache's workers per idle socket", "workers_each", 0, "", OURS_TLS),
    Target("memory-ws", "the producer's memory per idle socket", "backend_kib", 2, unit="KB"),
    Target("tunnel-echo-64B-c32", CPU, "cpu_us", 0.65, E, TUNNEL),
    Target("tunnel-echo-64KiB-c32", CPU, "cpu_us", 0.6, E, TUNNEL),
    Target("tunnel-handshakes", "handshakes a second", "per_second", 1.0, E, TUNNEL, True),
    Target(
        "tunnel-memory", "Apache's memory per idle socket", "apache_kib", 4, "", TUNNEL, unit="KB"
    ),
    Target("tunnel-memory", "Apache's workers per idle socket", "workers_each", 0, "", TUNNEL),
    Target("relay-2x1000", DELIVERY, "cpu_us", 1.1, OURS, RELAYED),
    Target("relay-2x1000", PER_CPU, "per_cpu_s", 3, SOCKETIO, RELAYED, at_least=True),
    Target("relay-2x1000", PER_CPU, "per_cpu_s", 3, CHANNELS, RELAYED, at_least=True),
    Target("relay-latency", "p50, more by", "p50_us", 1000, OURS, RELAYED, unit="µs"),
    Target("scale", "messages lost, 20,000 sockets open", "lost", 0),
    Target("scale", "plain HTTP p99, with them as against without", "http_p99_ratio", 1.2),
    Target("scale", "CPU per message among 10,000 idle as against 100", "cost_ratio", 1.3),
    Target("scale", "lost of 5,000 that connect at once", "storm_lost", 0),
)
WITH_TARGETS: Final = frozenset(target.case for target in TARGETS)


def judge(target: Target, results: Results) -> Outcome:
    """Compare a target with the figures."""
    case = results.case(target.case)
    if case is None:
        return Outcome(target, None, None, None)
    if target.against and target.unit:
        measured = case.difference(target.peer, target.against, target.metric)
        on_uvloop = None
    elif target.against:
        measured = case.ratio(target.peer, target.against, target.metric)
        twin = ON_UVLOOP.get(target.against)
        on_uvloop = case.ratio(target.peer, twin, target.metric) if twin else None
    else:
        measured, on_uvloop = case.spread(target.peer, target.metric), None
    if measured is None:
        return Outcome(target, None, None, None)
    value = measured.median
    is_met = value >= target.limit if target.at_least else value <= target.limit
    return Outcome(target, measured, on_uvloop, is_met)


def judge_all(results: Results) -> list[Outcome]:
    """Compare every target with the figures."""
    return [judge(target, results) for target in TARGETS]
