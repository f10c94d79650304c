"""What systemd is told of a producer: the protocol of sd_notify(3).

Contract: ``notify(…)`` and what builds on it never raise and never wait for longer
than a second: that systemd cannot be told is no reason to fail.  From any thread.
Without NOTIFY_SOCKET in the environment nothing happens.

How the watchdog works (sd_watchdog_enabled(3)): every server of the process has a
``Heartbeat`` that ``dequeue()`` drives, and systemd hears of it as long as none of
them was silent for too long.  So a program that hangs anywhere outside of
``dequeue()`` is found, in whichever of its threads that is.

``NotifyReceiver`` is the other end, for those here who have processes of their own
to look after: ``workers.py`` and ``runner.py``.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from typing import ClassVar, Final

# How long to wait for room in systemd's queue: it takes what comes at once,
# unless the whole system is late.
SEND_TIMEOUT_S: Final = 1.0
# A message has some lines; systemd itself takes 4096 bytes.
MAX_MESSAGE_BYTES: Final = 4096

_logger: Final = logging.getLogger("apachews")
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid

_lock: Final = threading.Lock()
_ready_in: int | None = None  # the process that has said so


def notify(*assignments: str) -> bool:
    """Send assignments like ``READY=1`` to systemd; return whether they went out."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # an abstract name
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(SEND_TIMEOUT_S)
            sock.connect(address)
            sock.send("\n".join(assignments).encode())
    except (OSError, ValueError) as error:
        _logger.debug("systemd was not told %s: %s", " ".join(assignments), error)
        return False
    return True


def notify_ready(status: str) -> None:
    """Say that this process serves: once, however many servers it has."""
    global _ready_in
    with _lock:
        if _ready_in == os.getpid():
            return
        _ready_in = os.getpid()
    notify("READY=1", f"STATUS={status}")


def watchdog_timeout_s() -> float | None:
    """Return after how long a silence systemd acts; None where it does not watch."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not os.environ.get("NOTIFY_SOCKET") or not microseconds.isdecimal():
        return None
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1_000_000 or None


class Heartbeat:
    """One server's share in the sign of life of its process.

    Args:
        timeout_s: as ``watchdog_timeout_s()`` has it.

    Attributes:
        next_at: when ``beat`` does something again (``time.monotonic()``).
    """

    # The last beat of each in this process.  Weak: a server that the program has
    # dropped beats no more, and need not.
    _last: ClassVar[weakref.WeakKeyDictionary[Heartbeat, float]] = weakref.WeakKeyDictionary()

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.next_at = 0.0
        self.beat()

    def beat(self) -> None:
        """Be alive; at half of the timeout that goes to systemd."""
        now = time.monotonic()
        if now < self.next_at:
            return
        self.next_at = now + self._timeout_s / 2
        with _lock:
            self._last[self] = now
            all_alive = min(self._last.values()) > now - self._timeout_s
        if all_alive:
            notify("WATCHDOG=1")

    def stop(self) -> None:
        """Be no longer waited for."""
        with _lock:
            self._last.pop(self, None)


def start_heartbeat() -> Heartbeat | None:
    """Return a heartbeat for a server, None where nobody listens for it."""
    timeout_s = watchdog_timeout_s()
    return None if timeout_s is None else Heartbeat(timeout_s)


class NotifyReceiver:
    """A NOTIFY_SOCKET for processes of our own.

    Its name is an abstract one: there is no file to leave behind.  Anybody on the
    machine can send to it; so each message comes with the process it is from, as
    the kernel has it, and the caller believes its own children only.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("")  # the kernel finds a name, unix(7) *autobind*

    @property
    def address(self) -> str:
        """What to put into NOTIFY_SOCKET."""
        name = self._socket.getsockname()
        assert isinstance(name, bytes)
        return "@" + name[1:].decode()

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive_nowait(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the sender's process id and the assignments of what has come."""
        room = socket.CMSG_SPACE(_CREDENTIALS.size)
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(MAX_MESSAGE_BYTES, room)
            except BlockingIOError:
                return
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    pid = _CREDENTIALS.unpack(payload)[0]
                    yield pid, data.decode(errors="replace").splitlines()

    def close(self) -> None:
        self._socket.close()
