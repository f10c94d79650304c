"""Imports point downwards only: the table of layers, held against every module."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "how-it-works.md"

# What a layer must not import, and the modules it consists of.
CORE_NEVER = {"socket", "select", "ctypes", "threading", "asyncio", "time", "os", "signal"}
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "core": (
        {
            "apachews.wire",
            "apachews.answer",
            "apachews.messages",
            "apachews.events",
            "apachews.exceptions",
            "apachews.languages",
            "apachews.mailbox",
            "apachews.snapshot",
            "apachews_handler.client_reader",
            "apachews_handler.closelog",
            "apachews_handler.deadlines",
            "apachews_handler.deflate",
            "apachews_handler.ends",
            "apachews_handler.origin",
            "apachews_handler.progress",
            "apachews_handler.watch",
            "apachews_handler.producer_reader",
            "apachews_handler.raw",
            "apachews_handler.session",
            "apachews_handler.mask",
            "apachews_handler.metrics",
            "apachews_handler.settings",
            "apachews_handler.tally",
            "apachews_handler.upgrade",
            "apachews_handler.wire_queue",
            "apachews_handler.exceptions",
        },
        CORE_NEVER,
    ),
    "system calls": (
        {"apachews_handler.short_calls"},
        {"select", "threading", "asyncio", "time", "signal"},
    ),
    "transport": (
        {
            "apachews.acceptor",
            "apachews.activation",
            "apachews.aio",
            "apachews.client",
            "apachews.connection",
            "apachews.groups",
            "apachews.handlers",
            "apachews.listener",
            "apachews.loop",
            "apachews.loopback",
            "apachews.notify",
            "apachews.publications",
            "apachews.publishing",
            "apachews.server",
            "apachews.siblings",
            "apachews.signals",
            "apachews.status",
            "apachews.threads",
            "apachews.workers",
            "apachews_handler.bridge",
            "apachews_handler.connection",
            "apachews_handler.custodian",
            "apachews_handler.endpoint",
            "apachews_handler.endpoint_access",
            "apachews_handler.generations",
            "apachews_handler.handover",
            "apachews_handler.holds",
            "apachews_handler.limits",
            "apachews_handler.logfile",
            "apachews_handler.loop",
            "apachews_handler.portable",
            "apachews_handler.report",
            "apachews_handler.rundir",
            "apachews_handler.signals",
            "apachews_handler.transport",
            "apachews_handler.waiting",
        },
        {"ctypes", "apachews_handler.httpd", "apachews_handler.tls"},
    ),
    "foreign C": (
        {"apachews_handler.httpd", "apachews_handler.tls"},
        {"threading", "asyncio", "select"},
    ),
    "entry points": (
        {
            "apachews",
            "apachews.__main__",
            "apachews.apache",
            "apachews.cli",
            "apachews.program",
            "apachews.runner",
            "apachews_handler",
            "apachews_handler.child",
            "apachews_handler.detach",
            "apachews_handler.modpython",
            "apachews_handler.status",
            "apachews_handler.wsgi",
        },
        {"ctypes"},
    ),
}
ORDER = ["core", "system calls", "transport", "foreign C", "entry points"]
# These stand in the table as a whole.
PACKAGES = ("apachews.apache", "apachews.cli")
# What only the command that needs it imports, and says how to install.
THIRD_PARTY = {"apachews.cli.websocket_client": {"wsproto"}}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("apachews", "apachews_handler"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def in_table(name: str) -> str:
    """Return the name under which a module stands in the table."""
    return next((package for package in PACKAGES if name.startswith(f"{package}.")), name)


def imports(name: str, path: Path) -> set[str]:
    """Return every module a file imports when it runs, ours with their full names."""
    found = set()
    tree = ast.parse(path.read_text())
    for statement in tree.body:  # what is only for type checkers does not count
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            statement.body = []
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


LAYER_OF = {module: layer for layer, (members, _) in LAYERS.items() for module in members}


def test_every_module_has_a_layer() -> None:
    assert {in_table(name) for name in modules()} == set(LAYER_OF)


def test_the_documented_table_is_this_one() -> None:
    rows = re.findall(r"^\| ([a-zA-Z ]+) \| (`.+`) \|", TABLE.read_text(), re.MULTILINE)
    documented = {layer: set(re.findall(r"`(\w+)`", names)) for layer, names in rows}
    # (Both packages' exceptions are of no layer's interest, nor are the packages.)
    assert documented == {
        layer: {name.rpartition(".")[2] for name in members if "." in name} - {"exceptions"}
        for layer, (members, _) in LAYERS.items()
    }


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_downwards(name: str) -> None:
    layer = LAYER_OF[in_table(name)]
    imported = {in_table(other) for other in imports(name, modules()[name])}
    assert not imported & LAYERS[layer][1]
    for other in imported & set(LAYER_OF):
        if other in ("apachews", "apachews_handler"):
            continue  # the package of a module that is imported from it
        assert ORDER.index(LAYER_OF[other]) <= ORDER.index(layer), f"{name} imports {other}"
    if layer == "foreign C":
        assert not any(other.startswith("apachews") for other in imported)


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] == "apachews"])
def test_the_library_needs_the_standard_library_only(name: str) -> None:
    for imported in imports(name, modules()[name]):
        top = imported.split(".")[0]
        allowed = {"apachews", *sys.stdlib_module_names, *THIRD_PARTY.get(name, ())}
        assert top in allowed, f"{name} imports {imported}"


def test_the_library_imports_without_anything_installed() -> None:
    subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r});"
            "import apachews, apachews.cli;"
            "assert not any('handler' in name for name in sys.modules)",
        ],
        check=True,
    )


def test_apaches_side_imports_only_what_it_needs() -> None:
    """Every child of Apache and every custodian keeps what it imported."""
    unneeded = ("apachews.server", "apachews.client", "logging", "uuid", "platform")
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import apachews_handler.wsgi\n"
        f"print(*sorted({{*{unneeded!r}}} & {{*sys.modules}}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
