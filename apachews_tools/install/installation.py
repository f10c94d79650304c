"""The directives that ``apachews config`` prints.

Contract: ``server_directives(environment, …)`` returns the lines that the server needs,
``tls_virtual_host(…)`` those of a site; comments in the text give the reasons.
``choose_wsgi_module``, ``require_packages`` and ``require_readable`` raise if the
installation cannot work.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apachews.exceptions import ApachewsError
from apachews_tools.httpd.permissions import ENTER, READ, Account, obstacles
from apachews_tools.httpd.python_environment import PythonEnvironment, python_of, version_text
from apachews_tools.httpd.shell import word

# Debian's package of the handler and of this command.
PACKAGE: Final = "libapache2-mod-apachews"
# The user of httpd's children on Debian, on Fedora and its derivatives, and on SUSE.
USERS: Final = ("www-data", "apache", "wwwrun")
SYSTEM_PREFIX: Final = Path("/usr")
LETSENCRYPT: Final = Path("/etc/letsencrypt/live")
_HOST_NAME: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")


class SetUpError(ApachewsError):
    """An installation cannot work in Apache; the text has the reason and the remedy."""


@dataclass(frozen=True)
class WsgiModule:
    """The mod_wsgi to use.

    Attributes:
        path: its file.
        is_systems: whether the distribution's configuration loads it.
        conflicts: whether the distribution has another one, for another Python.
    """

    path: Path
    is_systems: bool
    conflicts: bool = False


def choose_wsgi_module(environment: PythonEnvironment, given: Path | None = None) -> WsgiModule:
    """Return the mod_wsgi that was built for the environment's Python.

    Args:
        environment: where apachews is installed.
        given: the one that Apache loads already; None: search.

    Raises:
        SetUpError: mod_wsgi is not installed for this Python.
        OSError: its file is not readable.
    """
    mine = version_text(environment.version)
    system = given or environment.system_wsgi_module
    systems = python_of(system) if system else None
    # If two fit, prefer the one that was built for this interpreter.
    is_own = environment.wsgi_module is not None and environment.base_prefix != SYSTEM_PREFIX
    if (
        system
        and not (is_own and not given)
        and (systems == environment.version or (systems is None and given))
    ):
        return WsgiModule(system, True)
    if environment.wsgi_module and not given:
        built_for = python_of(environment.wsgi_module)
        if built_for in (environment.version, None):
            return WsgiModule(environment.wsgi_module, False, system is not None)
        raise SetUpError(
            f"{environment.wsgi_module} is built for Python {version_text(built_for)}, but this is"
            f" Python {mine}: {_pip(environment)} install --force-reinstall mod_wsgi"
        )
    if system is None:
        raise SetUpError(
            "mod_wsgi is not installed: on Debian, for the system's Python, apt-get install"
            f" libapache2-mod-wsgi-py3; for another Python, {_pip(environment)} install"
            " mod_wsgi (which needs apache2-dev)"
        )
    other = version_text(systems) if systems else "another"
    raise SetUpError(
        f"{system} is built for Python {other}, but this is Python {mine}: install apachews in an"
        f" environment of that Python (/usr/bin/python{other} -m venv /opt/apachews), or install"
        f" a mod_wsgi for this one: {_pip(environment)} install mod_wsgi (which needs"
        " apache2-dev)"
    )


def _pip(environment: PythonEnvironment) -> str:
    return word(environment.prefix / "bin" / "pip")


def apache_account(names: Iterable[str] = USERS) -> Account | None:
    """Return the account of httpd's user, None if none of these names exists."""
    for name in names:
        try:
            return Account.named(name)
        except KeyError:
            continue
    return None


def require_packages(environment: PythonEnvironment) -> None:
    """Check that the handler's packages are installed.

    Raises:
        SetUpError: a package is missing.
    """
    missing = [
        name
        for name, is_there in (
            ("apachews_handler", (environment.handler / "wsgi.py").exists()),
            ("wsproto", importlib.util.find_spec("wsproto") is not None),
        )
        if not is_there
    ]
    if missing:
        raise SetUpError(
            f"{' and '.join(missing)}: not installed in {environment.prefix};"
            f" {_pip(environment)} install 'apachews[bridge]'"
        )


def require_readable(environment: PythonEnvironment, account: Account) -> None:
    """Check that httpd's user can read the interpreter and the packages.

    Raises:
        SetUpError: it cannot; the text has the remedies.
        OSError: a file does not exist.
    """
    wanted = [
        (environment.prefix, ENTER | READ),
        (environment.base_prefix / "lib", ENTER | READ),
        (environment.packages, ENTER | READ),
        (environment.shipped, READ),
        *((path, READ) for path in sorted(environment.handler.glob("*.py"))),
    ]
    found = dict.fromkeys(
        obstacle for path, right in wanted for obstacle in obstacles(account, path, right)
    )
    if found:
        first = next(iter(found))
        raise SetUpError(
            f"Apache's user {account.name} cannot read this installation: {first.path} has mode"
            f" {first.mode}; {' && '.join(one.remedy for one in found)}, or install apachews"
            " elsewhere, for example in /opt/apachews"
        )


def server_directives(
    environment: PythonEnvironment,
    module: WsgiModule,
    *,
    shares_python: bool = False,
    loads_module: bool = True,
) -> str:
    """Return the lines that the server needs once.

    Args:
        environment: the one that has apachews.
        module: the mod_wsgi.
        shares_python: whether the site runs other Python code in Apache's children, and
            has its own WSGIPythonHome.
        loads_module: whether to write ``LoadModule`` if the distribution does not.
    """
    parts = [
        f"# apachews: WebSockets served by Apache itself, from {_origin(environment)}.\n"
        "# At the level of the server, once."
    ]
    if loads_module and not module.is_systems:
        parts.append(load_module(module))
    if environment.is_packaged and not shares_python:
        parts.append(
            "# Python: the system's, which finds apachews_handler and wsproto by itself.\n"
            "# If the site sets WSGIPythonHome for another application, add this line; the\n"
            "# environment must be one of the same version of Python.\n"
            f"#WSGIPythonPath {quoted(environment.packages)}"
        )
    elif shares_python or environment.is_distributions:
        parts.append(
            "# A further directory for imports: it has apachews, apachews_handler and wsproto.\n"
            "# Without it every WebSocket is a 500. (WSGIPythonHome stays as it is. A second\n"
            "# WSGIPythonPath would replace this one: join them with a colon.)\n"
            f"WSGIPythonPath {quoted(environment.packages)}"
        )
    else:
        parts.append(
            "# The Python environment of Apache's children: it has apachews_handler and wsproto.\n"
            "# Without it every WebSocket is a 500. mod_wsgi's embedded mode has only one: if the\n"
            "# site sets it already, use the lines of apachews config --share-python.\n"
            f"WSGIPythonHome {quoted(environment.prefix)}"
        )
        if not environment.packages.is_relative_to(environment.prefix):
            parts.append(
                "# apachews is not in that environment (a checkout?), but in this directory.\n"
                f"WSGIPythonPath {quoted(environment.packages)}"
            )
    parts.append(
        "# The handler and its directives, each with its reason; AddHandler websocket .ws is one\n"
        "# of them.\n"
        f"Define APACHEWS_HANDLER {quoted(environment.handler)}\n"
        f"Include {quoted(environment.shipped)}"
    )
    return "\n\n".join(parts) + "\n"


def _origin(environment: PythonEnvironment) -> str:
    """Return the name of the installation; a package's does not depend on a version of Python."""
    if environment.is_packaged:
        return f"the package {PACKAGE}"
    return f"{environment.prefix} (Python {version_text(environment.version)})"


def load_file(module: WsgiModule) -> str:
    """Return the file for a2enmod: modules to enable, modules in conflict, and LoadModule."""
    if module.is_systems:
        return "# Depends: wsgi mime env\n"
    conflicts = "# Conflicts: wsgi\n" if module.conflicts else ""
    return f"# Depends: mime env\n{conflicts}\n{load_module(module)}\n"


def load_module(module: WsgiModule) -> str:
    """Return the ``LoadModule`` of a mod_wsgi from PyPI, with its reason."""
    other = (
        "# The distribution's is for another Python, and must not be loaded: a2dismod wsgi.\n"
        if module.conflicts
        else ""
    )
    return (
        f"# mod_wsgi, installed with pip for this Python.\n{other}"
        f"LoadModule wsgi_module {quoted(module.path)}"
    )


def tls_virtual_host(
    name: str, document_root: Path, certificate: Path | None = None, key: Path | None = None
) -> str:
    """Return a site with TLS.

    Args:
        name: of the host, for example chat.example.org.
        document_root: its directory.
        certificate, key: PEM files; None: those of certbot.

    Raises:
        SetUpError: the name is invalid, or a path is not absolute.
    """
    name = name.lower().removesuffix(".")
    if not _HOST_NAME.fullmatch(name) or len(name) > 253:
        raise SetUpError(f"invalid host name {name!r}; expected one like chat.example.org")
    if not document_root.is_absolute():
        raise SetUpError(f"--docroot {document_root}: expected an absolute path")
    root = quoted(document_root)
    certificate = certificate or LETSENCRYPT / name / "fullchain.pem"
    key = key or LETSENCRYPT / name / "privkey.pem"
    return f"""\
# https://{name}/, with WebSockets at wss://{name}/*.ws.
# Needs mod_ssl and mod_alias (on Debian: a2enmod ssl), and the lines that "apachews config"
# prints without --tls-vhost.
#
# Producers make their sockets in or below the document root; for producers that run as
# Apache's user:  install -d -o www-data {word(document_root / "ws")}

<VirtualHost *:80>
    ServerName {name}
    DocumentRoot {root}
    # A page loaded over http could only open ws://, which is not encrypted. The files by
    # which certbot proves that the name is yours stay reachable.
    RedirectMatch permanent "^/(?!\\.well-known/acme-challenge/)(.*)$" "https://{name}/$1"
    <Directory {root}>
        Require all granted
    </Directory>
</VirtualHost>

<VirtualHost *:443>
    ServerName {name}
    DocumentRoot {root}

    SSLEngine on
    # With the intermediate certificates: programs reject a certificate without them.
    SSLCertificateFile {quoted(certificate)}
    SSLCertificateKeyFile {quoted(key)}

    # One line in the error log for every WebSocket that closes.
    LogLevel warn wsgi:info

    <Directory {root}>
        # FollowSymLinks: without it httpd treats a socket as a link that it may not
        # follow, and every WebSocket is a 403 (AH00038).
        Options FollowSymLinks
        AllowOverride None
        Require all granted
        # Limits, origins and all other settings: docs/reference/configuration.md
        #SetEnv APACHEWS_MAX_MESSAGE 256K
    </Directory>
</VirtualHost>
"""


def quoted(path: Path) -> str:
    """Return a path, quoted for httpd's configuration.

    Raises:
        SetUpError: the path cannot be written there.
    """
    text = str(path)
    if re.search(r'["\\\n\r]|\$\{', text):
        raise SetUpError(f"{text!r} has characters that httpd's configuration does not allow")
    return f'"{text}"' if re.search(r"\s|#", text) else text
