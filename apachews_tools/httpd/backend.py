"""The value of APACHEWS_BACKEND, as the command line needs it.

Contract: ``Backend.parse(text)`` accepts what the handler accepts; the tools do not import the
handler, which needs packages that they do not need.  Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_UNIX: Final = "unix:"
_HOST: Final = re.compile(r"[A-Za-z0-9_.:-]+", re.ASCII)
_PATH: Final = re.compile(r"(/([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?", re.ASCII)


@dataclass(frozen=True)
class Backend:
    """Where a WebSocket server listens.

    Attributes:
        socket_path: of its Unix socket; "" for TCP.
        site: host, and port if it is written, as in a URL.
        host, port: for TCP.
        path: replaces the path of the alias, without a slash at its end; None: the path of the
            request stays as it is.
    """

    socket_path: str
    site: str
    host: str
    port: int
    path: str | None

    @classmethod
    def parse(cls, text: str) -> Backend:
        """Read ``http://HOST:PORT``, with or without a path, or ``unix:/PATH|http://HOST``.

        Raises:
            ValueError
        """
        socket_path, url = "", text
        if text.startswith(_UNIX):
            socket_path, bar, url = text.removeprefix(_UNIX).partition("|")
            url = url if bar else "http://localhost"
            if not socket_path.startswith("/") or "\0" in socket_path:
                raise ValueError(text)
        parts = urlsplit(url)
        if (
            parts.scheme not in ("http", "ws")
            or not _HOST.fullmatch(parts.hostname or "")
            # Brackets are of IPv6 only; before Python 3.11.4 urlsplit does not check that.
            or ("[" in parts.netloc and ":" not in (parts.hostname or ""))
            or parts.username is not None
            or "?" in url
            or "#" in url
            or not _PATH.fullmatch(parts.path)
            or parts.port == 0
        ):
            raise ValueError(text)
        path = parts.path.rstrip("/") if parts.path else None
        return cls(socket_path, parts.netloc, parts.hostname or "", parts.port or 80, path)

    @property
    def name(self) -> str:
        """The value without its path, as the log has it."""
        return f"{_UNIX}{self.socket_path}" if self.socket_path else f"http://{self.site}"
