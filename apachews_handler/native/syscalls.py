"""System calls that keep the GIL, because passing it on takes longer than the calls.

Contract: a function does the same as its namesake in ``os`` or ``socket``, raises an OSError
with the same errno, and does not block.  For any thread.

How this works: Python releases the GIL around every system call.  In a busy child another
worker takes it, and the caller queues for it again: two thread switches for one or two
microseconds in the kernel.  With sixteen clients that connect at once, a third of a child's
time went into these switches (perf, with bench/run --profile --case handshakes).
``ctypes.PyDLL`` does not release the GIL.

Roads not taken: C.  It would have as many lines, and would need a compiler at installation.

Sources: fcntl(2), dup(2), unix(7), open(2), openat2(2), readlink(2), statx(2), proc(5), eventfd(2),
getrandom(2), signalfd(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterable
from ctypes import (
    byref,
    c_char_p,
    c_int,
    c_long,
    c_size_t,
    c_ssize_t,
    c_uint,
    c_uint64,
    c_ulong,
    c_void_p,
)
from fcntl import F_DUPFD_CLOEXEC, F_GETFL, F_OFD_SETLK, F_SETFL
from typing import Any, Final

_FAMILY: Final = struct.Struct("H")  # sun_family, of struct sockaddr_un
# PATH_MAX, linux/limits.h: the longest path that the kernel returns.
_MAX_REAL_PATH_BYTES: Final = 4096
# readlinkat(2), with an empty path.
_NOT_A_LINK: Final = frozenset({errno.EINVAL, errno.ENOENT})
# linux/stat.h: struct statx, which has one layout on all architectures; fcntl.h.
_STATX_BYTES: Final = 256
_STATX_UID: Final = 0x8
_UID: Final = slice(20, 24)
_AT_EMPTY_PATH: Final = 0x1000
_AT_FDCWD: Final = -100  # fcntl.h
# openat2(2), Linux 5.6; one number on all architectures that Debian supports.
_OPENAT2: Final = 437
_OPEN_HOW: Final = struct.Struct("QQQ")  # flags, mode, resolve: struct open_how
_RESOLVE_NO_SYMLINKS: Final = 0x4
# errno if a path has a link, if the kernel lacks openat2, and if a container forbids it.
_NO_DIRECT_WAY: Final = frozenset({errno.ELOOP, errno.ENOSYS, errno.EPERM})
_STREAM: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
# struct sockaddr_in and sockaddr_in6, ip(7) and ipv6(7): family, then port and address in the
# network's byte order.
_IPV4: Final = struct.Struct("H2s4s8x")
_IPV6: Final = struct.Struct("H2s4x16sI")
_MAX_SOCKADDR_BYTES: Final = 128

# signalfd(2): struct signalfd_siginfo.
SIGNALFD_BYTES: Final = 128
# The kernel has 64 signals of one bit each; sigset_t is larger in both C libraries.
_SIGSET_BYTES: Final = 128
_PR_SET_THP_DISABLE: Final = 41

_libc: Final = ctypes.PyDLL(None, use_errno=True)


def _sigset(numbers: Iterable[int]) -> bytes:
    """Return the sigset_t, of glibc and musl, of some signals: bit n - 1 for signal n."""
    mask = bytearray(_SIGSET_BYTES)
    for number in numbers:
        mask[(number - 1) // 8] |= 1 << (number - 1) % 8
    return bytes(mask)


_ALL_SIGNALS: Final = _sigset(signal.valid_signals())


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = _libc[name]  # a new object; the attribute of that name is shared
    function.restype, function.argtypes = result, arguments
    return function


_fcntl: Final = _function("fcntl", c_int, c_int, c_int, c_int)
# With glibc on 32 bits, fcntl expects a struct flock of 32-bit offsets.  musl has only one.
_FCNTL_64: Final = "fcntl64" if hasattr(_libc, "fcntl64") else "fcntl"
_fcntl_lock: Final = _function(_FCNTL_64, c_int, c_int, c_int, c_char_p)
_dup3: Final = _function("dup3", c_int, c_int, c_int, c_int)
_socket: Final = _function("socket", c_int, c_int, c_int, c_int)
_connect: Final = _function("connect", c_int, c_int, c_char_p, c_uint)
_getpeername: Final = _function("getpeername", c_int, c_int, c_void_p, c_void_p)
_getsockopt: Final = _function("getsockopt", c_int, c_int, c_int, c_int, c_void_p, c_void_p)
_send: Final = _function("send", c_ssize_t, c_int, c_char_p, c_size_t, c_int)
_recv: Final = _function("recv", c_ssize_t, c_int, c_void_p, c_size_t, c_int)
_pthread_sigmask: Final = _function("pthread_sigmask", c_int, c_int, c_void_p, c_void_p)
_eventfd_write: Final = _function("eventfd_write", c_int, c_int, c_uint64)
_open: Final = _function("open", c_int, c_char_p, c_int)
_SYSCALL_ARGUMENTS: Final = (c_ulong, c_int, c_char_p, c_char_p, c_size_t)
_syscall: Final = _function("syscall", c_long, *_SYSCALL_ARGUMENTS)
_close: Final = _function("close", c_int, c_int)
_openat: Final = _function("openat", c_int, c_int, c_char_p, c_int)
_readlink: Final = _function("readlink", c_ssize_t, c_char_p, c_void_p, c_size_t)
_readlinkat: Final = _function("readlinkat", c_ssize_t, c_int, c_char_p, c_void_p, c_size_t)
_statx: Final = _function("statx", c_int, c_int, c_char_p, c_int, c_uint, c_void_p)
_signalfd: Final = _function("signalfd", c_int, c_int, c_void_p, c_int)
_prctl: Final = _function("prctl", c_int, c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_getrandom: Final = _function("getrandom", c_ssize_t, c_void_p, c_size_t, c_uint)
# The only call of this module that releases the GIL (``open_direct``).
_patient_syscall: Final = ctypes.CDLL(None, use_errno=True)["syscall"]
_patient_syscall.restype, _patient_syscall.argtypes = c_long, _SYSCALL_ARGUMENTS


def dup(fd: int) -> int:
    """Return a duplicate of a descriptor, with close-on-exec."""
    return _checked(_fcntl(fd, F_DUPFD_CLOEXEC, 0))


def set_nonblocking(fd: int) -> None:
    """Set a descriptor, and with it its duplicates, to non-blocking."""
    flags = _checked(_fcntl(fd, F_GETFL, 0))
    if not flags & os.O_NONBLOCK:
        _checked(_fcntl(fd, F_SETFL, flags | os.O_NONBLOCK))


def set_lock(fd: int, lock: bytes) -> None:
    """Set or release a lock of an open file description, without waiting for it.

    Args:
        lock: a struct flock.
    """
    _checked(_fcntl_lock(fd, F_OFD_SETLK, lock))


def dup2(fd: int, other: int) -> None:
    """Replace a descriptor by a duplicate of another, with close-on-exec.

    Args:
        other: is closed, so it must not be the last descriptor of a connection, whose close
            can block.
    """
    _checked(_dup3(fd, other, os.O_CLOEXEC))


def connect(path: str) -> socket.socket:
    """Return a non-blocking socket, connected to a Unix socket; the caller closes it.

    Args:
        path: of a file that was looked up just before, by a call that releases the GIL: if
            its file system hangs, that call hangs and not this one.

    Raises:
        OSError: a process does not listen on it, or, BlockingIOError, its backlog is full,
            among others.
    """
    data = os.fsencode(path)
    # An empty path and a leading NUL would name other kinds of sockets (unix(7)).  The kernel
    # rejects a path that is too long, with EINVAL; callers pass a path of /proc/self/fd.
    if not data or b"\0" in data:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    address = _FAMILY.pack(socket.AF_UNIX) + data + b"\0"
    sock, error = _start(socket.AF_UNIX, 0, address)
    if error:
        sock.close()
        raise OSError(error, os.strerror(error))
    return sock


def connect_tcp(host: str, port: int) -> tuple[socket.socket, int]:
    """Return a non-blocking TCP socket and the error of its connect(2); the caller closes it.

    Args:
        host: an IPv4 or IPv6 address, the latter with or without a zone.

    Returns:
        The error is 0 if the socket is connected, EINPROGRESS if the peer has not answered yet.

    Raises:
        OSError: a descriptor is not available, or the zone does not exist.
    """
    port_bytes = port.to_bytes(2, "big")
    if ":" not in host:
        data = socket.inet_pton(socket.AF_INET, host)
        name = _IPV4.pack(socket.AF_INET, port_bytes, data)
        sock, error = _start(socket.AF_INET, socket.IPPROTO_TCP, name)
    else:
        address, _, zone = host.partition("%")
        data = socket.inet_pton(socket.AF_INET6, address)
        scope = 0
        if zone:
            scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
        name = _IPV6.pack(socket.AF_INET6, port_bytes, data, scope)
        sock, error = _start(socket.AF_INET6, socket.IPPROTO_TCP, name)
    if error == errno.EINPROGRESS and is_connected(sock.fileno()):
        error = 0  # a peer on this machine has answered during the call
    return sock, error


def _start(family: int, protocol: int, address: bytes) -> tuple[socket.socket, int]:
    """Return a socket and the errno of its connect(2), 0 if it is connected."""
    fd = _checked(_socket(family, _STREAM, protocol))
    try:
        error = ctypes.get_errno() if _connect(fd, address, len(address)) else 0
        # (With all four arguments Python does not query the kernel for them.)
        return socket.socket(family, _STREAM, protocol, fd), error
    except BaseException:
        os.close(fd)
        raise


def is_connected(fd: int) -> bool:
    """Tell whether a socket has a peer: it is connected, and not only about to be."""
    name = ctypes.create_string_buffer(_MAX_SOCKADDR_BYTES)
    return bool(_getpeername(fd, name, byref(c_uint(_MAX_SOCKADDR_BYTES))) == 0)


def getsockopt(fd: int, level: int, name: int, size: int) -> bytes:
    """Return the value of a socket's option, at most ``size`` bytes."""
    value, length = ctypes.create_string_buffer(size), c_uint(size)
    _checked(_getsockopt(fd, level, name, value, byref(length)))
    return value.raw[: length.value]


def send(fd: int, data: bytes) -> int:
    """Send some bytes to a non-blocking socket; return how many.

    Raises:
        OSError: BlockingIOError if the socket has no room, among others.
    """
    return _checked(_send(fd, data, len(data), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT))


def recv(fd: int, size: int) -> bytes:
    """Return received bytes, b"" after the end of file.

    Raises:
        OSError: BlockingIOError if there are no bytes yet, among others.
    """
    data = ctypes.create_string_buffer(size)
    return ctypes.string_at(data, _checked(_recv(fd, data, size, socket.MSG_DONTWAIT)))


def block_signals() -> bytes:
    """Block all signals on this thread; return the mask before, for ``restore_signals``."""
    mask = ctypes.create_string_buffer(_SIGSET_BYTES)
    _pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS, mask)
    return mask.raw


def restore_signals(mask: bytes) -> None:
    """Set the signal mask of this thread; pending signals are delivered."""
    _pthread_sigmask(signal.SIG_SETMASK, mask, None)


def open_direct(path: bytes, *, keeps_gil: bool) -> int | None:
    """Return a descriptor that names a file without opening it (O_PATH), without links.

    The cost is bounded: with links the kernel would resolve up to 40 times 4096 bytes of
    path, which takes 5 ms.

    Args:
        path: absolute.
        keeps_gil: False for a path that was not looked up just before: if its file system
            hangs, the other threads of the process continue.

    Returns:
        None if the path has a link, or if the kernel does not support the check.
    """
    if b"\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)
    call = _syscall if keeps_gil else _patient_syscall
    fd: int = call(_OPENAT2, _AT_FDCWD, path, how, len(how))
    if fd < 0 and ctypes.get_errno() in _NO_DIRECT_WAY:
        return None
    return _checked(fd)


def open_root() -> int:
    """Return a descriptor of the root directory, like that of ``open_direct``."""
    return _checked(_open(b"/", os.O_PATH | os.O_CLOEXEC))


def open_entry(directory: int, name: bytes) -> int:
    """Return a descriptor like that of ``open_direct``, of a directory's entry.

    Args:
        name: of the entry; if it is a symbolic link, the descriptor names the link itself.
    """
    return _checked(_openat(directory, name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))


def target_of(fd: int) -> bytes | None:
    """Return the target of the symbolic link that a descriptor names; None for other files."""
    buffer = ctypes.create_string_buffer(_MAX_REAL_PATH_BYTES)
    length = _readlinkat(fd, b"", buffer, _MAX_REAL_PATH_BYTES)
    if length < 0 and ctypes.get_errno() in _NOT_A_LINK:
        return None
    return ctypes.string_at(buffer, _checked(length))


def owner_of(fd: int) -> int:
    """Return the user id of the owner of the file that a descriptor names."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    _checked(_statx(fd, b"", _AT_EMPTY_PATH, _STATX_UID, buffer))
    return int.from_bytes(buffer.raw[_UID], sys.byteorder)


def close_path(fd: int) -> None:
    """Close a descriptor of O_PATH, which cannot block."""
    _checked(_close(fd))


def path_of(fd: int) -> bytes:
    """Return the path of the file that a descriptor names, without symbolic links.

    Raises:
        OSError: /proc is not mounted.
    """
    buffer = ctypes.create_string_buffer(_MAX_REAL_PATH_BYTES)
    length = _checked(_readlink(b"/proc/self/fd/%d" % fd, buffer, _MAX_REAL_PATH_BYTES))
    return ctypes.string_at(buffer, length)


def eventfd_write(fd: int, value: int) -> None:
    """Add a value to a non-blocking eventfd."""
    _checked(_eventfd_write(fd, value))


def urandom(size: int) -> bytes:
    """Return up to 256 random bytes, suitable for cryptography."""
    data = ctypes.create_string_buffer(size)
    if _getrandom(data, size, os.GRND_NONBLOCK) != size:
        return os.urandom(size)  # shortly after boot getrandom would block
    return data.raw


def signalfd(numbers: Iterable[int]) -> int:
    """Return a non-blocking descriptor that is readable while one of some signals is pending.

    Args:
        numbers: of blocked signals.  A read of ``SIGNALFD_BYTES`` consumes one signal; the
            first 4 bytes are its number.
    """
    flags = os.O_NONBLOCK | os.O_CLOEXEC  # SFD_NONBLOCK and SFD_CLOEXEC have their values
    return _checked(_signalfd(-1, _sigset(numbers), flags))


def forbid_huge_pages() -> None:
    """Disable huge pages for this process (prctl(2), PR_SET_THP_DISABLE)."""
    _prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)  # an error means that the kernel does not have them


def trim_memory() -> None:
    """Return free memory of the C library to the kernel (malloc_trim(3)); not with musl."""
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
