r"""The line that the log of closes gets for each closed connection, as httpd's ``LogFormat``.

Contract: ``parse_format(text)`` returns a ``CloseFormat`` or raises ``BadFormat``.  Its
``begin`` takes the facts of the handshake and returns a ``CloseLine``; ``finish`` takes the
facts of the end and returns the line with its newline, in ASCII.  Sans-I/O; clocks are
arguments.

How this works: a directive about the request is expanded at the handshake, so that a
connection keeps the text for the log and nothing else of the request.  External text is
escaped as in httpd's logs: quotes, backslashes and every byte that is not printable ASCII.
A line therefore stays one line, and a quoted field ends at its quote.  An empty value is
``-``.

Roads not taken: the rest of LogFormat.  strftime formats, ``%{sec}t`` and the like, further
units of ``%T``, conditions on the status and second names for one value (``%B %D %H %I %m
%O %V``) did not pay for the table that documents them.

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
# Limit of one value before it is escaped: a header can have 8190 bytes, and what is expanded
# at the handshake is kept for the life of the connection.
MAX_VALUE_BYTES: Final = 2048

_DIRECTIVE: Final = re.compile(r"%[<>]?((?:\{[^{}]*\})?.?)", re.DOTALL)
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
# The common log format is in English, whatever the locale.
_MONTHS: Final = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)


class BadFormat(ValueError):
    """A format has an unknown directive or character, which the text names."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """The facts of a connection at its handshake.

    Attributes:
        environ: the environ of the request.
        open: the document that the producer gets.
        subprotocol: the negotiated one.
        endpoint: the producer's socket file.
        at: the time of the handshake, seconds since 1970.
    """

    environ: Mapping[str, Any]
    open: wire.Open
    subprotocol: str | None
    endpoint: str
    at: float


@dataclass(frozen=True, slots=True)
class Ending:
    """The facts of a connection at its end.

    Attributes:
        code, reason: the close code and the reason.
        by: the side that closed it.
        name: the row of the documentation's table of close codes.
        after_s: the duration of the connection, seconds.
        at: the time of the end, seconds since 1970.
        traffic: as ``Session.traffic``.
        round_trip_s: the round trip of the last answered PING; None without one.
        pid: the process that served the connection.
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
    """A directive whose value is known at the end of the connection."""

    value: _AtEnd


@dataclass(frozen=True, slots=True)
class CloseLine:
    """The line of one connection: text, and the directives that are expanded at its end."""

    _parts: tuple[str | _Late, ...]

    def export_state(self) -> list[str | None]:
        """Return the texts, with None for each directive that is expanded at the end."""
        return [part if isinstance(part, str) else None for part in self._parts]

    def finish(self, ending: Ending) -> bytes:
        """Return the complete line."""
        parts = (
            part if isinstance(part, str) else escape(part.value(ending)) for part in self._parts
        )
        return ("".join(parts) + "\n").encode("ascii")


@dataclass(frozen=True)
class CloseFormat:
    """A parsed format.

    Attributes:
        text: as in the configuration; formats with the same text are equal.
    """

    text: str

    def begin(self, handshake: Handshake) -> CloseLine:
        """Return the line of a connection at its handshake."""
        parts: list[str | _Late] = [""]
        for piece in _parse(self.text):
            if isinstance(piece, _Late):
                parts += [piece, ""]
            else:
                text = piece if isinstance(piece, str) else escape(piece.value(handshake))
                before = parts.pop()
                assert isinstance(before, str), "text separates late directives"
                parts.append(before + text)
        return CloseLine(tuple(part for part in parts if part))

    def import_line(self, state: list[str | None]) -> CloseLine:
        """Return the line of this format that ``CloseLine.export_state`` described.

        Raises:
            ValueError: the state belongs to another format.
        """
        late = [piece for piece in _parse(self.text) if isinstance(piece, _Late)]
        if state.count(None) != len(late):
            raise ValueError("the state has another number of late directives than the format")
        directives = iter(late)
        return CloseLine(tuple(next(directives) if part is None else part for part in state))


def parse_format(text: str) -> CloseFormat:
    """Return the format that a text describes.

    Raises:
        BadFormat: a directive is unknown, or a character is not printable ASCII.
    """
    _parse(text)
    return CloseFormat(text)


def escape(value: str) -> str:
    """Return a value as httpd writes it to a log; "-" for an empty one."""
    try:
        data = value.encode("latin-1")  # WSGI's strings hold one byte per character
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
def _parse(text: str) -> tuple[str | _Early | _Late, ...]:
    pieces: list[str | _Early | _Late] = []
    position = 0
    for match in _DIRECTIVE.finditer(text):
        pieces.append(_literal(text[position : match.start()]))
        pieces.append(_directive(match[1]))
        position = match.end()
    pieces.append(_literal(text[position:]))
    if not any(pieces):
        raise BadFormat("the format is empty")
    return tuple(piece for piece in pieces if piece)


def _literal(text: str) -> str:
    """Return the text between two directives."""
    text = re.sub(r'\\([t"\\])', lambda found: {"t": "\t"}.get(found[1], found[1]), text)
    for character in text:
        if not (" " <= character <= "~" or character == "\t"):
            raise BadFormat(f"non-ASCII or control character {character!r}")
    return text


def _directive(name: str) -> str | _Early | _Late:
    """Return what a directive is expanded to.

    Args:
        name: without the percent sign, ``r`` or ``{Referer}i``.
    """
    if name == "%":
        return "%"
    if name in _DIRECTIVES:
        return _DIRECTIVES[name]
    argument, letter = name[1:-2], name[-1:]
    if argument and letter == "i":
        return _variable(_header_variable(argument))
    if argument and letter == "e":
        return _variable(argument)
    raise BadFormat(f"unknown directive %{name}")


def _header_variable(name: str) -> str:
    variable = name.upper().replace("-", "_")
    return variable if variable in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{variable}"


def _variable(name: str) -> _Early:
    def value(handshake: Handshake) -> str:
        found = handshake.environ.get(name)
        return found if isinstance(found, str) else ""

    return _Early(value)


def _request_line(handshake: Handshake) -> str:
    protocol = handshake.environ.get("SERVER_PROTOCOL", "")
    return f"{handshake.open.method} {handshake.open.uri} {protocol}".rstrip()


def _query(handshake: Handshake) -> str:
    query = handshake.environ.get("QUERY_STRING", "")
    return f"?{query}" if query else ""


def _clf_time(at: float) -> str:
    local = datetime.datetime.fromtimestamp(at).astimezone()
    return f"[{local:%d}/{_MONTHS[local.month - 1]}/{local:%Y:%H:%M:%S %z}]"


def _number_or_dash(number: int) -> str:
    return str(number) if number else ""


def _round_trip(ending: Ending) -> str:
    return "" if ending.round_trip_s is None else f"{ending.round_trip_s:.6f}"


_CODE: Final = _Late(lambda ending: str(ending.code))
_ADDRESS: Final = _Early(lambda handshake: handshake.open.remote[0])
# The directives but for %%, %{…}i and %{…}e; the configuration's documentation has this table.
_DIRECTIVES: Final[dict[str, _Early | _Late]] = {
    "a": _ADDRESS,
    "h": _ADDRESS,
    "A": _Early(lambda handshake: handshake.open.local[0]),
    "p": _Early(lambda handshake: str(handshake.open.local[1])),
    "{remote}p": _Early(lambda handshake: _number_or_dash(handshake.open.remote[1])),
    "l": _Early(lambda handshake: ""),
    "u": _Early(lambda handshake: handshake.open.user or ""),
    "v": _Early(lambda handshake: handshake.open.vhost),
    "t": _Early(lambda handshake: _clf_time(handshake.at)),
    "{end}t": _Late(lambda ending: _clf_time(ending.at)),
    "r": _Early(_request_line),
    "U": _Early(lambda handshake: handshake.open.uri.partition("?")[0]),
    "q": _Early(_query),
    "s": _CODE,
    "b": _Late(lambda ending: _number_or_dash(ending.traffic[3])),
    "T": _Late(lambda ending: str(int(ending.after_s))),
    "{ms}T": _Late(lambda ending: str(int(ending.after_s * 1000))),
    "P": _Late(lambda ending: str(ending.pid)),
    "{code}x": _CODE,
    # The reason is text; other values hold one byte per character, as in WSGI.
    "{reason}x": _Late(lambda ending: ending.reason.encode().decode("latin-1")),
    "{by}x": _Late(lambda ending: ending.by),
    "{name}x": _Late(lambda ending: ending.name),
    "{messages_in}x": _Late(lambda ending: str(ending.traffic[0])),
    "{bytes_in}x": _Late(lambda ending: str(ending.traffic[1])),
    "{messages_out}x": _Late(lambda ending: str(ending.traffic[2])),
    "{bytes_out}x": _Late(lambda ending: str(ending.traffic[3])),
    "{round_trip}x": _Late(_round_trip),
    "{id}x": _Early(lambda handshake: handshake.open.id),
    "{scheme}x": _Early(lambda handshake: handshake.open.scheme),
    "{subprotocol}x": _Early(lambda handshake: handshake.subprotocol or ""),
    "{endpoint}x": _Early(
        lambda handshake: handshake.endpoint.encode(errors="surrogateescape").decode("latin-1")
    ),
}
