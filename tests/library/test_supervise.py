"""apachews._processes.supervise: what the three supervisors share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews._processes import sd_notify
from apachews._processes.supervise import (
    ChildEvents,
    RestartDelay,
    children_of,
    describe_exit,
    exit_status,
    kill_tree,
    seconds_until,
)
from tests.conftest import wait_for

# A process whose grandchildren were started by another thread than the main one, and which
# starts a new child whenever one exits.
FAMILY = """
import subprocess, sys, threading, time
def keep_child():
    while True:
        child = subprocess.Popen([sys.executable, "-c", CHILD])
        print(child.pid, flush=True)
        child.wait()
CHILD = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
threading.Thread(target=keep_child, daemon=True).start()
time.sleep(60)
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        kill_tree(process.pid)
        process.communicate()


def is_running(pid: int) -> bool:
    """Tell whether a process exists and is not a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_tree_is_killed_with_the_children_of_threads(family: subprocess.Popen[str]) -> None:
    assert family.stdout
    child = int(family.stdout.readline())
    wait_for(lambda: children_of(child))
    members = [child, *children_of(child)]
    assert children_of(family.pid) == [child]
    kill_tree(family.pid)
    assert family.wait() == -signal.SIGKILL
    wait_for(lambda: not any(map(is_running, members)))
    assert family.stdout.read() == "", "it started another child while it was killed"


def test_a_process_that_has_exited_has_no_tree() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert children_of(process.pid) == []
    kill_tree(process.pid)


def test_events_call_the_functions_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    before = signal.getsignal(signal.SIGUSR1)
    events = ChildEvents(
        [signal.SIGUSR1], heard.append, lambda pid, lines: heard.append((pid, lines))
    )
    reader, writer = os.pipe()
    try:
        monkeypatch.setenv("NOTIFY_SOCKET", events.address)
        events.add_reader(reader, lambda: heard.append(os.read(reader, 10)))
        assert list(events.readers) == [reader]
        os.write(writer, b"output")
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGCHLD)
        assert sd_notify.notify("READY=1")
        events.wait(10)
        assert heard == [b"output", (os.getpid(), ["READY=1"]), signal.SIGUSR1]
        events.remove_reader(reader)
        assert events.readers == {}
        os.write(writer, b"more")
        events.wait(0)
        assert len(heard) == 3
    finally:
        events.close()
        os.close(reader)
        os.close(writer)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_child_that_exits_ends_the_wait() -> None:
    events = ChildEvents(
        [], lambda number: pytest.fail(str(number)), lambda pid, lines: pytest.fail(str(lines))
    )
    try:
        child = subprocess.Popen(["true"])
        started_at = time.monotonic()
        events.wait(30)
        assert time.monotonic() - started_at < 20
        child.wait()
    finally:
        events.close()


def test_the_delay_of_a_restart_doubles_up_to_a_limit_and_starts_anew() -> None:
    delay = RestartDelay(0.5, 4.0, settled_s=10.0)
    assert [delay.after_run(1.0) for _ in range(5)] == [0.5, 1.0, 2.0, 4.0, 4.0]
    assert [delay.after_run(10.0), delay.after_run(0.0)] == [0.5, 1.0]
    delay.reset()
    assert delay.after_run(0.0) == 0.5
    at_once = RestartDelay(0.0, 1.0, settled_s=10.0, step_s=0.3)
    assert [at_once.after_run(1.0) for _ in range(5)] == [0.0, 0.3, 0.6, 1.0, 1.0]


def test_the_earliest_deadline_counts() -> None:
    now = time.monotonic()
    assert seconds_until([]) is None
    assert seconds_until([None]) is None
    assert seconds_until([now - 5, None, now + 5]) == 0.0
    assert 40 < (seconds_until([now + 50, now + 100]) or 0) <= 50


def test_an_exit_is_reported_as_by_a_shell() -> None:
    assert [exit_status(3), exit_status(-signal.SIGKILL)] == [3, 137]
    assert [describe_exit(3), describe_exit(-9), describe_exit(-40)] == [
        "status 3",
        "SIGKILL",
        "signal 40",
    ]
