"""What an open and idle WebSocket costs: memory and threads.

Source: the Pss of /proc/PID/smaps_rollup, in which memory that several processes share is
divided between them, so that the sum over all of them counts it once.  The slope between
two counts of connections is the cost of one; what a server needs with none is not in it.
"""

from __future__ import annotations

import time
from pathlib import Path

from . import processes
from .cases import Case, Peer
from .measure import CONNECT_AT_ONCE, driven
from .results import Figures


def pss_in(smaps_rollup: str) -> int:
    """Return the bytes of Pss in the text of a /proc/PID/smaps_rollup."""
    for line in smaps_rollup.splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) * 1024
    raise ValueError("no Pss in smaps_rollup")


def pss(pids: list[int]) -> int:
    """Return the memory of processes together, bytes; those that have ended have none."""
    total = 0
    for pid in pids:
        try:
            total += pss_in(Path(f"/proc/{pid}/smaps_rollup").read_text())
        except OSError:
            continue  # it has ended
    return total


def idle(case: Case, peer: Peer) -> Figures:
    """Open connections, twice; at last each echoes once, so that none was dead.

    Raises:
        PeerFailed, GeneratorFailed
    """
    low, high = case.counts(peer)
    with driven(peer, "echo", high) as (running, generator):
        found: list[tuple[int, int, int]] = []
        for more in (low, high - low):
            generator.connect(
                url=running.url,
                count=more,
                at_once=CONNECT_AT_ONCE,
                size=case.size,
                certificate=running.certificate,
            )
            time.sleep(case.window_s)  # the workers have put away what a handshake needed
            apache = running.apache_pids()
            found.append((pss(apache), pss(running.backend_pids()), processes.threads(apache)))
        generator.ask("echo_once")
        result = generator.ask("halt")
    (apache_low, backend_low, threads_low), (apache_high, backend_high, threads_high) = found
    return {
        "apache_kib": (apache_high - apache_low) / (high - low) / 1024,
        "backend_kib": (backend_high - backend_low) / (high - low) / 1024,
        "threads_each": (threads_high - threads_low) / (high - low),
        "threads_low": threads_low,
        "threads_high": threads_high,
        "connections_low": low,
        "connections_high": high,
        **{name: result[name] for name in ("lost", "extra", "wrong", "dropped")},
    }
