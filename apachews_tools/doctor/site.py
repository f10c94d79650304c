"""Checks of a site: the configuration for a WebSocket's request, and the socket file.

Contract: ``check_scope(scope)`` yields findings about the configuration,
``check_socket(path, account)`` about the file; the latter connects to the socket once and
closes the connection at once.  ``sockets_in(directory)`` finds socket files, within a limit.
"""

from __future__ import annotations

import difflib
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from apachews._listening import loopback
from apachews._listening.endpoint import Outcome, Unreachable, connect
from apachews_tools.httpd.configuration import Scope, is_on
from apachews_tools.httpd.directives import Directive, quote, section_of
from apachews_tools.httpd.links import MAX_COMPONENTS, components, foreign_link
from apachews_tools.httpd.mapping import SCRIPT, scope_of, socket_of
from apachews_tools.httpd.permissions import READ, WRITE, Account, obstacle
from apachews_tools.httpd.shell import this_program, word
from apachews_tools.install.diversion import disabled_denial, diversion

from .finding import Finding, error, ok, warning

# Files and directories of a document root that are searched for sockets.
MAX_LOOKED_AT: Final = 20_000
CONNECT_TIMEOUT_S: Final = 2.0
GRANT: Final = "Require all granted, or a narrower Require"


def rewritten(scope: Scope) -> Scope | None:
    """Return the scope of the WebSocket that a rule of the site leads to, or None."""
    found = diversion(scope)
    if found is None or not found.is_certain or not found.websocket:
        return None
    return scope_of(scope.configuration, scope.host, found.websocket)


def check_scope(scope: Scope) -> Iterator[Finding]:
    """Yield findings about the configuration that applies to a request."""
    url_path = scope.url_path
    if found := diversion(scope):
        rule = found.directive
        target = "a proxy" if found.is_proxy else f"{rule.arguments[1]}"
        remedy = (
            f"before it: ProxyPass {quote(url_path)} !"
            if rule.is_named("ProxyPass", "ProxyPassMatch")
            else r"before it: RewriteRule \.ws$ - [END]"
            if rule.is_named("RewriteRule")
            else f"<Files *.ws> with SetHandler websocket, or a {rule.name} of narrower scope"
        )
        make = error if found.is_certain else warning
        yield make(
            "proxy",
            f"{rule} takes {url_path} to {target}",
            breaks="the handler does not get the request"
            + ("" if found.is_certain else ", if the conditions hold")
            + (
                ": another server answers it, and each connection occupies a worker"
                if found.is_proxy
                else ": another page answers it"
            ),
            remedy=remedy,
            where=rule.where,
        )
    else:
        yield ok("proxy", f"no rule redirects {url_path}")
    yield from _check_handler(scope)
    yield from _check_pass_request(scope)
    if denied := scope.denial():
        yield error(
            "access",
            f"{url_path}: access is denied to all clients{_place(scope, denied)}",
            breaks="every WebSocket is a 403 (AH01630)",
            remedy=f"<Directory {quote(_directory(scope))}> with {GRANT}"
            if _is_above(scope, denied)
            else f"replace {denied} at {denied.where} by: {GRANT}",
            where=denied.where,
        )
    else:
        yield ok("access", f"{url_path} is open to clients, or to clients that log in")
        yield from _check_disabled_denial(scope)
    if not scope.file.endswith(SCRIPT):
        yield from _check_links(scope)


def _check_disabled_denial(scope: Scope) -> Iterator[Finding]:
    found = disabled_denial(scope)
    # A Require decides who may connect, as the remedy says.
    if found is None or scope.has_restriction():
        return
    rule, off = found
    section = _section(scope, off)
    yield warning(
        "rewrite-denial",
        f"{rule} does not apply to {scope.url_path}: {section} at {off.where} disables it",
        breaks="clients that the rule is to deny can connect",
        remedy='<Files "*.ws"> with a Require for the clients that may connect; or the rule again'
        r' in <FilesMatch "\.ws$"> with RewriteEngine On',
        where=rule.where,
    )


def _directory(scope: Scope) -> str:
    return scope.file.rpartition("/")[0] or "/"


def _section(scope: Scope, directive: Directive) -> Directive | None:
    configuration = scope.configuration
    return section_of(configuration.directives, directive)


def _place(scope: Scope, directive: Directive | None) -> str:
    """Return the place of a directive, as the end of a sentence."""
    section = _section(scope, directive) if directive else None
    if section:
        return f", in {section}"
    if directive and directive.file.endswith("/.htaccess"):
        return f", in {directive.file}"
    return ""


def _is_above(scope: Scope, directive: Directive) -> bool:
    """Tell whether a ``<Directory>`` for the directory of the request overrides a directive."""
    section = _section(scope, directive)
    if section is None:
        return not directive.file.endswith("/.htaccess")
    if section.is_named("VirtualHost"):
        return True
    return (
        section.is_named("Directory")
        # A pattern may have the same depth, and stand after it.
        and not set("~*?[") & set(section.arguments[0])
        and section.arguments[0].rstrip("/") != _directory(scope).rstrip("/")
    )


def _check_handler(scope: Scope) -> Iterator[Finding]:
    if scope.file.endswith(SCRIPT):
        if socket_of(scope) is None:
            yield error(
                "add-handler",
                f"{scope.url_path} belongs to a WSGIScriptAlias, but does not name a socket",
                breaks="every WebSocket of it is a 500 without APACHEWS_ROOT, a 404 without a name",
                remedy="SetEnv APACHEWS_ROOT with the directory of the sockets, in that <Location>",
            )
        else:
            yield ok("add-handler", f"{scope.url_path} belongs to the handler, by WSGIScriptAlias")
        return
    handler = scope.handler()
    if handler is None:
        name = scope.file.rpartition("/")[2]
        near = socket_beside(scope.file)
        yield error(
            "add-handler",
            f"no directive assigns {name} to the handler websocket",
            breaks="httpd treats the socket as a file, and answers 403 or 404",
            remedy="AddHandler websocket .ws"
            if name.endswith(".ws")
            else f"connect to {scope.url_path.rpartition('/')[0]}/{near} beside it"
            if near
            else "AddHandler websocket .ws, and a name that ends in .ws",
        )
    elif handler.arguments[0].lower() != "websocket":
        yield error(
            "add-handler",
            f"{handler} handles {scope.url_path} instead of the handler websocket",
            breaks="another handler answers every WebSocket",
            remedy='<Files "*.ws"> with SetHandler websocket, in the same section',
            where=handler.where,
        )
    else:
        yield ok("add-handler", f"{scope.url_path} belongs to the handler", handler.where)


def _check_pass_request(scope: Scope) -> Iterator[Finding]:
    directive = scope.last("WSGIPassApacheRequest")
    if is_on(directive):
        yield ok("pass-request", "mod_wsgi passes httpd's request to the handler")
        return
    yield error(
        "pass-request",
        "WSGIPassApacheRequest is not on" if directive is None else "WSGIPassApacheRequest is off",
        breaks="every WebSocket is a 500: the handler does not get the connection",
        remedy="WSGIPassApacheRequest On",
        where=directive.where if directive else "",
    )


def _check_links(scope: Scope) -> Iterator[Finding]:
    options, setter = scope.options()
    directory = _directory(scope)
    if "followsymlinks" in options:
        yield ok("follow-symlinks", f"Options of {directory} have FollowSymLinks")
        return
    owner = " (SymLinksIfOwnerMatch is not sufficient)" if "symlinksifownermatch" in options else ""
    yield error(
        "follow-symlinks",
        f"Options of {directory} lack FollowSymLinks{owner}{_place(scope, setter)}",
        breaks="every WebSocket is a 403 (AH00038): httpd treats a socket as a link",
        remedy=f"<Directory {quote(directory)}> with Options +FollowSymLinks"
        if setter is None or _is_above(scope, setter)
        else f"after {setter} at {setter.where}, on a separate line: Options +FollowSymLinks",
        where=setter.where if setter else "",
    )


def check_socket(
    path: str, account: Account, is_mapped: bool = True, directories: Sequence[str] = ()
) -> Iterator[Finding]:
    """Yield findings about a socket file.

    Args:
        path: of the file.
        account: the user of httpd's children.
        is_mapped: whether httpd itself looks up the file; with ``WSGIScriptAlias`` only
            the handler does.
        directories: those of Define APACHEWS_ENDPOINT_DIRECTORIES.
    """
    try:
        status = os.stat(path)
        link = foreign_link(path, directories)
        length = components(path)
    except PermissionError as failure:
        yield warning(
            "privileges",
            f"{path} is not accessible: {failure.strerror}",
            breaks="nothing; but it is unknown whether the socket exists",
            remedy=f"sudo {this_program()} doctor",
        )
        return
    except OSError as failure:
        yield error(
            "socket",
            f"{path}: {failure.strerror}",
            breaks="every WebSocket of it is a 404",
            remedy=_remedy_of_absent(path, account),
        )
        return
    is_loopback = _is_loopback(path)
    if not stat.S_ISSOCK(status.st_mode) and not is_loopback:
        yield error(
            "socket",
            f"{path} is not a socket",
            breaks="every WebSocket of it is a 403",
            # Never advise to remove it: the client chose the URL, and root runs the command.
            remedy=f"move the file {word(path)} away, and start the producer, with Server({path!r})"
            if stat.S_ISREG(status.st_mode) and path.endswith(".ws")
            else "check the path: the name of a socket ends in .ws",
        )
        return
    yield ok("socket", f"{path} is a {'loopback ' if is_loopback else ''}socket")
    if is_loopback and status.st_mode & loopback.OTHERS:
        yield error(
            "socket-permission",
            f"any user may read {path}, and the token in it",
            breaks="every WebSocket of it is a 403",
            remedy=f"chmod o= {word(path)}; if that has no effect, mount the file system with"
            " umask=007",
        )
        return
    real = Path(path).resolve()
    if length > MAX_COMPONENTS:
        yield error(
            "socket-link",
            f"{path} has {length} components, with symbolic links",
            breaks=f"every WebSocket of it is a 500: the handler follows {MAX_COMPONENTS}"
            " components, those of the links' targets included",
            remedy=f"use fewer or shorter links to {real}",
        )
        return
    if link:
        yield error(
            "socket-link",
            f"{path} leads by the symbolic link {link} to {real}, and they have different owners",
            breaks="every WebSocket of it is a 403",
            # Never without the condition: the link may be an attack on root.
            remedy="only if this site is to use that socket, as root:"
            f" ln -sfn {word(os.readlink(link))} {word(link)};"
            " or let all sites use that directory: Define APACHEWS_ENDPOINT_DIRECTORIES"
            f" {quote(str(real.parent))}",
        )
        return
    found = obstacle(account, Path(path), READ if is_loopback else WRITE)
    if found:
        is_directory = found.path != Path(path).resolve()
        is_lexical = found.path in Path(os.path.abspath(path)).parents
        status_of = (
            f"403 ({'AH00035, AH00529' if is_lexical else 'AH00037'})"
            if is_directory and is_mapped
            else "500"
        )
        transport = ', transport="loopback"' if is_loopback else ""
        yield error(
            "socket-permission",
            f"Apache's user {account.name} may not connect to {path}: {found.path} has mode"
            f" {found.mode}",
            breaks=f"every WebSocket of it is a {status_of}",
            remedy=found.remedy
            if is_directory
            else f"Server({path!r}{transport}, group=<a group of {account.name}>), or run the"
            f" producer as {account.name}",
        )
    else:
        yield ok("socket-permission", f"Apache's user {account.name} may connect to it")
    yield from _check_producer(path)


def _remedy_of_absent(path: str, account: Account) -> str:
    """Return the remedy for a socket file that does not exist."""
    near = socket_beside(path)
    meant = f"connect to {near} beside it, if that was meant; else " if near else ""
    place, _, name = path.rpartition("/")
    directory = Path(place or "/")
    start = f"start the producer, with Server({path!r})"
    try:
        may_write = account.may(directory.stat(), WRITE)
    except OSError:
        return f"{meant}install -d -o {word(account.name)} {word(directory)}, and {start}"
    if may_write:
        return f"{meant}{start}"
    own = directory / "ws"
    return (
        f"{meant}{start}, as a user who may write to {word(directory)} (unlike {account.name});"
        f" or make a directory for sockets: install -d -o {word(account.name)} {word(own)}, and"
        f" Server({str(own / name)!r})"
    )


def socket_beside(path: str) -> str:
    """Return the name of a socket file in the same directory that may be meant, or "".

    It is the same name with .ws, or a similar one.
    """
    place, _, name = path.rpartition("/")
    try:
        with os.scandir(place or "/") as entries:
            names = [
                entry.name
                for entry in itertools.islice(entries, MAX_LOOKED_AT)
                if entry.name.endswith(".ws") and entry.name != name and is_socket(entry.path)
            ]
    except OSError:
        return ""  # the directory does not exist, or is not accessible
    wanted = name.removesuffix(".ws") + ".ws"
    if wanted in names:
        return wanted
    return next(iter(difflib.get_close_matches(wanted, names, 1)), "")


def _check_producer(path: str) -> Iterator[Finding]:
    try:
        connect(path, CONNECT_TIMEOUT_S).close()
    except Unreachable as failure:
        if failure.outcome is Outcome.FORBIDDEN:
            yield warning(
                "privileges",
                f"no permission to connect to {path}",
                breaks="nothing; but it is unknown whether a producer listens",
                remedy=f"sudo {this_program()} doctor",
            )
        elif failure.outcome is Outcome.BUSY:
            yield error(
                "producer",
                f"the producer on {path} does not accept connections: its backlog is full",
                breaks="every new WebSocket of it is a 503",
                remedy="restart the program; it must return to server.dequeue() quickly",
                when="whenever its backlog is full",
            )
        else:
            yield error(
                "producer",
                f"no producer listens on {path}: {failure}",
                breaks="every WebSocket of it is a 503",
                remedy="start the producer",
            )
        return
    yield ok("producer", f"a producer listens on {path}")


def sockets_in(directory: str, limit: int = 20) -> list[str]:
    """Return the socket files below a document root, at most ``limit`` of them."""
    found: list[str] = []
    looked_at = 0
    for place, directories, files in os.walk(directory):
        directories.sort()
        looked_at += len(directories) + len(files)
        for name in sorted(files):
            path = os.path.join(place, name)
            if name.endswith(".ws") and is_socket(path):
                found.append(path)
        if len(found) >= limit or looked_at > MAX_LOOKED_AT:
            break
    return found[:limit]


def is_socket(path: str) -> bool:
    """Tell whether a file is a producer's socket, a loopback one included."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode) or _is_loopback(path)
    except OSError:
        return False


def _is_loopback(path: str) -> bool:
    """Tell whether a file has the address of a loopback socket.

    If it is not readable, its name and its size decide.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return False
        loopback.Address.decode(loopback.read_file(path)[0])
    except PermissionError:
        return path.endswith(".ws") and status.st_size in loopback.FILE_BYTES
    except (OSError, loopback.NotAnAddress):
        return False
    return True
