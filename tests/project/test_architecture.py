"""docs/contributing: every function, class and file that the pages name exists.

A function is named as ``module.function()`` or ``module.Class.method()``, with as much of the
module's path before it as makes it unique: ``bridge.loop.Loop.turn()``.  A class alone is a word
with capitals inside it, in a diagram or in backticks: ``FastPath``.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from ..support.site import ROOT
from .test_layers import modules

PAGES = sorted((ROOT / "docs" / "contributing").glob("*.md"))
FUNCTION = re.compile(r"(?<![\w./])((?:\w+\.)+\w+)\(\)")
FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]*\w)`")
# Python's own, in the diagrams.
FOREIGN = {"os.fork"}
DIAGRAM = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Longer blocks are commands, and have no classes.
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"`([^`\n]+)`")
CLASS = re.compile(r"(?<![\w.])[A-Z]+[a-z]\w*[A-Z]\w*\b(?!/)|(?<![\w.])[A-Z]{2,}[a-z]\w+")
# Directives of Apache, and classes of the libraries in other languages.
FOREIGN_CLASSES = {"LogLevel", "SetEnv", "WireVectorsTest"}


@functools.cache
def definitions(path: Path) -> frozenset[str]:
    """Return ``function``, ``Class`` and ``Class.method`` of a module, with assigned names."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found.add(node.name)
            found |= {
                f"{node.name}.{method.name}"
                for method in node.body
                if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(found)


def exists(reference: str) -> bool:
    """Return whether some module of the product defines what the reference names."""
    parts = reference.split(".")
    for count in range(1, len(parts)):
        module, name = ".".join(parts[:count]), ".".join(parts[count:])
        for full, path in modules().items():
            if f".{full}".endswith(f".{module}") and name in definitions(path):
                return True
    # ``Class.method()`` in running text, after the module was named.
    return len(parts) == 2 and any(reference in definitions(path) for path in modules().values())


def references() -> list[str]:
    return sorted({name for page in PAGES for name in FUNCTION.findall(page.read_text())})


def test_the_pages_name_functions() -> None:
    assert len(references()) > 40
    assert exists("bridge.loop.Loop.turn")
    assert not exists("bridge.loop.Loop.turn_around")
    assert not exists("no_such_module.turn")


def test_every_function_exists() -> None:
    missing = {name for name in references() if name not in FOREIGN and not exists(name)}
    assert missing == set()


def class_names(text: str) -> set[str]:
    """Return the names of classes in the diagrams and the quoted words of a page."""
    quoted = QUOTED.findall(BLOCK.sub("", text))
    return {name for part in (*DIAGRAM.findall(text), *quoted) for name in CLASS.findall(part)}


def test_the_pages_name_classes() -> None:
    text = "`FastPath` and\n```text\n or TLSTransport\n```\n```sh\nNoClass\n```\n PlainWords"
    assert class_names(text) == {"FastPath", "TLSTransport"}
    assert len(set().union(*(class_names(page.read_text()) for page in PAGES))) > 7


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_class_exists(page: Path) -> None:
    defined = frozenset().union(*(definitions(path) for path in modules().values()))
    assert class_names(page.read_text()) - defined - FOREIGN_CLASSES == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_exists(page: Path) -> None:
    roots = (ROOT, ROOT / "docs", ROOT / "tests", ROOT / "apachews_handler")
    missing = [
        path
        for path in FILE.findall(page.read_text())
        if not any((root / path).exists() for root in roots)
        and not path.startswith(("artefacts/", "bench/results/"))  # made by runs
    ]
    assert missing == []


def test_every_guard_is_listed() -> None:
    section = (ROOT / "docs" / "contributing" / "architecture.md").read_text()
    section = section.partition("\n## Guards\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`([\w./]+)`", section))
    guards = {
        str(path.relative_to(ROOT))
        for path in modules().values()
        if re.search(r"^ *except Exception\b", path.read_text(), re.MULTILINE)
    }
    folders = {name for name in listed if name.endswith("/")}
    strange = {path for path in guards - listed if f"{Path(path).parent}/" not in folders}
    assert strange == set()
    assert listed - folders <= guards
