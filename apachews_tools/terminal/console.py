"""Standard input and output of a command that shows what comes while one types.

Contract: ``with Console(…) as console``, then ``console.fileno()`` in a loop of
select's, ``read_lines_nowait()`` when it is readable, ``show`` and ``note`` for
output.  On a terminal a row at the bottom is for typing (``editor.py``), and output
goes above it.  From a pipe or a file lines are read as they are.  One thread, the
main one.

The terminal is in "cbreak" mode meanwhile: it sends every key, and Ctrl-C and Ctrl-Z
mean what they always do.  Its modes are put back however the command ends.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import sys
import termios
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Final, TextIO

from apachews_tools.cli.command import CommandError

from .editor import EndOfInput, LineEditor
from .terminal import FAINT, has_cursor, json_line, paint, uses_colour

PROMPT: Final = "> "
# A line of standard input is a message; no server takes more than some MiB.
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
_READ_BYTES: Final = 65536
_CLEAR_ROW: Final = "\r\x1b[K"


class Console:
    """Standard input, output and error.

    Args:
        prompt: before what is being typed.

    Attributes:
        is_interactive: whether there is a row for typing.
        is_shown: whether ``show`` goes to a terminal, which text of a stranger could steer.
        has_ended: whether standard input has.
        colours: whether ``show`` goes to a terminal that has them.
    """

    def __init__(self, prompt: str = PROMPT) -> None:
        self._prompt = prompt
        self._input: TextIO | None = sys.stdin
        self._output: TextIO = sys.stdout
        self.has_ended = self._input is None
        self.is_shown = self._output.isatty()
        self.is_interactive = (
            self._input is not None and self._input.isatty() and has_cursor(self._output)
        )
        self.colours = uses_colour(self._output)
        self._editor = LineEditor()
        self._decoder = codecs.getincrementaldecoder("utf-8")(
            "replace" if self.is_interactive else "strict"
        )
        self._data = b""  # of a pipe: the line that is not finished
        self._lines_read = 0
        self._is_drawn = False
        self._is_writing = False
        self._is_stale = False  # a signal has come that wants the row drawn anew
        self._modes: list[Any] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Console:
        try:
            if self.is_interactive:
                self._modes = termios.tcgetattr(self.fileno())
                for number in (signal.SIGCONT, signal.SIGWINCH):
                    self._handlers[number] = signal.signal(number, self._redraw)
                self._enter_cbreak()
                with self._writing():
                    self._draw()
        except BaseException:  # Ctrl-C: there will be no __exit__
            self._restore()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._modes is not None:
            self._erase()
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self.fileno(), termios.TCSADRAIN, self._modes)
            self._modes = None

    def fileno(self) -> int:
        """Return standard input's descriptor; not to be asked for once ``has_ended``."""
        assert self._input is not None
        return self._input.fileno()

    def read_lines_nowait(self) -> list[str]:
        """Return the lines that have been finished, without their line feeds.

        What is left at the end of the input is a line as well.

        Raises:
            CommandError: a line that is not UTF-8, or too long.
        """
        if self.has_ended or not select.select([self], [], [], 0)[0]:
            return []
        try:
            data = os.read(self.fileno(), _READ_BYTES)
        except OSError:  # EIO: the terminal has hung up
            data = b""
        lines = self._edit(data) if self.is_interactive else self._split(data)
        if not data:
            self.has_ended = True
        return lines

    def show(self, text: str) -> None:
        """Write lines to standard output."""
        self._write(self._output, text)

    def show_json(self, document: dict[str, Any]) -> None:
        """Write an object to standard output, in a line."""
        self.show(json_line(document, self._output))

    def note(self, text: str, colour: str = FAINT) -> None:
        """Write lines to standard error, in a colour where it is a terminal."""
        self._write(sys.stderr, paint(text, colour) if uses_colour(sys.stderr) else text)

    def _write(self, stream: TextIO, text: str) -> None:
        with self._writing():
            self._erase()
            stream.write(f"{text}\n")
            stream.flush()
            self._draw()

    def _edit(self, data: bytes) -> list[str]:
        lines = []
        with self._writing():
            self._erase()
            for result in self._editor.type(self._decoder.decode(data)):
                if isinstance(result, EndOfInput):
                    self.has_ended = True
                    break
                self._output.write(f"{self._prompt}{result}\n")
                lines.append(result)
            self._draw()
        return lines

    def _split(self, data: bytes) -> list[str]:
        *whole, self._data = (self._data + data).split(b"\n")
        if not data and self._data:
            whole.append(self._data)
        if len(self._data) > MAX_LINE_BYTES:
            raise CommandError(
                f"line {self._lines_read + len(whole) + 1} of standard input has more than"
                f" {MAX_LINE_BYTES} bytes"
            )
        lines = []
        for line in whole:
            self._lines_read += 1
            try:
                lines.append(line.removesuffix(b"\r").decode())
            except UnicodeDecodeError as error:
                raise CommandError(
                    f"line {self._lines_read} of standard input is not UTF-8 (byte {error.start})"
                ) from None
        return lines

    def _draw(self) -> None:
        if self._modes is None or self.has_ended:
            return
        columns = os.get_terminal_size(self._output.fileno()).columns or 80
        shown, column = self._editor.view(columns - len(self._prompt))
        self._output.write(f"{_CLEAR_ROW}{self._prompt}{shown}\r\x1b[{len(self._prompt) + column}C")
        self._output.flush()
        self._is_drawn = True

    def _erase(self) -> None:
        if self._is_drawn:
            self._is_drawn = False
            with contextlib.suppress(OSError):
                self._output.write(_CLEAR_ROW)
                self._output.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep a signal's handler from writing into what is being written.

        What it would have drawn is drawn at the end, for the row may have been drawn in
        the window's old size already.
        """
        self._is_writing = True
        try:
            yield
        finally:
            self._is_writing = False
        while self._is_stale:
            self._is_writing, self._is_stale = True, False
            try:
                self._draw()
            finally:
                self._is_writing = False

    def _enter_cbreak(self) -> None:
        assert self._modes is not None
        modes = [*self._modes[:6], list(self._modes[6])]
        modes[3] &= ~(termios.ECHO | termios.ICANON)
        modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.fileno(), termios.TCSADRAIN, modes)

    def _redraw(self, number: int, frame: FrameType | None) -> None:
        """After Ctrl-Z and ``fg``, and when the window has another size."""
        if number == signal.SIGCONT:
            self._enter_cbreak()
        self._is_stale = True
        if not self._is_writing:
            with self._writing():
                pass  # its end draws
