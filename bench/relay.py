"""Two machines with a Redis between them: one round of one peer in a case of relays.

Half of the clients are at each machine.  One client of the first machine sends; the message reaches
all clients of both.  A peer without a relay has all clients on one machine, to compare.

The processor time is that of all: Apaches, programs and Redis, whose part is also named alone.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from apachews_tools.httpd import private_apache

from . import measure, peers, processes
from .cases import Case, Peer
from .generator import Generator, GeneratorFailed
from .peers import Backend, PeerFailed, Running
from .results import Figures

MACHINES: Final = 2


@dataclass
class Machines(Running):
    """A peer that runs on several machines, as far as its processes can tell.

    Attributes:
        machines: one ``Running`` each.
        broker: the Redis that they share; None without one.
    """

    machines: list[Running] = field(default_factory=list)
    broker: Backend | None = None

    def apache_pids(self) -> list[int]:
        """Return the processes of all Apaches."""
        return [pid for machine in self.machines for pid in machine.apache_pids()]

    def backend_pids(self) -> list[int]:
        """Return the processes of the programs."""
        return [pid for machine in self.machines for pid in machine.backend_pids()]

    def broker_pids(self) -> list[int]:
        """Return the process of Redis."""
        return [self.broker.process.pid] if self.broker else []

    def log_tail(self) -> str:
        """Return the ends of all logs, for a failure's text."""
        return "\n".join(machine.log_tail() for machine in self.machines)


@contextmanager
def broker() -> Iterator[Backend]:
    """Run a Redis that stores nothing.

    Raises:
        PeerFailed: it does not accept connections.
    """
    with peers.directory() as root:
        port, log = private_apache.free_port(), root / "redis.log"
        process = subprocess.Popen(
            [*COMMAND, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(root)],
            executable=program(),
            stdin=subprocess.DEVNULL,
            stdout=log.open("w"),
            text=True,
            start_new_session=True,
        )
        try:
            wait_until_it_accepts(process, port, log)
            yield Backend(process, f"redis://127.0.0.1:{port}/0", log)
        finally:
            processes.end(process)


COMMAND: Final = ("redis-server", "--save", "", "--appendonly", "no")


def program() -> str:
    """Return the path of the server: Debian's redis-tools has it under another name.

    Raises:
        PeerFailed: it is not installed.
    """
    found = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    if found is None:
        raise PeerFailed("redis-server is not installed: apt-get install redis-tools")
    return found


def wait_until_it_accepts(process: subprocess.Popen[str], port: int, log: Path) -> None:
    """Return when the port accepts a connection.

    Raises:
        PeerFailed
    """
    deadline = time.monotonic() + peers.START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise PeerFailed(f"redis-server does not accept connections:\n{peers.tail(log)}")


@contextmanager
def start(case: Case, peer: Peer) -> Iterator[Machines]:
    """Run a peer on as many machines as it can have.

    Raises:
        PeerFailed
    """
    with ExitStack() as stack:
        redis = stack.enter_context(broker()) if peer.relayed else None
        count = MACHINES if peer.relayed else 1
        machines = [
            stack.enter_context(
                peers.start(
                    peer,
                    "fan-out",
                    case.connections // count,
                    case.our_children // count,
                    redis.where if redis else "",
                )
            )
            for _ in range(count)
        ]
        programs = [backend for machine in machines for backend in machine.backends]
        yield Machines(machines[0].url, "", programs, machines=machines, broker=redis)


def run(case: Case, peer: Peer) -> Figures:
    """Run a case with one peer; return what was measured.

    Raises:
        PeerFailed, GeneratorFailed
    """
    with start(case, peer) as running, Generator() as generator:
        try:
            for machine in running.machines:
                part = case.connections // len(running.machines)
                measure.connect(case, peer, machine, generator, part)
            generator.ask("fan_out", timed=case.timed)
            return measure.window(case, running, generator)
        except GeneratorFailed as error:
            raise GeneratorFailed(f"{error}\n{running.log_tail()}") from error
