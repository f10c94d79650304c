"""Loopback sockets: a port of 127.0.0.1 and a token in a regular file.

For file systems and hosts without Unix sockets: many mounts of networks, FUSE and virtual
machines.  ``Server(path, transport="loopback")`` writes the file; a program that can read it can
connect.

Contract: ``Address`` is the content of the file.  ``Caller`` and ``Answerer`` are the two ends of
the handshake, sans-I/O: ``wanted`` is the number of bytes that they need next, ``receive``
accepts them, returns the bytes to send, and raises ``NotProven``.  ``connect`` and ``dial`` are
the blocking caller.

How this works: any program of the machine can connect to a port, and any program can listen on
the port of a dead producer.  So both ends prove that they know the token without sending it: each
sends a random number, and the HMAC of both numbers with the token as its key.  Before the other
end has proved itself, the caller sends only its random number, so that the author of a forged
file controls no byte of it.

Sources: docs/reference/wire.md, *Loopback*; RFC 2104 (HMAC).
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

HOST: Final = "127.0.0.1"
VERSION: Final = 1
TOKEN_BYTES: Final = 32

_FILE: Final = re.compile(rb"apachews-loopback 1 ([1-9][0-9]{0,4}) ([0-9a-f]{64})\n")
_HELLO: Final = re.compile(rb"apachews-loopback 1 ([0-9a-f]{32})\n")
_ANSWER: Final = re.compile(rb"([0-9a-f]{32}) ([0-9a-f]{64})\n")
_PROOF: Final = re.compile(rb"([0-9a-f]{64})\n")
_HELLO_BYTES: Final = 53
_ANSWER_BYTES: Final = 98
_PROOF_BYTES: Final = 65
# The size of the file, which depends on the digits of the port.
FILE_BYTES: Final = range(87, 92)
# The permissions that the file must not grant.
OTHERS: Final = 0o007


class NotAnAddress(ValueError):
    """A file is not that of a loopback socket, or all users can read it."""


class NotProven(Exception):
    """The other end does not know the token, or speaks another protocol."""


@dataclass(frozen=True, slots=True)
class Address:
    """The content of the file: the port of a producer, and the shared secret.

    Attributes:
        port: of ``127.0.0.1``.
        token: 32 bytes.
    """

    port: int
    token: bytes

    def encode(self) -> bytes:
        """Return the content of the file."""
        return f"apachews-loopback {VERSION} {self.port} {self.token.hex()}\n".encode()

    @classmethod
    def decode(cls, data: bytes) -> Address:
        """Read the content of a file.

        Raises:
            NotAnAddress
        """
        match = _FILE.fullmatch(data)
        if not match or int(match[1]) > 65535:
            raise NotAnAddress("neither a socket nor the file of a loopback server")
        return cls(int(match[1]), bytes.fromhex(match[2].decode()))

    @classmethod
    def read(cls, path: str) -> Address:
        """Read a file.

        Raises:
            NotAnAddress: also if users other than its owner and group can read it.
            OSError
        """
        data, mode = read_file(path)
        address = cls.decode(data)
        if mode & OTHERS:
            raise NotAnAddress("all users can read the token: chmod o= the file")
        return address


def read_file(path: str) -> tuple[bytes, int]:
    """Return the beginning of a file, enough for an address, and its mode.

    Raises:
        OSError
    """
    # O_NONBLOCK: if the path is a FIFO, open() would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(fd, FILE_BYTES.stop), os.fstat(fd).st_mode
    finally:
        os.close(fd)


def new_token() -> bytes:
    """Return a random token."""
    return secrets.token_bytes(TOKEN_BYTES)


def _new_number() -> bytes:
    return secrets.token_hex(16).encode()


def _prove(token: bytes, role: bytes, numbers: bytes) -> bytes:
    return hmac.new(token, role + b" " + numbers, "sha256").hexdigest().encode()


class Caller:
    """The end that connects.

    Attributes:
        hello: the bytes to send first.
        wanted: number of bytes to read next; 0 at the end.
    """

    __slots__ = ("_data", "_number", "_token", "hello", "wanted")

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._number = _new_number()
        self._data = b""
        self.hello = b"apachews-loopback 1 " + self._number + b"\n"
        self.wanted = _ANSWER_BYTES

    def receive(self, data: bytes) -> bytes:
        """Accept at most ``wanted`` bytes; return the bytes to send.

        Raises:
            NotProven
        """
        self._data += data
        self.wanted -= len(data)
        if self.wanted:
            return b""
        match = _ANSWER.fullmatch(self._data)
        if not match:
            raise NotProven("it speaks another protocol")
        numbers = self._number + b" " + match[1]
        if not hmac.compare_digest(_prove(self._token, b"producer", numbers), match[2]):
            raise NotProven("it does not know the token")
        return _prove(self._token, b"caller", numbers) + b"\n"


class Answerer:
    """The end that listens.

    Attributes:
        wanted: number of bytes to read next; 0 once the caller has proved itself.
    """

    __slots__ = ("_data", "_numbers", "_token", "wanted")

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._data = b""
        self._numbers = b""
        self.wanted = _HELLO_BYTES

    def receive(self, data: bytes) -> bytes:
        """Accept at most ``wanted`` bytes; return the bytes to send.

        Raises:
            NotProven
        """
        self._data += data
        self.wanted -= len(data)
        if self.wanted:
            return b""
        data, self._data = self._data, b""
        if self._numbers:
            match = _PROOF.fullmatch(data)
            proof = _prove(self._token, b"caller", self._numbers)
            if not match or not hmac.compare_digest(proof, match[1]):
                raise NotProven("it does not know the token")
            return b""
        match = _HELLO.fullmatch(data)
        if not match:
            raise NotProven("it speaks another protocol")
        number = _new_number()
        self._numbers = match[1] + b" " + number
        self.wanted = _PROOF_BYTES
        return number + b" " + _prove(self._token, b"producer", self._numbers) + b"\n"


def connect(address: Address, timeout_s: float) -> socket.socket:
    """Connect; both ends prove themselves.

    Args:
        timeout_s: for all steps together.

    Returns:
        The socket, blocking, without a timeout; the caller closes it.

    Raises:
        NotProven: another program listens on the port.
        OSError: no program listens; TimeoutError: the time is over.
    """
    deadline = time.monotonic() + timeout_s
    sock = socket.create_connection((HOST, address.port), timeout_s)
    try:
        send_at_once(sock)
        caller = Caller(address.token)
        sock.sendall(caller.hello)
        while caller.wanted:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError
            sock.settimeout(remaining_s)
            data = sock.recv(caller.wanted)
            if not data:
                raise NotProven("it closed the connection")
            sock.sendall(caller.receive(data))
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def dial(
    path: str, timeout_s: float, read: Callable[[str], Address] | None = None
) -> socket.socket:
    """Connect to the producer of a file.

    A producer that takes over replaces the file, and the old port may be closed before it is
    used: then the new port is tried.

    Args:
        read: reads the file of a path; None for ``Address.read``.

    Returns:
        As ``connect``.

    Raises:
        NotAnAddress, NotProven, OSError: as ``Address.read`` and ``connect``; and the
            exceptions of ``read``.
    """
    deadline = time.monotonic() + timeout_s
    read = read or Address.read
    address = read(path)
    while True:
        try:
            return connect(address, max(0.001, deadline - time.monotonic()))
        except (ConnectionError, NotProven):
            try:
                next_address = read(path)
            except (OSError, NotAnAddress):
                next_address = address
            if next_address == address:
                raise
            address = next_address


def send_at_once(sock: socket.socket) -> None:
    """Disable Nagle's algorithm: short writes leave at once, as on a Unix socket."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
