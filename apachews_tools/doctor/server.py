"""Checks of the server's configuration: mod_wsgi, the handler, Python, the MPM.

Contract: ``check_server(configuration, account, version)`` yields findings.  Reads the
files that the configuration names; runs the Python of the configuration once, as
Apache's user where that can be, to see what it can import.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import pwd
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apachews_tools.httpd.configuration import Configuration, is_on
from apachews_tools.httpd.directives import Directive, find, quote
from apachews_tools.httpd.mapping import SCRIPT, STATUS_SCRIPT
from apachews_tools.httpd.ownership import weakness
from apachews_tools.httpd.permissions import ENTER, READ, Account, obstacle
from apachews_tools.httpd.python_environment import (
    Version,
    parse_version,
    python_of,
    version_in,
    version_text,
)
from apachews_tools.httpd.shell import this_program, word

from .finding import Finding, Level, error, note, ok, warning

# Where the documentation installs to.
OPT: Final = Path("/opt/apachews")
GLOBAL: Final = "%{GLOBAL}"
EVERY: Final = "every WebSocket is a 500"
CONFIG: Final = "apachews config (its lines have everything); on Debian: apachews config --debian"
# A relay has some 3 MiB; without a compiler it is a custodian of 13, of which there may be 256.
FEW_CONNECTIONS: Final = 1000
IMPORT_TIMEOUT_S: Final = 20.0
# How the handler's answer to an unknown name begins.
_UNKNOWN: Final = "one of the names"
# Run by the Python of the configuration; settings come in and their errors go out as JSON.
_IMPORT: Final = """
import json, sys
settings, paths = json.load(sys.stdin)
sys.path[:0] = paths
import apachews.wire, apachews_handler.handshake.upgrade
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
print(json.dumps([IS_IN_C, errors]))
"""


def check_server(
    configuration: Configuration, account: Account, httpd_version: tuple[int, ...]
) -> Iterator[Finding]:
    """Yield what there is to say about the server's configuration."""
    yield from _check_modules(configuration)
    yield from _check_mpm(configuration)
    yield from _check_restart_support(configuration, httpd_version)
    if "wsgi_module" not in configuration.modules:
        yield error(
            "mod-wsgi",
            "mod_wsgi is not loaded",
            breaks="there are no WebSockets",
            remedy="on Debian: apt-get install libapache2-mod-wsgi-py3 && apachews config --debian,"
            " and the two commands that it prints; elsewhere: the lines of apachews config",
        )
        return
    module = configuration.loaded.get("wsgi_module", "")
    yield ok("mod-wsgi", f"mod_wsgi is loaded{f': {module}' if module else ''}")
    scripts = handler_scripts(configuration)
    if not scripts:
        yield error(
            "handler-script",
            "no WSGIHandlerScript websocket, and no WSGIScriptAlias to the handler",
            breaks="there are no WebSockets: httpd knows no handler of that name",
            remedy=CONFIG,
        )
        return
    script = Path(scripts[0].arguments[1])
    if not script.exists() and not _is_hidden(script):
        yield error(
            "handler-script",
            f"{script} does not exist",
            breaks=EVERY,
            remedy="Define APACHEWS_HANDLER with the directory that this prints: python -c"
            ' "import apachews_handler; print(apachews_handler.__path__[0])"',
            where=scripts[0].where,
        )
        return
    yield ok("handler-script", f"the handler is {script}", scripts[0].where)
    yield from _check_mode(configuration, scripts)
    yield from _check_import_script(configuration, script)
    yield from _check_status_page(configuration)
    version = python_of(Path(module)) if module and Path(module).exists() else None
    mismatch = list(_check_version(configuration, script, version))
    yield from mismatch
    blocked = list(_check_readable(configuration, account, script))
    yield from blocked
    if all(finding.level is Level.OK for finding in [*mismatch, *blocked]):
        yield from _check_packages(configuration, account, script, version)


def check_ownership(
    configuration: Configuration, trusted: frozenset[int] = frozenset({0})
) -> Iterator[Finding]:
    """Yield whether somebody else than root can change what httpd reads as root, for us.

    Args:
        configuration: of an httpd that root starts.
        trusted: numbers of the users who may.
    """
    ours = [Path(file) for file in configuration.files if Path(file).name == "apachews.conf"]
    if module := configuration.loaded.get("wsgi_module"):
        ours.append(Path(module))
    for file in ours:
        try:
            found = weakness(file.absolute(), trusted)
        except OSError:
            continue  # it is gone: httpd says so
        if found:
            yield warning(
                "ownership",
                f"Apache reads {file} as root, and {found}",
                breaks="nothing; but whoever can write there can become root",
                remedy="install apachews where only root writes (sudo python3 -m venv"
                " /opt/apachews), and have the lines of apachews config from there",
            )
            return
    if ours:
        yield ok("ownership", "only root can change what Apache reads as root")


def handler_scripts(configuration: Configuration) -> list[Directive]:
    """Return the directives that make the handler known."""
    return [
        directive
        for directive in find(configuration.directives, "WSGIHandlerScript", "WSGIScriptAlias")
        if len(directive.arguments) > 1
        and (
            directive.arguments[0].lower() == "websocket"
            if directive.is_named("WSGIHandlerScript")
            else directive.arguments[1].endswith(SCRIPT)
        )
    ]


def listens_on(configuration: Configuration, port: int) -> bool:
    """Tell whether the configuration has a Listen or a virtual host of a port.

    Yes as well, where its ports cannot be told.
    """
    listens = [
        one.arguments[0] for one in find(configuration.directives, "Listen") if one.arguments
    ]
    hosts = [address for host in configuration.virtual_hosts() for address in host.addresses]
    ports = [address.rpartition(":")[2] for address in listens]
    if not ports or not all(one.isdecimal() for one in ports):
        return True
    return str(port) in {*ports, *(address.rpartition(":")[2] for address in hosts)}


def _check_modules(configuration: Configuration) -> Iterator[Finding]:
    for name in ("gnutls_module", "tls_module"):
        if name in configuration.modules:
            yield warning(
                "tls-module",
                f"{name} is loaded",
                breaks="a WebSocket over TLS of that module is a 500: only mod_ssl's can be"
                " taken over",
                remedy="a2enmod ssl, and SSLEngine on in the virtual hosts with WebSockets",
            )
    switched_on = [one for one in find(configuration.directives, "H2WebSockets") if is_on(one)]
    offered = [
        one
        for one in find(configuration.directives, "Protocols")
        if {"h2", "h2c"} & {argument.lower() for argument in one.arguments}
    ]
    if switched_on and offered:
        yield error(
            "http2",
            "H2WebSockets is on",
            breaks="browsers that speak HTTP/2 with this server open WebSockets over it; they are"
            " told to use HTTP/1.1, which Chromium does after another round trip; Firefox fails",
            remedy="H2WebSockets off",
            where=switched_on[-1].where,
        )
    elif "http2_module" in configuration.modules:
        yield ok("http2", "mod_http2 is loaded; browsers open WebSockets over HTTP/1.1 beside it")
    if "reqtimeout_module" in configuration.modules:
        yield note(
            "reqtimeout",
            "mod_reqtimeout is loaded: harmless, its limits end with the handshake",
        )


def _check_mpm(configuration: Configuration) -> Iterator[Finding]:
    mpm = configuration.mpm() or "another MPM than event, worker and prefork"
    workers = _number(configuration, "MaxRequestWorkers", "MaxClients")
    threads = _number(configuration, "ThreadsPerChild")
    limits = [
        f"{name} {value}"
        for name, value in (("MaxRequestWorkers", workers), ("ThreadsPerChild", threads))
        if value and not (name == "ThreadsPerChild" and mpm == "prefork")
    ]
    text = f"{mpm}{', ' if limits else ''}{', '.join(limits)}"
    yield ok("mpm", f"{text}: for requests and handshakes; an open WebSocket holds no worker")
    each = _number(configuration, "MaxConnectionsPerChild", "MaxRequestsPerChild")
    directive = configuration.last("MaxConnectionsPerChild") or configuration.last(
        "MaxRequestsPerChild"
    )
    if each and each < FEW_CONNECTIONS:
        yield warning(
            "max-connections-per-child",
            f"MaxConnectionsPerChild {each}: a child is replaced after {each} connections",
            breaks="each one that leaves with a WebSocket over TLS open stays as a relay, with some"
            " 3 MiB; without the C extension as a custodian of 13 MiB, and of more than 256"
            " (APACHEWS_MAX_CUSTODIANS) those with the fewest clients close them with 1012",
            load=f"{256 * each} connections within the life of a WebSocket",
            remedy="MaxConnectionsPerChild 0",
            where=directive.where if directive else "",
        )
    else:
        yield ok(
            "max-connections-per-child",
            f"MaxConnectionsPerChild {each or 0}: WebSockets of children that leave live on",
        )


def _number(configuration: Configuration, *names: str) -> int:
    for name in names:
        directive = configuration.last(name)
        if directive and directive.arguments and directive.arguments[0].isdigit():
            return int(directive.arguments[0])
    return 0


def _check_restart_support(
    configuration: Configuration, httpd_version: tuple[int, ...]
) -> Iterator[Finding]:
    kernel = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    lacks = []
    if httpd_version and httpd_version < (2, 4, 49) and configuration.mpm() != "prefork":
        lacks.append("httpd 2.4.49")
    if kernel < (5, 3):
        lacks.append("Linux 5.3")
    if lacks:
        yield warning(
            "restart-support",
            f"older than {' and '.join(lacks)}",
            breaks="all WebSockets are closed with 1001",
            load="every reload of Apache; logrotate does one daily",
            remedy=f"upgrade to {' and '.join(lacks)}",
        )
    else:
        yield ok("restart-support", "httpd and the kernel can restart without dropping anybody")


def _check_mode(configuration: Configuration, scripts: list[Directive]) -> Iterator[Finding]:
    problems = 0
    for directive in find(configuration.directives, "WSGIRestrictEmbedded"):
        if is_on(directive):
            problems += 1
            yield error(
                "handler-mode",
                "WSGIRestrictEmbedded is on: mod_wsgi runs nothing in Apache's children",
                breaks=EVERY,
                remedy="WSGIRestrictEmbedded Off",
                where=directive.where,
            )
    for script in scripts:
        options = dict(argument.partition("=")[::2] for argument in script.arguments[2:])
        groups = {
            "process-group": _group(configuration, "WSGIProcessGroup", GLOBAL),
            "application-group": _group(configuration, "WSGIApplicationGroup", "%{RESOURCE}"),
        }
        for option, default in groups.items():
            value = options.get(option, default)
            if value == GLOBAL:
                continue
            problems += 1
            why = (
                f"mod_wsgi runs the handler in the daemon process {value}, which has no connections"
                if option == "process-group"
                else "the handler runs in a sub-interpreter, where ctypes does not work"
            )
            yield error(
                "handler-mode",
                f"{script.name} {script.arguments[0]}: {why}",
                breaks=EVERY,
                remedy=f"{script.name} {quote(script.arguments[0])} {quote(script.arguments[1])}"
                f" process-group={GLOBAL} application-group={GLOBAL}",
                where=script.where,
            )
    if not problems:
        yield ok("handler-mode", "embedded, in Python's main interpreter")


def _group(configuration: Configuration, name: str, default: str) -> str:
    """Return the group that a script without one of its own gets, at worst."""
    found = find(configuration.directives, name)
    others = [one.arguments[0] for one in found if one.arguments[0] != GLOBAL]
    if name == "WSGIProcessGroup":
        return others[0] if others else default
    return GLOBAL if found and not others else default


def _check_import_script(configuration: Configuration, script: Path) -> Iterator[Finding]:
    for directive in find(configuration.directives, "WSGIImportScript"):
        options = dict(argument.partition("=")[::2] for argument in directive.arguments[1:])
        if directive.arguments[0] == str(script) and options == {
            "process-group": GLOBAL,
            "application-group": GLOBAL,
        }:
            yield ok("import-script", "the handler is imported when a child starts")
            return
    yield warning(
        "import-script",
        "no WSGIImportScript for the handler",
        breaks="all WebSockets are closed with 1001",
        load="every reload of Apache; logrotate does one daily",
        remedy=f"WSGIImportScript {quote(str(script))} process-group={GLOBAL}"
        f" application-group={GLOBAL}",
    )


def _check_status_page(configuration: Configuration) -> Iterator[Finding]:
    """Find a page of the status that has the name of a handler."""
    handlers = [
        one
        for one in find(configuration.directives, "WSGIHandlerScript")
        if one.arguments[1:2] and one.arguments[1].endswith(STATUS_SCRIPT)
    ]
    handlers += [
        one
        for one in find(configuration.directives, "SetHandler")
        if one.arguments[:1] == ("websocket-status",)
    ]
    for directive in handlers:
        yield error(
            "status-page",
            f"{directive}: the status page is not a handler",
            breaks="there is no page; as a handler every .htaccess could show it",
            remedy=f"in its place, outside of <Location>: WSGIScriptAlias /websocket-status"
            f' "${{APACHEWS_HANDLER}}/status_page.py" process-group={GLOBAL} application-group={GLOBAL}',
            where=directive.where,
        )
    pages = [
        one
        for one in find(configuration.directives, "WSGIScriptAlias")
        if one.arguments[1:2] and one.arguments[1].endswith(STATUS_SCRIPT)
    ]
    if pages and not handlers:
        yield ok("status-page", f"the status page is {pages[0].arguments[0]}", pages[0].where)


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
            f"mod_wsgi is built for Python {version_text(version)}, and the handler is installed"
            f" for {version_text(installed)}",
            breaks=EVERY + ", or Apache does not start at all",
            remedy=f"install apachews in an environment of Python {version_text(version)}"
            f" (python{version_text(version)} -m venv …), or pip install mod_wsgi in that of"
            f" {version_text(installed)}, and then: apachews config",
        )
    else:
        yield ok("python-version", f"Python {version_text(version)}, mod_wsgi's and the handler's")


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
        if not prefix.exists() and not _is_hidden(prefix):
            yield error(
                "readable",
                f"WSGIPythonHome {prefix} does not exist",
                breaks="Python does not start in Apache's children: each ends at once, or every"
                " WebSocket is a 500",
                remedy=CONFIG,
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
            continue  # it is not there, or not ours to see: another check says so
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
                    else f"  (or install apachews elsewhere, as in {OPT})"
                ),
            )
            return
    if _is_hidden(script):
        yield warning(
            "privileges",
            f"{script} cannot be looked at",
            breaks="nothing; what Apache's user may read is not known",
            remedy=f"sudo {this_program()} doctor",
        )
        return
    yield ok("readable", f"Apache's user {account.name} can read the interpreter and the packages")


def _check_packages(
    configuration: Configuration, account: Account, script: Path, version: Version | None
) -> Iterator[Finding]:
    """Import what the handler imports, in the Python that Apache will have."""
    home = configuration.last("WSGIPythonHome")
    name = f"python{version_text(version)}" if version else "python3"
    prefix = Path(home.arguments[0]) if home else Path("/usr")
    candidates = [prefix / "bin" / name, prefix / "bin" / "python3"]
    python = next((path for path in candidates if path.exists()), None)
    if python is None:
        yield note("packages", f"no interpreter in {prefix}/bin to try the imports with")
        return
    path = configuration.last("WSGIPythonPath")
    settings = [*_definitions(configuration), *find(configuration.directives, "SetEnv")]
    settings = [one for one in settings if one.arguments[:1] and _is_setting(one.arguments[0])]
    paths = path.arguments[0].split(":") if path else []
    question = json.dumps([[[one.name, one.arguments[0], _value(one)] for one in settings], paths])
    try:
        done = _run_as(account, [str(python), "-B", "-E", "-s", "-c", _IMPORT], question)
    except (OSError, subprocess.SubprocessError) as failure:
        yield note("packages", f"{python} could not be run to try the imports: {failure}")
        return
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        yield error(
            "packages",
            f"the Python in {prefix} cannot import the handler: {last_line}",
            breaks=EVERY,
            remedy=f"{word(prefix / 'bin' / 'pip')} install 'apachews[bridge]'"
            if home
            else f"WSGIPythonPath {quote(str(script.parents[1]))}, and wsproto installed there",
            where=(home or path or Directive("", ())).where if home or path else "",
        )
        return
    yield ok("packages", f"the Python in {prefix} imports the handler, as Apache will")
    is_in_c, answers = json.loads(done.stdout)
    if not is_in_c:
        yield note(
            "packages",
            "messages are unmasked in Python, which takes longer for long ones: the C extension"
            " is not there (pip install builds it where there is a compiler:"
            " docs/performance.md)",
        )
    bad = 0
    for directive, allowed in zip(settings, answers, strict=True):
        if allowed.startswith(_UNKNOWN) and directive.is_named("Define"):
            bad += 1
            yield warning(
                "settings",
                f"Define {directive.arguments[0]} is unknown",
                breaks="nothing; it has no effect",
                remedy=_mend_setting(directive, allowed),
                where=directive.where if directive.file else "",
            )
        elif allowed:
            bad += 1
            yield error(
                "settings",
                f"{directive.name} {directive.arguments[0]} {_value(directive)!r} is not allowed",
                breaks=EVERY + " where it applies",
                remedy=_mend_setting(directive, allowed),
                where=directive.where if directive.file else "",
            )
    if settings and not bad:
        names = ", ".join(dict.fromkeys(one.arguments[0] for one in settings))
        yield ok("settings", f"allowed, all of them: {names}")


def _definitions(configuration: Configuration) -> Iterator[Directive]:
    """Yield the server's ``Define`` directives; httpd lists them without their places."""
    places = {one.arguments[:1]: one for one in find(configuration.directives, "Define")}
    for name, value in configuration.run_config.defines.items():
        place = places.get((name,), Directive("", ()))
        yield Directive("Define", (name, value), place.file, place.line)


def _is_setting(name: str) -> bool:
    return name.startswith("APACHEWS_") and name != "APACHEWS_HANDLER"


def _value(directive: Directive) -> str:
    return directive.arguments[1] if len(directive.arguments) > 1 else ""


def _mend_setting(directive: Directive, allowed: str) -> str:
    name = directive.arguments[0]
    if allowed.startswith("Define "):
        return allowed
    if not allowed.startswith(_UNKNOWN):
        return f"{directive.name} {name} with {allowed}"
    # The names that there are follow.
    like = difflib.get_close_matches(name, re.findall(r"APACHEWS_\w+", allowed), 1)
    meant = f"{directive.name} {like[0]}, if that is meant; else " if like else ""
    return f"{meant}remove it (docs/configuration.md has all names)"


def _run_as(
    account: Account, command: list[str], question: str
) -> subprocess.CompletedProcess[str]:
    """Run a program with Apache's rights, where we may give ours up."""
    is_root = os.geteuid() == 0
    try:
        group: int | None = pwd.getpwuid(account.uid).pw_gid
    except KeyError:
        group = None  # a number without a name
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


def _is_hidden(path: Path) -> bool:
    """Tell whether it is not for us to see whether a path exists."""
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
