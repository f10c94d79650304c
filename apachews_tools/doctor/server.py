"""Checks of the server's configuration: mod_wsgi, the handler, Python, the MPM.

Contract: ``check_server(configuration, account, version)`` yields findings, those of
``python.py`` among them.  Only reads.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apachews_tools.httpd.configuration import Configuration, is_on
from apachews_tools.httpd.directives import Directive, find, quote
from apachews_tools.httpd.mapping import SCRIPT, STATUS_SCRIPT
from apachews_tools.httpd.ownership import weakness
from apachews_tools.httpd.permissions import Account
from apachews_tools.httpd.python_environment import version_in, version_text
from apachews_tools.httpd.shell import this_program
from apachews_tools.install.debian_module import package_of

from .finding import Finding, error, note, ok, warning
from .python import EVERY, check_python, config_remedy, is_hidden

GLOBAL: Final = "%{GLOBAL}"
# A relay needs about 3 MiB.  Without the C extension it is a custodian of 13 MiB, and up to 256
# custodians run (APACHEWS_MAX_CUSTODIANS).
FEW_CONNECTIONS: Final = 1000


def check_server(
    configuration: Configuration, account: Account, httpd_version: tuple[int, ...]
) -> Iterator[Finding]:
    """Yield findings about the configuration of the server."""
    yield from _check_modules(configuration)
    yield from _check_mpm(configuration)
    yield from _check_restart_support(configuration, httpd_version)
    if "wsgi_module" not in configuration.modules:
        yield error(
            "mod-wsgi",
            "mod_wsgi is not loaded",
            breaks="WebSockets do not work",
            remedy="on Debian: sudo apt-get install libapache2-mod-wsgi-py3 && sudo"
            f" {this_program()} config --debian, and the two commands that it prints; elsewhere:"
            f" add the lines of {this_program()} config",
        )
        return
    module = configuration.loaded.get("wsgi_module", "")
    yield ok("mod-wsgi", f"mod_wsgi is loaded{f': {module}' if module else ''}")
    scripts = handler_scripts(configuration)
    if not scripts:
        yield error(
            "handler-script",
            "WSGIHandlerScript websocket is missing, and so is a WSGIScriptAlias to the handler",
            breaks="WebSockets do not work: httpd does not know a handler of that name",
            remedy=config_remedy(),
        )
        return
    script = Path(scripts[0].arguments[1])
    if not script.exists() and not is_hidden(script):
        yield error(
            "handler-script",
            f"{script} does not exist",
            breaks=EVERY,
            remedy="Define APACHEWS_HANDLER with the directory that this command prints: python -c"
            ' "import apachews_handler; print(apachews_handler.__path__[0])"',
            where=scripts[0].where,
        )
        return
    yield ok("handler-script", f"the handler is {script}", scripts[0].where)
    yield ok("installation", f"Apache uses {_installation(script)}")
    yield from _check_mode(configuration, scripts)
    yield from _check_import_script(configuration, script)
    yield from _check_status_page(configuration)
    yield from check_python(configuration, account, script)


def _installation(script: Path) -> str:
    """Describe the installation that has a handler."""
    if package := package_of(script):
        return f"the Debian package {package}"
    packages = script.parents[1]
    environment = next((one for one in script.parents if (one / "pyvenv.cfg").exists()), None)
    if environment:
        version = version_in(str(script))
        of_version = f", for Python {version_text(version)}" if version else ""
        return f"the installation by pip in {environment}{of_version}"
    return f"the packages in {packages}"


def check_ownership(
    configuration: Configuration, trusted: frozenset[int] = frozenset({0})
) -> Iterator[Finding]:
    """Yield whether a user other than root can change the files that httpd reads as root.

    Only apachews.conf and mod_wsgi are checked.

    Args:
        configuration: of an httpd that root starts.
        trusted: user ids that may change the files.
    """
    ours = [Path(file) for file in configuration.files if Path(file).name == "apachews.conf"]
    if module := configuration.loaded.get("wsgi_module"):
        ours.append(Path(module))
    for file in ours:
        try:
            found = weakness(file.absolute(), trusted)
        except OSError:
            continue  # it does not exist: httpd reports that
        if found:
            yield warning(
                "ownership",
                f"Apache reads {file} as root, and {found}",
                breaks="nothing; but a user who can write there can become root",
                remedy="install apachews where only root can write (sudo python3 -m venv"
                " /opt/apachews), and use the lines that its apachews config prints",
            )
            return
    if ours:
        yield ok("ownership", "only root can change the files that Apache reads as root")


def handler_scripts(configuration: Configuration) -> list[Directive]:
    """Return the directives that name the handler's file."""
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

    True also if its ports are unknown, for example because of an undefined variable.
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
                breaks="a WebSocket over the TLS of that module is a 500: the handler supports"
                " mod_ssl only",
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
            breaks="browsers that use HTTP/2 with this server open WebSockets over it, but the"
            " handler asks for HTTP/1.1: Chromium connects after another round trip, Firefox fails",
            remedy="H2WebSockets off",
            where=switched_on[-1].where,
        )
    elif "http2_module" in configuration.modules:
        yield ok("http2", "mod_http2 is loaded; browsers open WebSockets over HTTP/1.1")
    if "reqtimeout_module" in configuration.modules:
        yield note(
            "reqtimeout",
            "mod_reqtimeout is loaded; it is harmless, because its limits end with the handshake",
        )


def _check_mpm(configuration: Configuration) -> Iterator[Finding]:
    mpm = configuration.mpm() or "an MPM other than event, worker and prefork"
    workers = _number(configuration, "MaxRequestWorkers", "MaxClients")
    threads = _number(configuration, "ThreadsPerChild")
    limits = [
        f"{name} {value}"
        for name, value in (("MaxRequestWorkers", workers), ("ThreadsPerChild", threads))
        if value and not (name == "ThreadsPerChild" and mpm == "prefork")
    ]
    text = f"{mpm}{', ' if limits else ''}{', '.join(limits)}"
    yield ok(
        "mpm", f"{text}: for requests and handshakes; an open WebSocket does not occupy a worker"
    )
    each = _number(configuration, "MaxConnectionsPerChild", "MaxRequestsPerChild")
    directive = configuration.last("MaxConnectionsPerChild") or configuration.last(
        "MaxRequestsPerChild"
    )
    if each and each < FEW_CONNECTIONS:
        yield warning(
            "max-connections-per-child",
            f"MaxConnectionsPerChild {each}: a child is replaced after {each} connections",
            breaks="a child that exits while it has a WebSocket over TLS remains as a relay, with"
            " about 3 MiB; without the C extension it is a custodian of 13 MiB, and if there are"
            " more than 256 (APACHEWS_MAX_CUSTODIANS), those with the fewest clients close them"
            " with 1012",
            when=f"{256 * each} connections within the life of a WebSocket",
            remedy="MaxConnectionsPerChild 0",
            where=directive.where if directive else "",
        )
    else:
        yield ok(
            "max-connections-per-child",
            f"MaxConnectionsPerChild {each or 0}: WebSockets outlive their child",
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
            when="every reload of Apache; logrotate does one daily",
            remedy=f"upgrade to {' and '.join(lacks)}",
        )
    else:
        yield ok(
            "restart-support", "httpd and the kernel support restarts that keep WebSockets open"
        )


def _check_mode(configuration: Configuration, scripts: list[Directive]) -> Iterator[Finding]:
    problems = 0
    for directive in find(configuration.directives, "WSGIRestrictEmbedded"):
        if is_on(directive):
            problems += 1
            yield error(
                "handler-mode",
                "WSGIRestrictEmbedded is on: mod_wsgi does not run code in Apache's children",
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
                f"mod_wsgi runs the handler in the daemon process {value}, without the connections"
                if option == "process-group"
                else "the handler runs in a sub-interpreter, in which ctypes does not work"
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
        yield ok(
            "handler-mode", "the handler runs in Apache's children, in Python's main interpreter"
        )


def _group(configuration: Configuration, name: str, default: str) -> str:
    """Return the group of a script that does not set its own; the worst if sections differ."""
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
            yield ok("import-script", "each child imports the handler when it starts")
            return
    yield warning(
        "import-script",
        "WSGIImportScript for the handler is missing",
        breaks="all WebSockets are closed with 1001",
        when="every reload of Apache; logrotate does one daily",
        remedy=f"WSGIImportScript {quote(str(script))} process-group={GLOBAL}"
        f" application-group={GLOBAL}",
    )


def _check_status_page(configuration: Configuration) -> Iterator[Finding]:
    """Find a status page that is configured as a handler, so that any .htaccess can show it."""
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
            f"{directive}: the status page must not be a handler",
            breaks="the page is not served; any .htaccess could show it if it was a handler",
            remedy="replace it, outside of <Location>, by: WSGIScriptAlias /websocket-status"
            f' "${{APACHEWS_HANDLER}}/status_page.py" process-group={GLOBAL}'
            f" application-group={GLOBAL}",
            where=directive.where,
        )
    pages = [
        one
        for one in find(configuration.directives, "WSGIScriptAlias")
        if one.arguments[1:2] and one.arguments[1].endswith(STATUS_SCRIPT)
    ]
    if pages and not handlers:
        yield ok("status-page", f"the status page is at {pages[0].arguments[0]}", pages[0].where)
