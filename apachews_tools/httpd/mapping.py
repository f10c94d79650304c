"""From the path of a URL to the file that httpd maps it to.

Contract: ``scope_of(configuration, host, url_path)`` returns the scope of a request;
``scope.file`` is the file.  Reads ``.htaccess`` files if the configuration allows them.

Sources: modules/mappers/mod_alias.c, mod_wsgi's ``WSGIScriptAlias``.
"""

from __future__ import annotations

import re
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


def _file_of(configuration: Configuration, host: VirtualHost, url_path: str) -> str:
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
    return host.document_root.rstrip("/") + url_path


def _htaccess(scope: Scope) -> list[list[Directive]]:
    allowed = scope.last("AllowOverride")
    # httpd's own default since 2.3.9 is None.
    if allowed is None or [a.lower() for a in allowed.arguments] == ["none"]:
        return []
    root = Path(scope.host.document_root)
    directory = Path(scope.file).parent
    found = []
    for place in [*reversed(directory.parents), directory]:
        if place != root and root not in place.parents:
            continue
        file = place / ".htaccess"
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue  # it does not exist, or is not readable
        found.append(
            parse_files(
                IncludedFile(str(file), 0),
                lambda _, text=text: text,  # type: ignore[misc]
                scope.configuration.modules,
                scope.configuration.run_config.defines,
            )
        )
    return found
