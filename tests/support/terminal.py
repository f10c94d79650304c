"""A terminal for commands that want one: a pty, and what its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyte

from ..conftest import wait_for

ROOT = Path(__file__).parents[2]
COLUMNS = 100
# So many that nothing scrolls out of sight.
ROWS = 200


class Screen(pyte.Screen):
    """What the terminal shows; it answers questions for the position of the cursor.

    Attributes:
        late: the answers of a slow terminal, until ``Terminal.answer_late``; None: it is fast.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(COLUMNS, ROWS)
        self.painted: list[str] = []  # parameters of the colours that were used
        self.late: list[str] | None = None
        self._fd = fd

    @property
    def rows(self) -> list[str]:
        """The rows down to the last one with text; the last one may be that of the cursor."""
        rows = [row.rstrip() for row in self.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def select_graphic_rendition(self, *parameters: int, **options: Any) -> None:
        self.painted += [str(parameter) for parameter in parameters if parameter]
        super().select_graphic_rendition(*parameters, **options)

    def write_process_input(self, data: str) -> None:
        if self.late is None:
            os.write(self._fd, data.encode())
        else:
            self.late.append(data)


class Terminal:
    """A command that runs in a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self.screen = Screen(fd)
        self._stream = pyte.ByteStream(self.screen)
        self._fd = fd

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def answer_late(self) -> None:
        """Answer the questions that a slow terminal has left open."""
        self.type("".join(self.screen.late or ()))

    @property
    def unread_bytes(self) -> int:
        """The number of bytes that wait for ``read``; a terminal keeps a few thousand."""
        count = fcntl.ioctl(self._fd, termios.FIONREAD, struct.pack("i", 0))
        return int(struct.unpack("i", count)[0])

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._fd)

    @modes.setter
    def modes(self, modes: list[Any]) -> None:
        termios.tcsetattr(self._fd, termios.TCSANOW, modes)

    def resize(self, columns: int) -> None:
        """Give the window another width; the program gets SIGWINCH."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("4H", ROWS, columns, 0, 0))
        self.screen.resize(columns=columns)

    def read(self) -> list[str]:
        """Return the rows, with what has been written by now."""
        while select.select([self._fd], [], [], 0)[0]:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:  # EIO: no process has it open any more
                break
            if not data:
                break
            self._stream.feed(data)
        return self.screen.rows

    def wait_for_rows(self, *rows: str) -> None:
        """Wait until the last rows are these."""
        wait_for(lambda: self.read()[-len(rows) :] == list(rows), what=lambda: self.screen.rows)

    def wait_for_row(self, pattern: str) -> re.Match[str]:
        """Wait until a row matches."""

        def find() -> re.Match[str] | None:
            for row in self.read():
                if match := re.search(pattern, row):
                    return match
            return None

        found = wait_for(find, what=lambda: self.screen.rows)
        assert found
        return found

    def wait(self) -> int:
        """Wait for the end; return the exit status."""

        def has_ended() -> bool:
            self.read()  # a program cannot end while its last words wait for a reader
            return self.process.poll() is not None

        wait_for(has_ended, what=lambda: self.screen.rows)
        self.read()
        return int(self.process.returncode)


@contextmanager
def in_terminal(*command: str, env: dict[str, str] | None = None) -> Iterator[Terminal]:
    """Run Python with these arguments in a terminal; at the end it must be gone, or is killed."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    environ.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", _CONTROLLING, *command],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**environ, **(env or {})},
        start_new_session=True,
    )
    os.close(child)
    try:
        yield Terminal(process, parent)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(parent)


# Makes standard input the terminal that Ctrl-C belongs to, and becomes the command.
_CONTROLLING = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-W", "error", *sys.argv[1:]])
"""
