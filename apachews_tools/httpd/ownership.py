"""Who can change a file that Apache reads while it still runs as root.

Contract: ``weakness(path)`` returns the file, link or directory through which a user other
than root can change the content at a path, or None.  ``read_as_root(…)`` returns the files
to check.  Owners and modes count; access control lists are ignored.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .python_environment import PythonEnvironment, version_text

_ROOT: Final = frozenset({0})


@dataclass(frozen=True)
class Weakness:
    """A place where a user other than root may write.

    Attributes:
        path: a directory on the way, a link, or the file itself.
        why: for example ``belongs to ann`` or ``has mode 0777``.
    """

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path} {self.why}"


def weakness(path: Path, trusted: frozenset[int] = _ROOT) -> Weakness | None:
    """Return the outermost place through which other users can change the content at a path.

    A directory with the sticky bit, like /tmp, is safe: users cannot replace files of
    others in it, and the entry itself must belong to root.

    Args:
        path: absolute; each link on the way is checked and followed.
        trusted: user ids that may write.

    Raises:
        OSError: the path does not exist, or has a loop of links.
    """
    path.resolve(strict=True)  # raises if links form a loop
    here = Path("/")
    if found := _weakness_of(here, trusted):
        return found
    names = list(reversed(path.parts[1:]))
    while names:
        name = names.pop()
        if name == "..":
            here = here.parent
            continue
        here /= name
        if found := _weakness_of(here, trusted):
            return found
        if here.is_symlink():
            target = Path(os.readlink(here))
            # A relative target starts at the directory of the link.
            here = Path("/") if target.is_absolute() else here.parent
            names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
    return None


def _weakness_of(path: Path, trusted: frozenset[int]) -> Weakness | None:
    status = path.lstat()
    if status.st_uid not in trusted:
        return Weakness(path, f"belongs to {_name(status.st_uid)}")
    if stat.S_ISLNK(status.st_mode):
        return None  # the mode of a link has no effect
    is_shared = status.st_mode & stat.S_IWOTH or (
        status.st_mode & stat.S_IWGRP and status.st_gid != 0
    )
    is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if is_shared and not is_sticky:
        return Weakness(path, f"has mode {stat.S_IMODE(status.st_mode):04o}")
    return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def read_as_root(environment: PythonEnvironment, module: Path) -> list[Path]:
    """Return the files that Apache's parent process reads or runs for apachews, as root.

    Only its children, which run as Apache's user, read the rest of the environment.
    """
    # mod_wsgi may be linked with this library.
    library = f"libpython{version_text(environment.version)}*.so*"
    return [
        environment.shipped,
        module.absolute(),
        *sorted((environment.base_prefix / "lib").glob(library)),
    ]
