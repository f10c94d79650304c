"""A command of the command line: its interface, its errors, common arguments and cleanup."""

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

from apachews._processes.signals import Handlers, restore_handlers
from apachews.exceptions import ApachewsError

# A day.
MAX_SECONDS: Final = 86_400
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Command(Protocol):
    """A module of this package that is a command."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Describe the command and its arguments."""

    def run(self, arguments: argparse.Namespace, /) -> int:
        """Run the command; return the exit status."""


class CommandError(ApachewsError):
    """A command fails; the text has the reason and the remedy."""


def utf8_text(argument: str) -> str:
    """Reject an argument that is not UTF-8, which Python represents by surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{argument!r} is not UTF-8") from None
    return argument


def number(argument: str) -> int:
    """Parse a non-negative integer."""
    try:
        value = int(argument)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{argument!r}: expected a non-negative integer")
    return value


def seconds(argument: str) -> float:
    """Parse a duration in seconds."""
    try:
        value = float(argument)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{argument!r}: expected seconds between 0 and {MAX_SECONDS}"
        )
    return value


@contextmanager
def clean_up_at_signals() -> Iterator[None]:
    """Turn signals that end a program into exceptions, so that it can clean up.

    The first signal raises ``SystemExit``, Ctrl-C ``KeyboardInterrupt``.  Later ones are
    ignored until this context ends, because they would interrupt the cleanup.  A signal
    that was ignored before stays ignored, as with nohup(1).
    """
    before: Handlers = {
        number: handler
        for number in ENDING
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    try:
        for number in before:
            signal.signal(number, _raise_exit)
        yield
    finally:
        restore_handlers(before)


@contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """Make a directory; remove it with its contents at the end, also after a signal."""
    with clean_up_at_signals():
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
        finally:  # (a signal just before they were ignored interrupts the inner block)
            if path is not None:
                shutil.rmtree(path)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    ignore_signals()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def ignore_signals() -> None:
    """Ignore further signals; for the start of a cleanup within ``clean_up_at_signals``."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
