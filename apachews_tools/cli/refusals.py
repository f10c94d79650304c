"""What to look at when a server answers a handshake with plain HTTP.

Contract: ``explain(…)`` is a pure function of the answer.  The statuses are those of
``docs/explanation/how-it-works.md``; others may stand between, so nothing is claimed for sure.
"""

from __future__ import annotations

import http
from typing import Final

_LOG: Final = "Apache's error log has a line that says why"

HINTS: Final[dict[int, str]] = {
    400: f"The handshake was not understood; {_LOG}.",
    401: "Apache wants a login: --user NAME.",
    403: (
        "Apache's Require forbids it; or the origin may not connect (see --origin, and"
        " APACHEWS_ORIGINS); or there is a file that is not a socket, or a link to the socket of"
        f" another user; or the directory lacks Options FollowSymLinks.  {_LOG}."
    ),
    404: (
        "There is no such socket file: does the producer run, and does the path of the URL"
        " lead to its file below the DocumentRoot?"
    ),
    407: "A proxy on the way wants a login.",
    426: (
        "The server saw no WebSocket handshake, or one of another version: does a proxy on the"
        " way drop the Upgrade header?"
    ),
    429: "Too many connections from this address: APACHEWS_MAX_CONNECTIONS_PER_ADDRESS.",
    500: f"Something is not set up as it must be; {_LOG}, and what to change.",
    501: "A proxy on the way does not do WebSockets.",
    502: "A proxy on the way got no good answer from the server behind it.",
    503: (
        "Nobody listens on the socket file (start the producer), the producer is too busy to"
        f" answer, or there are too many connections (APACHEWS_MAX_CONNECTIONS).  {_LOG}."
    ),
    504: "A proxy on the way got no answer from the server behind it.",
}


def explain(status: int, body: str, *, location: str = "", has_user: bool = False) -> str:
    """Return what to look at; "" where there is nothing to say.

    Args:
        status: that of the answer.
        body: its body.
        location: its Location header.
        has_user: whether the request had a name and a password.
    """
    if status == 400 and "SSL-enabled server port" in body:
        return "This is a port for TLS: wss:// instead of ws://."
    if status == 401 and has_user:
        return "Apache does not know this name, or the password is another."
    if 200 <= status < 300:
        return (
            "Apache served a page or a file instead: AddHandler websocket .ws is not in force"
            " for this path (is apachews.conf included, and the site reloaded?)."
        )
    if 300 <= status < 400 and location:
        return f"Connect to {_as_websocket(location)} instead."
    return HINTS.get(status, "")


def phrase(status: int) -> str:
    """Return a status with its name: ``404 Not Found``."""
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _as_websocket(location: str) -> str:
    for http_scheme, scheme in (("http://", "ws://"), ("https://", "wss://")):
        if location.startswith(http_scheme):
            return scheme + location.removeprefix(http_scheme)
    return location
