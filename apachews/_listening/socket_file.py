"""The socket file: making it, taking it over, and removing it.

Contract: ``SocketFile(path, …)`` listens or raises; ``close`` is idempotent and removes the file
only if it is still the one made here.  The caller accepts from ``socket`` and must not close it.

How this works: the new socket is bound under a temporary name beside the path, and renamed to
the path once it listens.  So every connection reaches the old or the new socket; the files of a
dead and of a live producer are replaced in the same way, and a live producer keeps its clients.

The directory is locked meanwhile, if the file system supports that, and while a file is removed:
two producers that start at the same time take turns, and a producer cannot remove the file of
its successor.  Temporary names that exist while the lock is free belong to starts that died, and
are removed.

A ``LoopbackFile`` does the same with a regular file that contains the port of a loopback socket
(``loopback.py``).

A socket that systemd made (``activation.py``) is used as it is, and its file is left alone.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from apachews.exceptions import NotASocket, ServerError, SocketInUse

from . import loopback
from .activation import inherited_socket
from .endpoint import MAX_PATH_BYTES, Outcome, Unreachable, is_listened_on

# Connections that may wait for accept(); the kernel limits it to net.core.somaxconn, 4096 on
# Linux since 5.4.
BACKLOG: Final = 4096

# The time limit for the lock of the directory, which other producers hold for a millisecond each,
# and the interval between attempts.
LOCK_TIMEOUT_S: Final = 5.0
LOCK_INTERVAL_S: Final = 0.01

# A temporary name.  It does not end in .ws, because Apache would serve it.
_BESIDE: Final = re.compile(r"\.apachews-[0-9a-f]{8}")

# The errors of flock() on file systems that cannot lock a directory.
_CANNOT_LOCK: Final = frozenset(
    {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
)

_logger: Final = logging.getLogger("apachews")


class SocketFile:
    """A listening Unix socket and its file.

    Args:
        path: the path of the file.
        mode: its permissions; connecting needs the right to write.
        group: name or number of the file's group, or None.
        exclusive: fail instead of taking over the socket of a producer that listens.

    Attributes:
        socket: listens, non-blocking.
        is_shared: other processes accept from the same socket.

    Raises:
        SocketInUse: with ``exclusive``, another producer listens there.
        NotASocket: the path is a file of another type.
        ServerError: the path is too long for a socket.
        OSError, LookupError: the directory does not exist or is not writable; the group
            does not exist.
    """

    def __init__(
        self, path: str, mode: int, group: str | int | None, exclusive: bool = False
    ) -> None:
        self.path = path
        self._place = os.path.abspath(path)  # valid after a chdir() of the program
        self._identity: object = None  # set while close() must remove the file
        self._bound: object = None
        self.is_shared = False
        self.socket = self._new_socket()
        if self.is_shared:
            return
        try:
            with _directory_of(path) as (directory_fd, is_alone):
                if is_alone:
                    _remove_left_overs(directory_fd)
                self._listen(directory_fd, mode, group, exclusive)
        except OSError as error:
            self.close()
            raise _explained(error, path, group) from None
        except BaseException:
            self.close()
            raise

    def _new_socket(self) -> socket.socket:
        if len(os.fsencode(self.path)) > MAX_PATH_BYTES:
            raise ServerError(
                self.path,
                f"the path is longer than the {MAX_PATH_BYTES} bytes of a Unix socket's address",
                'use a shorter one, or transport="loopback"',
            )
        inherited = inherited_socket(self.path)
        self.is_shared = inherited is not None
        return inherited or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def _listen(
        self, directory_fd: int, mode: int, group: str | int | None, exclusive: bool
    ) -> None:
        is_live = _is_live(self.path)
        if is_live and exclusive:
            raise SocketInUse(self.path)
        name = f".apachews-{secrets.token_hex(4)}"
        # The temporary path can exceed the limit though the final path does not.
        beside = os.path.join(os.path.dirname(self.path), name)
        if len(os.fsencode(beside)) > MAX_PATH_BYTES:
            beside = f"/proc/self/fd/{directory_fd}/{name}"
        try:
            self._make(beside, mode)
            if group is not None:
                shutil.chown(beside, group=group)
            self._permit(beside, mode)
            self.socket.listen(BACKLOG)
            self._fill(beside)
            # Before the rename: an exception of a signal's handler can follow it at once, and
            # remove() must know the file then.
            self._identity = self._bound = self._identify(beside)
            os.rename(beside, self.path)
        except BaseException as error:
            with suppress(FileNotFoundError):
                os.unlink(beside)
            if isinstance(error, OSError):
                error.filename = self.path
            raise
        if is_live:
            # A warning, because two producers that were started by mistake look the same.
            _logger.warning(
                "%s: taken over from another producer, which keeps its clients", self.path
            )

    def _make(self, beside: str, mode: int) -> None:
        """Bind the socket, which makes its file."""
        # Before bind(), so that the file never has more permissions than it should.
        os.fchmod(self.socket.fileno(), mode)
        self.socket.bind(beside)

    def _permit(self, beside: str, mode: int) -> None:
        """Set the file's permissions: bind() has applied the umask."""
        os.chmod(beside, mode)

    def _fill(self, beside: str) -> None:
        """Write the content of the file; its permissions are in force."""

    def _identify(self, path: str) -> object:
        """Return a value that distinguishes the file from later ones of the same name.

        Raises:
            OSError
        """
        status = os.lstat(path)
        return status.st_dev, status.st_ino

    def share(self) -> None:
        """Never remove the file: another process listens on the same socket and will."""
        self.is_shared = True
        self._identity = None

    def is_in_place(self) -> bool:
        """Return whether the path still leads to this socket; that of systemd always does."""
        if self._bound is None:
            return True
        try:
            return self._identify(self._place) == self._bound
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the file if it is still this one; the socket continues to listen."""
        identity, self._identity = self._identity, None
        if identity is None:
            return
        try:
            with _directory_of(self._place) as (_, is_alone):
                # Without the lock it could become a successor's file before the unlink.
                if is_alone and self._identify(self._place) == identity:
                    os.unlink(self._place)
        except FileNotFoundError:
            pass  # another process has removed it
        except OSError as error:
            # The next producer replaces it.
            _logger.warning("%s: cannot remove the socket file: %s", self.path, error.strerror)

    def close(self) -> None:
        """Stop listening, and remove the file if it is still this one."""
        self.remove()
        self.socket.close()


class LoopbackFile(SocketFile):
    """A listening loopback socket, and the file with its port; otherwise a ``SocketFile``.

    Args:
        mode: as ``SocketFile``; connecting needs the right to read.

    Attributes:
        token: the secret that proves a caller's right to connect.

    Raises:
        ValueError: with this mode all users could read the token.
        ServerError: on this file system all users can read it with any mode.
    """

    def __init__(
        self, path: str, mode: int, group: str | int | None, exclusive: bool = False
    ) -> None:
        if mode & loopback.OTHERS:
            remedy = f"use {mode & ~loopback.OTHERS:#o}"
            raise ValueError(f"mode={mode:#o}: all users could read the token; {remedy}")
        self.token = loopback.new_token()
        super().__init__(path, mode, group, exclusive)

    def _new_socket(self) -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def _make(self, beside: str, mode: int) -> None:
        self.socket.bind((loopback.HOST, 0))
        # 0600 until the group is set: its present group must not be able to open it.
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _permit(self, beside: str, mode: int) -> None:
        # On a mount that fixes the mode of all files this does nothing or fails; _fill()
        # checks the result.
        with suppress(PermissionError):
            super()._permit(beside, mode)

    def _fill(self, beside: str) -> None:
        address = loopback.Address(self.socket.getsockname()[1], self.token)
        with open(beside, "wb") as file:
            file.write(address.encode())
            file.flush()
            os.fsync(file.fileno())  # so that it is recognized after a power failure
            if os.fstat(file.fileno()).st_mode & loopback.OTHERS:
                raise ServerError(
                    self.path,
                    "all users can read the files of this file system, and the token in them",
                    "mount it with umask=007 or the equivalent option, or use another directory",
                )

    def _identify(self, path: str) -> object:
        # The content and not the inode number: some file systems report a new one each time.
        return loopback.read_file(path)[0]


def _explained(error: OSError, path: str, group: str | int | None) -> OSError:
    """Return an error of the same kind whose text says what to do."""
    directory = os.path.dirname(os.path.abspath(path))
    user = _user()
    # Programs often have the path in their text, and systemd or ``apachews run`` gives another.
    argument = "or take the path from the arguments, as in Server(sys.argv[1])"
    advice = {
        errno.ENOENT: f"create the directory: install -d -o {user} {directory}",
        errno.EACCES: f"user {user} may not create a file in {directory}; run the program as its"
        f" owner (sudo -u {_owner(directory)}), {argument}",
        errno.EROFS: f"{directory} is read-only here; a systemd unit needs"
        f" ReadWritePaths={directory}, {argument}",
    }
    if group is not None:
        advice[errno.EPERM] = f"user {user} is not a member of the group {group}"
    if error.errno not in advice:
        return error
    text = os.strerror(error.errno)
    return OSError(error.errno, f"{text}: {advice[error.errno]}", path)


def _user() -> str:
    return _name_of(os.geteuid())


def _owner(directory: str) -> str:
    try:
        return _name_of(os.stat(directory).st_uid)
    except OSError:
        return "OWNER"  # a directory above it is closed


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextmanager
def _directory_of(path: str) -> Iterator[tuple[int, bool]]:
    """Open the directory of a file, and lock it.

    Yields:
        Its descriptor, and whether this process has the lock.  The wait for it has a limit,
        because any program that can read the directory can hold the lock.
    """
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd, _lock(fd, time.monotonic() + LOCK_TIMEOUT_S)
    finally:
        os.close(fd)


def _lock(fd: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOCK_INTERVAL_S)
        except OSError as error:
            # NFS locks only files that are open for writing, and a directory never is.
            if error.errno not in _CANNOT_LOCK:
                raise
            return True
        else:
            return True


def _remove_left_overs(directory_fd: int) -> None:
    for name in os.listdir(directory_fd):
        if _BESIDE.fullmatch(name):
            try:
                os.unlink(name, dir_fd=directory_fd)
            except OSError:
                pass  # of another user, in a directory like /tmp: it does no harm


def _is_live(path: str) -> bool:
    """Return whether a process listens on the socket file.

    Raises:
        NotASocket, OSError
    """
    try:
        # A link is not a socket of ours, wherever it leads: the rename would replace the link.
        if stat.S_ISLNK(os.lstat(path).st_mode):
            raise NotASocket(path)
        return is_listened_on(path)
    except FileNotFoundError:
        return False
    except Unreachable as failure:
        if failure.outcome is Outcome.NOT_A_SOCKET:
            raise NotASocket(path) from failure
        if isinstance(failure.error, OSError):
            failure.error.filename = path
        raise failure.error from None
