"""The loop's short ways for messages do what the general ones do, whatever happens.

One script of what client and producer do, at random, is played to two loops: as it is,
and with the short ways switched off.  What comes out must be the same to the byte.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any

import pytest

from apachews import wire
from apachews_handler.bridge.connection import Connection
from apachews_handler.bridge.loop import Loop
from apachews_handler.bridge.transport import PlainTransport
from apachews_handler.protocol import new_session
from apachews_handler.protocol.deflate import Agreement
from apachews_handler.settings import RAW, Rate, Settings

from ..support.frames import masked

SIZES = [0, 1, 10, 125, 126, 300, 5000, 30_000]
CLIENT_FIRST = [0x81, 0x82, 0x81, 0x01, 0x80, 0x89, 0x8A]
PRODUCER_OPCODES = [0x1, 0x2, 0x1, 0x9, 0x7]


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, level: str, text: str) -> None:
        self.lines.append(text.partition(" after=")[0])

    def descriptor(self) -> int | None:
        return None

    def style(self) -> tuple[str, int]:
        return "wsgi", 6


class Hoarder(PlainTransport):
    """Takes all that the descriptor has, as OpenSSL does, and gives out some of it."""

    buffers_input = True

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.hoard = b""

    def recv(self, size: int) -> bytes | None:
        data = super().recv(1 << 20)
        self.hoard += data or b""
        taken, self.hoard = self.hoard[:1000], self.hoard[1000:]
        return taken or data

    def has_pending(self) -> bool:
        return bool(self.hoard)


def play(seed: int, *, general: bool) -> list[Any]:
    """Return everything that came out."""
    chance = random.Random(seed)
    settings = Settings(
        wire=RAW if chance.random() < 0.2 else "framed",
        message_rate=Rate(5, 1.0) if chance.random() < 0.2 else None,
        max_buffer=chance.choice([4096, 65536]),
        hold=chance.choice([0.0, 30.0]),
        ping_interval=0.0,
    )
    agreement = Agreement() if chance.random() < 0.3 else None
    transport = Hoarder if chance.random() < 0.3 else PlainTransport
    client, client_near = socket.socketpair()
    producer, producer_near = socket.socketpair()
    for sock in (client, client_near, producer, producer_near):
        sock.setblocking(False)
    if seed % 2:  # what the loop sends is taken in part
        for sock in (client_near, producer_near):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
    log = Lines()
    session = new_session(settings, agreement)
    session.open(wire.Open(id="x", uri="/"))
    loop = Loop()
    if general:
        loop._pass_on = loop._on_client  # type: ignore[method-assign]
        loop._pass_back = loop._on_producer  # type: ignore[method-assign]
    connection = Connection(
        transport(client_near), producer_near, session, settings, "/nowhere/x.ws", "x", log
    )
    loop.add(connection)
    received = {client: b"", producer: b""}

    def turn(peer: socket.socket | None = None) -> None:
        for _ in range(3):
            loop.turn(0)
        if peer is not None and peer.fileno() != -1:
            received[peer] += read(peer)

    turn()
    for _ in range(chance.randint(5, 30)):
        act = chance.random()
        if act < 0.4:
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
        connection.client_mask,
        connection.producer_mask,
        bytes(connection.client_queue),
        connection.producer_sent,
        connection in loop._pending,
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
        pass  # there is none, or it has gone


def read(sock: socket.socket) -> bytes:
    """Return what is there, and how it ended."""
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
def test_the_short_ways_do_what_the_general_ones_do(start: int) -> None:
    for seed in range(start, start + 20):
        assert play(seed, general=False) == play(seed, general=True), seed
