"""apachews as a module of Debian's Apache: the files that ``a2enmod apachews`` enables.

Contract: ``DebianModule(directory)`` is the place, as /etc/apache2; ``write`` puts the two
files there, ``undo`` takes them away again and disables the module.  A file that
somebody has edited is neither overwritten nor removed, unless forced.

How this works: the first line of each file has a checksum of the others.  A file whose
checksum is right is one of ours, of this version or another; any other was edited.

Sources: Debian's a2enmod(8): ``# Depends:``, ``# Conflicts:``.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .installation import SetUpError

NAME: Final = "apachews"
DIRECTORY: Final = Path("/etc/apache2")
_FIRST_LINE: Final = re.compile(
    r'# Written by "apachews config --debian", sha256 of the lines below: ([0-9a-f]{64})\n'
)


class EditedError(SetUpError):
    """A file is not as it was written.

    Attributes:
        path: the file.
        difference: from what is there to what would be, as ``diff -u`` has it.
    """

    def __init__(self, path: Path, difference: str, option: str) -> None:
        super().__init__(path, difference)
        self.path = path
        self.difference = difference
        self._option = option

    def __str__(self) -> str:
        return (
            f"{self.path} has been edited; {self._option} --force does it all the same:\n"
            f"{self.difference.rstrip()}"
        )


class DebianModule:
    """The module's files below a configuration directory.

    Args:
        directory: as /etc/apache2.
    """

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.directory = directory
        self._available = directory / "mods-available"
        self._enabled = directory / "mods-enabled"

    @property
    def is_enabled(self) -> bool:
        """Whether ``a2enmod`` has enabled it."""
        return (self._enabled / f"{NAME}.load").exists()

    def write(self, texts: Mapping[str, str], *, forced: bool = False) -> dict[Path, str]:
        """Write the files, all of them or none.

        Args:
            texts: suffix (``.load``, ``.conf``) -> text.
            forced: overwrite what was edited.

        Returns:
            What became of each: ``written``, ``updated`` or ``unchanged``.

        Raises:
            EditedError: one was edited.
            SetUpError: this is no configuration of Debian's Apache.
            OSError: no permission.
        """
        if not self._available.is_dir():
            raise SetUpError(
                f"{self._available} is no directory: is this Debian's Apache? (apt-get install"
                " apache2; elsewhere, apachews config prints what to include)"
            )
        wanted = {
            self._available / f"{NAME}{suffix}": sealed(text) for suffix, text in texts.items()
        }
        fates = {}
        for path, text in wanted.items():
            there = _read(path)
            if there is None:
                fates[path] = "written"
            elif there == text:
                fates[path] = "unchanged"
            elif is_sealed(there) or forced:
                fates[path] = "updated"
            else:
                raise EditedError(path, _difference(path, there, text), "apachews config --debian")
        for path, text in wanted.items():
            if fates[path] != "unchanged":
                _write(path, text)
        return fates

    def undo(self, *, forced: bool = False) -> list[Path]:
        """Disable the module and remove its files; return those that were there.

        Raises:
            EditedError: one was edited, and nothing is removed.
            OSError: no permission.
        """
        files = []
        for suffix in (".conf", ".load"):
            path = self._available / f"{NAME}{suffix}"
            there = _read(path)
            if there is None:
                continue
            if not (is_sealed(there) or forced):
                written = "".join(there.splitlines(keepends=True)[1:])
                raise EditedError(
                    path,
                    f"(its first line does not answer for the {len(written.splitlines())} others)",
                    "apachews config --debian --undo",
                )
            files.append(path)
        removed = self._disable()
        for path in files:
            path.unlink()
        return removed + files

    def _disable(self) -> list[Path]:
        """Take the module out of those enabled; return the links that were removed."""
        links = [self._enabled / f"{NAME}{suffix}" for suffix in (".conf", ".load")]
        links, others = self._parted([link for link in links if link.is_symlink()])
        is_all = links and not others
        if is_all and self.directory == DIRECTORY and (program := shutil.which("a2dismod")):
            # It keeps a record of who has enabled what, besides the links; and asks not
            # where they lead.
            subprocess.run([program, "-q", "-f", NAME], check=False, capture_output=True)
        for link in links:
            link.unlink(missing_ok=True)
        return links

    def _parted(self, links: list[Path]) -> tuple[list[Path], list[Path]]:
        """Return which of the links lead to ours, and which elsewhere."""
        available = self._available.resolve()
        own = [
            link
            for link in links
            if (link.parent / os.readlink(link)).parent.resolve() == available
        ]
        return own, [link for link in links if link not in own]


def sealed(text: str) -> str:
    """Return a text with the line that vouches for it."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'# Written by "apachews config --debian", sha256 of the lines below: {digest}\n{text}'


def is_sealed(text: str) -> bool:
    """Tell whether a text is as it was written."""
    match = _FIRST_LINE.match(text)
    return match is not None and sealed(text[match.end() :]) == text


def _difference(path: Path, there: str, wanted: str) -> str:
    return "".join(
        difflib.unified_diff(
            there.splitlines(keepends=True),
            wanted.splitlines(keepends=True),
            str(path),
            f"{path} (as it would be)",
        )
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="surrogateescape")
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """Put a file in its place, whole or not at all."""
    fd, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
        os.chmod(beside, 0o644)
        os.rename(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
