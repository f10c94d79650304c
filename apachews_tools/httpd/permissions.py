"""Whether another user may access a file or a directory, according to the modes.

Contract: ``Account`` is a user with its groups; ``obstacles(…)`` returns the paths that
deny the access, with remedies.  Access control lists and SELinux are ignored.
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
    """A user: name, id, and ids of the groups."""

    name: str
    uid: int
    gids: frozenset[int]

    @classmethod
    def named(cls, name: str) -> Account:
        """Return the account with a name.

        Raises:
            KeyError: the user does not exist.
        """
        entry = pwd.getpwnam(name)
        return cls(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))

    @classmethod
    def of_uid(cls, uid: int) -> Account:
        """Return the account with a user id; without groups if the id has no name."""
        try:
            return cls.named(pwd.getpwuid(uid).pw_name)
        except KeyError:
            return cls(str(uid), uid, frozenset())

    def may(self, status: os.stat_result, right: int) -> bool:
        """Tell whether the mode of a file grants a right, or all of several."""
        if self.uid == 0:
            return True
        mode = status.st_mode
        if status.st_uid == self.uid:
            mode >>= 6
        elif status.st_gid in self.gids:
            mode >>= 3
        return mode & right == right


@dataclass(frozen=True)
class Obstacle:
    """A path that denies an access.

    Attributes:
        path: a directory that the user may not enter, or the file itself.
        mode: for example ``0700``.
        remedy: a command that grants the access.
    """

    path: Path
    mode: str
    remedy: str


def obstacle(account: Account, path: Path, right: int = READ) -> Obstacle | None:
    """Return the outermost of the ``obstacles``, or None."""
    return next(iter(obstacles(account, path, right)), None)


def obstacles(account: Account, path: Path, right: int = READ) -> list[Obstacle]:
    """Return the paths that deny an account the access to a file, the outermost first.

    Args:
        account: the user.
        path: of the file or directory; links are followed.
        right: the access to the file itself: READ, WRITE, ENTER or a sum of them.

    Raises:
        OSError: the path does not exist, or is not accessible to this process.
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
