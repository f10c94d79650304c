"""The socket file: making it, taking it over, and taking it away again.

Contract: ``SocketFile(path, …)`` listens or raises; ``close`` is idempotent and
removes the file only where it is still the one made here.  The caller reads
from ``socket`` and must not close it.

How this works: the new socket is bound beside the path, made ready there, and
renamed onto it once it listens.  So whoever connects finds the old one or the new
one, and never nobody: a file that a dead producer left and a live producer's are
replaced alike.  A live one goes on with the clients it has.  The permissions are
set before ``bind`` makes the file, so that there is no moment at which it is open
to more than it should be.

The directory is locked meanwhile, where the file system can, and while a file is
removed: two producers that start at once come one after the other, and nobody removes
what a successor has just put in the place of his file.  What lies beside the path while
the lock is free was left by a start that died, and is cleared away.

A ``LoopbackFile`` does the same with a regular file, which says where a loopback
socket listens (``loopback.py``).

Where systemd made the socket (``activation.py``), that one is used, and its file is
left as it is.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
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

# Clients that may wait for accept(); the kernel cuts it to net.core.somaxconn,
# 4096 on Linux since 5.4.
BACKLOG: Final = 4096

# How long others that start or end in the same directory are waited for, which take a
# millisecond each; and how often they are looked for.
LOCK_TIMEOUT_S: Final = 5.0
LOCK_INTERVAL_S: Final = 0.01

# A name beside the path.  It does not end in .ws: Apache would take it for one.
_BESIDE: Final = re.compile(r"\.apachews-[0-9a-f]{8}")

# How flock() says that a file system has no locks for a directory.
_CANNOT_LOCK: Final = frozenset(
    {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
)

_logger: Final = logging.getLogger("apachews")


class SocketFile:
    """A listening Unix socket and its file.

    Args:
        path: where the file is to be.
        mode: its permissions; connecting takes the right to write.
        group: name or number of the group it is given to, or None.
        exclusive: refuse to take a socket over on which somebody listens.

    Attributes:
        socket: listens, non-blocking.
        is_shared: other processes accept from the same socket.

    Raises:
        SocketInUse: with ``exclusive``, another producer listens there.
        NotASocket: something else lies there.
        ServerError: the path is too long for a socket.
        OSError, LookupError: the directory is missing or may not be written to;
            there is no such group.
    """

    def __init__(
        self, path: str, mode: int, group: str | int | None, exclusive: bool = False
    ) -> None:
        self.path = path
        self._place = os.path.abspath(path)  # also where the program goes elsewhere
        self._identity: object = None  # while it is to be removed from here
        self._bound: object = None
        self.is_shared = False
        self.socket = self._new_socket()
        if self.is_shared:
            return
        try:
            with _directory_of(path) as (directory_fd, is_alone):
                if is_alone:
                    _clear_left_overs(directory_fd)
                self._listen(directory_fd, mode, group, exclusive)
        except BaseException:
            self.socket.close()
            raise

    def _new_socket(self) -> socket.socket:
        if len(os.fsencode(self.path)) > MAX_PATH_BYTES:
            raise ServerError(
                self.path,
                f"the path is longer than the {MAX_PATH_BYTES} bytes that a Unix socket can have",
                'choose a shorter one, or transport="loopback"',
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
        # A name beside a path that just fits may not; this way it always does.
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
            identity = self._identify(beside)
            os.rename(beside, self.path)
        except BaseException as error:
            with suppress(FileNotFoundError):
                os.unlink(beside)
            if isinstance(error, OSError):
                error.filename = self.path
            raise
        self._identity = self._bound = identity
        if is_live:
            # A warning, because two producers started by mistake look the same.
            _logger.warning(
                "%s: taken over from another producer, which keeps the clients it has", self.path
            )

    def _make(self, beside: str, mode: int) -> None:
        """Bind the socket, and make its file."""
        os.fchmod(self.socket.fileno(), mode)
        self.socket.bind(beside)

    def _permit(self, beside: str, mode: int) -> None:
        """Set the file's permissions once more, without the umask."""
        os.chmod(beside, mode)

    def _fill(self, beside: str) -> None:
        """Write what is in the file; its permissions are in force."""

    def _identify(self, path: str) -> object:
        """Return what tells the file from others, those that will have its name included.

        Raises:
            OSError
        """
        status = os.lstat(path)
        return status.st_dev, status.st_ino

    def share(self) -> None:
        """Leave the file to somebody else: another process listens on the same socket."""
        self.is_shared = True
        self._identity = None

    def is_in_place(self) -> bool:
        """Tell whether who looks for the path finds this socket; systemd's always is."""
        if self._bound is None:
            return True
        try:
            return self._identify(self._place) == self._bound
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the file if it is still this one; the socket listens on."""
        identity, self._identity = self._identity, None
        if identity is None:
            return
        try:
            with _directory_of(self._place) as (_, is_alone):
                # (Not alone, it could be a successor's a moment later.)
                if is_alone and self._identify(self._place) == identity:
                    os.unlink(self._place)
        except FileNotFoundError:
            pass  # somebody has tidied up already
        except OSError as error:
            # The next to start replaces it.
            _logger.warning("%s: the socket file stays: %s", self.path, error.strerror)

    def close(self) -> None:
        """Stop listening, and remove the file if it is still this one."""
        self.remove()
        self.socket.close()


class LoopbackFile(SocketFile):
    """A listening loopback socket, and the file that says where; otherwise a ``SocketFile``.

    Args:
        mode: as ``SocketFile``; connecting takes the right to read.

    Attributes:
        token: what who connects must know.

    Raises:
        ValueError: the mode would show the token to everybody.
        ServerError: the file system does, whatever the mode.
    """

    def __init__(
        self, path: str, mode: int, group: str | int | None, exclusive: bool = False
    ) -> None:
        if mode & loopback.EVERYBODY:
            remedy = f"use {mode & ~loopback.EVERYBODY:#o}"
            raise ValueError(f"mode={mode:#o}: everybody could read the token; {remedy}")
        self.token = loopback.new_token()
        super().__init__(path, mode, group, exclusive)

    def _new_socket(self) -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def _make(self, beside: str, mode: int) -> None:
        self.socket.bind((loopback.HOST, 0))
        # Nobody else's yet: not even to be opened by the group that it has for now.
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _permit(self, beside: str, mode: int) -> None:
        # Where all files have the mode of their mount, this may do nothing, or be refused;
        # _fill() looks at what it came to.
        with suppress(PermissionError):
            super()._permit(beside, mode)

    def _fill(self, beside: str) -> None:
        address = loopback.Address(self.socket.getsockname()[1], self.token)
        with open(beside, "wb") as file:
            file.write(address.encode())
            file.flush()
            os.fsync(file.fileno())  # what a power cut leaves must be known again
            if os.fstat(file.fileno()).st_mode & loopback.EVERYBODY:
                raise ServerError(
                    self.path,
                    "everybody may read the files of this file system, and the token in them",
                    "mount it with umask=007 or what it calls that, or choose another directory",
                )

    def _identify(self, path: str) -> object:
        # Not by its inode, which many a mount gives anew each time it is asked.
        return loopback.read_file(path)[0]


@contextmanager
def _directory_of(path: str) -> Iterator[tuple[int, bool]]:
    """Open the directory of a file, and lock it.

    Yields:
        Its descriptor; and whether nobody else has the lock.  That is not waited for
        for ever: whoever may read the directory can have it.
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
            # (NFS locks nothing that is not open for writing, a directory that is.)
            if error.errno not in _CANNOT_LOCK:
                raise
            return True
        else:
            return True


def _clear_left_overs(directory_fd: int) -> None:
    for name in os.listdir(directory_fd):
        if _BESIDE.fullmatch(name):
            try:
                os.unlink(name, dir_fd=directory_fd)
            except OSError:
                pass  # another user's, in a directory like /tmp: in nobody's way


def _is_live(path: str) -> bool:
    """Return whether a producer listens on the socket file.

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
