"""Symbolic links on the way to a socket file: their owners, and how long the way is.

Contract: ``foreign_link`` returns the link because of which the handler refuses a path, and
``components`` how many components the handler visits, of at most ``MAX_COMPONENTS``.  Both
follow the handler's rules, but without its protection against concurrent changes.

Sources: apachews_handler/endpoints/endpoint_access.py, which has the rules;
path_resolution(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

# The kernel's limit.
MAX_LINKS: Final = 40
# The handler's limit for a path with links, MAX_STEPS there.
MAX_COMPONENTS: Final = 64
_ROOT: Final = 0


def foreign_link(path: str, directories: Sequence[str]) -> Path | None:
    """Return a link whose owner is neither root nor the owner of the file, None without one.

    Args:
        path: absolute, of an existing file.
        directories: links to files in these may have any owner.

    Raises:
        OSError: a component does not exist, or is not accessible.
    """
    real = Path(path).resolve()
    if any(Path(directory).resolve() in real.parents for directory in directories):
        return None
    allowed = (_ROOT, real.stat().st_uid)
    return next((link for link in _links(path) if link.lstat().st_uid not in allowed), None)


def components(path: str) -> int:
    """Return the number of components of a path and of all links' targets; 0 without links.

    Args:
        path: absolute, of an existing file.

    Raises:
        OSError: a component is not accessible.
    """
    targets = [os.readlink(link) for link in _links(path)]
    # As the handler counts: what stands before the leading slash, and between two, is one.
    return sum(text.count("/") + 1 for text in (path, *targets)) if targets else 0


def _links(path: str) -> Iterator[Path]:
    """Yield the symbolic links on the way to a file, in order."""
    pending, at, count = list(Path(path).parts[::-1]), Path("/"), 0
    while pending and count < MAX_LINKS:
        part = pending.pop()
        if part == "..":
            at = at.parent
            continue
        step = at / part
        if not step.is_symlink():
            at = step
            continue
        yield step
        count += 1
        target = os.readlink(step)
        pending += Path(target).parts[::-1]
        if os.path.isabs(target):
            at = Path("/")
