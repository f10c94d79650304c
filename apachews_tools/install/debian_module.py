"""apachews as a module of Debian's Apache: the files that ``a2enmod apachews`` enables.

Contract: ``DebianModule(directory)`` is a configuration directory, as /etc/apache2;
``write`` writes the two files, ``undo`` removes them and disables the module.  Edited files
are neither overwritten nor removed, unless forced; those of a Debian package never.
``package_of(path)`` asks dpkg.

How this works: the first line of each file has a checksum of the other lines.  If it is
right, some version of apachews wrote the file; otherwise the file was edited.

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
    """A file was edited after apachews wrote it.

    Attributes:
        path: the file.
        difference: from the present text to the wanted one, in the format of ``diff -u``.
    """

    def __init__(self, path: Path, difference: str, option: str) -> None:
        super().__init__(path, difference)
        self.path = path
        self.difference = difference
        self._option = option

    def __str__(self) -> str:
        return (
            f"{self.path} has been edited; to overwrite it: {self._option} --force\n"
            f"{self.difference.rstrip()}"
        )


class DebianModule:
    """The module's files in a configuration directory.

    Args:
        directory: for example /etc/apache2.
    """

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.directory = directory
        self._available = directory / "mods-available"
        self._enabled = directory / "mods-enabled"

    @property
    def is_enabled(self) -> bool:
        """Whether ``a2enmod`` has enabled the module."""
        return (self._enabled / f"{NAME}.load").exists()

    def write(self, texts: Mapping[str, str], *, forced: bool = False) -> dict[Path, str]:
        """Write the files, all of them or none.

        Args:
            texts: suffix (``.load``, ``.conf``) -> text.
            forced: overwrite edited files.

        Returns:
            The result per file: ``written``, ``updated`` or ``unchanged``.

        Raises:
            EditedError: a file was edited.
            SetUpError: the directory does not belong to Debian's Apache, or the files belong to
                a Debian package.
            OSError: a file cannot be written.
        """
        if not self._available.is_dir():
            raise SetUpError(
                f"{self._available} is not a directory: is this Debian's Apache? (apt-get install"
                " apache2; elsewhere, apachews config prints the lines to include)"
            )
        self._require_no_package()
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
        """Disable the module and remove its files; return the removed paths.

        Raises:
            EditedError: a file was edited; all files stay.
            SetUpError: the files belong to a Debian package.
            OSError: a file cannot be removed.
        """
        self._require_no_package()
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
                    f"(the checksum is not that of its {len(written.splitlines())} lines)",
                    "apachews config --debian --undo",
                )
            files.append(path)
        removed = self._disable()
        for path in files:
            path.unlink()
        return removed + files

    def _require_no_package(self) -> None:
        """Check that the files are not those of a Debian package.

        Raises:
            SetUpError: they are.
        """
        if package := self.package():
            raise SetUpError(
                f"{self._available}/{NAME}.load belongs to the Debian package {package}: use its"
                f" apachews, /usr/bin/apachews, or remove it first: sudo apt-get purge {package}"
            )

    def package(self) -> str:
        """Return the Debian package that has the module's files, "" without one."""
        return package_of(self._available / f"{NAME}.load")

    def _disable(self) -> list[Path]:
        """Disable the module; return the links that were removed."""
        links = [self._enabled / f"{NAME}{suffix}" for suffix in (".conf", ".load")]
        links, others = self._split_links([link for link in links if link.is_symlink()])
        is_all = links and not others
        if is_all and self.directory == DIRECTORY and (program := shutil.which("a2dismod")):
            # a2dismod also updates its record of enabled modules.  It does not check the
            # targets of the links.
            subprocess.run([program, "-q", "-f", NAME], check=False, capture_output=True)
        for link in links:
            link.unlink(missing_ok=True)
        return links

    def _split_links(self, links: list[Path]) -> tuple[list[Path], list[Path]]:
        """Return the links to this module's files, and the other links."""
        available = self._available.resolve()
        own = [
            link
            for link in links
            if (link.parent / os.readlink(link)).parent.resolve() == available
        ]
        return own, [link for link in links if link not in own]


def package_of(path: Path) -> str:
    """Return the Debian package that a file belongs to, "" for any other file."""
    program = shutil.which("dpkg-query")
    if program is None:
        return ""
    done = subprocess.run(
        [program, "--search", str(path)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={"LC_ALL": "C.UTF-8"},
    )
    for line in done.stdout.splitlines():
        # A pattern may match several files; "diversion by …" lines name no package.
        packages, _, found = line.partition(": ")
        if found == str(path) and " " not in packages:
            return packages.partition(":")[0]
    return ""


def sealed(text: str) -> str:
    """Return a text after a line with its checksum."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'# Written by "apachews config --debian", sha256 of the lines below: {digest}\n{text}'


def is_sealed(text: str) -> bool:
    """Tell whether the checksum of a text is right."""
    match = _FIRST_LINE.match(text)
    return match is not None and sealed(text[match.end() :]) == text


def _difference(path: Path, there: str, wanted: str) -> str:
    return "".join(
        difflib.unified_diff(
            there.splitlines(keepends=True),
            wanted.splitlines(keepends=True),
            str(path),
            f"{path} (wanted)",
        )
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="surrogateescape")
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """Write a file atomically."""
    fd, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
        os.chmod(beside, 0o644)
        os.rename(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
