"""The JSON documents of the wire: OPEN, PUBLISH and the answer to PUBLISH.

Contract: immutable data.  ``encode`` returns a whole frame, ``decode`` reads the payload of a
frame, ignores members that it does not know, and raises WireError.  docs/reference/wire.md is the
specification.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from apachews.exceptions import WireError

from .frames import OPEN, PUBLISH, encode_frame

VERSION: Final = 1

_encode_json: Final = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class TLS:
    """The encryption between client and Apache.

    Attributes:
        version: as OpenSSL names it: ``TLSv1.3``.
        cipher: as OpenSSL names it: ``TLS_AES_256_GCM_SHA384``.
        server_name: the host that the client asked for (SNI), or None.
        client_subject: subject of the client certificate that Apache has verified
            (``SSLVerifyClient``), or None.

    Example:
        >>> client.request.tls.version, client.request.tls.server_name
        ('TLSv1.3', 'example.org')
    """

    version: str
    cipher: str
    server_name: str | None = None
    client_subject: str | None = None

    def _members(self) -> dict[str, str | None]:
        """Return the members of the JSON object in OPEN."""
        return {
            "version": self.version,
            "cipher": self.cipher,
            "server_name": self.server_name,
            "client_subject": self.client_subject,
        }


@dataclass(frozen=True, slots=True)
class Open:
    """The first frame of the bridge: the connection and its request.

    Attributes:
        id: unique name of the connection; stays the same when it is resumed.
        resumed: True if the client was connected before, to a producer that is gone or
            has handed it over.
        method, uri: the request line as the client sent it, ``uri`` with its query,
            undecoded.
        rewritten_query: the query that Apache gave the request in place of the URI's
            (``RewriteRule``), undecoded; None if Apache left the query as it was.
        headers: name (lower case) and value of each request header, in no
            particular order; a value is text in ISO 8859-1.
        remote, local: address and port of the client and of Apache's socket.  The
            client's port is 0 if only its address is known (``RemoteIPHeader``).
        scheme: ``ws`` or ``wss``.
        tls: the encryption; None with ``ws``.
        user: ``REMOTE_USER`` as Apache authenticated it, or None.
        vhost: ``ServerName`` of the virtual host.
        offered, subprotocol: the subprotocols that the client offered, and the chosen one.
        env: variables that ``APACHEWS_PASS_ENV`` names.
        answer_required: True if the client has no response yet and the producer accepts
            or rejects it (``APACHEWS_ACCEPT producer``).
        bridge: id of the bridge process, if that process can open a channel for groups; None
            if it cannot.

    Example:
        >>> request = client.request
        >>> request.scheme, request.vhost, request.remote
        ('wss', 'example.org', ('203.0.113.7', 51514))
    """

    id: str
    uri: str
    resumed: bool = False
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    remote: tuple[str, int] = ("", 0)
    local: tuple[str, int] = ("", 0)
    scheme: str = "ws"
    tls: TLS | None = None
    user: str | None = None
    vhost: str = ""
    offered: tuple[str, ...] = ()
    subprotocol: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    answer_required: bool = False
    rewritten_query: str | None = None
    bridge: str | None = None

    def header(self, name: str) -> str | None:
        """Return the value of a request header, by its name in any case, or None.

        Example:
            >>> client.request.header("Origin")
            'https://example.org'
        """
        name = name.lower()
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def path(self) -> str:
        """The path of the URI, decoded; ``/chät.ws`` of ``/ch%C3%A4t.ws?room=1``.

        Example:
            >>> client.request.path
            '/ws/chat.ws'
        """
        return unquote(self.uri.partition("?")[0])

    @property
    def query(self) -> dict[str, list[str]]:
        """The variables of the query, decoded; each may occur several times.

        The query is that of CGI's QUERY_STRING: ``rewritten_query``, or else that of the
        URI.

        Example:
            >>> client.request.query.get("room", ["lobby"])[0]
            '1'
        """
        query = self.rewritten_query
        if query is None:
            query = self.uri.partition("?")[2]
        return parse_qs(query, keep_blank_values=True)

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies of the Cookie header (RFC 6265 5.4).

        Of several cookies with one name this is the first: the one of the longest path.

        Example:
            >>> client.request.cookies
            {'session': 'f00'}
        """
        cookies: dict[str, str] = {}
        for pair in (self.header("cookie") or "").split(";"):
            name, found, value = pair.partition("=")
            if found:
                cookies.setdefault(name.strip(), value.strip().strip('"'))
        return cookies

    def encode(self) -> bytes:
        """Return the OPEN frame, as a bridge sends it.

        Example:
            >>> wire.Open(id="1", uri="/ws/chat.ws").encode()[:1]
            b'\x83'
        """
        request: dict[str, object] = {
            "method": self.method,
            "uri": self.uri,
            "headers": self.headers,
        }
        if self.rewritten_query is not None:
            request["query"] = self.rewritten_query
        document: dict[str, object] = {
            "version": VERSION,
            "id": self.id,
            "resumed": self.resumed,
            "request": request,
            "remote": self.remote,
            "local": self.local,
            "scheme": self.scheme,
            "tls": self.tls and self.tls._members(),
            "user": self.user,
            "vhost": self.vhost,
            "subprotocols": {"offered": self.offered, "chosen": self.subprotocol},
            "env": self.env,
            "answer_required": self.answer_required,
        }
        if self.bridge is not None:
            document["bridge"] = {"id": self.bridge, "groups": 1}
        return encode_frame(OPEN, _encode_json(document).encode())

    @classmethod
    def decode(cls, payload: bytes) -> Open:
        """Read the payload of an OPEN frame; ignore unknown members.

        Raises:
            WireError: not a JSON object, another version, or a member that is missing or
                of the wrong type.

        Example:
            >>> opening = wire.Open(id="1", uri="/ws/chat.ws").encode()
            >>> _, _, start = wire.decode_header(opening, 0)
            >>> wire.Open.decode(opening[start:]).uri
            '/ws/chat.ws'
        """
        document = _decode_json(payload, "OPEN")
        try:
            request, subprotocols = document["request"], document["subprotocols"]
            return cls(
                id=require_text(document["id"]),
                resumed=bool(document["resumed"]),
                method=require_text(request["method"]),
                uri=require_text(request["uri"]),
                headers=tuple(
                    (require_text(name), require_text(value)) for name, value in request["headers"]
                ),
                remote=_address(document["remote"]),
                local=_address(document["local"]),
                scheme=require_text(document["scheme"]),
                tls=_tls(document.get("tls")),
                user=optional_text(document["user"]),
                vhost=require_text(document["vhost"]),
                offered=tuple(require_text(name) for name in subprotocols["offered"]),
                subprotocol=optional_text(subprotocols["chosen"]),
                env={
                    require_text(name): require_text(value)
                    for name, value in document["env"].items()
                },
                answer_required=bool(document["answer_required"]),
                rewritten_query=optional_text(request.get("query")),
                bridge=_bridge(document.get("bridge")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WireError(f"invalid OPEN: missing or wrong member: {error}") from error


@dataclass(frozen=True, slots=True)
class Publish:
    """The first frame of a publisher: a program with messages for clients.

    Attributes:
        group: name of the group that receives them; None: all clients.
        asks_status: it has no message, and asks for the state of the producer's relay.
    """

    group: str | None
    asks_status: bool = False

    def encode(self) -> bytes:
        """Return the PUBLISH frame."""
        document: dict[str, Any] = {"version": VERSION, "group": self.group}
        if self.asks_status:
            document["status"] = True
        return encode_frame(PUBLISH, _encode_json(document).encode())

    @classmethod
    def decode(cls, payload: bytes) -> Publish:
        """Read the payload of a PUBLISH frame; ignore unknown members.

        Raises:
            WireError: not a JSON object, another version, or a group that is not text.
        """
        document = _decode_json(payload, "PUBLISH")
        group = document.get("group")
        if group is not None and not isinstance(group, str):
            raise WireError(f"invalid PUBLISH: the group {group!r:.80} is neither text nor null")
        return cls(group, document.get("status") is True)


@dataclass(frozen=True, slots=True)
class Published:
    """The producer's answer to each published message.

    Attributes:
        reached, skipped, relayed: see ``Delivery``.
        relay: the state of the relay (``monitoring.relays``), for a publisher that asks; None
            without a relay.
        error: why the message was refused, so that no client has received it; or None.
    """

    reached: int
    skipped: int
    relayed: bool = False
    relay: dict[str, Any] | None = None
    error: str | None = None

    def encode(self) -> bytes:
        """Return the PUBLISH frame."""
        document: dict[str, Any] = {
            "version": VERSION,
            "reached": self.reached,
            "skipped": self.skipped,
        }
        # Only if they say something: producers without a relay answer as ever.
        if self.relayed:
            document["relayed"] = True
        if self.relay is not None:
            document["relay"] = self.relay
        if self.error is not None:
            document["error"] = self.error
        return encode_frame(PUBLISH, _encode_json(document).encode())

    @classmethod
    def decode(cls, payload: bytes) -> Published:
        """Read the payload of a PUBLISH frame.

        Raises:
            WireError: not a JSON object, another version, or a member that is missing or not
                a number.
        """
        document = _decode_json(payload, "PUBLISH")
        reached, skipped = document.get("reached"), document.get("skipped")
        if not isinstance(reached, int) or not isinstance(skipped, int):
            raise WireError("invalid PUBLISH: reached and skipped must be numbers")
        relay, error = document.get("relay"), document.get("error")
        return cls(
            reached,
            skipped,
            document.get("relayed") is True,
            relay if isinstance(relay, dict) else None,
            error if isinstance(error, str) else None,
        )


def _decode_json(payload: bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"invalid {name}: not JSON in UTF-8") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise WireError(f"invalid {name}: expected version {VERSION} of the wire")
    return document


def require_text(value: Any) -> str:
    """Return the value if it is text.

    Raises:
        TypeError
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not text")
    return value


def optional_text(value: Any) -> str | None:
    """Return the value if it is text or None.

    Raises:
        TypeError
    """
    return None if value is None else require_text(value)


def _tls(value: Any) -> TLS | None:
    if value is None:
        return None
    return TLS(
        require_text(value["version"]),
        require_text(value["cipher"]),
        optional_text(value["server_name"]),
        optional_text(value["client_subject"]),
    )


def _bridge(value: Any) -> str | None:
    """Return the id of a bridge that offers the groups of this version, or None."""
    if value is None or value["groups"] != 1:
        return None
    return require_text(value["id"])


def _address(value: Any) -> tuple[str, int]:
    host, port = value
    if not isinstance(port, int):
        raise TypeError(f"{port!r:.80} is not a port number")
    return require_text(host), port
