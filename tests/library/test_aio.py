"""apachews.aio: events and handlers in asyncio, against a bridge played by hand."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

import apachews.aio
from apachews import ConnectionClosed, Event, aio, wire

from ..conftest import DEADLINE_S
from ..support.bridge_by_hand import Bridge

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, DEADLINE_S), debug=True)


async def until(condition: Callable[[], T]) -> T:
    while not (result := condition()):
        await asyncio.sleep(0.005)
    return result


@asynccontextmanager
async def serving(
    short_path: Path, handler: aio.Handler, **settings: Any
) -> AsyncIterator[tuple[aio.AsyncServer, Bridge]]:
    """A server with a handler, and one client of it."""
    async with aio.serve(short_path / "a.ws", handler, **settings) as server:
        bridge = Bridge(server.path)
        try:
            yield server, bridge
        finally:
            bridge.socket.close()


async def echo(connection: aio.Connection) -> None:
    async for message in connection:
        await connection.send(message)


def test_events_come_in_an_async_for(short_path: Path) -> None:
    async def main() -> list[object]:
        seen: list[object] = []
        async with aio.serve(short_path / "a.ws") as server:
            bridge = Bridge(server.path)
            bridge.send(wire.TEXT, b"hi")
            async for event in server:
                seen.append(event.type())
                if event.type() is Event.IO:
                    event.write(event.read())
                    assert await until(bridge.read_available) == ["hi"]
                    bridge.socket.close()
                elif event.type() is Event.ConnectionClosed:
                    break
            await server.close()
            async for event in server:
                raise AssertionError(event)
        return seen

    assert run(main()) == [Event.Accept, Event.IO, Event.ConnectionClosed]


def test_a_handler_has_a_connection_to_itself(short_path: Path) -> None:
    async def main() -> None:
        async with serving(short_path, echo) as (_, first):
            second = Bridge(str(short_path / "a.ws"))
            for bridge, text in ((first, b"1"), (second, b"2"), (first, b""), (first, b"3")):
                bridge.send(wire.TEXT, text)
            assert await until(second.read_available) == ["2"]
            received: list[object] = []
            while len(received) < 3:
                received += await until(first.read_available)
            assert received == ["1", "", "3"]
            second.socket.close()

    run(main())


def test_a_handler_that_returns_closes_its_connection(short_path: Path) -> None:
    async def once(connection: aio.Connection) -> None:
        await connection.send(await connection.receive())

    async def main() -> None:
        async with serving(short_path, once) as (_, bridge):
            bridge.send(wire.TEXT, b"hi")
            received: list[object] = []
            while len(received) < 2:
                received += await until(bridge.read_available)
            assert received == ["hi", wire.Close(1000, "")]

    run(main())


def test_a_handler_that_fails_costs_its_own_connection(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(connection: aio.Connection) -> None:
        message = await connection.receive()
        assert message != "fail", "as it was told"
        await connection.send(message)

    async def main() -> None:
        async with serving(short_path, fail) as (server, bridge):
            bridge.send(wire.TEXT, b"fail")
            assert await until(bridge.read_available) == [wire.Close(1011, "")]
            other = Bridge(server.path)
            other.send(wire.TEXT, b"hi")
            assert (await until(other.read_available))[0] == "hi"
            other.socket.close()

    with caplog.at_level(logging.ERROR, "apachews"):
        run(main())
    assert "as it was told" in caplog.text


@pytest.mark.parametrize("way", ["iterating", "receiving", "sending", "pinging"])
def test_a_handler_hears_of_the_end(short_path: Path, way: str) -> None:
    ends: list[object] = []

    async def listen(connection: aio.Connection) -> None:
        if way == "iterating":
            async for _ in connection:
                pass
        else:
            with pytest.raises(ConnectionClosed) as closed:
                if way == "receiving":
                    await connection.receive()
                elif way == "pinging":
                    await connection.ping()
                while True:
                    await connection.send("x" * 10_000)
            assert closed.value.code == connection.close_code or way == "sending"
        await until(lambda: connection.close_code)
        ends.append((connection.close_code, connection.close_reason))

    async def main() -> None:
        async with serving(short_path, listen) as (_, bridge):
            await asyncio.sleep(0.05)
            bridge.send(wire.CLOSE, wire.encode_close(4000, "enough"))
            await until(lambda: ends)

    run(main())
    assert ends == [(4000, "enough")]


def test_sending_waits_for_a_slow_client(short_path: Path) -> None:
    sent = 0

    async def speak(connection: aio.Connection) -> None:
        nonlocal sent
        while sent < 100:
            await connection.send(b"x" * 50_000)
            sent += 1

    async def main() -> None:
        async with serving(short_path, speak, max_queue_bytes=200_000) as (_, bridge):
            await until(lambda: sent > 0)
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.1)
            assert sent < 20, "about what the kernel and the queue take"
            received = 0
            while received < 100:
                received += len(await until(bridge.read_available))
            assert sent == 100

    run(main())


def test_a_client_is_not_read_while_its_handler_is_busy(short_path: Path) -> None:
    """Other clients do not wait meanwhile."""
    may_read = asyncio.Event()
    received: list[object] = []

    async def handle(connection: aio.Connection) -> None:
        if await connection.receive() == "slow":
            await may_read.wait()
        async for message in connection:
            if connection.request.id == "id-1":
                received.append(message)
            await connection.send("ok")

    async def main() -> None:
        async with serving(short_path, handle) as (server, slow):
            slow.send(wire.TEXT, b"slow")
            slow.socket.setblocking(False)
            frame = wire.encode_frame(wire.BINARY, b"x" * 1000)
            sent = stalled = 0
            while stalled < 10:
                try:
                    sent += slow.socket.send(frame) // len(frame)
                    stalled = 0
                except BlockingIOError:
                    stalled += 1
                    await asyncio.sleep(0.05)
            assert sent < 3000, "what the kernel and the mailbox take"
            fast = Bridge(server.path, wire.Open(id="id-2", uri="/"))
            for text in (b"fast", b"hello"):
                fast.send(wire.TEXT, text)
            assert await until(fast.read_available) == ["ok"]
            may_read.set()
            await until(lambda: len(received) == sent)
            fast.socket.close()

    run(main())


def test_one_client_that_floods_keeps_no_task_waiting(short_path: Path) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def main() -> None:
        async with serving(short_path, echo) as (_, bridge):
            task = asyncio.create_task(count())
            await until(lambda: turns > 3)
            before = turns
            received = 0
            for _ in range(20):
                bridge.socket.sendall(wire.encode_frame(wire.TEXT, b"x") * 100)
            while received < 2000:
                received += len(await until(bridge.read_available))
            assert turns - before > 20
            task.cancel()

    run(main())


def test_what_was_read_while_the_handler_was_busy_arrives(short_path: Path) -> None:
    """The rest of a read stays with the reader, and the socket is empty when it goes on."""
    numbers: list[int] = []

    async def handle(connection: aio.Connection) -> None:
        async for message in connection:
            numbers.append(int(message))
            if len(numbers) % 100 == 0:
                await asyncio.sleep(0.001)  # the mailbox fills meanwhile

    async def main() -> None:
        async with serving(short_path, handle) as (_, bridge):
            frames = b"".join(
                wire.encode_frame(wire.TEXT, str(number).encode()) for number in range(20_000)
            )
            bridge.socket.setblocking(True)
            await asyncio.to_thread(bridge.socket.sendall, frames)
            await until(lambda: len(numbers) == 20_000)

    run(main())
    assert numbers == [*range(20_000)]


def test_ping(short_path: Path) -> None:
    took: list[float] = []

    async def ask(connection: aio.Connection) -> None:
        took.append(await connection.ping())

    async def main() -> None:
        async with serving(short_path, ask) as (_, bridge):
            ping = await asyncio.to_thread(bridge.socket.recv, 100)
            bridge.send(wire.PONG, ping[2:])
            await until(lambda: took)

    run(main())
    assert 0 < took[0] < DEADLINE_S


def test_json(short_path: Path) -> None:
    async def handle(connection: aio.Connection) -> None:
        await connection.send_json([await connection.receive_json()])

    async def main() -> None:
        async with serving(short_path, handle) as (_, bridge):
            bridge.send(wire.TEXT, b'{"a": 1}')
            assert (await until(bridge.read_available))[0] == '[{"a":1}]'

    run(main())


def test_groups_and_broadcasts(short_path: Path) -> None:
    async def join(connection: aio.Connection) -> None:
        connection.server.group("room").add(connection.client)
        async for _ in connection:
            pass

    async def main() -> None:
        async with serving(short_path, join) as (server, bridge):
            await until(lambda: len(server.group("room")) == 1)
            assert server.group("room").broadcast("room") == (1, 0)
            assert server.broadcast("all") == 1
            received: list[object] = []
            while len(received) < 2:
                received += await until(bridge.read_available)
            assert received == ["room", "all"]
            assert len(server.clients()) == 1

    run(main())


def test_a_server_that_is_drained_lets_its_handlers_finish(short_path: Path) -> None:
    """What a handler says after the client has moved still arrives."""

    async def slow_echo(connection: aio.Connection) -> None:
        async for message in connection:
            await asyncio.sleep(0.05)
            await connection.send(message)
        assert connection.close_code == 1012
        await connection.send("a last word")

    async def main() -> None:
        async with serving(short_path, slow_echo) as (server, bridge):
            for number in range(5):
                bridge.send(wire.TEXT, b"%d" % number)
            await until(server.clients)
            server.drain()
            bridge.send(wire.MOVE)
            received: list[object] = []
            while len(received) < 7:
                received += await until(bridge.read_available)
            assert [item for item in received if isinstance(item, str)] == [
                *(str(number) for number in range(5)),
                "a last word",
            ]
            await until(lambda: bridge.is_at_end)
            await server.wait_closed()

    run(main())


def test_a_handler_that_never_ends_is_cancelled(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apachews.aio, "HANDLER_END_S", 0.1)
    cancelled = False

    async def hang(_: aio.Connection) -> None:
        nonlocal cancelled
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled = True
            raise

    async def main() -> None:
        async with serving(short_path, hang) as (server, bridge):
            await until(server.clients)
            await server.close()
            assert await until(bridge.read_available) == [wire.Close(1001, "the server closes")]

    run(main())
    assert cancelled


def test_the_closes_are_spread(short_path: Path) -> None:
    async def main() -> float:
        async with serving(short_path, echo) as (server, bridge):
            other = Bridge(server.path)
            await until(lambda: len(server.clients()) == 2)
            loop = asyncio.get_running_loop()
            started_at = loop.time()
            await server.close(spread=0.4)
            for one in (bridge, other):
                assert one.read_available() == [wire.Close(1001, "the server closes")]
            other.socket.close()
            return loop.time() - started_at

    assert 0.3 < run(main()) < 5


def test_another_thread_is_heard_at_once(short_path: Path) -> None:
    async def main() -> None:
        async with aio.serve(short_path / "a.ws") as server:
            threading.Timer(0.05, server.server.close).start()
            async for event in server:
                raise AssertionError(event)

    run(main())


def test_what_a_call_raises_ends_the_server_and_its_handlers(short_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("as it was told")

    async def main() -> None:
        async with serving(short_path, echo) as (server, bridge):
            await until(server.clients)
            server.server.call_soon(fail)
            with pytest.raises(RuntimeError, match="as it was told"):
                await server.wait_closed()
            assert bridge.read_available() == [wire.Close(1001, "the server closes")]

    with pytest.raises(RuntimeError, match="as it was told"):  # close() has the same to say
        run(main())


def test_what_cannot_be(short_path: Path) -> None:
    with pytest.raises(ValueError, match="workers: not available"):
        aio.serve(short_path / "a.ws", workers=2)

    async def main() -> None:
        async with aio.serve(short_path / "a.ws", echo) as server:
            with pytest.raises(TypeError, match="has a handler"):
                await anext(aiter(server))

    run(main())
