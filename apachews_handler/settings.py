"""What a site owner can set, per directory, with Apache's ``SetEnv``.

Contract: ``parse_settings(environ, definitions)`` gives a ``Settings`` or raises
``BadSetting``: there is no silent default for a value that cannot be read, nor
for a name that is misspelt.  Pure; called once a handshake.

``SetEnv`` may be in an .htaccess file, whose author owns one site and not the server.
``Define``, of the same names, is the server's configuration only: it fixes a setting for
all sites, and it alone sets what reaches beyond one (``server_only``).

``docs/reference/configuration.md`` has the same table for people; a test holds the two
against each other.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from apachews_handler.monitoring.close_log import (
    DEFAULT_FORMAT,
    BadFormat,
    CloseFormat,
    parse_format,
)
from apachews_handler.origins import normalise_origin

from .exceptions import BadSetting

PREFIX: Final = "APACHEWS_"

# Names and values of the server's ``Define`` directives.
Definitions = tuple[tuple[str, str], ...]

OFF: Final = "off"
# Words of APACHEWS_WIRE, APACHEWS_RAW_DELIMITER and APACHEWS_RAW_TYPE.
FRAMED: Final = "framed"
RAW: Final = "raw"
NEWLINE: Final = "newline"
AUTO: Final = "auto"
TEXT: Final = "text"
BINARY: Final = "binary"
_SIZE = re.compile(r"(\d{1,15})([KM]?)", re.ASCII | re.IGNORECASE)
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)", re.ASCII | re.IGNORECASE)
_RATE = re.compile(r"(\d{1,9})/([sm])", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
# RFC 9110 5.6.2
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_FACTORS: Final = {"": 1, "K": 1024, "M": 1024 * 1024}


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and so many more as the time goes by.

    Attributes:
        burst: how many may come at once.
        per_s: how many more each second allows.
    """

    burst: int
    per_s: float


def parse_size(text: str) -> int:
    """Return the bytes that ``65536``, ``64K`` or ``1M`` means; at least 1.

    Raises:
        ValueError
    """
    match = _SIZE.fullmatch(text)
    if not match or not int(match[1]):
        raise ValueError
    return int(match[1]) * _FACTORS[match[2].upper()]


def parse_buffer(text: str) -> int:
    """Return a size of 4 KiB to 16 MiB.

    Raises:
        ValueError
    """
    size = parse_size(text)
    if not 4096 <= size <= 16 * 1024 * 1024:
        raise ValueError
    return size


def parse_min_size(text: str) -> int:
    """Return a size that may be 0.

    Raises:
        ValueError
    """
    return 0 if text == "0" else parse_size(text)


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


def parse_optional_time(text: str) -> float:
    """Return the seconds, 0.0 for ``off``.

    Raises:
        ValueError
    """
    return 0.0 if text.lower() == OFF else parse_time(text)


def parse_count(text: str) -> int:
    """Return a number of 1 to 1048576, 0 for ``off``.

    Raises:
        ValueError
    """
    if text.lower() == OFF:
        return 0
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= 1 << 20:
        raise ValueError
    return int(text)


def parse_share(text: str) -> int:
    """Return a number of 1 to 1048576, 0 for ``auto``.

    Raises:
        ValueError
    """
    return 0 if text.lower() == AUTO else number_of(1, 1 << 20)(text)


def parse_rate(text: str) -> Rate | None:
    """Return the rate that ``50/s`` or ``600/m`` means, None for ``off``.

    Raises:
        ValueError
    """
    if text.lower() == OFF:
        return None
    match = _RATE.fullmatch(text)
    if not match or not int(match[1]):
        raise ValueError
    return Rate(int(match[1]), int(match[1]) / (60 if match[2].lower() == "m" else 1))


def parse_switch(text: str) -> bool:
    """Return what ``on`` or ``off`` means.

    Raises:
        ValueError
    """
    return {"on": True, OFF: False}[one_of("on", OFF)(text)]


def one_of(*words: str) -> Callable[[str], str]:
    """Return a parser for one of some words, in any case; it gives it in lower case."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError
        return text.lower()

    return parse


def number_of(least: int, most: int) -> Callable[[str], int]:
    """Return a parser for a number in a range, both ends included."""

    def parse(text: str) -> int:
        if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return parse


def parse_origins(text: str) -> tuple[str, ...]:
    """Return the origins in a list parted by blanks, normalised, or ``("*",)``.

    Raises:
        ValueError
    """
    if text.split() == ["*"]:
        return ("*",)
    return tuple(normalise_origin(item) for item in text.split())


def parse_subprotocols(text: str) -> tuple[str, ...]:
    """Return the tokens in a list parted by blanks or commas (RFC 6455 4.1, 10.).

    Raises:
        ValueError
    """
    names = tuple(text.replace(",", " ").split())
    if not names or len(set(names)) < len(names) or not all(map(_TOKEN.fullmatch, names)):
        raise ValueError
    return names


def parse_variables(text: str) -> tuple[str, ...]:
    """Return the names in a list parted by blanks.

    Raises:
        ValueError
    """
    names = tuple(text.split())
    if not names or not all(map(_VARIABLE.fullmatch, names)):
        raise ValueError
    return names


def parse_directory(text: str) -> str:
    """Return an absolute path as it is.

    Raises:
        ValueError
    """
    if not text.startswith("/") or "\0" in text:
        raise ValueError
    return text


def parse_directories(text: str) -> tuple[str, ...]:
    """Return the absolute paths in a list separated by blanks, as they are.

    Raises:
        ValueError
    """
    if not text.split():
        raise ValueError
    return tuple(parse_directory(item) for item in text.split())


def parse_log(text: str) -> str:
    """Return the absolute path of a log as it is.

    Raises:
        ValueError: also for a name that does not end in .log, which a web server or an
            interpreter could take for a program.
    """
    if not text.endswith(".log"):
        raise ValueError
    return parse_directory(text)


_SIZES: Final = "a number of bytes of at least 1, with K or M for 1024 or 1048576 times as many"
_TIMES: Final = "a time of at least 1ms with its unit, as 500ms or 5s"
_OPTIONAL_TIMES: Final = "a time of at least 1ms with its unit, as 500ms or 20s, or off"
_COUNTS: Final = "a number of 1 to 1048576, or off"
_SWITCH: Final = "on or off"


def _setting(
    default: Any,
    parse: Callable[[str], Any],
    allowed: str,
    protects: str,
    *,
    server_only: bool = False,
) -> Any:
    return dataclasses.field(
        default=default,
        metadata={
            "parse": parse,
            "allowed": allowed,
            "protects": protects,
            "server_only": server_only,
        },
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one directory, with their defaults.

    Sizes are bytes, times seconds; 0 stands for off where off is allowed.

    Attributes:
        max_message: longest message a client may send; a longer one closes with
            1009.
        max_buffer: what is held of one direction of one connection before its
            sender is not read any more.
        message_rate: messages, pings and pongs of one client; more close with
            1008.  None: as many as it likes.
        max_connections, max_connections_per_address, max_connections_per_endpoint:
            more are refused, with 503, 429, 503.
        ping_interval: how long nothing may come from a client before it is sent
            a PING; ping_timeout: how long nothing may come after that.
        idle_timeout: how long no message may pass, either way.
        send_timeout: how long a client may take none of what waits for it.
        connect_timeout: to wait for a producer whose backlog is full, and for
            its answer.
        max_waiting: handshakes of one endpoint that may wait at a time; 0 for ``auto``.
        close_timeout: what a client has to answer a CLOSE and to go.
        hold: how long a client is kept whose producer is gone, until there is
            another one.
        drain_rate: how many clients a process sends away in a second, where it
            must send all of them away.  None: all at once.
        custodian_age: how long a client stays with custodians after its child of Apache
            was replaced.
        max_custodians: how many such processes there may be; of more, those with the
            fewest clients close them.
        origins: origins allowed besides the site's own; ``("*",)`` for all.
        require_origin: refuse requests without one.
        forwarded: header in which a proxy says how the client sees the site:
            ``off``, ``forwarded`` or ``x-forwarded``.
        subprotocols: those that may be chosen, best first.
        accept: who decides on a connection: ``bridge`` or ``producer``.
        pass_env: names of variables the producer is told.
        wire: what crosses the socket: ``framed`` (docs/reference/wire.md) or ``raw``.
        raw_delimiter: with ``raw``, what ends a message: ``off`` (a read) or ``newline``.
        raw_type: with ``raw``, of the producer's messages: ``auto`` (text where it is
            UTF-8), ``text`` or ``binary``.
        deflate: whether permessage-deflate is negotiated, and its options.
        close_log: file that gets a line for each connection that has closed; "" for none.
            It lies inside log_directory.
        close_log_format: of that line.
        log_directory: the only one in which Apache's user writes logs of closes.
        endpoint_directories: those whose sockets any symbolic link may lead to.
        root: where ``WSGIScriptAlias`` looks for sockets; "" for nowhere.
    """

    max_message_bytes: int = _setting(1024 * 1024, parse_size, _SIZES, "memory of the producer")
    max_buffer_bytes: int = _setting(64 * 1024, parse_buffer, "4K to 16M", "memory of Apache")
    message_rate: Rate | None = _setting(  # noqa: RUF009  # a field, as the others are
        None,
        parse_rate,
        "a number of messages each second or minute, as 50/s or 600/m, or off",
        "the producer's time",
    )
    max_connections: int = _setting(0, parse_count, _COUNTS, "descriptors and memory")
    max_connections_per_address: int = _setting(
        0, parse_count, _COUNTS, "the other clients' share of them"
    )
    max_connections_per_endpoint: int = _setting(
        0, parse_count, _COUNTS, "the other producers' share of them"
    )
    ping_interval_s: float = _setting(
        20.0, parse_optional_time, _OPTIONAL_TIMES, "connections through routers that forget"
    )
    ping_timeout_s: float = _setting(
        20.0, parse_optional_time, _OPTIONAL_TIMES, "descriptors, from clients that are gone"
    )
    idle_timeout_s: float = _setting(
        0.0, parse_optional_time, _OPTIONAL_TIMES, "descriptors, from clients that say nothing"
    )
    send_timeout_s: float = _setting(
        30.0, parse_optional_time, _OPTIONAL_TIMES, "buffers, from clients that do not read"
    )
    connect_timeout_s: float = _setting(5.0, parse_time, _TIMES, "Apache's workers")
    max_waiting: int = _setting(
        0,
        parse_share,
        "a number of 1 to 1048576, or auto",
        "Apache's workers",
        server_only=True,
    )
    close_timeout_s: float = _setting(10.0, parse_time, _TIMES, "descriptors and memory of Apache")
    hold_s: float = _setting(
        30.0, parse_optional_time, _OPTIONAL_TIMES, "clients, from a producer that restarts"
    )
    drain_rate: Rate | None = _setting(  # noqa: RUF009  # a field, as the others are
        Rate(1000, 1000.0),
        parse_rate,
        "a number of clients each second or minute, as 500/s or 600/m, or off",
        "Apache and the producers, from clients that all come back at once",
    )
    custodian_age_s: float = _setting(
        86400.0, parse_optional_time, _OPTIONAL_TIMES, "memory, from children of long ago"
    )
    max_custodians: int = _setting(256, parse_count, _COUNTS, "memory and processes")
    origins: tuple[str, ...] = _setting(
        (),
        parse_origins,
        "* or a list of origins parted by blanks, as https://example.org",
        "users of other sites' pages",
    )
    require_origin: bool = _setting(
        False, parse_switch, _SWITCH, "producers, from programs other than browsers"
    )
    forwarded: str = _setting(
        OFF,
        one_of(OFF, "forwarded", "x-forwarded"),
        "off, Forwarded or X-Forwarded",
        "the origin check, from headers that no proxy of yours wrote",
    )
    subprotocols: tuple[str, ...] = _setting(
        (), parse_subprotocols, "a list of names parted by blanks, best first", "nothing"
    )
    accept: str = _setting(
        "bridge",
        one_of("bridge", "producer"),
        "bridge or producer",
        "decisions that only the producer can make",
    )
    pass_env: tuple[str, ...] = _setting(
        (), parse_variables, "a list of names of variables parted by blanks", "nothing"
    )
    wire: str = _setting(FRAMED, one_of(FRAMED, RAW), "framed or raw", "nothing")
    raw_delimiter: str = _setting(OFF, one_of(OFF, NEWLINE), "off or newline", "nothing")
    raw_type: str = _setting(AUTO, one_of(AUTO, TEXT, BINARY), "auto, text or binary", "nothing")
    deflate: bool = _setting(True, parse_switch, _SWITCH, "bandwidth, for processor and memory")
    deflate_min_size_bytes: int = _setting(
        256, parse_min_size, "0 or " + _SIZES, "processor, from messages that do not shrink"
    )
    deflate_level: int = _setting(3, number_of(1, 9), "1 (fastest) to 9 (smallest)", "processor")
    deflate_window_bits: int = _setting(
        12, number_of(9, 15), "9 (least memory) to 15 (smallest)", "memory of Apache"
    )
    deflate_context_takeover: bool = _setting(
        True, parse_switch, _SWITCH, "bandwidth; off: memory of Apache"
    )
    close_log: str = _setting(
        "", parse_log, "the absolute path of a file whose name ends in .log", "nothing"
    )
    close_log_format: CloseFormat = _setting(  # noqa: RUF009  # a field, as the others are
        CloseFormat(DEFAULT_FORMAT),
        parse_format,
        "text and directives as LogFormat's, those that docs/reference/configuration.md lists",
        "nothing",
    )
    log_directory: str = _setting(
        "",
        parse_directory,
        "an absolute path",
        "files that Apache's user may write",
        server_only=True,
    )
    endpoint_directories: tuple[str, ...] = _setting(
        (),
        parse_directories,
        "a list of absolute paths separated by blanks",
        "sockets of other sites and services",
        server_only=True,
    )
    root: str = _setting("", parse_directory, "an absolute path", "files outside it")


def _variable(field: str) -> str:
    """Return the name of the variable of a field: without the unit, which its value has."""
    return PREFIX + field.removesuffix("_bytes").removesuffix("_s").upper()


# Name of the variable -> field.
FIELDS: Final = {_variable(field.name): field for field in dataclasses.fields(Settings)}


def parse_settings(environ: Mapping[str, Any], definitions: Definitions = ()) -> Settings:
    """Return the settings in a request's variables and the server's definitions.

    Args:
        environ: of the request.
        definitions: of the server's configuration; their names are settings.

    Raises:
        BadSetting: a value that is not allowed, alone or with the others; a name that
            is unknown, or that only the server's configuration may set, or has fixed.
    """
    return _parse(
        tuple([setting for setting in environ.items() if setting[0].startswith(PREFIX)]),
        definitions,
    )


# Mostly a site has few sets of them, and its connections have one object each in common;
# bounded, because SetEnvIf can make many.
@functools.lru_cache(maxsize=256)
def _parse(variables: tuple[tuple[str, str], ...], definitions: Definitions) -> Settings:
    values = {FIELDS[name].name: _value(name, value, "Define") for name, value in definitions}
    fixed = dict(definitions)
    for name, value in variables:
        field = FIELDS.get(name)
        if field is None:
            raise BadSetting(name, value, "one of the names " + ", ".join(sorted(FIELDS)))
        if field.metadata["server_only"]:
            allowed = f"Define {name} instead, in the server's configuration"
            raise BadSetting(name, value, allowed)
        parsed = _value(name, value, "SetEnv")
        if values.setdefault(field.name, parsed) != parsed:
            allowed = f"{fixed[name]!r}: the server's configuration has Define {name} {fixed[name]}"
            raise BadSetting(name, value, allowed)
    settings = Settings(**values)
    if settings.wire == RAW and settings.accept == "producer":
        allowed = "bridge, where APACHEWS_WIRE is raw: such a producer cannot answer"
        raise BadSetting(f"{PREFIX}ACCEPT", settings.accept, allowed)
    if settings.close_log and not _is_inside(settings.close_log, settings.log_directory):
        allowed = (
            "a file in the directory that the server's configuration names:"
            f" Define {PREFIX}LOG_DIRECTORY {settings.log_directory or '/var/log/apachews'}"
        )
        raise BadSetting(f"{PREFIX}CLOSE_LOG", settings.close_log, allowed)
    return settings


def _value(name: str, text: str, directive: str) -> Any:
    """Return the value of a setting.

    Raises:
        BadSetting
    """
    metadata = FIELDS[name].metadata
    try:
        return metadata["parse"](text.strip())
    except ValueError as error:
        allowed = metadata["allowed"]
        if isinstance(error, BadFormat):
            allowed = f"{allowed}; {error}"
        raise BadSetting(name, text, allowed, directive) from error


def _is_inside(path: str, directory: str) -> bool:
    """Tell whether a path is, by its text, that of a file below a directory."""
    base = directory.rstrip("/") + "/"
    parts = path[len(base) :].split("/")
    return bool(directory) and path.startswith(base) and not {"", ".", ".."} & set(parts)
