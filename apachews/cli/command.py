"""What a command of the command line is, and how it fails."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from ..exceptions import ApachewsError


class Command(Protocol):
    """A module of this package."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Describe the command and its arguments."""

    def run(self, arguments: argparse.Namespace, /) -> int:
        """Do it; return the exit status."""


class CommandError(ApachewsError):
    """A command cannot do what it was asked to; the text says why, and what to do."""


@contextmanager
def tidy_at_sigterm() -> Iterator[None]:
    """Have SIGTERM raise SystemExit meanwhile, so that what was begun is tidied up."""
    before = signal.signal(signal.SIGTERM, _raise_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
