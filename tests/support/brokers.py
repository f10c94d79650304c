"""Redis, Valkey, Sentinels and NATS as processes of a test, on free ports; another machine."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from ..conftest import DEADLINE_S, wait_for

T = TypeVar("T")

# Name -> program.  Debian's packages of the tools have the server under another name, and start
# none; it is a server if its first argument says so.  Debian 13 and later have Valkey, too, whose
# commands are the same.
SERVERS = {
    f"{kind}-server": path
    for kind in ("redis", "valkey")
    if (path := shutil.which(f"{kind}-server") or shutil.which(f"{kind}-check-rdb"))
}


def free_port() -> int:
    """Return a port of 127.0.0.1 that no program listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _state(task: Path) -> str:
    """Return the state of a thread, from ``PID (name) STATE …``."""
    return (task / "stat").read_text().rpartition(") ")[2][0]


class _ServerProcess:
    """The process of a server on a free port."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """Kill it; nothing is saved."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop it as a machine that hangs would: connections stay, answers do not come."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        # Its threads stop one after the other, on a busy machine later than the signal is sent.
        tasks = Path(f"/proc/{self._process.pid}/task")
        wait_for(lambda: all(_state(task) == "T" for task in tasks.iterdir()))

    def resume(self) -> None:
        """Let it continue after ``pause``."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)


class Broker(_ServerProcess):
    """One server; ``start`` and ``kill`` may follow each other.

    Attributes:
        url: its address for ``relay=``.
        unix_url: the same by its Unix socket.
        command: that starts it.
        bus_port: of a node of a cluster.
    """

    def __init__(self, directory: Path, *options: str, program: str = "") -> None:
        super().__init__()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.unix_url = f"unix://{directory}/redis-{self.port}.sock"
        self.command = [
            program or next(iter(SERVERS)),
            *("--port", str(self.port), "--bind", "127.0.0.1"),
            *("--unixsocket", f"{directory}/redis-{self.port}.sock"),
            *("--save", "", "--appendonly", "no", "--dir", str(directory)),
            *("--logfile", f"{directory}/redis-{self.port}.log"),
            *options,
        ]
        self.bus_port = 0

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            self.command,
            executable=SERVERS[self.command[0]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        wait_for(lambda: self.call("PING").startswith((b"+PONG", b"-NOAUTH")))

    def call(self, *words: str) -> bytes:
        """Send a command; return the first bytes of the answer, b"" if it does not listen."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), DEADLINE_S) as sock:
                sock.sendall(
                    b"*%d\r\n" % len(words)
                    + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)
                )
                return sock.recv(65536)
        except OSError:
            return b""


@contextmanager
def running_broker(directory: Path, *options: str, program: str = "") -> Iterator[Broker]:
    """Run one server."""
    broker = Broker(directory, *options, program=program)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


@contextmanager
def running_cluster(directory: Path, nodes: int = 3) -> Iterator[list[Broker]]:
    """Run a cluster of primaries, the slots divided among them."""
    brokers = []
    try:
        for number in range(nodes):
            port = free_port()
            broker = Broker(
                directory,
                *("--cluster-enabled", "yes", "--cluster-node-timeout", "2000"),
                *("--cluster-config-file", f"{directory}/nodes-{number}.conf"),
                # The bus would otherwise be 10,000 above the port, which may be no port.
                *("--cluster-port", str(port)),
            )
            broker.start()
            brokers.append(broker)
            first, last = 16384 * number // nodes, 16384 * (number + 1) // nodes - 1
            broker.call("CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
            broker.call("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            broker.bus_port = port
        for broker in brokers[1:]:
            broker.call(
                *("CLUSTER", "MEET", "127.0.0.1"),
                *(str(brokers[0].port), str(brokers[0].bus_port)),
            )
        for broker in brokers:
            wait_for(lambda b=broker: b"cluster_state:ok" in b.call("CLUSTER", "INFO"))  # type: ignore[misc]
            wait_for(
                lambda b=broker: b"cluster_known_nodes:%d" % nodes in b.call("CLUSTER", "INFO")  # type: ignore[misc]
            )
        yield brokers
    finally:
        for broker in brokers:
            broker.kill()


@contextmanager
def running_sentinel(directory: Path, *masters: Broker) -> Iterator[Broker]:
    """Run a Sentinel that watches the first of these; the others are its replicas."""
    configuration = directory / "sentinel.conf"
    configuration.write_text(
        f"sentinel monitor mymaster 127.0.0.1 {masters[0].port} 1\n"
        "sentinel down-after-milliseconds mymaster 500\n"
        "sentinel failover-timeout mymaster 5000\n"
    )
    sentinel = Broker(directory)
    sentinel.command = [
        *(sentinel.command[0], str(configuration), "--sentinel"),
        *("--port", str(sentinel.port), "--bind", "127.0.0.1"),
        *("--logfile", f"{directory}/sentinel.log"),
    ]
    sentinel.start()
    try:
        yield sentinel
    finally:
        sentinel.kill()


class NatsBroker(_ServerProcess):
    """A server of NATS; ``start`` and ``kill`` may follow each other."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._command = ["nats-server", "-a", "127.0.0.1", "-p", str(self.port)]
        # The log has every command.
        self._command += ["-V", "-l", f"{directory}/nats.log"]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        wait_for(self._is_listening)

    def _is_listening(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), DEADLINE_S) as sock:
                return sock.recv(4096).startswith(b"INFO")
        except OSError:
            return False


class OtherMachine:
    """A network namespace, with a link to this one.

    Attributes:
        here: the address of this machine, as the other one reaches it.
    """

    def __init__(self) -> None:
        self._name = f"aw-{os.getpid()}-{random.randrange(1000)}"
        self._link = f"aw{os.getpid()}"[:15]
        # 198.18.0.0/15 is for tests of networks (RFC 2544).
        network = f"198.18.{random.randrange(256)}"
        self.here = f"{network}.1"
        self._there = f"{network}.2"

    def open(self) -> None:
        """Make the namespace and the link.

        Raises:
            subprocess.CalledProcessError: it is not allowed.
            FileNotFoundError: ``ip`` is not installed.
        """
        _ip("netns", "add", self._name)
        peer = ("peer", "name", "eth0", "netns", self._name)
        _ip("link", "add", self._link, "type", "veth", *peer)
        _ip("address", "add", f"{self.here}/24", "dev", self._link)
        _ip("link", "set", self._link, "up")
        _ip("-n", self._name, "address", "add", f"{self._there}/24", "dev", "eth0")
        self.connect()

    def close(self) -> None:
        """Remove both; closing again does nothing."""
        subprocess.run(["ip", "netns", "delete", self._name], check=False, capture_output=True)
        # It disappears with the namespace, but some moments later.
        subprocess.run(["ip", "link", "delete", self._link], check=False, capture_output=True)

    def disconnect(self) -> None:
        """Pull the cable: packets are lost, and connections learn nothing of it."""
        _ip("-n", self._name, "link", "set", "eth0", "down")

    def connect(self) -> None:
        """Plug the cable in."""
        _ip("-n", self._name, "link", "set", "eth0", "up")

    def run(self, function: Callable[[], T]) -> T:
        """Call a function on the machine: its sockets, and those of its threads, are there."""

        def call() -> T:
            # The namespace of this thread alone; the threads that it starts inherit it.
            with open(f"/run/netns/{self._name}", "rb") as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")
            return function()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(call).result()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def other_machine() -> Iterator[OtherMachine]:
    """Make another machine; skip the test if this user must not, or the kernel cannot."""
    machine = OtherMachine()
    try:
        try:
            machine.open()
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", b"").decode().strip() or error
            pytest.skip(f"a network namespace needs root, CAP_NET_ADMIN and iproute2: {why}")
        yield machine
    finally:
        machine.close()
