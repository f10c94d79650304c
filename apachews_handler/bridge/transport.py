"""What the bridge needs of a client's connection, and the plain TCP one.

``tls.TlsSession`` is the other.  Contract: non-blocking; for the bridge's thread;
the transport owns its socket.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
from typing import ClassVar, Final, Protocol

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
        needs_writing: ``recv`` cannot go on before the descriptor can be written.
        may_hoard: ``has_pending`` or ``needs_writing`` may ever be true.
    """

    buffers_input: ClassVar[bool]

    @property
    def needs_writing(self) -> bool: ...

    def fileno(self) -> int:
        """Return the descriptor, -1 after ``close``."""

    def recv(self, size: int) -> bytes | None:
        """Return what came, about ``size`` bytes at most.

        b"" means the end, however it came, None that nothing is there.
        """

    def has_pending(self) -> bool:
        """Tell whether ``recv`` would give something that the descriptor does not show."""

    def send(self, data: bytes | memoryview) -> int:
        """Send some of the bytes; return how many, 0 where it would block.

        Raises:
            OSError: the connection is gone.
        """

    def limit_unsent(self, size: int) -> None:
        """Let the kernel hold no more than so many bytes that it could not send yet.

        What is on its way is not counted, so a fast client stays fast.  For a slow one
        the kernel would take megabytes otherwise: memory that no limit of ours bounds,
        and that hides for a long time that the client does not read.
        """

    def shutdown(self) -> None:
        """Say that nothing more will be sent."""

    def forget_cache(self) -> None:
        """Use nothing any more that was shared with Apache: this process was forked."""

    def abandon(self) -> None:
        """Close the descriptor, and say nothing: another process has the connection."""

    def close(self) -> None:
        """Close; again does nothing."""


class PlainTransport:
    """A client on TCP, without TLS."""

    __slots__ = ("_socket",)

    buffers_input: ClassVar = False
    needs_writing = False

    def __init__(self, sock: socket.socket) -> None:
        """Take a non-blocking socket, and own it."""
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

    def limit_unsent(self, size: int) -> None:
        """See ``Transport``."""
        limit_unsent(self._socket, size)

    def shutdown(self) -> None:
        """See ``Transport``."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client has gone first

    def forget_cache(self) -> None:
        """See ``Transport``."""

    def abandon(self) -> None:
        """See ``Transport``."""
        self._socket.close()

    def close(self) -> None:
        """See ``Transport``."""
        self._socket.close()


class RelayedTransport(PlainTransport):
    """A client with TLS that another process speaks: this one has the plain bytes.

    Args:
        sock: one end of a pair of Unix sockets, non-blocking; the relay has the other one.
        tcp: duplicate of the client's socket, only to ask the kernel about it.
    """

    __slots__ = ("_tcp",)

    def __init__(self, sock: socket.socket, tcp: socket.socket) -> None:
        """Take both sockets, and own them."""
        super().__init__(sock)
        self._tcp = tcp

    def tcp_fileno(self) -> int:
        """Return the descriptor of the client's own socket, -1 after ``close``."""
        return self._tcp.fileno()

    def limit_unsent(self, size: int) -> None:
        """See ``Transport``; the relay takes nothing that the client's socket has no room for."""
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


def client_state(transport: Transport) -> TcpState:
    """Return what the kernel knows of a client."""
    if not isinstance(transport, RelayedTransport):
        return tcp_state(transport.fileno())
    state = tcp_state(transport.tcp_fileno())
    # What the relay has not taken yet.  The kernel counts its own overhead too.
    return state._replace(unacked=state.unacked + unsent_bytes(transport.fileno()))


def client_unsent_bytes(transport: Transport) -> int:
    """Return how many bytes are on this side that a client has not acknowledged."""
    unsent = unsent_bytes(transport.fileno())
    if isinstance(transport, RelayedTransport):
        unsent += unsent_bytes(transport.tcp_fileno())
    return unsent


def discard_client(transport: Transport) -> None:
    """Have closing a client reset it, if it has not taken everything (``discard_unsent``)."""
    if isinstance(transport, RelayedTransport):
        discard_unsent(transport.tcp_fileno(), is_more_waiting=unsent_bytes(transport.fileno()) > 0)
    else:
        discard_unsent(transport.fileno())


def unsent_bytes(fd: int) -> int:
    """Return how many bytes the kernel holds that a TCP peer has not acknowledged."""
    return int(_INT.unpack(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(_INT.size)))[0])


def tcp_state(fd: int) -> TcpState:
    """Return what the kernel knows of a connection's peer (tcp(7), TCP_INFO).

    Of a connection of another kind, or from an older kernel, only what is not acknowledged
    is known: ``acked`` is counted backwards from that.
    """
    unacked = unsent_bytes(fd)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=os.dup(fd)) as sock:
            if sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL) != socket.IPPROTO_TCP:
                # Of Multipath TCP the kernel tells what became of the first path only.
                return TcpState(-unacked, unacked)
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
        rtt_us, rttvar_us, acked, window = TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return TcpState(-unacked, unacked)
    # The time for a segment that is lost, its repetition (RFC 6298), and the answer.
    return TcpState(acked, unacked, window, (3 * rtt_us + 4 * rttvar_us) / 1e6)


def limit_unsent(sock: socket.socket, size: int) -> None:
    """Do ``Transport.limit_unsent`` to a TCP socket (tcp(7): TCP_NOTSENT_LOWAT)."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)
    except OSError:
        pass  # it has gone: the kernel's own limits stay


def discard_unsent(fd: int, *, is_more_waiting: bool = False) -> None:
    """Have closing a TCP connection reset it, where its peer has not taken everything.

    What a client does not take stays in the kernel's buffers otherwise, megabytes
    for many minutes, with nobody to see it.
    """
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if is_more_waiting or unsent_bytes(fd):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass  # no descriptor is left, or it has gone: the kernel's own limits stay
