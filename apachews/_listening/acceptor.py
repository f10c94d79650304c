"""Accepting connections from the listening socket, which other processes may share.

Contract: for ``Loop``, on its thread.  Nothing blocks.  ``stop`` closes the listening socket of
``SocketFile``.

Any program of the machine can connect to a loopback socket, as often as it likes.  So
``LoopbackAcceptor`` accepts a connection for the loop only after it has proved that it knows
the token, and has limits: accepted connections per turn, unproven connections, seconds for the
proof.  It drops the oldest unproven connection if the process runs out of descriptors, and the
log counts refused connections instead of listing them.
"""

from __future__ import annotations

import errno
import functools
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from . import loopback
from .endpoint import OUT_OF_RESOURCES
from .socket_file import LoopbackFile, SocketFile

# How long accepting rests when the process has no descriptor left.
ACCEPT_REST_S: Final = 1.0

# Limits of unproven connections to a loopback socket: the seconds that a proof may take, and
# their number; with more, the oldest is dropped.  An honest caller takes a millisecond.
PROOF_TIMEOUT_S: Final = 5.0
MAX_UNPROVEN: Final = 256
# Connections accepted in one turn of the loop: a part of MAX_UNPROVEN, so that each has some
# turns for its proof before newer ones displace it.
MAX_ACCEPTED: Final = 64
# The interval between log lines about refused connections.
WARN_INTERVAL_S: Final = 60.0

_logger: Final = logging.getLogger("apachews")


class Readers(Protocol):
    """What an acceptor needs of the server's poller (``_server/poller.py``)."""

    def add_reader(
        self, fd: int, function: Callable[[], object], *, is_exclusive: bool = False
    ) -> None:
        """Call a function whenever a descriptor is readable."""

    def remove_reader(self, fd: int) -> None:
        """Stop watching a descriptor."""


class Acceptor:
    """Watches a listening socket, and accepts from it.

    Args:
        file: has the listening socket.
        readers: watch the descriptors.
        on_ready: called when ``accept_nowait`` may have a connection.
    """

    def __init__(self, file: SocketFile, readers: Readers, on_ready: Callable[[], object]) -> None:
        self._file = file
        self._readers = readers
        self._on_ready = on_ready
        self._fd = file.socket.fileno()  # -1 once it has stopped
        self._rests_until: float | None = None
        self._watch()

    @property
    def is_resting(self) -> bool:
        """True while the process had no descriptor left: nothing is accepted."""
        return self._rests_until is not None

    def accept_nowait(self) -> socket.socket | None:
        """Return the next connection, non-blocking, or None.

        Raises:
            OSError: if ``is_resting``, the process has no descriptor or no memory left.
        """
        while self._fd != -1:
            try:
                sock = self._file.socket.accept()[0]
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                if error.errno in OUT_OF_RESOURCES:
                    self._rest()
                raise
            sock.setblocking(False)
            return sock
        return None

    @property
    def has_timers(self) -> bool:
        """True if ``run_timers`` has work now or later."""
        return self._rests_until is not None

    def run_timers(self, now: float) -> float | None:
        """End a rest that is over; return the next deadline (``time.monotonic()``), or None."""
        if self._rests_until is not None and self._rests_until <= now:
            self._end_rest()
        return self._rests_until

    def let_others_go_first(self) -> None:
        """Move to the end of the queue of processes that accept from the same socket.

        The kernel wakes the first sleeping process in the queue; otherwise one process would
        accept all clients.
        """
        if self._rests_until is None:
            self._readers.remove_reader(self._fd)
            self._watch()

    def stop(self) -> None:
        """Stop accepting, and close the socket; a second time does nothing."""
        if self._fd != -1:
            if self._rests_until is None:
                # Closing is not enough: the epoll watches the socket as long as any process
                # holds it.
                self._readers.remove_reader(self._fd)
            self._rests_until = None
            self._fd = -1
        self._file.close()

    def _watch(self) -> None:
        self._readers.add_reader(self._fd, self._on_ready, is_exclusive=True)

    def _rest(self) -> None:
        # A listening socket with connections stays readable: watching it would make the loop
        # spin.
        if self._rests_until is None:
            self._readers.remove_reader(self._fd)
        self._rests_until = time.monotonic() + ACCEPT_REST_S

    def _end_rest(self) -> None:
        self._rests_until = None
        self._watch()


@dataclass(slots=True)
class _Unproven:
    sock: socket.socket
    answerer: loopback.Answerer
    deadline: float


class LoopbackAcceptor(Acceptor):
    """Accepts from a loopback socket the connections that know the token."""

    def __init__(
        self, file: LoopbackFile, readers: Readers, on_ready: Callable[[], object]
    ) -> None:
        super().__init__(file, readers, on_ready)
        self._token = file.token
        self._unproven: dict[int, _Unproven] = {}  # the oldest first
        self._proven: deque[socket.socket] = deque()
        self._refused = 0  # since the last log line
        self._warn_at = 0.0

    def accept_nowait(self) -> socket.socket | None:
        for _ in range(MAX_ACCEPTED):
            if self._proven:
                break
            try:
                sock = super().accept_nowait()
            except OSError:
                if not self.is_resting or not self._unproven:
                    raise
                self._drop(next(iter(self._unproven)), "the process has no descriptor left")
                self._end_rest()
                continue
            if sock is None:
                break
            loopback.send_at_once(sock)
            if len(self._unproven) >= MAX_UNPROVEN:
                self._drop(next(iter(self._unproven)), "too many unproven connections")
            fd = sock.fileno()
            self._unproven[fd] = _Unproven(
                sock, loopback.Answerer(self._token), time.monotonic() + PROOF_TIMEOUT_S
            )
            self._readers.add_reader(fd, functools.partial(self._receive, fd))
        return self._proven.popleft() if self._proven else None

    def _receive(self, fd: int) -> None:
        """Continue the proof of a connection."""
        one = self._unproven[fd]
        try:
            data = one.sock.recv(one.answerer.wanted)
            if not data:
                raise loopback.NotProven("it closed the connection")
            answer = one.answerer.receive(data)
            # A socket that nothing was written to always has room for a hundred bytes.
            if answer and one.sock.send(answer) < len(answer):
                raise loopback.NotProven("it reads nothing")
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(fd, error.strerror or str(error))
            return
        except loopback.NotProven as error:
            self._drop(fd, str(error))
            return
        if one.answerer.wanted:
            return
        del self._unproven[fd]
        self._readers.remove_reader(fd)
        self._proven.append(one.sock)
        self._on_ready()

    @property
    def has_timers(self) -> bool:
        return bool(self._unproven) or super().has_timers

    def run_timers(self, now: float) -> float | None:
        rests_until = super().run_timers(now)
        while self._unproven:
            fd, one = next(iter(self._unproven.items()))
            if one.deadline > now:
                return one.deadline if rests_until is None else min(one.deadline, rests_until)
            self._drop(fd, "no proof in time")
        return rests_until

    def stop(self) -> None:
        self.drop_waiting()
        super().stop()

    def drop_waiting(self) -> None:
        """Close all connections that were not returned yet."""
        for fd in list(self._unproven):
            self._close(fd)
        while self._proven:
            self._proven.popleft().close()

    def _drop(self, fd: int, reason: str) -> None:
        self._close(fd)
        self._refused += 1
        now = time.monotonic()
        if now >= self._warn_at:
            _logger.warning(
                "refused connections to the loopback port: %d; the last: %s",
                self._refused,
                reason,
            )
            self._refused = 0
            self._warn_at = now + WARN_INTERVAL_S

    def _close(self, fd: int) -> None:
        self._readers.remove_reader(fd)
        self._unproven.pop(fd).sock.close()


def new_acceptor(file: SocketFile, readers: Readers, on_ready: Callable[[], object]) -> Acceptor:
    """Return the acceptor for a file's socket."""
    kind = LoopbackAcceptor if isinstance(file, LoopbackFile) else Acceptor
    return kind(file, readers, on_ready)  # type: ignore[arg-type]
