"""System calls that keep the GIL, because handing it over takes longer than they do.

Contract: each does what its namesake in ``os`` or ``socket`` does, raises an OSError with the
same errno, and waits for nobody.  For any thread.

How this works: Python lets go of the GIL around every system call.  Where others want it,
as the workers of a busy child of Apache do, one of them gets it, and whoever made the call
stands in line again: two switches of threads for a microsecond or two in the kernel.  With
sixteen clients that connect at once a third of a child's time went into that (perf, with
bench/run --profile --case handshakes).  ``ctypes.PyDLL`` lets go of nothing.

In C these would be as many lines, and would need a compiler where apachews is installed.

Sources: fcntl(2), dup(2), unix(7), eventfd(2), getrandom(2), signalfd(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterable
from ctypes import c_char_p, c_int, c_size_t, c_ssize_t, c_uint, c_uint64, c_ulong, c_void_p
from fcntl import F_DUPFD_CLOEXEC, F_GETFL, F_SETFL
from typing import Any, Final

_FAMILY: Final = struct.Struct("H")  # sun_family, of struct sockaddr_un
# unix(7): sun_path has 108 bytes, the last of them 0.
MAX_PATH_BYTES: Final = 107
_UNIX_STREAM: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

# signalfd(2): struct signalfd_siginfo.
SIGNALFD_BYTES: Final = 128
# Of the kernel's 64 signals each has a bit; sigset_t is larger in both C libraries.
_SIGSET_BYTES: Final = 128
_PR_SET_THP_DISABLE: Final = 41

_libc: Final = ctypes.PyDLL(None, use_errno=True)


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = _libc[name]  # ours alone, unlike the attribute of that name
    function.restype, function.argtypes = result, arguments
    return function


_fcntl: Final = _function("fcntl", c_int, c_int, c_int, c_int)
_dup3: Final = _function("dup3", c_int, c_int, c_int, c_int)
_socket: Final = _function("socket", c_int, c_int, c_int, c_int)
_connect: Final = _function("connect", c_int, c_int, c_char_p, c_uint)
_eventfd_write: Final = _function("eventfd_write", c_int, c_int, c_uint64)
_signalfd: Final = _function("signalfd", c_int, c_int, c_void_p, c_int)
_prctl: Final = _function("prctl", c_int, c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_getrandom: Final = _function("getrandom", c_ssize_t, c_void_p, c_size_t, c_uint)


def dup(fd: int) -> int:
    """Return a duplicate of a descriptor, which no program that is started inherits."""
    return _checked(_fcntl(fd, F_DUPFD_CLOEXEC, 0))


def set_nonblocking(fd: int) -> None:
    """Have calls on a descriptor, and on its duplicates, not wait."""
    flags = _checked(_fcntl(fd, F_GETFL, 0))
    if not flags & os.O_NONBLOCK:
        _checked(_fcntl(fd, F_SETFL, flags | os.O_NONBLOCK))


def dup2(fd: int, other: int) -> None:
    """Put a duplicate of a descriptor in the place of another; it is not inherited either.

    Args:
        other: must not be the last descriptor of a connection: closing that may wait.
    """
    _checked(_dup3(fd, other, os.O_CLOEXEC))


def connect(path: str) -> socket.socket:
    """Return a non-blocking socket, connected to a Unix socket; the caller closes it.

    Args:
        path: of a file that was looked up just before: where its file system hangs, that
            did, and whoever called that let go of the GIL.

    Raises:
        OSError: nobody listens, or, BlockingIOError, its backlog is full, among others.
    """
    data = os.fsencode(path)
    if not data or b"\0" in data or len(data) > MAX_PATH_BYTES:
        number = errno.ENAMETOOLONG if len(data) > MAX_PATH_BYTES else errno.EINVAL
        raise OSError(number, os.strerror(number), path)
    fd = _checked(_socket(socket.AF_UNIX, _UNIX_STREAM, 0))
    try:
        address = _FAMILY.pack(socket.AF_UNIX) + data + b"\0"
        _checked(_connect(fd, address, len(address)))
        # (Told all of these it asks the kernel for none.)
        return socket.socket(socket.AF_UNIX, _UNIX_STREAM, 0, fd)
    except BaseException:
        os.close(fd)
        raise


def eventfd_write(fd: int, value: int) -> None:
    """Add to a non-blocking eventfd."""
    _checked(_eventfd_write(fd, value))


def urandom(size: int) -> bytes:
    """Return random bytes, for cryptography as well; 256 at most."""
    data = ctypes.create_string_buffer(size)
    if _getrandom(data, size, os.GRND_NONBLOCK) != size:
        return os.urandom(size)  # the machine has only just started
    return data.raw


def signalfd(numbers: Iterable[int]) -> int:
    """Return a non-blocking descriptor that is readable while one of some signals is pending.

    Args:
        numbers: of signals that are blocked.  A read of ``SIGNALFD_BYTES`` takes one of them,
            whose number stands first, 4 bytes.
    """
    mask = bytearray(_SIGSET_BYTES)  # sigset_t of glibc and musl: a bit for each, from 1
    for number in numbers:
        mask[(number - 1) // 8] |= 1 << (number - 1) % 8
    flags = os.O_NONBLOCK | os.O_CLOEXEC  # SFD_NONBLOCK and SFD_CLOEXEC have their values
    return _checked(_signalfd(-1, bytes(mask), flags))


def forbid_huge_pages() -> None:
    """Let no huge page stand for this process's memory (prctl(2), PR_SET_THP_DISABLE)."""
    _prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)  # without such pages there is nothing to forbid


def trim_memory() -> None:
    """Give the kernel back what the C library has free (malloc_trim(3)); not with musl."""
    try:
        trim = _function("malloc_trim", c_int, c_size_t)
    except AttributeError:
        return
    trim(0)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
