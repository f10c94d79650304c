"""Why a handshake was not answered with 101: the cause of an answer, and the remedy.

Contract: ``cause_of(answer, logged)`` and ``cause_of_proxied(…)`` are pure functions.  A refusal
of the handler is known by its token, in the header or in the line of the error log
(``apachews.monitoring.refusals``).  An answer without a token is of httpd, of mod_wsgi or of a
proxy, and ``CAUSES`` has those: by words of httpd's log lines, which begin with a number of
httpd's own, and by status.

Sources: httpd's log messages (AH00035 and others), mod_wsgi's src/server.
"""

from __future__ import annotations

import http
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from apachews.monitoring import refusals
from apachews.monitoring.refusals import Reason


@dataclass(frozen=True)
class Answer:
    """An HTTP answer to a handshake.

    Attributes:
        status: HTTP status.
        headers: as ``joined`` makes them.
        body: the beginning of it.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""

    def refusal(self, logged: str = "") -> Reason | None:
        """Return the handler's reason; None if the answer is not the handler's.

        Args:
            logged: line of the error log about the request, or "".
        """
        return refusals.find(self.headers.get(refusals.HEADER.lower(), ""), logged)


@dataclass(frozen=True)
class Cause:
    """Why a handshake failed.

    Attributes:
        meaning: what happened.
        remedy: what to do.
        findings: ids of the doctor's checks that can name the very line to change, best first.
        status: of the answer; 0 for any; 200 for all answers of success.
        marker: words of httpd's or mod_wsgi's, in the log or in the body; "" for any.
    """

    meaning: str
    remedy: str
    findings: tuple[str, ...] = ()
    status: int = 0
    marker: str = ""

    def hint(self) -> str:
        """Return the cause as a sentence."""
        return f"{self.meaning[:1].upper()}{self.meaning[1:]}: {self.remedy}."


_PROXY: Final = "a proxy answers here, and does not reach the server it forwards to"
_NO_PROXY: Final = (
    "exclude the path in front of the rule: ProxyPass with this path and !, or"
    " RewriteRule \\.ws$ - [END]"
)
_ENTER: Final = "chmod o+x for the directory that the error log names, or a socket elsewhere"

# The first that applies counts: words of the log are more precise than a status.
CAUSES: Final[tuple[Cause, ...]] = (
    Cause(
        "Apache's user may not enter a directory on the way to the socket",
        _ENTER,
        ("socket-permission",),
        marker="AH00035",
    ),
    Cause(
        "a symbolic link that httpd may not follow, or that leads to a directory that Apache's"
        " user may not enter",
        "Options +FollowSymLinks; chmod o+x for the directories that it leads to",
        ("socket-permission", "follow-symlinks"),
        marker="AH00037",
    ),
    Cause(
        "the directory's Options lack FollowSymLinks",
        "Options +FollowSymLinks, for the directory",
        ("follow-symlinks",),
        marker="AH00038",
    ),
    Cause(
        "httpd takes the socket for a file: no directive gives it to the handler",
        "AddHandler websocket .ws",
        ("add-handler",),
        marker="AH00132",
    ),
    Cause(
        "Require denies this client access",
        "Require all granted, or the users that may connect, for the directory",
        ("access",),
        marker="AH01630",
    ),
    # With an AllowOverride, httpd looks for an .htaccess before it looks for the socket.
    Cause(
        "Apache's user may not enter a directory on the way to the socket, or may not read its"
        " .htaccess",
        _ENTER,
        ("socket-permission",),
        marker="AH00529",
    ),
    Cause(_PROXY, _NO_PROXY, ("proxy",), marker="AH00957"),
    Cause(_PROXY, _NO_PROXY, ("proxy",), marker="AH01114"),
    Cause(
        "mod_wsgi may not run Python in Apache's children",
        "WSGIRestrictEmbedded Off",
        ("handler-mode",),
        marker="Embedded mode of mod_wsgi disabled",
    ),
    Cause(
        "the handler's packages are not in the path of mod_wsgi's Python",
        "WSGIPythonHome with the environment that has them; apachews config prints the line",
        ("packages",),
        marker="ModuleNotFoundError",
    ),
    Cause(
        "the handler's file does not exist, or Apache's user cannot read it",
        "Define APACHEWS_HANDLER with its directory; apachews config prints the line",
        ("handler-script", "readable"),
        marker="Target WSGI script not found",
    ),
    Cause(
        "mod_wsgi looks for a daemon process, and the handler does not work in one",
        "process-group=%{GLOBAL} in WSGIHandlerScript",
        ("handler-mode",),
        marker="Unable to connect to WSGI daemon",
    ),
    Cause(
        "this port is for TLS",
        "connect with wss:// instead of ws://",
        status=400,
        marker="speaking plain HTTP to an SSL-enabled server port",
    ),
    Cause(
        "a page answered instead of the handler: a rewriting rule, a front controller or a"
        " proxy took the request, or the path is not that of a socket",
        "check the path; before a RewriteRule of the virtual host, RewriteRule \\.ws$ - [END];"
        " apachews doctor URL, as root, names the rule",
        ("proxy", "add-handler"),
        status=200,
    ),
    Cause(
        "a proxy or Apache does not understand the handshake",
        "look for a proxy that changes it; the error log names the header",
        status=400,
    ),
    Cause(
        "Apache requires a login here; a page of the same site has its user's login already",
        "log in (apachews connect --user NAME); or Require all granted",
        status=401,
    ),
    Cause(
        "Apache does not allow access: Options without FollowSymLinks (AH00038), or Require"
        " (AH01630)",
        "Options +FollowSymLinks and Require all granted, for the directory",
        (
            *("access", "follow-symlinks", "socket-permission", "socket-link", "add-handler"),
            "socket",
        ),
        status=403,
    ),
    Cause(
        "the file does not exist, and the request has not come to the handler",
        "check the path, AddHandler websocket .ws, and whether this is the right virtual host",
        ("add-handler", "socket"),
        status=404,
    ),
    Cause("a proxy requires a login", "log in to the proxy", status=407),
    Cause(
        "a server that is not the handler asks for an upgrade",
        "check the URL; look for a proxy",
        status=426,
    ),
    Cause(
        "a server that is not the handler limits the requests of this address",
        "look for a proxy, or a module of Apache, that limits requests",
        status=429,
    ),
    Cause(
        "mod_wsgi cannot run the handler",
        "see the error log; often Apache's user cannot read the packages",
        status=500,
    ),
    Cause("a proxy answers here, and does not support WebSockets", _NO_PROXY, status=501),
    Cause(_PROXY, _NO_PROXY, status=502),
    Cause(
        "a proxy answers, or an Apache without a free worker",
        "remove a ProxyPass for this path; raise MaxRequestWorkers",
        status=503,
    ),
    Cause("a proxy answers here, and got no answer in time", _NO_PROXY, status=504),
)


def joined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers by their names in lower case, repeated ones joined (RFC 9110 5.3)."""
    found: dict[str, str] = {}
    for name, value in headers:
        before = found.get(name.lower())
        found[name.lower()] = value if before is None else f"{before}, {value}"
    return found


def cause_of(answer: Answer, logged: str = "") -> Cause | None:
    """Return why an answer is not 101; None if it is not known.

    Args:
        logged: what the error log says of the request, or "".
    """
    if reason := answer.refusal(logged):
        return Cause(reason.meaning, reason.remedy, reason.findings)
    return next((cause for cause in CAUSES if _applies(cause, answer, logged)), None)


def cause_of_proxied(answer: Answer, target: str) -> Cause:
    """Return why a server at the end of a proxy does not answer with 101.

    Args:
        answer: its answer, or the proxy's.
        target: the address of the server.
    """
    if answer.status in (502, 503, 504):
        return Cause(
            f"the proxy gets no answer of {target}",
            "start the program that listens there, or correct the address",
        )
    return Cause(
        f"the answer of the program at {target}, which does not open a WebSocket at this URL",
        "check the path and the query of the URL",
    )


def _applies(cause: Cause, answer: Answer, logged: str) -> bool:
    status = 200 if 200 <= answer.status < 300 else answer.status
    if cause.status not in (0, status):
        return False
    return not cause.marker or cause.marker in logged or cause.marker in answer.body


def phrase(status: int) -> str:
    """Return a status with its name: ``404 Not Found``."""
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def websocket_url(location: str) -> str:
    """Return the URL of a redirect as a WebSocket's: ``wss://`` instead of ``https://``."""
    for http_scheme, scheme in (("http://", "ws://"), ("https://", "wss://")):
        if location.startswith(http_scheme):
            return scheme + location.removeprefix(http_scheme)
    return location
