"""apachews.publish: from another program to the clients of a producer."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from apachews import (
    Delivery,
    Event,
    NotListening,
    PublishError,
    Server,
    ServerClosed,
    WireError,
    publish,
    wire,
)

from ..conftest import wait_for
from ..support.bridge_by_hand import Bridge
from ..support.producers import children_of, program, running


@contextmanager
def serving(path: Path, group: str = "room", mode: int = 0o660) -> Iterator[Server]:
    """Have a thread take events, and clients join a group when they say so."""
    with Server(path, mode=mode) as server:

        def serve() -> None:
            try:
                for event in server:
                    assert event.type() is not Event.Invalid, event
                    if event.type() is Event.IO and event.read() == "join":
                        server.group(group).add(event.client())
                        event.write("joined")
            except ServerClosed:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            server.close()
            thread.join()


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "a.ws"


@pytest.mark.parametrize("data", ["grüße", "", b"\x00\xff", b"x" * 1_000_000])
def test_every_client_gets_it(path: Path, data: str | bytes) -> None:
    with serving(path) as server:
        bridges = [Bridge(str(path)) for _ in range(3)]
        wait_for(lambda: len(server.clients()) == 3)
        received: list[list[object]] = [[], [], []]
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(publish, path, data)
            for index, bridge in enumerate(bridges):
                received[index] += wait_for(bridge.read_available)
            assert answer.result() == Delivery(reached=3, skipped=0)
        assert received == [[data]] * 3
        for bridge in bridges:
            bridge.socket.close()


def test_or_those_of_a_group(path: Path) -> None:
    with serving(path) as server:
        member, other = Bridge(str(path)), Bridge(str(path))
        member.send(wire.TEXT, b"join")
        assert wait_for(member.read_available) == ["joined"]
        wait_for(lambda: len(server.clients()) == 2)
        assert publish(path, "to you", "room") == (1, 0)
        assert publish(path, "to an empty group", group="nowhere") == (0, 0)
        assert wait_for(member.read_available) == ["to you"]
        assert other.read_available() == []
        for bridge in (member, other):
            bridge.socket.close()


def test_a_publisher_may_say_much_and_is_no_client(path: Path) -> None:
    with serving(path) as server, socket.socket(socket.AF_UNIX) as publisher:
        bridge = Bridge(str(path))
        wait_for(server.clients)
        publisher.connect(str(path))
        frames = [wire.encode_frame(wire.TEXT, b"%d" % number) for number in range(100)]
        publisher.sendall(wire.Publish(None).encode() + b"".join(frames))
        answers = b""
        while answers.count(b"reached") < 100:
            answers += publisher.recv(65536)
        assert answers == wire.Published(1, 0).encode() * 100
        publisher.sendall(wire.encode_frame(wire.CLOSE, wire.encode_close(1000)))
        assert publisher.recv(1) == b""
        assert len(server.clients()) == 1
        received: list[object] = []
        while len(received) < 100:
            received += wait_for(bridge.read_available)
        assert received == [str(number) for number in range(100)]
        bridge.socket.close()


def test_nobody_listens(path: Path) -> None:
    with pytest.raises(NotListening, match="no producer listens here"):
        publish(path, "x")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotListening):
        publish(path, "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may everything")
def test_the_permissions_of_the_file_decide(path: Path) -> None:
    with serving(path, mode=stat.S_IRUSR), pytest.raises(PermissionError) as error:
        publish(path, "x")
    assert error.value.filename == str(path)


def test_a_producer_that_does_not_know_it(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
        old.listen()

        def close_the_next() -> None:
            old.accept()[0].close()

        threading.Thread(target=close_the_next).start()
        with pytest.raises(PublishError, match="did not answer"):
            publish(path, "x")


def test_a_producer_that_is_too_busy(path: Path) -> None:
    with Server(path), pytest.raises(TimeoutError):
        publish(path, "x", timeout=0.1)


def test_a_producer_that_hands_its_clients_on(path: Path) -> None:
    with serving(path) as server, socket.socket(socket.AF_UNIX) as publisher:
        publisher.connect(str(path))
        publisher.sendall(wire.Publish(None).encode() + wire.encode_frame(wire.TEXT, b"x"))
        assert publisher.recv(100)
        server.drain()
        publisher.settimeout(5)
        assert publisher.recv(100) == b""


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{}", b'{"version":2}', b'{"version":1,"group":1}', b"\xff"]
)
def test_nonsense_is_refused(path: Path, payload: bytes) -> None:
    with pytest.raises(WireError, match="PUBLISH"):
        wire.Publish.decode(payload)
    with Server(path) as server, socket.socket(socket.AF_UNIX) as publisher:
        publisher.connect(str(path))
        publisher.sendall(wire.encode_frame(wire.PUBLISH, payload))
        event = server.dequeue(5)
        assert event
        assert event.type() is Event.Invalid
        publisher.settimeout(5)
        assert publisher.recv(1) == b""


def test_a_client_cannot_publish(path: Path) -> None:
    with Server(path) as server:
        bridge = Bridge(str(path))
        bridge.send(wire.PUBLISH, wire.Publish(None).encode()[2:])
        bridge.send(wire.TEXT, b"just a message")
        types = []
        for _ in range(2):
            event = server.dequeue(5)
            assert event
            types.append(event.type())
        assert types == [Event.Accept, Event.IO]
        bridge.socket.close()


@pytest.mark.parametrize("payload", [b"{}", b'{"version":1}', b'{"version":1,"reached":"x"}'])
def test_an_answer_that_is_none(payload: bytes) -> None:
    with pytest.raises(WireError, match="PUBLISH"):
        wire.Published.decode(payload)


WORKERS = """
import os, sys, time
from apachews import Event, Server

server = Server(sys.argv[1], workers=3)
for event in server:
    if event.type() is Event.IO and event.read() == "join":
        server.group("room").add(event.client())
        event.write(str(os.getpid()))
    elif event.type() is Event.IO and event.read() == "hang":
        event.write("hangs")
        time.sleep(1000)
"""


@contextmanager
def workers(short_path: Path, path: Path) -> Iterator[tuple[int, list[Bridge]]]:
    """Three workers, and members of a group with every one of them."""
    with running(program(short_path, WORKERS), str(path)) as supervisor:
        wait_for(path.exists, what=supervisor.poll)
        bridges: list[Bridge] = []
        served: set[object] = set()
        while len(served) < 3 or len(bridges) < 6:
            bridge = Bridge(str(path))
            bridge.send(wire.TEXT, b"join")
            served.update(wait_for(bridge.read_available))
            bridges.append(bridge)
        yield supervisor.pid, bridges
        for bridge in bridges:
            bridge.socket.close()


@pytest.mark.parametrize("data", ["hello", b"x" * 1_000_000])
def test_the_clients_of_all_workers_get_it(short_path: Path, path: Path, data: str | bytes) -> None:
    with workers(short_path, path) as (_, bridges), ThreadPoolExecutor() as pool:
        for group in (None, "room"):
            answer = pool.submit(publish, path, data, group)
            received = [wait_for(bridge.read_available) for bridge in bridges]
            assert received == [[data]] * len(bridges)
            assert answer.result() == Delivery(len(bridges), 0)


def test_a_worker_that_was_replaced_hears_it_too(short_path: Path, path: Path) -> None:
    with workers(short_path, path) as (supervisor, bridges):
        os.kill(children_of(supervisor)[0], 9)
        wait_for(lambda: sum(bridge.is_at_end for bridge in bridges))
        left = [bridge for bridge in bridges if not bridge.is_at_end]
        wait_for(lambda: len(children_of(supervisor)) == 3)
        assert publish(path, "hello").reached == len(left)
        for bridge in left:
            assert wait_for(bridge.read_available) == ["hello"]


def test_a_worker_that_hangs_keeps_a_publisher_waiting_for_some_time_only(
    short_path: Path, path: Path
) -> None:
    text = f"import apachews._server.publications as p\np.ANSWER_TIMEOUT_S = 0.3\n{WORKERS}"
    with running(program(short_path, text), str(path)) as supervisor:
        wait_for(path.exists, what=supervisor.poll)
        bridges = [Bridge(str(path)) for _ in range(9)]
        bridges[0].send(wire.TEXT, b"hang")
        assert wait_for(bridges[0].read_available) == ["hangs"]
        # A worker that hangs accepts no connection.
        delivery = publish(path, "hello")
        assert 0 < delivery.reached < 9
        for bridge in bridges:
            bridge.socket.close()
