"""From the path of a URL to the file that httpd maps it to.

Contract: ``scope_of(configuration, host, url_path)`` returns the scope of a request;
``scope.file`` is the file.  Reads ``.htaccess`` files if the configuration allows them;
``htaccess_files(…)`` finds those of a site.

Sources: modules/mappers/mod_alias.c, mod_wsgi's ``WSGIScriptAlias``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .configuration import Configuration, Scope, VirtualHost, alias_matches
from .directives import Directive, IncludedFile, parse_files

SCRIPT: Final = "apachews_handler/wsgi.py"
TUNNEL_SCRIPT: Final = "apachews_handler/tunnel.py"
STATUS_SCRIPT: Final = "apachews_handler/status_page.py"
# An invented name, to find out which directives would apply to a socket file.
ANY_SOCKET: Final = "apachews-doctor.ws"


def scope_of(configuration: Configuration, host: VirtualHost, url_path: str) -> Scope:
    """Return the scope of the request for a path."""
    alias = script_alias(configuration, host, url_path)
    if alias is not None:
        # httpd maps the request to the script; APACHEWS_ROOT is for the handler.
        return Scope(configuration, host, url_path, alias.arguments[1])
    file = _file_of(configuration, host, url_path)
    scope = Scope(configuration, host, url_path, file)
    return Scope(configuration, host, url_path, file, _htaccess(scope))


def script_alias(
    configuration: Configuration, host: VirtualHost, url_path: str
) -> Directive | None:
    """Return the ``WSGIScriptAlias`` to the handler that applies to a path, or None."""
    for directive in [*host.directives, *configuration.server_directives]:
        if (
            directive.is_named("WSGIScriptAlias")
            and len(directive.arguments) > 1
            and directive.arguments[1].endswith(SCRIPT)
            and alias_matches(directive.arguments[0], url_path)
        ):
            return directive
    return None


def socket_of(scope: Scope) -> str | None:
    """Return the path of the socket file of a scope's request, None if it is unknown."""
    if not scope.file.endswith(SCRIPT):
        return scope.file
    alias = script_alias(scope.configuration, scope.host, scope.url_path)
    assert alias is not None
    roots = [
        directive.arguments[1]
        for directive in scope.all("SetEnv")
        if directive.arguments[:1] == ("APACHEWS_ROOT",) and len(directive.arguments) > 1
    ]
    name = scope.url_path[len(alias.arguments[0].rstrip("/")) :].strip("/")
    return f"{roots[-1].rstrip('/')}/{name}.ws" if roots and name else None


def alias_target(configuration: Configuration, host: VirtualHost, url_path: str) -> str | None:
    """Return the file to which Alias or AliasMatch maps a path, None without one.

    They have precedence over WSGIScriptAlias, in any order.
    """
    for directive in [*host.directives, *configuration.server_directives]:
        if len(directive.arguments) < 2:
            continue
        path, target = directive.arguments[:2]
        if directive.is_named("Alias") and alias_matches(path, url_path):
            return target.rstrip("/") + "/" + url_path[len(path) :].lstrip("/")
        if directive.is_named("AliasMatch"):
            try:
                match = re.search(path, url_path)
                if match:
                    return match.expand(re.sub(r"\$(\d)", r"\\\1", target))
            except (re.error, IndexError):
                continue
    return None


def htaccess_files(
    configuration: Configuration, host: VirtualHost, limit: int
) -> Iterator[tuple[str, list[Directive]]]:
    """Yield the directories of a document root whose .htaccess httpd reads, and its directives.

    Args:
        configuration: of httpd.
        host: the site.
        limit: of the files and directories that are looked at.
    """
    root = host.document_root
    looked_at = 0
    for place, directories, files in os.walk(root) if root else ():
        directories.sort()
        looked_at += len(directories) + len(files)
        if looked_at > limit:
            return
        if ".htaccess" not in files:
            continue
        url_path = f"{place[len(root.rstrip('/')) :]}/{ANY_SOCKET}"
        scope = Scope(configuration, host, url_path, f"{place}/{ANY_SOCKET}")
        if _allows_htaccess(scope) and (found := _read_htaccess(Path(place), configuration)):
            yield place, found


def _file_of(configuration: Configuration, host: VirtualHost, url_path: str) -> str:
    target = alias_target(configuration, host, url_path)
    return host.document_root.rstrip("/") + url_path if target is None else target


def _allows_htaccess(scope: Scope) -> bool:
    allowed = scope.last("AllowOverride")
    # httpd's own default since 2.3.9 is None.
    return allowed is not None and [a.lower() for a in allowed.arguments] != ["none"]


def _htaccess(scope: Scope) -> list[list[Directive]]:
    if not _allows_htaccess(scope):
        return []
    root = Path(scope.host.document_root)
    directory = Path(scope.file).parent
    places = [*reversed(directory.parents), directory]
    inside = [place for place in places if place == root or root in place.parents]
    found = [_read_htaccess(place, scope.configuration) for place in inside]
    return [directives for directives in found if directives is not None]


def _read_htaccess(place: Path, configuration: Configuration) -> list[Directive] | None:
    """Return the directives of a directory's .htaccess, None if it is not readable."""
    file = place / ".htaccess"
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return None
    return parse_files(
        IncludedFile(str(file), 0),
        lambda _: text,
        configuration.modules,
        configuration.run_config.defines,
    )
