r"""A line for each WebSocket that has closed, in a format like that of httpd's ``LogFormat``.

Contract: ``parse_format(text)`` gives a ``CloseFormat``, or raises ``BadFormat``.  Its
``begin`` takes what is known at the handshake and gives a ``CloseLine``, whose ``finish``
takes what is known at the end and gives the line, with its newline, in ASCII.  Sans-I/O;
clocks are arguments.

How this works: what the request has is written into the line at the handshake, so that
nothing of the request must be kept but the text that will be in the log.  Everything that
comes from outside is escaped as httpd escapes it: quotes, backslashes, and whatever is no
visible character of ASCII; so a line is a line, and what stands between quotes ends with
its quote.  What is empty is ``-``.

Sources: mod_log_config's documentation; httpd's ap_escape_logitem (server/util.c).
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from apachews import wire

DEFAULT_FORMAT: Final = (
    '%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i"'
    " %{name}x %{ms}T %{messages_in}x %{bytes_in}x %{messages_out}x %{bytes_out}x"
)
# Of one directive, before it is escaped: a header of httpd's may have 8190 bytes, and what
# is written at the handshake is kept as long as the connection lasts.
MAX_VALUE_BYTES: Final = 2048

_DIRECTIVE: Final = re.compile(r"%[<>]?(?:\{([^{}]*)\})?(.?)", re.DOTALL)
_SAFE: Final = re.compile(rb"[\x20\x21\x23-\x5b\x5d-\x7e]*")
_ESCAPES: Final = {
    0x08: r"\b",
    0x09: r"\t",
    0x0A: r"\n",
    0x0B: r"\v",
    0x0C: r"\f",
    0x0D: r"\r",
    0x22: r"\"",
    0x5C: r"\\",
}
# Of the common log format; no language's but English.
_MONTHS: Final = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)
_UNITS: Final = {"s": 1, "ms": 1000, "us": 1_000_000}


class BadFormat(ValueError):
    """A format has something in it that means nothing; the text says what."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What is known of a connection when it begins.

    Attributes:
        environ: of the request.
        open: what the producer is told.
        subprotocol: the one that was chosen.
        endpoint: the producer's socket file.
        at: when, seconds since 1970.
    """

    environ: Mapping[str, Any]
    open: wire.Open
    subprotocol: str | None
    endpoint: str
    at: float


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known of it when it has ended.

    Attributes:
        code, reason: what it was closed with.
        by: who closed it; ``name``: that of the row in docs/reference/close-codes.md.
        after_s: since it began.
        at: when, seconds since 1970.
        traffic: as ``Session.traffic``.
        round_trip_s: of the last PING that was answered; None: of none.
        pid: of the process that had it.
    """

    code: int
    reason: str
    by: str
    name: str
    after_s: float
    at: float
    traffic: tuple[int, int, int, int]
    round_trip_s: float | None
    pid: int


_AtHandshake = Callable[[Handshake], str]
_AtEnd = Callable[[Ending], str]


@dataclass(frozen=True, slots=True)
class _Early:
    """A directive whose value is known at the handshake."""

    value: _AtHandshake


@dataclass(frozen=True, slots=True)
class _Late:
    """One whose value is known at the end."""

    value: _AtEnd


@dataclass(frozen=True, slots=True)
class CloseLine:
    """The line of one connection, as far as it is known; text and what is still to come."""

    _parts: tuple[str | _Late, ...]

    def export_state(self) -> list[str | None]:
        """Return the texts, with None for each directive whose value is still to come."""
        return [part if isinstance(part, str) else None for part in self._parts]

    def finish(self, ending: Ending) -> bytes:
        """Return the whole line."""
        parts = (
            part if isinstance(part, str) else escape(part.value(ending)) for part in self._parts
        )
        return ("".join(parts) + "\n").encode("ascii")


@dataclass(frozen=True)
class CloseFormat:
    """A format that was read.

    Attributes:
        text: as it was written; two with the same are equal.
    """

    text: str

    def begin(self, handshake: Handshake) -> CloseLine:
        """Return the line of a connection that begins."""
        parts: list[str | _Late] = [""]
        for piece in _read(self.text):
            if isinstance(piece, _Late):
                parts += [piece, ""]
            else:
                text = piece if isinstance(piece, str) else escape(piece.value(handshake))
                before = parts.pop()
                assert isinstance(before, str), "text stands between two that are late"
                parts.append(before + text)
        return CloseLine(tuple(part for part in parts if part))

    def import_line(self, state: list[str | None]) -> CloseLine:
        """Return the line of this format that ``CloseLine.export_state`` described.

        Raises:
            ValueError: it is of another format.
        """
        late = [piece for piece in _read(self.text) if isinstance(piece, _Late)]
        if state.count(None) != len(late):
            raise ValueError("the line has another number of late directives than the format")
        directives = iter(late)
        return CloseLine(tuple(next(directives) if part is None else part for part in state))


def parse_format(text: str) -> CloseFormat:
    """Return the format that a text means.

    Raises:
        BadFormat: it has a directive that there is none of.
    """
    _read(text)
    return CloseFormat(text)


def escape(value: str) -> str:
    """Return a value as httpd writes it to a log; "-" for nothing."""
    try:
        data = value.encode("latin-1")  # as WSGI has bytes in texts
    except UnicodeEncodeError:
        data = value.encode(errors="surrogatepass")
    data = data[:MAX_VALUE_BYTES]
    if not data:
        return "-"
    if _SAFE.fullmatch(data):
        return data.decode("ascii")
    return "".join(
        _ESCAPES.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}")
        for byte in data
    )


@functools.lru_cache(maxsize=64)
def _read(text: str) -> tuple[str | _Early | _Late, ...]:
    pieces: list[str | _Early | _Late] = []
    position = 0
    for match in _DIRECTIVE.finditer(text):
        pieces.append(_literal(text[position : match.start()]))
        pieces.append(_directive(match[0], match[1], match[2]))
        position = match.end()
    pieces.append(_literal(text[position:]))
    if not any(pieces):
        raise BadFormat("it is empty")
    return tuple(piece for piece in pieces if piece)


def _literal(text: str) -> str:
    """Return what stands between two directives."""
    text = re.sub(r'\\([t"\\])', lambda found: {"t": "\t"}.get(found[1], found[1]), text)
    for character in text:
        if not (" " <= character <= "~" or character == "\t"):
            raise BadFormat(f"{character!r} in it is no visible character of ASCII")
    return text


def _directive(written: str, argument: str | None, letter: str) -> str | _Early | _Late:
    if letter == "%" and argument is None:
        return "%"
    if argument is None and letter in _PLAIN:
        return _PLAIN[letter]
    if argument and letter in _WITH_ARGUMENT:
        made = _WITH_ARGUMENT[letter](argument)
        if made:
            return made
    raise BadFormat(f"{written} is none of them")


def _request_line(handshake: Handshake) -> str:
    environ = handshake.environ
    protocol = environ.get("SERVER_PROTOCOL", "")
    return f"{handshake.open.method} {handshake.open.uri} {protocol}".rstrip()


def _query(handshake: Handshake) -> str:
    query = handshake.environ.get("QUERY_STRING", "")
    return f"?{query}" if query else ""


def _clf_time(at: float) -> str:
    local = datetime.datetime.fromtimestamp(at).astimezone()
    return f"[{local:%d}/{_MONTHS[local.month - 1]}/{local:%Y:%H:%M:%S %z}]"


def _or_dash(number: int) -> str:
    return str(number) if number else ""


_PLAIN: Final[dict[str, _Early | _Late]] = {
    "a": _Early(lambda handshake: handshake.open.remote[0]),
    "h": _Early(lambda handshake: handshake.open.remote[0]),
    "A": _Early(lambda handshake: handshake.open.local[0]),
    "p": _Early(lambda handshake: str(handshake.open.local[1])),
    "l": _Early(lambda handshake: ""),
    "u": _Early(lambda handshake: handshake.open.user or ""),
    "t": _Early(lambda handshake: _clf_time(handshake.at)),
    "r": _Early(_request_line),
    "m": _Early(lambda handshake: handshake.open.method),
    "U": _Early(lambda handshake: handshake.open.uri.partition("?")[0]),
    "q": _Early(_query),
    "H": _Early(lambda handshake: str(handshake.environ.get("SERVER_PROTOCOL", ""))),
    "v": _Early(lambda handshake: handshake.open.vhost),
    "V": _Early(lambda handshake: handshake.open.vhost),
    "s": _Late(lambda ending: str(ending.code)),
    "b": _Late(lambda ending: _or_dash(ending.traffic[3])),
    "B": _Late(lambda ending: str(ending.traffic[3])),
    "I": _Late(lambda ending: str(ending.traffic[1])),
    "O": _Late(lambda ending: str(ending.traffic[3])),
    "D": _Late(lambda ending: str(int(ending.after_s * 1_000_000))),
    "T": _Late(lambda ending: str(int(ending.after_s))),
    "P": _Late(lambda ending: str(ending.pid)),
}

_EXTENSIONS: Final[dict[str, _Early | _Late]] = {
    "code": _PLAIN["s"],
    # Text here, and not bytes, one a character, as what WSGI has.
    "reason": _Late(lambda ending: ending.reason.encode().decode("latin-1")),
    "by": _Late(lambda ending: ending.by),
    "name": _Late(lambda ending: ending.name),
    "messages_in": _Late(lambda ending: str(ending.traffic[0])),
    "bytes_in": _PLAIN["I"],
    "messages_out": _Late(lambda ending: str(ending.traffic[2])),
    "bytes_out": _PLAIN["O"],
    "round_trip": _Late(
        lambda ending: "" if ending.round_trip_s is None else f"{ending.round_trip_s:.6f}"
    ),
    "id": _Early(lambda handshake: handshake.open.id),
    "scheme": _Early(lambda handshake: handshake.open.scheme),
    "subprotocol": _Early(lambda handshake: handshake.subprotocol or ""),
    "endpoint": _Early(
        lambda handshake: handshake.endpoint.encode(errors="surrogateescape").decode("latin-1")
    ),
}


def _header(name: str) -> _Early:
    variable = name.upper().replace("-", "_")
    if variable not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        variable = f"HTTP_{variable}"
    return _variable(variable)


def _variable(name: str) -> _Early:
    def value(handshake: Handshake) -> str:
        found = handshake.environ.get(name)
        return found if isinstance(found, str) else ""

    return _Early(value)


def _port(which: str) -> _Early | None:
    return {
        "remote": _Early(lambda handshake: _or_dash(handshake.open.remote[1])),
        "local": _PLAIN["p"],
        "canonical": _PLAIN["p"],
    }.get(which)  # type: ignore[return-value]


def _duration(unit: str) -> _Late | None:
    if unit not in _UNITS:
        return None
    factor = _UNITS[unit]
    return _Late(lambda ending: str(int(ending.after_s * factor)))


def _time(what: str) -> _Early | _Late | None:
    """Return ``%{…}t``: at the handshake, or with ``end`` or ``end:`` at the end."""
    when, colon, kind = what.partition(":")
    if when not in ("begin", "end"):
        when, kind = "begin", what
    elif not colon:
        kind = "clf"
    show = _SHOW_TIME.get(kind) or _strftime(kind)
    if show is None:
        return None
    if when == "end":
        return _Late(lambda ending: show(ending.at))
    return _Early(lambda handshake: show(handshake.at))


def _strftime(format_: str) -> Callable[[float], str] | None:
    """Return what shows a time in a format, None for a format that there is none of."""

    def show(at: float) -> str:
        return datetime.datetime.fromtimestamp(at).astimezone().strftime(format_)

    try:
        return show if "%" in format_ and show(0.0) else None
    except ValueError:
        return None


_SHOW_TIME: Final[dict[str, Callable[[float], str]]] = {
    "clf": _clf_time,
    "sec": lambda at: str(int(at)),
    "msec": lambda at: str(int(at * 1000)),
    "usec": lambda at: str(int(at * 1_000_000)),
}


_WITH_ARGUMENT: Final[dict[str, Callable[[str], _Early | _Late | None]]] = {
    "i": _header,
    "e": _variable,
    "p": _port,
    "T": _duration,
    "t": _time,
    "x": _EXTENSIONS.get,
}
