"""What a command of the command line is, what several read and tidy up, and how it fails."""

from __future__ import annotations

import argparse
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

from apachews.exceptions import ApachewsError

# A day.
MAX_SECONDS: Final = 86_400
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Command(Protocol):
    """A module of this package."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Describe the command and its arguments."""

    def run(self, arguments: argparse.Namespace, /) -> int:
        """Do it; return the exit status."""


class CommandError(ApachewsError):
    """A command cannot do what it was asked to; the text says why, and what to do."""


def utf8_text(argument: str) -> str:
    """Check that an argument is text; what is not UTF-8 Python has as surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{argument!r} is not UTF-8") from None
    return argument


def number(argument: str) -> int:
    """Read a number of things: 0 or more."""
    try:
        value = int(argument)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{argument!r} is no number of 0 or more")
    return value


def seconds(argument: str) -> float:
    """Read a time, which select(2) can wait for too."""
    try:
        value = float(argument)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{argument!r}: how many seconds? More than 0, {MAX_SECONDS} at most"
        )
    return value


@contextmanager
def tidy_at_signals() -> Iterator[None]:
    """Have signals that end a program raise an exception, so that what was begun is tidied up.

    The first of them does: ``SystemExit``, Ctrl-C ``KeyboardInterrupt``.  Those after it
    are ignored until this ends, or they would break the tidying off.
    A signal that was ignored before stays so, as with nohup(1).
    """
    before = {
        number: handler
        for number in ENDING
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    try:
        for number in before:
            signal.signal(number, _raise_exit)
        yield
    finally:
        for number, handler in before.items():
            # None: it was set by C code, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """Make a directory, and remove it with all that is in it, whichever signal may come."""
    with tidy_at_signals():
        path: str | None = None
        try:
            try:
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
                try:
                    path = tempfile.mkdtemp(prefix=prefix)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                yield Path(path)
            finally:
                ignore_signals()
        finally:  # (a signal that came just before they were ignored has ended the other one)
            if path is not None:
                shutil.rmtree(path)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    ignore_signals()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def ignore_signals() -> None:
    """Within ``tidy_at_signals``, when tidying up begins: from here on nothing breaks it off."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
