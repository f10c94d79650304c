"""Standard input and output of a command that shows messages while the user types.

Contract: ``async for line in console.lines()`` yields the lines of standard input;
``show``, ``show_json`` and ``note`` write to standard output and standard error, also
while ``lines`` waits for the user.  One event loop, one thread.

On a terminal prompt_toolkit (``apachews[cli]``) edits the line, and output appears above
it.  Without prompt_toolkit, on a dumb terminal, or from a pipe or a file, lines are read
as they are.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, TextIO

from apachews_tools.cli.command import CommandError

from .readable import wait_readable
from .terminal import FAINT, has_cursor, json_line, paint, uses_colour

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

PROMPT: Final = "> "
# A line of standard input is a message, and few servers accept more than some MiB.
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
_READ_BYTES: Final = 65536


class Console:
    """Standard input, output and error.

    Args:
        reads: whether ``lines`` will be called.

    Attributes:
        is_typed: whether a user types the lines.
        is_interactive: whether a user types, on a terminal that can overwrite a row.
        is_shown: whether ``show`` writes to a terminal, which escape sequences in a
            message could control.
        colours: whether ``show`` writes to a terminal with colours.
    """

    def __init__(self, reads: bool = True) -> None:
        self._input: TextIO | None = sys.stdin
        self._output: TextIO = sys.stdout
        self.is_typed = self._input is not None and self._input.isatty()
        self.is_shown = self._output.isatty()
        self.colours = uses_colour(self._output)
        self.is_interactive = self.is_typed and has_cursor(self._output)
        self._session: PromptSession[str] | None = None
        if reads and self.is_interactive:
            self._session = self._new_session()

    async def lines(self) -> AsyncIterator[str]:
        """Yield the lines of standard input, without their line feeds.

        The rest of the input after its last line feed is a line as well.  Ctrl-C while
        the user types raises SIGINT in this process.

        Raises:
            CommandError: a line is not UTF-8, or too long.
        """
        if self._session:
            lines = self._typed_lines(self._session)
        elif self._input:
            lines = self._read_lines(self._input.fileno())
        else:
            return
        async for line in lines:
            yield line

    def show(self, text: str) -> None:
        """Write a line, or several, to standard output."""
        self._write(self._output, text)

    def show_json(self, document: dict[str, Any]) -> None:
        """Write an object to standard output, on one line."""
        self.show(json_line(document, self._output))

    def note(self, text: str, colour: str = FAINT) -> None:
        """Write a line, or several, to standard error, coloured if it is a terminal."""
        self._write(sys.stderr, paint(text, colour) if uses_colour(sys.stderr) else text)

    def _new_session(self) -> PromptSession[str] | None:
        try:
            from prompt_toolkit import PromptSession
            from prompt_toolkit.output import create_output
            from prompt_toolkit.output.vt100 import Vt100_Output
        except ModuleNotFoundError:
            self.note(
                "prompt_toolkit is not installed, so messages interrupt the line that you"
                " type: pip install 'apachews[cli]' (Debian: python3-prompt-toolkit)"
            )
            return None
        output = create_output(self._output)
        if isinstance(output, Vt100_Output):
            # A prompt without menus needs no position of the cursor.  A slow terminal would
            # answer the question after the prompt, and the answer would appear as typed text.
            output.enable_cpr = False
        # A finished row is erased, and written again as text: a cancelled one disappears.
        return PromptSession(erase_when_done=True, enable_suspend=True, output=output)

    async def _typed_lines(self, session: PromptSession[str]) -> AsyncIterator[str]:
        while True:
            try:
                text = await session.prompt_async(PROMPT, handle_sigint=False)
            except EOFError:
                return
            except KeyboardInterrupt:
                # prompt_toolkit reads Ctrl-C as a key.  The signal cancels this task.
                signal.raise_signal(signal.SIGINT)
                await asyncio.Event().wait()
            for line in text.split("\n"):  # several were pasted
                self.show(PROMPT + line)
                yield line

    async def _read_lines(self, fd: int) -> AsyncIterator[str]:
        number, rest = 0, b""
        while True:
            await wait_readable(fd)
            try:
                data = os.read(fd, _READ_BYTES)
            except OSError:  # EIO: the terminal has hung up
                data = b""
            *lines, rest = (rest + data).split(b"\n")
            if not data and rest:
                lines.append(rest)
            for line in lines:
                number += 1
                yield _decode(line, number)
            if len(rest) > MAX_LINE_BYTES:
                raise CommandError(
                    f"line {number + 1} of standard input has more than {MAX_LINE_BYTES} bytes"
                )
            if not data:
                return

    def _write(self, stream: TextIO, text: str) -> None:
        app = self._session.app if self._session and self._session.app.is_running else None
        if app:
            # prompt_toolkit's run_in_terminal would let the terminal echo what the user types
            # meanwhile.  Line feeds need no other mode of the terminal: it still adds the CR.
            app.renderer.erase()
        stream.write(f"{text}\n")
        stream.flush()
        if app:
            app.invalidate()  # draws the row again


def _decode(line: bytes, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise CommandError(
            f"line {number} of standard input is not UTF-8 (byte {error.start})"
        ) from None
