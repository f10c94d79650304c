"""apachews.threads: a handler in a thread for each connection."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import apachews.threads
from apachews import ConnectionClosed, threads, wire

from ..conftest import let_pass, wait_for
from ..support.bridge_by_hand import Bridge


@contextmanager
def serving(
    short_path: Path, handler: threads.Handler, **settings: Any
) -> Iterator[tuple[threads.ThreadServer, Bridge]]:
    """A server, and one client of it."""
    with threads.serve(short_path / "a.ws", handler, **settings) as server:
        bridge = Bridge(server.path)
        try:
            yield server, bridge
        finally:
            bridge.socket.close()


def items(bridge: Bridge, count: int) -> list[object]:
    received: list[object] = []
    while len(received) < count:
        received += wait_for(bridge.read_available)
    return received


def echo(connection: threads.Connection) -> None:
    for message in connection:
        connection.send(message)


def test_handlers_run_side_by_side(short_path: Path) -> None:
    meet = threading.Barrier(2, timeout=10)

    def handle(connection: threads.Connection) -> None:
        meet.wait()
        echo(connection)

    with serving(short_path, handle) as (server, first):
        second = Bridge(server.path)
        for bridge, text in ((first, b"1"), (second, b"2"), (first, b""), (first, b"3")):
            bridge.send(wire.TEXT, text)
        assert items(second, 1) == ["2"]
        assert items(first, 3) == ["1", "", "3"]
        second.socket.close()


def test_more_clients_than_threads_have_to_wait(short_path: Path) -> None:
    with serving(short_path, echo, max_threads=1) as (server, first):
        first.send(wire.TEXT, b"1")
        assert items(first, 1) == ["1"]
        second = Bridge(server.path)
        second.send(wire.TEXT, b"2")
        let_pass(0.2)
        assert second.read_available() == []
        first.socket.close()
        assert items(second, 1) == ["2"]
        second.socket.close()


@pytest.mark.parametrize("fails", [False, True])
def test_when_a_handler_ends_so_does_the_connection(
    short_path: Path, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    def once(connection: threads.Connection) -> None:
        connection.send(connection.receive())
        assert not fails, "as it was told"

    with (
        caplog.at_level(logging.ERROR, "apachews"),
        serving(short_path, once) as (_, bridge),
    ):
        bridge.send(wire.TEXT, b"hi")
        assert items(bridge, 2) == ["hi", wire.Close(1011 if fails else 1000, "")]
    assert ("as it was told" in caplog.text) == fails


@pytest.mark.parametrize("way", ["iterating", "receiving", "sending", "pinging"])
def test_a_handler_hears_of_the_end(short_path: Path, way: str) -> None:
    ends: list[object] = []

    def listen(connection: threads.Connection) -> None:
        if way == "iterating":
            for _ in connection:
                pass
        else:
            with pytest.raises(ConnectionClosed):
                if way == "receiving":
                    connection.receive()
                elif way == "pinging":
                    connection.ping()
                while True:
                    connection.send("x" * 10_000)
        wait_for(lambda: connection.close_code)
        ends.append((connection.close_code, connection.close_reason))

    with serving(short_path, listen) as (server, bridge):
        wait_for(server.clients)
        let_pass(0.05)
        bridge.send(wire.CLOSE, wire.encode_close(4000, "enough"))
        wait_for(lambda: ends)
    assert ends == [(4000, "enough")]


def test_sending_waits_for_a_slow_client(short_path: Path) -> None:
    sent = 0
    late: list[TimeoutError] = []

    def speak(connection: threads.Connection) -> None:
        nonlocal sent
        while sent < 100:
            try:
                connection.send(b"x" * 50_000, timeout=0.2 if not late else None)
            except TimeoutError as error:
                late.append(error)
            sent += 1

    with serving(short_path, speak, max_queue_bytes=300_000) as (_, bridge):
        wait_for(lambda: late)
        let_pass(0.2)
        assert sent < 20, "about what the kernel and the queue take"
        assert len(items(bridge, 100)) >= 100


def test_a_client_is_not_read_while_its_handler_is_busy(short_path: Path) -> None:
    may_read = threading.Event()
    received: list[object] = []

    def handle(connection: threads.Connection) -> None:
        may_read.wait(10)
        for message in connection:
            received.append(message)

    with serving(short_path, handle) as (_, slow):
        slow.socket.setblocking(False)
        frame = wire.encode_frame(wire.BINARY, b"x" * 1000)
        sent = stalled = 0
        while stalled < 10:
            try:
                sent += slow.socket.send(frame) // len(frame)
                stalled = 0
            except BlockingIOError:
                stalled += 1
                let_pass(0.05)
        assert sent < 3000, "what the kernel and the mailbox take"
        may_read.set()
        wait_for(lambda: len(received) == sent)


def test_what_was_read_while_the_handler_was_busy_arrives(short_path: Path) -> None:
    """The rest of a read stays with the reader, and the socket is empty when it goes on."""
    numbers: list[int] = []

    def handle(connection: threads.Connection) -> None:
        for message in connection:
            numbers.append(int(message))
            if len(numbers) % 100 == 0:
                let_pass(0.001)  # the mailbox fills meanwhile

    with serving(short_path, handle) as (_, bridge):
        frames = [wire.encode_frame(wire.TEXT, str(number).encode()) for number in range(20_000)]
        bridge.socket.setblocking(True)
        bridge.socket.sendall(b"".join(frames))
        wait_for(lambda: len(numbers) == len(frames), what=lambda: len(numbers))
    assert numbers == [*range(len(frames))]


def test_json(short_path: Path) -> None:
    def handle(connection: threads.Connection) -> None:
        connection.send_json([connection.receive_json()])

    with serving(short_path, handle) as (_, bridge):
        bridge.send(wire.TEXT, b'{"a": 1}')
        assert items(bridge, 2)[0] == '[{"a":1}]'


def test_waiting_has_a_limit(short_path: Path) -> None:
    late: list[str] = []

    def handle(connection: threads.Connection) -> None:
        for wait in (connection.receive, connection.ping):
            with pytest.raises(TimeoutError):
                wait(timeout=0.05)
            late.append(wait.__name__)

    with serving(short_path, handle):
        wait_for(lambda: late == ["receive", "ping"])


def test_ping(short_path: Path) -> None:
    took: list[float] = []
    with serving(short_path, lambda connection: took.append(connection.ping())) as (_, bridge):
        ping = bridge.socket.recv(100)
        bridge.send(wire.PONG, ping[2:])
        wait_for(lambda: took)
    assert 0 < took[0] < 10


def test_everybody_may_speak_to_everybody(short_path: Path) -> None:
    def chat(connection: threads.Connection) -> None:
        room = connection.server.group("room")
        room.add(connection.client)
        for message in connection:
            room.broadcast(message)

    with serving(short_path, chat) as (server, first):
        others = [Bridge(server.path) for _ in range(4)]
        wait_for(lambda: len(server.group("room")) == 5)
        for bridge in (first, *others):
            bridge.send(wire.TEXT, b"hello")
        for bridge in (first, *others):
            assert items(bridge, 5) == ["hello"] * 5
        assert server.broadcast("bye") == len(server.clients()) == 5
        for bridge in others:
            bridge.socket.close()


def test_a_server_that_is_drained_lets_its_handlers_finish(short_path: Path) -> None:
    def slow_echo(connection: threads.Connection) -> None:
        for message in connection:
            let_pass(0.05)
            connection.send(message)
        assert connection.close_code == 1012
        connection.send("a last word")

    with serving(short_path, slow_echo) as (server, bridge):
        for number in range(5):
            bridge.send(wire.TEXT, b"%d" % number)
        wait_for(server.clients)
        server.drain()
        bridge.send(wire.MOVE)
        received = [item for item in items(bridge, 7) if isinstance(item, str)]
        assert received == [*(str(number) for number in range(5)), "a last word"]
        wait_for(lambda: bridge.is_at_end)
        server.wait_closed()


def test_a_handler_that_goes_on_is_left_behind(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(apachews.threads, "HANDLER_END_S", 0.1)
    may_end = threading.Event()
    with serving(short_path, lambda _: may_end.wait(10)) as (server, bridge):
        wait_for(server.clients)
        server.close()
        assert wait_for(bridge.read_available) == [wire.Close(1001, "the server closes")]
    may_end.set()
    assert "1 handlers still run" in caplog.text


def test_a_handler_may_close_the_server(short_path: Path) -> None:
    def end(connection: threads.Connection) -> None:
        connection.receive()
        connection.server.close()

    with serving(short_path, end) as (server, bridge):
        bridge.send(wire.TEXT, b"end")
        started_at = time.monotonic()
        server.wait_closed()
        assert time.monotonic() - started_at < 5
        (last_frame,) = bridge.read_available()
        assert isinstance(last_frame, wire.Close)
        assert last_frame.code in (1000, 1001)  # its own end, or the server's


def test_the_closes_are_spread(short_path: Path) -> None:
    with serving(short_path, echo) as (server, bridge):
        other = Bridge(server.path)
        wait_for(lambda: len(server.clients()) == 2)
        started_at = time.monotonic()
        server.close(spread=0.4)
        assert 0.3 < time.monotonic() - started_at < 5
        for one in (bridge, other):
            assert one.read_available() == [wire.Close(1001, "the server closes")]
        other.socket.close()


def test_what_a_call_raises_ends_the_server_and_its_handlers(short_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("as it was told")

    with serving(short_path, echo) as (server, bridge):
        wait_for(server.clients)
        server.server.call_soon(fail)
        with pytest.raises(RuntimeError, match="as it was told"):
            server.wait_closed()
        assert bridge.read_available() == [wire.Close(1001, "the server closes")]
