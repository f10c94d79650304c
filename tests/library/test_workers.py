"""apachews._processes: workers that accept from one socket, and the supervision of programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews import Server, wire
from apachews._processes import sd_notify, supervise
from apachews._processes.sd_notify import NotifyReceiver
from apachews._processes.supervise import (
    ChildEvents,
    RestartDelay,
    describe_exit,
    exit_status,
    kill_tree,
    seconds_until,
)
from apachews.wire.reader import Moved

from ..conftest import wait_for
from ..support.bridge_by_hand import Bridge
from ..support.producers import ECHO, children_of, ended, is_alive, program, running


@pytest.fixture
def path(short_path: Path) -> str:
    return str(short_path / "a.ws")


def two_workers(process: subprocess.Popen[str], path: str) -> list[int]:
    """Wait until both serve; return their process ids."""
    wait_for(lambda: len(children_of(process.pid)) == 2 and os.path.exists(path))
    workers: set[str] = set()
    wait_for(lambda: workers.add(ask(path)) or len(workers) == 2)  # type: ignore[func-returns-value]
    return sorted(map(int, workers))


def ask(path: str) -> str:
    """Return which process serves a new client."""
    bridge = Bridge(path)
    bridge.send(wire.TEXT, b"who")
    answers = wait_for(bridge.read_available)
    bridge.socket.close()
    assert isinstance(answers[0], str)
    return answers[0]


def a_client_of_each(path: str) -> dict[str, Bridge]:
    """Return two clients, by the process ids of the two workers that serve them."""
    clients: dict[str, Bridge] = {}
    while len(clients) < 2:
        bridge = Bridge(path)
        bridge.send(wire.TEXT, b"who")
        answer = str(wait_for(bridge.read_available)[0])
        if answer in clients:
            bridge.socket.close()
        else:
            clients[answer] = bridge
    return clients


def test_clients_are_spread_over_the_workers(short_path: Path, path: str) -> None:
    with running(program(short_path), path, "3") as process:
        wait_for(lambda: len(children_of(process.pid)) == 3 and os.path.exists(path))
        wait_for(lambda: len({ask(path) for _ in range(30)}) == 3)
        # Each of these comes when all three sleep.
        served = Counter(ask(path) for _ in range(60))
        assert sorted(map(int, served)) == sorted(children_of(process.pid))
        assert min(served.values()) >= 10
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 128 + signal.SIGTERM
    assert not os.path.exists(path)


def test_a_worker_that_is_killed_is_replaced_and_the_others_serve_on(
    short_path: Path, path: str
) -> None:
    with running(program(short_path), path, "2") as process:
        two_workers(process, path)
        clients = a_client_of_each(path)
        killed, other = clients
        os.kill(int(killed), signal.SIGKILL)
        wait_for(lambda: clients[killed].is_at_end)
        assert set(two_workers(process, path)) > {int(other)}
        clients[other].send(wire.TEXT, b"who")
        assert wait_for(clients[other].read_available) == [other]
        for bridge in clients.values():
            bridge.socket.close()
        process.send_signal(signal.SIGINT)
        status, output = ended(process)
    assert status == 128 + signal.SIGINT
    assert "a worker exited with status 137; restart in 0 s" in output


def test_a_signal_that_is_ignored_is_ignored(short_path: Path, path: str) -> None:
    """As with nohup, when the terminal is closed."""
    text = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + ECHO
    with running(program(short_path, text), path, "2") as process:
        two_workers(process, path)
        process.send_signal(signal.SIGHUP)
        assert int(ask(path)) in two_workers(process, path)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 128 + signal.SIGTERM


def test_workers_that_are_done_are_not_replaced(short_path: Path, path: str) -> None:
    text = "import sys; from apachews import Server; Server(sys.argv[1], workers=2).close()"
    with running(program(short_path, text), path) as process:
        assert ended(process) == (0, "")
    assert not os.path.exists(path)


def test_a_program_that_fails_at_once_does_not_spin(short_path: Path, path: str) -> None:
    text = """
import os, sys
from apachews import Server
server = Server(sys.argv[1], workers=1)
os._exit(3)
"""
    with running(program(short_path, text), path) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(4)]
        assert [line.split()[-2] for line in lines] == ["0", "0.1", "0.2", "0.4"]
        process.send_signal(signal.SIGTERM)
        ended(process)


def test_the_socket_stays_while_one_worker_is_left(short_path: Path, path: str) -> None:
    text = """
import sys
from apachews import Server
server = Server(sys.argv[1], workers=2)
for event in server:
    if event.read() == "leave":
        server.drain(0)
    elif event.read() == "who":
        import os
        event.write(str(os.getpid()))
"""
    with running(program(short_path, text), path) as process:
        two_workers(process, path)
        bridge = Bridge(path)
        bridge.send(wire.TEXT, b"leave")
        wait_for(lambda: len(children_of(process.pid)) == 1)
        assert {ask(path) for _ in range(5)} == {str(children_of(process.pid)[0])}
        bridge.socket.close()
        last = Bridge(path)
        last.send(wire.TEXT, b"leave")
        assert ended(process) == (0, "")
        last.socket.close()
    assert not os.path.exists(path)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_what_the_program_does_at_a_signal_is_its_own(
    short_path: Path, path: str, number: signal.Signals
) -> None:
    text = """
import os, signal, sys
from apachews import Server
servers = []
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, lambda *_: servers[0].call_soon(servers[0].close))
servers.append(Server(sys.argv[1], workers=2))
for event in servers[0]:
    if event.read() == "who":
        event.write(str(os.getpid()))
"""
    with running(program(short_path, text), path) as process:
        two_workers(process, path)
        bridge = Bridge(path)
        bridge.send(wire.TEXT, b"who")
        wait_for(bridge.read_available)
        process.send_signal(number)
        assert ended(process) == (0, "")
        assert bridge.read_available() == [wire.Close(1001, "the server closes")]
        bridge.socket.close()


def test_workers_do_not_outlive_their_supervisor(short_path: Path, path: str) -> None:
    with running(program(short_path), path, "2") as process:
        workers = two_workers(process, path)
        process.kill()
        wait_for(lambda: not any(map(is_alive, workers)))


def test_a_worker_that_hangs_is_found_and_replaced(short_path: Path, path: str) -> None:
    text = """
import os, sys
from apachews import Server
server = Server(sys.argv[1], workers=2)
for event in server:
    if event.read() == "who":
        event.write(str(os.getpid()))
    while event.read() == "hang":
        pass
"""
    receiver = NotifyReceiver()
    env = {"NOTIFY_SOCKET": receiver.address, "WATCHDOG_USEC": "500000"}
    with running(program(short_path, text), path, env=env) as process:
        workers = two_workers(process, path)
        bridge = Bridge(path)
        bridge.send(wire.TEXT, b"hang")
        wait_for(lambda: set(children_of(process.pid)) != set(workers))
        wait_for(lambda: len(children_of(process.pid)) == 2)
        assert len(set(children_of(process.pid)) & set(workers)) == 1
        messages = list(receiver.receive_nowait())
        assert {pid for pid, _ in messages} == {process.pid}
        assert messages[0][1] == ["READY=1", f"STATUS=listening on {path}"]
        assert {line for _, lines in messages[1:] for line in lines} == {"WATCHDOG=1"}
        bridge.socket.close()
        process.send_signal(signal.SIGTERM)
        assert "a worker exited with status 134" in ended(process)[1]
    receiver.close()


def test_what_cannot_be(path: str) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Server(path, workers=-1)
    with Server(path), pytest.raises(ValueError, match="only one"):
        Server(path, workers=2)


def test_workers_that_all_hand_their_clients_on_get_none_back(short_path: Path, path: str) -> None:
    """Not by the path; and who waits to be accepted is not forgotten."""
    text = """
import os, signal, sys, time
from apachews import Event, Server
server = Server(sys.argv[1], workers=2)
signal.signal(signal.SIGTERM, lambda *_: server.call_soon(server.drain))
for event in server:
    if event.type() is Event.IO:
        event.write(str(os.getpid()) if event.read() == "who" else event.read())
        if event.read() == "sleep":
            time.sleep(1)
"""
    with running(program(short_path, text), path) as process:
        two_workers(process, path)
        clients = a_client_of_each(path)
        for bridge in clients.values():
            bridge.send(wire.TEXT, b"sleep")
            assert wait_for(bridge.read_available) == ["sleep"]
        waiting = Bridge(path)  # no worker accepts it now
        waiting.send(wire.TEXT, b"last words")
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: not os.path.exists(path))
        said: list[object] = []
        for bridge in (*clients.values(), waiting):
            answers: list[object] = []
            while Moved() not in answers:
                answers += wait_for(bridge.read_available)
            said += answers
            bridge.send(wire.MOVE)
        assert ended(process)[0] == 0
        said += waiting.read_available()
        assert sorted(map(str, said)) == ["Moved()"] * 3 + ["last words"]
        for bridge in (*clients.values(), waiting):
            assert bridge.is_at_end
            bridge.socket.close()


# apachews._processes.supervise: what the three supervisors share.


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
    wait_for(lambda: supervise.children_of(child))
    members = [child, *supervise.children_of(child)]
    assert supervise.children_of(family.pid) == [child]
    kill_tree(family.pid)
    assert family.wait() == -signal.SIGKILL
    wait_for(lambda: not any(map(is_running, members)))
    assert family.stdout.read() == "", "it started another child while it was killed"


def test_a_process_that_has_exited_has_no_tree() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert supervise.children_of(process.pid) == []
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
