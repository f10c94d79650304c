"""The opening handshake (RFC 6455 4.2): is this a WebSocket request, and may it be?

Contract: ``Upgrade.negotiate(environ, settings)`` checks a request that Apache
has parsed and returns an ``Upgrade``, or raises ``Refusal``; nothing is sent.
``choose(settings)`` picks a subprotocol, ``accept(…)`` gives the bytes of the 101.
Pure; one object a request.

How this works: httpd has parsed the request and found its headers well-formed; what
is left is to look at a few of them.  wsproto, which many servers rely on, has the parts:
how lists are split, extensions agreed on, the key answered.  (Its handshake as a whole
writes the request anew to have it parsed once more; a test holds this module against
it.)

Sources: RFC 6455 4.2.1, 4.2.2, 4.4 (version).
"""

from __future__ import annotations

import base64
import binascii
import http
import re
from collections.abc import Iterable, Mapping
from typing import Any

from h11 import InformationalResponse
from wsproto.handshake import server_extensions_handshake
from wsproto.utilities import generate_accept_token, split_comma_header

from apachews import wire
from apachews_handler.exceptions import Http11Required, Refusal
from apachews_handler.protocol.deflate import Agreement, Negotiation
from apachews_handler.settings import Settings

from .origin import require_origin

UPGRADE_REQUIRED = "426 Upgrade Required"
BAD_REQUEST = "400 Bad Request"
# RFC 9110 5.5: what no value of a header has.
_BREAKS = re.compile("[\0\n\v\f\r]")
# RFC 9110 7.8: Upgrade is for this connection only, and Connection says so.
_UPGRADE = (("Connection", "Upgrade"), ("Upgrade", "websocket"))


class Upgrade:
    """A handshake that was found good and waits for its answer.

    Attributes:
        offered: subprotocols the client offered, in its order.
        deflate: what was agreed on for permessage-deflate, once accepted; None
            for no compression.
    """

    def __init__(self, key: bytes, offered: list[str], extensions: list[str]) -> None:
        self._key = key
        self._extensions = extensions
        self.offered = tuple(offered)
        self.deflate: Agreement | None = None

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
    ) -> bytes:
        """Return the head of the 101 response.

        Args:
            settings: for the compression.
            subprotocol: one of those offered, or None.
            headers: names and values to add, in ISO 8859-1.

        Raises:
            h11.LocalProtocolError: one of these would break the response.
        """
        lines = [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + generate_accept_token(self._key),
        ]
        if subprotocol is not None:
            lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode("ascii"))
        if settings.deflate and self._extensions:
            negotiation = Negotiation(
                settings.deflate_window_bits, settings.deflate_context_takeover
            )
            accepted = server_extensions_handshake(self._extensions, [negotiation])
            if accepted:
                lines.append(b"Sec-WebSocket-Extensions: " + accepted)
            self.deflate = negotiation.agreed
        added = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        if added:
            checked = InformationalResponse(status_code=101, headers=added).headers.raw_items()
            lines += [name + b": " + value for name, value in checked]
        return b"\r\n".join([*lines, b"", b""])


def request_headers(environ: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the request's headers, names in lower case, values in ISO 8859-1.

    What the WSGI environment does not have cannot be given: Apache withholds
    ``Authorization`` unless told otherwise (WSGIPassAuthorization), and a name
    that came twice is one, its values joined by commas.
    """
    headers = [
        (name[5:].replace("_", "-").lower(), value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    headers += [
        (name.replace("_", "-").lower(), environ[name])
        for name in ("CONTENT_TYPE", "CONTENT_LENGTH")
        if environ.get(name)
    ]
    return headers


def require_no_error_document(failed_with: int | None) -> None:
    """Refuse a request that httpd serves as the ErrorDocument of another one.

    Args:
        failed_with: the status of that one, ``httpd.Request.failed_with``; None without one.

    Raises:
        Refusal: with that status.
    """
    if failed_with is None:
        return
    try:
        status = http.HTTPStatus(failed_with)
    except ValueError:
        status = http.HTTPStatus.INTERNAL_SERVER_ERROR
    raise Refusal(
        f"{status.value} {status.phrase}",
        "The WebSocket is not available.",
        "an ErrorDocument cannot be a WebSocket: name a page",
    )


def describe(
    environ: Mapping[str, Any],
    settings: Settings,
    upgrade: Upgrade,
    connection_id: str,
    *,
    tls: wire.TLS | None,
    remote: tuple[str, int],
    local: tuple[str, int],
) -> wire.Open:
    """Return what the producer is told of the connection.

    Args:
        connection_id: unique name of the connection.
        tls: how Apache has the connection encrypted, None where it has not.
        remote: address and port of the client; port 0 if only its address is known.
            (CGI's REMOTE_PORT is the proxy's if REMOTE_ADDR is that of a client behind one.)
        local: address and port that the client is connected to.  (CGI's
            SERVER_PORT is what the Host header says.)
    """
    uri, query = environ["REQUEST_URI"], environ.get("QUERY_STRING", "")
    return wire.Open(
        id=connection_id,
        method=environ["REQUEST_METHOD"],
        uri=uri,
        headers=tuple(request_headers(environ)),
        remote=remote,
        local=local,
        scheme="wss" if tls else "ws",
        tls=tls,
        user=environ.get("REMOTE_USER"),
        vhost=environ.get("SERVER_NAME", ""),
        offered=upgrade.offered,
        subprotocol=upgrade.choose(settings),
        env={
            name: environ[name] for name in settings.pass_env if isinstance(environ.get(name), str)
        },
        answer_required=settings.accept == "producer",
        rewritten_query=None if query == uri.partition("?")[2] else query,
    )


def _list(environ: Mapping[str, Any], name: str) -> list[str]:
    """Return what a header lists.

    Raises:
        Refusal: it is not ASCII.
    """
    value = environ.get(name)
    if value is None:
        return []
    try:
        return split_comma_header(value.encode("latin-1"))
    except UnicodeDecodeError as error:
        raise Refusal(BAD_REQUEST, f"Malformed WebSocket handshake: {error}.") from error


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
        raise Refusal(
            UPGRADE_REQUIRED,
            "This address speaks WebSocket only.",
            "not a WebSocket request",
            _UPGRADE,
        )


def _require_version(environ: Mapping[str, Any]) -> None:
    version = environ.get("HTTP_SEC_WEBSOCKET_VERSION", "")
    if version != "13":
        raise Refusal(
            UPGRADE_REQUIRED,
            "Only version 13 of the WebSocket protocol is spoken here.",
            f"unsupported WebSocket version {version!r:.40}",
            (*_UPGRADE, ("Sec-WebSocket-Version", "13")),
        )


def _require_wellformed(environ: Mapping[str, Any]) -> None:
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    try:
        nonce = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        nonce = b""
    if len(nonce) != 16 or len(key) != 24:  # RFC 6455 4.2.1, 5.
        raise Refusal(
            BAD_REQUEST,
            "Sec-WebSocket-Key must be 16 bytes in base64.",
            f"malformed Sec-WebSocket-Key {key!r:.60}",
        )
    for name in ("HTTP_CONNECTION", "HTTP_HOST"):
        _list(environ, name)  # refuses what is not ASCII
    if "HTTP_HOST" not in environ:  # RFC 6455 4.2.1, 2.
        raise Refusal(BAD_REQUEST, "A WebSocket request has a Host header.")
    # httpd lets none pass, unless told to be lax (HttpProtocolOptions Unsafe).
    if _BREAKS.search(" ".join([environ[name] for name in environ if name.startswith("HTTP_")])):
        raise Refusal(BAD_REQUEST, "A header has a character that none may have.")
    # A body would be read as frames.
    if environ.get("HTTP_TRANSFER_ENCODING") or environ.get("CONTENT_LENGTH", "0") not in ("", "0"):
        raise Refusal(BAD_REQUEST, "A WebSocket request has no body.")
