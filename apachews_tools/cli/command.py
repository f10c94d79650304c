"""A command of the command line: its interface, its errors, common arguments and cleanup."""

from __future__ import annotations

import argparse
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from apachews._processes.signals import Signals
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
def temporary_directory(prefix: str) -> Iterator[tuple[Path, Signals]]:
    """Make a directory, remove it with its contents at the end, and defer signals until then.

    A signal that would end the program interrupts nothing in this context: the program reads
    ``Signals`` at places of its choice.  (An exception of a signal handler can be raised inside
    a callback of Python's import system or inside ``__del__``, which discard it: the program
    would continue as if there had been no signal.)  A signal that was ignored before stays
    ignored, as with nohup(1).
    """
    signals = Signals(number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN)
    try:
        path = tempfile.mkdtemp(prefix=prefix)
        try:
            yield Path(path), signals
        finally:
            shutil.rmtree(path)
    finally:
        signals.close()


def exit_if_signalled(signals: Signals) -> None:
    """End the program if a signal has arrived, before the start of what would end in order.

    Raises:
        SystemExit: with status 0.
    """
    if signals.receive_nowait():
        raise SystemExit(0)
