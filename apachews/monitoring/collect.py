"""Collects the status of Apache's processes.

Contract: ``collect(directory, apache)`` asks all processes of one Apache at the same time, and
waits at most ``timeout_s``.  ``find_apaches()`` returns the Apaches of this machine and their
directories.  Both block and keep no state.  They need the rights of root or of the processes'
user.

How this works: each process that has or had a WebSocket listens on a socket in its user's
directory, named ``<process id of Apache's parent>.status.<its own>``.  It sends each caller the
descriptor of a file with its status (``apachews_handler.bridge.reporter``).  The file must be
sealed: a sealed file is in memory and has a fixed size, so that reading it never blocks,
even if a foreign program made it.  ``collect`` removes the socket file of a killed process.

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

# A process answers between two turns of its loop; without an answer in this time it hangs or is
# overloaded.
TIMEOUT_S: Final = 2.0
# A thousand connections take about 400 KB.
MAX_STATUS_BYTES: Final = 16 * 1024 * 1024
SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# The interval before a retry: the backlog was full, or the process closed the connection.
_AGAIN_S: Final = 0.02
_NAME: Final = re.compile(r"(\d{1,10})\.status\.(\d{1,10})")
_INT: Final = struct.Struct("i")
# The names of httpd's program, on Debian and elsewhere.
_PROGRAMS: Final = frozenset({"apache2", "httpd"})


def socket_name(apache: int, pid: int) -> str:
    """Return the name of a process's socket in the run directory."""
    return f"{apache}.status.{pid}"


@contextlib.contextmanager
def fitting_path(directory: str, name: str) -> Iterator[str]:
    """Yield a path to the socket that fits into a Unix address."""
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
    """Collect the status of all processes of an Apache.

    Args:
        directory: the run directory of its processes' user; it does not exist before the
            first WebSocket.
        apache: process id of its parent, as its processes see it.
        timeout_s: for all of them together.
        listed: the maximum of described connections per process.
        owner: user id of that user; None: the caller's.

    Raises:
        OSError: the directory is not readable, or belongs to another user.
    """
    deadline = time.monotonic() + timeout_s
    _require_owner(directory, os.geteuid() if owner is None else owner)
    asked: list[_Asked] = []
    try:
        while new := _new_processes(directory, apache, listed, asked):
            asked += new
            _wait_for(new, deadline)
            # A process that has exited may have started a custodian with a new socket.
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
    """Check the directory's owner: /tmp is world-writable.

    Raises:
        OSError: it belongs to another user, or is not a directory.
    """
    try:
        status = os.lstat(directory)
    except FileNotFoundError:
        return
    if status.st_uid != owner or not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EPERM, "it belongs to another user", directory)


def _new_processes(directory: str, apache: int, listed: int, asked: list[_Asked]) -> list[_Asked]:
    """Return the processes with a socket that were not asked yet."""
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
            waiting[fd].receive()
        if not ready:
            for one in left:
                if one.fileno() == -1:
                    one.ask()


class _Asked:
    """A process that is asked for its status.

    Attributes:
        pid: from the name of its socket.
        status: its answer.
        is_gone: the process does not exist.
        is_awaited: it can still answer.
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
        """Return the descriptor to wait for; -1: call ``ask`` again."""
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
            self.close()  # its backlog is full: retry
        except OSError as error:
            self.close()
            self.is_awaited = False
            self.is_gone = error.errno in (errno.ECONNREFUSED, errno.ENOENT)
            if error.errno == errno.ECONNREFUSED:
                _remove(path, before)

    def receive(self) -> None:
        """Receive the answer, or the end of file; the descriptor is readable."""
        assert self._socket
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                1, socket.CMSG_SPACE(_INT.size), socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            data, ancillary = b"", []
        self.close()
        if not data:
            return  # it exits, or has too many callers: retry
        self.is_awaited = False
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fd = _INT.unpack_from(content)[0]
                try:
                    status = ProcessStatus.decode(_read(fd), self._listed)
                except (OSError, StatusError):
                    continue  # another version, or another program: counts as silent
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
    """Return the content of a sealed file.

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
    """Remove the socket of a killed process, unless a new process has its name."""
    with contextlib.suppress(OSError):
        now = os.lstat(path)
        if stat.S_ISSOCK(now.st_mode) and now.st_ino == before.st_ino:
            os.unlink(path)


@dataclasses.dataclass(frozen=True, slots=True)
class RunningApache:
    """An Apache on this machine.

    Attributes:
        pid: of its parent process.
        inner_pid: the same process id as the process itself sees it, inside a container.
        directories: possible run directories of its processes, as paths of this process,
            the likeliest first; each with the user id of its owner.
    """

    pid: int
    inner_pid: int
    directories: tuple[tuple[str, int], ...]

    def collect(self, timeout_s: float = TIMEOUT_S) -> Status:
        """Collect the status of its processes.

        Raises:
            OSError: a directory is readable only for root or the processes' user.
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
    """Return the Apaches of this machine, the oldest first."""
    processes = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = _status_of(entry)
            except OSError:
                continue  # it has exited
            if fields["Name"] in _PROGRAMS:
                processes[int(entry.name)] = fields
    found = []
    for pid, fields in sorted(processes.items()):
        # A custodian has no httpd parent either, but it blocks all signals.
        is_custodian = int(fields["SigBlk"], 16) >> (signal.SIGTERM - 1) & 1
        if int(fields["PPid"]) not in processes and not is_custodian:
            children = [f for f in processes.values() if int(f["PPid"]) == pid]
            found.append(_describe(pid, fields, children))
    return found


def _describe(pid: int, fields: dict[str, str], children: list[dict[str, str]]) -> RunningApache:
    # Effective user ids: the children have their own if root starts them.
    users = {f["Uid"].split()[1] for f in children} | {fields["Uid"].split()[1]}
    directories = []
    # A service with PrivateTmp, or in a container, has its own /tmp.
    for root in (f"/proc/{pid}/root", ""):
        for temporary in _temporary_directories(pid):
            directories += [
                (f"{root}{temporary}/apachews-{user}", int(user)) for user in sorted(users)
            ]
    inner = fields.get("NSpid", str(pid)).split()[-1]
    return RunningApache(pid, int(inner), tuple(directories))


def _temporary_directories(pid: int) -> list[str]:
    """Return the directories of a process's temporary files, the likeliest first."""
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
