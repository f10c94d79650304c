"""The parts of a WebSocket's URL.

Contract: ``Address.parse(url)`` accepts what ``new WebSocket(url)`` in a browser accepts,
and rejects a URL that no client can connect to.  Pure.

Sources: RFC 6455 3 (URIs), 4.1 (the client's handshake).
"""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass, field

from apachews.exceptions import ApachewsError


class AddressError(ApachewsError):
    """The URL is not one of a WebSocket; the text says what is expected."""


@dataclass(frozen=True, slots=True)
class Address:
    """Address and target of a WebSocket URL: ``Address.parse(url)``.

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
            AddressError: it is not one of a WebSocket.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise AddressError(f"{url!r} is not a URL: {error}") from None
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        if scheme not in ("ws", "wss"):
            raise AddressError(f"{url!r} does not begin with ws:// or wss://")
        if not parts.hostname:
            raise AddressError(f"{url!r} does not name a host; expected ws://HOST/PATH")
        if parts.username is not None:
            raise AddressError(
                "a URL with a name or a password is visible in the list of processes: remove them"
                " (and with connect, use --user)"
            )
        if parts.fragment:
            raise AddressError(f"{url!r} has a fragment (#…), which a WebSocket URL must not have")
        if port == 0:
            raise AddressError(f"{url!r}: port 0 cannot be connected to")
        try:
            host = parts.hostname.encode("idna").decode()
        except UnicodeError:
            raise AddressError(f"invalid host name {parts.hostname!r}") from None
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        secure = scheme == "wss"
        return cls(
            secure,
            host,
            port or (443 if secure else 80),
            # As browsers do; percent-encoded characters stay as they are.
            urllib.parse.quote(target, safe="%/:?=&!$'()*+,;@~-._[]", errors="surrogateescape"),
            url,
        )

    @property
    def host_header(self) -> str:
        """The Host header, with the port if it is not the default of the scheme."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_secure else 80) else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """The origin of a page of the same site."""
        return f"{'https' if self.is_secure else 'http'}://{self.host_header}"
