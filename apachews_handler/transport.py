"""What the bridge needs of a client's connection, and the plain TCP one.

``tls.TlsSession`` is the other.  Contract: non-blocking; for the bridge's thread;
the transport owns its socket.
"""

from __future__ import annotations

import socket
from typing import Final, Protocol

# One read: large enough that a message of a few KiB is one system call.
READ_BYTES: Final = 65536


class Transport(Protocol):
    """A connection to a client.

    Attributes:
        needs_writing: ``recv`` cannot go on before the descriptor can be written.
    """

    @property
    def needs_writing(self) -> bool: ...

    def fileno(self) -> int:
        """Return the descriptor, -1 after ``close``."""

    def recv(self) -> bytes | None:
        """Return what came, b"" at the end however it came, None where nothing is there."""

    def has_pending(self) -> bool:
        """Tell whether ``recv`` would give something that the descriptor does not show."""

    def send(self, data: bytes | memoryview) -> int:
        """Send some of the bytes; return how many, 0 where it would block.

        Raises:
            OSError: the connection is gone.
        """

    def shutdown(self) -> None:
        """Say that nothing more will be sent."""

    def close(self) -> None:
        """Close; again does nothing."""


class PlainTransport:
    """A client on TCP, without TLS."""

    __slots__ = ("_socket", "fileno")

    needs_writing = False

    def __init__(self, sock: socket.socket) -> None:
        """Take a non-blocking socket, and own it."""
        self._socket = sock
        self.fileno = sock.fileno

    def recv(self) -> bytes | None:
        """See ``Transport``."""
        try:
            return self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def has_pending(self) -> bool:
        """See ``Transport``."""
        return False

    def send(self, data: bytes | memoryview) -> int:
        """See ``Transport``."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def shutdown(self) -> None:
        """See ``Transport``."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client has gone first

    def close(self) -> None:
        """See ``Transport``."""
        self._socket.close()
