"""Whether a rule takes a request elsewhere before the handler can see it.

Contract: ``diversion(scope)`` returns the directive that takes a WebSocket's request to
a proxy, or to another file, and whether that is certain.  Pure.

How this works: mod_proxy and mod_rewrite look at a request before httpd has looked for
a file, and the first rule that matches wins.  Rules of a directory, or of ``.htaccess``,
come after that; what counts of them are those of the deepest directory that has any.
Conditions are tried as far as a handshake decides them (the header Upgrade, the path,
"is no file", which is true of a socket); any other one may hold or not, and makes the
rule an uncertain one.

Sources: modules/proxy/mod_proxy.c (``proxy_trans``), modules/mappers/mod_rewrite.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from apachews_tools.httpd.configuration import Scope, alias_matches, is_on, last
from apachews_tools.httpd.directives import Directive

# What a handshake's request has.
_VALUES: Final = {
    "HTTP:UPGRADE": "websocket",
    "HTTP_UPGRADE": "websocket",
    "HTTP:CONNECTION": "Upgrade",
    "HTTP_CONNECTION": "Upgrade",
    "REQUEST_METHOD": "GET",
}
# A socket is neither a file nor a directory.
_TESTS: Final = {"!-f": True, "!-d": True, "!-l": True, "-f": False, "-d": False, "-l": False}
_LONG_FLAGS: Final = {
    "PROXY": "P",
    "LAST": "L",
    "NOCASE": "NC",
    "ORNEXT": "OR",
    "FORBIDDEN": "F",
    "GONE": "G",
    "REDIRECT": "R",
}
# Those after which no further rule is looked at.
_ENDS: Final = {"P", "L", "END", "F", "G", "R"}


@dataclass(frozen=True)
class Diversion:
    """A rule that takes requests elsewhere.

    Attributes:
        directive: the rule.
        is_proxy: it takes them to another server.
        is_certain: it matches whatever else is true.
    """

    directive: Directive
    is_proxy: bool
    is_certain: bool


def diversion(scope: Scope) -> Diversion | None:
    """Return the rule that diverts a scope's request, or None."""
    has_proxy = "proxy_module" in scope.configuration.modules
    if "rewrite_module" in scope.configuration.modules and (rule := _of_server(scope)):
        return rule
    if has_proxy and (rule := _passed(scope)):
        return rule
    if "rewrite_module" in scope.configuration.modules:
        return _of_directory(scope)
    return None


def _passed(scope: Scope) -> Diversion | None:
    """ProxyPass, and SetHandler proxy:…"""
    # A host's own come before the server's; those of <Location> have its path.
    for directive in [*scope.host.directives, *scope.configuration.server_directives]:
        if directive.is_named("ProxyPass", "ProxyPassMatch") and len(directive.arguments) > 1:
            path, target = directive.arguments[:2]
            matches = (
                alias_matches(path, scope.url_path)
                if directive.is_named("ProxyPass")
                else _search(path, scope.url_path)
            )
            if matches:
                return None if target == "!" else Diversion(directive, True, True)
    for level in scope.section_levels:
        for directive in level:
            if directive.is_named("ProxyPass", "ProxyPassMatch") and directive.arguments:
                return None if directive.arguments[0] == "!" else Diversion(directive, True, True)
    handler = scope.handler()
    if handler and handler.is_named("SetHandler"):
        name = handler.arguments[0].lower()
        if name == "proxy-server" or name.startswith("proxy:"):
            return Diversion(handler, True, True)
    return None


def _of_server(scope: Scope) -> Diversion | None:
    level: Iterable[Directive] = scope.host.directives
    if scope.host.section is None:
        level = scope.configuration.server_directives
    return _rewritten(list(level), [scope.url_path], scope.url_path)


def _of_directory(scope: Scope) -> Diversion | None:
    for level in reversed(scope.section_levels):
        if last(level, "RewriteEngine"):
            # The path from the directory on: from the document root, or the file's own.
            relative = scope.url_path.lstrip("/")
            return _rewritten(level, [relative, relative.rpartition("/")[2]], scope.url_path)
    return None


def _rewritten(level: list[Directive], paths: list[str], url_path: str) -> Diversion | None:
    if not is_on(last(level, "RewriteEngine")):
        return None
    conditions: list[Directive] = []
    for directive in level:
        if directive.is_named("RewriteCond"):
            conditions.append(directive)
        elif directive.is_named("RewriteRule") and len(directive.arguments) > 1:
            holds = _all_hold(conditions, url_path)
            conditions = []
            flags = _flags(directive)
            if holds is False or not flags & _ENDS or not _matches(directive, paths, flags):
                continue
            if directive.arguments[1] != "-" or "P" in flags:
                return Diversion(directive, "P" in flags, holds is True)
            if holds:
                return None  # it is left alone, and no other rule comes to it
    return None


def _matches(rule: Directive, paths: list[str], flags: set[str]) -> bool:
    pattern = rule.arguments[0]
    is_negated = pattern.startswith("!")
    return any(
        _search(pattern.removeprefix("!"), path, "NC" in flags) != is_negated for path in paths
    )


def _all_hold(conditions: list[Directive], url_path: str) -> bool | None:
    """Tell whether conditions hold together; None where a handshake does not decide it."""
    groups: list[list[bool | None]] = [[]]
    for condition in conditions:
        groups[-1].append(_holds(condition, url_path))
        if "OR" not in _flags(condition):
            groups.append([])
    together: bool | None = True
    for group in filter(None, groups):
        if True in group:
            continue
        if None not in group:
            return False
        together = None
    return together


def _holds(condition: Directive, url_path: str) -> bool | None:
    if len(condition.arguments) < 2:
        return None
    text, pattern = condition.arguments[:2]
    match = re.fullmatch(r"%\{([^}]+)\}", text)
    name = match[1].upper() if match else ""
    if name in ("REQUEST_FILENAME", "SCRIPT_FILENAME"):
        return _TESTS.get(pattern)
    value = url_path if name == "REQUEST_URI" else _VALUES.get(name)
    if value is None or re.match(r"!?[-<>=]", pattern):
        return None
    found = _search(pattern.removeprefix("!"), value, "NC" in _flags(condition))
    return found != pattern.startswith("!")


def _flags(directive: Directive) -> set[str]:
    written = directive.arguments[2] if len(directive.arguments) > 2 else ""
    names = written.strip("[]").split(",")
    short = {name.strip().partition("=")[0].upper() for name in names}
    return {_LONG_FLAGS.get(name, name) for name in short}


def _search(pattern: str, text: str, ignores_case: bool = False) -> bool:
    """Tell whether a regular expression of PCRE's matches, as far as Python's can tell."""
    try:
        return re.search(pattern, text, re.IGNORECASE if ignores_case else 0) is not None
    except re.error:
        return False
