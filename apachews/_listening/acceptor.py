"""Letting clients in from the listening socket, one among several processes perhaps.

Contract: for ``Server``, on the thread that runs ``dequeue()``.  Nothing blocks.  The
listening socket stays ``SocketFile``'s, and is closed with it by ``stop``.

How this works with a loopback socket: who connects is let in once it has proved that
it knows the token; until then it waits here, with a deadline.  Any program on the machine
can connect, as often as it likes: so few are accepted in a turn, few wait, the oldest of
them goes where there is no descriptor left, and they are counted in the log, not listed.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from . import loopback
from .endpoint import OUT_OF_RESOURCES
from .socket_file import LoopbackFile, SocketFile

# How long accepting rests when the process has no descriptor left.
ACCEPT_REST_S: Final = 1.0

# How long who connects to a loopback socket has to prove itself, and how many may be
# at it: of more, the one that has taken longest is let go.  An honest one takes a
# millisecond.
PROOF_TIMEOUT_S: Final = 5.0
MAX_UNPROVEN: Final = 256
# How many of them are accepted in a turn of the loop: a part of these, so that one who
# came has some turns to say what he has to, however many come behind him.
MAX_ACCEPTED: Final = 64
# How often there is a line in the log about those that were refused.
WARN_INTERVAL_S: Final = 60.0

_logger: Final = logging.getLogger("apachews")


class Acceptor:
    """Watches a listening socket in an epoll, and accepts from it.

    Attributes:
        fd: what epoll names when somebody waits; -1 once it has stopped.
        again_at: when a rest ends (``time.monotonic()``), or None.
    """

    def __init__(self, file: SocketFile, epoll: select.epoll) -> None:
        self._file = file
        self._epoll = epoll
        self.fd = file.socket.fileno()
        self.again_at: float | None = None
        self._watch()

    def accept_nowait(self) -> socket.socket | None:
        """Return the next client's socket, non-blocking, or None.

        Raises:
            OSError: where ``again_at`` is set, there is no descriptor or no memory
                left, and accepting rests.
        """
        while self.fd != -1:
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

    def receive(self, fd: int) -> bool:
        """Look at a descriptor that epoll named; True where ``accept_nowait`` has a client."""
        return False

    @property
    def has_timers(self) -> bool:
        """Whether ``expire`` or ``end_rest`` has something to do, now or later."""
        return self.again_at is not None

    def expire(self, now: float) -> float | None:
        """Let go of whom it is time to; return when (``time.monotonic()``) to look again."""
        return None

    def let_others_go_first(self) -> None:
        """Go to the end of the row of processes that accept from the same socket.

        The kernel wakes the first in the row that sleeps: without this, one would
        have all the clients.
        """
        if self.again_at is None:
            self._epoll.unregister(self.fd)
            self._watch()

    def end_rest(self) -> None:
        """Accept again."""
        self.again_at = None
        self._watch()

    def stop(self) -> None:
        """Accept no more, and close the socket; again does nothing."""
        if self.fd != -1:
            if self.again_at is None:
                # Closing would not do: other processes may hold the same socket.
                self._epoll.unregister(self.fd)
            self.again_at = None
            self.fd = -1
        self._file.close()

    def _watch(self) -> None:
        # Exclusive: a client that comes wakes one process, and not all of them.
        self._epoll.register(self.fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def _rest(self) -> None:
        # A listening socket that cannot be accepted from stays ready: watching
        # it on would turn the loop into a spin.
        if self.again_at is None:
            self._epoll.unregister(self.fd)
        self.again_at = time.monotonic() + ACCEPT_REST_S


@dataclass(slots=True)
class _Unproven:
    sock: socket.socket
    answerer: loopback.Answerer
    deadline: float


class LoopbackAcceptor(Acceptor):
    """Accepts from a loopback socket: those that know the token."""

    def __init__(self, file: LoopbackFile, epoll: select.epoll) -> None:
        super().__init__(file, epoll)
        self._token = file.token
        self._unproven: dict[int, _Unproven] = {}  # the oldest first
        self._proven: deque[socket.socket] = deque()
        self._refused = 0  # since the last line about them
        self._warn_at = 0.0

    def accept_nowait(self) -> socket.socket | None:
        for _ in range(MAX_ACCEPTED):
            if self._proven:
                break
            try:
                sock = super().accept_nowait()
            except OSError:
                if self.again_at is None or not self._unproven:
                    raise
                self._drop(next(iter(self._unproven)), "there is no descriptor left")
                self.end_rest()
                continue
            if sock is None:
                break
            loopback.send_at_once(sock)
            if len(self._unproven) >= MAX_UNPROVEN:
                self._drop(next(iter(self._unproven)), "too many connect and prove nothing")
            self._unproven[sock.fileno()] = _Unproven(
                sock, loopback.Answerer(self._token), time.monotonic() + PROOF_TIMEOUT_S
            )
            self._epoll.register(sock.fileno(), select.EPOLLIN)
        return self._proven.popleft() if self._proven else None

    def receive(self, fd: int) -> bool:
        one = self._unproven.get(fd)
        if one is None:
            return False
        try:
            data = one.sock.recv(one.answerer.wanted)
            if not data:
                raise loopback.NotProven("it closed the connection")
            answer = one.answerer.receive(data)
            # (A hundred bytes always find room in a socket that nothing was written to.)
            if answer and one.sock.send(answer) < len(answer):
                raise loopback.NotProven("it reads nothing")
        except BlockingIOError:
            return False
        except OSError as error:
            self._drop(fd, error.strerror or str(error))
            return False
        except loopback.NotProven as error:
            self._drop(fd, str(error))
            return False
        if one.answerer.wanted:
            return False
        del self._unproven[fd]
        self._epoll.unregister(fd)
        self._proven.append(one.sock)
        return True

    @property
    def has_timers(self) -> bool:
        return bool(self._unproven) or super().has_timers

    def expire(self, now: float) -> float | None:
        while self._unproven:
            fd = next(iter(self._unproven))
            if self._unproven[fd].deadline > now:
                return self._unproven[fd].deadline
            self._drop(fd, "it has proved nothing in time")
        return None

    def stop(self) -> None:
        self.stop_waiting()
        super().stop()

    def stop_waiting(self) -> None:
        """Let go of everybody who has not been let in."""
        for fd in list(self._unproven):
            self._close(fd)
        while self._proven:
            self._proven.popleft().close()

    def _drop(self, fd: int, why: str) -> None:
        self._close(fd)
        self._refused += 1
        now = time.monotonic()
        if now >= self._warn_at:
            _logger.warning(
                "connections to the loopback port that were refused: %d; the last: %s",
                self._refused,
                why,
            )
            self._refused = 0
            self._warn_at = now + WARN_INTERVAL_S

    def _close(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._unproven.pop(fd).sock.close()


def new_acceptor(file: SocketFile, epoll: select.epoll) -> Acceptor:
    """Return what accepts from a file's socket."""
    if isinstance(file, LoopbackFile):
        return LoopbackAcceptor(file, epoll)
    return Acceptor(file, epoll)
