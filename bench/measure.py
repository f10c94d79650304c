"""One round of one peer in a case that has messages: echo and fan-out, and handshakes.

The window lies between two marks of the load generator.  The processor time of the servers is
read immediately after each mark, so that both are about the same window.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import cpu, peers
from .cases import Case, Kind, Peer
from .generator import Generator, GeneratorFailed
from .peers import Running
from .results import Figures

# Handshakes at once in all cases that do not measure them.
CONNECT_AT_ONCE = 16


def run(case: Case, peer: Peer) -> Figures:
    """Run a case with one peer; return what was measured.

    In ``handshakes``, ``cpu_us`` is that of one handshake and its end.

    Raises:
        PeerFailed, GeneratorFailed
    """
    mode = "fan-out" if case.kind is Kind.FAN_OUT else "echo"
    # A client that has left may hold its worker of a proxy a moment longer.
    workers = case.connections * (4 if case.kind is Kind.HANDSHAKES else 1)
    with driven(peer, mode, workers, case.our_children) as (running, generator):
        begin(case, peer, running, generator)
        return window(case, running, generator)


@contextmanager
def driven(
    peer: Peer, mode: str, connections: int, our_children: int = 1
) -> Iterator[tuple[Running, Generator]]:
    """Start a peer and a generator for it; see ``peers.start``.

    Raises:
        PeerFailed
        GeneratorFailed: also what is raised inside, with the ends of the peer's logs.
    """
    with (
        peers.start(peer, mode, connections, our_children) as running,
        Generator() as generator,
    ):
        try:
            yield running, generator
        except GeneratorFailed as error:
            raise GeneratorFailed(f"{error}\n{running.log_tail()}") from error


def begin(case: Case, peer: Peer, running: Running, generator: Generator) -> None:
    """Start the traffic of a case, which the generator continues until it is halted.

    Raises:
        GeneratorFailed: it could not connect.
    """
    if case.kind is Kind.HANDSHAKES:
        generator.ask(
            "handshakes",
            at_once=case.connections,
            url=running.url,
            certificate=running.certificate,
        )
        return
    connect(case, peer, running, generator)
    if case.kind is Kind.FAN_OUT:
        generator.ask("fan_out", greets=peer.is_greeted)
    else:
        generator.ask("echo", window=case.window, timed=case.timed)


def connect(
    case: Case, peer: Peer, running: Running, generator: Generator, count: int | None = None
) -> None:
    """Open the connections of a case, or so many of them.

    Raises:
        GeneratorFailed: not all could be opened.
    """
    generator.connect(
        url=running.url,
        certificate=running.certificate,
        count=case.connections if count is None else count,
        at_once=CONNECT_AT_ONCE,
        size=case.size,
        text=case.text or peer.speaks_socket_io,
        fan_out=case.kind in (Kind.FAN_OUT, Kind.STALLED, Kind.RELAY),
        is_json=case.json,
        compressed=peer.compressed,
        socket_io=peer.speaks_socket_io,
    )


def window(case: Case, running: Running, generator: Generator) -> Figures:
    """Measure the running traffic after the warm-up; halt the generator.

    Raises:
        PeerFailed: no message was answered, or a program ended.
        GeneratorFailed
    """
    time.sleep(case.warm_up_s)
    begin = generator.ask("mark")
    before = cpu.read(running.pids())
    time.sleep(case.window_s)
    end = generator.ask("mark")
    after = cpu.read(running.pids())
    result = generator.ask("halt")
    for backend in running.backends:
        backend.require_alive()
    program = running.backend_pids()
    of_backend = cpu.used(cpu.of(program, before), cpu.of(program, after))
    found = figures(begin, end, cpu.used(before, after), of_backend, result, running)
    if case.kind is Kind.RELAY:
        broker = running.broker_pids()
        of_broker = cpu.used(cpu.of(broker, before), cpu.of(broker, after))
        found["broker_cpu_us"] = of_broker.seconds * 1e6 / found["messages"]
        found["per_cpu_s"] = 1e6 / found["cpu_us"]
    if case.kind is Kind.FAN_OUT:
        found["broadcast_cpu_ms"] = found["cpu_us"] * case.connections / 1000
    return found


def figures(
    begin: dict[str, Any],
    end: dict[str, Any],
    used: cpu.Used,
    of_backend: cpu.Used,
    result: dict[str, Any],
    running: Running,
) -> Figures:
    """Return the figures of the time between two marks.

    Raises:
        PeerFailed: no message was answered.
    """
    seconds = (end["at_ns"] - begin["at_ns"]) / 1e9
    count = end["received"] - begin["received"]
    if not count:
        raise peers.PeerFailed(f"no message was answered in {seconds:.1f} s.\n{running.log_tail()}")
    found: Figures = {
        "messages": count,
        "seconds": seconds,
        "per_second": count / seconds,
        "cpu_us": used.seconds * 1e6 / count,
        "backend_cpu_us": of_backend.seconds * 1e6 / count,
        "stat_cpu_us": used.stat_seconds * 1e6 / count,
        "cpu_s": used.seconds,
        "stat_cpu_s": used.stat_seconds,
        "ended": used.ended,
        "generator_share": (end["processor_ns"] - begin["processor_ns"]) / 1e9 / seconds,
        **{name: result[name] for name in ("lost", "extra", "wrong", "dropped")},
    }
    for name in ("p50", "p99"):
        if f"{name}_ns" in end:
            found[f"{name}_us"] = end[f"{name}_ns"] / 1000
    return found
