"""The layers of the C library: the list in ``system.h`` against every ``#include``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.c.build import SOURCE

FOLDER = SOURCE / "src"
SOURCES = sorted(FOLDER.glob("*.[ch]"))
# Headers below all layers.
BASE = {"system", "apachews", "apache-ws-common"}


def layers() -> dict[str, int]:
    """Return the position of each module in the list, the lowest first."""
    text = (FOLDER / "system.h").read_text()
    listed = re.search(r"Layers\..*:\n((?: \*     .*\n)+)", text)
    assert listed, "system.h has the list"
    names = listed[1].replace("*", "").split()
    return {name: position for position, name in enumerate(names)}


def test_every_file_has_a_layer() -> None:
    assert {path.stem for path in SOURCES} - BASE == layers().keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_includes_point_downwards(path: Path) -> None:
    """So ``#include`` has no cycle, neither of headers nor of modules."""
    order = layers()
    for name in re.findall(r'^#include "([\w-]+)\.h"', path.read_text(), re.MULTILINE):
        if name not in BASE and name != path.stem:
            assert order[name] < order[path.stem], f"{path.name} includes {name}.h"
