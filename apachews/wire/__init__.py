"""The wire, version 1: what crosses the Unix socket between bridge and producer.

Frames of RFC 6455, never masked, RSV bits zero, in both directions, after one
OPEN frame from the bridge.  ``docs/wire.md`` is the specification; this module
is its only implementation in Python, used by the library and by the bridge.

Contract: pure functions and constants.  No I/O, no state; callable from any
thread.

Sources: RFC 6455 5.2 (framing), 5.5.1 and 7.4 (close), the IANA registry of
WebSocket close codes (1012-1014).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from apachews.exceptions import WireError

from .violation import Violation as Violation

VERSION: Final = 1

# Opcodes (RFC 6455 5.2), and OPEN, ANSWER, MOVE and PUBLISH, which take numbers reserved
# there.
CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
OPEN: Final = 0x3
ANSWER: Final = 0x4
MOVE: Final = 0x5
PUBLISH: Final = 0x6
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

FIN: Final = 0x80
RSV: Final = 0x70
OPCODE: Final = 0x0F
MASKED: Final = 0x80
# First bytes of a frame that is a whole message: what most frames are.
WHOLE_TEXT: Final = FIN | TEXT
WHOLE_MESSAGES: Final = frozenset((WHOLE_TEXT, FIN | BINARY))

# RFC 6455 5.5: what a control frame may carry at most.
MAX_CONTROL_BYTES: Final = 125
# RFC 6455 5.5.1: two of those bytes are the code.
MAX_REASON_BYTES: Final = MAX_CONTROL_BYTES - 2
# OPEN carries the request head as JSON.  httpd itself allows 100 fields of
# 8190 bytes (LimitRequestFields, LimitRequestFieldSize); escaping can make a
# byte six.  A bound, so that a stranger on the socket cannot fill the memory.
MAX_OPEN_BYTES: Final = 8 * 1024 * 1024

# Close codes (RFC 6455 7.4.1 and IANA) that this project sends or reports.
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
NO_CODE: Final = 1005
ABNORMAL: Final = 1006
INVALID_DATA: Final = 1007
POLICY_VIOLATION: Final = 1008
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012
TRY_AGAIN_LATER: Final = 1013

_encode_json: Final = json.JSONEncoder(separators=(",", ":")).encode
_HEADER_16 = struct.Struct(">BBH")
_HEADER_64 = struct.Struct(">BBQ")
_LENGTH_16 = struct.Struct(">H")
_LENGTH_64 = struct.Struct(">Q")


def encode_header(first: int, length: int) -> bytes:
    """Return the 2, 4 or 10 bytes before an unmasked payload.

    Args:
        first: FIN bit and opcode, as they stand in the first byte.
        length: bytes of payload, 0 or more.
    """
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return _HEADER_16.pack(first, 126, length)
    return _HEADER_64.pack(first, 127, length)


def encode_frame(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """Return one whole unmasked frame."""
    return encode_header(FIN | opcode if fin else opcode, len(payload)) + payload


def decode_header(data: bytes, start: int) -> tuple[int, int, int] | None:
    """Read the frame header that begins at ``data[start]``.

    Returns:
        ``(first byte, payload length, offset of the payload)``, or None where
        the header is not complete yet.

    Raises:
        WireError: a masked frame, or a length that is not in its shortest form
            or over 2**63 - 1 (RFC 6455 5.2).
    """
    end = len(data)
    if end - start < 2:
        return None
    length = data[start + 1]
    if length < 126:
        return data[start], length, start + 2
    if length >= MASKED:
        raise WireError("a frame is masked; the wire is never masked")
    if length == 126:
        if end - start < 4:
            return None
        length = _LENGTH_16.unpack_from(data, start + 2)[0]
        if length < 126:
            raise WireError("a length is not in its shortest form")
        return data[start], length, start + 4
    if end - start < 10:
        return None
    length = _LENGTH_64.unpack_from(data, start + 2)[0]
    if length < 65536:
        raise WireError("a length is not in its shortest form")
    if length >> 63:
        raise WireError("a length is over 2**63 - 1")
    return data[start], length, start + 10


def is_sendable_code(code: int) -> bool:
    """Tell whether a CLOSE frame may carry the code (RFC 6455 7.4)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def encode_close(code: int, reason: str = "") -> bytes:
    """Return the payload of a CLOSE frame.

    Args:
        code: 1005 (NO_CODE) gives the empty payload.
        reason: text of at most 123 bytes in UTF-8.

    Raises:
        ValueError: a code that may not be sent, a reason that is too long, or
            a reason without a code.
    """
    if code == NO_CODE:
        if reason:
            raise ValueError("a CLOSE without a code cannot carry a reason")
        return b""
    if not is_sendable_code(code):
        raise ValueError(
            f"close code {code} may not be sent: use 1000-1003, 1007-1014 or 3000-4999"
        )
    text = reason.encode()
    if len(text) > MAX_REASON_BYTES:
        raise ValueError(
            f"the close reason has {len(text)} bytes in UTF-8; at most {MAX_REASON_BYTES} fit"
        )
    return _LENGTH_16.pack(code) + text


@dataclass(frozen=True, slots=True)
class Close:
    """What a CLOSE frame says; code 1005 (NO_CODE) stands for an empty one."""

    code: int
    reason: str


def decode_close(payload: bytes) -> Close:
    """Read the payload of a CLOSE frame.

    Raises:
        WireError: its ``code`` is the close code that answers the fault.
    """
    if not payload:
        return Close(NO_CODE, "")
    if len(payload) == 1:
        raise WireError("the payload of a CLOSE has one byte; it needs none or two and more")
    code = _LENGTH_16.unpack_from(payload)[0]
    if not is_sendable_code(code):
        raise WireError(f"close code {code} may not be sent")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError as error:
        raise WireError("the reason of a CLOSE is not UTF-8", INVALID_DATA) from error


def truncate_reason(reason: str) -> str:
    """Cut a reason to the 123 bytes that a CLOSE can carry, between characters."""
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class TLS:
    """How a connection is encrypted, between client and Apache.

    Attributes:
        version: as OpenSSL names it: ``TLSv1.3``.
        cipher: as OpenSSL names it: ``TLS_AES_256_GCM_SHA384``.
        server_name: the host that the client asked for (SNI), or None.
        client_subject: subject of the certificate that the client has shown and Apache
            has verified (``SSLVerifyClient``), or None.

    Example:
        >>> client.request.tls.version, client.request.tls.server_name
        ('TLSv1.3', 'example.org')
    """

    version: str
    cipher: str
    server_name: str | None = None
    client_subject: str | None = None

    def members(self) -> dict[str, str | None]:
        """Return what OPEN has of it.

        :meta private:
        """
        return {
            "version": self.version,
            "cipher": self.cipher,
            "server_name": self.server_name,
            "client_subject": self.client_subject,
        }


@dataclass(frozen=True, slots=True)
class Open:
    """What the bridge says of a connection in its first frame.

    Attributes:
        id: unique name of the connection; stays the same when it is resumed.
        resumed: True where the client was connected before, to a producer that
            is gone or has handed it on.
        method, uri: the request line as the client sent it, ``uri`` with its query,
            undecoded.
        rewritten_query: the query that Apache gave the request instead of the URI's
            (``RewriteRule``), undecoded; None if Apache left the query as it was.
        headers: name (lower case) and value of each request header, in no
            particular order; a value is text in ISO 8859-1.
        remote, local: address and port of the client and of Apache's socket.  The
            client's port is 0 if only its address is known (``RemoteIPHeader``).
        scheme: ``ws`` or ``wss``.
        tls: how it is encrypted; None with ``ws``.
        user: ``REMOTE_USER`` as Apache authenticated it, or None.
        vhost: ``ServerName`` of the virtual host.
        offered, subprotocol: what the client offered, and what was chosen.
        env: variables that ``APACHEWS_PASS_ENV`` names.
        answer_required: True where the client has had no response yet and the
            producer decides on it (``APACHEWS_ACCEPT producer``).

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
        """The variables of the query, decoded; each may stand there several times.

        The query is the one that CGI has in QUERY_STRING: ``rewritten_query``, or else that
        of the URI.

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
        """The cookies, as they stand in the Cookie header (RFC 6265 5.4).

        Of several of one name that is the first: the one of the longest path.

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
        """Return the OPEN frame.

        :meta private:
        """
        request: dict[str, object] = {
            "method": self.method,
            "uri": self.uri,
            "headers": self.headers,
        }
        if self.rewritten_query is not None:
            request["query"] = self.rewritten_query
        document = {
            "version": VERSION,
            "id": self.id,
            "resumed": self.resumed,
            "request": request,
            "remote": self.remote,
            "local": self.local,
            "scheme": self.scheme,
            "tls": self.tls and self.tls.members(),
            "user": self.user,
            "vhost": self.vhost,
            "subprotocols": {"offered": self.offered, "chosen": self.subprotocol},
            "env": self.env,
            "answer_required": self.answer_required,
        }
        return encode_frame(OPEN, _encode_json(document).encode())

    @classmethod
    def decode(cls, payload: bytes) -> Open:
        """Read the payload of an OPEN frame; members it does not know are ignored.

        Raises:
            WireError: no JSON object, another version, or a member that is
                missing or of the wrong type.

        :meta private:
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
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WireError(f"OPEN lacks a member or has one of the wrong type: {error}") from error


@dataclass(frozen=True, slots=True)
class Publish:
    """What a program that is no bridge says in its first frame: it has messages for clients.

    Attributes:
        group: for whom: a group's name; None for all clients.
    """

    group: str | None

    def encode(self) -> bytes:
        """Return the PUBLISH frame."""
        document = {"version": VERSION, "group": self.group}
        return encode_frame(PUBLISH, _encode_json(document).encode())

    @classmethod
    def decode(cls, payload: bytes) -> Publish:
        """Read the payload of a PUBLISH frame; members it does not know are ignored.

        Raises:
            WireError: no JSON object, another version, or no group.
        """
        document = _decode_json(payload, "PUBLISH")
        group = document.get("group")
        if group is not None and not isinstance(group, str):
            raise WireError(f"the group of PUBLISH is neither text nor null: {group!r:.80}")
        return cls(group)


@dataclass(frozen=True, slots=True)
class Published:
    """What the producer answers to each message that was published.

    Attributes:
        reached, skipped: clients that it was sent to or queued for, and that it was not.
    """

    reached: int
    skipped: int

    def encode(self) -> bytes:
        """Return the PUBLISH frame."""
        document = {"version": VERSION, "reached": self.reached, "skipped": self.skipped}
        return encode_frame(PUBLISH, _encode_json(document).encode())

    @classmethod
    def decode(cls, payload: bytes) -> Published:
        """Read the payload of a PUBLISH frame.

        Raises:
            WireError: no JSON object, another version, or a member that is missing or no
                number.
        """
        document = _decode_json(payload, "PUBLISH")
        reached, skipped = document.get("reached"), document.get("skipped")
        if not isinstance(reached, int) or not isinstance(skipped, int):
            raise WireError("the answer to PUBLISH lacks its numbers")
        return cls(reached, skipped)


def _decode_json(payload: bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"{name} is not a JSON document in UTF-8") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise WireError(f"{name} is not of version {VERSION} of the wire")
    return document


def require_text(value: Any) -> str:
    """Return the value if it is text.

    Raises:
        TypeError
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a string")
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


def _address(value: Any) -> tuple[str, int]:
    host, port = value
    if not isinstance(port, int):
        raise TypeError(f"{port!r:.80} is not a port")
    return require_text(host), port
