"""Checks of proxies for WebSockets, and of the tunnels that replace them.

Contract: ``check_proxies(configuration)`` yields findings about mod_proxy, with the lines of a
tunnel; ``check_tunnels(configuration)`` about the lines of tunnels.  Both are pure.
``check_backends(configuration, account)`` connects to each backend once.

Sources: modules/proxy/mod_proxy.c (``ap_proxy_trans_match``, ``no-proxy``; the option
``upgrade``), modules/metadata/mod_setenvif.c (its directives of a directory come later than
mod_proxy), modules/http/http_request.c (``Vary`` of an expression with ``%{HTTP:…}``).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from apachews_tools.httpd.backend import Backend
from apachews_tools.httpd.configuration import Configuration, alias_matches, is_on
from apachews_tools.httpd.directives import Directive, find, quote, section_of
from apachews_tools.httpd.permissions import WRITE, Account, obstacle
from apachews_tools.httpd.proxies import (
    SETTERS,
    Proxy,
    Tunnel,
    is_ws,
    levels,
    proxies_of,
    sets_no_proxy,
    tunnels,
)
from apachews_tools.httpd.shell import this_program
from apachews_tools.install.installation import SetUpError
from apachews_tools.install.tunnels import proxy_target, tunnel_lines

from .finding import Finding, error, note, ok, warning

CONNECT_TIMEOUT_S: Final = 2.0
# httpd's defaults of MaxRequestWorkers: 16 children of 25 threads; prefork has processes.
DEFAULT_WORKERS: Final = 400
DEFAULT_PREFORK_WORKERS: Final = 256
NO_PROXY_LINE: Final = 'SetEnvIfNoCase Upgrade "^websocket$" no-proxy'


def max_request_workers(configuration: Configuration) -> int:
    """Return the number of requests, or of proxied WebSockets, that fit into httpd."""
    for name in ("MaxRequestWorkers", "MaxClients"):
        directive = configuration.last(name)
        if directive and directive.arguments and directive.arguments[0].isdigit():
            return int(directive.arguments[0])
    return DEFAULT_PREFORK_WORKERS if configuration.mpm() == "prefork" else DEFAULT_WORKERS


def check_proxies(configuration: Configuration) -> Iterator[Finding]:
    """Yield findings about proxies for WebSockets, with the lines of a tunnel in their place."""
    covered = {
        id(tunnel.page_proxy.directive)
        for tunnel in tunnels(configuration)
        if tunnel.page_proxy and tunnel.no_proxy
    }
    workers = max_request_workers(configuration)
    is_used = False
    for level in levels(configuration):
        proxies = proxies_of(level)
        for number, proxy in enumerate(proxies):
            if not proxy.is_websocket:
                continue
            is_used = is_used or is_ws(proxy.target)
            if id(proxy.directive) in covered:
                continue  # ``check_tunnels`` reports what is left of it
            setter = next(filter(sets_no_proxy, level), None)
            if setter and not proxy.is_rule:
                yield _excluded(proxy, proxies, setter)
            else:
                yield _proxied(proxy, proxies, workers)
            yield from _check_order(proxy, proxies[:number])
    if "proxy_wstunnel_module" in configuration.modules and not is_used:
        yield note(
            "proxied-websockets", "mod_proxy_wstunnel is loaded, and no directive names ws://"
        )


def _proxied(proxy: Proxy, proxies: list[Proxy], workers: int) -> Finding:
    """Return the finding about a proxy for WebSockets."""
    lines, advice = _replacement(proxy, proxies)
    by = (
        "mod_proxy_wstunnel"
        if is_ws(proxy.target)
        else "mod_rewrite and mod_proxy"
        if proxy.is_rule
        else "mod_proxy_http"
    )
    return warning(
        "proxied-websockets",
        f"{proxy.directive} leads WebSockets to another server, by {by}",
        breaks="each open WebSocket occupies a worker: with all of them occupied, the whole server"
        " answers nothing",
        when=f"{workers} open WebSockets (MaxRequestWorkers); fewer after a reload of Apache, which"
        " keeps the old children until their WebSockets close",
        remedy=advice,
        where=proxy.directive.where,
        lines=tuple(lines),
    )


def _excluded(proxy: Proxy, proxies: list[Proxy], setter: Directive) -> Finding:
    """Return the finding about a proxy that no-proxy keeps from its WebSockets."""
    lines, advice = _replacement(proxy, proxies)
    return error(
        "no-proxy",
        f"{setter} keeps mod_proxy from the WebSockets of {proxy.directive}",
        breaks="its WebSockets do not open",
        remedy=advice,
        where=proxy.directive.where,
        lines=tuple(lines),
    )


def _replacement(proxy: Proxy, proxies: list[Proxy]) -> tuple[list[str], str]:
    """Return the lines of a tunnel in the place of a proxy, and what to do with them."""
    generic = f"a tunnel: {this_program()} config --tunnel NAME prints its lines"
    target = _as_http(proxy.target)
    if re.search(r"\b(?:wss|https)://", target, re.IGNORECASE):
        return [], f"{generic}; it needs a port of the server without TLS"
    if target.startswith("balancer:"):
        return [], f"{generic}, to one member of the balancer"
    if not proxy.path or not proxy.directive.is_named("ProxyPass", "RewriteRule"):
        return [], generic
    path = proxy.path.rstrip("/") or "/"
    pages = next((one for one in proxies if _has_pages(one, path)), None)
    try:
        lines = tunnel_lines(_backend_of(path, target), path, has_pages=pages is not None)
    except SetUpError:
        return [], generic
    # The ProxyPass of the pages stays as it is, without its upgrade=.
    lines = [line for line in lines if not line.startswith("ProxyPass ")]
    advice = "in the <VirtualHost>, these lines in its place (docs/howto/tunnel.md):"
    if pages is proxy and proxy.in_section:
        advice = "remove upgrade= there; these lines in the <VirtualHost> (docs/howto/tunnel.md):"
    elif pages is proxy:
        words = [w for w in proxy.directive.arguments if not w.lower().startswith("upgrade=")]
        lines.insert(2, str(Directive(proxy.directive.name, tuple(words))))
    return lines, advice


def _has_pages(proxy: Proxy, path: str) -> bool:
    """Tell whether a proxy leads the pages of a path to another server."""
    if proxy.is_rule or proxy.target == "!" or is_ws(proxy.target) or not proxy.path:
        return False
    return alias_matches(proxy.path, path)


def _as_http(target: str) -> str:
    """Return a target with http:// for ws://."""
    return re.sub(r"\bws://", "http://", target, count=1, flags=re.IGNORECASE)


def _backend_of(path: str, target: str) -> str:
    """Return the value of APACHEWS_BACKEND for a proxy."""
    prefix, bar, url = target.rpartition("|")
    parts = urlsplit(url)
    base = f"{prefix}{bar}{parts.scheme}://{parts.netloc}"
    mapped = parts.path.rstrip("/")
    # Without a path, the backend gets the path of the request.
    return base if mapped == path.rstrip("/") else base + (mapped or "/")


def _check_order(proxy: Proxy, earlier: list[Proxy]) -> Iterator[Finding]:
    """Find a proxy for WebSockets that another one precedes: the first match wins."""
    if proxy.is_rule or proxy.in_section or not proxy.path:
        return
    for other in earlier:
        if other.is_rule or other.in_section or other.is_websocket or not other.path:
            continue
        if alias_matches(other.path, proxy.path):
            yield warning(
                "proxied-websockets",
                f"{other.directive} precedes {proxy.directive}, which has no effect",
                breaks="its WebSockets do not open: the first ProxyPass that matches gets them",
                remedy="the tunnel does not depend on the order; without a tunnel, the longer path"
                " first",
                where=other.directive.where,
            )
            return


def check_tunnels(configuration: Configuration) -> Iterator[Finding]:
    """Yield findings about the lines of tunnels."""
    found = tunnels(configuration)
    yield from _check_setters(configuration)
    for tunnel in found:
        problems = [*_check_backend_setting(tunnel), *_check_no_proxy(tunnel)]
        problems += _check_page_proxy(tunnel)
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
    target = _as_http(proxy.target)
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
            remedy=f"SetEnv APACHEWS_BACKEND {quote(_backend_of(tunnel.path, found))}",
            where=tunnel.alias.where,
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
