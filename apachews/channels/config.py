"""The configuration of channels: namespaces, who may do what, tokens, the HTTP API.

Contract: ``Config()`` works without a file; ``load`` reads one in TOML.  Every error names the
file, the key, and what is expected.

A channel is a name; the part before a colon is its namespace: ``chat:room`` is of ``chat``, and
``news`` of the default one.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import stat
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from apachews.exceptions import ApachewsError

_logger: Final = logging.getLogger("apachews")

# Who may do something in a channel.
RIGHTS: Final = ("all", "user", "token", "subscriber", "proxy")
_TABLES: Final = ("default", "namespaces", "tokens", "api", "proxy")


class ConfigError(ApachewsError):
    """The configuration cannot be used: the text says what is wrong, and where."""


class UnknownNamespace(ApachewsError):
    """A channel is of no namespace of the configuration."""


@dataclass(frozen=True)
class Namespace:
    """The options of the channels of a namespace.

    The last four are sets of: ``all``; ``user``, a client with an identity; ``token``, who
    presents a token for the channel; ``subscriber``, who is subscribed to it; and, for the first
    two, ``proxy``, whom a URL of the site permits.

    Attributes:
        history_size: number of messages that a channel keeps for clients that come back; 0: none.
        history_seconds: how long it keeps them.
        presence: clients may ask who is subscribed.
        join_leave: subscribers are told who comes and goes.
        subscribe: who may subscribe.
        publish: who may publish; the programs of the site always may.
        history: who may ask for the history.
        see_presence: who may ask for the presence.
    """

    history_size: int = 0
    history_seconds: float = 300.0
    presence: bool = False
    join_leave: bool = False
    subscribe: frozenset[str] = frozenset({"all"})
    publish: frozenset[str] = frozenset()
    history: frozenset[str] = frozenset({"subscriber"})
    see_presence: frozenset[str] = frozenset({"subscriber"})


@dataclass(frozen=True)
class TokenRules:
    """How tokens (JWT) are checked: with a secret, or with a public key.

    Attributes:
        secret: of HMAC: HS256, HS384, HS512; at least 32 bytes.
        secret_file: a file with it, without the newline at its end.
        public_key_file: a PEM file, for RS256 to RS512 or ES256 to ES512.
        algorithms: those that are accepted.
        audience: required as ``aud``; "": any.
        issuer: required as ``iss``; "": any.
    """

    secret: str = field(default="", repr=False)
    secret_file: str = ""
    public_key_file: str = ""
    algorithms: frozenset[str] = frozenset({"HS256"})
    audience: str = ""
    issuer: str = ""


@dataclass(frozen=True)
class ApiRules:
    """Who may use the HTTP API: programs that know a key.

    Attributes:
        key: at least 16 characters.
        key_file: a file with it, without the newline at its end.
    """

    key: str = field(default="", repr=False)
    key_file: str = ""


@dataclass(frozen=True)
class ProxyRules:
    """URLs of the site, which decide.

    Attributes:
        connect: who a client without a token is; "": it is not asked.
        subscribe, publish: whether a client may, in namespaces with the right ``proxy``.
        rpc: answers calls.
        timeout_seconds: of the network.
        headers: those of the client's handshake that are passed on, names in any case.
    """

    connect: str = ""
    subscribe: str = ""
    publish: str = ""
    rpc: str = ""
    timeout_seconds: float = 5.0
    headers: frozenset[str] = frozenset({"cookie"})


@dataclass(frozen=True)
class Config:
    """The configuration of a producer of channels.

    Attributes:
        default: of channels without a namespace; None: they do not exist.
        namespaces: of all others.
        tokens: how tokens are checked; None: tokens are rejected.
        proxy: URLs of the site that decide; None: it is not asked.
        api: who may use the HTTP API; None: it is off.
        anonymous: clients without a token and without a login may connect.
        ping_seconds: the interval of pings.
        pong_seconds: the time limit for their answers.
        max_channels: number of channels of one client.
        max_channel_length: of a channel's name, in characters.
    """

    default: Namespace | None = field(default_factory=lambda: Namespace(history_size=100))
    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    tokens: TokenRules | None = None
    proxy: ProxyRules | None = None
    api: ApiRules | None = None
    anonymous: bool = True
    ping_seconds: float = 25.0
    pong_seconds: float = 8.0
    max_channels: int = 128
    max_channel_length: int = 255

    def namespace(self, channel: str) -> Namespace:
        """Return the namespace of a channel.

        Raises:
            UnknownNamespace: the configuration has none for it.
        """
        name, colon, _ = channel.partition(":")
        found = self.namespaces.get(name) if colon else self.default
        if found is None:
            raise UnknownNamespace(f"{channel!r:.80}: no namespace")
        return found

    @property
    def needs_presence(self) -> bool:
        """Whether a namespace has presence, or tells who comes and goes."""
        every = [*self.namespaces.values(), *([self.default] if self.default else [])]
        return any(one.presence or one.join_leave for one in every)


def load(path: str | os.PathLike[str]) -> Config:
    """Read a file in TOML.

    Raises:
        ConfigError: it cannot be read, or a key or value is invalid.
    """
    name = os.fspath(path)
    try:
        document = _toml().loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error
    tables = {key: document.pop(key, None) for key in _TABLES}
    values = _values(Config, document, name, "")
    if tables["default"] is not None:
        values["default"] = _read(Namespace, tables["default"], name, "default")
    elif tables["namespaces"]:
        values["default"] = None
    values["namespaces"] = {
        key: _read(Namespace, table, name, f"namespaces.{key}")
        for key, table in _table(tables["namespaces"] or {}, name, "namespaces").items()
    }
    if tables["tokens"] is not None:
        values["tokens"] = _read(TokenRules, tables["tokens"], name, "tokens")
        if values["tokens"].secret:
            warn_if_others_can_read(name)
    if tables["proxy"] is not None:
        values["proxy"] = _read(ProxyRules, tables["proxy"], name, "proxy")
    if tables["api"] is not None:
        values["api"] = _read(ApiRules, tables["api"], name, "api")
        if values["api"].key:
            warn_if_others_can_read(name)
    return Config(**values)


def warn_if_others_can_read(path: str) -> None:
    """Log a warning if every user of the machine can read a file that has a secret."""
    if os.stat(path).st_mode & stat.S_IROTH:
        _logger.warning("%s: other users can read its secret; run: chmod o-r %s", path, path)


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    try:
        import tomli
    except ImportError as error:
        raise ConfigError(
            "a configuration file needs Python 3.11, or tomli: pip install 'apachews[channels]'"
        ) from error
    return tomli


def _read(kind: type, table: object, file: str, place: str) -> Any:
    return kind(**_values(kind, _table(table, file, place), file, place))


def _table(value: object, file: str, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {place}{_shown(value, place)}: expected a table, [{place}]")
    return value


def _values(kind: type, table: dict[str, Any], file: str, place: str) -> dict[str, Any]:
    """Return the values of a table for the fields of a class."""
    types = typing.get_type_hints(kind)
    known = {one.name for one in dataclasses.fields(kind)} - {*_TABLES}
    values = {}
    for key, value in table.items():
        where = f"{file}: {place}{'.' if place else ''}{key}"
        if key not in known:
            raise ConfigError(f"{where}: unknown; expected one of {', '.join(sorted(known))}")
        values[key] = _value(types[key], value, where)
    return values


def _value(kind: Any, value: object, where: str) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int and type(value) is int and value >= 0:
        return value
    if kind is float and is_number and 1 <= value < math.inf:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    if kind is str and isinstance(value, str):
        return value
    if kind == frozenset[str]:
        items = value if isinstance(value, list) else [value]
        # The algorithms depend on the key; tokens.py checks them.
        is_free = where.endswith((".algorithms", ".headers"))
        rights = RIGHTS if where.endswith((".subscribe", ".publish")) else RIGHTS[:-1]
        are_texts = all(isinstance(item, str) for item in items)
        if are_texts and (is_free or {*items} <= {*rights}):
            return frozenset(items)
        of = "names" if is_free else ", ".join(rights)
        raise ConfigError(f"{where} = {value!r:.80}: expected of {of}")
    expected = {bool: "true or false", int: "a number, 0 or more", float: "a number, 1 or more"}
    raise ConfigError(f"{where}{_shown(value, where)}: expected {expected.get(kind, 'a text')}")


def _shown(value: object, where: str) -> str:
    """Return a value for a message; "" for one that may have the secret."""
    is_secret = where in ("tokens", "api") or where.endswith((".secret", ".key"))
    return "" if is_secret else f" = {value!r:.80}"
