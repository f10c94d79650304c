"""apachews.server: the seed's API, against a bridge played by hand."""

from __future__ import annotations

import dataclasses
import errno
import os
import select
import signal
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import apachews._listening.acceptor
import apachews._server.connections
import apachews._server.loop
import apachews.server
from apachews import (
    AcceptEvent,
    ApachewsError,
    Client,
    CloseEvent,
    ConnectionClosedEvent,
    Event,
    EventType,
    InvalidEvent,
    MessageEvent,
    NotAsked,
    PongEvent,
    Server,
    ServerClosed,
    wire,
)
from apachews._server.connection import connection_of
from apachews.server import open_servers
from apachews.wire.answer import Answer
from apachews.wire.reader import FRAMES_A_TURN

from ..conftest import wait_for
from ..support.bridge_by_hand import OPEN, Bridge, Item

Connect = Callable[[], tuple[Bridge, Client]]


@pytest.fixture
def server(short_path: Path) -> Iterator[Server]:
    with Server(short_path / "echo.ws") as server:
        yield server


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    bridges = []

    def connect() -> tuple[Bridge, Client]:
        bridge = Bridge(server.path)
        bridges.append(bridge)
        return bridge, next_event(server, Event.Accept).client()

    yield connect
    for bridge in bridges:
        bridge.socket.close()


def next_event(server: Server, type: EventType) -> Event:
    event = server.dequeue(5)
    assert event is not None, f"no {type!r} came"
    assert event.type() is type, event
    return event


def test_an_exit_before_the_server_is_complete_removes_its_file(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_: str) -> None:
        raise SystemExit(0)  # a signal, right after READY=1

    monkeypatch.setattr(apachews.server, "notify_ready", end)
    with pytest.raises(SystemExit):
        Server(str(short_path / "a.ws"))
    assert os.listdir(short_path) == []
    assert open_servers() == []


def test_star_import_gives_what_the_seeds_programs_use() -> None:
    names: dict[str, object] = {}
    exec("from apachews import *", names)
    assert names["Server"] is Server
    assert names["Event"] is Event


def test_no_text_equals_an_event_type() -> None:
    for kind in EventType:
        texts: list[object] = [kind.value, kind.name, str(kind), repr(kind), "", b"", 0, 1]
        assert kind not in texts


def test_a_client_is_known_by_its_request(server: Server, connect: Connect) -> None:
    _, client = connect()
    assert client.guid() == "id-1"
    assert client.request == OPEN
    assert server.language(client) == "en-GB"
    assert server.clients() == [client]


def test_messages_are_read_by_their_type(server: Server, connect: Connect) -> None:
    bridge, client = connect()
    bridge.send(wire.TEXT, b"hi")
    bridge.send(wire.BINARY, b"\x00")
    event = next_event(server, Event.IO)
    assert event.read() == event.read() == "hi"
    assert event.client() is client
    assert next_event(server, Event.IO).read() == b"\x00"


@pytest.mark.parametrize(("opcode", "empty"), [(wire.TEXT, ""), (wire.BINARY, b"")])
def test_an_empty_message_is_no_data(
    server: Server, connect: Connect, opcode: int, empty: str | bytes
) -> None:
    bridge, _ = connect()
    bridge.send(opcode)
    event = next_event(server, Event.NoData)
    assert event.read() == empty
    assert event.write(event.read())
    assert bridge.read_available() == [empty]


@pytest.mark.parametrize("data", ["é", b"x", b"\x00\xff", bytearray(b"x"), memoryview(b"y")])
def test_write_and_send_keep_the_kind_of_what_they_are_given(
    server: Server, connect: Connect, data: str | bytes | bytearray | memoryview
) -> None:
    bridge, client = connect()
    bridge.send(wire.TEXT, b"x")
    event = next_event(server, Event.IO)
    assert event.write(data)
    assert client.send(data)
    expected = data if isinstance(data, str) else bytes(data)
    assert bridge.read_available() == [expected] * 2


@pytest.mark.parametrize(
    ("data", "to_text", "to_binary"),
    [
        ("é", "é", "é"),
        ("é".encode(), "é", "é".encode()),
        (b"", "", b""),
        (bytearray(b"x"), "x", b"x"),
        (memoryview(b"xyz")[::2], "xz", b"xz"),
        (b"\x00\xff", b"\x00\xff", b"\x00\xff"),  # not UTF-8
        (b"\xed\xa0\x80", b"\xed\xa0\x80", b"\xed\xa0\x80"),  # a surrogate
    ],
)
def test_respond_answers_in_kind_as_in_the_original(
    server: Server,
    connect: Connect,
    data: str | bytes | bytearray | memoryview,
    to_text: str | bytes,
    to_binary: str | bytes,
) -> None:
    bridge, client = connect()
    bridge.send(wire.TEXT, b"text")
    bridge.send(wire.TEXT)
    bridge.send(wire.BINARY, b"binary")
    bridge.send(wire.BINARY)
    for expected in (to_text, to_text, to_binary, to_binary):
        event = server.dequeue(5)
        assert event is not None and event.client() is client
        assert event.respond(data)
        assert bridge.read_available() == [expected]


def test_respond_greets_with_text(server: Server) -> None:
    bridge = Bridge(server.path)
    event = next_event(server, Event.Accept)
    assert event.respond(b"welcome")
    assert bridge.read_available() == ["welcome"]
    with pytest.raises(TypeError):
        event.respond(1)  # type: ignore[arg-type]
    bridge.socket.close()
    event = next_event(server, Event.ConnectionClosed)
    assert not event.respond(b"too late")


def test_what_is_no_message_is_refused_by_name(connect: Connect) -> None:
    _, client = connect()
    for wrong in (None, 7, Event.Error):
        with pytest.raises(TypeError, match="str or bytes"):
            client.send(wrong)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        client.send("\ud800")


def test_broadcast_counts(server: Server, connect: Connect) -> None:
    bridges = [connect()[0] for _ in range(3)]
    assert server.broadcast("all") == 3
    assert [bridge.read_available() for bridge in bridges] == [["all"]] * 3
    assert server.broadcast(b"") == 3


def test_the_client_closes(server: Server, connect: Connect) -> None:
    bridge, client = connect()
    bridge.send(wire.TEXT, b"last")
    bridge.send(wire.CLOSE, wire.encode_close(4001, "bye"))
    assert next_event(server, Event.IO).read() == "last"
    event = next_event(server, Event.Close)
    assert (event.code, event.reason) == (4001, "bye")
    event = next_event(server, Event.ConnectionClosed)
    assert (event.code, event.reason) == (4001, "bye")
    assert event.read() == Event.ConnectionClosed
    event.close()
    assert not event.write("too late")
    assert client not in server.clients()
    assert bridge.is_at_end
    assert server.dequeue(0) is None


def test_the_connection_breaks_off(server: Server, connect: Connect) -> None:
    bridge, client = connect()
    bridge.send(wire.TEXT, b"half", fin=False)
    bridge.socket.close()
    event = next_event(server, Event.ConnectionClosed)
    assert event.code == 1006
    assert not client.send("x")
    assert server.dequeue(0) is None


def test_the_producer_closes(server: Server, connect: Connect) -> None:
    bridge, client = connect()
    client.send("before")
    client.close(4000, "enough")
    client.close(4001)
    assert not client.send("after")
    assert bridge.read_available() == ["before", wire.Close(4000, "enough")]
    bridge.send(wire.TEXT, b"crossing")
    bridge.send(wire.CLOSE, wire.encode_close(4000))
    next_event(server, Event.Close)
    assert next_event(server, Event.ConnectionClosed).code == 4000
    assert server.dequeue(0) is None


def test_a_close_that_is_not_answered_ends_all_the_same(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apachews._server.connections, "CLOSE_TIMEOUT_S", 0.05)
    bridge, client = connect()
    client.close()
    started = time.monotonic()
    event = next_event(server, Event.ConnectionClosed)
    assert time.monotonic() - started < 4  # the event of a timer ends the wait
    assert event.code == 1006
    assert "not answered" in event.reason
    bridge.read_available()
    assert bridge.is_at_end


@pytest.mark.parametrize(
    ("code", "reason"), [(1005, "x"), (1006, ""), (999, ""), (1000, "x" * 124)]
)
def test_a_close_that_may_not_be_sent_is_refused(connect: Connect, code: int, reason: str) -> None:
    _, client = connect()
    with pytest.raises(ValueError, match=r"is not allowed|cannot carry|limit is 123"):
        client.close(code, reason)
    assert client.send("still open")


def test_too_much_is_an_error_and_closes_with_1009(short_path: Path) -> None:
    with Server(short_path / "small.ws", max_message_bytes=10) as server:
        bridge = Bridge(server.path)
        next_event(server, Event.Accept)
        bridge.send(wire.TEXT, b"x" * 11)
        event = next_event(server, Event.Error)
        assert event.read() == Event.Error
        assert event.code == 1009
        assert next_event(server, Event.ConnectionClosed).code == 1009
        (close,) = bridge.read_available()
        assert isinstance(close, wire.Close)
        assert close.code == 1009
        assert bridge.is_at_end
        bridge.socket.close()


def test_strangers_are_invalid_and_lookers_are_nothing(server: Server) -> None:
    stranger = Bridge(server.path, None)
    stranger.socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
    event = next_event(server, Event.Invalid)
    assert event.reason
    assert event.read() == Event.Error
    with pytest.raises(ApachewsError, match="no client"):
        event.client()
    looker = Bridge(server.path, None)
    looker.socket.close()
    half = Bridge(server.path, None)
    half.socket.send(b"\x83")
    half.socket.close()
    next_event(server, Event.Invalid)
    assert server.dequeue(0) is None
    stranger.socket.close()


def test_a_slow_client_is_queued_for_and_blocks_nobody(server: Server, connect: Connect) -> None:
    slow, client = connect()
    fast, _ = connect()
    data = "x" * 500_000
    assert all(client.send(data) for _ in range(4))
    fast.send(wire.TEXT, b"hello")
    event = next_event(server, Event.IO)
    event.write("echo")
    assert fast.read_available() == ["echo"]
    received: list[Item] = []
    while len(received) < 4:
        received += slow.read_available()
        server.dequeue(0.01)
    assert received == [data] * 4


def test_a_client_too_slow_is_closed_with_1013_and_the_producer_hears(
    server: Server, connect: Connect
) -> None:
    slow, client = connect()
    fast, _ = connect()
    data = b"x" * 1_000_000
    sent = 0
    while client.send(data):
        sent += 1
        assert sent < 20
    event = next_event(server, Event.ConnectionClosed)
    assert event.client() is client
    assert event.code == 1013
    assert server.broadcast("still here") == 1
    received: list[Item] = []
    while not slow.is_at_end:
        received += slow.read_available()
        server.dequeue(0.01)
    # Whole messages only, then the reason.
    assert received[:-1] == [data] * (len(received) - 1)
    assert isinstance(received[-1], wire.Close)
    assert received[-1].code == 1013
    assert fast.read_available() == ["still here"]
    assert server.dequeue(0) is None


def test_a_message_longer_than_the_queue_goes_through(short_path: Path) -> None:
    with Server(short_path / "q.ws", max_queue_bytes=1000) as server:
        bridge = Bridge(server.path)
        client = next_event(server, Event.Accept).client()
        assert client.send(b"x" * 3_000_000)
        items: list[Item] = []
        while not items:
            items += bridge.read_available()
            server.dequeue(0.01)
        assert items == [b"x" * 3_000_000]
        bridge.socket.close()


def test_an_echo_slows_its_client_down_rather_than_losing_it(short_path: Path) -> None:
    with Server(short_path / "e.ws", max_queue_bytes=300_000) as server:
        bridge = Bridge(server.path)
        next_event(server, Event.Accept)
        bridge.socket.setblocking(False)
        frame = wire.encode_frame(wire.BINARY, b"x" * 10_000)
        pending = frame * 300
        received: list[Item] = []
        while len(received) < 300:
            try:
                pending = pending[bridge.socket.send(pending) :]
            except BlockingIOError:
                received += bridge.read_available()  # only when nothing more goes in
            if not pending:
                received += bridge.read_available()
            while (event := server.dequeue(0)) is not None:
                assert event.type() is Event.IO, event
                assert event.write(event.read())
        assert received == [b"x" * 10_000] * 300
        bridge.socket.close()


def test_the_bridge_dies_while_a_queue_waits(server: Server, connect: Connect) -> None:
    bridge, client = connect()
    client.send("x" * 3_000_000)
    bridge.socket.close()
    assert next_event(server, Event.ConnectionClosed).code == 1006
    assert not client.send("x")


def test_dequeue_waits_no_longer_than_told(server: Server) -> None:
    started = time.monotonic()
    assert server.dequeue(0.05) is None
    assert 0.04 < time.monotonic() - started < 5
    assert server.dequeue(0) is None


def test_close_closes_the_clients_and_removes_the_file(server: Server, connect: Connect) -> None:
    bridge, _ = connect()
    server.close()
    server.close()
    assert not os.path.exists(server.path)
    assert bridge.read_available() == [wire.Close(1001, "the server closes")]
    assert bridge.is_at_end
    assert next_event(server, Event.ConnectionClosed).code == 1001
    assert list(server) == []
    with pytest.raises(ServerClosed):
        server.dequeue()
    assert server.broadcast("x") == 0


def test_the_closes_are_spread(server: Server, connect: Connect) -> None:
    bridges = [connect()[0] for _ in range(4)]
    said_at: dict[int, float] = {}
    is_over = threading.Event()

    def listen() -> None:
        while not is_over.is_set():
            for number, bridge in enumerate(bridges):
                if number not in said_at and bridge.read_available():
                    said_at[number] = time.monotonic()
                    bridge.send(wire.CLOSE, wire.encode_close(1001))
                    bridge.socket.close()

    flooder, _ = connect()
    flooder.socket.setblocking(False)
    with suppress(BlockingIOError):
        while True:  # a client that goes on talking takes no memory meanwhile
            flooder.send(wire.TEXT, b"x" * 1000)
    thread = threading.Thread(target=listen)
    thread.start()
    started_at, cpu_s = time.monotonic(), time.thread_time()
    server.close(spread=0.5)
    assert 0.5 <= time.monotonic() - started_at < 5
    assert time.thread_time() - cpu_s < 0.2
    is_over.set()
    thread.join()
    times = [said_at[number] - started_at for number in range(4)]
    assert times == sorted(times)
    assert all(at >= 0.1 * number for number, at in enumerate(times))
    with pytest.raises(FileNotFoundError):
        Bridge(server.path)
    seen = [event.code for event in server if event.type() is Event.ConnectionClosed]
    assert seen == [1001] * 5
    flooder.socket.close()


def test_what_another_thread_wants_is_done_between_two_events(server: Server) -> None:
    done: list[int] = []

    def call() -> None:
        done.append(threading.get_ident())
        server.close()

    thread = threading.Thread(target=server.call_soon, args=(call,))
    thread.start()
    with pytest.raises(ServerClosed):
        server.dequeue()
    thread.join()
    assert done == [threading.get_ident()]
    server.call_soon(call)  # the server is closed: nothing happens
    with pytest.raises(ServerClosed):
        server.dequeue()


def test_calls_by_the_thousand_wake_and_are_all_made(server: Server) -> None:
    done: list[int] = []
    for number in range(5_000):
        server.call_soon(lambda number=number: done.append(number))  # type: ignore[misc]
    assert server.dequeue(0) is None
    assert done == list(range(5_000))


def test_a_signal_ends_a_server_that_waits(server: Server) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: server.call_soon(server.close))
    try:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        assert list(server) == []
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_open_servers_are_known(short_path: Path) -> None:
    server = Server(short_path / "a.ws")
    assert server in open_servers()
    server.close()
    assert server not in open_servers()


def test_close_does_not_wait_for_a_client_that_does_not_read(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apachews._server.loop, "FLUSH_TIMEOUT_S", 0.05)
    _, client = connect()
    client.send("x" * 3_000_000)
    started = time.monotonic()
    server.close()
    assert time.monotonic() - started < 5


def test_iteration_gives_every_event(server: Server, connect: Connect) -> None:
    bridge, _ = connect()
    bridge.send(wire.TEXT, b"1")
    seen = []
    for event in server:
        seen.append(event.type())
        if event.type() is Event.IO:
            server.close()
    assert seen == [Event.IO, Event.ConnectionClosed]


def test_without_descriptors_accepting_rests_and_goes_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apachews._listening.acceptor, "ACCEPT_REST_S", 0.05)

    class Exhausted:
        def __init__(self, sock: socket.socket) -> None:
            self._socket, self.calls = sock, 0

        def accept(self) -> object:
            self.calls += 1
            if self.calls == 1:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return self._socket.accept()

        def close(self) -> None:
            self._socket.close()

    server._file.socket = Exhausted(server._file.socket)  # type: ignore[assignment]
    bridge = Bridge(server.path)
    event = next_event(server, Event.Error)
    assert "Too many open files" in event.reason
    next_event(server, Event.Accept)
    bridge.socket.close()


def test_a_million_tiny_messages_take_the_memory_of_their_bytes(
    server: Server, connect: Connect
) -> None:
    _, client = connect()
    client.send(b"x" * 1_000_000)  # what the kernel takes is full
    connection = connection_of(client)
    assert connection._queue
    before = len(connection._queue)
    for _ in range(100_000):
        assert client.send("y")
    assert len(connection._queue) - before <= 100_000 * 3 // 65_536 + 1


def test_a_half_sent_frame_in_a_run_of_them_is_finished_before_the_close(
    short_path: Path,
) -> None:
    with Server(short_path / "q.ws", max_queue_bytes=200_000) as server:
        bridge = Bridge(server.path)
        client = next_event(server, Event.Accept).client()
        sent = 0
        while client.send(b"%0500d" % sent):
            sent += 1
            if connection_of(client).has_queue and sent % 50 == 0:
                bridge.socket.recv(1001)  # so that the queue moves, and ends somewhere
                server.dequeue(0)
        assert next_event(server, Event.ConnectionClosed).code == 1013
        data = b""
        while not bridge.is_at_end:
            if select.select([bridge.socket], [], [], 0)[0]:
                data += bridge.socket.recv(1 << 20)
            server.dequeue(0.01)
        # It ends with whole frames and the CLOSE: walked from there backwards.
        close = wire.encode_frame(
            wire.CLOSE, wire.encode_close(1013, "too slow: the send queue is full")
        )
        assert data.endswith(close)
        frame = data[: -len(close)][-504:]
        assert frame[:4] == b"\x82\x7e\x01\xf4"
        bridge.socket.close()


def test_a_turn_ends_when_enough_events_wait(server: Server, connect: Connect) -> None:
    bridges = [connect()[0] for _ in range(5)]
    for bridge in bridges:
        bridge.socket.sendall(wire.encode_frame(wire.TEXT, b"x") * 5_000)
    assert server.dequeue(5) is not None
    assert len(server._loop.events) < 5_000 * len(bridges)
    for _ in range(5_000 * len(bridges) - 1):
        assert server.dequeue(5) is not None


def test_a_quiet_client_is_served_among_those_that_flood(server: Server, connect: Connect) -> None:
    flooders = [connect()[0] for _ in range(3)]
    quiet, client = connect()
    flood = wire.encode_frame(wire.TEXT, b"x") * 10_000
    for bridge in flooders:
        bridge.socket.setblocking(False)
        bridge.socket.send(flood)
    next_event(server, Event.IO)  # the flooders are ready, and first in the row
    quiet.send(wire.TEXT, b"me too")
    for _ in range(4 * FRAMES_A_TURN * len(flooders)):
        # Whatever is taken from a flooder is there again at once.
        for bridge in flooders:
            if len(server._loop.events) < 2:
                try:
                    bridge.socket.send(flood)
                except BlockingIOError:
                    pass
        event = next_event(server, Event.IO)
        if event.client() is client:
            assert event.read() == "me too"
            return
    pytest.fail("the quiet client was not served")


def test_a_loop_of_ones_own_hears_of_what_was_read_already(
    server: Server, connect: Connect
) -> None:
    """The reader pauses, and the socket has nothing more that would make epoll readable."""
    bridge, _ = connect()
    bridge.send(wire.PONG, b"unasked")
    assert server.dequeue_nowait() is None
    pongs = wire.encode_frame(wire.PONG, b"x") * (5 * FRAMES_A_TURN)
    bridge.socket.sendall(pongs + wire.encode_frame(wire.TEXT, b"a"))
    event = None
    while event is None:
        assert select.select([server], [], [], 5)[0], "the descriptor is not readable"
        event = server.dequeue_nowait()
    assert event.read() == "a"


def test_close_with_a_client_that_no_turn_has_come_to(server: Server, connect: Connect) -> None:
    _, client = connect()
    client.send("x" * 3_000_000)  # so that close() has something to wait for
    late = Bridge(server.path)
    # As epoll would have named it in a turn that ended before it came so far.
    server._loop._poller.ready.append((server._file.socket.fileno(), select.EPOLLIN))
    server.close()
    late.socket.close()
    assert next_event(server, Event.ConnectionClosed).code == 1001


ASKING = dataclasses.replace(OPEN, answer_required=True, offered=("chat", "x"))


def answer_of(bridge: Bridge) -> Answer:
    """Return the answer that the bridge got, and nothing else."""
    data = bridge.socket.recv(1 << 20)
    header = wire.decode_header(data, 0)
    assert header is not None
    first, length, start = header
    assert (first, start + length) == (wire.FIN | wire.ANSWER, len(data))
    return Answer.decode(data[start:])


def test_the_producer_accepts(server: Server) -> None:
    bridge = Bridge(server.path, ASKING)
    event = next_event(server, Event.Accept)
    client = event.client()
    # Until then the program cannot send to it by mistake.
    assert server.clients() == []
    assert server.broadcast("to all") == 0
    assert not client.send("early")
    assert event.accept("x", [("X-Room", "1")])
    assert answer_of(bridge) == Answer.accept("x", [("X-Room", "1")])
    assert not event.accept()
    assert not event.reject()
    assert server.clients() == [client]
    bridge.send(wire.TEXT, b"hi")
    assert next_event(server, Event.IO).read() == "hi"
    assert client.send("yo")
    assert bridge.read_available() == ["yo"]
    bridge.socket.close()


def test_the_producer_rejects(server: Server) -> None:
    bridge = Bridge(server.path, ASKING)
    event = next_event(server, Event.Accept)
    assert event.reject(401, "Who are you?", [("WWW-Authenticate", "Basic")])
    assert answer_of(bridge) == Answer.reject(401, [("WWW-Authenticate", "Basic")], "Who are you?")
    assert not event.client().send("late")
    bridge.socket.close()
    closed = next_event(server, Event.ConnectionClosed)
    assert (closed.code, closed.reason) == (1006, "it was rejected")
    assert closed.client() is event.client()


def test_an_answer_may_come_later_and_from_the_client(server: Server) -> None:
    bridge = Bridge(server.path, ASKING)
    client = next_event(server, Event.Accept).client()
    assert server.dequeue(0.05) is None
    assert client.accept()
    assert answer_of(bridge).accepts
    bridge.socket.close()


def test_closing_a_client_that_was_not_accepted_refuses_it(server: Server) -> None:
    bridge = Bridge(server.path, ASKING)
    next_event(server, Event.Accept).close(4000, "no")
    answer = answer_of(bridge)
    assert (answer.accepts, answer.status) == (False, 503)
    bridge.socket.close()


def test_an_answer_nobody_waits_for_any_more(server: Server) -> None:
    bridge = Bridge(server.path, ASKING)
    event = next_event(server, Event.Accept)
    bridge.socket.close()
    assert next_event(server, Event.ConnectionClosed).code == 1006
    assert not event.accept()
    assert not event.reject()


def test_answers_that_may_not_be_given(server: Server) -> None:
    bridge = Bridge(server.path, ASKING)
    event = next_event(server, Event.Accept)
    wrong: list[Callable[[], bool]] = [
        lambda: event.accept("unoffered"),
        lambda: event.accept(headers=[("X", "a\r\nb")]),
        lambda: event.reject(200),
        lambda: event.reject(403, "x" * 100_000),
    ]
    for call in wrong:
        with pytest.raises(ValueError):
            call()
    assert event.accept("chat")  # and the client still waits
    bridge.socket.close()


def test_without_the_setting_the_producer_is_told_that_it_comes_too_late(
    server: Server, connect: Connect
) -> None:
    _, client = connect()
    assert not client.accept()  # a program that always says so is fine
    with pytest.raises(NotAsked, match="APACHEWS_ACCEPT producer"):
        client.reject()
    with pytest.raises(NotAsked):
        client.accept("chat")
    assert server.clients() == [client]


def test_closing_the_server_refuses_who_waits(short_path: Path) -> None:
    server = Server(short_path / "a.ws")
    bridge = Bridge(server.path, ASKING)
    next_event(server, Event.Accept)
    server.close()
    assert answer_of(bridge).status == 503
    bridge.socket.close()


def test_frames_that_are_ignored_are_logged(
    server: Server, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    bridge, _ = connect()
    bridge.send(0x7, b"x")
    bridge.send(0xF)
    bridge.send(wire.TEXT, b"hi")
    assert next_event(server, Event.IO).read() == "hi"
    assert "<Client id-1 /echo.ws>: ignored frames of opcodes 0x7 0xf" in caplog.text


def test_events_can_be_matched_and_do_not_change(server: Server, connect: Connect) -> None:
    def name(event: Event) -> object:
        match event:
            case AcceptEvent(client):
                return ("accept", client)
            case MessageEvent(client, data):
                return ("message", client, data)
            case CloseEvent(client, code, reason):
                return ("close", client, code, reason)
            case ConnectionClosedEvent(client, code):
                return ("closed", client, code)
            case InvalidEvent(code, reason):
                return ("invalid", code, reason)
        return None

    bridge = Bridge(server.path)
    accepted = next_event(server, Event.Accept)
    client = accepted.client()
    for text in ("hi", ""):
        bridge.send(wire.TEXT, text.encode())
    bridge.send(wire.CLOSE, wire.encode_close(1000, "bye"))
    events = [accepted, *(server.dequeue() for _ in range(4))]
    assert [name(event) for event in events] == [
        ("accept", client),
        ("message", client, "hi"),
        ("message", client, ""),
        ("close", client, 1000, "bye"),
        ("closed", client, 1000),
    ]
    for attribute in ("code", "reason", "data"):
        with pytest.raises(AttributeError):
            setattr(events[1], attribute, 1)
    bridge.socket.close()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(server.path)
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert name(next_event(server, Event.Invalid)) is not None


def test_a_ping_is_timed(server: Server, connect: Connect) -> None:
    bridge, client = connect()
    bridge.send(wire.PONG, b"of its own accord")
    assert client.ping()
    assert client.ping()  # the last counts
    pings = bridge.socket.recv(100)
    assert (len(pings), pings[0]) == (20, wire.FIN | wire.PING)
    for payload in (pings[2:10], pings[12:20], pings[12:20]):
        bridge.send(wire.PONG, payload)
    bridge.send(wire.TEXT, b"next")
    event = next_event(server, Event.Pong)
    assert isinstance(event, PongEvent)
    assert 0 < event.latency_s < 5
    assert event.read() is Event.NoData
    assert next_event(server, Event.IO).read() == "next"
    client.close()
    assert not client.ping()


def test_a_function_is_called_later(server: Server) -> None:
    done: list[object] = []
    started_at = time.monotonic()
    server.call_later(0.2, lambda: done.append(time.monotonic() - started_at))
    server.call_later(0.1, lambda: done.append("first"))
    server.call_later(60, lambda: done.append("never"))
    assert server.dequeue(timeout=0) is None
    assert done == []
    assert 0 < (server.next_timer_s() or 0) <= 0.1
    assert server.dequeue(timeout=0.5) is None
    assert done[0] == "first"
    assert isinstance(done[1], float)
    assert 0.2 <= done[1] < 5
    assert len(done) == 2


def test_a_function_that_repeats_itself_does_not_keep_events_back(
    server: Server, connect: Connect
) -> None:
    calls: list[None] = []

    def again() -> None:
        calls.append(None)
        server.call_later(0, again)

    bridge, _ = connect()
    again()
    for text in ("a", "b", "c"):
        bridge.socket.sendall(wire.encode_frame(wire.TEXT, text.encode()))
        before = len(calls)
        assert next_event(server, Event.IO).read() == text
        assert len(calls) > before


def test_a_function_is_called_though_events_are_queued(server: Server, connect: Connect) -> None:
    bridge, _ = connect()
    bridge.socket.sendall(wire.encode_frame(wire.TEXT, b"x") * 3)
    assert next_event(server, Event.IO).read() == "x"
    called: list[None] = []
    server.call_later(0, lambda: called.append(None))
    assert server.dequeue(timeout=5) is not None
    assert called == [None]


def test_another_thread_sets_a_timer(server: Server) -> None:
    called = threading.Event()
    waiting = threading.Thread(target=lambda: [server.dequeue(timeout=1), None])
    waiting.start()
    wait_for(lambda: server._loop.is_waiting)
    server.call_later(0.05, called.set)
    assert called.wait(0.9)
    waiting.join()


def test_what_a_later_function_raises_dequeue_raises(server: Server) -> None:
    def fail() -> None:
        raise LookupError("later")

    done: list[str] = []
    server.call_later(0, fail)
    server.call_later(0, lambda: done.append("next"))
    with pytest.raises(LookupError, match="later"):
        server.dequeue(timeout=1)
    assert server.dequeue(timeout=0) is None
    assert done == ["next"]
    with pytest.raises(ValueError, match="expected 0 or more seconds"):
        server.call_later(-1, fail)


@pytest.mark.parametrize("end", [Server.close, Server.drain])
def test_a_server_that_has_ended_calls_no_function(
    server: Server, end: Callable[[Server], None]
) -> None:
    called: list[None] = []
    server.call_later(0.01, lambda: called.append(None))
    end(server)
    for _ in server:
        pass
    server.call_later(0, lambda: called.append(None))
    with pytest.raises(ServerClosed):
        server.dequeue(timeout=0)
    assert called == []


def test_a_timer_that_is_due_does_not_make_close_spin(server: Server, connect: Connect) -> None:
    _, client = connect()
    client.send("x" * 3_000_000)  # close() waits until it is sent, or a second
    server.call_later(0, lambda: None)
    server.call_soon(lambda: None)
    before = time.process_time()
    server.close()
    assert time.process_time() - before < 0.5


def test_a_loop_of_ones_own(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for the descriptor and the timer, and for nothing else."""
    monkeypatch.setattr(apachews._server.connections, "CLOSE_TIMEOUT_S", 0.05)
    poll = select.poll()
    poll.register(server.fileno(), select.POLLIN)
    events: list[Event] = []

    def run_until(count: int) -> None:
        while len(events) < count:
            timer_s = server.next_timer_s()
            assert poll.poll(5000 if timer_s is None else timer_s * 1000) or timer_s is not None
            while event := server.dequeue_nowait():
                events.append(event)

    bridge = Bridge(server.path)
    run_until(1)
    bridge.send(wire.TEXT, b"hi")
    run_until(2)
    events[0].client().close()  # the bridge does not answer: a timer
    run_until(3)
    server.call_soon(lambda: events.append(events[0]))
    run_until(4)
    assert [event.type().name for event in events] == ["Accept", "IO", "ConnectionClosed", "Accept"]
    bridge.socket.close()


@pytest.mark.parametrize("opcode", [wire.TEXT, wire.BINARY])
def test_messages_that_are_json(server: Server, connect: Connect, opcode: int) -> None:
    bridge, client = connect()
    bridge.send(opcode, '{"grüße": [1, null]}'.encode())
    value = next_event(server, Event.IO).json()
    assert value == {"grüße": [1, None]}
    assert client.send_json(value)
    assert bridge.read_available() == ['{"grüße":[1,null]}']


@pytest.mark.parametrize(
    "payload", [b"{", b"\xff", "{}".encode("utf-16"), b"[-Infinity]", b"[" * 100_000], ids=repr
)
def test_messages_that_are_no_json(server: Server, connect: Connect, payload: bytes) -> None:
    bridge, client = connect()
    bridge.send(wire.BINARY, payload)
    with pytest.raises(ValueError):
        next_event(server, Event.IO).json()
    with pytest.raises(ValueError):
        client.send_json(float("nan"))
    with pytest.raises(TypeError):
        client.send_json({1, 2})
    assert bridge.read_available() == []
    bridge.socket.close()
    with pytest.raises(ApachewsError):
        next_event(server, Event.ConnectionClosed).json()


def test_an_idle_client_takes_less_than_2_kib(server: Server) -> None:
    number, opening = 200, OPEN.encode()
    bridges = []
    tracemalloc.start()
    for _ in range(number):
        with socket.socket(socket.AF_UNIX) as bridge:
            bridge.connect(server.path)
            bridge.sendall(opening)
            bridges.append(os.dup(bridge.fileno()))  # a number, and no object to be measured
        assert server.dequeue(timeout=5)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for fd in bridges:
        os.close(fd)
    assert used / number < 2048


def test_a_request_is_what_the_bridge_has_said_of_it(connect: Connect) -> None:
    _, client = connect()
    assert client.guid() == OPEN.id
    assert client.request == OPEN
    assert client.request is client.request
