"""One-time tickets: a login of one request that a WebSocket presents within seconds.

Contract: ``Tickets(directory, apache)`` is a file that all children of an Apache share.
``issue(login, endpoint)`` returns a ticket; ``redeem(ticket, endpoint)`` returns its login once,
over all children and through reloads, or raises ``BadTicket``.  Both raise ``OSError``.

How this works: a ticket is BASE64URL(deadline, nonce, end of the login, user, HMAC-SHA256).  The
endpoint is in the MAC alone, so a ticket tells no path of the server.  The file has the key, and
a slot for the nonce of each ticket that was redeemed and has not passed its deadline.  A lock of
the file covers the search and the write, so one of several that redeem a ticket wins.  A slot
is reused after its deadline: the file is bounded, and no process has to clean it.

The clock is the machine's (``time.monotonic``): setting the date back revives no ticket.

Sources: RFC 2104 (HMAC); RFC 4648 5. (base64url).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hmac
import os
import struct
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

# From the page that fetches a ticket to the handshake.
LIFETIME_S: Final = 30.0
MAX_USER_BYTES: Final = 512
# Tickets that are redeemed within one lifetime.
MAX_SLOTS: Final = 16384
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 16
_MAC_BYTES: Final = 32
_HEAD: Final = struct.Struct(f">d{NONCE_BYTES}sd")
_SLOT: Final = struct.Struct(f">d{NONCE_BYTES}s")
# Longer than the lock is ever held, unless a process was stopped while it held it.
_LOCK_TIMEOUT_S: Final = 2.0
_LOCK_POLL_S: Final = 0.002
_PURPOSE: Final = b"apachews ticket 1\0"


class BadTicket(Exception):
    """The ticket opens nothing; the text says why."""


class Login(NamedTuple):
    """What a ticket says.

    Attributes:
        user: name of the user, not empty.
        ends_at: seconds since 1970 at which the login ends; 0.0 for never.
    """

    user: bytes
    ends_at: float = 0.0


def seal(key: bytes, login: Login, endpoint: bytes, nonce: bytes, deadline: float) -> str:
    """Return a ticket.

    Args:
        key: of this Apache.
        login: what ``unseal`` returns.
        endpoint: any bytes that name it.
        nonce: random, of ``NONCE_BYTES``.
        deadline: reading of the machine's clock.

    Raises:
        ValueError: the name of the user is empty or too long.
    """
    if not 0 < len(login.user) <= MAX_USER_BYTES:
        raise ValueError(f"the name of the user has {len(login.user)} bytes")
    body = _HEAD.pack(deadline, nonce, login.ends_at) + login.user
    return base64.urlsafe_b64encode(body + _mac(key, body, endpoint)).rstrip(b"=").decode()


def unseal(key: bytes, ticket: str, endpoint: bytes, now: float) -> tuple[Login, bytes, float]:
    """Return login, nonce and deadline of a ticket.

    Args:
        now: reading of the machine's clock.

    Raises:
        BadTicket
    """
    if len(ticket) > 2 * (_HEAD.size + MAX_USER_BYTES + _MAC_BYTES) or not ticket.isascii():
        raise BadTicket("it has another form")
    try:
        data = base64.b64decode(ticket + "=" * (-len(ticket) % 4), b"-_", validate=True)
    except binascii.Error:
        raise BadTicket("it has another form") from None
    body, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(key, body, endpoint)):
        raise BadTicket("it is forged, for another endpoint, or of an Apache that was stopped")
    deadline, nonce, ends_at = _HEAD.unpack_from(body)
    # The second: the clock began again, and the key did not change.
    if not now < deadline <= now + LIFETIME_S:
        raise BadTicket("it has expired")
    return Login(body[_HEAD.size :], ends_at), nonce, deadline


class Tickets:
    """The tickets of one Apache.

    Args:
        directory: the run directory.
        apache: process id of Apache's parent.
    """

    def __init__(self, directory: str, apache: int) -> None:
        self._path = os.path.join(directory, f"{apache}.tickets")

    def issue(self, login: Login, endpoint: bytes) -> str:
        """Return a ticket for a login.

        Raises:
            OSError: the file cannot be read or written.
            ValueError: the name of the user is empty or too long.
        """
        with self._locked() as (_, key):
            pass
        deadline = time.monotonic() + LIFETIME_S
        return seal(key, login, endpoint, os.urandom(NONCE_BYTES), deadline)

    def redeem(self, ticket: str, endpoint: bytes) -> Login:
        """Return the login of a ticket, which no process accepts again.

        Raises:
            BadTicket
            OSError: the file cannot be read or written, or has no free slot.
        """
        with self._locked() as (fd, key):
            now = time.monotonic()
            login, nonce, deadline = unseal(key, ticket, endpoint, now)
            size = os.fstat(fd).st_size - KEY_BYTES
            # A process that ended inside a write may have left a part of a slot.
            slots = os.pread(fd, size - size % _SLOT.size, KEY_BYTES)
            free = len(slots) // _SLOT.size
            for index, (until, spent) in enumerate(_SLOT.iter_unpack(slots)):
                if spent == nonce:
                    raise BadTicket("it was used before")
                if until <= now:
                    free = min(free, index)
            if free >= MAX_SLOTS:
                raise OSError(f"{MAX_SLOTS} tickets were redeemed within {LIFETIME_S:.0f} s")
            slot = _SLOT.pack(deadline, nonce)
            if os.pwrite(fd, slot, KEY_BYTES + free * _SLOT.size) != _SLOT.size:
                raise OSError("the file system is full")
            return login

    @contextlib.contextmanager
    def _locked(self) -> Iterator[tuple[int, bytes]]:
        """Yield the descriptor of the file, locked, and the key; the first call makes both."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            _lock(fd)
            key = os.pread(fd, KEY_BYTES, 0)
            if len(key) < KEY_BYTES:  # the file is new, or its creator ended in the middle
                key = os.urandom(KEY_BYTES)
                if os.pwrite(fd, key, 0) != KEY_BYTES:
                    raise OSError("the file system is full")
            yield fd, key
        finally:
            os.close(fd)  # releases the lock


def _lock(fd: int) -> None:
    """Lock a file against other processes and threads.

    Raises:
        OSError: a process holds the lock and does not run.
    """
    give_up_at = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(_LOCK_POLL_S)
        else:
            return


def _mac(key: bytes, body: bytes, endpoint: bytes) -> bytes:
    length = len(endpoint).to_bytes(4, "big")
    return hmac.digest(key, _PURPOSE + length + endpoint + body, "sha256")
