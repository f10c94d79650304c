"""The bridge's end of the wire, controlled by a test: one connection, or clients under load."""

from __future__ import annotations

import dataclasses
import os
import select
import socket
import threading
import time
from collections.abc import Iterator

from apachews import wire
from apachews._listening import loopback
from apachews.wire.reader import Moved

from ..conftest import DEADLINE_S

OPEN = wire.Open(id="id-1", uri="/echo.ws", headers=(("accept-language", "de;q=0.5,en-GB"),))
Item = str | bytes | wire.Close | Moved


def connect(path: str) -> socket.socket:
    """Connect to the producer of a socket file, a loopback socket's too."""
    if os.path.isfile(path):
        return loopback.connect(loopback.Address.read(str(path)), DEADLINE_S)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


class Bridge:
    """The bridge's end of one connection."""

    def __init__(self, path: str, open_: wire.Open | None = OPEN) -> None:
        self.socket = connect(path)
        try:
            self._data = b""
            if open_:
                self.socket.sendall(open_.encode())
        except OSError:
            self.socket.close()
            raise

    def send(self, opcode: int, payload: bytes = b"", fin: bool = True) -> None:
        self.socket.sendall(wire.encode_frame(opcode, payload, fin))

    def read_available(self) -> list[Item]:
        """Return what the producer has sent so far, which is whole frames."""
        while select.select([self.socket], [], [], 0)[0]:
            data = self.socket.recv(1 << 20)
            if not data:
                break
            self._data += data
        return list(self._frames())

    def _frames(self) -> Iterator[Item]:
        while header := wire.decode_header(self._data, 0):
            first, length, start = header
            if len(self._data) < start + length:
                return
            payload, self._data = self._data[start : start + length], self._data[start + length :]
            yield _item(first & wire.OPCODE, payload)

    @property
    def is_at_end(self) -> bool:
        if not select.select([self.socket], [], [], 0)[0]:
            return False
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except ConnectionResetError:
            return True


def _item(opcode: int, payload: bytes) -> Item:
    if opcode == wire.TEXT:
        return payload.decode()
    if opcode == wire.BINARY:
        return payload
    if opcode == wire.MOVE:
        return Moved()
    assert opcode == wire.CLOSE, opcode
    return wire.decode_close(payload)


class HeldClient:
    """One client that numbers its messages, and is resumed as docs/reference/wire.md says.

    Attributes:
        sent, answered: how many messages were sent, and how many answers came, in order.
        lost: how many answers never came, because a producer died.
        accepts: how often a producer accepted it.
        refused: how often no producer listened.
        closed: the producer's CLOSE.
        faults: what was wrong, as text.
    """

    WINDOW = 8  # messages without an answer yet

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._open = dataclasses.replace(OPEN, id=name)
        self._bridge: Bridge | None = None
        self._has_moved = False
        self._retry_at = 0.0
        self.sent = self.answered = self.lost = self.accepts = self.refused = 0
        self.closed: wire.Close | None = None
        self.faults: list[str] = []

    def step(self, may_send: bool) -> None:
        if self.closed:
            return
        if self._bridge is None:
            self._connect()
            return
        try:
            items = self._bridge.read_available()
            for item in items:
                self._receive(self._bridge, item)
            if not self.closed and self._bridge.is_at_end:
                self._hold()
            elif may_send and not self._has_moved and self.sent - self.answered < self.WINDOW:
                self.sent += 1
                self._bridge.send(wire.TEXT, b"%d" % self.sent)
        except OSError:
            self._hold()

    def _connect(self) -> None:
        if time.monotonic() < self._retry_at:
            return
        try:
            self._bridge = Bridge(
                self._path, dataclasses.replace(self._open, resumed=self.accepts > 0)
            )
            self.accepts += 1
        except OSError:
            self.refused += 1
            self._retry_at = time.monotonic() + 0.02  # no producer listens: it is held

    def _receive(self, bridge: Bridge, item: Item) -> None:
        if isinstance(item, Moved):
            bridge.send(wire.MOVE)
            self._has_moved = True
        elif isinstance(item, wire.Close):
            self.closed = item
            if not self._has_moved:
                bridge.send(wire.CLOSE, wire.encode_close(item.code))
            self.end()
        elif item == str(self.answered + 1):
            self.answered += 1
        else:
            self.faults.append(f"{item!r} came instead of the answer to {self.answered + 1}")

    def _hold(self) -> None:
        self.end()
        if self._has_moved and self.sent != self.answered:
            self.faults.append(f"moved with {self.sent - self.answered} answers missing")
        self.lost += self.sent - self.answered
        self.answered = self.sent
        self._has_moved = False
        self._retry_at = 0.0

    @property
    def is_idle(self) -> bool:
        return self._bridge is not None and self.sent == self.answered

    def end(self) -> None:
        if self._bridge:
            self._bridge.socket.close()
            self._bridge = None


class Load:
    """Clients that send all the time, in their own thread; ``stop`` waits for the answers."""

    def __init__(self, path: str, count: int) -> None:
        self.clients = [HeldClient(path, f"client-{number}") for number in range(count)]
        self._has_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._has_stopped.is_set():
                self._step(True)
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline and not all(
                client.is_idle or client.closed for client in self.clients
            ):
                self._step(False)
        finally:
            for client in self.clients:
                client.end()

    def _step(self, may_send: bool) -> None:
        for client in self.clients:
            client.step(may_send)
        time.sleep(0.001)  # leaves the processor to the producer

    @property
    def answered(self) -> int:
        return min(client.answered for client in self.clients)

    @property
    def accepts(self) -> int:
        return min(client.accepts for client in self.clients)

    @property
    def refused(self) -> int:
        return sum(client.refused for client in self.clients)

    @property
    def lost(self) -> int:
        return sum(client.lost for client in self.clients)

    @property
    def faults(self) -> list[str]:
        return [fault for client in self.clients for fault in client.faults]

    @property
    def closes(self) -> list[wire.Close]:
        return [client.closed for client in self.clients if client.closed]

    def stop(self) -> None:
        self._has_stopped.set()
        self._thread.join()
