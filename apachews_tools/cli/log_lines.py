"""The logs of several programs on one terminal, line by line.

Contract: ``LineSplitter`` splits the bytes of a pipe or a file into lines, ``FileFollower``
reads the lines appended to a file, ``LogPrinter`` writes a line with the name of its
program.  Only writing blocks.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final, TextIO

from apachews_tools.terminal.terminal import (
    BLUE,
    CYAN,
    GREEN,
    MAGENTA,
    RED,
    YELLOW,
    paint,
    uses_colour,
)

# A longer line is shown in parts.
MAX_LINE_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 1 << 20

_COLOURS: Final = (CYAN, MAGENTA, GREEN, YELLOW, BLUE)
# The beginning of every line of the error log, which is noise on a terminal.
_DATE: Final = re.compile(r"^\[\w{3} \w{3} \d\d [\d:.]+ \d{4}\] ")
_PROCESS: Final = re.compile(r"\[pid \d+(?::tid \d+)?\] ")
# Messages of httpd and mod_wsgi at every start.
_ROUTINE: Final = re.compile(r"^\[[\w]+:notice\]|^\[wsgi:info\] mod_wsgi \(")
_SERIOUS: Final = re.compile(r"^\[\w+:(?:error|crit|alert|emerg)\]")


class LineSplitter:
    """Splits bytes into complete lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the complete lines; b"" completes the last one."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (not data or len(self._rest) > MAX_LINE_BYTES):
            lines.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace").removesuffix("\r") for line in lines]


class FileFollower:
    """The lines that are appended to a file, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._splitter = LineSplitter()

    def skip(self) -> None:
        """Skip the present content."""
        with contextlib.suppress(FileNotFoundError):
            self._offset = self._path.stat().st_size

    def read_lines(self) -> list[str]:
        """Return the lines completed since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_READ_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(data)
        return self._splitter.feed(data) if data else []


class LogPrinter:
    """Writes lines, each with the name of its program.

    Args:
        stream: the output.
        names: of all programs.
    """

    def __init__(self, stream: TextIO, names: list[str]) -> None:
        self._stream = stream
        self._width = max(map(len, names), default=0)
        self._colours = (
            {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
            if uses_colour(stream)
            else {}
        )

    def print(self, name: str, line: str, colour: str | None = None) -> None:
        """Write one line.

        Args:
            name: the program, one of ``names``.
            line: without its line feed.
            colour: of the line itself, on a terminal.
        """
        prefix = f"{name:<{self._width}} |"
        if name in self._colours:
            prefix = paint(prefix, self._colours[name])
            if colour is not None:
                line = paint(line, colour)
        self._stream.write(f"{prefix} {line}\n")
        self._stream.flush()


def brief(line: str, is_verbose: bool) -> tuple[str, str | None] | None:
    """Return a line of Apache's error log for a terminal, and its colour.

    Returns:
        None for a routine message of the start, unless verbose.
    """
    line = _PROCESS.sub("", _DATE.sub("", line), count=1)
    if _ROUTINE.match(line) and not is_verbose:
        return None
    return line, RED if _SERIOUS.match(line) else None
