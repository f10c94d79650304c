"""Names of close codes on the command line (RFC 6455 7.4.1, IANA)."""

from __future__ import annotations

from typing import Final

from apachews_tools.terminal.terminal import printable

NAMES: Final[dict[int, str]] = {
    1000: "normal",
    1001: "going away",
    1002: "protocol error",
    1003: "unsupported data",
    1005: "no code",
    1006: "broken off",
    1007: "invalid data",
    1008: "policy violation",
    1009: "message too big",
    1010: "extension missing",
    1011: "internal error",
    1012: "service restart",
    1013: "try again later",
    1014: "bad gateway",
}
# Codes without an error.
NORMAL_CODES: Final = (1000, 1005)


def describe_close(code: int, reason: str) -> str:
    """Return a code with its name and reason."""
    name = f" ({NAMES[code]})" if code in NAMES else ""
    return f"{code}{name}{f': {printable(reason)}' if reason else ''}"
