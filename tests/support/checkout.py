"""The files of the checkout: those that git lists, or would list.

An unpacked source archive has no repository.  There the list has every file that ``.gitignore``
does not exclude, but for the file that the build has added.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from .site import ROOT

# The metadata of a source archive.
ADDED = ("PKG-INFO",)


def files() -> list[str]:
    """Return the paths of the checkout's files, relative to it, in order."""
    has_git = (ROOT / ".git").exists() and shutil.which("git")
    listed = files_of_git() if has_git else files_of_folder()
    return sorted(path for path in listed if (ROOT / path).is_file())


def copy_checkout(target: Path) -> None:
    """Copy these files to a directory."""
    for name in files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def files_of_git() -> list[str]:
    """Return what git lists: committed or new files, without ignored ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in done.stdout.split("\0") if path]


def files_of_folder() -> Iterator[str]:
    """Yield the files of the folder, without ignored ones."""
    ignored = ignore_patterns()
    for folder, folders, names in os.walk(ROOT):
        place = os.path.relpath(folder, ROOT)
        paths = {name: os.path.normpath(os.path.join(place, name)) for name in folders + names}
        folders[:] = [
            name
            for name in folders
            if name != ".git" and not is_ignored(f"{paths[name]}/", ignored)
        ]
        for name in names:
            if not is_ignored(paths[name], ignored) and paths[name] not in ADDED:
                yield paths[name]


def ignore_patterns() -> list[str]:
    """Return the lines of ``.gitignore``, which has neither comments nor negations."""
    return (ROOT / ".gitignore").read_text().split()


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Return whether a pattern matches; the path of a folder ends with a slash."""
    name = path.rstrip("/").rpartition("/")[2]
    for pattern in patterns:
        if pattern.endswith("/") and not path.endswith("/"):
            continue
        bare = pattern.rstrip("/")
        # A pattern with a slash is relative to the checkout; another one matches in any folder.
        if fnmatch(path.rstrip("/"), bare[1:]) if bare.startswith("/") else fnmatch(name, bare):
            return True
    return False
