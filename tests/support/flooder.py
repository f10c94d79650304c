"""Clients that send small frames as fast as they can: a program of its own, for a core of its own.

    python -m tests.support.flooder PORT PATH KIND CLIENTS SECONDS [--deaf]

It prints a line when all clients are connected.
"""

from __future__ import annotations

import argparse
import select
import time
import zlib

from .frames import masked
from .raw_client import RawClient, dial_tcp

_BOMB = zlib.compressobj(9, zlib.DEFLATED, -15)
# What one client sends over and over.
KINDS = {
    "one-byte": masked(0x82, b"x"),
    "empty": masked(0x82),
    "ping": masked(0x89, b"p"),
    "fragments": masked(0x02, b"x") + masked(0x00, b"y") * 62 + masked(0x80, b"z"),
    "compressed-empty": masked(0xC2, b"\0"),
    "compressed-streams": masked(0xC2, b"\x03\0" * 14 + b"\0"),
    "compressed-bomb": masked(
        0xC2,
        _BOMB.compress(bytes(60_000)) + _BOMB.flush(),  # a final block ends it, and no padding
    ),
}
CHUNK_BYTES = 1 << 16
DEFLATE = {"Sec_WebSocket_Extensions": "permessage-deflate"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("clients", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--deaf", action="store_true", help="read nothing")
    options = parser.parse_args()
    unit = KINDS[options.kind]
    chunk = unit * max(1, CHUNK_BYTES // len(unit))
    offsets: dict[int, int] = {}
    clients: dict[int, RawClient] = {}
    epoll = select.epoll()
    for _ in range(options.clients):
        client = RawClient(dial_tcp(options.port))
        client.upgrade(options.path, **(DEFLATE if unit[0] & 0x40 else {}))
        client.socket.setblocking(False)
        fd = client.socket.fileno()
        clients[fd], offsets[fd] = client, 0
        epoll.register(fd, select.EPOLLOUT | (0 if options.deaf else select.EPOLLIN))
    print("flooding", flush=True)
    end_at = time.monotonic() + options.seconds
    while clients and time.monotonic() < end_at:
        for fd, ready in epoll.poll(0.1):
            sock = clients[fd].socket
            try:
                if ready & select.EPOLLIN and not sock.recv(1 << 18):
                    raise ConnectionError
                if ready & select.EPOLLOUT:
                    count = sock.send(memoryview(chunk)[offsets[fd] :])
                    offsets[fd] = (offsets[fd] + count) % len(chunk)
            except BlockingIOError:
                pass
            except ConnectionError:
                epoll.unregister(fd)
                del clients[fd]


if __name__ == "__main__":
    main()
