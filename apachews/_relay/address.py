"""The address of a relay: a URL of redis-py or nats-py, with a few forms of our own.

Contract: sans-I/O; ``parse`` imports neither ``redis`` nor ``nats``.

=================================================  ===========================================
``redis://user:password@host:6379/0``              one server; ``rediss://``: with TLS
``unix:///run/redis/redis.sock?db=0``              one server by its socket
``redis+sentinel://h1:26379,h2:26379/mymaster/0``  the master that these Sentinels name
``redis+cluster://host:6379``                      a cluster, of which this is one node
``nats://user:password@host:4222,host2:4222``      NATS; ``tls://``: with TLS
=================================================  ===========================================

The parameter ``name`` is the relay's name; all others are redis-py's (``socket_timeout=5``,
``ssl_ca_certs=…``).
"""

from __future__ import annotations

import urllib.parse
from typing import Final, NamedTuple

from apachews.exceptions import RelayError

_SCHEMES: Final = ("redis", "rediss", "unix")
_SENTINEL_PORT: Final = 26379


class Address(NamedTuple):
    """Where a broker is.

    Attributes:
        kind: ``server``, ``sentinel`` or ``cluster``, of Redis; or ``nats``.
        url: for the client library; of a Sentinel: only user, password, database and parameters
            count; of NATS: several, with commas between them.
        shown: for messages, without user and password.
        name: the relay's name, or None.
        hosts: of the Sentinels.
        service: the name of the master that the Sentinels watch.
    """

    kind: str
    url: str
    shown: str
    name: str | None
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""


def is_relay(path: str) -> bool:
    """Return whether it is the address of a relay, and not the path of a socket file."""
    return "://" in path


def parse(url: str) -> Address:
    """Read an address.

    Raises:
        RelayError: an unknown scheme, or a part that is missing.
    """
    shown = without_password(url)
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # its text has the login
        parts = None
    if parts is None or _has_login_after_host(parts) or not _has_ports(parts):
        # An unescaped / ? or # ends the host before the @.  The text may be a part of a password.
        raise RelayError(
            shown,
            "not a host and a port",
            "use redis://user:password@host:6379/0, with %2F, %3F, %23 and %40 for / ? # and @",
        ) from None
    scheme, _, kind = parts.scheme.partition("+")
    if parts.scheme in ("nats", "tls"):
        return _parse_nats(parts, shown)
    if scheme not in _SCHEMES or kind not in ("", "sentinel", "cluster"):
        raise RelayError(
            shown,
            "unknown scheme",
            "expected redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// or nats://",
        )
    query = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    name = dict(query).get("name")
    rest = urllib.parse.urlencode([pair for pair in query if pair[0] != "name"])
    plain = parts._replace(scheme=scheme, query=rest)
    if kind == "sentinel":
        return _parse_sentinel(plain, shown, name)
    if scheme == "unix" and (kind or not parts.path):
        raise RelayError(shown, "no path of a socket", "use unix:///run/redis/redis.sock")
    if scheme != "unix" and not parts.hostname:
        raise RelayError(shown, "no host", "use redis://host:6379/0")
    return Address(kind or "server", _join(plain), shown, name)


def _parse_nats(parts: urllib.parse.SplitResult, shown: str) -> Address:
    login, at, netloc = parts.netloc.rpartition("@")
    query = dict(urllib.parse.parse_qsl(parts.query))
    if not netloc or set(query) - {"name"} or parts.path.strip("/"):
        raise RelayError(shown, "not an address of NATS", "use nats://host:4222?name=chat.ws")
    # Each server of a cluster gets the login.
    urls = [f"{parts.scheme}://{login}{at}{host}" for host in netloc.split(",")]
    return Address("nats", ",".join(urls), shown, query.get("name"))


def _parse_sentinel(parts: urllib.parse.SplitResult, shown: str, name: str | None) -> Address:
    login, _, netloc = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    hosts = []
    for item in netloc.split(","):
        host, _, port = item.rpartition(":") if ":" in item else (item, "", "")
        if not host:
            raise RelayError(shown, "no host", "use redis+sentinel://host:26379,host2/master")
        hosts.append((host, int(port or _SENTINEL_PORT)))
    if not service:
        raise RelayError(
            shown, "no name of the master", "use redis+sentinel://host:26379/mymaster/0"
        )
    url = _join(
        parts._replace(netloc=f"{login}@localhost" if login else "localhost", path=f"/{database}")
    )
    return Address("sentinel", url, shown, name, tuple(hosts), service)


def _has_login_after_host(parts: urllib.parse.SplitResult) -> bool:
    """Return whether an @ stands after the host, and not in the value of a parameter."""
    if parts.scheme == "unix":
        return False  # a path, which may have one
    names = [name for name, _ in urllib.parse.parse_qsl(parts.query, keep_blank_values=True)]
    return "@" in "".join([parts.path, parts.fragment, *names])


def _has_ports(parts: urllib.parse.SplitResult) -> bool:
    """Return whether each host has a port that is a number, or none."""
    for item in parts.netloc.rpartition("@")[2].split(","):
        try:
            _ = urllib.parse.urlsplit(f"//{item}").port
        except ValueError:
            return False
    return True


def without_password(url: str) -> str:
    """Return the address for messages: parameters may contain passwords as well."""
    start, _, parameters = url.partition("?")
    scheme, separator, rest = start.partition("://")
    if not separator or not scheme.replace("+", "").isalnum():
        # Not an address; a login may stand in place of the scheme.
        return "…" if "@" in url else start
    if "@" in parameters:
        rest = "…"  # perhaps a password with a question mark
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _join(parts: urllib.parse.SplitResult) -> str:
    # Not urlunsplit(): it returns unix:/path, which redis-py does not accept.
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{query}"
