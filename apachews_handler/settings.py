"""What a site owner can set, per directory, with Apache's ``SetEnv``.

Contract: ``parse_settings(environ)`` gives a ``Settings`` or raises
``BadSetting``: there is no silent default for a value that cannot be read, nor
for a name that is misspelt.  Pure; called once a handshake.

``docs/configuration.md`` has the same table for people; a test holds the two
against each other.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from .exceptions import BadSetting

PREFIX: Final = "APACHEWS_"

_SIZE = re.compile(r"(\d{1,15})([KM]?)", re.ASCII | re.IGNORECASE)
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)", re.ASCII | re.IGNORECASE)
_FACTORS: Final = {"": 1, "K": 1024, "M": 1024 * 1024}


def parse_size(text: str) -> int:
    """Return the bytes that ``65536``, ``64K`` or ``1M`` means; at least 1.

    Raises:
        ValueError
    """
    match = _SIZE.fullmatch(text)
    if not match or not int(match[1]):
        raise ValueError
    return int(match[1]) * _FACTORS[match[2].upper()]


def parse_time(text: str) -> float:
    """Return the seconds that ``500ms``, ``5s`` or ``1.5s`` means; at least 1 ms.

    Raises:
        ValueError
    """
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError
    seconds = float(match[1]) / (1000 if match[2].lower() == "ms" else 1)
    if seconds < 0.001:
        raise ValueError
    return seconds


def parse_origins(text: str) -> tuple[str, ...]:
    """Return the origins in a list parted by blanks, normalised, or ``("*",)``.

    Raises:
        ValueError
    """
    if text.split() == ["*"]:
        return ("*",)
    return tuple(normalise_origin(item) for item in text.split())


def normalise_origin(text: str) -> str:
    """Return an origin in lower case and without the default port (RFC 6454 6.2).

    Raises:
        ValueError: no scheme and host, or more than these and a port.
    """
    parts = urlsplit(text)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.path
        or parts.query
        or parts.fragment
        or parts.username is not None
    ):
        raise ValueError
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = 443 if parts.scheme == "https" else 80
    port = "" if parts.port in (None, default) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def parse_directory(text: str) -> str:
    """Return an absolute path as it is.

    Raises:
        ValueError
    """
    if not text.startswith("/") or "\0" in text:
        raise ValueError
    return text


_SIZES: Final = "a number of bytes of at least 1, with K or M for 1024 or 1048576 times as many"
_TIMES: Final = "a time of at least 1ms with its unit, as 500ms or 5s"


def _setting(default: Any, parse: Callable[[str], Any], allowed: str, protects: str) -> Any:
    return dataclasses.field(
        default=default, metadata={"parse": parse, "allowed": allowed, "protects": protects}
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one directory, with their defaults.

    Attributes:
        max_message: longest message a client may send, bytes; a longer one
            closes with 1009.
        origins: origins allowed besides the site's own; ``("*",)`` for all.
        connect_timeout: seconds to wait for a producer whose backlog is full.
        close_timeout: seconds a client has to answer a CLOSE and to go.
        root: where ``WSGIScriptAlias`` looks for sockets; "" for nowhere.
    """

    max_message: int = _setting(1024 * 1024, parse_size, _SIZES, "memory of bridge and producer")
    origins: tuple[str, ...] = _setting(
        (),
        parse_origins,
        "* or a list of origins parted by blanks, as https://example.org",
        "users of other sites' pages",
    )
    connect_timeout: float = _setting(5.0, parse_time, _TIMES, "Apache's workers")
    close_timeout: float = _setting(10.0, parse_time, _TIMES, "descriptors and memory of Apache")
    root: str = _setting("", parse_directory, "an absolute path", "files outside it")


# Name of the variable -> field.
FIELDS: Final = {PREFIX + field.name.upper(): field for field in dataclasses.fields(Settings)}


def parse_settings(environ: Mapping[str, Any]) -> Settings:
    """Return the settings in a request's variables.

    Raises:
        BadSetting: a value that is not allowed, or a name that is no setting.
    """
    values = {}
    for name, value in environ.items():
        if not name.startswith(PREFIX):
            continue
        field = FIELDS.get(name)
        if field is None:
            raise BadSetting(name, value, "one of the names " + ", ".join(sorted(FIELDS)))
        try:
            values[field.name] = field.metadata["parse"](value.strip())
        except ValueError as error:
            raise BadSetting(name, value, field.metadata["allowed"]) from error
    return Settings(**values)
