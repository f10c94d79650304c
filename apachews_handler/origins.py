"""The canonical form of an origin, for comparisons.

Contract: ``normalise_origin(text)``, for the settings and for requests.  Pure.

Sources: RFC 6454 6.2 (origins); RFC 5952 and the WHATWG's URL standard, "host serializing"
(IPv6 addresses).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

# RFC 3986 3.2.2, without a zone (RFC 6874).  (Some versions of Python ignore what follows "]".)
_BRACKETED: Final = re.compile(r"\[([^\[\]%]+)\](?::\d*)?", re.ASCII)

# A host has at most 253 bytes (RFC 1035 2.3.4); the rest is scheme and port.
MAX_ORIGIN_CHARS: Final = 300


def normalise_origin(text: str) -> str:
    """Return an origin in lower case and without the default port (RFC 6454 6.2).

    An IPv6 address gets the form that browsers send, as ``[::1]``.

    Raises:
        ValueError: the scheme or the host is missing, or the text has more than these and a
            port; or an address in brackets is not an IPv6 address, or has a zone, which is
            valid on one machine only.
    """
    if len(text) > MAX_ORIGIN_CHARS:
        raise ValueError
    return _normalise(text)


# A site has few origins, and every page of it sends one of them.
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
    """Return the IPv6 address of a host in canonical form, in brackets (RFC 5952, no dots).

    Args:
        netloc: the address in brackets, with or without a port.

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
