"""A WebSocket's URL, taken apart.

Contract: ``Address.parse(url)`` reads what ``new WebSocket(url)`` in a browser would, and
refuses what cannot be connected to.  Pure.

Sources: RFC 6455 3 (URIs), 4.1 (the client's handshake).
"""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass, field

from apachews.exceptions import ApachewsError


class AddressError(ApachewsError):
    """A URL is none for a WebSocket; the text says how one looks."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a WebSocket URL leads: ``Address.parse(url)``.

    Attributes:
        is_secure: wss.
        host, port: where to connect; a name is in ASCII, as DNS and HTTP have it.
        target: path and query, percent-encoded.
        url: as given.
    """

    is_secure: bool
    host: str
    port: int
    target: str
    url: str = field(default="", compare=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a URL.

        Raises:
            AddressError: it is none for a WebSocket.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise AddressError(f"{url!r} is no URL: {error}") from None
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        if scheme not in ("ws", "wss"):
            raise AddressError(f"{url!r} does not begin with ws:// or wss://")
        if not parts.hostname:
            raise AddressError(f"{url!r} names no host: ws://HOST/PATH")
        if parts.username is not None:
            raise AddressError(
                "a URL with a name or password shows in the list of processes: leave them out"
                " (with connect, use --user)"
            )
        if parts.fragment:
            raise AddressError(f"{url!r} has a fragment (#…), which no WebSocket URL may have")
        if port == 0:
            raise AddressError(f"{url!r}: nobody can be reached on port 0")
        try:
            host = parts.hostname.encode("idna").decode()
        except UnicodeError:
            raise AddressError(f"there is no host {parts.hostname!r}: no name of a host") from None
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        secure = scheme == "wss"
        return cls(
            secure,
            host,
            port or (443 if secure else 80),
            # As browsers do it; what is encoded already stays.
            urllib.parse.quote(target, safe="%/:?=&!$'()*+,;@~-._[]", errors="surrogateescape"),
            url,
        )

    @property
    def host_header(self) -> str:
        """The Host header: the port where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_secure else 80) else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """That of a page of the same site."""
        return f"{'https' if self.is_secure else 'http'}://{self.host_header}"
