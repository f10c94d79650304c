"""Standard input and output of a command; the rest is tried through the commands."""

from __future__ import annotations

import os
import pty
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from apachews_tools.terminal.console import Console


@contextmanager
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Have standard input and output be a terminal; give its descriptor.

    No fixture: pytest changes both between a fixture and its test.
    """
    parent, child = pty.openpty()
    with (
        open(child, closefd=False) as stdin,
        open(child, "w", closefd=False) as stdout,
        monkeypatch.context() as patch,
    ):
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        yield child
    os.close(parent)
    os.close(child)


def test_ctrl_c_at_the_very_start_leaves_the_terminal_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with on_terminal(monkeypatch) as terminal:

        def interrupt(console: Console) -> None:
            assert termios.tcgetattr(terminal) != modes  # it has begun
            raise KeyboardInterrupt

        modes = termios.tcgetattr(terminal)
        handler = signal.getsignal(signal.SIGWINCH)
        monkeypatch.setattr(Console, "_draw", interrupt)
        with pytest.raises(KeyboardInterrupt), Console():
            raise AssertionError("not reached")
        assert termios.tcgetattr(terminal) == modes
        assert signal.getsignal(signal.SIGWINCH) == handler


def test_a_window_that_changes_while_the_row_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes when the old size is known already, and the row is not out yet."""
    sizes = [60, 30]
    asked = []

    def size(fd: int) -> os.terminal_size:
        asked.append(sizes.pop(0))
        if sizes:
            signal.raise_signal(signal.SIGWINCH)
        return os.terminal_size((asked[-1], 24))

    with on_terminal(monkeypatch):
        monkeypatch.setattr(os, "get_terminal_size", size)
        with Console() as console:
            assert asked == [60, 30]
            sizes += [50, 20, 10]
            console.show("a line")
            assert asked == [60, 30, 50, 20, 10]
            sizes += [40, 25]
            signal.raise_signal(signal.SIGWINCH)
            assert asked == [60, 30, 50, 20, 10, 40, 25]
