"""A connection to a backend, within a time.

Contract: ``connect(backend, timeout_s)`` returns a connected, non-blocking socket, which the
caller closes, or raises ``Refusal``.  Blocks for the timeout at most; on Apache's worker threads.

How this works: an address, or a Unix socket, needs no resolver.  A name does, and getaddrinfo(3)
has no timeout: it asks one server after another, for tens of seconds.  So a thread of its own
asks, one per name, and a worker waits for its result as long as the worker has time.  The result
is kept for ``FRESH_S``; if the resolver fails afterwards, the last result is still used.

Sources: getaddrinfo(3), resolv.conf(5), connect(2), unix(7).
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import threading
import time
from typing import Final

from apachews._listening.endpoint import (
    Outcome,
    Unreachable,
    connect_unix,
    outcome_of,
)
from apachews.monitoring import refusals
from apachews_handler.backends import Backend
from apachews_handler.exceptions import Refusal, no_descriptors
from apachews_handler.native import syscalls
from apachews_handler.shared.signals import signals_blocked

# How long the addresses of a name are not asked for again.
FRESH_S: Final = 30.0
# Names that are remembered; those are in the server's configuration, so they are few.
MAX_NAMES: Final = 256


def connect(backend: Backend, timeout_s: float) -> socket.socket:
    """Connect to a backend.

    Raises:
        Refusal: 503 it does not listen or cannot be resolved; 500 no permission.
    """
    deadline = time.monotonic() + timeout_s
    try:
        if backend.socket_path:
            sock = _connect_unix(backend.socket_path, timeout_s)
            sock.setblocking(False)
        else:
            sock = _connect_tcp(backend, deadline)
    except OSError as error:
        raise _refusal(backend, error, timeout_s) from error
    return sock


def _connect_unix(socket_path: str, timeout_s: float) -> socket.socket:
    path = os.fsdecode(socket_path.encode("latin-1"))
    os.stat(path)  # releases the GIL, in case the file system hangs
    try:
        return syscalls.connect(path)
    except OSError as error:
        if outcome_of(error) is not Outcome.BUSY:
            raise
    return connect_unix(path, timeout_s)


def _connect_tcp(backend: Backend, deadline: float) -> socket.socket:
    hosts = [backend.host] if backend.is_address else _resolver.resolve(backend, deadline)
    failure: OSError = TimeoutError()
    for host in hosts:
        rest_s = deadline - time.monotonic()
        if rest_s <= 0:
            break
        try:
            return _establish(host, backend.port, rest_s)
        except OSError as error:
            failure = error
    raise failure


def _establish(host: str, port: int, timeout_s: float) -> socket.socket:
    """Return a socket that is connected to an address.

    Raises:
        OSError: TimeoutError after the timeout.
    """
    sock, error = syscalls.connect_tcp(host, port)
    try:
        if error == errno.EINPROGRESS:
            poller = select.poll()  # a descriptor may be beyond what select(2) can watch
            poller.register(sock, select.POLLOUT)
            if not poller.poll(math.ceil(timeout_s * 1000)):
                raise TimeoutError
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


class _Entry:
    """The addresses of one name.

    Attributes:
        addresses: of the last success; an IPv6 address may have a zone.
        error: of the last attempt; None if it succeeded.
        asked_at: when the last attempt ended.
        done: set whenever an attempt is not under way.
    """

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.error: OSError | None = None
        self.asked_at = 0.0
        self.done = threading.Event()
        self.done.set()


class Resolver:
    """Resolves names in threads of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, int], _Entry] = {}

    def resolve(self, backend: Backend, deadline: float) -> list[str]:
        """Return the addresses of a backend's host, at least one.

        Args:
            deadline: when the result must be there, ``time.monotonic()``.

        Raises:
            OSError: ``socket.gaierror``, or TimeoutError.
        """
        entry = self._refresh(backend)
        if not entry.addresses or not entry.done.is_set():
            # With addresses at hand, a slow resolver delays nothing for long.
            wait_s = deadline - time.monotonic()
            entry.done.wait(min(wait_s, 0.1) if entry.addresses else wait_s)
        if entry.addresses:
            return entry.addresses
        if entry.error and entry.done.is_set():
            raise entry.error
        raise TimeoutError(f"the name {backend.host!r} was not resolved in time")

    def _refresh(self, backend: Backend) -> _Entry:
        """Return the entry of a name; begin an attempt unless it is fresh."""
        key = (backend.host, backend.port)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                if len(self._entries) >= MAX_NAMES:
                    self._entries.clear()
                entry = self._entries[key] = _Entry()
            is_fresh = entry.addresses and time.monotonic() < entry.asked_at + FRESH_S
            if is_fresh or not entry.done.is_set():
                return entry
            entry.done.clear()
        thread = threading.Thread(target=_ask, args=(entry, *key), name="apachews-dns", daemon=True)
        try:
            # Apache's signals are for Apache's main thread.
            with signals_blocked():
                thread.start()
        except RuntimeError as error:  # the process may not have another thread
            entry.error = OSError(str(error))
            entry.done.set()
        return entry


def _ask(entry: _Entry, host: str, port: int) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [
            str(address[0])
            for family, _, _, _, address in found
            if family in (socket.AF_INET, socket.AF_INET6)
        ]
        entry.error = None if addresses else OSError("the name has no address")
        if addresses:
            entry.addresses = addresses
    except OSError as error:
        entry.error = error
    except UnicodeError as error:  # a label that is too long
        entry.error = OSError(str(error))
    finally:
        entry.asked_at = time.monotonic()
        entry.done.set()


def _refusal(backend: Backend, error: OSError, timeout_s: float) -> Refusal:
    """Return the answer to a failed connect."""
    if isinstance(error, socket.gaierror):
        fact = f"the host of {backend.name} cannot be resolved: {error.strerror or error}"
        return Refusal(refusals.NO_BACKEND, fact)
    outcome = Unreachable(error).outcome
    if outcome is Outcome.OUT_OF_RESOURCES:
        return no_descriptors(error)
    if outcome is Outcome.FORBIDDEN:
        fact = f"Apache's user has no permission to connect to {backend.name}"
        return Refusal(refusals.PERMISSION, fact)
    if outcome is Outcome.BUSY:
        detail = str(error) if isinstance(error, TimeoutError) and error.args else "no connection"
        fact = f"{backend.name} did not accept within {timeout_s:g} s: {detail}"
        return Refusal(refusals.NO_BACKEND, fact)
    fact = f"no connection to {backend.name}: {error.strerror or error}"
    return Refusal(refusals.NO_BACKEND, fact)


_resolver: Final = Resolver()
