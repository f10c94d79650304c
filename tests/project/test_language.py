"""The language of the product: patterns that are not plain technical English, and readable sizes.

docs/contributing/house-rules.md has the rules.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ..support.checkout import files
from ..support.site import ROOT

# They are searched in paragraphs, whose lines are joined without the marks of comments.
PATTERNS = {
    "negate the verb: 'is not a …'": r"(?<!here )\b(?:is|are|was|were) no (?!longer\b|more\b)\w",
    "negate the verb: 'does not exist', 'has no …'": r"\b(?:is|are|was|were) none\b",
    "name the noun instead": r"(?i:\b(?:nobody|somebody|anybody|everybody|whoever|whomever)\b)",
    "close, drain": r"(?i:\bgoodbye)",
    "separated by": r"\bparted by\b",
    "fix, restore": r"(?i:\bmend(?:s|ed|ing)?\b)",
    "buffer, discard, failed": r"(?i:\bhoard|\bbur(?:y|ied|ies)\b|\bdeaf\b)",
    "begin with the subject": r"(?:^|[.;:] )[Oo]f (?:which|these|what)\b",
    "no causative 'have'": (
        r"\b[Hh]av(?:e|ing) (?:a|an|the|it|its|them) (?:[\w-]+ ){0,2}"
        r"(?:\w{2,}ed|done|sent|told|made)(?=[.,;:)]|$| (?:again|between|by|first)\b)"
    ),
    "reject, close": r"\b(?:sen[dt]s?|turn(?:s|ed)?) (?:\w+ )?away\b",
    "if": r"\b[Ww]here (?:it|there|nothing|none|that|this)\b",
    "after": r"\bbehind (?:it|that|them|these|those|this)\b",
    "'it' for a program, 'the user' for a person": r"(?i:(?<![-\"'])\b(?:he|him|his)\b(?![\"']))",
}
FOLDERS = (
    *("README.md", "CHANGELOG.md", "apachews", "apachews_handler", "apachews_tools"),
    *("bench", "bindings", "deploy", "docs", "examples"),
)
# Hits that are plain English, or not ours: file, a part of the line, and why.
ALLOWED: list[tuple[str, str, str]] = []
# Not prose: data, and what others wrote.
DATA = (".json", ".svgz", ".lock", ".neon", ".xml", ".png", ".ico")

MAX_CELL_CHARS = 160
# Tables with longer cells, and how many they have.
LONG_CELLS = {
    "docs/reference/c.md": 2,
    "docs/reference/php.md": 5,
}

MAX_LINES = 450
# Files of the product that are longer, and whose header does not say ``Long because``.
LONG_FILES: set[str] = set()

COMMENT_MARK = re.compile(r"^\s*(?:#+|/?\*+|//+)?\s*")


class Hit(NamedTuple):
    folder: str
    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


tracked = functools.cache(files)


def hits_of(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, rule and text of each hit."""
    joined, starts = "", []
    for line in text.split("\n"):
        line = re.sub(r"\s+", " ", COMMENT_MARK.sub("", line)).strip()
        joined += " " if line and joined and joined[-1] != "\n" else "\n"
        starts.append(len(joined))
        joined += line
    found = []
    for rule, pattern in PATTERNS.items():
        for match in re.finditer(pattern, joined, re.MULTILINE):
            found.append((bisect.bisect(starts, match.start()), rule, match[0]))
    yield from sorted(found)


def folder_of(path: str) -> str:
    return path.partition("/")[0]


@functools.cache
def all_hits() -> list[Hit]:
    hits = []
    for path in tracked():
        if folder_of(path) not in FOLDERS or path.endswith(DATA):
            continue
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        lines = text.splitlines()
        for line, rule, hit in hits_of(text):
            nearby = " ".join(lines[line - 1 : line + 1])
            if not any(path == file and part in nearby for file, part, _ in ALLOWED):
                hits.append(Hit(folder_of(path), path, line, rule, hit))
    return hits


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_language_is_plain(folder: str) -> None:
    hits = [hit for hit in all_hits() if hit.folder == folder]
    assert not hits, "\n".join(map(str, hits))


@pytest.mark.parametrize(
    "text",
    [
        "# It is no socket.",
        "# There is\n# none: it was\n#   no use.",
        "Somebody came",
        "say goodbye",
        "the line to mend",
        "It is deaf.",
        "values, parted by blanks",
        "Two. Of these one is kept.",
        "have the connection closed.",
        "clients are sent away",
        "Where nothing waits",
        "what stands\n    // behind it",
        "the user and his file",
    ],
)
def test_a_pattern_finds(text: str) -> None:
    assert list(hits_of(text))


@pytest.mark.parametrize(
    "text",
    [
        "There is no producer, and the file is no longer used.",
        "if client is None:",
        "It is behind a proxy, where users log in.",
        "have the right to write; clients have a limited buffer",
        "The header of the page.",
        "languages = ['he']",
        "is not\n\nno",
    ],
)
def test_plain_english_is_not_found(text: str) -> None:
    assert not list(hits_of(text))


def test_exceptions_are_needed_and_few() -> None:
    assert len(ALLOWED) <= 6
    for file, part, reason in ALLOWED:
        assert reason
        assert part in " ".join((ROOT / file).read_text().split("\n")), f"{file}: {part}"


# Tables.


def long_cells(path: Path) -> list[str]:
    """Return the cells whose text, without the targets of links, is too long."""
    cells = []
    for line in path.read_text().splitlines():
        if line.lstrip().startswith("|"):
            shown = re.sub(r"\]\([^)]*\)", "]", line).strip().strip("|")
            cells += [cell.strip() for cell in re.split(r"(?<!\\)\|", shown)]
    return [cell for cell in cells if len(cell) > MAX_CELL_CHARS]


PAGES = [path for path in tracked() if path.endswith(".md")]


@pytest.mark.parametrize("page", PAGES)
def test_table_cells_are_short(page: str) -> None:
    cells = long_cells(ROOT / page)
    assert len(cells) <= LONG_CELLS.get(page, 0), "\n".join(cells)


# Files.


def is_long_without_reason(path: str) -> bool:
    text = (ROOT / path).read_text()
    header = text.split('"""')[1] if text.startswith('"""') else ""
    return text.count("\n") > MAX_LINES and not re.search(r"^Long because \S", header, re.M)


def test_long_files_say_why() -> None:
    packages = ("apachews/", "apachews_handler/", "apachews_tools/")
    product = [path for path in tracked() if path.startswith(packages) and path.endswith(".py")]
    assert {path for path in product if is_long_without_reason(path)} == LONG_FILES
