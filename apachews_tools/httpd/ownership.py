"""Who can change a file that Apache reads as root, before it gives root's rights up.

Contract: ``weakness(path)`` names the file, link or directory by which somebody else than
root decides what is read at a path, or returns None.  ``read_as_root(…)`` are the files
in question.  Reads owners and modes only: access control lists are not looked at.
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
    """Where somebody else than root may write.

    Attributes:
        path: a directory on the way, a link, or the file itself.
        why: as ``belongs to ann``, or ``has mode 0777``.
    """

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path} {self.why}"


def weakness(path: Path, trusted: frozenset[int] = _ROOT) -> Weakness | None:
    """Return the outermost place by which others decide what a path has in it.

    In a directory with the sticky bit, as /tmp, nobody can replace what is another's: it
    counts for nothing, for what is below has to be root's as well.

    Args:
        path: absolute; each link on the way is looked at, and followed.
        trusted: numbers of the users who may write.

    Raises:
        OSError: the path does not exist, or goes in circles.
    """
    path.resolve(strict=True)  # no circles
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
            # A link's own directory is where a relative one begins.
            here = Path("/") if target.is_absolute() else here.parent
            names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
    return None


def _weakness_of(path: Path, trusted: frozenset[int]) -> Weakness | None:
    status = path.lstat()
    if status.st_uid not in trusted:
        return Weakness(path, f"belongs to {_name(status.st_uid)}")
    if stat.S_ISLNK(status.st_mode):
        return None  # its mode means nothing
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
        return f"the user {uid}"


def read_as_root(environment: PythonEnvironment, module: Path) -> list[Path]:
    """Return what Apache's first process reads or runs for apachews, with root's rights.

    The rest of the environment is for its children: these are Apache's user.
    """
    # mod_wsgi may be linked to it.
    library = f"libpython{version_text(environment.version)}*.so*"
    return [
        environment.shipped,
        module.absolute(),
        *sorted((environment.base_prefix / "lib").glob(library)),
    ]
