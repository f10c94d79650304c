"""Links between pages have targets on a code host, and Sphinx builds the pages."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.site import ROOT
from .pages import pages

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
FENCES = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
PAGES = [*pages(), ROOT / "CHANGELOG.md"]


def headings(page: Path) -> set[str]:
    """Return the names that code hosts give the headings of a page."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", FENCES.sub("", page.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title.strip()).lower()
        found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page: Path) -> None:
    text = FENCES.sub("", page.read_text())
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: the file does not exist"
        assert ROOT in target.parents, f"{link}: the target is outside of the checkout"
        if anchor:
            assert anchor in headings(target), f"{link}: the heading does not exist"


def test_every_page_can_be_reached() -> None:
    """From the README, or from the index, whose tables of contents list the pages."""
    docs = ROOT / "docs"
    listed = [
        *docs.glob("examples/*.md"),
        docs / "reference" / "command-line.md",
        docs / "howto" / "troubleshooting.md",
    ]
    reached, waiting = set(), [ROOT / "README.md", *listed]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        for link in LINK.findall(FENCES.sub("", page.read_text())):
            path = link.partition("#")[0]
            if path:
                waiting.append((page.parent / path).resolve())
    # (The index and the pages with directives are for the built documentation only.)
    built = {page for page in pages() if page.parent.name == "reference"}
    built.add(ROOT / "docs" / "index.md")
    assert set(pages()) - reached <= built


def test_sphinx_builds_the_pages_without_a_warning() -> None:
    """Into ``docs/_build/html``.  A link without a target is a warning."""
    if not importlib.util.find_spec("sphinx"):
        pytest.skip("Sphinx is not installed: pip install -r docs/requirements.txt")
    options = ["-E", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "docs", "docs/_build/html"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
