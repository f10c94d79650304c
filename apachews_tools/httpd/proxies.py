"""The proxies and the tunnels of httpd's configuration.

Contract: ``levels(configuration)`` yields the directives of the server and of each virtual
host, ``proxies_of(level, balancers)`` returns the proxies among them, ``balancers_of`` the
members of each balancer, ``tunnels(configuration)`` the tunnels of all sites.  Pure.

How this works: the first ProxyPass that matches wins, and those in ``<Location>`` come before
all others.  mod_rewrite comes before mod_proxy and does not heed ``no-proxy``.  A balancer leads
WebSockets if its members do.

Sources: modules/proxy/mod_proxy.c (``proxy_trans``, ``ap_proxy_trans_match``, the option
``upgrade``, ``add_member``), modules/mappers/mod_rewrite.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from .configuration import Configuration, Scope, VirtualHost, alias_matches
from .directives import Directive
from .mapping import TUNNEL_SCRIPT, alias_target

_UPGRADE: Final = re.compile(r"%\{(?:HTTP:|HTTP_)UPGRADE\}", re.IGNORECASE)
SETTERS: Final = ("SetEnvIf", "SetEnvIfNoCase", "SetEnvIfExpr")
# The path of a rule with a pattern is not known, if it is not as plain as this.
_PLAIN_PATTERN: Final = re.compile(
    r"\^?(/[A-Za-z0-9._~/-]*?)/?\??(?:\(?\.[*+]\)?)?\$?|\^?\(?\.[*+]\)?\$?"
)
_VARIABLE: Final = re.compile(r"\$\d|%\d|%\{")
# The value of a condition on Upgrade that excludes WebSockets: not equal, or not matching.
_NO_WEBSOCKET: Final = re.compile(r"!(?:=|\^)?websocket\$?", re.IGNORECASE)
BALANCER: Final = "balancer://"


@dataclass(frozen=True)
class Member:
    """A member of a balancer.

    Attributes:
        url: as written.
        options: its further arguments, for example ``route=1``.
    """

    url: str
    options: tuple[str, ...] = ()

    @property
    def route(self) -> str:
        """The route, "" without one."""
        return option(self.options, "route")


@dataclass
class Balancer:
    """A balancer of mod_proxy_balancer.

    Attributes:
        members: in their order.
        directives: its <Proxy> sections, and the BalancerMembers outside of them.
        sticky: the cookie with the route, "" without one.
    """

    members: list[Member] = field(default_factory=list)
    directives: list[Directive] = field(default_factory=list)
    sticky: str = ""


@dataclass(frozen=True)
class Proxy:
    """A directive that leads requests to another server.

    Attributes:
        directive: ProxyPass, ProxyPassMatch, RewriteRule or SetHandler.
        path: of the URLs; "" if a pattern hides it.
        target: the address as written, without what a pattern fills in.
        is_websocket: whether it leads WebSockets.
        has_upgrade: whether an option makes it lead them.
        in_section: whether it is in a section, as a <Location>, of its site.
        is_rule: whether it is mod_rewrite's, which does not heed ``no-proxy``.
        conditions: the RewriteConds of a rule.
        balancer: the balancer that the target names, or None.
    """

    directive: Directive
    path: str
    target: str
    is_websocket: bool
    has_upgrade: bool = False
    in_section: bool = False
    is_rule: bool = False
    conditions: tuple[Directive, ...] = ()
    balancer: Balancer | None = None

    @property
    def excludes_websockets(self) -> bool:
        """Whether a condition of a rule keeps it from requests with an Upgrade."""
        return any(
            _UPGRADE.fullmatch(one.arguments[0]) and _NO_WEBSOCKET.fullmatch(one.arguments[1])
            for one in _required(self.conditions)
        )


@dataclass(frozen=True)
class Tunnel:
    """A tunnel of a site.

    Attributes:
        alias: its WSGIScriptAlias.
        path: of the URLs, without a slash at its end; "/" for the whole site.
        scope: of a request for the path.
        backends: the addresses in APACHEWS_BACKEND; empty without it.
        level: the directives at the level of the site.
        proxies: those of the site, in httpd's order.
    """

    alias: Directive
    path: str
    scope: Scope
    backends: tuple[str, ...]
    level: list[Directive]
    proxies: list[Proxy]

    @property
    def page_proxy(self) -> Proxy | None:
        """The ProxyPass that has the pages of its URLs, or None."""
        for proxy in self.proxies:
            if not proxy.is_rule and proxy.path and alias_matches(proxy.path, self.path):
                return None if proxy.target == "!" else proxy
        return None

    @property
    def no_proxy(self) -> Directive | None:
        """The directive that keeps mod_proxy from its WebSockets, or None."""
        server = self.scope.configuration.server_directives
        found = [one for one in [*self.level, *server] if sets_no_proxy(one)]
        return found[0] if found else None


def levels(configuration: Configuration) -> Iterator[list[Directive]]:
    """Yield the directives of the server without its virtual hosts, and those of each host."""
    yield [one for one in configuration.directives if not one.is_named("VirtualHost")]
    for section in configuration.directives:
        if section.is_named("VirtualHost"):
            yield section.children


def balancers_of(configuration: Configuration) -> dict[str, Balancer]:
    """Return the balancers of all levels by their names, in lower case."""
    found: dict[str, Balancer] = {}
    for level in levels(configuration):
        for one in level:
            words = list(one.arguments)
            if one.is_named("Proxy") and words and _is_balancer(words[0]):
                balancer = found.setdefault(_balancer_name(words[0]), Balancer())
                balancer.directives.append(one)
                for child in one.children:
                    if child.is_named("BalancerMember") and child.arguments:
                        url, *options = child.arguments
                        balancer.members.append(Member(url, tuple(options)))
                    elif child.is_named("ProxySet"):
                        balancer.sticky = sticky_cookie(child.arguments) or balancer.sticky
            elif one.is_named("BalancerMember") and len(words) > 1 and _is_balancer(words[0]):
                balancer = found.setdefault(_balancer_name(words[0]), Balancer())
                balancer.directives.append(one)
                balancer.members.append(Member(words[1], tuple(words[2:])))
    return found


def sticky_cookie(options: Iterable[str]) -> str:
    """Return the cookie of the option stickysession, "" without it.

    ``stickysession=COOKIE|PARAMETER`` names a parameter of the URL too.
    """
    return option(options, "stickysession").partition("|")[0]


def _is_balancer(target: str) -> bool:
    return target.lower().startswith(BALANCER)


def _balancer_name(target: str) -> str:
    return target[len(BALANCER) :].partition("/")[0].lower()


def proxies_of(
    level: list[Directive], balancers: Mapping[str, Balancer] | None = None
) -> list[Proxy]:
    """Return the proxies of a level, in httpd's order of precedence.

    Args:
        level: its directives.
        balancers: those of the configuration, see ``balancers_of``.
    """
    found: list[Proxy] = []
    balancers = balancers or {}
    # The last of several sections wins.
    for section in reversed([one for one in level if one.is_section and one.arguments]):
        is_plain = section.is_named("Location") and section.arguments[0].startswith("/")
        place = section.arguments[0] if is_plain else ""
        found += _read(section.children, place, True, balancers)
    outside = [one for one in level if not one.is_section]
    return [*found, *_read(outside, "", False, balancers)]


def _read(
    directives: list[Directive],
    place: str,
    in_section: bool,
    balancers: Mapping[str, Balancer],
) -> Iterator[Proxy]:
    """Yield the proxies of one section.

    Args:
        directives: of the section.
        place: path of its <Location>; "" for any other.
        in_section: whether it is a section of a site, and not the site itself.
        balancers: those of the configuration.
    """
    conditions: list[Directive] = []
    for one in directives:
        if one.is_named("RewriteCond"):
            conditions.append(one)
        elif one.is_named("RewriteRule"):
            if rule := _rewrite_proxy(one, conditions):
                yield rule
            conditions = []
        elif one.is_named("ProxyPass", "ProxyPassMatch") and one.arguments:
            words = list(one.arguments)
            first = words.pop(0) if len(words) > 1 and not _is_target(words[0]) else place
            if not words:
                continue
            path = first if one.is_named("ProxyPass") else _plain_path(first)
            upgrade = _upgrades(words[1:])
            is_websocket = upgrade or is_ws(words[0])
            balancer = None
            if _is_balancer(words[0]):
                balancer = balancers.get(_balancer_name(words[0]), Balancer())
                is_websocket = is_websocket or any(map(_leads_websockets, balancer.members))
            yield Proxy(one, path, words[0], is_websocket, upgrade, in_section, balancer=balancer)
        elif one.is_named("SetHandler") and one.arguments[:1]:
            kind, _, target = one.arguments[0].partition(":")
            if kind.lower() == "proxy" and target:
                yield Proxy(one, place, target, is_ws(target), in_section=in_section)


def _rewrite_proxy(rule: Directive, conditions: list[Directive]) -> Proxy | None:
    """Return the proxy for WebSockets that a RewriteRule is, or None."""
    if len(rule.arguments) < 2:
        return None
    if "P" not in _flags(rule):
        return None
    asks_upgrade = any(
        len(one.arguments) > 1
        and _UPGRADE.fullmatch(one.arguments[0])
        and not one.arguments[1].startswith("!")
        for one in conditions
    )
    path, written = _plain_path(rule.arguments[0]), rule.arguments[1]
    target = _VARIABLE.split(written)[0]
    is_open = path == "/" and target != written
    if is_open and (narrower := _condition_path(conditions)):
        # The rule copies the whole path of the URL, which a condition restricts.
        path, target = narrower, target.rstrip("/") + narrower
    elif written.startswith(target + "%{REQUEST_URI}"):
        target += path
    is_websocket = asks_upgrade or is_ws(target)
    return Proxy(rule, path, target, is_websocket, is_rule=True, conditions=tuple(conditions))


def _condition_path(conditions: list[Directive]) -> str:
    """Return the path that a condition on REQUEST_URI requires, "" without one."""
    for one in _required(conditions):
        variable, pattern = one.arguments[:2]
        # A pattern without an anchor matches other paths too.
        if variable.upper() == "%{REQUEST_URI}" and pattern.startswith("^"):
            path = _plain_path(pattern)
            if path not in ("", "/"):
                return path
    return ""


def _required(conditions: Iterable[Directive]) -> Iterator[Directive]:
    """Yield the conditions that are not one of several alternatives."""
    is_alternative = False
    for one in conditions:
        has_next = "OR" in _flags(one)
        if not is_alternative and not has_next and len(one.arguments) > 1:
            yield one
        is_alternative = has_next


def _flags(directive: Directive) -> set[str]:
    written = directive.arguments[2] if len(directive.arguments) > 2 else ""
    names = {name.strip().upper() for name in written.strip("[]").split(",")}
    return {{"ORNEXT": "OR", "PROXY": "P"}.get(name, name) for name in names}


def _leads_websockets(member: Member) -> bool:
    return is_ws(member.url) or _upgrades(member.options)


def _upgrades(options: Iterable[str]) -> bool:
    return option(options, "upgrade").lower() not in ("", "none")


def _is_target(word: str) -> bool:
    return word == "!" or "://" in word


def is_ws(target: str) -> bool:
    """Tell whether a target is mod_proxy_wstunnel's."""
    return re.match(r"(?:unix:[^|]*\|)?wss?://", target, re.IGNORECASE) is not None


def option(words: Iterable[str], name: str) -> str:
    """Return the value of an argument ``name=value``, "" without it."""
    for word in words:
        key, _, value = word.partition("=")
        if key.lower() == name:
            return value
    return ""


def _plain_path(pattern: str) -> str:
    """Return the path of a plain pattern, "" if it is another one."""
    match = _PLAIN_PATTERN.fullmatch(pattern)
    return (match[1] or "/") if match else ""


def sets_no_proxy(directive: Directive) -> bool:
    """Tell whether a directive keeps mod_proxy from requests with an Upgrade."""
    return (
        directive.is_named(*SETTERS)
        and "upgrade" in directive.arguments[0].lower()
        and any(word.partition("=")[0] == "no-proxy" for word in directive.arguments[1:])
    )


def tunnels(configuration: Configuration) -> list[Tunnel]:
    """Return the tunnels of all sites."""
    server, *_ = levels(configuration)
    balancers = balancers_of(configuration)
    sites = configuration.virtual_hosts()
    of_server = proxies_of(server, balancers)
    found = list(_tunnels_of(configuration, sites[0], server, of_server))
    for site in sites:
        if site.section:
            proxies = [*proxies_of(site.directives, balancers), *of_server]
            found += _tunnels_of(configuration, site, site.directives, proxies)
    return found


def tunnel_of(scope: Scope) -> Tunnel | None:
    """Return the tunnel that a request leads to, or None."""
    if alias_target(scope.configuration, scope.host, scope.url_path) is not None:
        return None
    matching = [
        tunnel
        for tunnel in tunnels(scope.configuration)
        if alias_matches(tunnel.path, scope.url_path)
        # Each virtual host inherits those of the server.
        and tunnel.scope.host.section in (None, scope.host.section)
    ]
    return max(matching, key=lambda tunnel: len(tunnel.path), default=None)


def _tunnels_of(
    configuration: Configuration, site: VirtualHost, level: list[Directive], proxies: list[Proxy]
) -> Iterator[Tunnel]:
    for alias in level:
        if not alias.is_named("WSGIScriptAlias") or len(alias.arguments) < 2:
            continue
        if not alias.arguments[1].endswith(TUNNEL_SCRIPT):
            continue
        path = alias.arguments[0].rstrip("/") or "/"
        scope = Scope(configuration, site, path, alias.arguments[1])
        backends = [
            one.arguments[1]
            for one in scope.all("SetEnv")
            if one.arguments[:1] == ("APACHEWS_BACKEND",) and len(one.arguments) > 1
        ]
        addresses = tuple(backends[-1].split()) if backends else ()
        yield Tunnel(alias, path, scope, addresses, level, proxies)
