"""Which socket files the author of an .htaccess file may serve: links end at the site's edge.

Contract: ``opened(path, directories)`` is a context manager that gives a name of the file,
below /proc/self/fd, and keeps it valid; the name stands for that very file, whatever becomes
of the path meanwhile.  For any thread, and for the bridge's: it waits for file systems only.

How this works: Apache's user may connect to many sockets of a host: other sites' producers,
PHP-FPM, databases.  A symbolic link in a document root must not lend these rights to its
author, so a path with links counts only if each link is root's or of the owner of the
file that it leads to, or if the file lies in a directory that the server's configuration
names.  (httpd's own SymLinksIfOwnerMatch does not do: with it httpd serves no socket file.)

The file is opened with O_PATH, and the kernel tells the descriptor's real path.  If that is
the path that was asked for, there was no link on the way: three system calls in all.
Otherwise the path is followed again by hand: the directory is opened in the same way, the
entry in it without following a link, and where it is one, its owner is noted and its target
is the next path.  So no link is followed unseen, whatever is renamed meanwhile, and the
descriptor at the end is the one that is connected to.  Hard links are for
fs.protected_hardlinks to prevent, which Linux has on.

Sources: path_resolution(7), symlink(7), open(2) (O_PATH), proc(5) (/proc/pid/fd).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from . import short_calls
from .exceptions import NotSetUp, Refusal

# path_resolution(7): the kernel follows as many.
MAX_LINKS: Final = 40
# Directories below a link, and links: far from Python's own limit of recursion, for on the
# bridge's thread a RecursionError would end all WebSockets of the child.
MAX_DEPTH: Final = 200
_ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class _Link:
    """A symbolic link on the way: its path, and the number of its owner."""

    path: bytes
    owner: int


@contextmanager
def opened(path: str, directories: tuple[str, ...]) -> Iterator[str]:
    """Give a name of the file that a path leads to.

    Args:
        path: absolute.
        directories: those whose files any link may lead to; as WSGI has them.

    Raises:
        Refusal: 403, a link is not allowed to lead there; 500, /proc is missing.
        OSError: as open(2).
    """
    data = os.fsencode(path)
    fd = short_calls.open_path(data)
    try:
        if _real_path(fd) != data:
            short_calls.close_path(fd)
            fd = -1
            fd = _open_checked(data, directories)
        yield f"/proc/self/fd/{fd}"
    finally:
        if fd >= 0:
            short_calls.close_path(fd)


def _open_checked(path: bytes, directories: tuple[str, ...]) -> int:
    """Open a path that has links; return the descriptor, which the caller closes.

    Raises:
        Refusal, OSError: as ``opened``.
    """
    links: list[_Link] = []
    fd = _follow(path, links)
    try:
        owner = short_calls.owner_of(fd)
        for link in links:
            if link.owner not in (_ROOT, owner):
                _require_open_directory(link, _real_path(fd), owner, directories)
    except BaseException:
        short_calls.close_path(fd)
        raise
    return fd


def _follow(path: bytes, links: list[_Link], depth: int = 0) -> int:
    """Open a path so that every link on the way is known.

    Args:
        path: absolute.
        links: those so far; more are added.

    Returns:
        The descriptor, which the caller closes.

    Raises:
        OSError
    """
    if depth > MAX_DEPTH or len(links) > MAX_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    parent, _, name = path.rpartition(b"/")
    directory = parent or b"/"
    fd = short_calls.open_path(directory)
    try:
        if _real_path(fd) != directory:
            short_calls.close_path(fd)
            fd = -1
            fd = _follow(directory, links, depth + 1)
            directory = _real_path(fd)
        entry = short_calls.open_entry(fd, name or b".")
        try:
            target = short_calls.target_of(entry)
            if target is not None:
                links.append(_Link(os.path.join(directory, name), short_calls.owner_of(entry)))
        except BaseException:
            short_calls.close_path(entry)
            raise
        if target is None:
            return entry
        short_calls.close_path(entry)
    finally:
        if fd >= 0:
            short_calls.close_path(fd)
    return _follow(os.path.join(directory, target), links, depth + 1)


def _require_open_directory(
    link: _Link, real: bytes, owner: int, directories: tuple[str, ...]
) -> None:
    """Refuse a link that leads out of the directories to which any link may lead.

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
        return short_calls.path_of(fd)
    except OSError as error:
        raise NotSetUp(
            f"/proc/self/fd cannot be read ({error.strerror}): mount /proc where Apache's"
            " children run (inside ChrootDir, or the container)"
        ) from error


def _not_allowed(link: _Link, real: bytes, owner: int) -> Refusal:
    where, file = os.fsdecode(link.path), os.fsdecode(real)
    return Refusal(
        "403 Forbidden",
        "There is no WebSocket here.",
        f"the symbolic link {where!r} of user {_name(link.owner)} leads to {file!r} of user"
        f" {_name(owner)}: if that site is to reach it, make the link as root, or as"
        f" {_name(owner)}; or let all sites use the directory, by Define"
        f" APACHEWS_ENDPOINT_DIRECTORIES {os.path.dirname(file)} in the server's configuration",
    )


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
