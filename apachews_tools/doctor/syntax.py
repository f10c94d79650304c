"""Checks of a configuration that httpd refuses: what mends it, told from httpd's words.

Contract: ``check_syntax(problem, …)`` yields the one finding about it.  Looks at whether
the files that httpd names can be read, and which modules Debian has to offer.

Sources: server/core.c and server/config.c (the texts), Debian's a2enmod(8).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apachews_tools.httpd.shell import this_program, word

from .finding import Finding, error, warning

# Beginnings of the names of directives -> Debian's module, the more special ones first.
MODULES: Final = {
    "WSGI": "wsgi",
    "SSL": "ssl",
    "Header": "headers",
    "RequestHeader": "headers",
    "Rewrite": "rewrite",
    "ProxyPass": "proxy_http",
    "Proxy": "proxy",
    "<Proxy": "proxy",
    "RemoteIP": "remoteip",
    "H2": "http2",
}
WSGI_PACKAGE: Final = "libapache2-mod-wsgi-py3"
_UNKNOWN: Final = re.compile(r"Invalid command '([^']+)'")
_ABSENT: Final = re.compile(
    r"(?:Could not open (?:configuration file|directory)|Cannot load) (/.+?)"
    r"(?:: No such file| into server: .*No such file)"
)
# Files that httpd could not read, or has taken for absent because it could not.
_UNREAD: Final = re.compile(
    r"file '(/[^']+)' does not exist|(?:configuration file|directory) (/.+?): Permission denied"
)


def check_syntax(
    problem: str, command: str, is_root: bool, modules: Path | None = None
) -> Iterator[Finding]:
    """Yield what there is to say about a configuration that httpd refuses.

    Args:
        problem: what httpd says.
        command: that says so, as a word of the shell.
        is_root: we are root, who may read everything.
        modules: Debian's directory of them, as /etc/apache2/mods-available; None: there is
            none, or this is a configuration of another kind.
    """
    hidden = None if is_root else _hidden_file(problem)
    if hidden:
        yield warning(
            "privileges",
            f"{hidden} is not for us to read, and so the configuration is not looked at",
            breaks="nothing; whether the configuration is good is not known",
            remedy=f"sudo {this_program()} doctor",
        )
        return
    yield error(
        "syntax",
        problem,
        breaks="Apache does not start, nor reload: it goes on with what it has",
        remedy=_mend(problem, modules)
        or f"{command} -t, when that line is mended"
        + ("" if is_root else "; as root, for it may be a file that only root may read"),
    )


def _mend(problem: str, modules: Path | None) -> str:
    """Return what mends it, "" where only who wrote the line can know."""
    if match := _ABSENT.search(problem):
        if "apachews" not in match[1] and "mod_wsgi" not in match[1]:
            return ""
        if modules is not None and "/mods-" in problem:
            return f"sudo {this_program()} config --debian, for where apachews is installed now"
        return f"in place of that line, those of {this_program()} config"
    match = _UNKNOWN.search(problem)
    if match is None:
        return ""
    name = match[1].lower()
    module = next((one for start, one in MODULES.items() if name.startswith(start.lower())), "")
    if not module:
        return ""
    if modules is None:
        file = "mod_wsgi's file" if module == "wsgi" else f"the path of mod_{module}.so"
        mends = f"LoadModule {module}_module with {file}, in front of that line"
        return f"{mends} ({this_program()} config prints it)" if module == "wsgi" else mends
    if (modules.parent / "mods-enabled" / f"{module}.load").exists():
        return ""  # it is there: a name that it does not know
    if module == "wsgi" and not (modules / "wsgi.load").exists():
        return f"sudo apt-get install {WSGI_PACKAGE} && sudo a2enmod wsgi"
    return f"sudo a2enmod {module}"


def _hidden_file(problem: str) -> str:
    """Return the file of which httpd speaks, where we may not read it; "" for none."""
    for match in _UNREAD.finditer(problem):
        path = match[1] or match[2]
        try:
            os.stat(path)
        except PermissionError:
            return word(path)
        except OSError:
            continue  # it really is not there
        if not os.access(path, os.R_OK):
            return word(path)
    return ""
