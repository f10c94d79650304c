"""A message of 1 GiB passes through Apache, and Apache's memory stays as it was.

As one frame and in fragments of 64 KiB, from the client and to it, plain and over
TLS.  Neither end of the test holds the message either.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator

import pytest

from apachews import wire
from apachews_handler.protocol.mask import unmask

from ..integration.test_producers import HandMade
from ..support.raw_client import RawClient
from ..support.site import Site, running_site
from .conftest import scaled

BLOCK_BYTES = 65536
BLOCKS = scaled(16384, 512)  # 1 GiB; 32 MiB
TOTAL_BYTES = BLOCKS * BLOCK_BYTES
BLOCK = bytes(range(256)) * 256
MASK = b"\x37\xfa\x21\x3d"
MASKED = unmask(BLOCK, MASK)
# What the allocator may keep of the buffers of 64 KiB that come and go.
SLACK_BYTES = 4 * 1024 * 1024


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    # One child, so that the memory measured is the one that carries the message.
    with running_site("event", 25, 25, extra="SetEnv APACHEWS_MAX_MESSAGE 1025M") as site:
        yield site


def headers(fragments: bool) -> Iterator[bytes]:
    """Give the header that goes before each block, or b""."""
    for index in range(BLOCKS):
        if fragments:
            first = wire.BINARY if index == 0 else wire.CONTINUATION
            if index == BLOCKS - 1:
                first |= wire.FIN
            yield wire.encode_header(first, BLOCK_BYTES)
        elif index == 0:
            yield wire.encode_header(wire.FIN | wire.BINARY, TOTAL_BYTES)
        else:
            yield b""


def send_message(send: Callable[[bytes], None], fragments: bool, masked: bool) -> None:
    block = MASKED if masked else BLOCK
    for header in headers(fragments):
        if masked and header:
            data = bytearray(header)
            data[1] |= wire.MASKED
            header = bytes(data) + MASK
        send(header + block)


def receive_message(recv: Callable[[int], bytes]) -> tuple[int, int]:
    """Return length and checksum of a message, which is not kept."""
    total, checksum, data, fin = 0, 0, b"", False
    while not fin:
        while (header := wire.decode_header(data, 0)) is None:
            data += recv(BLOCK_BYTES)
        first, length, start = header
        fin = first >= wire.FIN
        data = data[start:]
        total += length
        while length:
            if not data:
                data = recv(BLOCK_BYTES)
                assert data, f"the end after {total - length} bytes"
            checksum = zlib.crc32(data[:length], checksum)
            taken = min(length, len(data))
            length -= taken
            data = data[taken:]
    return total, checksum


class Memory:
    """The most that Apache's child has resident while something runs."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self.most = site.resident_bytes()

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.most = max(self.most, self._site.resident_bytes())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
@pytest.mark.parametrize("to_client", [False, True], ids=["from-client", "to-client"])
@pytest.mark.parametrize("fragments", [False, True], ids=["one-frame", "fragments"])
def test_a_message_of_any_size_takes_no_memory(
    site: Site, scheme: str, to_client: bool, fragments: bool
) -> None:
    expected = 0
    for _ in range(BLOCKS):
        expected = zlib.crc32(BLOCK, expected)
    producer = HandMade(site, "stream.ws")
    try:
        with (
            RawClient(site.dial(scheme)).upgrade("/stream.ws") as client,
            producer.accept() as sock,
        ):
            client.socket.settimeout(60)
            sock.settimeout(60)
            send = sock.sendall if to_client else client.send
            recv = client.socket.recv if to_client else sock.recv
            with Memory(site) as memory:
                sender = threading.Thread(
                    target=send_message, args=(send, fragments, not to_client)
                )
                sender.start()
                received = receive_message(recv)
                sender.join()
    finally:
        producer.close()
    assert received == (TOTAL_BYTES, expected)
    print(f"resident before {memory.before >> 10} KiB, at most {memory.most >> 10} KiB")
    assert memory.most - memory.before <= SLACK_BYTES
