"""The command line: ``apachews COMMAND …``, or ``python -m apachews COMMAND …``.

Contract: ``main(arguments)`` runs one command and returns its exit status:

- 0: success;
- 1: failure, or errors were found; one line on standard error has the reason and the
  remedy;
- 2: invalid arguments; standard error has the usage;
- 130: Ctrl-C.

Each command is a module of this package with ``SUMMARY`` (a line), ``add_arguments``
(which also sets the parser's description and examples) and ``run`` (from the parsed
arguments to the exit status).  Results go to standard output, messages to standard error.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from apachews.exceptions import ApachewsError

from . import config, connect, doctor, listen, publish, run, status
from .command import Command, CommandError

COMMANDS: Final[dict[str, Command]] = {
    "config": config,
    "connect": connect,
    "doctor": doctor,
    "listen": listen,
    "publish": publish,
    "run": run,
    "status": status,
}
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: those of the command line, without the program's name; None: those
            in ``sys.argv``.

    Returns:
        The exit status.
    """
    parsed = make_parser().parse_args(arguments)
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # until here
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return COMMANDS[parsed.command].run(parsed)
    except (CommandError, ApachewsError) as error:
        return _fail(parsed.command, str(error))
    except BrokenPipeError:
        # The reader has closed the pipe, as head(1) does.  Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(parsed.command, f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        return INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """Return the parser for all commands."""
    parser = argparse.ArgumentParser(
        prog="apachews",
        description="WebSockets served by Apache httpd itself.",
        epilog="apachews COMMAND --help has details and examples.",
    )
    parser.add_argument("--version", action="version", version=f"apachews {version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(
                name,
                help=command.SUMMARY,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser


def version() -> str:
    """Return the installed version, ``(not installed)`` for a source tree."""
    try:
        return importlib.metadata.version("apachews")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _fail(command: str, problem: str) -> int:
    print(f"apachews {command}: {problem}", file=sys.stderr)
    return 1
