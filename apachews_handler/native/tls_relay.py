"""The relay between TLS and plain sockets, in C: an ``SSL`` cannot change its process.

Contract: ``is_available`` tells whether the build had a compiler.  ``reserve`` prepares for a
client whose session another process gets.  ``start`` gives the client to the relay, and
``withdraw`` takes the preparation back.  ``turn`` serves all clients that were started: it is to
be called whenever ``fileno`` is readable, and after as many seconds as it returned.  ``run`` does
that until the last one has left, and ends the process.  All for one thread of a process that was
forked for it.

How this works: ``_relay_loop.c`` has what passes between the two sides, and ``_cold_memory.c``
how ``run`` gives back the memory that only Python used.
"""

from __future__ import annotations

import math
import os
import socket
from typing import Final, NoReturn

from .openssl import TlsError, TlsSession

try:
    from . import _tls_relay
except ImportError:  # the build had no compiler: setup.py
    is_available = False
else:
    is_available = True

# In the order of struct openssl, _tls_relay.h.
_FUNCTIONS: Final = (
    "SSL_peek",
    "SSL_read",
    "SSL_write",
    "SSL_get_error",
    "SSL_has_pending",
    "SSL_shutdown",
    "SSL_set_shutdown",
    "SSL_set_bio",
    "SSL_free",
    "ERR_clear_error",
    "BIO_meth_new",
    "BIO_meth_set_read",
    "BIO_meth_set_write",
    "BIO_meth_set_ctrl",
    "BIO_new",
    "BIO_set_data",
    "BIO_get_data",
    "BIO_set_init",
    "BIO_set_flags",
    "BIO_clear_flags",
    "BIO_free",
)


class Relay:
    """The clients of this process that have their session in another one."""

    def __init__(self) -> None:
        self._library: object = None
        self._fd = -1

    def __len__(self) -> int:
        """Return how many clients there are, reserved ones included."""
        return 0 if self._fd == -1 else _tls_relay.count()

    def fileno(self) -> int:
        """Return the descriptor of an epoll; -1 before the first ``reserve``."""
        return self._fd

    def reserve(self, session: TlsSession, pair: socket.socket) -> int:
        """Prepare for a client.

        Args:
            session: its TLS, at rest; still the caller's.
            pair: a stream socket whose other end gets the client's plain bytes.

        Returns:
            A handle for ``start`` or ``withdraw``, one of which must follow.

        Raises:
            OSError, TlsError: the client cannot move.
        """
        library = session.library
        if self._fd == -1:
            self._fd = _tls_relay.open(*(library.address_of(name) for name in _FUNCTIONS))
            self._library = library
        if library is not self._library:
            raise TlsError("a second libssl")
        return _tls_relay.add(session.address, session.fileno(), pair.fileno())

    def start(self, handle: int, session: TlsSession, pair: socket.socket) -> None:
        """Own the session, its socket and the pair, and serve the client."""
        session.detach()
        pair.detach()
        _tls_relay.start(handle)

    def withdraw(self, handle: int) -> None:
        """Forget a client that was reserved, and nothing else."""
        _tls_relay.withdraw(handle)

    def turn(self) -> float:
        """Serve the clients that are ready; return within how many seconds to do so again."""
        wait_ms = _tls_relay.turn() if self else -1
        return math.inf if wait_ms < 0 else wait_ms / 1000

    def run(self, signals: int, *, is_stopping: bool) -> NoReturn:
        """Be a relay, and nothing else, until the last client has left; then end the process.

        Args:
            signals: a signalfd; a signal gives clients six seconds.
            is_stopping: one has come already.
        """
        _close_all_but({*_tls_relay.descriptors(), self._fd, signals})
        _tls_relay.run(signals, is_stopping)


def _close_all_but(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if (fd := int(name)) not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # that of the listing
