"""Symbolic links on the way to a socket file, and whose they are.

Contract: ``foreign_link(path, directories)`` returns the link because of which the handler
refuses a path.  It follows the handler's rule, and not its care: files may change meanwhile.

Sources: apachews_handler/endpoints/endpoint_access.py, whose rule this is; path_resolution(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

# As the kernel.
MAX_LINKS: Final = 40
_ROOT: Final = 0


def foreign_link(path: str, directories: Sequence[str]) -> Path | None:
    """Return a link that neither root nor the owner of the file has made; None without one.

    Args:
        path: absolute, of an existing file.
        directories: those whose files any link may lead to.

    Raises:
        OSError
    """
    real = Path(path).resolve()
    if any(Path(directory).resolve() in real.parents for directory in directories):
        return None
    allowed = (_ROOT, real.stat().st_uid)
    return next((link for link in _links(path) if link.lstat().st_uid not in allowed), None)


def _links(path: str) -> Iterator[Path]:
    """Yield the symbolic links on the way to a file."""
    parts, at, count = Path(path).parts[::-1], Path("/"), 0
    pending = list(parts)
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
