"""bridge.reporter and apachews.monitoring.collect: a process is asked, and answers."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from apachews import wire
from apachews.monitoring.collect import SEALS, RunningApache, collect, socket_name
from apachews.monitoring.snapshot import CHILD, CLOSING, HELD, MAX_LISTED, OPEN, Status
from apachews_handler.bridge import reporter
from apachews_handler.bridge.loop import Loop
from apachews_handler.bridge.reporter import Reporter
from apachews_handler.bridge.thread import Bridge
from apachews_handler.protocol.client_reader import KEEPALIVE
from apachews_handler.shared import rundir

from ..conftest import DEADLINE_S, wait_for
from ..support.frames import masked
from ..support.site import IS_ROOT, ROOT
from .test_bridge import Lines, Peers

APACHE = os.getpid()
LOG = Lines()


@pytest.fixture
def bridge(temporary: Path) -> Iterator[Bridge]:
    """A bridge that reports its status, and removes its files."""
    bridge = Bridge()
    bridge.start(Reporter(bridge.loop, CHILD, APACHE, LOG))
    yield bridge
    bridge.stop()
    assert list(temporary.iterdir()) == []


@pytest.fixture
def connect(bridge: Bridge) -> Iterator[Callable[..., Peers]]:
    with ExitStack() as stack:

        def connect(**settings: object) -> Peers:
            peers = Peers(bridge, **settings)  # type: ignore[arg-type]
            stack.callback(peers.close)
            assert isinstance(peers.next_item(), wire.Open)
            return peers

        yield connect


def test_a_process_without_connections(bridge: Bridge, temporary: Path) -> None:
    (process,) = collect(str(temporary), APACHE).processes
    assert 1 << 20 < process.memory_bytes < 1 << 32
    assert (process.pid, process.kind, process.apache) == (os.getpid(), CHILD, APACHE)
    assert (process.endpoints, process.connections, process.connections_count) == ((), (), 0)


def test_what_has_passed_and_what_has_ended(connect: Callable[..., Peers], temporary: Path) -> None:
    first, second = connect(path="/a.ws"), connect(path="/a.ws")
    first.client.sendall(masked(0x81, b"hello"))
    assert first.next_item() == "hello"
    first.producer.sendall(wire.encode_frame(wire.BINARY, b"xyz"))
    assert first.client_reads(5) == b"\x82\x03xyz"
    second.client.sendall(masked(0x88, wire.encode_close(3001, "")))
    wait_for(lambda: second.released)

    def ended() -> bool:
        return collect(str(temporary), APACHE).endpoints()[0].open == 1

    wait_for(ended)
    status = collect(str(temporary), APACHE)
    (endpoint,) = status.endpoints()
    assert (endpoint.path, endpoint.total, endpoint.open) == ("/a.ws", 2, 1)
    assert (endpoint.messages_in, endpoint.bytes_in) == (1, 5)
    assert (endpoint.messages_out, endpoint.bytes_out) == (1, 3)
    assert endpoint.closes == {"3001": 1}
    ((_, connection),) = status.connections()
    assert (connection.endpoint, connection.state) == ("/a.ws", OPEN)
    assert (connection.bytes_in, connection.bytes_out, connection.round_trip_s) == (5, 3, None)


def test_states_and_queues(
    connect: Callable[..., Peers], temporary: Path, short_path: Path
) -> None:
    held = connect(path=str(short_path / "absent.ws"), hold_s=60.0)
    held.producer.close()
    closing = connect(path="/closing.ws", close_timeout_s=60.0)
    closing.producer.sendall(wire.encode_frame(wire.CLOSE, wire.encode_close(1000, "")))
    slow = connect(path="/slow.ws", max_buffer_bytes=65536)
    # Its client does not read, so the kernel's buffers fill up, then ours.
    frame = wire.encode_frame(wire.BINARY, bytes(60_000))
    slow.producer.setblocking(False)

    def states() -> dict[str, str]:
        for _ in range(20):
            try:
                slow.producer.send(frame)
            except BlockingIOError:
                break
        status = collect(str(temporary), APACHE)
        queued = sum(endpoint.queued_out for endpoint in status.endpoints())
        return {c.endpoint: c.state for _, c in status.connections()} if queued else {}

    assert wait_for(states) == {
        held.connection.endpoint: HELD,
        "/closing.ws": CLOSING,
        "/slow.ws": OPEN,
    }
    total = collect(str(temporary), APACHE).total()
    assert (total.held, total.closing, total.open) == (1, 1, 1)


def test_the_round_trip_of_a_ping_is_measured(
    connect: Callable[..., Peers], temporary: Path
) -> None:
    peers = connect(path="/a.ws", ping_interval_s=0.05, ping_timeout_s=10.0)
    ping = wire.encode_frame(wire.PING, KEEPALIVE)
    assert peers.client_reads(len(ping)) == ping
    peers.client.sendall(masked(0x8A, KEEPALIVE))

    def measured() -> Status | None:
        status = collect(str(temporary), APACHE)
        return status if status.processes[0].round_trips.count else None

    status = wait_for(measured)
    assert status
    ((process, connection),) = status.connections()
    assert connection.round_trip_s == pytest.approx(process.round_trips.sum_s)
    assert 0 < process.round_trips.sum_s < 5


def test_thousands_are_counted_and_the_oldest_described(
    connect: Callable[..., Peers], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "MAX_LISTED", 5)
    monkeypatch.setattr(reporter, "STEP_CONNECTIONS", 2)
    made = [connect(path=f"/{number}.ws") for number in range(9)]
    (process,) = collect(str(temporary), APACHE).processes
    assert process.connections_count == 9
    assert [c.endpoint for c in process.connections] == [p.connection.endpoint for p in made[:5]]
    assert len(process.endpoints) == 9
    assert MAX_LISTED == 1000


def test_messages_pass_while_a_walk_goes_on(
    bridge: Bridge,
    connect: Callable[..., Peers],
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The walk of the test does not end before a message has passed that was sent during it."""
    peers = connect(path="/a.ws")
    has_started, has_passed = threading.Event(), threading.Event()
    real = reporter.Walk.step

    def step(walk: reporter.Walk) -> bool:
        has_started.set()
        return real(walk) and has_passed.is_set()

    monkeypatch.setattr(reporter.Walk, "step", step)
    found: list[Status] = []
    asked = threading.Thread(
        target=lambda: found.append(collect(str(temporary), APACHE, DEADLINE_S))
    )
    asked.start()
    assert has_started.wait(DEADLINE_S)
    peers.client.sendall(masked(0x81, b"x"))
    assert peers.next_item() == "x"
    has_passed.set()
    asked.join()
    assert found[0].processes


def test_a_reader_that_does_not_read_is_not_waited_for(bridge: Bridge, temporary: Path) -> None:
    path = str(temporary / socket_name(APACHE, os.getpid()))
    with ExitStack() as stack:
        for _ in range(reporter.MAX_READERS * 2):
            idle = stack.enter_context(socket.socket(socket.AF_UNIX))
            idle.connect(path)
        wait_for(lambda: not bridge._reporter or not bridge._reporter._readers)
        assert collect(str(temporary), APACHE).processes


def test_a_walk_that_fails_closes_no_websocket(
    connect: Callable[..., Peers], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(walk: reporter.Walk) -> bool:
        raise RuntimeError("a bug")

    peers = connect(path="/a.ws")
    with monkeypatch.context() as patched:
        patched.setattr(reporter.Walk, "step", fail)
        assert collect(str(temporary), APACHE, 0.2).silent == (os.getpid(),)
    level, line = LOG.lines[-1]
    assert (level, line.splitlines()[-1]) == ("error", "RuntimeError: a bug")
    peers.client.sendall(masked(0x81, b"still"))
    assert peers.next_item() == "still"
    assert collect(str(temporary), APACHE).processes


def test_a_directory_of_another_user_is_refused(bridge: Bridge, temporary: Path) -> None:
    for path in (temporary, temporary / "link"):
        if path != temporary:
            path.symlink_to(temporary)
        with pytest.raises(OSError, match="another user") as caught:
            owner = os.geteuid() + (path == temporary)
            collect(str(path), APACHE, owner=owner)
        assert caught.value.filename == str(path)
    (temporary / "link").unlink()


def test_a_child_that_becomes_a_custodian_meanwhile_is_not_missed(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is listed, and removed before ``collect`` connects to it."""
    rundir.open_directory(APACHE)
    listed = os.listdir
    custodian = Bridge()

    def list_too_early(path: str) -> list[str]:
        names = listed(path)
        monkeypatch.setattr("apachews.monitoring.collect.os.listdir", listed)
        custodian.start(Reporter(custodian.loop, "custodian", APACHE, LOG))
        return [*names, socket_name(APACHE, 999_999_999)]

    monkeypatch.setattr("apachews.monitoring.collect.os.listdir", list_too_early)
    try:
        (process,) = collect(str(temporary), APACHE).processes
        assert process.kind == "custodian"
    finally:
        custodian.stop()


def test_no_descriptor_is_left_open(bridge: Bridge, temporary: Path) -> None:
    def descriptors() -> set[str]:
        # (The caller may have its answer before the reporter has closed the other ends.)
        wait_for(lambda: not bridge._reporter or not bridge._reporter._readers)
        return set(os.listdir("/proc/self/fd"))

    collect(str(temporary), APACHE)
    before = descriptors()
    for _ in range(20):
        assert collect(str(temporary), APACHE).processes
    assert descriptors() == before


def test_a_process_without_descriptors_closes_the_connections_of_callers(
    bridge: Bridge, temporary: Path
) -> None:
    """If they were not accepted, epoll would report them in every turn."""
    path = str(temporary / socket_name(APACHE, os.getpid()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(10)
        opened = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        try:
            with pytest.raises(OSError):
                while True:
                    opened.append(os.open(os.devnull, os.O_RDONLY))
            caller.connect(path)
            assert caller.recv(1) == b""
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in opened:
                os.close(fd)
    assert collect(str(temporary), APACHE).processes


def test_a_frozen_bridge_has_no_reporter(temporary: Path) -> None:
    bridge = Bridge()
    bridge.start(Reporter(bridge.loop, CHILD, APACHE, LOG))
    peers = Peers(bridge)
    assert peers.next_item() is not None
    assert bridge.freeze()
    assert list(temporary.iterdir()) == []
    loop = bridge.thaw()
    reporter = Reporter(loop, "custodian", APACHE, LOG)
    found: list[Status] = []
    asked = threading.Thread(target=lambda: found.append(collect(str(temporary), APACHE)))
    asked.start()
    while asked.is_alive():
        loop.turn(0.01)
    (process,) = found[0].processes
    assert (process.kind, process.connections_count) == ("custodian", 1)
    loop.close()
    reporter.close()  # after the loop, as a custodian does that has closed its clients
    peers.close()
    assert list(temporary.iterdir()) == []


def test_the_directory_of_another_user_is_an_error_with_its_path(temporary: Path) -> None:
    temporary.symlink_to(temporary.parent)
    bridge = Bridge()
    with pytest.raises(PermissionError) as refused:
        Reporter(bridge.loop, CHILD, APACHE, LOG)
    assert str(temporary) in reporter.describe_failure(refused.value)
    bridge.start()
    bridge.stop()


def test_paths_may_be_longer_than_an_address(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = temporary.parent / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    bridge = Bridge()
    bridge.start(Reporter(bridge.loop, CHILD, APACHE, LOG))
    (process,) = collect(str(deep / temporary.name), APACHE).processes
    assert process.pid == os.getpid()
    bridge.stop()


def test_sockets_of_killed_processes_are_skipped_and_removed(
    bridge: Bridge, temporary: Path
) -> None:
    program = f"""
import socket
sock = socket.socket(socket.AF_UNIX)
sock.bind({str(temporary)!r} + "/{APACHE}.status.77")
sock.listen()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (temporary / f"{APACHE}.status.77").is_socket()
    status = collect(str(temporary), APACHE)
    assert [process.pid for process in status.processes] == [os.getpid()]
    assert status.silent == ()
    assert not (temporary / f"{APACHE}.status.77").exists()


def test_a_process_with_an_invalid_answer_counts_as_silent(bridge: Bridge, temporary: Path) -> None:
    with ExitStack() as stack:

        def listen(pid: int) -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(temporary / socket_name(APACHE, pid)))
            sock.listen()
            return sock

        def answer(pid: int, seal: bool, content: bytes) -> None:
            sock = listen(pid)
            fd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            stack.callback(os.close, fd)
            os.write(fd, content)
            if seal:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)

            def serve() -> None:
                with sock.accept()[0] as caller:
                    socket.send_fds(caller, [b"1"], [fd])

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join, 10)

        good = collect(str(temporary), APACHE).processes[0].encode()
        listen(90)  # does not answer
        answer(91, True, b"{}")
        answer(92, False, good.replace(str(os.getpid()).encode(), b"92"))  # not sealed
        answer(93, True, good)  # the status of another process
        (temporary / f"{os.getppid()}.status.94").touch()  # of another Apache
        (temporary / f"{APACHE}.places").touch()
        before = len(os.listdir("/proc/self/fd"))
        status = collect(str(temporary), APACHE, 0.3)
        assert [process.pid for process in status.processes] == [os.getpid()]
        assert status.silent == (90, 91, 92, 93)
        assert len(os.listdir("/proc/self/fd")) <= before
    for path in temporary.iterdir():
        if path.name != socket_name(APACHE, os.getpid()):
            path.unlink()


def test_without_the_directory_there_are_no_processes(short_path: Path) -> None:
    assert collect(str(short_path / "none"), 1).processes == ()


def test_a_caller_that_closes_early_does_no_harm(bridge: Bridge, temporary: Path) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(temporary / socket_name(APACHE, os.getpid())))
        poll = select.poll()
        poll.register(caller, select.POLLIN)
        assert poll.poll(10_000)
    assert collect(str(temporary), APACHE).processes


# What systemd does for a service with PrivateTmp.
WITH_A_PRIVATE_TMP = """
import ctypes, os, sys, tempfile
from apachews_handler.bridge.reporter import Reporter
from apachews_handler.bridge.thread import Bridge
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000
if (
    libc.unshare(CLONE_NEWNS)
    or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    or libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
):
    sys.exit("no namespaces here")
tempfile.tempdir = "/tmp"
bridge = Bridge()
bridge.start(Reporter(bridge.loop, "child", os.getpid(), None))
print("ready", flush=True)
sys.stdin.read()
bridge.stop()
"""


@pytest.mark.skipif(not IS_ROOT, reason="root only: other users have no namespaces of their own")
def test_processes_with_a_private_tmp_are_reached() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WITH_A_PRIVATE_TMP],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin and child.stdout
        try:
            if not child.stdout.readline():
                pytest.skip("a container that may not mount")
            name = f"apachews-{os.geteuid()}"
            assert collect(f"/tmp/{name}", child.pid).processes == ()
            directory = str(Path("/proc", str(child.pid), "root", "tmp", name))
            described = RunningApache(child.pid, child.pid, ((directory, os.geteuid()),))
            (process,) = described.collect().processes
            assert process.pid == child.pid
        finally:
            child.stdin.close()


def test_a_reporter_that_cannot_be_watched_leaves_no_file(temporary: Path) -> None:
    class FullEpoll:
        def register(self, fd: int, events: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    loop = Loop()
    epoll = loop._poller.epoll
    loop._poller.epoll = cast(select.epoll, FullEpoll())
    with pytest.raises(OSError) as refused:
        Reporter(loop, CHILD, APACHE, LOG)
    loop._poller.epoll = epoll
    assert refused.value.filename == str(temporary)
    assert list(temporary.iterdir()) == []
    loop.close()
