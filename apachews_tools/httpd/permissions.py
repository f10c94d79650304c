"""Whether another user may read a file, or enter a directory, told by the modes.

Contract: ``Account`` is a user with his groups; ``obstacles(…)`` names the paths that
are in his way, and what would let him pass.  Reads modes only: access control lists and
SELinux are not looked at.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from .shell import word

READ, WRITE, ENTER = 4, 2, 1


@dataclass(frozen=True)
class Account:
    """A user as the kernel sees him."""

    name: str
    uid: int
    gids: frozenset[int]

    @classmethod
    def named(cls, name: str) -> Account:
        """Return the account of a name.

        Raises:
            KeyError: there is none.
        """
        entry = pwd.getpwnam(name)
        return cls(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))

    @classmethod
    def of_uid(cls, uid: int) -> Account:
        """Return the account of a number; one of no groups where it has no name."""
        try:
            return cls.named(pwd.getpwuid(uid).pw_name)
        except KeyError:
            return cls(str(uid), uid, frozenset())

    def may(self, status: os.stat_result, right: int) -> bool:
        """Tell whether the modes give him a right."""
        if self.uid == 0:
            return True
        if status.st_uid == self.uid:
            return bool(status.st_mode >> 6 & right)
        if status.st_gid in self.gids:
            return bool(status.st_mode >> 3 & right)
        return bool(status.st_mode & right)


@dataclass(frozen=True)
class Obstacle:
    """What is in somebody's way.

    Attributes:
        path: a directory that he may not enter, or the file itself.
        mode: its mode, as ``0700``.
        remedy: a command that lets it pass.
    """

    path: Path
    mode: str
    remedy: str


def obstacle(account: Account, path: Path, right: int = READ) -> Obstacle | None:
    """Return the outermost of the ``obstacles``, or None."""
    return next(iter(obstacles(account, path, right)), None)


def obstacles(account: Account, path: Path, right: int = READ) -> list[Obstacle]:
    """Return what keeps an account from a file, the outermost first.

    Args:
        account: whose rights.
        path: of the file or directory; links are followed.
        right: what it takes of the file itself: READ, WRITE, ENTER or a sum of them.

    Raises:
        OSError: the path does not exist, or who asks may not see it himself.
    """
    real = path.resolve(strict=True)
    found = []
    for directory in reversed(real.parents):
        status = directory.stat()
        if not account.may(status, ENTER):
            found.append(Obstacle(directory, _mode(status), f"chmod o+x {word(directory)}"))
    status = real.stat()
    letters = "".join(
        letter
        for bit, letter in ((READ, "r"), (WRITE, "w"), (ENTER, "x"))
        if right & bit and not account.may(status, bit)
    )
    if letters:
        found.append(Obstacle(real, _mode(status), f"chmod o+{letters} {word(real)}"))
    return found


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
