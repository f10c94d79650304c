"""Socket files that are none: a loopback port and a token in a regular file.

For file systems that cannot hold a Unix socket, and hosts that have none: many a
network, FUSE or virtual machine's mount.  ``Server(path, transport="loopback")``
writes the file; who can read it can connect.

Contract: ``Address`` is what is in the file.  ``Caller`` and ``Answerer`` are the two
ends of the handshake, sans-I/O: they say how many bytes they want, take them and give
what is to be sent, and raise ``NotProven``.  ``connect`` and ``dial`` do the caller's part,
and block.

How this works: anybody on the machine can connect to a port, and whoever comes first
can listen on one that a dead producer had.  So both ends prove that they know the
token, and neither shows it: each sends a random number, and the HMAC of both numbers
with the token as its key.  The caller sends nothing else, and nothing that a stranger
who wrote the file could choose, before the other end has proved itself.

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
# Of the file, by the digits of the port; one of another size is something else.
FILE_BYTES: Final = range(87, 92)
# What a file's mode must not grant.
EVERYBODY: Final = 0o007


class NotAnAddress(ValueError):
    """A file is no loopback socket's, or everybody may read it."""


class NotProven(Exception):
    """The other end does not know the token, or speaks of something else."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a producer listens, and what proves that it is that one.

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
            raise NotAnAddress("it is neither a socket nor what a loopback server writes")
        return cls(int(match[1]), bytes.fromhex(match[2].decode()))

    @classmethod
    def read(cls, path: str) -> Address:
        """Read a file.

        Raises:
            NotAnAddress: also where others than its owner and group may read it.
            OSError
        """
        data, mode = read_file(path)
        address = cls.decode(data)
        if mode & EVERYBODY:
            raise NotAnAddress("everybody may read the token in it: chmod o= it")
        return address


def read_file(path: str) -> tuple[bytes, int]:
    """Return the content of a file, of a longer one its beginning, and its mode.

    Raises:
        OSError
    """
    # (Not waiting for who writes to it, should it be a FIFO.)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(fd, FILE_BYTES.stop), os.fstat(fd).st_mode
    finally:
        os.close(fd)


def new_token() -> bytes:
    """Return a token that nobody can guess."""
    return secrets.token_bytes(TOKEN_BYTES)


def _new_number() -> bytes:
    return secrets.token_hex(16).encode()


def _prove(token: bytes, role: bytes, numbers: bytes) -> bytes:
    return hmac.new(token, role + b" " + numbers, "sha256").hexdigest().encode()


class Caller:
    """The end that connects.

    Attributes:
        hello: to be sent first.
        wanted: how many bytes are to be read next; 0 at the end.
    """

    __slots__ = ("_data", "_number", "_token", "hello", "wanted")

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._number = _new_number()
        self._data = b""
        self.hello = b"apachews-loopback 1 " + self._number + b"\n"
        self.wanted = _ANSWER_BYTES

    def receive(self, data: bytes) -> bytes:
        """Take bytes, ``wanted`` of them at most; return what is to be sent.

        Raises:
            NotProven
        """
        self._data += data
        self.wanted -= len(data)
        if self.wanted:
            return b""
        match = _ANSWER.fullmatch(self._data)
        if not match:
            raise NotProven("it answers something else")
        numbers = self._number + b" " + match[1]
        if not hmac.compare_digest(_prove(self._token, b"producer", numbers), match[2]):
            raise NotProven("it does not know the token")
        return _prove(self._token, b"caller", numbers) + b"\n"


class Answerer:
    """The end that listens.

    Attributes:
        wanted: how many bytes are to be read next; 0 once the caller is proven.
    """

    __slots__ = ("_data", "_numbers", "_token", "wanted")

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._data = b""
        self._numbers = b""
        self.wanted = _HELLO_BYTES

    def receive(self, data: bytes) -> bytes:
        """Take bytes, ``wanted`` of them at most; return what is to be sent.

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
            raise NotProven("it says something else")
        number = _new_number()
        self._numbers = match[1] + b" " + number
        self.wanted = _PROOF_BYTES
        return number + b" " + _prove(self._token, b"producer", self._numbers) + b"\n"


def connect(address: Address, timeout_s: float) -> socket.socket:
    """Connect, and have both ends prove themselves.

    Args:
        timeout_s: for all of it.

    Returns:
        The socket, blocking, without a timeout; the caller closes it.

    Raises:
        NotProven: somebody else listens on the port.
        OSError: nobody does; TimeoutError: in time.
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
    """Connect to the producer whose file this is.

    A producer that takes over replaces the file, and the port that was read may be closed a
    moment later: then the new one is tried.

    Args:
        read: reads the file of a path; None for ``Address.read``.

    Returns:
        As ``connect``.

    Raises:
        NotAnAddress, NotProven, OSError: as ``Address.read`` and ``connect``; and what
            ``read`` raises.
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
    """Have short writes wait for nothing, as a Unix socket's do."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
