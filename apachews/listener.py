"""The socket file: making it, and taking it away again.

Contract: ``SocketFile(path, …)`` listens or raises; ``close`` is idempotent and
removes the file only where it is still the one made here.  The caller reads
from ``socket`` and must not close it.

How this works: a file left by a producer that died is told from a live one by
connecting to it: only the kernel knows whether anybody listens.  Between bind and
listen nobody does, so that the directory is locked meanwhile, or of two producers
that start at once the second would take the first one's file for a dead one.  The
permissions are set on the socket before ``bind`` makes the file, so that there is
no moment at which it is open to more than it should be.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import stat
from typing import Final

from .exceptions import NotASocket, ServerError, SocketInUse

# sockaddr_un.sun_path, less the final NUL.
MAX_PATH_BYTES: Final = 107
# Clients that may wait for accept(); the kernel cuts it to net.core.somaxconn,
# 4096 on Linux since 5.4.
BACKLOG: Final = 4096


class SocketFile:
    """A listening Unix socket and its file.

    Args:
        path: where the file is to be.
        mode: its permissions; connecting takes the right to write.
        group: name or number of the group it is given to, or None.

    Raises:
        SocketInUse: another producer listens there.
        NotASocket: something else lies there.
        ServerError: the path is too long for a socket.
        OSError, LookupError: the directory is missing or may not be written to;
            there is no such group.
    """

    def __init__(self, path: str, mode: int, group: str | int | None) -> None:
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ServerError(
                path,
                f"the path is longer than the {MAX_PATH_BYTES} bytes that a Unix socket can have",
                "choose a shorter one",
            )
        self.path = path
        self._identity: tuple[int, int] | None = None
        lock = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _remove_stale(path)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                self._listen(mode, group)
            except BaseException:
                self.close()
                raise
        finally:
            os.close(lock)

    def _listen(self, mode: int, group: str | int | None) -> None:
        os.fchmod(self.socket.fileno(), mode)
        self._bind()
        if group is not None:
            shutil.chown(self.path, group=group)
        os.chmod(self.path, mode)  # once more, without the umask
        self.socket.listen(BACKLOG)

    def _bind(self) -> None:
        try:
            self.socket.bind(self.path)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # somebody was faster
                raise SocketInUse(self.path) from error
            error.filename = self.path
            raise
        status = os.stat(self.path)
        self._identity = status.st_dev, status.st_ino

    def close(self) -> None:
        """Stop listening, and remove the file if it is still this one."""
        self.socket.close()
        identity, self._identity = self._identity, None
        if identity is None:
            return
        try:
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == identity:
                os.unlink(self.path)
        except FileNotFoundError:
            pass  # somebody has tidied up already


def _remove_stale(path: str) -> None:
    """Remove a socket file on which nobody listens.

    Raises:
        SocketInUse, NotASocket, OSError
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise NotASocket(path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: very much alive
        except OSError as error:
            error.filename = path
            raise
    raise SocketInUse(path)
