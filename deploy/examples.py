"""Install the examples in a site: their pages, producers and configuration.

Contract: for the demo and the tests, which have a private Apache.  ``Examples(…)`` copies the
files, and has the producers to run and the directives to include; it starts no process.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from apachews_tools.cli.run import give_to_apache
from apachews_tools.dev.program import Producer

ROOT: Final = Path(__file__).resolve().parents[1]
# The files of an example that belong into the document root.
PAGES: Final = ("*.html", "*.css", "*.js")
# Modules that Debian loads by default.
MODULES: Final = ("authn_core", "authn_file", "authz_user", "auth_basic")


class Examples:
    """The examples in a site.

    Args:
        state: a directory for all files except pages; Apache's user must be able to read it.
        docroot: the document root; each example gets a directory in it.
        log: the file that the live log follows.
        python_home: the environment that runs the Flask application.
        passwords: by user name, for both kinds of login.
        is_embedded: the Flask application runs in Apache's children.
        relay: the address of the relay of the chat, "" for one machine.

    Attributes:
        producers: the programs to run.
        has_login: False if Flask is missing; the login example is omitted then.
    """

    has_login: Final = importlib.util.find_spec("flask") is not None

    def __init__(
        self,
        state: Path,
        docroot: Path,
        *,
        log: Path,
        python_home: Path,
        passwords: Mapping[str, str],
        is_embedded: bool = False,
        relay: str = "",
    ) -> None:
        self._state = state
        self._python_home = python_home
        self._is_embedded = is_embedded
        programs = state / "examples"
        shutil.copytree(ROOT / "examples", programs, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "deploy" / "producers" / "echo.py", programs / "echo" / "producer.py")
        self._copy_pages(programs, docroot)
        _write_private(state / "examples.users", _htpasswd(passwords))
        more: dict[str, list[Path | str]] = {
            "echo/echo.ws": [],
            "chat/chat.ws": [relay] if relay else [],
            "logtail/logtail.ws": [log],
            "dashboard/dashboard.ws": [],
            "notify/notify.ws": [],
        }
        if self.has_login:
            more |= {"login/basic.ws": [], "login/session.ws": [state / "login.secret"]}
            _write_private(state / "login.secret", secrets.token_hex(32))
            _write_private(state / "login.json", _hashes(passwords))
        self.producers = [
            Producer(
                Path(name).stem,
                programs / Path(name).parent / "producer.py",
                docroot / name,
                tuple(map(str, arguments)),
            )
            for name, arguments in more.items()
        ]

    def _copy_pages(self, programs: Path, docroot: Path) -> None:
        for directory in programs.iterdir():
            if directory.name == "liveblog" or not directory.is_dir():
                continue  # its page needs a package of npm
            target = docroot / directory.name
            target.mkdir()
            for pattern in PAGES:
                for page in directory.glob(pattern):
                    shutil.copy(page, target)
            give_to_apache(target)  # for the producers' sockets

    def configuration(self) -> str:
        """Return the directives that the examples need."""
        names = {
            "EXAMPLES": self._state / "examples",
            "EXAMPLES_USERS": self._state / "examples.users",
            "LOGIN_PYTHON_HOME": self._python_home,
            "LOGIN_SECRET": self._state / "login.secret",
            "LOGIN_USERS": self._state / "login.json",
        }
        lines = [f'LoadModule {name}_module "${{MODULES}}/mod_{name}.so"' for name in MODULES]
        # The socket of mod_wsgi's daemon mode; Debian's default directory for it exists only
        # while the system's Apache runs.
        lines.append('WSGISocketPrefix "${ROOT}/wsgi"')
        lines += [f'Define {name} "{value}"' for name, value in names.items()]
        if self._is_embedded:
            lines.append("Define LOGIN_EMBEDDED")
        for path in sorted((self._state / "examples").glob("*/apache.conf")):
            if path.parent.name != "login" or self.has_login:
                lines.append(f'Include "{path}"')
        return "\n".join(lines) + "\n"


def _htpasswd(passwords: Mapping[str, str]) -> str:
    """Return the lines that htpasswd(1) of Debian's apache2-utils would write."""
    lines = []
    for name, password in passwords.items():
        # (By standard input, because every user can read command lines.)
        hashed = subprocess.run(
            ["openssl", "passwd", "-apr1", "-stdin"],
            input=password,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        lines.append(f"{name}:{hashed}\n")
    return "".join(lines)


def _hashes(passwords: Mapping[str, str]) -> str:
    """Return the Flask application's users as JSON."""
    from werkzeug.security import generate_password_hash

    return json.dumps({name: generate_password_hash(word) for name, word in passwords.items()})


def _write_private(path: Path, text: str) -> None:
    """Write a file that only Apache's user can read."""
    path.touch(mode=0o600)
    path.write_text(text)
    give_to_apache(path)
