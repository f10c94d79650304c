"""Commands for users to paste into a shell, often as root.

Contract: ``word(path)`` is one word for the shell, whatever characters the path has: other
users may have chosen the names of files.  Pure, except ``this_program()`` and
``shipped(…)``, which depend on where apachews is installed.
"""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from pathlib import Path
from typing import Final

# Also in the short secure_path of sudo, which lacks /usr/local/bin on some systems.
_IN_EVERY_PATH: Final = (Path("/usr/bin"), Path("/bin"))


def word(argument: str | os.PathLike[str]) -> str:
    """Return an argument, quoted for a shell.

    Control characters, which could control the terminal, are written as ``$'\\033'``, which
    bash, ksh and zsh understand, and POSIX has since 2024.
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
    """Return the command that started this process, with its path: sudo has another PATH."""
    given = Path(sys.argv[0])
    if given.parent in _IN_EVERY_PATH:
        return given.name
    if given.name == "__main__.py":
        return f"{word(sys.executable)} -m {word(given.parent.name)}"
    return word(given.absolute()) if "/" in sys.argv[0] else "apachews"


def shipped(name: str) -> str:
    """Return the path of an installed file for users to copy, as a word.

    Args:
        name: its path below ``deploy`` in the sources.
    """
    # Debian's Python names /usr/local, where pip installs; its package has them in /usr.
    for prefix in (sysconfig.get_path("data"), "/usr"):
        installed = Path(prefix, "share", "apachews", name)
        if installed.exists():
            return word(installed)
    return f"deploy/{name}"
