"""Checks of tunnels.

Contract: ``check_tunnels(configuration)`` yields findings about the lines of tunnels.  Pure.
``check_backends(configuration, account)`` connects to each backend once.
``check_tunnelled_sockets(configuration)`` searches the document roots for producers' sockets,
``check_htaccess(configuration)`` for ``.htaccess`` files that lead to the handler.

Sources: modules/proxy/mod_proxy.c (``no-proxy``), modules/metadata/mod_setenvif.c (its
directives of a directory come later than mod_proxy), modules/http/http_request.c (``Vary`` of an
expression with ``%{HTTP:…}``).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from apachews_tools.httpd.backend import Backend
from apachews_tools.httpd.configuration import Configuration, Scope, alias_matches, is_on
from apachews_tools.httpd.directives import Directive, find, quote, section_of
from apachews_tools.httpd.mapping import (
    ANY_SOCKET,
    SCRIPT,
    STATUS_SCRIPT,
    TUNNEL_SCRIPT,
    htaccess_files,
)
from apachews_tools.httpd.permissions import WRITE, Account, obstacle
from apachews_tools.httpd.proxies import (
    SETTERS,
    Proxy,
    Tunnel,
    sets_no_proxy,
    tunnel_of,
    tunnels,
)
from apachews_tools.install.diversion import diversion, leaves_site
from apachews_tools.install.installation import SetUpError
from apachews_tools.install.tunnels import producers_line, proxy_target

from .finding import Finding, error, ok, warning
from .proxies import KEEP_UPGRADES, as_http, backend_of
from .site import MAX_LOOKED_AT, sockets_in

CONNECT_TIMEOUT_S: Final = 2.0
NO_PROXY_LINE: Final = 'SetEnvIfNoCase Upgrade "^websocket$" no-proxy'


def check_tunnels(configuration: Configuration) -> Iterator[Finding]:
    """Yield findings about the lines of tunnels."""
    found = tunnels(configuration)
    yield from _check_setters(configuration)
    for tunnel in found:
        problems = [*_check_backend_setting(tunnel), *_check_no_proxy(tunnel)]
        problems += [*_check_page_proxy(tunnel), *_check_rules(tunnel)]
        yield from problems
        if not problems:
            yield ok("tunnel", f"a tunnel leads {tunnel.path} to {' '.join(tunnel.backends)}")


def _check_setters(configuration: Configuration) -> Iterator[Finding]:
    """Check the directives that set no-proxy, wherever they are."""
    has_hosts = bool(find(configuration.directives, "VirtualHost"))
    for one in find(configuration.directives, *SETTERS):
        if not sets_no_proxy(one):
            continue
        if one.is_named("SetEnvIfExpr") and re.search(r"%\{HTTP:", one.arguments[0], re.I):
            yield warning(
                "no-proxy",
                f"{one}: %{{HTTP:Upgrade}} adds Vary: Upgrade to every response",
                breaks="nothing; but caches keep each page twice, or not at all",
                remedy=NO_PROXY_LINE,
                where=one.where,
            )
        if has_hosts and one in configuration.server_directives:
            yield warning(
                "no-proxy",
                f"{one} at the level of the server: every virtual host inherits it",
                breaks="WebSockets that another virtual host leads through mod_proxy do not open",
                remedy=f"in the <VirtualHost> of the tunnel instead: {NO_PROXY_LINE}",
                where=one.where,
            )
        section = section_of(configuration.directives, one)
        if section and not section.is_named("VirtualHost"):
            yield warning(
                "no-proxy",
                f"{one} in {section} has no effect: mod_proxy has decided before",
                breaks="mod_proxy gets the WebSockets",
                remedy=f"in the <VirtualHost>, outside of sections: {NO_PROXY_LINE}",
                where=one.where,
            )


def _check_backend_setting(tunnel: Tunnel) -> Iterator[Finding]:
    if not tunnel.backends:
        yield error(
            "tunnel",
            f"{tunnel.alias.name} {tunnel.path} leads to a tunnel without APACHEWS_BACKEND",
            breaks="every WebSocket of it is a 500",
            remedy=f"<Location {tunnel.path}> with SetEnv APACHEWS_BACKEND http://127.0.0.1:PORT",
            where=tunnel.alias.where,
        )


def _check_no_proxy(tunnel: Tunnel) -> Iterator[Finding]:
    proxy = tunnel.page_proxy
    if proxy is None or tunnel.no_proxy:
        return
    text = f"{proxy.directive} takes the WebSockets of {tunnel.path}: no-proxy is not set for them"
    remedy = f"in the <VirtualHost>, outside of sections: {NO_PROXY_LINE}"
    if proxy.is_websocket:
        yield warning(
            "no-proxy",
            text,
            breaks="the tunnel is not used, and each WebSocket occupies a worker",
            remedy=remedy,
            where=proxy.directive.where,
        )
    else:
        yield error(
            "no-proxy",
            text,
            breaks="no WebSocket opens; Socket.IO stays with polling",
            remedy=remedy,
            where=proxy.directive.where,
        )


def _check_rules(tunnel: Tunnel) -> Iterator[Finding]:
    """Find a rule for pages that takes the WebSockets: mod_rewrite comes first."""
    # A path below that of the tunnel: most rules have a pattern for those.
    path = f"{tunnel.path.rstrip('/')}/{ANY_SOCKET}"
    scope = Scope(tunnel.scope.configuration, tunnel.scope.host, path, tunnel.scope.file)
    found = diversion(scope)
    if found is None or not found.is_proxy or not found.directive.is_named("RewriteRule"):
        return
    if any(one.is_websocket for one in tunnel.proxies if one.directive is found.directive):
        return  # ``check_proxies`` reports it
    make = error if found.is_certain else warning
    yield make(
        "tunnel",
        f"{found.directive} takes the WebSockets of {tunnel.path}: mod_rewrite comes before the"
        " tunnel, and no-proxy has no effect on it",
        breaks="no WebSocket opens" + ("" if found.is_certain else ", if the conditions hold"),
        remedy=f"above it: {KEEP_UPGRADES}",
        where=found.directive.where,
    )


def _check_page_proxy(tunnel: Tunnel) -> Iterator[Finding]:
    """Compare a tunnel with the ProxyPass of its pages."""
    proxy = tunnel.page_proxy
    if proxy is None:
        return
    where = proxy.directive.where
    if proxy.is_websocket and tunnel.no_proxy:
        left = "upgrade=" if proxy.has_upgrade else "ws://"
        yield warning(
            "tunnel",
            f"{proxy.directive} still has {left}, beside the tunnel of {tunnel.path}",
            breaks="nothing, as long as no-proxy is set; without it, each WebSocket occupies a"
            " worker again",
            remedy="remove upgrade=" if proxy.has_upgrade else "http:// instead of ws://",
            where=where,
        )
    yield from _check_mapping(tunnel, proxy)
    if not is_on(tunnel.scope.last("ProxyPreserveHost")):
        yield warning(
            "tunnel",
            f"ProxyPreserveHost is off beside the tunnel of {tunnel.path}",
            breaks="the backend gets the site's name in Host for WebSockets, and its own address"
            " for pages: checks of the origin and links may fail",
            remedy="ProxyPreserveHost On",
            where=where,
        )


def _check_mapping(tunnel: Tunnel, proxy: Proxy) -> Iterator[Finding]:
    """Find a ProxyPass and a backend that map the same URL to different paths."""
    target = as_http(proxy.target)
    has_path = bool(urlsplit(target.rpartition("|")[2]).path)
    if (
        proxy.directive.is_named("ProxyPass")
        and proxy.path.endswith("/") != target.endswith("/")
        and (has_path or proxy.path.endswith("/"))
    ):
        yield warning(
            "tunnel",
            f"{proxy.directive}: only one of path and target ends in a slash",
            breaks="mod_proxy sends // or joins two names, and the pages are a 404",
            remedy="a slash at the end of both, or of neither",
            where=proxy.directive.where,
        )
    if len(tunnel.backends) != 1:
        return  # its pages come from a balancer
    try:
        wanted = proxy_target(tunnel.backends[0], tunnel.path).rstrip("/")
    except SetUpError:
        return  # the check of the settings reports it, or it is not set
    rest = tunnel.path[len(proxy.path.rstrip("/")) :] if tunnel.path != "/" else ""
    found = target.rstrip("/") + rest.rstrip("/")
    if found != wanted and _server_of(found) == _server_of(wanted):
        yield warning(
            "tunnel",
            f"{tunnel.path} leads pages to {found}, and WebSockets to {wanted}",
            breaks="WebSockets are a 404 of the backend, unless it has them at another path",
            remedy=f"SetEnv APACHEWS_BACKEND {quote(backend_of(tunnel.path, found))}",
            where=tunnel.alias.where,
        )


def check_tunnelled_sockets(configuration: Configuration) -> Iterator[Finding]:
    """Yield findings about producers' sockets whose WebSockets a tunnel gets."""
    for tunnel in tunnels(configuration):
        host = tunnel.scope.host
        root = host.document_root.rstrip("/")
        taken = [
            path[len(root) :]
            for path in sockets_in(root + tunnel.path)
            if _is_of(tunnel, path[len(root) :])
        ]
        if taken:
            more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
            first = "" if "alias_module" in configuration.modules else "first a2enmod alias; "
            yield warning(
                "tunnel",
                f"the tunnel of {tunnel.path} gets the WebSockets of {taken[0]}{more}, which has a"
                " socket in the document root",
                breaks="they go to the backend, and the producer gets none",
                remedy=f"{first}in the <VirtualHost>: {producers_line(tunnel.path, root)}",
                where=tunnel.alias.where,
            )


def _is_of(tunnel: Tunnel, url_path: str) -> bool:
    scope = Scope(tunnel.scope.configuration, tunnel.scope.host, url_path, tunnel.scope.file)
    found = tunnel_of(scope)
    return found is not None and found.alias is tunnel.alias


def check_htaccess(configuration: Configuration) -> Iterator[Finding]:
    """Yield findings about .htaccess files that lead requests to an alias of the handler."""
    for host in configuration.virtual_hosts():
        aliases = [
            one
            for one in [*host.directives, *configuration.server_directives]
            if one.is_named("WSGIScriptAlias")
            and len(one.arguments) > 1
            and one.arguments[1].endswith((SCRIPT, TUNNEL_SCRIPT, STATUS_SCRIPT))
        ]
        if not aliases:
            continue
        for _, directives in htaccess_files(configuration, host, MAX_LOOKED_AT):
            for one in directives:
                target = next((t for t in _targets(one) if _alias_of(aliases, t)), "")
                if target:
                    yield _led_by_htaccess(one, target)


def _targets(directive: Directive) -> tuple[str, ...]:
    """Return the paths of the site to which a directive of an .htaccess leads requests."""
    words = directive.arguments
    if directive.is_named("DirectoryIndex", "FallbackResource"):
        return words
    if directive.is_named("Action"):
        return words[1:2]
    if directive.is_named("RewriteRule") and not leaves_site(directive):
        return words[1:2]
    return ()


def _alias_of(aliases: list[Directive], target: str) -> bool:
    path = target.partition("?")[0]
    return any(alias_matches(one.arguments[0].rstrip("/") or "/", path) for one in aliases)


def _led_by_htaccess(directive: Directive, target: str) -> Finding:
    return warning(
        "htaccess",
        f"{directive} leads requests to {target}, from an .htaccess file",
        breaks="every WebSocket that comes this way is a 500 (htaccess)",
        remedy="remove that line; in the <VirtualHost>, outside of <Directory>:"
        f" RewriteRule ^/PATH$ {target} [PT], with the path that clients use",
        where=directive.where,
    )


def _server_of(target: str) -> str:
    prefix, _, url = target.rpartition("|")
    return prefix or urlsplit(url).netloc


def check_backends(configuration: Configuration, account: Account) -> Iterator[Finding]:
    """Yield whether a server listens at the end of each tunnel.

    Args:
        configuration: of httpd.
        account: the user of httpd's children.
    """
    addresses = (one for tunnel in tunnels(configuration) for one in tunnel.backends)
    for text in dict.fromkeys(addresses):
        try:
            backend = Backend.parse(text)
        except ValueError:
            continue  # the check of the settings reports it
        try:
            if backend.socket_path:
                found = obstacle(account, Path(backend.socket_path), WRITE)
                if found:
                    yield error(
                        "backend",
                        f"Apache's user {account.name} may not connect to {backend.socket_path}:"
                        f" {found.path} has mode {found.mode}",
                        breaks="every WebSocket of the tunnel is a 500",
                        remedy=f"{found.remedy}; or a group of {account.name} for the socket",
                    )
                    continue
            _connect(backend)
        except OSError as failure:
            yield error(
                "backend",
                f"no server listens at {backend.name}: {failure.strerror or failure}",
                breaks="every WebSocket of the tunnel is a 503",
                remedy="start the program, or correct the address in APACHEWS_BACKEND",
            )
        else:
            yield ok("backend", f"a server listens at {backend.name}")


def _connect(backend: Backend) -> None:
    """Connect to a backend, and close the connection.

    Raises:
        OSError: it does not listen, or its name cannot be resolved.
    """
    if not backend.socket_path:
        socket.create_connection((backend.host, backend.port), CONNECT_TIMEOUT_S).close()
        return
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect(backend.socket_path)
