"""The request that a backend gets: the client's, with Apache's facts instead of its claims.

Contract: ``target_of(environ, backend)`` returns the request target, ``headers_of(…)`` the
headers, ``encode(…)`` the bytes.  Pure; called once per handshake.

How this works: the headers are those of httpd's own table, so that they have their order, their
case and what mod_headers has made of them, ``Authorization`` included.  Whatever belongs to the
client's connection is removed, and so is every header in which servers let a proxy tell them
who the client is; then the connection's own headers and Apache's facts follow.

The table does not say which of its headers ``RequestHeader set`` has written: a forged one looks
the same.  So the site names those that Apache sets (APACHEWS_PASS_HEADERS).

The target is the one that Apache has judged.  The path that the client wrote is kept if it means
what Apache has mapped; after a rewriting rule, dots or double slashes Apache's own path is
sent, quoted anew.

Sources: RFC 9110 7.6.1 (hop-by-hop headers), 7.8 (Upgrade); RFC 3986 3.3, 3.4; RFC 7239.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes, urlsplit

from apachews.monitoring import refusals
from apachews_handler.backends import Backend
from apachews_handler.exceptions import Refusal
from apachews_handler.handshake.origin import own_origin
from apachews_handler.settings import Settings

Header = tuple[bytes, bytes]

# RFC 9110 7.6.1, and headers of the connection that older clients and HTTP/2 have.
HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer"
    b" transfer-encoding upgrade http2-settings expect".split()
)
# Headers in which proxies and gateways tell a server who the client is, or what it asks for: those
# of Apache itself (``_facts``), which no setting makes the client's; further ones; and families.
_OWN: Final = frozenset(
    b"x-forwarded-for x-forwarded-proto x-forwarded-host x-forwarded-port forwarded".split()
)
IDENTITY: Final = frozenset(
    b"x-client-ip x-cluster-client-ip true-client-ip x-scheme x-url-scheme front-end-https"
    b" x-arr-clientcert x-client-dn x-client-verify x-userinfo x-user-info x-rewrite-url"
    b" x-script-name x-ingress-path x-http-method x-http-method-override x-method-override"
    b" x-proxyuser-ip x-proxy-user x-iap-user"
    b" proxy".split()  # CGI programs get it as HTTP_PROXY, the proxy of their own requests
)
IDENTITY_PREFIXES: Final = tuple(
    b"x-forwarded- x-real- x-original- remote- x-remote- x-auth- x-authenticated- x-webauth-"
    b" x-authentik- x-authelia- x-vouch- x-pomerium- x-consumer- oidc- shib-"
    b" x-ssl- ssl-client- x-tls-client- client-cert x-client-cert"
    b" cf- fly- fastly- tailscale- x-azure- x-ms-client-principal x-amzn-oidc- x-amzn-mtls-"
    b" x-goog-authenticated-user- x-goog-iap- x-appengine- x-envoy-".split()
)
# Credentials of clients, in spite of their prefix: OpenStack, Rocket.Chat and others check them.
_CREDENTIALS: Final = frozenset((b"x-auth-token", b"x-auth-key"))
# Servers read "X_Remote_User" and "X-Remote-User" as one header.
_NAME: Final = re.compile(rb"[A-Za-z0-9-]+")
_BREAKS: Final = re.compile(rb"[\0\n\v\f\r]")
# RFC 3986 3.3: pchar, and "/"; "%" is quoted.
_PATH_SAFE: Final = "/:@!$&'()*+,;=-._~"
_QUERY_SAFE: Final = _PATH_SAFE + '%?[]"<>\\^`{|}'
_ENCODED_SLASH: Final = re.compile("%(2[Ff])")
_PRINTABLE: Final = re.compile("[!-~]*")
# The characters of _PATH_SAFE and those that are never quoted: most paths have no others.
_PLAIN: Final = re.compile("[A-Za-z0-9/:@!$&'()*+,;=._~-]*")


def target_of(environ: Mapping[str, Any], backend: Backend) -> bytes:
    """Return the request target for the backend.

    Args:
        environ: WSGI environment; its texts are bytes as ISO 8859-1.
        backend: its path replaces the prefix of the alias.
    """
    raw = environ["REQUEST_URI"].partition("?")[0]
    prefix, rest = environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", "")
    quoted_prefix = _quote(prefix)
    is_same = _is_same_path(raw, prefix + rest)
    if backend.path is None:
        path = raw if is_same else _quote(prefix + rest)
    elif is_same and _has_prefix(raw, quoted_prefix):
        path = backend.path + raw[len(quoted_prefix) :]
    else:
        path = backend.path + _quote(rest)
    query = environ.get("QUERY_STRING", "")
    if query:
        query = quote(query.encode("latin-1"), safe=_QUERY_SAFE)
    target: str = (path or "/") + (f"?{query}" if query else "")
    return target.encode("ascii")


def headers_of(
    headers: Iterable[Header],
    environ: Mapping[str, Any],
    settings: Settings,
    *,
    address: str,
) -> list[Header]:
    """Return the headers for the backend.

    Args:
        headers: the client's, as httpd has them.
        environ: WSGI environment.
        settings: for the trusted proxy, the header of the user and further headers to remove.
        address: of the client.

    Raises:
        Refusal: 400, Connection names a header of the handshake, or a value contains a control
            character.
    """
    headers = list(headers)
    rules = _rules(settings.user_header, settings.drop_headers, settings.pass_headers)
    named = named_by_connection(headers)
    _require_no_header_of_the_handshake(named)
    trusted: dict[bytes, bytes] = {}
    sent: list[Header] = []
    if _BREAKS.search(b" ".join([value for _, value in headers])):
        raise Refusal(refusals.CONTROL_CHARACTER)
    for name, value in headers:
        lower = name.lower()
        if lower in (b"x-forwarded-for", b"forwarded"):
            trusted[lower] = value
        if rules.passes(lower, named):
            sent.append((name, value))
    sent += ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
    sent += _facts(environ, settings, address, trusted)
    return sent


def encode(target: bytes, headers: Iterable[Header]) -> bytes:
    """Return the head of the request."""
    lines = [b"GET %s HTTP/1.1" % target, *(b"%s: %s" % header for header in headers)]
    return b"\r\n".join([*lines, b"", b""])


def _facts(
    environ: Mapping[str, Any], settings: Settings, address: str, trusted: dict[bytes, bytes]
) -> list[Header]:
    """Return the headers with what Apache knows of the client."""
    scheme, host = environ["wsgi.url_scheme"], environ.get("HTTP_HOST", "")
    chain = address.encode("ascii", "replace")
    facts: list[Header] = []
    if settings.forwarded != "off":
        # A proxy in front has told the site's address, and the client's.
        try:
            own = urlsplit(own_origin(environ, settings.forwarded))
            scheme, host = own.scheme, own.netloc
        except ValueError:
            pass  # the headers do not make an address: the connection's own stays
        if settings.forwarded == "x-forwarded" and b"x-forwarded-for" in trusted:
            chain = trusted[b"x-forwarded-for"] + b", " + chain
        elif settings.forwarded == "forwarded" and b"forwarded" in trusted:
            facts.append((b"Forwarded", trusted[b"forwarded"]))
    facts += [
        (b"X-Forwarded-For", chain),
        (b"X-Forwarded-Proto", scheme.encode()),
        (b"X-Forwarded-Host", host.encode("latin-1")),
        (b"X-Forwarded-Port", _port(host, scheme)),
    ]
    if user := environ.get("REMOTE_USER"):
        value = user.encode("latin-1")
        if _BREAKS.search(value):
            raise Refusal(refusals.CONTROL_CHARACTER, "the name of the user contains a break")
        facts.append((settings.user_header.encode(), value))
    return facts


def _port(host: str, scheme: str) -> bytes:
    """Return the port that the client has connected to, as its Host header says."""
    port = host.rpartition(":")[2]
    if port.isascii() and port.isdigit():
        return port.encode()
    return b"443" if scheme == "https" else b"80"


class _Names:
    """A set of names of headers, in lower case; an asterisk stands for any end."""

    def __init__(self, names: Iterable[bytes]) -> None:
        names = list(names)
        self._exact = frozenset(name for name in names if not name.endswith(b"*"))
        self._prefixes = tuple(name[:-1] for name in names if name.endswith(b"*"))

    def __contains__(self, lower: bytes) -> bool:
        return lower in self._exact or lower.startswith(self._prefixes)


class _Rules:
    """Which headers of a request a backend gets.

    Args:
        never: names that it does not get.
        passed: names that Apache sets, which it gets in exactly this spelling.
    """

    def __init__(self, never: Iterable[bytes], passed: Iterable[bytes]) -> None:
        passed = list(passed)
        # Most requests have the same names, and clients may send any others.
        self._verdict = functools.lru_cache(maxsize=64)(self._judge)
        self._never = _Names(never)
        self._passed = _Names(passed)
        # Servers would read the client's "X-User" as the "X_User" that Apache has set.
        self._like_passed = _Names(name.replace(b"_", b"-") for name in passed)

    def passes(self, lower: bytes, named: set[bytes]) -> bool:
        """Tell whether the backend gets a header.

        Args:
            lower: its name in lower case.
            named: the names in Connection.  A client cannot remove by them what Apache has set.
        """
        verdict = self._verdict(lower)
        return lower not in named if verdict is None else verdict

    def _judge(self, lower: bytes) -> bool | None:
        """Tell whether the backend gets a header; None: unless Connection names it."""
        if lower in self._never:
            return False
        if lower in self._passed:
            return True
        if lower in self._like_passed or not _NAME.fullmatch(lower):
            return False
        if lower in _CREDENTIALS:
            return None
        return False if lower in IDENTITY or lower.startswith(IDENTITY_PREFIXES) else None


# A site has few different settings.
@functools.lru_cache(maxsize=64)
def _rules(user_header: str, drop: tuple[str, ...], passed: tuple[str, ...]) -> _Rules:
    of_site = (name.lower().encode() for name in (user_header, *drop))
    # A WebSocket has no body; the length that the handshake allows is 0.
    never = HOP_BY_HOP | _OWN | {b"content-length", *of_site}
    return _Rules(never, (name.encode() for name in passed))


def named_by_connection(headers: Iterable[Header]) -> set[bytes]:
    """Return the headers that a peer declares to be those of the connection, in lower case."""
    named: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            named.update(token.strip().lower() for token in value.split(b","))
    return named


def _require_no_header_of_the_handshake(named: Iterable[bytes]) -> None:
    """Refuse a Connection that names a header of the handshake, which must arrive.

    Raises:
        Refusal: 400.
    """
    for name in named:
        if name in (b"host", b"origin", b"cookie", b"authorization") or name.startswith(b"sec-"):
            shown = name.decode("ascii", "replace")
            raise Refusal(refusals.CONNECTION_HEADER, f"Connection names {shown!r:.40}")


def _has_prefix(raw: str, prefix: str) -> bool:
    """Tell whether a slash or nothing follows the prefix; no path starts with an encoded slash."""
    return raw.startswith(prefix) and raw[len(prefix) : len(prefix) + 1] in ("", "/")


def _is_same_path(raw: str, mapped: str) -> bool:
    """Tell whether the path that the client wrote is the one that Apache has mapped.

    Args:
        raw: with its escapes.
        mapped: without them; with AllowEncodedSlashes NoDecode, an encoded slash is still one.
    """
    if not _PRINTABLE.fullmatch(raw):
        return False  # to be quoted
    if "%" not in raw:
        return raw == mapped
    data = mapped.encode("latin-1")
    return data in (unquote_to_bytes(raw), unquote_to_bytes(_ENCODED_SLASH.sub(r"%25\1", raw)))


def _quote(path: str) -> str:
    if _PLAIN.fullmatch(path):
        return path
    return quote(path.encode("latin-1"), safe=_PATH_SAFE)
