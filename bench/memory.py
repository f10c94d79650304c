"""The memory of open WebSockets, idle or stalled, and whether one holds a worker of Apache.

Source: the Pss of /proc/PID/smaps_rollup, which divides shared memory among the processes that
share it, so that a sum over all of them counts it once.  The slope between two counts of
connections is the cost of one, without the memory of an idle server.  Busy workers are those of
mod_status.
"""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import Final

from .cases import Case, Peer
from .measure import CONNECT_AT_ONCE, connect, driven
from .peers import STATUS_PATH, Running
from .results import Figures

STATUS_TIMEOUT_S: Final = 10.0
# Messages a second to the group of which some clients do not read.
STALLED_RATE: Final = 100.0


def pss_in(smaps_rollup: str) -> int:
    """Return the bytes of Pss in the text of a /proc/PID/smaps_rollup."""
    for line in smaps_rollup.splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) * 1024
    raise ValueError("no Pss in smaps_rollup")


def pss(pids: list[int]) -> int:
    """Return the bytes of memory of these processes together; one that has ended counts 0."""
    total = 0
    for pid in pids:
        try:
            total += pss_in(Path(f"/proc/{pid}/smaps_rollup").read_text())
        except OSError:
            continue  # it has ended
    return total


def busy_workers_in(status: str) -> int:
    """Return the number of busy workers in the text of mod_status, ``?auto``."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "BusyWorkers":
            return int(value)
    raise ValueError("no BusyWorkers in the server's status")


def busy_workers(running: Running) -> int:
    """Return the number of Apache's busy workers, with the one that answers this.

    Raises:
        OSError: Apache does not answer.
    """
    assert running.apache, "only Apache has workers"
    url = f"http://127.0.0.1:{running.apache.port}{STATUS_PATH}?auto"
    with urllib.request.urlopen(url, timeout=STATUS_TIMEOUT_S) as answer:
        return busy_workers_in(answer.read().decode())


def idle(case: Case, peer: Peer) -> Figures:
    """Open connections in two steps; each then echoes once, which proves that all are open.

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
            time.sleep(case.window_s)  # the workers have freed what a handshake needed
            apache = running.apache_pids()
            found.append((pss(apache), pss(running.backend_pids()), busy_workers(running)))
        generator.ask("echo_once")
        result = generator.ask("halt")
    (apache_low, backend_low, busy_low), (apache_high, backend_high, busy_high) = found
    return {
        "apache_kib": (apache_high - apache_low) / (high - low) / 1024,
        "backend_kib": (backend_high - backend_low) / (high - low) / 1024,
        "workers_each": (busy_high - busy_low) / (high - low),
        "connections_low": low,
        "connections_high": high,
        **{name: result[name] for name in ("lost", "extra", "wrong", "dropped")},
    }


def stalled(case: Case, peer: Peer) -> Figures:
    """Publish to a group, a part of which stops reading; the others must get every message.

    The memory is what the processes have in addition to that before the first message, after the
    last message reached all that read, divided by the clients that do not.

    Raises:
        PeerFailed, GeneratorFailed
    """
    with driven(peer, "fan-out", case.connections, case.our_children) as (running, generator):
        connect(case, peer, running, generator)
        time.sleep(case.warm_up_s)  # the workers have freed what a handshake needed
        apache, backend = pss(running.apache_pids()), pss(running.backend_pids())
        generator.ask("fan_out_paced", stalled=case.stalled, rate=STALLED_RATE)
        begin = generator.ask("mark")
        time.sleep(case.window_s)
        end = generator.ask("mark")
        result = generator.ask("halt")
        more_apache = pss(running.apache_pids()) - apache
        more_backend = pss(running.backend_pids()) - backend
    readers = case.connections - case.stalled
    seconds = (end["at_ns"] - begin["at_ns"]) / 1e9
    return {
        "apache_kib": more_apache / case.stalled / 1024,
        "backend_kib": more_backend / case.stalled / 1024,
        "broadcasts_per_second": (end["received"] - begin["received"]) / readers / seconds,
        **{name: result[name] for name in ("lost", "extra", "wrong", "dropped")},
    }
