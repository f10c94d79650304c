"""The check of a page's origin (RFC 6455 10.2).

Contract: ``require_origin(environ, settings)`` raises ``Refusal`` with 403, or
returns.  Pure; called once per handshake.

How this works: an origin is scheme, host and port.  The site's own origin is the scheme of the
connection and the Host header.  Behind a proxy these are the proxy's, so the header that
``APACHEWS_FORWARDED`` names replaces them.  (A browser does not let a page set these headers on a
WebSocket, and a program that is not a browser can send any Origin.)

Sources: RFC 6454 4. (origins); RFC 7239 (Forwarded); the X-Forwarded-Proto,
-Host and -Port headers, as mod_proxy and most others write them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from apachews.monitoring import refusals
from apachews_handler.exceptions import Refusal
from apachews_handler.origins import normalise_origin
from apachews_handler.settings import Settings

# RFC 7239 4.: token=value or token="value", separated by semicolons.
_PAIR: Final = re.compile(r'\s*([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^";,\s]*))\s*(?:;|$)')


def own_origin(environ: Mapping[str, Any], forwarded: str) -> str:
    """Return the site's origin as the client sees it.

    Args:
        environ: WSGI environment.
        forwarded: ``off``, ``forwarded`` or ``x-forwarded``: the header that is trusted.

    Raises:
        ValueError: the headers do not make an origin.
    """
    scheme, host = environ["wsgi.url_scheme"], environ.get("HTTP_HOST", "")
    if forwarded == "forwarded":
        # Each proxy appends an element: the first is of the proxy nearest to the client.
        element = environ.get("HTTP_FORWARDED", "").partition(",")[0]
        pairs, at = {}, 0
        # match() pair by pair: search() would start again at every character of a long header.
        while match := _PAIR.match(element, at):
            name, quoted, token = match.groups(default="")
            pairs[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) or token
            at = match.end()
        scheme, host = pairs.get("proto", scheme), pairs.get("host", host)
    elif forwarded == "x-forwarded":
        scheme = _first(environ, "HTTP_X_FORWARDED_PROTO") or scheme
        host = _first(environ, "HTTP_X_FORWARDED_HOST") or host
        port = _first(environ, "HTTP_X_FORWARDED_PORT")
        if port and urlsplit(f"//{host}").port is None:
            host = f"{host}:{port}"
    # Some proxies send the scheme of the WebSocket.
    scheme = {"ws": "http", "wss": "https"}.get(scheme.lower(), scheme)
    return normalise_origin(f"{scheme}://{host}")


def _first(environ: Mapping[str, Any], name: str) -> str:
    """Return the first value of a header: that of the proxy nearest to the client."""
    return str(environ.get(name, "")).partition(",")[0].strip()


def require_origin(environ: Mapping[str, Any], settings: Settings) -> None:
    """Check a request's Origin.

    Raises:
        Refusal: 403.
    """
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:
        # RFC 6455 4.1, 8.: only browsers must send it.
        if settings.require_origin:
            raise Refusal(refusals.NO_ORIGIN)
        return
    if settings.origins == ("*",):
        return
    try:
        normalised = normalise_origin(origin)
    except ValueError:
        normalised = ""
    if normalised and normalised in settings.origins:
        return
    try:
        own = own_origin(environ, settings.forwarded)
    except ValueError:
        own = ""
    if not normalised or normalised != own:
        fact = f"Origin {origin!r:.100} is not the site's own, {own or 'unknown'!r:.100}"
        raise Refusal(refusals.ORIGIN, fact)
