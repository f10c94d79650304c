"""Networks that break: a TCP proxy of one client, which a test cuts.

Contract: ``Network`` is for one loop of asyncio; ``running_network`` runs one in a thread.  A cut
resets the connections, or is silent: they stay open at both ends, and their data is lost, as
after a change of the client's address.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator


class _Link:
    """A connection of a client, and the one to the server."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.is_dead = False

    async def copy(
        self, reader: asyncio.StreamReader, own: asyncio.StreamWriter, other: asyncio.StreamWriter
    ) -> None:
        """Pass on what one end sends, until it closes.

        Args:
            reader: of this end.
            own: to this end.
            other: to the other end, which learns nothing of a dead link.
        """
        try:
            while data := await reader.read(65536):
                if not self.is_dead:
                    other.write(data)
                    await other.drain()
        except OSError:
            pass  # reset: the other end is closed
        finally:
            (own if self.is_dead else other).close()

    def abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


class Network:
    """A TCP proxy to a port of this machine.

    Attributes:
        port: where it listens, after ``open``.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._is_silent = False
        self._is_up = asyncio.Event()
        self._is_up.set()
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> int:
        """Listen; return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_up.is_set() and not self._is_silent:
            writer.transport.abort()
            return
        await self._is_up.wait()  # a client repeats its SYN
        try:
            other_reader, other = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, other)
        self._links.add(link)
        try:
            await asyncio.gather(
                link.copy(reader, writer, other), link.copy(other_reader, other, writer)
            )
        finally:
            self._links.discard(link)

    def fail(self, is_silent: bool = False) -> None:
        """End all connections, with a reset or without a word; no new one passes."""
        self._is_silent = is_silent
        self._is_up.clear()
        for link in self._links:
            link.is_dead = is_silent
            if not is_silent:
                link.abort()

    def restore(self) -> None:
        """Let new connections pass."""
        self._is_up.set()

    async def cut(self, seconds: float, is_silent: bool = False) -> None:
        """Fail for some time."""
        self.fail(is_silent)
        await asyncio.sleep(seconds)
        self.restore()

    def close(self) -> None:
        assert self._server
        self._server.close()
        for link in self._links:
            link.abort()


class RunningNetwork:
    """A network in a thread of its own.

    Attributes:
        port: where clients connect.
    """

    def __init__(self, network: Network, loop: asyncio.AbstractEventLoop) -> None:
        self._network = network
        self._loop = loop
        self.port = network.port

    @contextlib.contextmanager
    def cut(self, is_silent: bool) -> Iterator[None]:
        """Fail until the end of the block."""
        failed = threading.Event()

        def fail() -> None:
            self._network.fail(is_silent)
            failed.set()

        self._loop.call_soon_threadsafe(fail)
        failed.wait()
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._network.restore)


@contextlib.contextmanager
def running_network(target: int) -> Iterator[RunningNetwork]:
    """Run a network to a port until the end of the block."""
    found: list[RunningNetwork] = []
    is_open = threading.Event()
    ended = asyncio.Event()

    async def run() -> None:
        network = Network(target)
        try:
            await network.open()
            found.append(RunningNetwork(network, asyncio.get_running_loop()))
        finally:
            is_open.set()
        await ended.wait()
        network.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="network")
    thread.start()
    is_open.wait()
    try:
        yield found[0]
    finally:
        if found:
            found[0]._loop.call_soon_threadsafe(ended.set)
        thread.join()
