"""A crowd of clients that never stop talking: who was lost, what was lost, who waited.

Each client keeps some messages under way to an echo and holds every answer against
what it sent: a message that is lost, doubled, changed or out of order is noticed at
the next one.  One thread of asyncio for all; plain and TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import requests

from apachews import wire

from ..conftest import wait_for
from .frames import masked
from .raw_client import request
from .site import Site

# Messages each client has under way: more than one, so that order means something.
WINDOW = 3
# A message without an answer for so long may be lost, where some may be.
LOST_S = 0.5
# Every so many messages are large.
LARGE_EVERY = 40
# How long Apache has to close what was closed.
LEAVE_S = 2.0
# A page that did not come so soon does not come: all workers are held.
ANSWER_S = 60.0
# Between two looks at who may send.
TURN_S = 0.01
# Handshakes at once: httpd's backlog has its limit, and so has a small Apache.
JOINING = 50


@dataclass
class Report:
    """What a crowd has seen.

    Attributes:
        echoes: answers that were right.
        lost: messages that were not answered though later ones were.
        faults: what went wrong, a line for each client it befell.
        closes: close codes that clients got; 1006 for an end without one.
        closed_at: when they got them.
        longest_stall_s: the longest that any client waited for an answer.
    """

    echoes: int = 0
    lost: int = 0
    faults: list[str] = field(default_factory=list)
    closes: list[int] = field(default_factory=list)
    closed_at: list[float] = field(default_factory=list)
    longest_stall_s: float = 0.0


class _Client(asyncio.Protocol):
    """One client, on asyncio's thread."""

    def __init__(self, crowd: Crowd, index: int) -> None:
        self._crowd = crowd
        self._name = index
        self._buffer = b""
        self._sent = 0
        self._expected: deque[tuple[bytes, float]] = deque()
        self._transport: asyncio.Transport
        self.is_open = False
        self.has_ended = False
        self.heard_at = 0.0  # when an answer came
        self.opened = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(request(self._crowd.path, None))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.is_open:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self._buffer = rest
            status = head[:12].decode("latin-1")
            if status != "HTTP/1.1 101":
                self._fail(status)
                self._transport.abort()
                return
            self.is_open = True
            self.opened.set_result(True)
        while (header := wire.decode_header(self._buffer, 0)) is not None:
            first, length, start = header
            if len(self._buffer) < start + length:
                break
            payload = self._buffer[start : start + length]
            self._buffer = self._buffer[start + length :]
            self._receive(first, payload)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self._fail(f"no handshake: {error}")
            self.opened.set_result(False)
        if not self.has_ended:
            self._end(wire.ABNORMAL)
        self.lost.set_result(True)

    def abort(self) -> None:
        """Go without waiting for anybody."""
        self._transport.abort()

    def _receive(self, first: int, payload: bytes) -> None:
        if first == wire.FIN | wire.PING:
            self._transport.write(masked(wire.FIN | wire.PONG, payload))
        elif first == wire.FIN | wire.CLOSE:
            self._close(payload[:2])
            self._end(int.from_bytes(payload[:2], "big") if payload else wire.NO_CODE)
        elif first != wire.FIN | wire.TEXT or not self._expected:
            self._fail(f"unexpected frame {first:#x} {payload!r:.60}")
        else:
            expected, sent_at = self._expected.popleft()
            while self._crowd.may_lose and payload != expected and self._expected:
                self._crowd.report.lost += 1
                expected, sent_at = self._expected.popleft()
            if payload != expected:
                self._fail(f"got {payload!r:.60}, not {expected!r:.60}")
            else:
                report = self._crowd.report
                report.echoes += 1
                now = self.heard_at = time.monotonic()
                report.longest_stall_s = max(report.longest_stall_s, now - sent_at)

    def talk(self) -> None:
        """Fill the window."""
        if not self.is_open or self.has_ended:
            return
        frames = []
        window = WINDOW
        if self._crowd.may_lose and time.monotonic() - self.heard_at > LOST_S:
            window = len(self._expected) + 1  # those may be lost: what follows shows it
        while len(self._expected) < window:
            self._sent += 1
            text = f"{self._name} {self._sent} ".encode() + b"x" * (self._sent % 7 * 40)
            if self._sent % LARGE_EVERY == 0:
                # Where a producer is killed, one that a buffer holds: Apache passes on what
                # is larger as it comes, and a client that has a part cannot be kept.
                text += b"x" * (30_000 if self._crowd.may_lose else 100_000)
            self._expected.append((text, time.monotonic()))
            frames.append(masked(wire.FIN | wire.TEXT, text))
        if frames:
            self._transport.write(b"".join(frames))

    @property
    def is_answered(self) -> bool:
        return not self._expected or self.has_ended

    def leave(self) -> None:
        """Close, as one does."""
        if self.is_open and not self.has_ended:
            self.has_ended = True
            self._close(b"\x03\xe8")

    def _close(self, payload: bytes) -> None:
        # (A TLS transport of asyncio's that is closed twice cannot be aborted any more.)
        if not self._transport.is_closing():
            self._transport.write(masked(wire.FIN | wire.CLOSE, payload))
            self._transport.close()

    def _end(self, code: int) -> None:
        self.has_ended = True
        self.is_open = False
        self._crowd.report.closes.append(code)
        self._crowd.report.closed_at.append(time.monotonic())

    def _fail(self, text: str) -> None:
        self._crowd.report.faults.append(f"client {self._name}: {text}")


class Crowd:
    """So many clients of a site; half of them encrypted by default.

    Args:
        site: where they connect.
        count: how many.
        path: of an echo.
        round_s: every client sends once in so long, what its window allows: the load.
        may_lose: messages may be lost, as with a producer that is killed; none may
            come twice or out of order all the same.
        tls: all with TLS, or none; None: every second one.
        port: where they connect instead of to Apache, without TLS.
    """

    def __init__(
        self,
        site: Site,
        count: int,
        path: str = "/echo.ws",
        round_s: float = 0.02,
        may_lose: bool = False,
        tls: bool | None = None,
        port: int = 0,
    ) -> None:
        self._tls = tls
        self._port = port
        self.path = path
        self.may_lose = may_lose
        self.report = Report()
        self._site = site
        self._count = count
        self._round_s = round_s
        self._clients: list[_Client] = []
        self._next_index = 0
        self._loop: asyncio.AbstractEventLoop
        self._joining: asyncio.Semaphore
        self._is_talking = True
        self._is_leaving = False
        self._has_joined = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="crowd")

    @property
    def open_count(self) -> int:
        """How many are connected."""
        return sum(client.is_open for client in self._clients)

    def start(self, timeout_s: float = 60.0) -> None:
        """Connect all, and have them talk."""
        self._thread.start()
        wait_for(
            lambda: self._has_joined.is_set() or self._failed, timeout_s, what=lambda: self.report
        )
        assert not self._failed, self._failed

    def join(self, count: int, timeout_s: float = 60.0) -> None:
        """Have so many more clients come."""
        asyncio.run_coroutine_threadsafe(self._join(count), self._loop).result(timeout_s)

    def leave(self, count: int, timeout_s: float = 60.0) -> None:
        """Have so many clients go, those that have been here longest."""
        asyncio.run_coroutine_threadsafe(self._leave(count), self._loop).result(timeout_s)

    def wait_for_echoes(self, count: int, timeout_s: float = 30.0) -> None:
        """Wait until so many more answers have come."""
        until = self.report.echoes + count
        wait_for(lambda: self.report.echoes >= until, timeout_s, what=lambda: self.report)

    def wait_for_everybody(self, timeout_s: float = 30.0) -> None:
        """Wait until every client has had another answer."""
        now = time.monotonic()
        wait_for(
            lambda: all(client.heard_at > now for client in self._clients),
            timeout_s,
            what=lambda: f"not all were answered; {self.report}",
        )

    def fall_silent(self, timeout_s: float = 30.0) -> None:
        """Send nothing more, and wait for the last answers."""
        self._is_talking = False
        wait_for(
            lambda: all(client.is_answered for client in self._clients),
            timeout_s,
            what=lambda: f"not all were answered; {self.report}",
        )

    def stop(self) -> Report:
        """Have all leave; return what they saw."""
        self._is_leaving = True
        self._thread.join()
        if self._failed:
            raise self._failed
        return self.report

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._failed = error

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._joining = asyncio.Semaphore(JOINING)
        await self._join(self._count)
        self._has_joined.set()
        turn = 0
        turns = max(1, round(self._round_s / TURN_S))
        while not self._is_leaving:
            if self._is_talking:
                for client in self._clients[turn::turns]:
                    client.talk()
            turn = (turn + 1) % turns
            await asyncio.sleep(TURN_S)
        for client in self._clients:
            client.leave()
        leaving = [client.lost for client in self._clients]
        if leaving:
            await asyncio.wait(leaving, timeout=LEAVE_S)
            for client in self._clients:
                client.abort()
            await asyncio.wait(leaving)

    async def _join(self, count: int) -> None:
        context = self._site.tls_context()
        first, self._next_index = self._next_index, self._next_index + count

        async def join(index: int) -> None:
            async with self._joining:
                is_encrypted = index % 2 if self._tls is None else self._tls
                client = await self._connect(index, context if is_encrypted else None)
                if client:
                    self._clients.append(client)

        await asyncio.gather(*(join(first + number) for number in range(count)))

    async def _leave(self, count: int) -> None:
        going, self._clients = self._clients[:count], self._clients[count:]
        for client in going:
            client.leave()
        if going:
            await asyncio.wait([client.lost for client in going], timeout=LEAVE_S)
            for client in going:
                client.abort()

    async def _connect(self, index: int, context: ssl.SSLContext | None) -> _Client | None:
        loop = asyncio.get_running_loop()
        apache = self._site.apache
        try:
            _, client = await loop.create_connection(
                lambda: _Client(self, index),
                "127.0.0.1",
                self._port or (apache.tls_port if context else apache.port),
                ssl=context,
                server_hostname="localhost" if context else None,
            )
        except OSError as error:
            self.report.faults.append(f"client {index}: {error}")
            return None
        return client if await client.opened else None


@contextlib.contextmanager
def crowd(
    site: Site,
    count: int,
    path: str = "/echo.ws",
    round_s: float = 0.02,
    may_lose: bool = False,
    tls: bool | None = None,
    port: int = 0,
) -> Iterator[Crowd]:
    """A crowd that is connected and talks; it leaves at the end."""
    made = Crowd(site, count, path, round_s, may_lose, tls, port)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@contextlib.contextmanager
def plain_http(site: Site) -> Iterator[list[float]]:
    """Ask for a page ten times a second; give how long each answer took, inf for none."""
    took: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.1):
            begun_at = time.monotonic()
            try:
                requests.get(site.http(), timeout=ANSWER_S).raise_for_status()
                took.append(time.monotonic() - begun_at)
            except requests.RequestException:
                took.append(math.inf)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join()


def wait_for_answer(answers: list[float]) -> None:
    """Wait for one more of the answers that ``plain_http`` gives; fail if one did not come."""
    count = len(answers)
    wait_for(lambda: len(answers) > count, ANSWER_S + 1)
    assert math.inf not in answers
