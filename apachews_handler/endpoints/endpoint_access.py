"""Which socket files the author of an .htaccess file may serve, if symbolic links lead to them.

Contract: ``opened(path, directories)`` is a context manager that gives a name of the file,
below /proc/self/fd, and keeps it valid; the name refers to that very file even if the path
changes meanwhile.  For any thread, the bridge's too: it waits for file systems only.

How this works: Apache's user may connect to many sockets of a host: other sites' producers,
PHP-FPM, databases.  A symbolic link in a document root must not give these rights to its
author, so a path with links is accepted only if each link belongs to root or to the owner of
the file that it leads to, or if the file lies in a directory that the server's configuration
names.  (httpd's own SymLinksIfOwnerMatch does not help: with it httpd rejects socket files.)

The file is opened with O_PATH by a call that follows no link (openat2), and the kernel tells
the descriptor's real path.  If that equals the requested path, the path has no link: three
system calls in all.  Otherwise the path is walked: each component is opened
relative to the descriptor of the component before it, without following a link, and the
components of a link's target are walked next.  So every link is checked, even if files are
renamed meanwhile, and the bridge connects to the descriptor at the end.  fs.protected_hardlinks,
which Linux enables by default, prevents the same attack by hard links.

A walk costs the author of the links nothing, and all clients of the child wait for it if the
bridge walks.  So a walk has a budget of steps.  The kernel's limit of 40 links is not a useful
bound: a target may have 2,000 components.

Sources: path_resolution(7), symlink(7), open(2) (O_PATH), openat2(2), proc(5) (/proc/pid/fd).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from apachews.monitoring import refusals
from apachews_handler.exceptions import Refusal
from apachews_handler.native import syscalls

# Components of one walk, including those of the links' targets: a path of ten components with
# three links has fewer.  The walk makes at most about 400 system calls, 0.5 ms.
MAX_STEPS: Final = 64
_ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class _Link:
    """A symbolic link of the path: its own path, and the user id of its owner."""

    path: bytes
    owner: int


@contextmanager
def opened(path: str, directories: tuple[str, ...], *, keeps_gil: bool = True) -> Iterator[str]:
    """Give a name of the file that a path leads to.

    Args:
        path: absolute.
        directories: those whose files any link may lead to; bytes as ISO 8859-1, as WSGI has them.
        keeps_gil: False for a path that was not looked up just before.

    Raises:
        Refusal: 403, a link is not allowed to lead there; 500, the walk has more than
            ``MAX_STEPS``, or /proc is missing.
        OSError: as open(2).
    """
    data = os.fsencode(path)
    fd = syscalls.open_direct(data, keeps_gil=keeps_gil)
    try:
        if fd is None or _real_path(fd) != data:
            if fd is not None:
                syscalls.close_path(fd)
                fd = None
            fd = _open_checked(data, directories)
        yield f"/proc/self/fd/{fd}"
    finally:
        if fd is not None:
            syscalls.close_path(fd)


def _open_checked(path: bytes, directories: tuple[str, ...]) -> int:
    """Open a path that has links; return the descriptor, which the caller closes.

    Raises:
        Refusal, OSError: as ``opened``.
    """
    links: list[_Link] = []
    try:
        fd = _walk(path, links)
    except OSError as error:
        # The budget's: no call of the walk follows a link, so the kernel does not count links.
        if error.errno != errno.ELOOP:
            raise
        fact = (
            f"too many symbolic links on the way to {os.fsdecode(path)!r}: the path and the"
            f" targets of its links may have {MAX_STEPS} components"
        )
        raise Refusal(refusals.TOO_MANY_LINKS, fact) from error
    try:
        owner = syscalls.owner_of(fd)
        foreign = next((link for link in links if link.owner not in (_ROOT, owner)), None)
        if foreign is not None:
            _require_open_directory(foreign, _real_path(fd), owner, directories)
    except BaseException:
        syscalls.close_path(fd)
        raise
    return fd


def _walk(path: bytes, links: list[_Link]) -> int:
    """Open a path, and record every link of it.

    Args:
        path: absolute.
        links: receives the links, in order.

    Returns:
        The descriptor, which the caller closes.

    Raises:
        OSError
    """
    pending: list[bytes] = []
    left = _push(path, pending, MAX_STEPS)
    directory = syscalls.open_root()
    try:
        while pending:
            name = pending.pop()
            entry = syscalls.open_entry(directory, name or b".")
            try:
                target = syscalls.target_of(entry)
                if target is not None:
                    place = os.path.join(_real_path(directory), name)
                    links.append(_Link(place, syscalls.owner_of(entry)))
            except BaseException:
                syscalls.close_path(entry)
                raise
            if target is None:
                directory = _replace(directory, entry)
                continue
            syscalls.close_path(entry)
            left = _push(target, pending, left)
            if target.startswith(b"/"):
                directory = _replace(directory, syscalls.open_root())
    except BaseException:
        syscalls.close_path(directory)
        raise
    return directory


def _push(path: bytes, pending: list[bytes], left: int) -> int:
    """Put the components of a path before those that are pending.

    Args:
        pending: the next component is the last of the list.
        left: steps that the walk may still take.

    Returns:
        The steps that remain.

    Raises:
        OSError: ELOOP, the path has more components.
    """
    # Counted before the path is split, and with empty components: a target may be 4095 slashes.
    left -= path.count(b"/") + 1
    if left < 0:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    pending.extend(reversed(path.split(b"/")))
    return left


def _replace(directory: int, fd: int) -> int:
    """Close a directory's descriptor; return the next one."""
    syscalls.close_path(directory)
    return fd


def _require_open_directory(
    link: _Link, real: bytes, owner: int, directories: tuple[str, ...]
) -> None:
    """Refuse a link to a file outside the directories to which any link may lead.

    Raises:
        Refusal
    """
    for directory in directories:
        base = os.path.realpath(directory.encode("latin-1")).rstrip(b"/") + b"/"
        if real.startswith(base):
            return
    raise _not_allowed(link, real, owner)


def _real_path(fd: int) -> bytes:
    try:
        return syscalls.path_of(fd)
    except OSError as error:
        fact = f"/proc/self/fd cannot be read ({error.strerror})"
        raise Refusal(refusals.NO_PROC, fact) from error


def _not_allowed(link: _Link, real: bytes, owner: int) -> Refusal:
    where, file = os.fsdecode(link.path), os.fsdecode(real)
    return Refusal(
        refusals.FOREIGN_LINK,
        f"the symbolic link {where!r} of user {_name(link.owner)} leads to {file!r} of user"
        f" {_name(owner)}; to let any link lead there: Define APACHEWS_ENDPOINT_DIRECTORIES"
        f" {os.path.dirname(file)}",
    )


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
