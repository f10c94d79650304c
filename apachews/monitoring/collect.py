"""Asking Apache's processes for their status.

Contract: ``collect(directory, apache)`` asks all processes of one Apache at once, and
waits for none longer than ``timeout_s``.  ``find_apaches()`` tells which there are on
this machine, and where they have that directory.  Both block; nothing is kept.  Those
who may are root and the user whose processes they are.

How this works: each process that has, or had, a WebSocket listens on a socket in its
user's directory, named ``<process id of Apache's parent>.status.<its own>``.  Whoever
connects is sent the descriptor of a file with its status (``apachews_handler.bridge.report``).
It must be sealed: so it is in memory, its size is what it is, and reading it waits for
nobody, whoever made it.  A process that was killed has left its socket, at which nobody
listens: that is taken away here.

Sources: unix(7), proc(5), fcntl(2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import select
import signal
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apachews._listening.endpoint import MAX_PATH_BYTES
from apachews.exceptions import StatusError

from .snapshot import MAX_LISTED, ProcessStatus, Status, in_order

# A process answers between two turns of its loop; one that does not within this time
# hangs, or has far more to do than it can.
TIMEOUT_S: Final = 2.0
# A thousand connections are some 400 KB.
MAX_STATUS_BYTES: Final = 16 * 1024 * 1024
SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# Before one is asked again whose queue was full, or who sent us away.
_AGAIN_S: Final = 0.02
_NAME: Final = re.compile(r"(\d{1,10})\.status\.(\d{1,10})")
_INT: Final = struct.Struct("i")
# What httpd's program is called, on Debian and elsewhere.
_PROGRAMS: Final = frozenset({"apache2", "httpd"})


def socket_name(apache: int, pid: int) -> str:
    """Return the name of a process's socket in the run directory."""
    return f"{apache}.status.{pid}"


@contextlib.contextmanager
def fitting_path(directory: str, name: str) -> Iterator[str]:
    """Give a path to a socket that a Unix address has room for."""
    path = os.path.join(directory, name)
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield path
        return
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def collect(
    directory: str,
    apache: int,
    timeout_s: float = TIMEOUT_S,
    listed: int = MAX_LISTED,
    owner: int | None = None,
) -> Status:
    """Ask all processes of an Apache.

    Args:
        directory: the run directory of its processes' user; none at all means that
            there was no WebSocket yet.
        apache: process id of its parent, as its processes see it.
        timeout_s: for all of them together.
        listed: connections of each that are described, at most.
        owner: user id of that user; None: who asks.

    Raises:
        OSError: the directory may not be read, or is another user's.
    """
    deadline = time.monotonic() + timeout_s
    _require_owner(directory, os.geteuid() if owner is None else owner)
    asked: list[_Asked] = []
    try:
        while new := _not_asked(directory, apache, listed, asked):
            asked += new
            _wait_for(new, deadline)
            # One that has just gone may have become a custodian, with a socket of its own.
            if not any(one.is_gone for one in new):
                break
    finally:
        for one in asked:
            one.close()
    return Status(
        apache=apache,
        time=time.time(),
        processes=in_order(one.status for one in asked if one.status),
        silent=tuple(sorted(one.pid for one in asked if not one.status and not one.is_gone)),
    )


def _require_owner(directory: str, owner: int) -> None:
    """Check whose the directory is: it lies where anybody could have made it.

    Raises:
        OSError: it is another user's, or something else.
    """
    try:
        status = os.lstat(directory)
    except FileNotFoundError:
        return
    if status.st_uid != owner or not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EPERM, "it belongs to another user", directory)


def _not_asked(directory: str, apache: int, listed: int, asked: list[_Asked]) -> list[_Asked]:
    """Return the processes that have a socket now, but for those that were asked."""
    known = {one.pid for one in asked}
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [
        _Asked(directory, match[0], int(match[2]), listed)
        for match in map(_NAME.fullmatch, names)
        if match and int(match[1]) == apache and int(match[2]) not in known
    ]


def _wait_for(asked: list[_Asked], deadline: float) -> None:
    for one in asked:
        one.ask()
    while left := [one for one in asked if one.is_awaited]:
        rest_s = deadline - time.monotonic()
        if rest_s <= 0:
            return
        poll = select.poll()
        waiting = {one.fileno(): one for one in left if one.fileno() != -1}
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        if len(waiting) < len(left):
            rest_s = min(rest_s, _AGAIN_S)
        ready = poll.poll(max(1, rest_s * 1000))
        for fd, _ in ready:
            waiting[fd].take()
        if not ready:
            for one in left:
                if one.fileno() == -1:
                    one.ask()


class _Asked:
    """One process that is asked.

    Attributes:
        pid: from the name of its socket.
        status: its answer.
        is_gone: there is no such process.
        is_awaited: it may answer yet.
    """

    def __init__(self, directory: str, name: str, pid: int, listed: int) -> None:
        self._listed = listed
        self._directory = directory
        self._name = name
        self.pid = pid
        self.status: ProcessStatus | None = None
        self.is_gone = False
        self.is_awaited = True
        self._socket: socket.socket | None = None

    def fileno(self) -> int:
        """Return the descriptor to wait at; -1: it is to be asked again."""
        return self._socket.fileno() if self._socket else -1

    def ask(self) -> None:
        """Connect."""
        path = os.path.join(self._directory, self._name)
        try:
            before = os.lstat(path)
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.setblocking(False)
            with fitting_path(self._directory, self._name) as fitting:
                self._socket.connect(fitting)
        except BlockingIOError:
            self.close()  # its queue is full
        except OSError as error:
            self.close()
            self.is_awaited = False
            self.is_gone = error.errno in (errno.ECONNREFUSED, errno.ENOENT)
            if error.errno == errno.ECONNREFUSED:
                _remove(path, before)

    def take(self) -> None:
        """Take the answer, which is there, or the end."""
        assert self._socket
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                1, socket.CMSG_SPACE(_INT.size), socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            data, ancillary = b"", []
        self.close()
        if not data:
            return  # it ends, or has too many who ask: again
        self.is_awaited = False
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fd = _INT.unpack_from(content)[0]
                try:
                    status = ProcessStatus.decode(_read(fd), self._listed)
                except (OSError, StatusError):
                    continue  # it is another version's, or no process of ours: silent
                finally:
                    os.close(fd)
                if status.pid == self.pid:
                    self.status = status

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket:
            self._socket.close()
        self._socket = None


def _read(fd: int) -> bytes:
    """Return what is in a sealed file.

    Raises:
        OSError: it is not sealed, or too large.
    """
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS:
        raise OSError(errno.EPERM, "not sealed")
    size = os.fstat(fd).st_size
    if size > MAX_STATUS_BYTES:
        raise OSError(errno.EFBIG, "too large")
    return os.pread(fd, size, 0)


def _remove(path: str, before: os.stat_result) -> None:
    """Remove the socket of a process that was killed, unless a new one has its name."""
    with contextlib.suppress(OSError):
        now = os.lstat(path)
        if stat.S_ISSOCK(now.st_mode) and now.st_ino == before.st_ino:
            os.unlink(path)


@dataclasses.dataclass(frozen=True, slots=True)
class RunningApache:
    """An Apache on this machine.

    Attributes:
        pid: of its parent.
        inner_pid: the same, as it sees itself: another one in a container.
        directories: where its processes may have their run directory, as seen from
            here, the likeliest first; and the user whose it must be.
    """

    pid: int
    inner_pid: int
    directories: tuple[tuple[str, int], ...]

    def collect(self, timeout_s: float = TIMEOUT_S) -> Status:
        """Ask its processes.

        Raises:
            OSError: a directory may not be read: only by root, or by the user whose
                processes they are.
        """
        refused: OSError | None = None
        for directory, owner in self.directories:
            try:
                status = collect(directory, self.inner_pid, timeout_s, owner=owner)
            except NotADirectoryError:
                continue
            except OSError as error:
                refused = refused or error
                continue
            if status.processes or status.silent:
                return status
        if refused:
            raise refused
        return Status(self.inner_pid, time.time())


def find_apaches() -> list[RunningApache]:
    """Return the Apaches that run here, the oldest first."""
    processes = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = _status_of(entry)
            except OSError:
                continue  # it has ended
            if fields["Name"] in _PROGRAMS:
                processes[int(entry.name)] = fields
    found = []
    for pid, fields in sorted(processes.items()):
        # A custodian is nobody's child either; it has all signals blocked.
        is_custodian = int(fields["SigBlk"], 16) >> (signal.SIGTERM - 1) & 1
        if int(fields["PPid"]) not in processes and not is_custodian:
            children = [f for f in processes.values() if int(f["PPid"]) == pid]
            found.append(_describe(pid, fields, children))
    return found


def _describe(pid: int, fields: dict[str, str], children: list[dict[str, str]]) -> RunningApache:
    # Effective user ids: its children's, where root starts them.
    users = {f["Uid"].split()[1] for f in children} | {fields["Uid"].split()[1]}
    directories = []
    # A service with PrivateTmp, or in a container, has another /tmp than we.
    for root in (f"/proc/{pid}/root", ""):
        for temporary in _temporary_directories(pid):
            directories += [
                (f"{root}{temporary}/apachews-{user}", int(user)) for user in sorted(users)
            ]
    inner = fields.get("NSpid", str(pid)).split()[-1]
    return RunningApache(pid, int(inner), tuple(directories))


def _temporary_directories(pid: int) -> list[str]:
    """Return where Python has its temporary files in a process, the likeliest first."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        variables = []
    set_ = dict(item.partition(b"=")[::2] for item in variables if b"=" in item)
    named = [os.fsdecode(set_[name]) for name in (b"TMPDIR", b"TEMP", b"TMP") if set_.get(name)]
    return [*(path.rstrip("/") for path in named if path.startswith("/")), "/tmp", "/var/tmp"]


def _status_of(entry: Path) -> dict[str, str]:
    lines = (entry / "status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
