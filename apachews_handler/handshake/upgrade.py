"""The opening handshake (RFC 6455 4.2): check a request, and write the head of the 101.

Contract: ``Upgrade.negotiate(environ, settings)`` checks a request that Apache
has parsed and returns an ``Upgrade``, or raises ``Refusal``; nothing is sent.
``choose(settings)`` picks a subprotocol, ``accept(…)`` returns the bytes of the 101 and the
agreement on compression.  Pure; one object per request.

How this works: httpd has parsed the request and checked that its headers are well-formed; this
module looks at a few of them.  wsproto, which many servers rely on, splits the lists, negotiates
the extensions and answers the key.  (Its handshake as a whole would parse the request a second
time; a test compares this module with it.)

Sources: RFC 6455 4.2.1, 4.2.2, 4.4 (version).
"""

from __future__ import annotations

import http
import re
from collections.abc import Iterable, Mapping
from typing import Any

from h11 import InformationalResponse
from wsproto.handshake import server_extensions_handshake
from wsproto.utilities import generate_accept_token, split_comma_header

from apachews.monitoring import refusals
from apachews_handler.exceptions import Http11Required, Refusal
from apachews_handler.protocol.deflate import Agreement, Negotiation
from apachews_handler.settings import Settings

from .origin import require_origin

# RFC 9110 5.5: characters that a value of a header must not have.
_BREAKS = re.compile("[\0\n\v\f\r]")
# RFC 6455 4.2.1, 5.: the base64 of 16 bytes.
_KEY = re.compile("[A-Za-z0-9+/]{22}==")
# RFC 9110 7.8: Upgrade is a hop-by-hop header, which Connection lists.
_UPGRADE = (("Connection", "Upgrade"), ("Upgrade", "websocket"))


class Upgrade:
    """A valid handshake that waits for its answer.

    Attributes:
        offered: subprotocols the client offered, in its order.
    """

    def __init__(self, key: bytes, offered: list[str], extensions: list[str]) -> None:
        self._key = key
        self._extensions = extensions
        self.offered = tuple(offered)

    @classmethod
    def negotiate(cls, environ: Mapping[str, Any], settings: Settings) -> Upgrade:
        """Check a request.

        Args:
            environ: WSGI environment, PEP 3333.
            settings: for the origins.

        Raises:
            Refusal: with the status that answers it.
        """
        _require_websocket(environ)
        _require_version(environ)
        _require_wellformed(environ)
        require_origin(environ, settings)
        return cls(
            environ["HTTP_SEC_WEBSOCKET_KEY"].encode(),
            _list(environ, "HTTP_SEC_WEBSOCKET_PROTOCOL"),
            _list(environ, "HTTP_SEC_WEBSOCKET_EXTENSIONS"),
        )

    def choose(self, settings: Settings) -> str | None:
        """Return the first of the site's subprotocols that the client offered, or None."""
        return next((name for name in settings.subprotocols if name in self.offered), None)

    def accept(
        self,
        settings: Settings,
        subprotocol: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> tuple[bytes, Agreement | None]:
        """Return the head of the 101 response, and the agreement on permessage-deflate.

        Args:
            settings: for the compression.
            subprotocol: one of those offered, or None.
            headers: names and values to add, in ISO 8859-1.

        Returns:
            The bytes; and the agreement, None for no compression.

        Raises:
            h11.LocalProtocolError: a header would break the response.
        """
        lines = [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + generate_accept_token(self._key),
        ]
        if subprotocol is not None:
            lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode("ascii"))
        agreement = None
        if settings.deflate and self._extensions:
            negotiation = Negotiation(
                settings.deflate_window_bits, settings.deflate_context_takeover
            )
            accepted = server_extensions_handshake(self._extensions, [negotiation])
            if accepted:
                lines.append(b"Sec-WebSocket-Extensions: " + accepted)
            agreement = negotiation.agreed
        added = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        if added:
            checked = InformationalResponse(status_code=101, headers=added).headers.raw_items()
            lines += [name + b": " + value for name, value in checked]
        return b"\r\n".join([*lines, b"", b""]), agreement


def require_no_error_document(failed_with: int | None) -> None:
    """Refuse a request that httpd serves as the ErrorDocument of another request.

    Args:
        failed_with: status of the other request, ``httpd.Request.failed_with``; None for a
            request of a client.

    Raises:
        Refusal: with that status.
    """
    if failed_with is None:
        return
    try:
        status = http.HTTPStatus(failed_with)
    except ValueError:
        status = http.HTTPStatus.INTERNAL_SERVER_ERROR
    raise Refusal(refusals.ERROR_DOCUMENT, status=status.value)


def require_own_htaccess(foreign: str | None) -> None:
    """Refuse a request that the .htaccess of another directory may have led here.

    After DirectoryIndex and FallbackResource httpd continues the very request: the variables
    that such a file sets (settings, REMOTE_USER) take precedence over those of the location.
    After RewriteRule and Action they do not, but httpd's record does not tell which it was.

    Args:
        foreign: ``httpd.Request.foreign_htaccess``.

    Raises:
        Refusal
    """
    if foreign is not None:
        fact = f"the .htaccess file of {foreign!r} led the request here, and may set variables"
        raise Refusal(refusals.HTACCESS, fact)


def _list(environ: Mapping[str, Any], name: str) -> list[str]:
    """Return the elements of a header that is a list.

    Raises:
        Refusal: it has non-ASCII characters.
    """
    value = _ascii(environ, name)
    return [] if value is None else split_comma_header(value.encode("ascii"))


def _ascii(environ: Mapping[str, Any], name: str) -> str | None:
    """Return the value of a header, None without it.

    Raises:
        Refusal: it has non-ASCII characters.
    """
    value: str | None = environ.get(name)
    if value is not None and not value.isascii():
        header = name.removeprefix("HTTP_").replace("_", "-").title()
        fact = f"{header} {value!r:.60} contains non-ASCII characters"
        raise Refusal(refusals.MALFORMED_HEADER, fact)
    return value


def _tokens(value: str) -> list[str]:
    return [token.strip().lower() for token in value.split(",")]


def _require_websocket(environ: Mapping[str, Any]) -> None:
    is_upgrade = (
        environ.get("REQUEST_METHOD") == "GET"
        and "websocket" in _tokens(environ.get("HTTP_UPGRADE", ""))
        and "upgrade" in _tokens(environ.get("HTTP_CONNECTION", ""))
    )
    protocol = environ.get("SERVER_PROTOCOL", "")
    # mod_http2 rewrites the CONNECT of RFC 8441 into a request of RFC 6455.
    if is_upgrade and protocol.startswith("HTTP/2"):
        raise Http11Required
    if not is_upgrade or protocol != "HTTP/1.1":
        raise Refusal(refusals.NOT_A_WEBSOCKET, "not a WebSocket request", _UPGRADE)


def _require_version(environ: Mapping[str, Any]) -> None:
    version = environ.get("HTTP_SEC_WEBSOCKET_VERSION", "")
    if version != "13":
        raise Refusal(
            refusals.VERSION,
            f"unsupported WebSocket version {version!r:.40}",
            (*_UPGRADE, ("Sec-WebSocket-Version", "13")),
        )


def _require_wellformed(environ: Mapping[str, Any]) -> None:
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    if not _KEY.fullmatch(key):
        raise Refusal(refusals.MALFORMED_KEY, f"malformed Sec-WebSocket-Key {key!r:.60}")
    for name in ("HTTP_CONNECTION", "HTTP_HOST"):
        _ascii(environ, name)
    if "HTTP_HOST" not in environ:  # RFC 6455 4.2.1, 2.
        raise Refusal(refusals.NO_HOST)
    # httpd rejects these itself, except with HttpProtocolOptions Unsafe.
    if _BREAKS.search(" ".join([environ[name] for name in environ if name.startswith("HTTP_")])):
        raise Refusal(refusals.CONTROL_CHARACTER)
    # The bridge would read a body as frames.
    if environ.get("HTTP_TRANSFER_ENCODING") or environ.get("CONTENT_LENGTH", "0") not in ("", "0"):
        raise Refusal(refusals.REQUEST_BODY)
