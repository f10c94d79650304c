"""Commands as they are printed, to be pasted into a shell, often one of root's.

Contract: ``word(path)`` is one word to the shell, whatever the path has in it: who may
create files in a document root chooses their names.  Pure, but for ``this_program()``
and ``shipped(…)``, which look at where apachews runs from.
"""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from pathlib import Path


def word(argument: str | os.PathLike[str]) -> str:
    """Return an argument as a shell reads it back.

    What would steer the terminal that it is printed on is written as ``$'\\033'``, which
    bash, ksh and zsh know, and POSIX since 2024.
    """
    text = os.fspath(argument)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(character: str) -> str:
    if character.isprintable() and character not in "\\'":
        return character
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def this_program() -> str:
    """Return the command that has started this: sudo does not look where we were found."""
    given = Path(sys.argv[0])
    if given.name == "__main__.py":
        return f"{word(sys.executable)} -m {word(given.parent.name)}"
    return word(given.absolute()) if "/" in sys.argv[0] else "apachews"


def shipped(name: str) -> str:
    """Return the path of a file that is installed to be copied, as a word.

    Args:
        name: as it is below ``deploy`` in the sources.
    """
    installed = Path(sysconfig.get_path("data")) / "share" / "apachews" / name
    return word(installed) if installed.exists() else f"deploy/{name}"
