"""Checks of proxies for WebSockets: what they cost, and the lines of a tunnel in their place.

Contract: ``check_proxies(configuration)`` yields findings about mod_proxy, with the lines of a
tunnel; ``proxy_of(scope)`` returns the proxy that such a finding is about, for one URL.  Pure.

How this works: a proxied WebSocket occupies a worker.  A reload keeps each old child until its
WebSockets close.  Prefork and worker count the old workers as before.  Event keeps a whole place
of ServerLimit for each old child, and starts no new child if all places are taken.

Sources: modules/proxy/mod_proxy.c (``ap_proxy_trans_match``; the option ``upgrade``),
modules/proxy/mod_proxy_wstunnel.c (requests without Upgrade are left to mod_proxy_http),
server/mpm/event/event.c, worker/worker.c, prefork/prefork.c (``check_config``,
``perform_idle_server_maintenance``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import urlsplit

from apachews_tools.httpd.configuration import Configuration, Scope, alias_matches
from apachews_tools.httpd.directives import Directive
from apachews_tools.httpd.proxies import (
    Balancer,
    Member,
    Proxy,
    balancers_of,
    is_ws,
    levels,
    proxies_of,
    sets_no_proxy,
    sticky_cookie,
    tunnel_of,
    tunnels,
)
from apachews_tools.httpd.shell import this_program
from apachews_tools.install.diversion import diversion
from apachews_tools.install.installation import SetUpError
from apachews_tools.install.tunnels import tunnel_lines

from .finding import Finding, error, note, warning

# httpd's defaults: places for children, and threads of a child.
DEFAULT_SERVERS: Final = 16
DEFAULT_PREFORK_SERVERS: Final = 256
DEFAULT_THREADS: Final = 25
# Of a balancer without a cookie for the route.
COOKIE: Final = "ROUTE"
KEEP_UPGRADES: Final = "RewriteCond %{HTTP:Upgrade} !=websocket [NC]"
# Beginning of a printed line -> module that it needs.
_MODULES: Final = {
    "SetEnvIf": "setenvif",
    "SetEnv ": "env",
    "ProxyPass": "proxy_http",
    "RequestHeader": "headers",
    "Header": "headers",
    "<Proxy": "proxy_balancer",
}


def max_request_workers(configuration: Configuration) -> int:
    """Return the number of requests, or of proxied WebSockets, that fit into httpd."""
    is_prefork = configuration.mpm() == "prefork"
    threads = 1 if is_prefork else _number(configuration, DEFAULT_THREADS, "ThreadsPerChild")
    servers = _servers(configuration)
    default = DEFAULT_PREFORK_SERVERS if is_prefork else DEFAULT_SERVERS * DEFAULT_THREADS
    workers = _number(configuration, default, "MaxRequestWorkers", "MaxClients")
    # httpd lowers a value to whole children, and to ServerLimit of them.
    return min(max(workers // threads, 1), servers) * threads


def _servers(configuration: Configuration) -> int:
    is_prefork = configuration.mpm() == "prefork"
    default = DEFAULT_PREFORK_SERVERS if is_prefork else DEFAULT_SERVERS
    return _number(configuration, default, "ServerLimit")


def _number(configuration: Configuration, default: int, *names: str) -> int:
    """Return the value of the first directive of these names that exists, or the default."""
    for name in names:
        directive = configuration.last(name)
        if directive and directive.arguments and directive.arguments[0].isdigit():
            return max(int(directive.arguments[0]), 1)
    return default


def when_full(configuration: Configuration) -> str:
    """Return at how many proxied WebSockets, and after how many reloads, httpd stops."""
    workers = max_request_workers(configuration)
    text = f"{workers} open WebSockets (MaxRequestWorkers)"
    if configuration.mpm() in ("worker", "prefork"):
        return f"{text}, with or without reloads of Apache"
    servers = _servers(configuration)
    most = max(workers // _number(configuration, DEFAULT_THREADS, "ThreadsPerChild"), 1)
    fewest_reloads = -(-servers // most)
    reloads = f"{fewest_reloads} to {servers} reloads" if most > 1 else f"{servers} reloads"
    return (
        f"{text}; or after {reloads} of Apache: every old child with an open WebSocket keeps one of"
        f" {servers} places (ServerLimit)"
    )


def proxy_of(scope: Scope) -> Proxy | None:
    """Return the proxy for the WebSockets of a request, or None.

    It is the one that leads them to another server, or that ``no-proxy`` keeps from them.  None
    for the name of a producer's socket: a proxy that gets it is a mistake.
    """
    if scope.url_path.endswith(".ws"):
        return None
    found = diversion(scope)
    if found is None and tunnel_of(scope) is None:
        found = diversion(scope, heeds_no_proxy=False)
    if found is None or not found.is_proxy:
        return None
    balancers = balancers_of(scope.configuration)
    for level in levels(scope.configuration):
        for proxy in proxies_of(level, balancers):
            if proxy.directive is found.directive:
                return proxy if proxy.is_websocket else None
    return None


def check_proxies(configuration: Configuration) -> Iterator[Finding]:
    """Yield findings about proxies for WebSockets, with the lines of a tunnel in their place."""
    covered = {
        id(tunnel.page_proxy.directive)
        for tunnel in tunnels(configuration)
        if tunnel.page_proxy and tunnel.no_proxy
    }
    balancers = balancers_of(configuration)
    is_used = False
    for level in levels(configuration):
        proxies = proxies_of(level, balancers)
        for number, proxy in enumerate(proxies):
            if not proxy.is_websocket:
                continue
            is_used = is_used or _uses_wstunnel(proxy)
            if id(proxy.directive) in covered:
                continue  # ``check_tunnels`` reports what is left of it
            setter = next(filter(sets_no_proxy, level), None)
            lines, advice = _replacement(proxy, proxies, level, configuration)
            if setter and not proxy.is_rule:
                yield _excluded(proxy, setter, lines, advice)
            else:
                yield _proxied(proxy, when_full(configuration), lines, advice)
            yield from _check_order(proxy, proxies[:number])
    if "proxy_wstunnel_module" in configuration.modules and not is_used:
        yield note(
            "proxied-websockets", "mod_proxy_wstunnel is loaded, and no directive names ws://"
        )


def _uses_wstunnel(proxy: Proxy) -> bool:
    members = proxy.balancer.members if proxy.balancer else []
    return is_ws(proxy.target) or any(is_ws(member.url) for member in members)


def _proxied(proxy: Proxy, when: str, lines: list[str], advice: str) -> Finding:
    """Return the finding about a proxy for WebSockets."""
    by = (
        "mod_proxy_wstunnel"
        if _uses_wstunnel(proxy)
        else "mod_rewrite and mod_proxy"
        if proxy.is_rule
        else "mod_proxy_http"
    )
    return warning(
        "proxied-websockets",
        f"{proxy.directive} leads WebSockets to another server, by {by}",
        breaks="each open WebSocket occupies a worker: with all of them occupied, the whole server"
        " answers nothing",
        when=when,
        remedy=advice,
        where=proxy.directive.where,
        lines=tuple(lines),
    )


def _excluded(proxy: Proxy, setter: Directive, lines: list[str], advice: str) -> Finding:
    """Return the finding about a proxy that no-proxy keeps from its WebSockets."""
    return error(
        "no-proxy",
        f"{setter} keeps mod_proxy from the WebSockets of {proxy.directive}",
        breaks="its WebSockets do not open",
        remedy=advice,
        where=proxy.directive.where,
        lines=tuple(lines),
    )


def _replacement(
    proxy: Proxy, proxies: list[Proxy], level: list[Directive], configuration: Configuration
) -> tuple[list[str], str]:
    """Return the lines of a tunnel in the place of a proxy, and what to do with them.

    Args:
        proxy: the proxy.
        proxies: those of its level, in httpd's order.
        level: the directives of its site.
        configuration: of httpd.
    """
    old = [*proxy.conditions, proxy.directive]
    if proxy.balancer:
        # Those of other levels may have further proxies.
        old += [one for one in proxy.balancer.directives if any(one is own for own in level)]
    generic = f"a tunnel in place of {_places(old)}: {this_program()} config --tunnel NAME"
    urls = [member.url for member in proxy.balancer.members] if proxy.balancer else [proxy.target]
    if any(re.search(r"\b(?:wss|https)://", url, re.IGNORECASE) for url in urls):
        return [], f"{generic} prints its lines; it needs a port of the server without TLS"
    if not proxy.path or not proxy.directive.is_named("ProxyPass", "RewriteRule"):
        return [], f"{generic} prints its lines"
    path = proxy.path.rstrip("/") or "/"
    try:
        if proxy.balancer:
            lines = _balancer_lines(proxy, proxy.balancer, path, level)
        else:
            lines = _lines(proxy, proxies, path)
    except SetUpError:
        return [], f"{generic} prints its lines"
    place = f"in the <VirtualHost>, these lines in place of {_places(old)}"
    if proxy.in_section:
        is_kept = proxy.has_upgrade and not proxy.balancer
        gone = f"upgrade= at {proxy.directive.where}" if is_kept else _places(old)
        place = f"remove {gone}; in the <VirtualHost>, outside of sections, these lines"
    steps = [*_preparation(lines, configuration), place]
    steps += [
        f"above {other.directive.name} at {other.directive.where} add {KEEP_UPGRADES}"
        for other in proxies
        if _takes_upgrades(other, path)
    ]
    if proxy.balancer and not _has_numbers(proxy.balancer):
        steps.append("a program that writes the route into its cookie must use these numbers")
    return lines, f"{'; '.join(steps)} (docs/howto/tunnel.md):"


def _lines(proxy: Proxy, proxies: list[Proxy], path: str) -> list[str]:
    """Return the lines of a tunnel to one backend.

    Raises:
        SetUpError: the address is not one for a tunnel.
    """
    pages = next((one for one in proxies if _has_pages(one, path)), None)
    # mod_proxy_wstunnel leaves requests without Upgrade to mod_proxy_http.
    takes_pages = pages is None and proxy.directive.is_named("ProxyPass")
    has_pages = takes_pages or any(_meets(one, path) for one in proxies)
    words = [word for word in proxy.directive.arguments if not _is_upgrade(word)]
    options = words[words.index(proxy.target) + 1 :] if takes_pages else []
    lines = tunnel_lines(
        backend_of(path, as_http(proxy.target)),
        path,
        has_pages=has_pages,
        proxy_options=" ".join(options),
    )
    if takes_pages:
        return lines
    # The ProxyPass of the pages stays as it is, without its upgrade=.
    lines = [line for line in lines if not line.startswith("ProxyPass ")]
    if pages is proxy and not proxy.in_section:
        lines.insert(2, str(Directive(proxy.directive.name, tuple(words))))
    return lines


def _balancer_lines(
    proxy: Proxy, balancer: Balancer, path: str, level: list[Directive]
) -> list[str]:
    """Return the lines of a tunnel to the members of a balancer.

    Routes are the numbers of the addresses, as APACHEWS_BACKEND_COOKIE needs them.

    Raises:
        SetUpError: the address of a member is not one for a tunnel, or it has no member.
    """
    members = _numbered(balancer)
    if not members:
        raise SetUpError("the balancer has no member")
    name, slash, rest = proxy.target.partition("://")[2].partition("/")
    words = [word for word in proxy.directive.arguments if not _is_upgrade(word)]
    if words[0] != proxy.path:  # in <Location>
        words.insert(0, proxy.path)
    cookie = sticky_cookie(words) or balancer.sticky
    balanced = [f"<Proxy balancer://{name}>"]
    balanced += ["    " + " ".join(("BalancerMember", one.url, *one.options)) for one in members]
    balanced.append("</Proxy>")
    if not sticky_cookie(words):
        words.append(f"stickysession={cookie or COOKIE}")
    balanced.append(str(Directive(proxy.directive.name, tuple(words))))
    if not any(one.is_named("Header") and "BALANCER_ROUTE" in str(one) for one in level):
        balanced.append(
            f'Header add Set-Cookie "{cookie or COOKIE}=.%{{BALANCER_WORKER_ROUTE}}e; path=/;'
            ' HttpOnly" env=BALANCER_ROUTE_CHANGED'
        )
    backends = [backend_of(path, one.url.rstrip("/") + slash + rest) for one in members]
    lines = tunnel_lines(" ".join(backends), path, cookie=cookie or COOKIE)
    lines = [line for line in lines if not line.startswith("ProxyPass ")]
    return [*lines[:2], *balanced, *lines[2:]]


def _numbered(balancer: Balancer) -> list[Member]:
    """Return the members with http:// and with the numbers from 1 as their routes."""
    members = list(balancer.members)
    if _has_numbers(balancer):
        members.sort(key=lambda member: int(member.route))
    numbered = []
    for number, member in enumerate(members, 1):
        options = [one for one in member.options if not _is_upgrade(one)]
        options = [one for one in options if not one.lower().startswith("route=")]
        numbered.append(Member(as_http(member.url), (*options, f"route={number}")))
    return numbered


def _has_numbers(balancer: Balancer) -> bool:
    """Tell whether the routes are the numbers from 1 already, in any order."""
    routes = sorted(member.route for member in balancer.members)
    return routes == sorted(str(number) for number in range(1, len(routes) + 1))


def _places(directives: Iterable[Directive]) -> str:
    """Return files and lines: ``/f:3, 4, 5 (RewriteCond, RewriteRule)``."""
    lines: dict[str, list[int]] = {}
    names: dict[str, None] = {}
    for one in sorted(directives, key=lambda one: (one.file, one.line)):
        lines.setdefault(one.file, []).append(one.line)
        names[f"<{one.name}>…</{one.name}>" if one.is_section else one.name] = None
    places = [f"{file}:{', '.join(map(str, found))}" for file, found in lines.items()]
    return f"{', '.join(places)} ({', '.join(names)})"


def _preparation(lines: list[str], configuration: Configuration) -> Iterator[str]:
    """Yield the command that loads the modules that lines need and httpd lacks."""
    needed = {
        module
        for line in lines
        for start, module in _MODULES.items()
        if line.lstrip().startswith(start)
    }
    if "proxy_balancer" in needed:
        needed |= {"lbmethod_byrequests"}
    loaded = {name.removesuffix("_module") for name in configuration.modules}
    if missing := sorted(needed - loaded):
        yield f"first a2enmod {' '.join(missing)} (on other systems than Debian, LoadModule)"


def _has_pages(proxy: Proxy, path: str) -> bool:
    """Tell whether a proxy leads the pages of a path to another server."""
    if proxy.is_rule or proxy.target == "!" or is_ws(proxy.target) or not proxy.path:
        return False
    return alias_matches(proxy.path, path)


def _meets(proxy: Proxy, path: str) -> bool:
    """Tell whether a proxy leads pages of a path, or of a part of it."""
    if proxy.target == "!" or not proxy.path or (proxy.is_rule and proxy.is_websocket):
        return False
    return alias_matches(proxy.path, path) or alias_matches(path, proxy.path.rstrip("/") or "/")


def _takes_upgrades(proxy: Proxy, path: str) -> bool:
    """Tell whether a rule for pages takes the WebSockets of a path before the tunnel."""
    return (
        proxy.is_rule
        and not proxy.is_websocket
        and not proxy.excludes_websockets
        and (not proxy.path or _meets(proxy, path))
    )


def _is_upgrade(word: str) -> bool:
    return word.lower().startswith("upgrade=")


def as_http(target: str) -> str:
    """Return a target with http:// for ws://."""
    return re.sub(r"\bws://", "http://", target, count=1, flags=re.IGNORECASE)


def backend_of(path: str, target: str) -> str:
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
