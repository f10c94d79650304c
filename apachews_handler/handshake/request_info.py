"""The facts about a request: for the producer, for the status, for the log.

Contract: ``peer_of(request)`` asks httpd and mod_ssl for the facts that only they know.
``describe(…)`` makes the OPEN of these, of the environment and of the settings;
``connection_info`` and ``log_name`` make what the status and the log show.  Called once a
handshake, on the request's thread.  What httpd does not tell is ``httpd.HttpdError``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from apachews import wire
from apachews_handler.bridge.connection import ConnectionInfo
from apachews_handler.native import httpd, syscalls
from apachews_handler.settings import Settings

from .upgrade import Upgrade

# mod_ssl's names of the members of ``wire.TLS``.
_TLS_VARIABLES: Final = (
    b"SSL_PROTOCOL",
    b"SSL_CIPHER",
    b"SSL_TLS_SNI",
    b"SSL_CLIENT_VERIFY",
    b"SSL_CLIENT_S_DN",
)
# Of a URI, in the log and in the status.
_MAX_URI_CHARS: Final = 200


class Peer(NamedTuple):
    """What httpd and mod_ssl know of a connection.

    Attributes:
        id: unique name of the connection.
        remote: address and port of the client; port 0 if only its address is known.
            (CGI's REMOTE_PORT is the proxy's if REMOTE_ADDR is that of a client of a proxy.)
        local: address and port that the client is connected to.  (CGI's
            SERVER_PORT is the port in the Host header.)
        tls: how Apache encrypts the connection, None if it does not.
    """

    id: str
    remote: tuple[str, int]
    local: tuple[str, int]
    tls: wire.TLS | None


def peer_of(request: httpd.Request) -> Peer:
    """Return the facts about a request's connection, with a new id.

    Raises:
        HttpdError: the connection has no address, or mod_ssl's variables cannot be read.
    """
    return Peer(new_id(), request.client_address(), local_address(request), tls_facts(request))


def describe(
    environ: Mapping[str, Any],
    settings: Settings,
    upgrade: Upgrade,
    peer: Peer,
    bridge: str | None = None,
) -> wire.Open:
    """Return the document that describes the connection to the producer.

    Args:
        bridge: id of the bridge process.
    """
    uri, query = environ["REQUEST_URI"], environ.get("QUERY_STRING", "")
    return wire.Open(
        id=peer.id,
        method=environ["REQUEST_METHOD"],
        uri=uri,
        headers=tuple(request_headers(environ)),
        remote=peer.remote,
        local=peer.local,
        scheme=_scheme(peer),
        tls=peer.tls,
        user=environ.get("REMOTE_USER"),
        vhost=environ.get("SERVER_NAME", ""),
        offered=upgrade.offered,
        subprotocol=upgrade.choose(settings),
        env={
            name: environ[name] for name in settings.pass_env if isinstance(environ.get(name), str)
        },
        answer_required=settings.accept == "producer",
        # A rewriting rule changed the query; the URI is the client's.
        rewritten_query=None if query == uri.partition("?")[2] else query,
        bridge=bridge,
    )


def request_headers(environ: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the request's headers, names in lower case, values in ISO 8859-1.

    A header that the WSGI environment lacks is missing here too: Apache withholds
    ``Authorization`` by default (WSGIPassAuthorization), and joins the values of a repeated
    header with commas.
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


def tls_facts(request: httpd.Request) -> wire.TLS | None:
    """Return how the request's connection is encrypted, None if it is not.

    Raises:
        HttpdError: mod_ssl's variables cannot be read.
    """
    if not request.is_tls:
        return None
    version, cipher, server_name, verified, subject = map(request.ssl_variable, _TLS_VARIABLES)
    # A certificate that was not verified proves nothing: its subject could be any text.
    return wire.TLS(
        version or "", cipher or "", server_name, subject if verified == "SUCCESS" else None
    )


def local_address(request: httpd.Request) -> tuple[str, int]:
    """Return address and port of Apache that the client is connected to.

    Raises:
        HttpdError: the connection has no address.
    """
    host, port = request.local_address()
    # The address of an IPv4 client of a socket for both families is ::ffff:192.0.2.1.
    return host.removeprefix("::ffff:"), port


def new_id() -> str:
    """Return a random UUID (RFC 9562 5.4), without importing ``uuid``.

    That module imports ``platform``, which would stay in the memory of every child.
    """
    data = bytearray(syscalls.urandom(16))
    data[6] = data[6] & 0x0F | 0x40
    data[8] = data[8] & 0x3F | 0x80
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def connection_info(
    environ: Mapping[str, Any], peer: Peer, subprotocol: str | None
) -> ConnectionInfo:
    """Return what the status shows of a connection: without the query, which may have secrets."""
    return ConnectionInfo(
        id=peer.id,
        path=environ["REQUEST_URI"].partition("?")[0][:_MAX_URI_CHARS],
        address=peer.remote[0],
        port=peer.remote[1],
        user=environ.get("REMOTE_USER") or "",
        scheme=_scheme(peer),
        subprotocol=subprotocol or "",
    )


def log_name(environ: Mapping[str, Any], peer: Peer, uri: str) -> str:
    """Return client, user and URI, as every log line about the connection begins.

    Args:
        uri: the URI, or what stands for it.
    """
    address, port = peer.remote
    client = f"{address}:{port}" if port else address
    return f"[client {client}] user={environ.get('REMOTE_USER') or '-'} {uri[:_MAX_URI_CHARS]}"


def _scheme(peer: Peer) -> str:
    return "wss" if peer.tls else "ws"
