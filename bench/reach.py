"""How far one relay goes: what a broker's message costs here, and how many machines it carries.

``python -m bench.reach measure`` measures the processor time of Redis (and of nats-server, if it is
installed) for each message, by the number of its subscribers.  ``python -m bench.reach draw``
writes the plot of ``docs/howto/machines.md``, and prints its table, from the figures below.

How this works.  The simulated site has clients on many machines, each in one group, at random.
``g`` groups have a member on a machine, and each group has a message a second.  So each machine
receives ``g`` messages a second, and the broker writes ``machines * g``.  The size of the groups
says how many there are, and to how many machines each message goes.

A broker that has time sends each message alone.  A busy one finds a message of every machine in
each turn of its loop, and sends a machine what it has for it at once: as many messages as the
machines that each message goes to.  So it makes as many system calls as messages are published.
"""

from __future__ import annotations

import contextlib
import math
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apachews_tools.httpd.private_apache import free_port

from . import cpu, peers, plot, processes, relay

DOCS: Final = Path(__file__).resolve().parents[1] / "docs" / "howto"
PLOT: Final = "machines.svg"
CLIENTS: Final = 20_000  # on a machine
MACHINES: Final = (10, 100, 1000)
MEMBERS: Final = (2, 10, 100, 1_000, 10_000)  # of a group, on all machines
# A node that is busier than this has no time for a burst.
BUSY: Final = 0.7

MESSAGE_BYTES: Final = 218  # 200 and the header of the relay
# The same with its channel, as Redis writes it.
WRITTEN_BYTES: Final = 290
LINK_GBIT: Final = 10.0  # the network of a broker
SUBSCRIBERS: Final = (1, 10, 100)
# Messages that arrive at once: at a broker that has time, and at a busy one.
PUBLISHERS: Final = (1, 50)
SECONDS: Final = 2.0


@dataclass(frozen=True)
class Cost:
    """Processor time of a broker.

    Attributes:
        publish_us: for each message, without subscribers.
        write_us: for each subscriber that gets it.
        send_us: for each system call that sends messages to a subscriber.
    """

    publish_us: float
    write_us: float
    send_us: float


# What ``measure`` found for Redis 7.0 on the machine of docs/explanation/performance.md.
REDIS: Final = Cost(publish_us=8.0, write_us=0.25, send_us=5.0)


@dataclass(frozen=True)
class Load:
    """What a site asks of its broker.

    Attributes:
        groups: with members on a machine.
        published: messages a second.
        written: the same, once for each machine that gets one.
    """

    groups: float
    published: float
    written: float

    @property
    def cores(self) -> float:
        """Cores of Redis that it takes, if they are busy."""
        published_us = self.published * (REDIS.publish_us + REDIS.send_us)
        return (published_us + self.written * REDIS.write_us) / 1e6

    @property
    def gbit(self) -> float:
        """Gbit/s that Redis sends."""
        return self.written * WRITTEN_BYTES * 8 / 1e9

    @property
    def share(self) -> float:
        """How much of one node is busy, its core or its link; above 1: of several."""
        return max(self.cores, self.gbit / LINK_GBIT)

    @property
    def nodes(self) -> int:
        """Nodes of a cluster, each of which has one core and one link."""
        return math.ceil(self.share / BUSY)


def machines_with(members: float, machines: int) -> float:
    """Return how many machines have a member of a group, if each member's is any of them."""
    without = math.pow(1.0 - 1.0 / machines, members)
    return machines * (1.0 - without)


def load(machines: int, members: float) -> Load:
    """Return the load of a site by the members of a group, of whom each may be on any machine."""
    published = machines * CLIENTS / members
    each = machines_with(members, machines)
    return Load(published * each / machines, published, published * each)


HEADS: Final = [
    *("machines", "members of a group", "groups on each machine", "published/s", "written/s"),
    *("cores of Redis", "Gbit/s", "nodes"),
]


def table() -> str:
    """Return the table of the page."""
    rows = [
        [
            f"{machines:,}",
            f"{members:,}",
            plot.number(found.groups),
            plot.number(found.published),
            plot.number(found.written),
            plot.number(found.cores),
            plot.number(found.gbit),
            f"{found.nodes:,}",
        ]
        for machines in MACHINES
        for members in MEMBERS
        for found in [load(machines, members)]
    ]
    lines = [HEADS, ["---"] * len(HEADS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def drawing() -> str:
    """Return the plot of the page."""
    series = []
    for machines in MACHINES:
        # From pairs to ten groups for all clients of the site.
        most = math.log10(machines * CLIENTS / 10 / 2)
        sizes = [2 * 10 ** (most * step / 40) for step in range(40, -1, -1)]
        found = [load(machines, members) for members in sizes]
        line = [(one.groups, one.share) for one in found]
        series.append((f"{machines:,} machines", line))
    return plot.lines(
        "Load of Redis, with 20,000 clients on each machine",
        "groups with members on a machine, each with a message a second",
        "share of one Redis that is busy, its core or its link of 10 Gbit/s",
        series,
        marks=[(BUSY, "one Redis"), (16 * BUSY, "a cluster of 16 nodes")],
    )


class Broker:
    """A server's process, and how to speak to it over a socket."""

    # To receive all messages: answered at once.
    subscription: bytes
    # To publish one: the answer ends with a line.
    message: bytes

    def __init__(self, command: list[str], port: int, executable: str | None = None) -> None:
        self.port = port
        self.process = subprocess.Popen(
            command,
            executable=executable,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def connect(self) -> socket.socket:
        """Connect, as soon as it listens."""
        deadline = time.monotonic() + peers.START_TIMEOUT_S
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), peers.START_TIMEOUT_S)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def subscriber(self) -> socket.socket:
        """Return a connection that gets all messages."""
        sock = self.connect()
        sock.sendall(self.subscription)
        sock.recv(4096)
        return sock


class RedisBroker(Broker):
    """Redis."""

    subscription = b"SUBSCRIBE c\r\n"
    message = b"*3\r\n$7\r\nPUBLISH\r\n$1\r\nc\r\n$%d\r\n%s\r\n" % (
        MESSAGE_BYTES,
        bytes(MESSAGE_BYTES),
    )


class NatsBroker(Broker):
    """nats-server: the answer is that to the PING after a message."""

    subscription = b"SUB c 1\r\nPING\r\n"
    message = b"PUB c %d\r\n%s\r\nPING\r\n" % (MESSAGE_BYTES, bytes(MESSAGE_BYTES))

    def connect(self) -> socket.socket:
        """Connect, and introduce the client."""
        sock = super().connect()
        sock.recv(4096)  # INFO
        sock.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
        sock.recv(4096)
        return sock


def brokers() -> Iterator[tuple[str, Broker]]:
    """Start one after the other; each ends before the next one starts."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1"]
    redis = RedisBroker([*relay.COMMAND, *options], port, relay.program())
    try:
        yield "Redis", redis
    finally:
        processes.end(redis.process)
    if found := shutil.which("nats-server"):
        port = free_port()
        nats = NatsBroker([found, "-a", "127.0.0.1", "-p", str(port)], port)
        try:
            yield "NATS", nats
        finally:
            processes.end(nats.process)


@contextlib.contextmanager
def drained(sockets: list[socket.socket]) -> Iterator[None]:
    """Read what arrives at subscribers, on a thread."""
    poll = select.epoll()
    by_fd = {sock.fileno(): sock for sock in sockets}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    is_over = threading.Event()
    buffer = bytearray(1 << 20)

    def run() -> None:
        while not is_over.is_set():
            for fd, _ in poll.poll(0.05):
                by_fd[fd].recv_into(buffer)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        poll.close()


def measure(
    broker: Broker, subscribers: int, publishers: int, seconds: float = SECONDS
) -> tuple[float, float]:
    """Return messages a second, and the broker's µs for each.

    Connections publish at once, each its next message after the answers to the last ones, as the
    producers of several machines do.
    """
    receiving = [broker.subscriber() for _ in range(subscribers)]
    sending = [broker.connect() for _ in range(publishers)]
    with contextlib.ExitStack() as stack:
        for sock in receiving + sending:
            stack.callback(sock.close)
        stack.enter_context(drained(receiving))
        before, begin = cpu.read([broker.process.pid]), time.monotonic()
        count = 0
        while time.monotonic() < begin + seconds:
            for sock in sending:
                sock.sendall(broker.message)
            for sock in sending:
                while not sock.recv(4096).endswith(b"\n"):
                    pass
            count += publishers
        passed = time.monotonic() - begin
        used = cpu.used(before, cpu.read([broker.process.pid]))
    return count / passed, used.seconds * 1e6 / count


def fitted(alone: dict[int, float], at_once: dict[int, float]) -> Cost:
    """Return the cost for µs by the number of subscribers, with messages alone and at once."""
    first, last = min(alone), max(alone)
    alone_us = (alone[last] - alone[first]) / (last - first)
    write_us = (at_once[last] - at_once[first]) / (last - first)
    return Cost(at_once[first] - first * write_us, write_us, alone_us - write_us)


def main(arguments: list[str]) -> int:
    """Run the command."""
    if arguments == ["draw"]:
        (DOCS / PLOT).write_text(drawing())
        print(table())
        return 0
    if arguments != ["measure"]:
        print("usage: python -m bench.reach measure|draw", file=sys.stderr)
        return 2
    for name, broker in brokers():
        found: dict[int, dict[int, float]] = {number: {} for number in PUBLISHERS}
        for publishers, by_subscribers in found.items():
            for subscribers in SUBSCRIBERS:
                rate, by_subscribers[subscribers] = measure(broker, subscribers, publishers)
                print(
                    f"{name}, {subscribers} subscribers, {publishers} at once: {rate:,.0f}"
                    f" messages/s, {by_subscribers[subscribers]:.1f} µs for each",
                    flush=True,
                )
        print(f"{name}: {fitted(*found.values())}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
