"""What a terminal is shown: colours where they are wanted, and nothing that steers it.

Contract: pure functions of text, and questions to a stream.
"""

from __future__ import annotations

import json
import os
import unicodedata
from typing import Final, TextIO

# SGR parameters (ECMA-48 8.3.117): colours that can be read on light and on dark.
RED: Final = "31"
GREEN: Final = "32"
YELLOW: Final = "33"
BLUE: Final = "34"
MAGENTA: Final = "35"
CYAN: Final = "36"
FAINT: Final = "2"

# Marks of the bidirectional algorithm (UAX 9, 2): text after one can read as another.
_REVERSING: Final = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)

# Bytes of a binary message that are shown on a terminal.
SHOWN_BYTES: Final = 64


def uses_colour(stream: TextIO) -> bool:
    """Tell whether to colour what goes to the stream: to a terminal, and not with NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def has_cursor(stream: TextIO) -> bool:
    """Tell whether the stream goes to a terminal on which a row can be written anew."""
    return stream.isatty() and os.environ.get("TERM") not in (None, "dumb")


def paint(text: str, colour: str) -> str:
    """Return the text in a colour."""
    return f"\x1b[{colour}m{text}\x1b[0m"


def printable(text: str) -> str:
    """Return text of a stranger with what would steer a terminal spelt out.

    That is control characters but for line feed and tab (an escape sequence could
    rewrite the screen, or type), and marks that reverse the direction of writing.
    """
    return "".join(
        _spelt_out(character)
        if character in _REVERSING
        or (character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs"))
        else character
        for character in text
    )


def printable_line(text: str) -> str:
    """Return text of a stranger for a row of a table: what is not visible is spelt out too."""
    return "".join(
        character if character.isprintable() else _spelt_out(character) for character in text
    )


def json_line(document: object, stream: TextIO) -> str:
    """Return a value as JSON, in a line of what goes to the stream.

    JSON itself spells out no control character above ASCII, and U+009B begins an escape
    sequence as well as ESC [ does.
    """
    return json.dumps(document, ensure_ascii=stream.isatty())


def _spelt_out(character: str) -> str:
    return character.encode("unicode_escape").decode()


def describe_bytes(data: bytes, limit: int | None = SHOWN_BYTES) -> str:
    """Return bytes as hexadecimal digits, with how many there are.

    Args:
        data: any.
        limit: how many to show; None shows all.
    """
    shown = data if limit is None else data[:limit]
    more = " …" if len(shown) < len(data) else ""
    return f"[{len(data)} bytes] {shown.hex(' ')}{more}".rstrip()
