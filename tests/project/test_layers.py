"""Folders are the layers: each imports only lower ones, and no modules import each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "contributing" / "architecture.md"
PACKAGES = ("apachews", "apachews_handler", "apachews_tools")

# Modules that a layer never imports.
NO_IO = {"socket", "select", "ctypes", "threading", "asyncio", "time", "os", "signal"}
NO_C = {"ctypes"}
NO_THREADS = {"threading", "asyncio", "select"}
# From the lowest to the highest: a folder, or a module at the top of its package, imports only
# what stands before it.
LAYERS: dict[str, set[str]] = {
    "apachews.exceptions": NO_IO,
    "apachews.wire": NO_IO,
    "apachews._listening": NO_C,
    "apachews.monitoring": NO_C,
    "apachews.history": NO_IO,
    "apachews.delivery": NO_IO,
    "apachews.client": NO_C | {"socket", "select", "asyncio"},
    "apachews.events": NO_IO,
    "apachews._processes": NO_C,
    "apachews._relay": NO_C,
    "apachews._server": NO_C,
    "apachews.server": NO_C,
    "apachews.publishing": NO_C,
    "apachews._handled": NO_C | {"socket", "select", "threading", "asyncio"},
    "apachews.channels": NO_C,
    "apachews.aio": NO_C,
    "apachews.threads": NO_C,
    "apachews._bootstrap": NO_C,
    "apachews.runner": NO_C,
    "apachews_handler.native": NO_THREADS,
    "apachews_handler.exceptions": NO_IO,
    "apachews_handler.origins": NO_IO,
    "apachews_handler.backends": NO_IO,
    "apachews_handler.monitoring": NO_C | {"socket", "select", "threading", "asyncio"},
    "apachews_handler.setting_values": NO_IO,
    "apachews_handler.settings": NO_IO,
    "apachews_handler.protocol": NO_IO,
    "apachews_handler.endpoints": NO_C | {"threading", "asyncio"},
    "apachews_handler.shared": NO_C,
    "apachews_handler.bridge": NO_C,
    "apachews_handler.lifecycle": NO_C,
    "apachews_handler.handshake": NO_C,
    "apachews_handler.backend": NO_C,
    "apachews_handler.status_page": NO_C,
    "apachews_handler.entry_points": NO_C,
    "apachews_handler.wsgi": NO_C,
    "apachews_handler.tunnel": NO_C,
    "apachews_handler.ticket": NO_C,
    "apachews_handler.channels_api": NO_C,
    "apachews_handler.modpython": NO_C,
    "apachews_tools": NO_C,
}
ORDER = [*LAYERS]
# What only the command that needs it imports, and says how to install.
THIRD_PARTY = {
    "apachews._relay.nats_engine": {"nats"},
    "apachews._relay.redis_engine": {"redis"},
    "apachews._relay.redis_node": {"redis"},
    "apachews.channels.config": {"tomli"},
    "apachews.channels.tokens": {"jwt"},
    "apachews_tools.cli.websocket_client": {"wsproto"},
    "apachews_tools.terminal.console": {"prompt_toolkit"},
}


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def layer_of(name: str) -> str | None:
    """Return the layer of a module, None for one of others or for a package as a whole."""
    parts = name.split(".")
    return next((layer for n in (1, 2) if (layer := ".".join(parts[:n])) in LAYERS), None)


def import_statements(name: str, path: Path) -> Iterator[tuple[str, str]]:
    """Yield the module of each import, by its full name, and the name that is imported from it.

    Imports for type checkers only count as well: a name that a signature needs is a dependency.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            origin = ".".join([*base, node.module or ""]).rstrip(".") if node.level else node.module
            assert origin, "an import without a module is relative"
            yield from ((origin, alias.name) for alias in node.names)


def imports(name: str, path: Path) -> set[str]:
    """Return every module a file imports, and every name, with their full names."""
    found = set()
    for origin, imported in import_statements(name, path):
        found |= {origin, f"{origin}.{imported}"} if imported else {origin}
    return found


def dependencies() -> dict[str, set[str]]:
    """Return which of our modules each of our modules imports.

    ``from package import module`` depends on the module and not on the package.
    """
    ours = modules()
    return {
        name: {
            module
            for origin, imported in import_statements(name, path)
            if (module := m if (m := f"{origin}.{imported}") in ours else origin) in ours
            and module != name
        }
        for name, path in ours.items()
    }


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        left = list(graph[start])
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                left += graph[name]
        return seen

    reach = {name: reachable(name) for name in graph}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def test_a_cycle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"f"}, "f": {"e"}}
    assert cycles(graph) == [["a", "b", "c"], ["e", "f"]]
    assert cycles({"a": {"b"}, "b": set()}) == []


def test_no_modules_import_each_other() -> None:
    """Not even for type checkers (TYPE_CHECKING)."""
    assert cycles(dependencies()) == []


def test_every_module_has_a_layer() -> None:
    without = {name for name in modules() if layer_of(name) is None}
    assert without == {"apachews", "apachews.__main__", "apachews_handler"}


def test_the_documented_table_is_this_one() -> None:
    section = TABLE.read_text().partition("\n## Layers\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_./]+)` \|", section, re.MULTILINE)
    folders = [row.rstrip("/").removesuffix(".py").replace("/", ".") for row in rows]
    assert folders == ORDER


@pytest.mark.parametrize("name", sorted(name for name in modules() if layer_of(name)))
def test_imports_point_downwards(name: str) -> None:
    layer = layer_of(name)
    assert layer
    imported = imports(name, modules()[name])
    assert not imported & LAYERS[layer], f"{name} is in a layer without these"
    for other in {layer_of(other) for other in imported} - {None}:
        assert other
        assert ORDER.index(other) <= ORDER.index(layer), f"{name} imports {other}"
    if layer == "apachews_handler.native":
        ours = {other for other in imported if other.startswith(PACKAGES)}
        assert all(other.startswith("apachews_handler.native") for other in ours)
    if layer == "apachews_tools":
        assert not any(other.startswith("apachews_handler") for other in imported)


@pytest.mark.parametrize(
    "name", [name for name in modules() if name.split(".")[0] in ("apachews", "apachews_tools")]
)
def test_the_library_and_the_tools_need_the_standard_library_only(name: str) -> None:
    for imported in imports(name, modules()[name]):
        top = imported.split(".")[0]
        ours = {"apachews", "apachews_tools"} if name.startswith("apachews_tools") else {"apachews"}
        if name == "apachews.__main__":
            ours.add("apachews_tools")  # python -m apachews is the command line
        allowed = {*ours, *sys.stdlib_module_names, *THIRD_PARTY.get(name, ())}
        assert top in allowed, f"{name} imports {imported}"


def test_the_library_imports_without_anything_installed() -> None:
    subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r});"
            "import apachews, apachews_tools.cli;"
            "assert not any('handler' in name for name in sys.modules)",
        ],
        check=True,
    )


# The layers of the C library: the list in ``system.h`` against every ``#include``.


C_FOLDER = ROOT / "bindings" / "c" / "src"
C_SOURCES = sorted(C_FOLDER.glob("*.[ch]"))
# Headers below all layers.
C_BASE = {"system", "apachews", "apache-ws-common"}


def c_layers() -> dict[str, int]:
    """Return the position of each module in the list, the lowest first."""
    text = (C_FOLDER / "system.h").read_text()
    listed = re.search(r"Layers\..*:\n((?: \*     .*\n)+)", text)
    assert listed, "system.h has the list"
    names = listed[1].replace("*", "").split()
    return {name: position for position, name in enumerate(names)}


def test_every_file_in_c_has_a_layer() -> None:
    assert {path.stem for path in C_SOURCES} - C_BASE == c_layers().keys()


@pytest.mark.parametrize("path", C_SOURCES, ids=lambda path: path.name)
def test_includes_in_c_point_downwards(path: Path) -> None:
    """So ``#include`` has no cycle, neither of headers nor of modules."""
    order = c_layers()
    for name in re.findall(r'^#include "([\w-]+)\.h"', path.read_text(), re.MULTILINE):
        if name not in C_BASE and name != path.stem:
            assert order[name] < order[path.stem], f"{path.name} includes {name}.h"
