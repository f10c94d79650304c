"""Text for a terminal: colours if wanted, and without control characters from elsewhere.

Contract: pure functions of text, and questions about a stream.
"""

from __future__ import annotations

import base64
import json
import os
import unicodedata
from typing import Final, TextIO

# SGR parameters (ECMA-48 8.3.117) of colours that are readable on light and on dark.
RED: Final = "31"
GREEN: Final = "32"
YELLOW: Final = "33"
BLUE: Final = "34"
MAGENTA: Final = "35"
CYAN: Final = "36"
FAINT: Final = "2"

# Marks of the bidirectional algorithm (UAX 9, 2): they can reorder the text after them.
_REVERSING: Final = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)

# Bytes of a binary message that a terminal shows.
SHOWN_BYTES: Final = 64


def uses_colour(stream: TextIO) -> bool:
    """Tell whether to colour the output: on a terminal, unless NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def has_cursor(stream: TextIO) -> bool:
    """Tell whether the stream is a terminal that can overwrite a row."""
    return stream.isatty() and os.environ.get("TERM") not in (None, "dumb")


def paint(text: str, colour: str) -> str:
    """Return the text in a colour."""
    return f"\x1b[{colour}m{text}\x1b[0m"


def printable(text: str) -> str:
    """Return untrusted text with the characters that control a terminal spelt out.

    These are control characters except line feed and tab (an escape sequence could
    rewrite the screen, or type), and marks that change the direction of writing.
    """
    return "".join(
        _spelt_out(character)
        if character in _REVERSING
        or (character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs"))
        else character
        for character in text
    )


def printable_line(text: str) -> str:
    """Return untrusted text for a row of a table, with all invisible characters spelt out."""
    return "".join(
        character if character.isprintable() else _spelt_out(character) for character in text
    )


def json_line(document: object, stream: TextIO) -> str:
    """Return a value as one line of JSON for the stream, in ASCII for a terminal.

    JSON does not escape control characters above ASCII, and U+009B starts an escape
    sequence like ESC [.
    """
    return json.dumps(document, ensure_ascii=stream.isatty())


def message_members(data: str | bytes) -> dict[str, str | int]:
    """Return the members of a message in a JSON object."""
    if isinstance(data, str):
        return {"text": data}
    return {"bytes": len(data), "base64": base64.b64encode(data).decode()}


def _spelt_out(character: str) -> str:
    return character.encode("unicode_escape").decode()


def describe_bytes(data: bytes, limit: int | None = SHOWN_BYTES) -> str:
    """Return bytes as hexadecimal digits, with their number.

    Args:
        data: any.
        limit: how many to show; None: all.
    """
    shown = data if limit is None else data[:limit]
    more = " …" if len(shown) < len(data) else ""
    return f"[{len(data)} bytes] {shown.hex(' ')}{more}".rstrip()
