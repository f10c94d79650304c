"""Numbers, sizes, durations and tables as text for a terminal.

Contract: pure.  Text from clients must have passed ``printable_line`` (``terminal.py``),
so that it cannot move the cursor or break a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
NONE: Final = "-"


def count(number: float | None) -> str:
    """Return a number; with one decimal if it is below 10 and not an integer."""
    if number is None:
        return NONE
    if number < 10 and number != int(number):
        return f"{number:.1f}"
    return f"{number:.0f}"


def size(number: float | None) -> str:
    """Return a number of bytes with its unit."""
    if number is None:
        return NONE
    unit = 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return (
        f"{number:.1f} {_UNITS[unit]}" if unit and number < 10 else f"{number:.0f} {_UNITS[unit]}"
    )


def span(seconds: float | None) -> str:
    """Return a duration."""
    if seconds is None:
        return NONE
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds // 86_400:.0f} days"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, the heads first.

    Args:
        heads: a ``<`` at the beginning aligns the column to the left.
        rows: each has as many texts.
    """
    titles = [head.removeprefix("<") for head in heads]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = []
    for row in [titles, *rows]:
        texts = [
            text.ljust(width) if head.startswith("<") else text.rjust(width)
            for head, text, width in zip(heads, row, widths, strict=True)
        ]
        lines.append("  ".join(texts).rstrip())
    return lines
