"""bridge.fast_path does what the general functions of bridge.relay do, whatever happens.

One random script of what client and producer do is played to two loops: with the fast path,
and without it.  All that comes out must be equal, to the byte, and so must the state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import select
import socket
import time
import zlib
from collections.abc import Callable
from typing import Any, cast

import pytest

from apachews import wire
from apachews_handler.bridge.connection import Connection
from apachews_handler.bridge.loop import Loop
from apachews_handler.bridge.transport import PlainTransport
from apachews_handler.protocol import AnySession, new_session, new_tunnel
from apachews_handler.protocol.client_reader import FRAMES_A_TURN
from apachews_handler.protocol.deflate import Agreement
from apachews_handler.protocol.timeouts import Timeouts
from apachews_handler.setting_values import Rate
from apachews_handler.settings import OPAQUE, RAW, Settings, for_tunnel

from ..conftest import slots_of
from ..support.frames import masked

SIZES = [0, 1, 10, 125, 126, 300, 5000, 30_000]
# A turn does not read all of these: the reader pauses.
BURST = masked(0x81, b"") * (FRAMES_A_TURN + 500)
_deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
BOMB = masked(0xC2, (_deflater.compress(bytes(300_000)) + _deflater.flush(zlib.Z_SYNC_FLUSH))[:-4])
CLIENT_FIRST = [0x81, 0x82, 0x81, 0x01, 0x80, 0x89, 0x8A]
PRODUCER_OPCODES = [0x1, 0x2, 0x1, 0x9, 0x7]


class RecordingLog:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, level: str, text: str) -> None:
        self.lines.append(text.partition(" after=")[0])

    def descriptor(self) -> int | None:
        return None

    def style(self) -> tuple[str, int]:
        return "wsgi", 6


class BufferingTransport(PlainTransport):
    """Reads all that the descriptor has, as OpenSSL does, and returns some of it."""

    buffers_input = True

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.buffer = b""

    def recv(self, size: int) -> bytes | None:
        data = super().recv(1 << 20)
        self.buffer += data or b""
        returned, self.buffer = self.buffer[:1000], self.buffer[1000:]
        return returned or data

    def has_pending(self) -> bool:
        return bool(self.buffer)


class MoreEvents:
    """An epoll whose events have one bit more: the loop then calls the general functions."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        return [(fd, ready | select.EPOLLRDNORM) for fd, ready in self._epoll.poll(timeout)]


# The time, which advances with each turn: the times of both ways must be the same.
CLOCK = [100.0]


def play(seed: int, *, general: bool, is_tunnel: bool = False) -> list[Any]:
    """Return all that came out, and the state at the end."""
    CLOCK[:] = [100.0]
    chance = random.Random(seed)
    settings = Settings(
        wire=RAW if chance.random() < 0.2 else "framed",
        message_rate=Rate(5, 1.0) if chance.random() < 0.2 else None,
        max_buffer_bytes=chance.choice([4096, 65536]),
        hold_s=chance.choice([0.0, 30.0]),
        ping_interval_s=0.0,
    )
    agreement = Agreement() if chance.random() < 0.3 else None
    transport = BufferingTransport if chance.random() < 0.3 else PlainTransport
    client, client_near = socket.socketpair()
    producer, producer_near = socket.socketpair()
    for sock in (client, client_near, producer, producer_near):
        sock.setblocking(False)
    if seed % 2:  # small buffers, so that the kernel takes a part of what the loop sends
        for sock in (client_near, producer_near):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
    log = RecordingLog()
    session: AnySession
    if is_tunnel:
        settings = dataclasses.replace(settings, tunnel=OPAQUE if seed % 5 == 0 else "frames")
        settings = for_tunnel(settings, is_message_limited=seed % 3 == 0)
        session = new_tunnel(settings)
    else:
        session = new_session(settings, agreement)
        session.open(wire.Open(id="x", uri="/"))
    loop = Loop()
    if general:
        loop._poller.epoll = cast(select.epoll, MoreEvents(loop._poller.epoll))
    connection = Connection(
        transport=transport(client_near),
        producer_socket=producer_near,
        session=session,
        settings=settings,
        endpoint="/nowhere/x.ws",
        name="x",
        log=log,
    )
    loop.add(connection)
    received = {client: b"", producer: b""}

    def turn(peer: socket.socket | None = None) -> None:
        for _ in range(3):
            CLOCK.append(CLOCK.pop() + 0.125)
            loop.turn(0)
        if peer is not None and peer.fileno() != -1:
            received[peer] += read(peer)

    turn()
    for _ in range(chance.randint(5, 30)):
        act = chance.random()
        if act < 0.05:
            with contextlib.suppress(OSError):  # no room, or the loop has closed the other end
                client.send(BURST if agreement is None or chance.random() < 0.5 else BOMB)
        elif act < 0.4:
            offer(client, chance, lambda size: masked(chance.choice(CLIENT_FIRST), b"m" * size))
        elif act < 0.8:
            offer(
                producer,
                chance,
                lambda size: wire.encode_frame(chance.choice(PRODUCER_OPCODES), b"p" * size),
            )
        turn({0: client, 1: producer}.get(chance.randint(0, 5)))
    end = chance.random()
    if end < 0.3:
        client.shutdown(socket.SHUT_WR)
    elif end < 0.6:
        producer.close()
    for _ in range(10):
        turn(client)
        turn(producer)
    outcome = [
        *received.values(),
        log.lines,
        session.client_state,
        session.producer_state,
        session.traffic(),
        session.close_code,
        connection.client.mask,
        connection.producer.mask,
        connection.client.queue.undelivered(),
        connection.producer.queue.undelivered(),
        connection in loop._poller.pending,
        {
            name: getattr(connection.timeouts, name)
            for name in slots_of(Timeouts)
            if name != "_settings"
        },
    ]
    loop.close()
    client.close()
    producer.close()
    return outcome


def offer(sock: socket.socket, chance: random.Random, frame: Callable[[int], bytes]) -> None:
    """Send some frames, the last one perhaps cut, as far as there is room."""
    data = b"".join(frame(chance.choice(SIZES)) for _ in range(chance.randint(1, 3)))
    if chance.random() < 0.05:
        data += wire.encode_frame(wire.MOVE, b"")
    if chance.random() < 0.3:
        data = data[: chance.randint(0, len(data))]
    try:
        sock.send(data)
    except OSError:
        pass  # EAGAIN, or the loop has closed the other end


def read(sock: socket.socket) -> bytes:
    """Return what can be read, and how it ended."""
    data = b""
    try:
        while more := sock.recv(1 << 20):
            data += more
    except BlockingIOError:
        return data
    except OSError as error:
        return data + type(error).__name__.encode()
    return data + b"<the end>"


@pytest.mark.parametrize("start", range(0, 300, 20))
def test_the_fast_path_does_what_the_general_functions_do(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: CLOCK[0])
    for seed in range(start, start + 20):
        assert play(seed, general=False) == play(seed, general=True), seed


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_a_tunnel_has_the_same_fast_path(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: CLOCK[0])
    for seed in range(start, start + 20):
        fast, general = (play(seed, general=way, is_tunnel=True) for way in (False, True))
        assert fast == general, seed
