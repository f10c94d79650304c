"""The library's forms of serving, behind Apache."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from apachews import Event, NotListening, PongEvent, aio, publish, threads
from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from ..support.crowd import crowd
from ..support.frames import masked
from ..support.producers import ended, program, running
from ..support.raw_client import RawClient
from ..support.site import Site


@contextmanager
def asyncio_producer(site: Site, name: str, handler: aio.Handler) -> Iterator[aio.AsyncServer]:
    """Serve in a thread with an event loop."""
    servers: list[aio.AsyncServer] = []
    loop = asyncio.new_event_loop()

    async def main() -> None:
        async with aio.serve(site.docroot / name, handler, mode=0o666) as server:
            servers.append(server)
            await server.wait_closed()

    thread = threading.Thread(target=loop.run_until_complete, args=[main()])
    thread.start()
    try:
        yield wait_for(lambda: servers)[0]
    finally:
        servers[0].server.close()
        thread.join()
        loop.close()


async def echo(connection: aio.Connection) -> None:
    async for message in connection:
        await connection.send(message)


def test_asyncio_under_load(event_site: Site) -> None:
    with asyncio_producer(event_site, "aio.ws", echo) as server:
        with crowd(event_site, 50, "/aio.ws") as clients:
            clients.wait_for_echoes(5_000)
            clients.fall_silent()
            assert (clients.report.faults, clients.report.closes) == ([], [])
        wait_for(lambda: not server.clients())


def test_threads_under_load(event_site: Site) -> None:
    def serve(connection: threads.Connection) -> None:
        for message in connection:
            connection.send(message)

    with threads.serve(event_site.docroot / "threads.ws", serve, mode=0o666) as server:
        with crowd(event_site, 50, "/threads.ws") as clients:
            clients.wait_for_echoes(5_000)
            clients.fall_silent()
            assert (clients.report.faults, clients.report.closes) == ([], [])
        wait_for(lambda: not server.clients())


def test_asyncio_and_a_client_that_does_not_read(event_site: Site) -> None:
    sent = 0

    async def speak(connection: aio.Connection) -> None:
        nonlocal sent
        while True:
            await connection.send(os.urandom(60_000))
            sent += 1

    with (
        asyncio_producer(event_site, "speaks.ws", speak),
        RawClient(event_site.dial("ws")) as slow,
        RawClient(event_site.dial("wss1.3")) as fast,
    ):
        for client in (slow, fast):
            client.upgrade("/speaks.ws")
        for _ in range(500):
            frame = fast.read_data_frame()
            assert frame
            assert len(frame[1]) == 60_000


def test_a_ping_goes_to_the_client_and_back(event_site: Site, scheme: str) -> None:
    latencies: list[float] = []

    def serve(event: Event) -> None:
        if event.type() is Event.Accept:
            event.client().ping()
        elif isinstance(event, PongEvent):
            latencies.append(event.latency_s)

    with (
        event_site.producer("pings.ws", serve),
        RawClient(event_site.dial(scheme)).upgrade("/pings.ws") as client,
    ):
        frame = client.read_frame()
        assert frame
        assert (frame[0], len(frame[1])) == (0x89, 8)
        client.send(masked(0x8A, frame[1]))
        wait_for(lambda: latencies)
    assert 0 < latencies[0] < 10


def test_a_room(event_site: Site) -> None:
    """Whoever says something is heard by all in the room but himself."""

    def serve(event: Event) -> None:
        room = server.group(event.client().request.uri)
        if event.type() is Event.Accept:
            room.add(event.client())
        elif event.type() is Event.IO:
            reached, skipped = room.broadcast(event.read(), exclude=event.client())
            event.write(f"{reached} {skipped}")

    with event_site.producer("rooms.ws", serve) as server:
        clients = [
            RawClient(event_site.dial("ws")).upgrade(f"/rooms.ws?room={number % 2}")
            for number in range(6)
        ]
        wait_for(lambda: len(server.group("/rooms.ws?room=0")) == 3)
        clients[0].send(masked(0x81, b"hello"))
        assert clients[0].read_frame() == (0x81, b"2 0")
        for client in (clients[2], clients[4]):
            assert client.read_frame() == (0x81, b"hello")
        clients[1].send(masked(0x81, b"others"))
        assert clients[3].read_frame() == (0x81, b"others"), "and nothing before"
        for client in clients:
            client.socket.close()
        wait_for(lambda: not server.group("/rooms.ws?room=0"))


@pytest.mark.parametrize("workers", ["0", "3"])
def test_published_by_another_program(event_site: Site, workers: str) -> None:
    path = event_site.docroot / "news.ws"
    command = (program(event_site.apache.root), str(path), workers)
    with running(*command, **private_apache.as_apache_user()) as producer:
        wait_for(path.exists, what=producer.poll)
        clients = [
            RawClient(event_site.dial(scheme)).upgrade("/news.ws")
            for scheme in ("ws", "wss1.2", "wss1.3") * 3
        ]
        # (A handshake is answered before its producer has looked.)
        wait_for(lambda: publish(path, "hello") == (9, 0))
        assert publish(path, "hello", group="room") == (0, 0)
        assert publish(path, b"\x00last") == (9, 0)
        for client in clients:
            while (frame := client.read_data_frame()) != (0x82, b"\x00last"):
                assert frame == (0x81, b"hello")
            client.socket.close()
        producer.terminate()
        ended(producer)
    with pytest.raises(NotListening):
        publish(path, "hello")
    path.unlink(missing_ok=True)
