"""One line that is being typed: keys in, the text and what to draw out.

Contract: ``LineEditor`` does no input or output.  ``type(text)`` takes what the
terminal sent and returns what came of it, ``view(columns)`` what its one row shows.
The keys are those of readline's Emacs mode that people have in their fingers.

The road not taken is readline itself.  Python has it only as ``input()``, which
waits for a whole line and owns the row meanwhile: what comes in is written across
what is being typed, or another thread reaches into readline's buffer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Final

# Lines that the arrow keys bring back.
MAX_HISTORY: Final = 500

# ECMA-48 5.4: CSI, parameters, final byte.  And SS3, which arrow keys send in
# "application mode", and Alt with a letter.
_SEQUENCE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\[O])", re.DOTALL)
_INCOMPLETE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)?\Z")


class EndOfInput:
    """Ctrl-D on an empty line."""


END: Final = EndOfInput()


class LineEditor:
    """A line that is being typed.

    Attributes:
        text: the line.
        cursor: the character that the cursor stands on, ``len(text)`` at its end.
    """

    def __init__(self) -> None:
        self.text = ""
        self.cursor = 0
        self._pending = ""  # the beginning of an escape sequence
        self._killed = ""
        self._history: list[str] = []
        self._at = 0  # of the history; its length: the new line
        self._new = ""  # the new line, while an older one is looked at

    def type(self, text: str) -> list[str | EndOfInput]:
        """Take what was typed; return the lines that are finished, and END."""
        text, self._pending = self._pending + text, ""
        finished: list[str | EndOfInput] = []
        position = 0
        while position < len(text):
            key = text[position]
            if key == "\x1b":
                if _INCOMPLETE.match(text, position):
                    self._pending = text[position:]
                    break
                sequence = _SEQUENCE.match(text, position)
                # (One that is none: the escape key, and whatever comes next.)
                key = sequence.group() if sequence else key
            position += len(key)
            if key in "\r\n":
                finished.append(self._finish())
            elif key == "\x04" and not self.text:
                finished.append(END)
            elif action := _KEYS.get(key):
                action(self)
            elif len(key) == 1 and (key == "\t" or unicodedata.category(key) != "Cc"):
                self._insert(key)
        return finished

    def view(self, columns: int) -> tuple[str, int]:
        """Return what a row of so many columns shows, and the column of the cursor.

        A line that is longer shows the part around the cursor.
        """
        room = max(columns - 1, 1)  # the cursor stands behind the last character
        start = 0
        if sum(map(_width, self.text[: self.cursor])) > room:
            # Half a row before the cursor, so that the row does not move at every key.
            start, before = self.cursor, 0
            while start and before + _width(self.text[start - 1]) <= (room + 1) // 2:
                start -= 1
                before += _width(self.text[start])
        shown, width = "", 0
        for character in self.text[start:]:
            if width + _width(character) > room:
                break
            shown += _drawn(character)
            width += _width(character)
        return shown, sum(map(_width, self.text[start : self.cursor]))

    def _finish(self) -> str:
        line, self.text, self.cursor = self.text, "", 0
        if line and self._history[-1:] != [line]:
            self._history.append(line)
            del self._history[:-MAX_HISTORY]
        self._at, self._new = len(self._history), ""
        return line

    def _insert(self, text: str) -> None:
        self.text = self.text[: self.cursor] + text + self.text[self.cursor :]
        self.cursor += len(text)

    def _cut(self, start: int, end: int, keep: bool = True) -> None:
        if keep and start < end:
            self._killed = self.text[start:end]
        self.text = self.text[:start] + self.text[end:]
        self.cursor = start

    def _word_start(self) -> int:
        start = self.cursor
        while start and self.text[start - 1].isspace():
            start -= 1
        while start and not self.text[start - 1].isspace():
            start -= 1
        return start

    def _word_end(self) -> int:
        end = self.cursor
        while end < len(self.text) and self.text[end].isspace():
            end += 1
        while end < len(self.text) and not self.text[end].isspace():
            end += 1
        return end

    def _move(self, to: int) -> None:
        self.cursor = max(0, min(to, len(self.text)))

    def _recall(self, step: int) -> None:
        if not 0 <= self._at + step <= len(self._history):
            return
        if self._at == len(self._history):
            self._new = self.text
        self._at += step
        self.text = self._history[self._at] if self._at < len(self._history) else self._new
        self.cursor = len(self.text)


# What terminals send for the keys that have a name, and those of Emacs for the same.
_BINDINGS: Final[list[tuple[tuple[str, ...], Callable[[LineEditor], None]]]] = [
    (("\x02", "\x1b[D", "\x1bOD"), lambda e: e._move(e.cursor - 1)),
    (("\x06", "\x1b[C", "\x1bOC"), lambda e: e._move(e.cursor + 1)),
    (("\x01", "\x1b[H", "\x1bOH", "\x1b[1~", "\x1b[7~"), lambda e: e._move(0)),
    (("\x05", "\x1b[F", "\x1bOF", "\x1b[4~", "\x1b[8~"), lambda e: e._move(len(e.text))),
    (("\x1bb", "\x1b[1;5D"), lambda e: e._move(e._word_start())),
    (("\x1bf", "\x1b[1;5C"), lambda e: e._move(e._word_end())),
    (("\x10", "\x1b[A", "\x1bOA"), lambda e: e._recall(-1)),
    (("\x0e", "\x1b[B", "\x1bOB"), lambda e: e._recall(1)),
    (("\x04", "\x1b[3~"), lambda e: e._cut(e.cursor, e.cursor + 1, keep=False)),
    (("\x7f", "\x08"), lambda e: e._cut(max(e.cursor - 1, 0), e.cursor, keep=False)),
    (("\x17", "\x1b\x7f"), lambda e: e._cut(e._word_start(), e.cursor)),
    (("\x1bd",), lambda e: e._cut(e.cursor, e._word_end())),
    (("\x0b",), lambda e: e._cut(e.cursor, len(e.text))),
    (("\x15",), lambda e: e._cut(0, e.cursor)),
    (("\x19",), lambda e: e._insert(e._killed)),
]
_KEYS: Final = {key: action for keys, action in _BINDINGS for key in keys}


def _drawn(character: str) -> str:
    return " " if character == "\t" else character


def _width(character: str) -> int:
    """Return how many columns a terminal gives a character."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0  # it goes on top of the one before
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
