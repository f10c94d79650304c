"""How to reach a producer: connecting to a socket file, of either kind.

Contract: ``connect(path, timeout_s)`` blocks and returns a connected socket;
``connect_nowait(path)`` never blocks, and returns a socket or an ``Attempt`` on a loopback port;
``is_listened_on(path)`` tells whether a producer is there.  The caller closes what is returned.
A failure is ``Unreachable`` with an ``Outcome``, and ``outcome_of`` has the one table from errno
to outcome.  The handler, which opens files and makes short system calls in its own way, uses
that table and the parts: ``connect_unix`` and ``Attempt``.

Sources: unix(7) (a full backlog, SO_SNDTIMEO), connect(2).
"""

from __future__ import annotations

import enum
import errno
import os
import socket
import stat
import struct
from typing import Final

from . import loopback

# sockaddr_un.sun_path has 108 bytes, the last of them NUL (unix(7)).
MAX_PATH_BYTES: Final = 107
# errno if the process has no file descriptor, or the kernel no memory, for another socket.
OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# How long ``is_listened_on`` waits for the proof of a loopback socket's producer.
PROBE_TIMEOUT_S: Final = 1.0


class Outcome(enum.Enum):
    """Why there is no connection."""

    NOT_THERE = "the socket file does not exist"
    NOT_A_SOCKET = "the file is neither a socket nor the file of a loopback socket"
    REFUSED = "no producer listens"
    BUSY = "the producer does not accept: its backlog is full"
    FORBIDDEN = "no permission"
    OUT_OF_RESOURCES = "no file descriptor, port or memory is left"
    FAILED = "the system call failed"


_OUTCOMES: Final[dict[int, Outcome]] = {
    errno.ENOENT: Outcome.NOT_THERE,
    errno.ENOTDIR: Outcome.NOT_THERE,
    errno.ENAMETOOLONG: Outcome.NOT_THERE,
    errno.EPROTOTYPE: Outcome.NOT_A_SOCKET,  # of datagrams
    # A socket file that a dead producer left; connect(2) says so of other files as well.
    errno.ECONNREFUSED: Outcome.REFUSED,
    errno.ECONNRESET: Outcome.REFUSED,  # the producer closed its socket while we waited
    errno.EAGAIN: Outcome.BUSY,
    errno.ETIMEDOUT: Outcome.BUSY,
    errno.EACCES: Outcome.FORBIDDEN,
    errno.EPERM: Outcome.FORBIDDEN,
    errno.EADDRNOTAVAIL: Outcome.OUT_OF_RESOURCES,  # of the ports of 127.0.0.1
    **dict.fromkeys(OUT_OF_RESOURCES, Outcome.OUT_OF_RESOURCES),
}


class Unreachable(Exception):
    """There is no connection to the producer.

    Attributes:
        outcome: why.
        error: the failure: an ``OSError``, ``NotAnAddress`` or ``NotProven``.
    """

    def __init__(self, error: Exception) -> None:
        self.outcome = outcome_of(error)
        self.error = error
        super().__init__(self.outcome, error)

    def __str__(self) -> str:
        return getattr(self.error, "strerror", None) or str(self.error) or self.outcome.value


def outcome_of(error: Exception) -> Outcome:
    """Return what a failure of this module's calls, or of a connect(2), means.

    Args:
        error: an ``OSError``, ``NotAnAddress`` or ``NotProven``.
    """
    if isinstance(error, loopback.NotAnAddress):
        return Outcome.NOT_A_SOCKET
    if isinstance(error, loopback.NotProven):
        return Outcome.REFUSED  # the port belongs to another program now
    if isinstance(error, TimeoutError):  # Python's own has no errno
        return Outcome.BUSY
    number = error.errno if isinstance(error, OSError) else None
    return _OUTCOMES.get(number or 0, Outcome.FAILED)


def connect(path: str, timeout_s: float) -> socket.socket:
    """Connect to a producer; wait while its backlog is full.

    Args:
        path: of its socket file, which may be longer than ``MAX_PATH_BYTES``.
        timeout_s: how long to wait at most.

    Returns:
        A blocking socket without a timeout.

    Raises:
        Unreachable
    """
    try:
        if _is_loopback(path):
            return loopback.dial(path, timeout_s)
        with _Name(path) as name:
            return connect_unix(name, timeout_s)
    except (OSError, loopback.NotAnAddress, loopback.NotProven) as error:
        raise Unreachable(error) from error


def connect_nowait(path: str) -> socket.socket | Attempt:
    """Connect to a producer without waiting.

    Args:
        path: as of ``connect``.

    Returns:
        A non-blocking socket; or, for a loopback socket's file, an attempt that is under way.

    Raises:
        Unreachable: ``Outcome.BUSY`` if the backlog is full, among others.
    """
    try:
        if _is_loopback(path):
            return Attempt(loopback.Address.read(path))
        with _Name(path) as name:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            return _connected(sock, name)
    except (OSError, loopback.NotAnAddress) as error:
        raise Unreachable(error) from error


def is_listened_on(path: str) -> bool:
    """Tell whether a producer listens on a socket file; a busy producer does.

    Raises:
        Unreachable: whether a producer listens is not known: ``FORBIDDEN``, ``NOT_A_SOCKET``,
            ``OUT_OF_RESOURCES`` or ``FAILED``.
    """
    try:
        if _is_loopback(path):
            # Without a look at the file's mode: a file that other users can read does not
            # make its producer a dead one.
            address = loopback.Address.decode(loopback.read_file(path)[0])
            loopback.connect(address, PROBE_TIMEOUT_S).close()
        else:
            connect_nowait(path).close()
    except (OSError, loopback.NotAnAddress, loopback.NotProven) as error:
        failure = Unreachable(error)
    except Unreachable as error:
        failure = error
    else:
        return True
    if failure.outcome in (Outcome.NOT_THERE, Outcome.REFUSED):
        return False
    if failure.outcome is Outcome.BUSY:
        return True
    raise failure


def connect_unix(name: str, timeout_s: float) -> socket.socket:
    """Connect to a Unix socket; wait while its backlog is full.

    Args:
        name: at most ``MAX_PATH_BYTES`` long.

    Returns:
        A blocking socket without a timeout.

    Raises:
        OSError: EAGAIN if the backlog stayed full.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A blocking connect() waits while the backlog is full, for SO_SNDTIMEO; a non-blocking one,
    # which a timeout of Python's makes of it, fails at once (unix(7)).
    seconds, microseconds = divmod(max(1, int(timeout_s * 1_000_000)), 1_000_000)
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, microseconds)
        )
        _connected(sock, name)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 0))
    except BaseException:
        sock.close()
        raise
    return sock


class Attempt:
    """A non-blocking connection to a producer on a loopback port, until both ends are proven.

    Raises:
        OSError: connect(2) failed.
    """

    __slots__ = ("_caller", "_hello", "_sock")

    def __init__(self, address: loopback.Address) -> None:
        self._caller = loopback.Caller(address.token)
        self._hello = self._caller.hello
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            loopback.send_at_once(self._sock)
            result = self._sock.connect_ex((loopback.HOST, address.port))
            if result not in (0, errno.EINPROGRESS):
                raise OSError(result, os.strerror(result))
        except BaseException:
            self._sock.close()
            raise

    def advance(self) -> socket.socket | None:
        """Do what can be done now.

        Returns:
            The socket, non-blocking, once both ends are proven; None before.

        Raises:
            OSError, NotProven: no producer listens on the port, or another program does.
        """
        try:
            if self._hello:
                # Before the connection is established this fails with ENOTCONN or EAGAIN; after
                # that, a hello of 53 bytes fits into the socket's buffer.
                self._sock.send(self._hello)
                self._hello = b""
            data = self._sock.recv(self._caller.wanted)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                return None
            raise
        if not data:
            raise loopback.NotProven("it closed the connection")
        if proof := self._caller.receive(data):
            self._sock.send(proof)
            return self._sock
        return None

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class _Name:
    """Context manager for a name of a file that fits into the address of a Unix socket.

    A longer path gets a name below /proc/self/fd, which is valid until the end of the context.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= MAX_PATH_BYTES:
            return self._path
        self._fd = os.open(self._path, os.O_PATH | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        if self._fd != -1:
            os.close(self._fd)


def _connected(sock: socket.socket, name: str) -> socket.socket:
    """Connect a socket, and close it if that fails."""
    try:
        sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_loopback(path: str) -> bool:
    """Tell whether a file is a loopback socket's, which a regular file is.

    Raises:
        NotAnAddress: it is neither a regular file nor a socket.
        OSError
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        raise loopback.NotAnAddress("it is neither a socket nor a regular file")
    return stat.S_ISREG(mode)
