"""Whether a rule diverts a request before the handler gets it.

Contract: ``diversion(scope)`` returns the directive that sends a WebSocket's request to a
proxy or to another file, and whether that is certain.  A rule may lead to another WebSocket on
purpose; ``Diversion.websocket`` is its path.  ``disabled_denial(scope)`` returns the rule that
would deny the request if a section for files did not switch it off.  Pure.

How this works: mod_proxy and mod_rewrite act before httpd looks for a file, and the first
matching rule wins.  Rules of directories and of ``.htaccess`` come later; those of the
deepest directory, or of a section for files in it, with any count.  A condition is evaluated
if the handshake decides it: the header Upgrade, the path, "not a file", which holds for a
socket.  Any other condition makes the rule uncertain.

Sources: modules/proxy/mod_proxy.c (``proxy_trans``), modules/mappers/mod_rewrite.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from apachews_tools.httpd.configuration import Scope, alias_matches, is_on, last
from apachews_tools.httpd.directives import Directive, section_of
from apachews_tools.httpd.proxies import sets_no_proxy

# Values of a handshake's request.
_VALUES: Final = {
    "HTTP:UPGRADE": "websocket",
    "HTTP_UPGRADE": "websocket",
    "HTTP:CONNECTION": "Upgrade",
    "HTTP_CONNECTION": "Upgrade",
    "REQUEST_METHOD": "GET",
}
# A socket is neither a file nor a directory.
_TESTS: Final = {"!-f": True, "!-d": True, "!-l": True, "-f": False, "-d": False, "-l": False}
# Expressions for the file of the request; a virtual host's rules have only the second form.
_FILE_NAME: Final = re.compile(
    r"%\{(?:REQUEST|SCRIPT)_FILENAME\}|%\{(?:CONTEXT_)?DOCUMENT_ROOT\}/?"
    r"%\{REQUEST_(?:URI|FILENAME)\}",
    re.IGNORECASE,
)
_LONG_FLAGS: Final = {
    "PROXY": "P",
    "LAST": "L",
    "NOCASE": "NC",
    "ORNEXT": "OR",
    "FORBIDDEN": "F",
    "GONE": "G",
    "REDIRECT": "R",
}
# A rule with one of these flags answers the request, or leaves the answer to another server.
_ANSWERS: Final = {"P", "F", "G", "R"}
_DENIES: Final = {"F", "G"}
# After a rule with one of these flags, mod_rewrite stops.
_ENDS: Final = {"P", "L", "END", "F", "G", "R"}


@dataclass(frozen=True)
class Diversion:
    """A rule that diverts requests.

    Attributes:
        directive: the rule.
        is_proxy: whether it sends them to another server.
        is_certain: whether it matches regardless of unknown conditions.
        websocket: the path of the WebSocket of the same site that a rule leads to; "" if it
            leads elsewhere.
    """

    directive: Directive
    is_proxy: bool
    is_certain: bool
    websocket: str = ""


def diversion(scope: Scope, *, heeds_no_proxy: bool = True) -> Diversion | None:
    """Return the rule that diverts a scope's request, or None.

    Args:
        scope: of the request.
        heeds_no_proxy: whether ``no-proxy`` of the site keeps a WebSocket from ProxyPass.
    """
    has_proxy = "proxy_module" in scope.configuration.modules
    if "rewrite_module" in scope.configuration.modules and (rule := _of_server(scope)):
        return rule
    if has_proxy and (rule := _passed(scope, heeds_no_proxy)):
        return rule
    if "rewrite_module" in scope.configuration.modules:
        return _of_directory(scope)
    return None


def _passed(scope: Scope, heeds_no_proxy: bool) -> Diversion | None:
    """Return the ProxyPass or the SetHandler proxy:… that applies, or None."""
    level = [*scope.host.directives, *scope.configuration.server_directives]
    is_kept = heeds_no_proxy and any(map(sets_no_proxy, level))
    if not is_kept and (directive := _proxy_pass(scope)):
        is_exclusion = "!" in directive.arguments[:2]
        return None if is_exclusion else Diversion(directive, True, True)
    handler = scope.handler()
    if handler and handler.is_named("SetHandler"):
        name = handler.arguments[0].lower()
        if name == "proxy-server" or name.startswith("proxy:"):
            return Diversion(handler, True, True)
    return None


def _proxy_pass(scope: Scope) -> Directive | None:
    """Return the ProxyPass that applies, also one with ``!``, or None."""
    # Those of the host come before those of the server; those in <Location> use its path.
    for directive in [*scope.host.directives, *scope.configuration.server_directives]:
        if directive.is_named("ProxyPass", "ProxyPassMatch") and len(directive.arguments) > 1:
            path = directive.arguments[0]
            matches = (
                alias_matches(path, scope.url_path)
                if directive.is_named("ProxyPass")
                else _search(path, scope.url_path)
            )
            if matches:
                return directive
    for level in scope.section_levels:
        for directive in level:
            if directive.is_named("ProxyPass", "ProxyPassMatch") and directive.arguments:
                return directive
    return None


def _of_server(scope: Scope) -> Diversion | None:
    level: Iterable[Directive] = scope.host.directives
    if scope.host.section is None:
        level = scope.configuration.server_directives
    return _rewritten(list(level), [scope.url_path], scope.url_path)


def _of_directory(scope: Scope) -> Diversion | None:
    for level in reversed(scope.section_levels):
        if last(level, "RewriteEngine"):
            # The path relative to the directory: to the document root, or to that of the file.
            # A rule in a section for files gets the whole path of the file.
            relative = scope.url_path.lstrip("/")
            paths = [relative, relative.rpartition("/")[2], scope.file]
            return _rewritten(level, paths, scope.url_path)
    return None


def disabled_denial(scope: Scope) -> tuple[Directive, Directive] | None:
    """Return a ``[F]`` or ``[G]`` rule, and the ``RewriteEngine`` of a section that disables it.

    It is the rule of a directory that matches the request, whose conditions hold or are unknown.
    None if no rule denies, or if the engine is on.
    """
    if "rewrite_module" not in scope.configuration.modules:
        return None
    levels = [level for level in scope.section_levels if last(level, "RewriteEngine")]
    switches = [last(level, "RewriteEngine") for level in levels]
    off = switches.pop() if switches else None
    if off is None or is_on(off) or not _is_for_files(scope, off):
        return None
    # Of the other levels, the rules of the deepest directory would apply.
    while switches and (switch := switches.pop()):
        if not _is_for_files(scope, switch):
            denial = _denial(levels[len(switches)], scope.url_path) if is_on(switch) else None
            return (denial, off) if denial else None
    return None


def _is_for_files(scope: Scope, directive: Directive) -> bool:
    # An .htaccess is not in the tree of the configuration.
    section = section_of(scope.configuration.directives, directive)
    return section is not None and section.is_named("Files", "FilesMatch")


def _denial(level: list[Directive], url_path: str) -> Directive | None:
    """Return the first rule of a directory that denies a request."""
    paths = [url_path.lstrip("/"), url_path.rpartition("/")[2]]
    for rule, flags, holds in _last_rules(level, paths, url_path):
        if flags & _DENIES:
            return rule
        if holds:
            return None  # mod_rewrite stops before the other rules
    return None


def _rewritten(level: list[Directive], paths: list[str], url_path: str) -> Diversion | None:
    if not is_on(last(level, "RewriteEngine")):
        return None
    for rule, flags, holds in _last_rules(level, paths, url_path):
        if rule.arguments[1] != "-" or "P" in flags:
            websocket = "" if flags & _ANSWERS else _websocket(rule, paths, flags)
            return Diversion(rule, "P" in flags, holds is True, websocket)
        if holds:
            return None  # the rule keeps the request, and mod_rewrite stops
    return None


def _last_rules(
    level: list[Directive], paths: list[str], url_path: str
) -> Iterator[tuple[Directive, set[str], bool | None]]:
    """Yield the rules after which mod_rewrite may stop: each with its flags.

    The third item says whether its conditions hold; None if that is not known.
    """
    conditions: list[Directive] = []
    for directive in level:
        if directive.is_named("RewriteCond"):
            conditions.append(directive)
        elif directive.is_named("RewriteRule") and len(directive.arguments) > 1:
            holds = _all_hold(conditions, url_path)
            conditions = []
            flags = _flags(directive)
            if holds is not False and flags & _ENDS and _matches(directive, paths, flags):
                yield directive, flags, holds


def leaves_site(rule: Directive) -> bool:
    """Tell whether a RewriteRule answers, or leaves the answer to another server."""
    return bool(_flags(rule) & _ANSWERS)


def _matches(rule: Directive, paths: list[str], flags: set[str]) -> bool:
    pattern = rule.arguments[0]
    is_negated = pattern.startswith("!")
    return any(
        _search(pattern.removeprefix("!"), path, "NC" in flags) != is_negated for path in paths
    )


def _websocket(rule: Directive, paths: list[str], flags: set[str]) -> str:
    """Return the path of the WebSocket that a rule leads to; "" if it leads elsewhere."""
    pattern, target = rule.arguments[:2]
    options = re.IGNORECASE if "NC" in flags else 0
    try:
        match = next(filter(None, (re.search(pattern, path, options) for path in paths)), None)
        if match is None:
            return ""  # the pattern is negated
        path = match.expand(re.sub(r"\$(\d)", r"\\g<\1>", target.replace("\\", r"\\")))
    except (re.error, IndexError):
        return ""
    is_of_site = not path.startswith("//") and "://" not in path and "%" not in path
    return "/" + path.lstrip("/") if is_of_site and path.endswith(".ws") else ""


def _all_hold(conditions: list[Directive], url_path: str) -> bool | None:
    """Tell whether all conditions hold; None if the handshake does not decide it."""
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
    if _FILE_NAME.fullmatch(text):
        return _TESTS.get(pattern)
    match = re.fullmatch(r"%\{([^}]+)\}", text)
    name = match[1].upper() if match else ""
    value = url_path if name == "REQUEST_URI" else _VALUES.get(name)
    if value is None or re.match(r"!?[-<>]", pattern):
        return None
    is_negated, wanted = pattern.startswith("!"), pattern.removeprefix("!")
    ignores_case = "NC" in _flags(condition)
    if wanted.startswith("="):  # a text, not a pattern
        text = wanted[1:]
        is_equal = text.lower() == value.lower() if ignores_case else text == value
        return is_equal != is_negated
    return _search(wanted, value, ignores_case) != is_negated


def _flags(directive: Directive) -> set[str]:
    written = directive.arguments[2] if len(directive.arguments) > 2 else ""
    names = written.strip("[]").split(",")
    short = {name.strip().partition("=")[0].upper() for name in names}
    return {_LONG_FLAGS.get(name, name) for name in short}


def _search(pattern: str, text: str, ignores_case: bool = False) -> bool:
    """Tell whether a PCRE matches, according to Python's similar regular expressions."""
    try:
        return re.search(pattern, text, re.IGNORECASE if ignores_case else 0) is not None
    except re.error:
        return False
