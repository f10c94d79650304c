"""A client that can do wrong: bytes on a socket, frames by hand."""

from __future__ import annotations

import base64
import os
import socket


def request(path: str = "/echo.ws", method: str | None = "GET", **changes: str | None) -> bytes:
    """Return a WebSocket request; a keyword changes, adds or (None) removes a header.

    Underscores in a keyword stand for hyphens.
    """
    headers: dict[str, str | None] = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{method or 'GET'} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def dial_tcp(port: int) -> socket.socket:
    """Connect to a port of 127.0.0.1."""
    sock = socket.create_connection(("127.0.0.1", port), 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class RawClient:
    """A connection to Apache; what it reads is bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, size: int) -> bytes:
        """Return that many bytes; fewer only at the end of the connection."""
        while len(self._buffer) < size:
            data = self.socket.recv(1 << 16)
            if not data:
                break
            self._buffer += data
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Return status and headers of a response, repeated ones joined by commas."""
        while b"\r\n\r\n" not in self._buffer:
            data = self.socket.recv(1 << 16)
            assert data, f"no response: {self._buffer!r}"
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for name, _, value in (line.partition(": ") for line in lines):
            before = headers.get(name.lower())
            headers[name.lower()] = value if before is None else f"{before}, {value}"
        return int(first.split()[1]), headers

    def read_response(self) -> tuple[int, dict[str, str], str]:
        """Return status, headers and body of a response with a length."""
        status, headers = self.read_head()
        return status, headers, self.read(int(headers.get("content-length", 0))).decode()

    def upgrade(self, path: str = "/echo.ws", **changes: str) -> RawClient:
        """Send a request and expect the 101; closes the connection for any other answer."""
        try:
            self.send(request(path, None, **changes))
            status, _ = self.read_head()
            assert status == 101, status
        except BaseException:
            self.socket.close()
            raise
        return self

    def read_frame(self) -> tuple[int, bytes] | None:
        """Return first byte and payload of the next frame, None at the end."""
        start = self.read(2)
        if len(start) < 2:
            return None
        size = {126: 2, 127: 8}.get(start[1], 0)
        length = int.from_bytes(self.read(size), "big") if size else start[1]
        return start[0], self.read(length)

    def read_data_frame(self) -> tuple[int, bytes] | None:
        """Return the next frame that is no PING."""
        while (frame := self.read_frame()) and frame[0] == 0x89:
            pass
        return frame

    def read_close(self) -> int:
        """Read to the CLOSE frame; return its code, 1005 for none, 1006 without a CLOSE."""
        try:
            while frame := self.read_frame():
                if frame[0] == 0x88:
                    return int.from_bytes(frame[1][:2], "big") if frame[1] else 1005
        except ConnectionError:
            pass
        return 1006
