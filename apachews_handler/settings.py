"""The settings of a site, which its owner makes per directory with Apache's ``SetEnv``.

Contract: ``parse_settings(environ, definitions)`` returns a ``Settings`` or raises
``BadSetting``: an invalid value or a misspelt name never becomes a silent default.
Pure; called once per handshake.

``SetEnv`` may be in an .htaccess file, whose author owns one site and not the server.
``Define``, with the same names, can only be in the server's configuration: it fixes a setting
for all sites, and it alone can make the settings that reach beyond one site (``server_only``).

``docs/reference/configuration.md`` has the same table for users; a test compares the two.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from apachews_handler.monitoring.close_log import (
    DEFAULT_FORMAT,
    BadFormat,
    CloseFormat,
    parse_format,
)

from .backends import parse_backends
from .exceptions import BadSetting
from .setting_values import (
    AUTO,
    OFF,
    Rate,
    number_of,
    one_of,
    parse_buffer,
    parse_cookie,
    parse_count,
    parse_directories,
    parse_directory,
    parse_expiry_code,
    parse_header,
    parse_headers,
    parse_log,
    parse_min_size,
    parse_optional_time,
    parse_origins,
    parse_rate,
    parse_share,
    parse_size,
    parse_subprotocols,
    parse_switch,
    parse_time,
    parse_variable,
    parse_variables,
)

PREFIX: Final = "APACHEWS_"

# Names and values of the server's ``Define`` directives.
Definitions = tuple[tuple[str, str], ...]

# Words of APACHEWS_WIRE, APACHEWS_RAW_DELIMITER and APACHEWS_RAW_TYPE.
FRAMED: Final = "framed"
RAW: Final = "raw"
NEWLINE: Final = "newline"
TEXT: Final = "text"
BINARY: Final = "binary"
# Words of APACHEWS_TICKET.
ACCEPTED: Final = "accepted"
REQUIRED: Final = "required"
# Words of APACHEWS_TUNNEL.
FRAMES: Final = "frames"
OPAQUE: Final = "opaque"
# What ``Settings.wire`` is for a tunnel whose bytes are frames (``for_tunnel``).
TUNNEL: Final = "tunnel"
_SIZES: Final = "a number of bytes of at least 1, with K or M for 1024 or 1048576 times as many"
_TIMES: Final = "a time of at least 1ms with its unit, as 500ms or 5s"
_OPTIONAL_TIMES: Final = "a time of at least 1ms with its unit, as 500ms or 20s, or off"
_COUNTS: Final = "a number of 1 to 1048576, or off"
_SWITCH: Final = "on or off"
_HEADERS: Final = (
    "names of headers, of letters, digits, hyphens and underscores, separated by blanks; an"
    " asterisk at the end of a name stands for any end"
)


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

    The names have the units; 0 means off if off is allowed.

    Attributes:
        max_message_bytes: longest message a client may send; a longer one closes with
            1009.
        max_buffer_bytes: limit of the buffer of one direction of one connection; at the limit
            the bridge stops reading from the sender.
        message_rate: messages, pings and pongs of one client; more close with
            1008.  None: no limit.
        max_connections, max_connections_per_address, max_connections_per_endpoint:
            more are refused, with 503, 429, 503.
        ping_interval_s: how long a client may be silent before the bridge sends a PING.
        ping_timeout_s: how long it may be silent after that PING.
        idle_timeout_s: how long a connection may be without a message, in either direction.
        max_age_s: how long a connection may live; up to a tenth less for some.
        expires: the variable that has the time at which the client's login ends; "": none.
        expiry_code: of the CLOSE for both.
        ticket: whether a WebSocket may, or must, present a ticket.
        ticket_for: the socket file for which the location gives tickets; "": none.
        api_for: the socket file of the channels whose HTTP API the location is; "": none.
        send_timeout_s: how long a client may read nothing while data waits for it.
        connect_timeout_s: how long to wait for a producer whose backlog is full, and for
            its answer.
        max_waiting: handshakes of one endpoint that may wait at a time; 0 for ``auto``.
        close_timeout_s: how long a client has to answer a CLOSE and to close the connection.
        hold_s: how long a client is kept without a producer, until another one listens.
        drain_rate: how many clients a process closes per second when it must close all of
            them.  None: all at once.
        custodian_age_s: how long a client stays with custodians after its child of Apache
            was replaced.
        max_custodians: how many custodians there may be; of more, those with the
            fewest clients close them.
        origins: origins allowed besides the site's own; ``("*",)`` for all.
        require_origin: refuse requests without an Origin.
        forwarded: the header in which a proxy sends the site's scheme and host:
            ``off``, ``forwarded`` or ``x-forwarded``.
        subprotocols: those that may be chosen, best first.
        accept: which program accepts a connection: ``bridge`` or ``producer``.
        pass_env: names of variables that OPEN has.
        wire: the format on the socket: ``framed`` (docs/reference/wire.md) or ``raw``.
        raw_delimiter: with ``raw``, what ends a message: ``off`` (a read) or ``newline``.
        raw_type: with ``raw``, of the producer's messages: ``auto`` (text if it is
            UTF-8), ``text`` or ``binary``.
        deflate: whether permessage-deflate is negotiated; ``deflate_…`` are its options.
        close_log: file that gets a line for each connection that has closed; "" for none.
            It lies inside log_directory.
        close_log_format: of that line.
        log_directory: the only one in which Apache's user writes logs of closes.
        endpoint_directories: those whose sockets any symbolic link may lead to.
        backend: the addresses of the WebSocket servers that a tunnel leads to
            (``backends.Backend``); empty if it is not set.
        backend_cookie: the cookie that selects one of several addresses; "" for none.
        backend_timeout_s: how long its answer to a handshake may take in all.
        tunnel: what passes after the handshake: ``frames`` of RFC 6455, or ``opaque`` bytes.
        user_header: the header that tells a backend the user.
        drop_headers: further headers of clients that a backend does not get; lower case, with
            an asterisk for any end.
        pass_headers: headers that Apache sets itself and a backend gets, spelled likewise.
        root: the directory of the sockets of a ``WSGIScriptAlias``; "" if it is not set.
    """

    max_message_bytes: int = _setting(1024 * 1024, parse_size, _SIZES, "memory of the producer")
    max_buffer_bytes: int = _setting(64 * 1024, parse_buffer, "4K to 16M", "memory of Apache")
    message_rate: Rate | None = _setting(  # noqa: RUF009  # a field like the others
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
        20.0, parse_optional_time, _OPTIONAL_TIMES, "connections through routers with idle timeouts"
    )
    ping_timeout_s: float = _setting(
        20.0, parse_optional_time, _OPTIONAL_TIMES, "descriptors, from clients that are gone"
    )
    idle_timeout_s: float = _setting(
        0.0, parse_optional_time, _OPTIONAL_TIMES, "descriptors, from idle clients"
    )
    max_age_s: float = _setting(
        0.0, parse_optional_time, _OPTIONAL_TIMES, "decisions of the login, from old connections"
    )
    expires: str = _setting(
        "",
        parse_variable,
        "the name of a variable of Apache that has the time at which the login ends",
        "decisions of the login, from connections that outlive it",
    )
    expiry_code: int = _setting(
        1008, parse_expiry_code, "1000, 1001, 1008, 1012, 1013 or 3000 to 4999", "nothing"
    )
    ticket: str = _setting(
        OFF, one_of(OFF, ACCEPTED, REQUIRED), "off, accepted or required", "the producer's users"
    )
    ticket_for: str = _setting("", parse_directory, "the absolute path of a socket file", "nothing")
    api_for: str = _setting("", parse_directory, "the absolute path of a socket file", "nothing")
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
    drain_rate: Rate | None = _setting(  # noqa: RUF009  # a field like the others
        Rate(1000, 1000.0),
        parse_rate,
        "a number of clients each second or minute, as 500/s or 600/m, or off",
        "Apache and the producers, from clients that all reconnect at once",
    )
    custodian_age_s: float = _setting(
        86400.0, parse_optional_time, _OPTIONAL_TIMES, "memory, from old children of Apache"
    )
    max_custodians: int = _setting(256, parse_count, _COUNTS, "memory and processes")
    origins: tuple[str, ...] = _setting(
        (),
        parse_origins,
        "* or a list of origins separated by blanks, as https://example.org",
        "users of other sites' pages",
    )
    require_origin: bool = _setting(
        False, parse_switch, _SWITCH, "producers, from programs other than browsers"
    )
    forwarded: str = _setting(
        OFF,
        one_of(OFF, "forwarded", "x-forwarded"),
        "off, Forwarded or X-Forwarded",
        "the origin check, from headers that clients forge",
    )
    subprotocols: tuple[str, ...] = _setting(
        (), parse_subprotocols, "a list of names separated by blanks, best first", "nothing"
    )
    accept: str = _setting(
        "bridge",
        one_of("bridge", "producer"),
        "bridge or producer",
        "decisions that only the producer can make",
    )
    pass_env: tuple[str, ...] = _setting(
        (), parse_variables, "a list of names of variables separated by blanks", "nothing"
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
    close_log_format: CloseFormat = _setting(  # noqa: RUF009  # a field like the others
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
    backend: tuple[str, ...] = _setting(
        (),
        parse_backends,
        "http://HOST:PORT, http://HOST:PORT/PATH or unix:/PATH|http://HOST/PATH, or several,"
        " separated by blanks; a backend with TLS (https) is not supported",
        "nothing",
    )
    backend_cookie: str = _setting("", parse_cookie, "the name of a cookie", "nothing")
    backend_timeout_s: float = _setting(30.0, parse_time, _TIMES, "Apache's workers")
    tunnel: str = _setting(FRAMES, one_of(FRAMES, OPAQUE), "frames or opaque", "nothing")
    user_header: str = _setting(
        "X-Remote-User",
        parse_header,
        "the name of a header, of letters, digits and hyphens",
        "nothing",
    )
    drop_headers: tuple[str, ...] = _setting(
        (),
        parse_headers,
        _HEADERS,
        "backends, from identities that clients forge",
    )
    pass_headers: tuple[str, ...] = _setting((), parse_headers, _HEADERS, "nothing")
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
        definitions: of the server's configuration, with the names of settings.

    Raises:
        BadSetting: a value that is not allowed, alone or in combination; a name that
            is unknown, or that only the server's configuration may set, or has fixed.
    """
    return _parse(_variables(environ), definitions)


def parse_tunnel_settings(environ: Mapping[str, Any], definitions: Definitions = ()) -> Settings:
    """Return the settings of a tunnel: those of ``parse_settings`` after ``for_tunnel``.

    Raises:
        BadSetting: as ``parse_settings``.
    """
    return _parse_tunnel(_variables(environ), definitions)


def _variables(environ: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple([setting for setting in environ.items() if setting[0].startswith(PREFIX)])


# A site has few different sets of variables, and the connections of one set share one object.
# The cache is bounded, because SetEnvIf can make many sets.
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
        allowed = "bridge if APACHEWS_WIRE is raw: such a producer cannot answer"
        raise BadSetting(f"{PREFIX}ACCEPT", settings.accept, allowed)
    if settings.close_log and not _is_inside(settings.close_log, settings.log_directory):
        allowed = (
            "a file in the directory that the server's configuration names:"
            f" Define {PREFIX}LOG_DIRECTORY {settings.log_directory or '/var/log/apachews'}"
        )
        raise BadSetting(f"{PREFIX}CLOSE_LOG", settings.close_log, allowed)
    return settings


# As ``_parse``.
@functools.lru_cache(maxsize=256)
def _parse_tunnel(variables: tuple[tuple[str, str], ...], definitions: Definitions) -> Settings:
    if _parse(variables, definitions).ticket != OFF:
        raise BadSetting(f"{PREFIX}TICKET", "", "off: a tunnel accepts no tickets")
    is_limited = any(name == _variable("max_message_bytes") for name, _ in variables + definitions)
    return for_tunnel(_parse(variables, definitions), is_message_limited=is_limited)


# The handshakes of one set of variables share one object, as with ``parse_settings``.
@functools.lru_cache(maxsize=256)
def for_tunnel(settings: Settings, *, is_message_limited: bool) -> Settings:
    """Return the settings of a tunnel.

    Args:
        settings: those of its location.
        is_message_limited: APACHEWS_MAX_MESSAGE is set; its default is not for tunnels, because
            the backend has a limit of its own.
    """
    is_opaque = settings.tunnel == OPAQUE
    return dataclasses.replace(
        settings,
        wire=OPAQUE if is_opaque else TUNNEL,
        max_message_bytes=settings.max_message_bytes if is_message_limited else 0,
        # Without frames there are no PINGs.
        ping_interval_s=0.0 if is_opaque else settings.ping_interval_s,
    )


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
    """Tell whether a path, by its text, is below a directory."""
    base = directory.rstrip("/") + "/"
    parts = path[len(base) :].split("/")
    return bool(directory) and path.startswith(base) and not {"", ".", ".."} & set(parts)
