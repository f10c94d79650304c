"""What a command of the command line is, and how it fails."""

from __future__ import annotations

import argparse
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
