"""The check of a configuration that httpd rejects: the remedy follows from httpd's message.

Contract: ``check_syntax(problem, …)`` yields one finding.  Checks whether the files that
httpd names are readable, and which modules Debian offers.

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

# Prefix of a directive's name -> Debian's module; longer prefixes first.
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
# Files that httpd could not read, or reported as absent because it could not read them.
_UNREAD: Final = re.compile(
    r"file '(/[^']+)' does not exist|(?:configuration file|directory) (/.+?): Permission denied"
)


def check_syntax(
    problem: str, command: str, is_root: bool, modules: Path | None = None
) -> Iterator[Finding]:
    """Yield the finding about a configuration that httpd rejects.

    Args:
        problem: httpd's message.
        command: the program that printed it, as a word of the shell.
        is_root: whether this process is root, who may read every file.
        modules: Debian's directory of modules, /etc/apache2/mods-available; None if the
            configuration is not Debian's.
    """
    hidden = None if is_root else _hidden_file(problem)
    if hidden:
        yield warning(
            "privileges",
            f"{hidden} is not readable, so the configuration was not checked",
            breaks="nothing; but it is unknown whether the configuration is valid",
            remedy=f"sudo {this_program()} doctor",
        )
        return
    yield error(
        "syntax",
        problem,
        breaks="Apache does not start, and a reload keeps the previous configuration",
        remedy=_remedy(problem, modules)
        or f"correct that line, and check it with {command} -t"
        + ("" if is_root else "; as root, if the file is one that only root may read"),
    )


def _remedy(problem: str, modules: Path | None) -> str:
    """Return the remedy, "" if only the author of the line can know it."""
    if match := _ABSENT.search(problem):
        if "apachews" not in match[1] and "mod_wsgi" not in match[1]:
            return ""
        if modules is not None and "/mods-" in problem:
            return f"sudo {this_program()} config --debian, for the current place of apachews"
        return f"replace that line by those of {this_program()} config"
    match = _UNKNOWN.search(problem)
    if match is None:
        return ""
    name = match[1].lower()
    module = next((one for start, one in MODULES.items() if name.startswith(start.lower())), "")
    if not module:
        return ""
    if modules is None:
        file = "mod_wsgi's file" if module == "wsgi" else f"the path of mod_{module}.so"
        load = f"LoadModule {module}_module with {file}, before that line"
        return f"{load} ({this_program()} config prints it)" if module == "wsgi" else load
    if (modules.parent / "mods-enabled" / f"{module}.load").exists():
        return ""  # it is loaded, and does not know the name
    if module == "wsgi" and not (modules / "wsgi.load").exists():
        return f"sudo apt-get install {WSGI_PACKAGE} && sudo a2enmod wsgi"
    return f"sudo a2enmod {module}"


def _hidden_file(problem: str) -> str:
    """Return the file in httpd's message if this process may not read it, else ""."""
    for match in _UNREAD.finditer(problem):
        path = match[1] or match[2]
        try:
            os.stat(path)
        except PermissionError:
            return word(path)
        except OSError:
            continue  # it does not exist
        if not os.access(path, os.R_OK):
            return word(path)
    return ""
