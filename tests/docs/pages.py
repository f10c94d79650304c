"""The fenced blocks of the documentation, and the comments about them.

A comment before a block, which readers do not see, can say how to test it::

    <!-- not run: the reason -->     counted and printed
    <!-- runs until Ctrl-C; makes /a/socket.ws -->  a command that stays in the foreground
    <!-- console of http://localhost/: hello -->  for the console of a browser
    <!-- part of WordPress -->       only its syntax is checked
    <!-- talk: {"hear": ["hi"]} -->  a client's messages, see test_snippets.py

A block after a line that ends in ```/a/path`:`` is the content of that file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..support.site import ROOT

FENCE: Final = re.compile(r"^(?P<indent> *)```(?P<language>[\w{}:-]*)\n", re.MULTILINE)
COMMENT: Final = re.compile(r"<!-- (?P<text>(?:(?!-->).)*?) -->\s*\Z", re.DOTALL)
FILE: Final = re.compile(r"^(?:\*\*.*)?`(?P<path>/[^`\s]+)`[^`\n]*:\s*\Z", re.MULTILINE)
NOT_RUN: Final = "not run: "


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: relative to the checkout.
        line: number of its first line.
        comment: text of the comment before it, or "".
        file: path of the file with this content, or "".
    """

    page: str
    line: int
    language: str
    text: str
    comment: str
    file: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def why_not_run(self) -> str:
        return self.comment.removeprefix(NOT_RUN) if self.comment.startswith(NOT_RUN) else ""


def pages() -> list[Path]:
    built = ROOT / "docs" / "_build"
    found = [path for path in (ROOT / "docs").rglob("*.md") if built not in path.parents]
    return [ROOT / "README.md", *sorted(found)]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    position = 0
    while opening := FENCE.search(text, position):
        indent = opening["indent"]
        end = re.compile(rf"^{indent}```[ ]*$", re.MULTILINE).search(text, opening.end())
        assert end, f"{page}: a fence is not closed"
        before = text[position : opening.start()]
        comment = COMMENT.search(before)
        if comment:
            before = before[: comment.start()]
        file = FILE.search(before)
        found.append(
            Block(
                page=str(page.relative_to(ROOT)),
                line=text.count("\n", 0, opening.end()) + 1,
                language=opening["language"],
                text=re.sub(rf"^{indent}", "", text[opening.end() : end.start()], flags=re.M),
                comment=comment["text"].strip() if comment else "",
                file=file["path"] if file else "",
            )
        )
        position = end.end()
    return found


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks_of(page)]
