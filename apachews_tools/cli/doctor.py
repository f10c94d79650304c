"""``apachews doctor``: finds why WebSockets do not work, and the remedy."""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from apachews_tools.doctor.finding import Finding, Level, error, note, ok, supposed, warning
from apachews_tools.doctor.handshake import check_url, with_query
from apachews_tools.doctor.machine import (
    ETC_APACHE2,
    UNITS,
    check_confinement,
    check_logrotate,
    check_process,
    check_reload,
    check_unit,
    check_visible,
    has_private_tmp,
    unit_properties,
)
from apachews_tools.doctor.proxies import check_proxies, proxy_of
from apachews_tools.doctor.relay import check_relay
from apachews_tools.doctor.server import check_ownership, check_server, handler_scripts, listens_on
from apachews_tools.doctor.site import check_scope, check_socket, rewritten, sockets_in
from apachews_tools.doctor.syntax import check_syntax
from apachews_tools.doctor.tunnels import (
    check_backends,
    check_htaccess,
    check_tunnelled_sockets,
    check_tunnels,
)
from apachews_tools.httpd.address import Address
from apachews_tools.httpd.configuration import Configuration, Scope, VirtualHost
from apachews_tools.httpd.control import Control, ControlError
from apachews_tools.httpd.directives import find
from apachews_tools.httpd.mapping import ANY_SOCKET, scope_of, socket_of
from apachews_tools.httpd.permissions import Account
from apachews_tools.httpd.private_apache import APACHE_USER
from apachews_tools.httpd.process import Httpd, running
from apachews_tools.httpd.proxies import tunnel_of
from apachews_tools.httpd.shell import word
from apachews_tools.terminal.terminal import CYAN, GREEN, RED, YELLOW, paint, printable, uses_colour

from .command import CommandError, seconds

SUMMARY: Final = "find errors in Apache's configuration, and their remedies"

DESCRIPTION: Final = """\
Check Apache's configuration, the running processes and the socket files; with a URL,
try a handshake as a browser does.  Each finding has its effect, the load or the moment at which
the effect shows, and the line or the command that is the remedy.  Nothing is changed.

Without a URL, every socket file (*.ws) in the document roots is checked.  With --relay and
without a URL, only the relay is checked."""

EXAMPLES: Final = """\
examples:
  sudo apachews doctor
  sudo apachews doctor wss://example.org/ws/chat.ws
  apachews doctor ws://localhost/ws/echo.ws --echo --json
  apachews doctor --relay redis://10.0.0.5:6379/0
  apachews doctor --apachectl /usr/sbin/httpd --httpd-arguments -f /srv/httpd.conf -D LOCAL

exit status: 0 no errors, perhaps warnings; 1 errors.
docs/howto/troubleshooting.md explains each finding."""

DEFAULT_WEBSOCKETS: Final = 1000
LEVEL_COLUMNS: Final = 9
COLOURS: Final = {
    Level.OK: GREEN,
    Level.NOTE: CYAN,
    Level.WARNING: YELLOW,
    Level.ERROR: RED,
}
# Checks of one site and its socket, as opposed to the server.
OF_SITE: Final = frozenset(
    {
        *("add-handler", "follow-symlinks", "access", "proxy", "pass-request"),
        *("socket", "socket-link", "socket-permission", "producer", "private-tmp"),
    }
)
# Errors come last, nearest to the prompt.
_ORDER: Final = [Level.OK, Level.NOTE, Level.WARNING, Level.ERROR]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("url", metavar="URL", nargs="?", help="ws://… or wss://…")
    parser.add_argument("--socket", metavar="PATH", help="the socket file, instead of the URL's")
    parser.add_argument(
        "--echo",
        action="store_true",
        help="send a message, and wait for its echo",
    )
    parser.add_argument("--origin", help="connect like a page of this origin: https://example.com")
    parser.add_argument(
        "--ca",
        "--cafile",
        metavar="FILE",
        help="trust the certificates in this file, instead of the system's",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="for the whole handshake (default 10)",
    )
    parser.add_argument(
        "--websockets",
        type=int,
        default=DEFAULT_WEBSOCKETS,
        metavar="N",
        help=f"how many must fit into one child of Apache (default {DEFAULT_WEBSOCKETS})",
    )
    parser.add_argument(
        "--relay", metavar="URL", help="check this relay of producers; without a URL nothing else"
    )
    parser.add_argument(
        "--apachectl", metavar="PATH", help="the program to ask (default: the one in PATH)"
    )
    parser.add_argument(
        "--logrotate",
        type=Path,
        default=Path("/etc/logrotate.d"),
        metavar="DIRECTORY",
        help="logrotate's configuration (default /etc/logrotate.d)",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="also show what is harmless, or could not be checked"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--httpd-arguments",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="…",
        help="must be last; the rest goes to httpd, for example -f FILE",
    )


def _require_certificates(file: str) -> None:
    """Reject an unusable ``--ca``, which would look like a mistake of the server.

    Raises:
        CommandError: the file is not readable, or lacks a certificate.
    """
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        raise CommandError(f"--ca {file}: expected certificates in PEM form") from None
    except OSError as error:
        raise CommandError(f"--ca {file}: {error.strerror}") from None


def run(arguments: argparse.Namespace) -> int:
    """Check everything; print the findings."""
    address = with_query(Address.parse(arguments.url)) if arguments.url else None
    if arguments.ca is not None:
        _require_certificates(arguments.ca)
    findings = list(_without_doubles(_examine(arguments, address)))
    if not arguments.verbose:
        findings = [finding for finding in findings if finding.level is not Level.NOTE]
    findings.sort(key=lambda finding: _ORDER.index(finding.level))
    is_wrong = any(finding.level is Level.ERROR for finding in findings)
    if arguments.json:
        found = [finding.as_dict() for finding in findings]
        print(json.dumps({"healthy": not is_wrong, "findings": found}))
    else:
        print(report(findings, _columns(), uses_colour(sys.stdout)))
    return 1 if is_wrong else 0


def _columns() -> int | None:
    """Return the width for line breaks, None unless standard output is a terminal."""
    try:
        return max(60, min(os.get_terminal_size(sys.stdout.fileno()).columns, 120))
    except (OSError, ValueError):
        return None


def _examine(arguments: argparse.Namespace, address: Address | None) -> Iterator[Finding]:
    logs: tuple[str, ...] = ()
    findings: list[Finding] = []
    is_another = False
    proxied_to = ""
    if arguments.relay:
        yield from check_relay(arguments.relay)
        if address is None:
            return
    try:
        control = Control(arguments.apachectl, arguments.httpd_arguments)
        version = control.version()
        if problem := control.syntax_error():
            yield from check_syntax(
                problem, word(control.command), os.geteuid() == 0, _debians_modules(arguments)
            )
        else:
            yield ok("httpd", f"{control.program}, httpd {'.'.join(map(str, version))}")
            yield ok("syntax", "httpd understands its configuration")
            configuration = control.read()
            logs = _error_logs(configuration)
            findings += _examine_apache(arguments, address, configuration, version)
            if address is not None:
                is_another = not listens_on(configuration, address.port)
                ((scope, _),) = _scopes(configuration, address)
                if not is_another and (proxy := proxy_of(scope)):
                    proxied_to = proxy.target
    except ControlError as failure:
        make = error if address is None else warning
        yield make(
            "httpd",
            str(failure),
            breaks="only the URL can be checked" if address else "no Apache can be checked",
            remedy="--apachectl with the path of apachectl or httpd; on Debian, apt-get install"
            " apache2",
        )
    if address is None:
        yield from findings
        return
    tried = list(
        check_url(
            address,
            origin=arguments.origin,
            echoes=arguments.echo,
            timeout_s=arguments.timeout,
            error_logs=logs,
            cafile=arguments.ca,
            proxied_to=proxied_to,
            errors=()
            if is_another
            else [finding for finding in findings if finding.level is Level.ERROR],
        )
    )
    if is_another:
        yield warning(
            "other-apache",
            f"this configuration does not listen on port {address.port}",
            breaks="nothing; but an Apache with another configuration may answer at the URL",
            remedy="--httpd-arguments -f FILE with its configuration; none is needed if a"
            " container or a firewall maps the port",
        )
        if any(one.id == "handshake" and one.level is Level.OK for one in tried):
            # Those errors are about another socket than that of the handshake.
            findings = [one for one in findings if one.id not in OF_SITE or one.level is Level.OK]
    yield from findings
    yield from tried


def _debians_modules(arguments: argparse.Namespace) -> Path | None:
    """Return Debian's directory of modules, None for a configuration that is not Debian's."""
    modules = ETC_APACHE2 / "mods-available"
    is_another = arguments.httpd_arguments or not modules.is_dir()
    return None if is_another else modules


def _examine_apache(
    arguments: argparse.Namespace,
    address: Address | None,
    configuration: Configuration,
    version: tuple[int, ...],
) -> Iterator[Finding]:
    pid_file = configuration.run_config.pid_file
    httpd = running(pid_file) if pid_file else None
    account = _account(configuration, httpd)
    if os.geteuid() != 0 and (httpd is None or httpd.uid != os.geteuid()):
        yield note("privileges", "not run as root: some checks need root's permissions")
    yield from check_server(configuration, account, version)
    yield from check_proxies(configuration)
    yield from check_tunnels(configuration)
    yield from check_backends(configuration, account)
    yield from check_tunnelled_sockets(configuration)
    yield from check_htaccess(configuration)
    if os.geteuid() == 0:
        yield from check_ownership(configuration)
    yield from check_process(httpd, pid_file, arguments.websockets)
    yield from check_reload(httpd, configuration.files)
    properties = {}
    unit = _unit(arguments, httpd)
    if unit:
        properties = unit_properties(unit)
        if properties:
            yield from check_unit(unit, properties, arguments.websockets)
    yield from check_logrotate(arguments.logrotate, _logs(configuration))
    yield from check_confinement(httpd)
    if not handler_scripts(configuration):
        return  # without a handler no site has WebSockets
    # Path -> whether httpd itself looks it up.
    sockets = {arguments.socket: True} if arguments.socket else {}
    for scope, is_real in _scopes(configuration, address):
        if is_real and (target := rewritten(scope)):
            yield ok("proxy", f"a rule leads {scope.url_path} to {target.url_path}")
            scope = target
        if address is not None and proxy_of(scope):
            continue  # ``check_proxies`` has reported it
        if is_real and (tunnel := tunnel_of(scope)):
            # ``check_tunnels`` has checked its lines, ``check_tunnelled_sockets`` the socket.
            if address is not None:
                to = " ".join(tunnel.backends)
                yield ok("tunnel", f"a tunnel leads {scope.url_path} to {to}")
            continue
        found = check_scope(scope)
        yield from found if is_real else map(supposed, found)
        path = socket_of(scope)
        if is_real and path and not arguments.socket:
            sockets[path] = path == scope.file
    open_to_all = configuration.run_config.defines.get("APACHEWS_ENDPOINT_DIRECTORIES", "").split()
    for path, is_mapped in sockets.items():
        yield from check_socket(path, account, is_mapped, open_to_all)
        yield from check_visible(httpd, properties, path, _private_unit(arguments))


def _account(configuration: Configuration, httpd: Httpd | None) -> Account:
    """Return the user of httpd's children, running or not."""
    if httpd is not None:
        return Account.of_uid(httpd.uid)
    for name in (configuration.run_config.user, APACHE_USER):
        try:
            return Account.named(name)
        except KeyError:
            continue
    return Account.of_uid(os.geteuid())


def _unit(arguments: argparse.Namespace, httpd: Httpd | None) -> str:
    """Return the systemd unit of httpd, "" without one."""
    if httpd is not None:
        return httpd.unit
    if arguments.httpd_arguments or arguments.apachectl:
        return ""  # not the system's httpd
    return next((unit for unit in UNITS if unit_properties(unit)), "")


def _private_unit(arguments: argparse.Namespace) -> str:
    """Return the unit with PrivateTmp that starts this httpd, "" without one."""
    if arguments.httpd_arguments or arguments.apachectl:
        return ""  # not the system's httpd
    return next((unit for unit in UNITS if has_private_tmp(unit)), "")


def _scopes(configuration: Configuration, address: Address | None) -> Iterator[tuple[Scope, bool]]:
    """Yield the scope of the URL, or else that of each socket file.

    With each scope, whether its path is in use: for a site without a socket file, the
    scope is that of an invented one.
    """
    if address is not None:
        host = configuration.host_for(address.host, address.port, address.is_secure)
        yield scope_of(configuration, host, unquote(address.target.partition("?")[0])), True
        return
    for host in configuration.virtual_hosts():
        paths = _socket_urls(host)
        for path in paths:
            yield scope_of(configuration, host, path), True
        if not paths:
            yield scope_of(configuration, host, f"/{ANY_SOCKET}"), False


def _socket_urls(host: VirtualHost) -> list[str]:
    root = host.document_root
    return [path[len(root.rstrip("/")) :] for path in sockets_in(root)] if root else []


def _error_logs(configuration: Configuration) -> tuple[str, ...]:
    root = configuration.run_config.server_root
    found = [one.arguments[0] for one in find(configuration.directives, "ErrorLog")]
    names = [*found, configuration.run_config.error_log]
    return tuple(dict.fromkeys(os.path.join(root, name) for name in names if name))


def _logs(configuration: Configuration) -> list[str]:
    root = configuration.run_config.server_root
    names = find(configuration.directives, "CustomLog", "TransferLog")
    own = [os.path.join(root, one.arguments[0]) for one in names if one.arguments]
    return [*_error_logs(configuration), *own]


def _without_doubles(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Omit duplicates: several sites share much of their configuration."""
    seen: set[tuple[str, str, str]] = set()
    for finding in findings:
        key = (finding.id, finding.text, finding.where)
        if key not in seen:
            seen.add(key)
            yield finding


def _one_line(text: str) -> str:
    """Return text on one line, safe for a terminal: it contains file names and answers."""
    return printable(text).replace("\n", "\\n")


def report(findings: list[Finding], columns: int | None, has_colours: bool) -> str:
    """Return the findings as a table, with a summary.

    Args:
        findings: in the order of their rows.
        columns: the width for line breaks; None: no breaks.
        has_colours: whether to colour the levels.
    """
    lines = []
    names = max((len(finding.id) for finding in findings), default=0) + 2
    margin = " " * (LEVEL_COLUMNS + names)
    for finding in findings:
        label = finding.level.value.ljust(LEVEL_COLUMNS)
        if has_colours:
            label = paint(label, COLOURS[finding.level])
        text = _one_line(finding.text)
        if columns is not None:
            text = textwrap.fill(
                text,
                columns,
                initial_indent=margin,
                subsequent_indent=margin,
                break_long_words=False,
                break_on_hyphens=False,
            ).removeprefix(margin)
        lines.append(label + finding.id.ljust(names) + text)
        for name, value in (
            ("at", finding.where if finding.level is not Level.OK else ""),
            ("breaks", finding.breaks),
            ("when", finding.when),
            ("remedy", finding.remedy),
        ):
            if value:
                # No line breaks: a remedy is to be copied.
                lines.append(f"{margin}{name + ':':8}{_one_line(value)}")
        # Without a margin: a paste into the configuration needs no edit.
        lines += [_one_line(line) for line in finding.lines]
    errors = sum(finding.level is Level.ERROR for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    summary = (
        f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
        if errors + warnings
        else "nothing is wrong"
    )
    count = f"{len(findings)} check{'s' * (len(findings) != 1)}"
    return "\n".join([*lines, f"{count}: {summary}"])
