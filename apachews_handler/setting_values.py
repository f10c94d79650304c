"""The values of settings: what a text of ``SetEnv`` or ``Define`` means.

Contract: each ``parse_…`` function returns the value of a text, or raises ``ValueError``; it never
substitutes a default.  ``one_of`` and ``number_of`` make such functions.  Pure.

``settings`` says which setting has which of them, and which values it allows in words.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from typing import Final

from .origins import normalise_origin

OFF: Final = "off"
AUTO: Final = "auto"

_SIZE: Final = re.compile(r"(\d{1,15})([KM]?)", re.ASCII | re.IGNORECASE)
_TIME: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)", re.ASCII | re.IGNORECASE)
_RATE: Final = re.compile(r"(\d{1,9})/([sm])", re.ASCII | re.IGNORECASE)
_NUMBER: Final = re.compile(r"\d{1,9}", re.ASCII)
# RFC 9110 5.6.2
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_HEADER: Final = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
# Some programs and modules have underscores in the names of headers.
_HEADERS: Final = re.compile(r"[A-Za-z0-9_-]+\*?", re.ASCII)
_FACTORS: Final = {"": 1, "K": 1024, "M": 1024 * 1024}


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """The parameters of a token bucket.

    Attributes:
        burst: size of the bucket: how many may come at once.
        per_s: how many tokens each second adds.
    """

    burst: int
    per_s: float


def parse_size(text: str) -> int:
    """Return the bytes that ``65536``, ``64K`` or ``1M`` means; 1 to ``sys.maxsize``.

    Raises:
        ValueError
    """
    match = _SIZE.fullmatch(text)
    if not match or not int(match[1]):
        raise ValueError
    # Nothing has more bytes than that, and C has no larger number.
    return min(int(match[1]) * _FACTORS[match[2].upper()], sys.maxsize)


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
    """Return a parser for one of some words in any case, which returns it in lower case."""

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
    """Return the origins in a list separated by blanks, normalised, or ``("*",)``.

    Raises:
        ValueError
    """
    if text.split() == ["*"]:
        return ("*",)
    return tuple(normalise_origin(item) for item in text.split())


def parse_subprotocols(text: str) -> tuple[str, ...]:
    """Return the tokens in a list separated by blanks or commas (RFC 6455 4.1, 10.).

    Raises:
        ValueError
    """
    names = tuple(text.replace(",", " ").split())
    if not names or len(set(names)) < len(names) or not all(map(_TOKEN.fullmatch, names)):
        raise ValueError
    return names


def parse_variables(text: str) -> tuple[str, ...]:
    """Return the names in a list separated by blanks.

    Raises:
        ValueError
    """
    names = tuple(text.split())
    if not names or not all(map(_VARIABLE.fullmatch, names)):
        raise ValueError
    return names


def parse_variable(text: str) -> str:
    """Return the name of one variable.

    Raises:
        ValueError
    """
    (name,) = parse_variables(text)
    return name


def parse_expiry_code(text: str) -> int:
    """Return the code of a CLOSE that asks the client to log in, or to connect, again.

    Raises:
        ValueError
    """
    code = number_of(1000, 4999)(text)
    if code not in (1000, 1001, 1008, 1012, 1013) and code < 3000:
        raise ValueError
    return code


def parse_cookie(text: str) -> str:
    """Return the name of a cookie (RFC 6265 4.1.1).

    Raises:
        ValueError
    """
    if not _TOKEN.fullmatch(text):
        raise ValueError
    return text


def parse_header(text: str) -> str:
    """Return the name of a header as it is.

    Raises:
        ValueError: also for a name with other characters than letters, digits and hyphens.
    """
    if not _HEADER.fullmatch(text):
        raise ValueError
    return text


def parse_headers(text: str) -> tuple[str, ...]:
    """Return the names of headers in a list separated by blanks, in lower case.

    An asterisk at the end of a name stands for any end.

    Raises:
        ValueError
    """
    names = text.split()
    if not names or not all(_HEADERS.fullmatch(name) for name in names):
        raise ValueError
    return tuple(name.lower() for name in names)


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
        ValueError: also for a name that does not end in .log: a web server or an interpreter
            could run a file with another ending.
    """
    if not text.endswith(".log"):
        raise ValueError
    return parse_directory(text)
