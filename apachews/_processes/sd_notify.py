"""The protocol of sd_notify(3): what a producer reports to systemd.

Contract: ``notify(…)`` and its callers never raise and never wait for longer than a second: a
producer works without systemd.  From any thread.  Without NOTIFY_SOCKET in the environment they
do nothing.

The watchdog (sd_watchdog_enabled(3)): every server of the process has a ``Heartbeat``, which
``dequeue()`` drives.  The process reports to systemd only while all of them beat, so that a
program that hangs outside of ``dequeue()`` is detected, in any of its threads.

``NotifyReceiver`` is the other end, for the supervisors here (``supervise.py``).
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

# How long to wait for room in systemd's queue: systemd reads messages at once, unless the whole
# system is overloaded.
SEND_TIMEOUT_S: Final = 1.0
# A message has some lines; systemd itself accepts 4096 bytes.
MAX_MESSAGE_BYTES: Final = 4096

_logger: Final = logging.getLogger("apachews")
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid

_lock: Final = threading.Lock()
_ready_in: int | None = None  # the process that has sent READY


def notify(*assignments: str) -> bool:
    """Send assignments like ``READY=1`` to systemd; return whether they were sent."""
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
        _logger.debug("cannot send %s to systemd: %s", " ".join(assignments), error)
        return False
    return True


def notify_ready(status: str) -> None:
    """Report that this process is ready: once, for any number of servers."""
    global _ready_in
    with _lock:
        if _ready_in == os.getpid():
            return
        _ready_in = os.getpid()
    notify("READY=1", f"STATUS={status}")


def watchdog_timeout_s() -> float | None:
    """Return the silence after which systemd acts; None if it does not watch this process."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not os.environ.get("NOTIFY_SOCKET") or not microseconds.isdecimal():
        return None
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1_000_000 or None


class Heartbeat:
    """One server's part in the heartbeat of its process.

    Args:
        timeout_s: as ``watchdog_timeout_s()`` returns it.
    """

    # The time of the last beat of each server in this process.  Weak: a server that the program
    # has dropped does not beat any more, and must not count as hanging.
    _last: ClassVar[weakref.WeakKeyDictionary[Heartbeat, float]] = weakref.WeakKeyDictionary()

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._next_at = 0.0
        self.beat()

    def beat(self) -> float:
        """Record a heartbeat; report it to systemd at most every half timeout.

        Returns:
            When the next report is due (``time.monotonic()``).
        """
        now = time.monotonic()
        if now < self._next_at:
            return self._next_at
        self._next_at = now + self._timeout_s / 2
        with _lock:
            self._last[self] = now
            all_alive = min(self._last.values()) > now - self._timeout_s
        if all_alive:
            notify("WATCHDOG=1")
        return self._next_at

    def stop(self) -> None:
        """Stop counting: the server has ended."""
        with _lock:
            self._last.pop(self, None)


def start_heartbeat() -> Heartbeat | None:
    """Return a heartbeat for a server; None if systemd does not watch this process."""
    timeout_s = watchdog_timeout_s()
    return None if timeout_s is None else Heartbeat(timeout_s)


class NotifyReceiver:
    """A NOTIFY_SOCKET for child processes.

    Its name is abstract, so that it leaves no file.  Every process of the machine can send to
    it; so each message comes with the process id of its sender, as the kernel reports it, and
    the caller must ignore processes other than its children.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("")  # the kernel chooses a name, unix(7) *autobind*

    @property
    def address(self) -> str:
        """The value for NOTIFY_SOCKET."""
        name = self._socket.getsockname()
        assert isinstance(name, bytes)
        return "@" + name[1:].decode()

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive_nowait(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the sender's process id and the assignments of each message that has arrived."""
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
