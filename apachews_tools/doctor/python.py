"""Checks of the Python that Apache uses: its version, what it can read and import, settings.

Contract: ``check_python(configuration, account, script)`` yields findings.  Reads the files
that the configuration names; runs that Python once, as Apache's user if root calls this,
to try the imports of the handler and to let it check the settings.
"""

from __future__ import annotations

import difflib
import json
import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apachews_tools.httpd.configuration import Configuration
from apachews_tools.httpd.directives import Directive, find, quote
from apachews_tools.httpd.permissions import ENTER, READ, Account, obstacle
from apachews_tools.httpd.python_environment import (
    Version,
    parse_version,
    python_of,
    version_in,
    version_text,
)
from apachews_tools.httpd.shell import this_program, word
from apachews_tools.install.debian_module import package_of

from .finding import Finding, Level, error, note, ok, warning

# The directory of an installation as the documentation describes it.
OPT: Final = Path("/opt/apachews")
EVERY: Final = "every WebSocket is a 500"
IMPORT_TIMEOUT_S: Final = 20.0
# The beginning of the handler's answer to an unknown name.
_UNKNOWN: Final = "one of the names"
# The configured Python runs this; it reads the settings and writes their errors as JSON.
_IMPORT: Final = """
import json, sys
settings, paths = json.load(sys.stdin)
sys.path[:0] = paths
import apachews.wire, apachews_handler.handshake.upgrade
from apachews_handler.bridge import pump
from apachews_handler.bridge.reporter import IS_COMPILED
from apachews_handler.native import tls_relay
from apachews_handler.protocol.mask import IS_IN_C
from apachews_handler.settings import FIELDS, BadSetting, parse_settings
UNKNOWN = "one of the names " + ", ".join(sorted(FIELDS))
def wrong(environ, definitions):
    try:
        parse_settings(environ, definitions)
    except BadSetting as error:
        return error.allowed
    return ""
errors, fixed = [], []
for directive, name, value in settings:
    if directive == "SetEnv":
        errors.append(wrong({name: value}, tuple(fixed)))
        continue
    errors.append(wrong({}, ((name, value),)) if name in FIELDS else UNKNOWN)
    if not errors[-1]:
        fixed.append((name, value))
built = {"_mask": IS_IN_C, "_pump": pump.IS_IN_C, "_tls_relay": tls_relay.is_available}
missing = [name for name, is_built in built.items() if not is_built]
print(json.dumps([missing, IS_COMPILED, errors]))
"""


def check_python(configuration: Configuration, account: Account, script: Path) -> Iterator[Finding]:
    """Yield findings about the Python that mod_wsgi runs the handler with.

    Args:
        configuration: of a server that loads mod_wsgi.
        account: the user of httpd's children.
        script: the file of the handler.
    """
    module = Path(configuration.loaded.get("wsgi_module", ""))
    version = python_of(module) if module.is_file() else None
    mismatch = list(_check_version(configuration, script, version))
    yield from mismatch
    blocked = list(_check_readable(configuration, account, script))
    yield from blocked
    if all(finding.level is Level.OK for finding in [*mismatch, *blocked]):
        yield from _check_packages(configuration, account, script, version)


def _check_version(
    configuration: Configuration, script: Path, version: Version | None
) -> Iterator[Finding]:
    home = configuration.last("WSGIPythonHome")
    installed = version_in(str(script)) or (
        _version_of_home(Path(home.arguments[0])) if home else None
    )
    if version is None or installed is None:
        return
    if version != installed:
        yield error(
            "python-version",
            f"mod_wsgi is built for Python {version_text(version)}, but the handler is installed"
            f" for {version_text(installed)}",
            breaks=EVERY + ", or Apache does not start",
            remedy=f"install apachews in an environment of Python {version_text(version)}"
            f" (python{version_text(version)} -m venv …), or pip install mod_wsgi in the one of"
            f" {version_text(installed)}; then: apachews config. After an upgrade of the system:"
            " docs/howto/after-a-system-upgrade.md",
        )
    else:
        yield ok("python-version", f"mod_wsgi and the handler use Python {version_text(version)}")


def _version_of_home(home: Path) -> Version | None:
    for line in _read(home / "pyvenv.cfg").splitlines():
        name, _, value = line.partition("=")
        if name.strip() in ("version", "version_info"):
            return parse_version(value.strip())
    return None


def _check_readable(
    configuration: Configuration, account: Account, script: Path
) -> Iterator[Finding]:
    wanted = [(path, READ) for path in [script, *sorted(script.parent.glob("*.py"))]]
    wanted += [(script.parents[1], READ | ENTER)]
    if home := configuration.last("WSGIPythonHome"):
        prefix = Path(home.arguments[0])
        if not prefix.exists() and not is_hidden(prefix):
            yield error(
                "readable",
                f"WSGIPythonHome {prefix} does not exist",
                breaks="Python does not start in Apache's children: they exit at once, or every"
                " WebSocket is a 500",
                remedy=config_remedy(),
                where=home.where,
            )
            return
        wanted.append((prefix, READ | ENTER))
        for line in _read(prefix / "pyvenv.cfg").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "home":
                wanted.append((Path(value.strip()).parent / "lib", READ | ENTER))
    for path, right in wanted:
        try:
            found = obstacle(account, path, right)
        except OSError:
            continue  # it is absent or inaccessible: another check reports that
        if found:
            yield error(
                "readable",
                f"Apache's user {account.name} cannot read {path}:"
                f" {found.path} has mode {found.mode}",
                breaks=EVERY + " (WSGI0036, or ModuleNotFoundError in the error log)",
                remedy=found.remedy
                + (
                    ""
                    if OPT in (found.path, *found.path.parents) or found.path in OPT.parents
                    else f"  (or install apachews elsewhere, for example in {OPT})"
                ),
            )
            return
    if is_hidden(script):
        yield warning(
            "privileges",
            f"{script} is not accessible",
            breaks="nothing; but it is unknown what Apache's user can read",
            remedy=f"sudo {this_program()} doctor",
        )
        return
    yield ok("readable", f"Apache's user {account.name} can read the interpreter and the packages")


def _check_packages(
    configuration: Configuration, account: Account, script: Path, version: Version | None
) -> Iterator[Finding]:
    """Import the handler's modules in the Python that Apache will use."""
    home = configuration.last("WSGIPythonHome")
    name = f"python{version_text(version)}" if version else "python3"
    prefix = Path(home.arguments[0]) if home else Path("/usr")
    candidates = [prefix / "bin" / name, prefix / "bin" / "python3"]
    python = next((path for path in candidates if path.exists()), None)
    if python is None:
        yield note("packages", f"{prefix}/bin has no interpreter to try the imports with")
        return
    path = configuration.last("WSGIPythonPath")
    settings = [*_definitions(configuration), *find(configuration.directives, "SetEnv")]
    settings = [one for one in settings if one.arguments[:1] and _is_setting(one.arguments[0])]
    paths = path.arguments[0].split(":") if path else []
    question = json.dumps([[[one.name, one.arguments[0], _value(one)] for one in settings], paths])
    try:
        done = _run_as(account, [str(python), "-B", "-I", "-c", _IMPORT], question)
    except (OSError, subprocess.SubprocessError) as failure:
        yield note("packages", f"{python} cannot be run to try the imports: {failure}")
        return
    if done.returncode != 0:
        package = package_of(script)
        last_line = (done.stderr.strip().splitlines() or ["without a message"])[-1]
        yield error(
            "packages",
            f"the Python in {prefix} cannot import the handler: {last_line}",
            breaks=EVERY,
            remedy=f"apt-get install --reinstall {package} python3-wsproto"
            if package
            else f"{word(prefix / 'bin' / 'pip')} install 'apachews[bridge]'"
            if home
            else f"WSGIPythonPath {quote(str(script.parents[1]))}, and install wsproto there",
            where=(home or path or Directive("", ())).where if home or path else "",
        )
        return
    yield ok("packages", f"the Python in {prefix} can import the handler")
    missing, is_compiled, answers = json.loads(done.stdout)
    yield from _check_extensions(missing, prefix)
    form = "compiled" if is_compiled else "interpreted; see docs/howto/pip.md"
    yield ok("compiled", f"the modules that messages pass are {form}")
    bad = 0
    for directive, allowed in zip(settings, answers, strict=True):
        if allowed.startswith(_UNKNOWN) and directive.is_named("Define"):
            bad += 1
            yield warning(
                "settings",
                f"Define {directive.arguments[0]} is unknown",
                breaks="nothing; the line is ignored",
                remedy=_remedy_of_setting(directive, allowed),
                where=directive.where if directive.file else "",
            )
        elif allowed:
            bad += 1
            yield error(
                "settings",
                f"{directive.name} {directive.arguments[0]} {_value(directive)!r} is not allowed",
                breaks=EVERY + " in its scope",
                remedy=_remedy_of_setting(directive, allowed),
                where=directive.where if directive.file else "",
            )
    if settings and not bad:
        names = ", ".join(dict.fromkeys(one.arguments[0] for one in settings))
        yield ok("settings", f"all are allowed: {names}")


def _check_extensions(missing: list[str], prefix: Path) -> Iterator[Finding]:
    if not missing:
        yield ok("extensions", "the C extensions are built: _mask, _pump, _tls_relay")
        return
    effects = {
        "_mask": "long messages from clients need more CPU",
        "_pump": "short messages and broadcasts need more CPU",
        "_tls_relay": "each reload with clients over TLS leaves a custodian of 13 MiB, not of 3",
    }
    yield warning(
        "extensions",
        f"not built: {', '.join(missing)}",
        breaks="nothing; but " + ", and ".join(effects[name] for name in missing),
        when="under load",
        remedy="apt-get install gcc python3-dev, and"
        f" {word(prefix / 'bin' / 'pip')} install --force-reinstall --no-deps with the same source",
    )


def config_remedy() -> str:
    """Return the remedy for a configuration that lacks lines of apachews."""
    program = this_program()
    return f"add the lines of {program} config; on Debian: sudo {program} config --debian"


def _definitions(configuration: Configuration) -> Iterator[Directive]:
    """Yield the server's ``Define`` directives, with the places that httpd does not report."""
    places = {one.arguments[:1]: one for one in find(configuration.directives, "Define")}
    for name, value in configuration.run_config.defines.items():
        place = places.get((name,), Directive("", ()))
        yield Directive("Define", (name, value), place.file, place.line)


def _is_setting(name: str) -> bool:
    return name.startswith("APACHEWS_") and name != "APACHEWS_HANDLER"


def _value(directive: Directive) -> str:
    return directive.arguments[1] if len(directive.arguments) > 1 else ""


def _remedy_of_setting(directive: Directive, allowed: str) -> str:
    name = directive.arguments[0]
    if allowed.startswith("Define "):
        return allowed
    if not allowed.startswith(_UNKNOWN):
        return f"{directive.name} {name} with {allowed}"
    # All names follow.
    like = difflib.get_close_matches(name, re.findall(r"APACHEWS_\w+", allowed), 1)
    meant = f"{directive.name} {like[0]}, if that was meant; else " if like else ""
    return f"{meant}remove it (docs/reference/configuration.md lists all names)"


def _run_as(
    account: Account, command: list[str], question: str
) -> subprocess.CompletedProcess[str]:
    """Run a program, as Apache's user if this process is root."""
    is_root = os.geteuid() == 0
    try:
        group: int | None = pwd.getpwuid(account.uid).pw_gid
    except KeyError:
        group = None  # the user id is not in passwd
    return subprocess.run(
        command,
        input=question,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=IMPORT_TIMEOUT_S,
        cwd="/",
        env={"LC_ALL": "C.UTF-8"},
        user=account.uid if is_root else None,
        group=group if is_root else None,
        extra_groups=sorted(account.gids) if is_root else None,
    )


def is_hidden(path: Path) -> bool:
    """Tell whether this user lacks the permission to see whether a path exists."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
