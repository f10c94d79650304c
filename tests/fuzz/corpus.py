"""The corpora: one archive per target, whose members are the inputs by name.

Contract: ``read`` returns the inputs of a target; ``write`` adds inputs to its archive and
keeps those under other names.  The same inputs give the same bytes of the archive: members
are in order, stored without compression, and dated 1980-01-01, the first date of ZIP.

A new input that once found a defect: ``python -m tests.fuzz.corpus add TARGET FILE…``.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).parent / "corpus"


def targets() -> list[str]:
    """Return the names of the targets that have a corpus."""
    return sorted(path.stem for path in CORPUS.glob("*.zip"))


def read(target: str) -> dict[str, bytes]:
    """Return the inputs of a target, by name; empty if it does not have a corpus."""
    path = CORPUS / f"{target}.zip"
    if not path.exists():
        return {}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in sorted(archive.namelist())}


def write(target: str, inputs: Mapping[str, bytes]) -> None:
    """Add inputs to the corpus of a target; an input of the same name is replaced."""
    together = read(target) | dict(inputs)
    CORPUS.mkdir(exist_ok=True)
    with zipfile.ZipFile(CORPUS / f"{target}.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(together.items()):
            archive.writestr(zipfile.ZipInfo(name), data)


def unpack(target: str, directory: Path) -> None:
    """Write the inputs of a target to files, for a fuzzer that reads a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in read(target).items():
        (directory / name).write_bytes(data)


if __name__ == "__main__":
    try:
        command, name, *files = sys.argv[1:]
    except ValueError:
        command, name, files = "", "", []
    if command != "add" or name not in targets() or not files:
        sys.exit(f"usage: python -m tests.fuzz.corpus add {{{','.join(targets())}}} FILE…")
    write(name, {Path(file).name: Path(file).read_bytes() for file in files})
