"""WebSocket servers for tunnels: one that a test scripts, and an echo that others wrote."""

from __future__ import annotations

import base64
import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from .producers import program
from .raw_client import RawClient

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# The server of the websockets library, which compresses if a client offers it.
# Arguments: a port of 127.0.0.1.
ECHO = """
import asyncio, contextlib, sys
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

async def echo(connection):
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(message)

async def main():
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), max_size=None, ping_interval=None):
        await asyncio.Event().wait()

asyncio.run(main())
"""


class Peer(RawClient):
    """A connection from Apache, as a backend sees it.

    Attributes:
        target: of the request.
        headers: names in lower case; repeated ones joined by commas.
        names: of the headers, in order, as they were written.
    """

    target: str
    headers: dict[str, str]
    names: list[str]

    def read_request(self) -> None:
        while b"\r\n\r\n" not in self._buffer:
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionError("no request")
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.target = first.split()[1]
        pairs = [line.partition(": ")[::2] for line in lines]
        self.names = [name for name, _ in pairs]
        self.headers = {}
        for name, value in pairs:
            before = self.headers.get(name.lower())
            self.headers[name.lower()] = value if before is None else f"{before}, {value}"

    def accept_header(self) -> bytes:
        key = self.headers["sec-websocket-key"].encode()
        return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())

    def head(self, *more: bytes, accept: bytes | None = None) -> bytes:
        """Return the 101 of this request."""
        lines = [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + (self.accept_header() if accept is None else accept),
            *more,
        ]
        return b"\r\n".join([*lines, b"", b""])

    def accept(self, *more: bytes) -> None:
        self.send(self.head(*more))

    def read_to_end(self) -> bytes:
        """Return all that comes until the end of file."""
        data = self._buffer
        try:
            while more := self.socket.recv(1 << 16):
                data += more
        except ConnectionResetError:
            data += b"<reset>"
        return data

    def read_masked(self) -> tuple[int, bytes] | None:
        """Return first byte and payload of a client's next frame, None at the end."""
        start = self.read(2)
        if len(start) < 2:
            return None
        size = {126: 2, 127: 8}.get(start[1] & 0x7F, 0)
        length = int.from_bytes(self.read(size), "big") if size else start[1] & 0x7F
        key = self.read(4)
        payload = self.read(length)
        return start[0], bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def echo(peer: Peer) -> None:
    """Accept, and send every message back; answer a CLOSE."""
    peer.accept()
    while frame := peer.read_masked():
        first, payload = frame
        length = len(payload)
        if length < 126:
            header = bytes((first, length))
        else:
            header = bytes((first, 127)) + length.to_bytes(8, "big")
        if first == 0x89:
            header = b"\x8a" + header[1:]
        if first != 0x8A:
            peer.send(header + payload)
        if first == 0x88:
            return


Serve = Callable[[Peer], None]


class Backend:
    """A server whose connections a test handles, each in a thread.

    Attributes:
        serve: handles the next connections; gets the peer after its request was read.
        peers: all connections so far.
        errors: what handlers raised.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.serve: Serve = echo
        self.peers: list[Peer] = []
        self.errors: list[BaseException] = []
        self._listener = listener
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed
            sock.settimeout(20)
            thread = threading.Thread(target=self._handle, args=(Peer(sock), self.serve))
            self._threads.append(thread)
            thread.start()

    def _handle(self, peer: Peer, serve: Serve) -> None:
        try:
            with peer:
                peer.read_request()
                self.peers.append(peer)
                serve(peer)
        except (ConnectionError, TimeoutError):
            pass  # the other end has gone, as some tests want it
        except BaseException as error:
            self.errors.append(error)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for peer in self.peers:
            if peer.socket.fileno() != -1:
                try:
                    peer.socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has ended meanwhile
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        if self.errors:
            raise self.errors[0]


@contextmanager
def backend(path: Path | None = None) -> Iterator[Backend]:
    """Run a scripted server on a port of 127.0.0.1, or on a Unix socket."""
    if path is None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(128)
    made = Backend(listener)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def echo_server(directory: Path) -> Iterator[int]:
    """Run the echo of the websockets library; return its port."""
    port = private_apache.free_port()
    with listening(port, sys.executable, program(directory, ECHO, "echo_server.py"), str(port)):
        yield port


@contextmanager
def listening(port: int, *command: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that listens on a port of 127.0.0.1; it is killed at the end."""
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    try:
        wait_for(lambda: process.poll() is not None or _connects(port), 30)
        assert process.poll() is None, f"{command} has ended with {process.poll()}"
        yield process
    finally:
        process.kill()
        process.wait()


def _connects(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
