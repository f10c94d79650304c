"""apachews_handler.lifecycle.custodian: what it lets go of, and when it is over.

What it carries on, and what becomes of its clients, is in
tests/integration/test_restarts.py, against real Apache.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews_handler.bridge.loop import Loop
from apachews_handler.bridge.thread import STOP_SPREAD_S, Bridge
from apachews_handler.lifecycle.custodian import HURRY_S, LOOK_S, Custodian, entrust
from apachews_handler.shared.signals import signals_blocked

from .test_bridge import Peers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def apache() -> Iterator[subprocess.Popen[bytes]]:
    """A process in the place of Apache's parent."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@dataclasses.dataclass
class Watching:
    """A custodian that learns of the end, its loop, and what may end."""

    custodian: Custodian
    loop: Loop
    apache: subprocess.Popen[bytes]
    pid_file: Path

    def ends_within_s(self) -> float | None:
        """Return in which time it closes its clients, None while it does not."""
        self.loop.turn(0)
        return self.custodian._end_within_s


@pytest.fixture
def watching(apache: subprocess.Popen[bytes], short_path: Path) -> Iterator[Watching]:
    pid_file = short_path / "apache.pid"
    pid_file.touch()
    parent = os.pidfd_open(apache.pid)
    loop = Loop()
    custodian = Custodian(loop, apache.pid, parent, str(pid_file))
    with signals_blocked():
        custodian.watch_for_the_end()
        yield Watching(custodian, loop, apache, pid_file)
        custodian._close()
    loop.close()
    os.close(parent)


def test_it_is_over_when_apache_has_gone(watching: Watching) -> None:
    assert watching.ends_within_s() is None
    watching.apache.kill()
    watching.apache.wait()
    assert watching.ends_within_s() == HURRY_S
    # The loop is not woken up by that again and again while clients are told.
    assert watching.custodian._parent not in watching.loop._readers


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_it_is_over_when_the_pid_file_has_gone(watching: Watching, how: str) -> None:
    if how == "unlink":
        watching.pid_file.unlink()
    else:
        watching.pid_file.rename(watching.pid_file.with_name("other.pid"))
    assert watching.ends_within_s() == HURRY_S


def test_a_pid_file_that_is_written_anew_ends_nothing(watching: Watching) -> None:
    """A reload does that: httpd renames a new file to the old one's name."""
    new = watching.pid_file.with_name("apache.pid.new")
    new.touch()
    new.rename(watching.pid_file)
    new.touch()
    new.unlink()
    assert watching.ends_within_s() is None
    watching.pid_file.unlink()
    assert watching.ends_within_s() == HURRY_S


def test_without_word_from_the_kernel_it_looks_itself(
    apache: subprocess.Popen[bytes], short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = short_path / "apache.pid"
    pid_file.touch()
    parent = os.pidfd_open(apache.pid)
    monkeypatch.setattr("fcntl.F_NOTIFY", 0x7FFF)  # EINVAL
    loop = Loop()
    custodian = Custodian(loop, apache.pid, parent, str(pid_file))
    with signals_blocked():
        custodian.watch_for_the_end()
        assert custodian._wait_s(10.0) == LOOK_S
        custodian._look_for_the_pid_file()
        assert custodian._end_within_s is None
        pid_file.unlink()
        custodian._look_for_the_pid_file()
        assert custodian._end_within_s == HURRY_S
        custodian._close()
    loop.close()
    os.close(parent)


def test_while_it_is_told_of_everything_it_sleeps(watching: Watching) -> None:
    assert watching.custodian._wait_s(10.0) == 10.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_is_over_when_it_is_told_so(watching: Watching, number: signal.Signals) -> None:
    assert watching.ends_within_s() is None
    # To this thread: another one, such as a pytest-xdist worker has, could take it.
    signal.pthread_kill(threading.get_ident(), number)
    assert watching.ends_within_s() == STOP_SPREAD_S


def test_other_descriptors_are_given_dev_null_in_their_place() -> None:
    program = """
import os, socket
from apachews_handler.lifecycle.custodian import give_up_descriptors
kept = socket.create_server(("127.0.0.1", 0))
port = socket.create_server(("127.0.0.1", 0))
number = port.getsockname()[1]
reader, writer = os.pipe()
give_up_descriptors([kept.fileno(), 1])
links = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in range(writer + 1)}
assert links.pop(kept.fileno()).startswith("socket:")
links.pop(1)
assert set(links.values()) == {"/dev/null"}, links
assert not any(os.get_inheritable(fd) for fd in links)
os.write(writer, b"into the void")
address = ("127.0.0.1", number)
socket.create_server(address)  # the port is free
print("well")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("well\n", "")


def test_a_bridge_that_was_frozen_is_thawed_with_everything_in_it() -> None:
    bridge = Bridge()
    bridge.start()
    peers = Peers(bridge)
    assert peers.next_item() is not None
    assert bridge.freeze()
    assert not bridge.is_running
    peers.client.sendall(b"\x81\x82\0\0\0\0hi")
    loop = bridge.thaw()
    while not peers.messages and not loop.is_empty:
        loop.turn(1)
        peers.producer.setblocking(False)
        try:
            assert peers.next_item() == "hi"
            break
        except BlockingIOError:
            continue
    loop.close()
    peers.close()


def test_a_bridge_without_connections_is_not_worth_a_process() -> None:
    bridge = Bridge()
    bridge.start()
    assert not bridge.freeze()
    bridge.thaw().close()


def test_there_is_no_custodian_without_an_apache() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    bridge = Bridge()
    bridge.start()
    peers = Peers(bridge)
    assert peers.next_item() is not None
    assert bridge.freeze()
    assert not entrust(bridge, ended.pid, None)
    ((level, line),) = peers.log.lines
    assert (level, line.partition(":")[0]) == ("warn", "1 WebSockets are closed with 1001")
    assert f"process {ended.pid} cannot be watched" in line
    bridge.thaw().close()
    peers.close()
