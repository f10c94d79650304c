"""Detects changes of a program's source.

Contract: call ``SourceWatch(program).changed()`` repeatedly, from one thread.  It reports
each change once, when the files have stayed the same since the previous call: an editor
that writes twice, or a checkout of many files, is one change.

How this works: it compares times and sizes of the program's file and of the Python modules
in and below its directory.  (inotify would need a foreign call, and misses changes on
network file systems.)
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

# Directories and modules, at most: a program in a home directory must not cause a scan of
# the whole home.  Scanning as many takes some milliseconds.
MAX_FILES: Final = 2000
# Not the program's source; __pycache__ changes whenever the program runs.
_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages"})

_Snapshot = dict[str, tuple[int, int, int]]


class SourceWatch:
    """The source of one program.

    Args:
        program: its file.
        others: programs in the same directory, which are not modules of this one.
    """

    def __init__(self, program: Path, others: Collection[Path] = ()) -> None:
        self._program = program
        self._others = frozenset(map(str, others))
        self._known = self._last = self._look()

    def changed(self) -> str | None:
        """Return the name of a changed file, None without a change."""
        seen = self._look()
        is_settled, self._last = seen == self._last, seen
        if not is_settled or seen == self._known:
            return None
        changed = {
            path
            for path in seen.keys() | self._known.keys()
            if seen.get(path) != self._known.get(path)
        }
        self._known = seen
        return os.path.relpath(min(changed), self._program.parent)

    def _look(self) -> _Snapshot:
        found: _Snapshot = {}
        for path in (str(self._program), *_modules(str(self._program.parent))):
            if path in self._others:
                continue
            try:
                status = os.stat(path)
            except OSError:
                continue  # it has just been removed
            found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found


def _modules(top: str) -> Iterator[str]:
    """Yield the Python modules in and below a directory, the nearest first."""
    directories = [top]
    left = MAX_FILES
    while directories and left:
        directory = directories.pop(0)
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            continue  # it is not readable, or has just been removed
        for entry in entries:
            if not left:
                return
            if entry.name.startswith(".") or entry.name in _SKIPPED:
                continue
            if entry.is_dir(follow_symlinks=False):
                if not os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
                    directories.append(entry.path)
                    left -= 1
            elif entry.name.endswith(".py"):
                yield entry.path
                left -= 1
