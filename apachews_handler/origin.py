"""May the page that a browser is on connect here?  (RFC 6455 10.2)

Contract: ``require_origin(environ, settings)`` raises ``Refusal`` with 403, or
returns.  Pure; called once a handshake.

How this works: a page's origin is scheme, host and port, and the site's own is
what the client asked for: what the Host header says, over TLS or not.  Behind a
proxy that is the proxy's business with Apache, so a header that the proxy writes
is believed instead, once the owner says that there is such a proxy.  (No browser
lets a page set these headers on a WebSocket; who is no browser can send any Origin
anyway.)

Sources: RFC 6454 4., 6.2 (origins); RFC 5952 and the WHATWG's URL standard, "host
serializing" (IPv6 addresses); RFC 7239 (Forwarded); the X-Forwarded-Proto,
-Host and -Port headers, as mod_proxy and most others write them.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from .exceptions import Refusal

if TYPE_CHECKING:
    from .settings import Settings

# RFC 7239 4.: token=value or token="value", parted by semicolons.
_PAIR: Final = re.compile(r'\s*([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^";,\s]*))\s*(?:;|$)')

# RFC 3986 3.2.2, without a zone (RFC 6874).  (Some versions of Python ignore what follows "]".)
_BRACKETED: Final = re.compile(r"\[([^\[\]%]+)\](?::\d*)?", re.ASCII)

# A host has 253 bytes at most (RFC 1035 2.3.4); scheme and port come besides.
MAX_ORIGIN_CHARS: Final = 300


def normalise_origin(text: str) -> str:
    """Return an origin in lower case and without the default port (RFC 6454 6.2).

    An IPv6 address gets the one spelling that browsers have, as ``[::1]``.

    Raises:
        ValueError: no scheme and host, or more than these and a port; or an address in
            brackets that is not one of IPv6, or has a zone, which means nothing elsewhere.
    """
    if len(text) > MAX_ORIGIN_CHARS:
        raise ValueError
    return _normalise(text)


# A site has few origins, and each comes with every page of it.
@functools.lru_cache(maxsize=256)
def _normalise(text: str) -> str:
    parts = urlsplit(text)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.path
        or parts.query
        or parts.fragment
        or parts.username is not None
    ):
        raise ValueError
    host = _ipv6(parts.netloc) if "[" in parts.netloc else parts.hostname
    default = 443 if parts.scheme == "https" else 80
    port = "" if parts.port in (None, default) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def _ipv6(netloc: str) -> str:
    """Return the IPv6 address of a host in its one spelling, in brackets (RFC 5952, no dots).

    Args:
        netloc: with the address in brackets, and a port or none.

    Raises:
        ValueError
    """
    match = _BRACKETED.fullmatch(netloc)
    if not match:
        raise ValueError
    address = ipaddress.IPv6Address(match[1])
    if address.ipv4_mapped:  # which Python writes with dots from 3.13 on, browsers never
        low = int(address.ipv4_mapped)
        return f"[::ffff:{low >> 16:x}:{low & 0xFFFF:x}]"
    return f"[{address.compressed}]"


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
