"""The spelling of backends: WebSocket servers that a tunnel leads to.

Contract: ``Backend.parse(text)`` reads one address of APACHEWS_BACKEND, and ``choose(…)``
selects the address of a client if there are several.  Pure.

Sources: mod_proxy's ProxyPass, whose spellings these are; RFC 3986 3. (URIs).
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import re
import zlib
from typing import Final
from urllib.parse import urlsplit

_SCHEMES: Final = ("http", "ws")
_UNIX: Final = "unix:"
# sockaddr_un.sun_path has 108 bytes, the last of them NUL (unix(7)).
_MAX_PATH_BYTES: Final = 107
# RFC 1123 2.1, and underscores, which the names of containers have.
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?", re.ASCII)
# RFC 3986 3.3: pchar without a percent sign that does not begin an escape, and "/".
_PATH: Final = re.compile(r"(/([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?", re.ASCII)
# RFC 4007 11.: the zone of an IPv6 address, a number or the name of an interface (IFNAMSIZ).
_ZONE: Final = re.compile(r"[0-9]{1,9}|[A-Za-z][A-Za-z0-9._-]{0,14}", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """Where a WebSocket server listens.

    Attributes:
        name: for logs, limits and the status: the value without its path.
        socket_path: of its Unix socket; "" for TCP.
        host, port: for TCP.
        is_address: the host is an address and needs no resolver.
        path: replaces the prefix of the alias, without a slash at its end; None: the path of
            the request stays as it is.
    """

    name: str
    socket_path: str
    host: str
    port: int
    is_address: bool
    path: str | None

    @classmethod
    def parse(cls, text: str) -> Backend:
        """Read ``http://HOST:PORT``, with or without a path, or ``unix:/PATH|http://HOST``.

        Raises:
            ValueError: also for ``https``, which is not supported.
        """
        return _parse(text)


# A site has few backends, and every handshake asks for one of them.
@functools.lru_cache(maxsize=256)
def _parse(text: str) -> Backend:
    socket_path, url = "", text
    if text.startswith(_UNIX):
        socket_path, bar, url = text.removeprefix(_UNIX).partition("|")
        url = url if bar else "http://localhost"
        # WSGI gives bytes as ISO 8859-1.
        if not socket_path.startswith("/") or "\0" in socket_path:
            raise ValueError
        if len(socket_path.encode("latin-1")) > _MAX_PATH_BYTES:
            raise ValueError
    parts = urlsplit(url)
    if (
        parts.scheme not in _SCHEMES
        or not parts.hostname
        or parts.query
        or parts.fragment
        or parts.username is not None
        or "?" in url
        or "#" in url
        or not _PATH.fullmatch(parts.path)
    ):
        raise ValueError
    is_address = _is_address(parts.hostname)
    if not is_address and not _HOST.fullmatch(parts.hostname):
        raise ValueError
    # Brackets are of IPv6 only; before Python 3.11.4 urlsplit does not check that.
    if "[" in parts.netloc and ":" not in parts.hostname:
        raise ValueError
    port = 80 if parts.port is None else parts.port
    if not port:
        raise ValueError
    return Backend(
        name=f"{_UNIX}{socket_path}" if socket_path else f"{parts.scheme}://{parts.netloc}",
        socket_path=socket_path,
        host=parts.hostname,
        port=port,
        is_address=is_address,
        path=parts.path.rstrip("/") if parts.path else None,
    )


def parse_backends(text: str) -> tuple[str, ...]:
    """Return the addresses in a text, separated by blanks, each as it is.

    Raises:
        ValueError: also without an address.
    """
    addresses = tuple(text.split())
    if not addresses:
        raise ValueError
    for address in addresses:
        Backend.parse(address)
    return addresses


def choose(addresses: tuple[str, ...], route: str, client: str) -> str:
    """Return the address of a client, the same one each time.

    Args:
        addresses: at least one.
        route: the value of the client's cookie, "" without one.  As in mod_proxy_balancer's
            stickysession, its part after the first dot is the route: the number of an address,
            from 1.
        client: its IP address, which decides without a route.
    """
    if len(addresses) == 1:
        return addresses[0]
    number = route.partition(".")[2]
    # One to three digits: not a number that takes long to read.
    if re.fullmatch(r"[1-9][0-9]{0,2}", number, re.ASCII) and int(number) <= len(addresses):
        return addresses[int(number) - 1]
    return addresses[zlib.crc32(client.encode()) % len(addresses)]


def cookie_of(header: str, name: str) -> str:
    """Return the value of a cookie in the header Cookie, "" without it."""
    for pair in re.split("[;,]", header):
        found, _, value = pair.strip().partition("=")
        if found == name:
            return value.strip('"')
    return ""


def _is_address(host: str) -> bool:
    address, percent, zone = host.partition("%")
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return not percent or bool(_ZONE.fullmatch(zone))
