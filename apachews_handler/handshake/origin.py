"""May the page that a browser is on connect here?  (RFC 6455 10.2)

Contract: ``require_origin(environ, settings)`` raises ``Refusal`` with 403, or
returns.  Pure; called once a handshake.

How this works: a page's origin is scheme, host and port, and the site's own is
what the client asked for: what the Host header says, over TLS or not.  Behind a
proxy that is the proxy's business with Apache, so a header that the proxy writes
is believed instead, once the owner says that there is such a proxy.  (No browser
lets a page set these headers on a WebSocket; who is no browser can send any Origin
anyway.)

Sources: RFC 6454 4. (origins); RFC 7239 (Forwarded); the X-Forwarded-Proto,
-Host and -Port headers, as mod_proxy and most others write them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from apachews_handler.exceptions import Refusal
from apachews_handler.origins import normalise_origin

if TYPE_CHECKING:
    from apachews_handler.settings import Settings

# RFC 7239 4.: token=value or token="value", parted by semicolons.
_PAIR: Final = re.compile(r'\s*([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^";,\s]*))\s*(?:;|$)')


def own_origin(environ: Mapping[str, Any], forwarded: str) -> str:
    """Return the site's origin as the client sees it.

    Args:
        environ: WSGI environment.
        forwarded: ``off``, ``forwarded`` or ``x-forwarded``: whose word is taken.

    Raises:
        ValueError: the headers do not make an origin.
    """
    scheme, host = environ["wsgi.url_scheme"], environ.get("HTTP_HOST", "")
    if forwarded == "forwarded":
        # Each proxy adds an element; the first is by the one nearest to the client.
        element = environ.get("HTTP_FORWARDED", "").partition(",")[0]
        pairs, at = {}, 0
        # Pair by pair: a search would begin again at every character of a long header.
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
    # Some proxies name the scheme of the WebSocket itself.
    scheme = {"ws": "http", "wss": "https"}.get(scheme.lower(), scheme)
    return normalise_origin(f"{scheme}://{host}")


def _first(environ: Mapping[str, Any], name: str) -> str:
    """Return the first of a header's values: that of the proxy nearest to the client."""
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
            raise Refusal(
                "403 Forbidden",
                "Only browsers may connect here.",
                "no Origin, and SetEnv APACHEWS_REQUIRE_ORIGIN is on",
            )
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
        raise Refusal(
            "403 Forbidden",
            "This page's origin may not connect here.",
            f"Origin {origin!r:.100} is not the site's own, {own or 'not known'!r:.100};"
            " to allow it, add it to SetEnv APACHEWS_ORIGINS",
        )
