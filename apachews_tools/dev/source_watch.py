"""Whether a program's source has changed.

Contract: ``SourceWatch(program).changed()`` is asked again and again, from one thread,
and is true once for each change: when what was changed has been left alone since the
last question, so that an editor that writes twice, or a checkout of many files, is one.

How this works: what is looked at is the file itself, and the Python modules in and
below its directory, by time and size.  (inotify would need a foreign call, and does
not see what is changed over a network.)
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

# Beyond that many directories and modules nothing is looked at: a program in a home
# directory must not have a thousand others watched.  So many take some milliseconds.
MAX_FILES: Final = 2000
# Not of the program's making; __pycache__ changes whenever the program runs.
_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages"})

_Snapshot = dict[str, tuple[int, int, int]]


class SourceWatch:
    """The source of one program.

    Args:
        program: its file.
        others: programs that may lie beside it, and are no modules of it.
    """

    def __init__(self, program: Path, others: Collection[Path] = ()) -> None:
        self._program = program
        self._others = frozenset(map(str, others))
        self._known = self._last = self._look()

    def changed(self) -> str | None:
        """Return the name of a file that has changed, None where none has."""
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
                continue  # it has just gone
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
            continue  # it may not be read, or has just gone
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
