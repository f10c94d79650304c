"""The client's end of a connection: the interface, and its implementation for plain TCP.

``native.openssl.TlsSession`` implements it for TLS.  Contract: non-blocking; for the bridge's
thread; the transport owns its socket.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from typing import ClassVar, Final, Protocol

from apachews_handler.native import syscalls
from apachews_handler.protocol.progress import TcpState

_INT: Final = struct.Struct("i")
# struct tcp_info of linux/tcp.h: tcpi_rtt and tcpi_rttvar (microseconds), tcpi_bytes_acked
# (Linux 4.1), tcpi_snd_wnd (Linux 5.4).  A test compares the offsets.
TCP_INFO: Final = struct.Struct("68xII44xQ100xI")
# asm-generic/socket.h
_SO_PROTOCOL: Final = 38
# struct linger, socket(7): on, for 0 s.
_RESET: Final = struct.pack("ii", 1, 0)


class Transport(Protocol):
    """A connection to a client.

    Attributes:
        needs_writing: ``recv`` cannot continue before the descriptor is writable.
        buffers_input: ``has_pending`` or ``needs_writing`` may ever be true.
    """

    buffers_input: ClassVar[bool]

    @property
    def needs_writing(self) -> bool: ...

    def fileno(self) -> int:
        """Return the file descriptor; -1 after ``close``."""

    def recv(self, size: int) -> bytes | None:
        """Return received bytes, at most about ``size``.

        b"" after the end of file or an error; None if there are no bytes yet.
        """

    def has_pending(self) -> bool:
        """Tell whether ``recv`` would return bytes though the descriptor is not readable."""

    def send(self, data: bytes | memoryview) -> int:
        """Send some of the bytes; return how many, 0 if it would block.

        Raises:
            OSError: the client takes no more bytes.
        """

    def sender(self) -> Callable[[bytes], int]:
        """Return a function that does what ``send`` does; it may raise BlockingIOError."""

    def limit_unsent(self, size: int) -> None:
        """Limit the bytes that the kernel holds and has not sent yet.

        Bytes in flight do not count, so a fast client stays fast.  For a slow client the
        kernel would accept megabytes: memory outside our limits, and for a long time no sign
        that the client does not read.
        """

    def shutdown(self) -> None:
        """End the stream to the client; ``recv`` still works."""

    def forget_cache(self) -> None:
        """Stop using memory that is shared with Apache: this process was forked."""

    def abandon(self) -> None:
        """Close the descriptor, and send nothing: another process has the connection."""

    def close(self) -> None:
        """Close; a second call does nothing."""


class PlainTransport:
    """A client on TCP, without TLS."""

    __slots__ = ("_socket",)

    buffers_input: ClassVar = False
    needs_writing = False

    def __init__(self, sock: socket.socket) -> None:
        """Own a non-blocking socket."""
        self._socket = sock

    def fileno(self) -> int:
        """See ``Transport``."""
        return self._socket.fileno()

    def recv(self, size: int) -> bytes | None:
        """See ``Transport``."""
        try:
            return self._socket.recv(size)
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

    def sender(self) -> Callable[[bytes], int]:
        """See ``Transport``; the socket's own method, without a call in between."""
        return self._socket.send

    def limit_unsent(self, size: int) -> None:
        """See ``Transport``."""
        limit_unsent(self._socket, size)

    def shutdown(self) -> None:
        """See ``Transport``."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # ENOTCONN: the client has reset the connection

    def forget_cache(self) -> None:
        """See ``Transport``."""

    def abandon(self) -> None:
        """See ``Transport``."""
        self._socket.close()

    def close(self) -> None:
        """See ``Transport``."""
        self._socket.close()


class RelayedTransport(PlainTransport):
    """A client whose TLS is in a relay process; this process has the plain bytes.

    Args:
        sock: one end of a pair of Unix sockets, non-blocking; the relay has the other one.
        tcp: duplicate of the client's socket, only for queries to the kernel.
    """

    __slots__ = ("_tcp",)

    def __init__(self, sock: socket.socket, tcp: socket.socket) -> None:
        """Take ownership of both sockets."""
        super().__init__(sock)
        self._tcp = tcp

    def tcp_fileno(self) -> int:
        """Return the descriptor of the client's own socket, -1 after ``close``."""
        return self._tcp.fileno()

    def limit_unsent(self, size: int) -> None:
        """See ``Transport``; the relay reads no more than the client's socket accepts."""
        limit_unsent(self._tcp, size)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        except OSError:
            pass  # the kernel's own limit stays

    def abandon(self) -> None:
        """See ``Transport``."""
        self.close()

    def close(self) -> None:
        """See ``Transport``."""
        # First: if the connection is to be reset, the relay's descriptor must be the last one.
        self._tcp.close()
        super().close()


def client_tcp_state(transport: Transport) -> TcpState:
    """Return the kernel's state of a client's TCP connection."""
    if not isinstance(transport, RelayedTransport):
        return tcp_state(transport.fileno())
    state = tcp_state(transport.tcp_fileno())
    # Plus the bytes that the relay has not read; the kernel counts its own overhead as well.
    return state._replace(unacked=state.unacked + unsent_bytes(transport.fileno()))


def client_unsent_bytes(transport: Transport) -> int:
    """Return the number of bytes on this host that a client has not acknowledged."""
    unsent = unsent_bytes(transport.fileno())
    if isinstance(transport, RelayedTransport):
        unsent += unsent_bytes(transport.tcp_fileno())
    return unsent


def discard_client(transport: Transport) -> None:
    """Make the next close of a client a reset, as ``discard_unsent``."""
    if isinstance(transport, RelayedTransport):
        discard_unsent(transport.tcp_fileno(), is_more_waiting=unsent_bytes(transport.fileno()) > 0)
    else:
        discard_unsent(transport.fileno())


def unsent_bytes(fd: int) -> int:
    """Return how many bytes a TCP peer has not acknowledged, in flight or not sent yet."""
    return int(_INT.unpack(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(_INT.size)))[0])


def tcp_state(fd: int) -> TcpState:
    """Return what the kernel knows of a connection's peer (tcp(7), TCP_INFO).

    If the socket is not a TCP socket, or the kernel is older, only the unacknowledged bytes are
    known, and ``acked`` counts down from 0 with them.
    """
    unacked = unsent_bytes(fd)
    try:
        protocol = syscalls.getsockopt(fd, socket.SOL_SOCKET, _SO_PROTOCOL, _INT.size)
        if _INT.unpack(protocol)[0] != socket.IPPROTO_TCP:
            # For Multipath TCP, TCP_INFO describes the first subflow only.
            return TcpState(-unacked, unacked)
        info = syscalls.getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
        rtt_us, rttvar_us, acked, window = TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return TcpState(-unacked, unacked)
    # The time for a lost segment, its retransmission (RFC 6298), and the answer.
    return TcpState(acked, unacked, window, (3 * rtt_us + 4 * rttvar_us) / 1e6)


def limit_unsent(sock: socket.socket, size: int) -> None:
    """Limit a TCP socket as ``Transport.limit_unsent`` (tcp(7): TCP_NOTSENT_LOWAT)."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)
    except OSError:
        pass  # the connection is gone, or the kernel lacks it: the kernel's own limits apply


def discard_unsent(fd: int, *, is_more_waiting: bool = False) -> None:
    """Make the next close of a TCP connection a reset, if its peer has not taken everything.

    The kernel would otherwise keep the bytes after the close, megabytes for many minutes, and
    no limit or status of ours would count them.
    """
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if is_more_waiting or unsent_bytes(fd):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass  # EMFILE, or the connection is gone: the kernel's own limits apply
