"""Writes the man pages and the completions of the command line, for packages.

    python -m apachews_tools.dev.manuals DIRECTORY

Contract: ``main([directory])`` writes ``apachews.1``, a page for each command
(``apachews-run.1``) and the completions for bash, zsh and fish (``completion.py``) into an
existing directory.  Everything comes from the parsers of ``apachews_tools.cli``: a new option is
on its page.  The output depends on nothing else, so that builds are reproducible.

How this works: the description of a parser has paragraphs; its epilog has blocks, whose first
words name their section: ``examples:``, ``environment:``, ``exit status:``.

Roads not taken: argparse-manpage of Debian 12 writes one page for all commands, and joins the
lines of the examples.

Sources: man(7), groff_man(7).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from apachews_tools.cli import make_parser, version

from . import completion
from .completion import Option, commands_of, options_of

_PAGE: Final = ".TH {name} 1 {date} {version} {manual}\n"
# The first words of a block of the epilog, and its section.
_SECTIONS: Final = {
    "examples:": "EXAMPLES",
    "environment:": "ENVIRONMENT",
    "exit status:": "EXIT STATUS",
}
# argparse's own titles.
_TITLES: Final = {"positional arguments": "arguments"}
_ORDER: Final = ("NOTES", "EXAMPLES", "ENVIRONMENT", "EXIT STATUS")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all files."""
    parser = argparse.ArgumentParser(
        prog="python -m apachews_tools.dev.manuals",
        description="Write the man pages and the completions of the command line.",
    )
    parser.add_argument("directory", metavar="DIRECTORY", type=Path, help="it exists")
    directory: Path = parser.parse_args(arguments).directory
    for name, text in files().items():
        (directory / name).write_text(text, encoding="utf-8")
    return 0


def files() -> dict[str, str]:
    """Return the name and the text of each file."""
    parser = make_parser()
    commands = commands_of(parser)
    pages = {f"{parser.prog}.1": _overview(parser)}
    for name, command in commands.items():
        others = [other for other in commands if other != name]
        pages[f"{parser.prog}-{name}.1"] = _page(command.parser, name, command.summary, others)
    return pages | {
        f"{parser.prog}.bash": completion.bash(parser),
        f"_{parser.prog}": completion.zsh(parser),
        f"{parser.prog}.fish": completion.fish(parser),
    }


def _overview(parser: argparse.ArgumentParser) -> str:
    commands = commands_of(parser)
    text = _head(parser.prog, "WebSockets served by Apache httpd itself")
    text += _synopsis(parser)
    text += f".SH DESCRIPTION\n{_filled(parser.description or '')}"
    text += ".SH COMMANDS\n"
    for name, command in commands.items():
        text += f".TP\n.BR {parser.prog}\\-{name} (1)\n{_escaped(command.summary)}\n"
    text += _options(parser)
    text += (
        ".SH EXIT STATUS\n0: success; 1: failure, and standard error has the reason and what to"
        " do; 2: invalid arguments; 130: Ctrl\\-C.\n"
    )
    return text + _see_also([f"{parser.prog}-{name}" for name in commands])


def _page(parser: argparse.ArgumentParser, name: str, summary: str, others: Sequence[str]) -> str:
    program = parser.prog.partition(" ")[0]
    text = _head(f"{program}-{name}", summary)
    text += _synopsis(parser)
    text += f".SH DESCRIPTION\n{_paragraphs(parser.description or '')}"
    text += _options(parser)
    sections = _sections(parser.epilog or "")
    for title in _ORDER:
        if title in sections:
            text += f".SH {title}\n{sections[title]}"
    return text + _see_also([program, *(f"{program}-{other}" for other in others)])


def _head(name: str, summary: str) -> str:
    head = _PAGE.format(
        name=_quoted(name.upper()),
        date='""',
        version=_quoted(f"apachews {version()}".partition(" (")[0]),
        manual=_quoted("apachews"),
    )
    return f"{head}.SH NAME\n{_escaped(name)} \\- {_escaped(summary)}\n"


def _synopsis(parser: argparse.ArgumentParser) -> str:
    parser.color = False  # type: ignore[attr-defined]  # Python 3.14 colours the usage otherwise
    usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    program, _, rest = usage.partition(f"{parser.prog} ")
    program = program or parser.prog
    return f".SH SYNOPSIS\n.B {_escaped(program)}\n{_escaped(rest)}\n"


def _options(parser: argparse.ArgumentParser) -> str:
    text = ""
    for title, options in options_of(parser):
        text += f".SH {_TITLES.get(title, title).upper()}\n"
        for option in options:
            text += f".TP\n{_term(option)}\n{_escaped(option.help)}\n"
    return text


def _term(option: Option) -> str:
    """Return the names of an option in bold, and its value in italics."""
    value = f"\\fI{_escaped(option.value)}\\fR" if option.value else ""
    if not option.names:
        return value
    names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in option.names)
    if option.is_value_optional:
        return f"{names} [{value}]"
    return f"{names} {value}".rstrip()


def _sections(epilog: str) -> dict[str, str]:
    """Return the sections of an epilog: title -> text of the page."""
    found: dict[str, str] = {}
    for block in epilog.split("\n\n"):
        first = next((first for first in _SECTIONS if block.startswith(first)), "")
        title = _SECTIONS.get(first, "NOTES")
        found[title] = found.get(title, "") + _block(block.removeprefix(first))
    return found


def _block(text: str) -> str:
    """Return a block, whose indented lines stay as they are."""
    lines = text.strip("\n").splitlines()
    indented = [line for line in lines if line.startswith("  ")]
    prose = " ".join(line.strip() for line in lines if not line.startswith("  ")).strip()
    result = f".PP\n{_escaped(prose)}\n" if prose else ""
    if indented:
        kept = "\n".join(_escaped(line.removeprefix("  ")) for line in indented)
        result += f".PP\n.nf\n{kept}\n.fi\n"
    return result


def _paragraphs(text: str) -> str:
    return "".join(f".PP\n{_filled(paragraph)}" for paragraph in text.split("\n\n"))


def _filled(text: str) -> str:
    return f"{_escaped(' '.join(text.split()))}\n"


def _see_also(pages: Sequence[str]) -> str:
    names = ",\n".join(f".BR {_escaped(page)} (1)" for page in pages)
    return f".SH SEE ALSO\n{names}\n"


def _escaped(text: str) -> str:
    r"""Return a text for troff: ``\\`` and ``-`` are literal, and a line is not a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = text.replace("^", "\\(ha").replace("~", "\\(ti")
    text = "".join(
        character if character.isascii() else f"\\[u{ord(character):04X}]" for character in text
    )
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace('"', "\\(dq") + '"'


if __name__ == "__main__":
    sys.exit(main())
