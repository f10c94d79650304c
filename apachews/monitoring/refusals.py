"""Every refusal of a handshake: one table for the handler, the commands and the documentation.

Contract: data.  ``REASONS`` has a row for each token; ``find(text)`` returns the row that a
value of the header ``HEADER``, or a line of the error log, names.

How this works: the handler answers a refused handshake with the status and the body of a row,
sends the row's token in ``HEADER``, and writes a line ``apachews: STATUS TOKEN for URI: FACT;
REMEDY`` to the error log.  ``apachews doctor`` and ``apachews connect`` match the token and never
the body, so the words can change.  A test compares docs/reference/refusals.md with the table.
The status page refuses requests with rows of the table too; its log lines have no token.

A token is public and stable.  It names a kind of problem, and nothing of the site: no path, no
user, no value.  An answer of httpd's own, or of a proxy, has no token.

The module is in this package because the handler and the tools both import it, the tools never
import the handler, and a producer loads neither of them.

Long because it is one table.

Sources: RFC 9209 2.1.2 (``error`` of Proxy-Status) does the same for proxies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

HEADER: Final = "Apachews-Refused"


@dataclass(frozen=True, slots=True)
class Reason:
    """A row of the table.

    Attributes:
        token: stable name, of lower-case letters, digits and hyphens.
        status: of the answer; 0 if it depends on the case.
        body: text of the answer; "" if it depends on the case.
        meaning: what happened, for the owner of the site.
        remedy: what to do.
        findings: ids of the doctor's checks that can name the very line to change.
    """

    token: str
    status: int
    body: str
    meaning: str
    remedy: str
    findings: tuple[str, ...] = ()


# Bodies that many rows share: the client learns the status and the token, the log has the rest.
_ABSENT: Final = "No WebSocket endpoint exists at this address."
_MISCONFIGURED: Final = "The WebSocket is not set up correctly."
_UNAVAILABLE: Final = "The WebSocket is not available at the moment."
_FIX_CLIENT: Final = "look for a proxy that changes the handshake, or fix the client"

NOT_A_WEBSOCKET: Final = Reason(
    "not-a-websocket",
    426,
    "This address speaks WebSocket only.",
    "the request is not a handshake: from a person, or a proxy removed Upgrade",
    "connect with a WebSocket; a proxy must pass the headers Upgrade and Connection on",
)
VERSION: Final = Reason(
    "version",
    426,
    "Only version 13 of the WebSocket protocol is supported.",
    "the client asks for another version of the WebSocket protocol",
    "use a client of RFC 6455",
)
MALFORMED_HEADER: Final = Reason(
    "malformed-header",
    400,
    "A header of the WebSocket handshake contains non-ASCII characters.",
    "a header of the handshake contains non-ASCII characters",
    _FIX_CLIENT,
)
MALFORMED_KEY: Final = Reason(
    "malformed-key",
    400,
    "Sec-WebSocket-Key must be 16 bytes in base64.",
    "Sec-WebSocket-Key is missing or malformed",
    _FIX_CLIENT,
)
NO_HOST: Final = Reason(
    "no-host",
    400,
    "A WebSocket request must have a Host header.",
    "the request lacks the header Host",
    _FIX_CLIENT,
)
CONTROL_CHARACTER: Final = Reason(
    "control-character",
    400,
    "A header contains a control character.",
    "a header of the request contains a control character",
    "remove HttpProtocolOptions Unsafe, and fix the client",
)
REQUEST_BODY: Final = Reason(
    "request-body",
    400,
    "A WebSocket request must not have a body.",
    "the request has a body, whose bytes would be read as frames",
    _FIX_CLIENT,
)
CONNECTION_HEADER: Final = Reason(
    "connection-header",
    400,
    "The Connection header must not name a header of the WebSocket handshake.",
    "Connection names Host, Origin, Cookie, Authorization or a Sec- header, which must pass",
    _FIX_CLIENT,
)
EARLY_DATA: Final = Reason(
    "early-data",
    400,
    "The client sent data before the 101 response.",
    "the client sent data before it had the 101 response (RFC 6455 4.1)",
    "fix the client",
)
CLIENT_LEFT: Final = Reason(
    "client-left",
    400,
    "The client closed the connection during the handshake.",
    "the client closed the connection during the handshake",
    "nothing, unless the handshake is slow: see APACHEWS_CONNECT_TIMEOUT",
)
ORIGIN: Final = Reason(
    "origin",
    403,
    "This page's origin may not connect here.",
    "the origin of the page may not connect",
    "add it to SetEnv APACHEWS_ORIGINS; behind a proxy, SetEnv APACHEWS_FORWARDED",
)
NO_ORIGIN: Final = Reason(
    "no-origin",
    403,
    "A request without an Origin header may not connect here.",
    "the request lacks the header Origin, and SetEnv APACHEWS_REQUIRE_ORIGIN is on",
    "connect with an Origin as browsers do, or SetEnv APACHEWS_REQUIRE_ORIGIN off",
)
NOT_A_SOCKET: Final = Reason(
    "not-a-socket",
    403,
    _ABSENT,
    "the file at this path is not a socket that a producer made",
    "move the file away and start the producer; a loopback file needs mode 0660",
    ("socket", "socket-permission"),
)
FOREIGN_LINK: Final = Reason(
    "foreign-link",
    403,
    _ABSENT,
    "a symbolic link on the way leads to a socket of another user",
    "make the link as root or as the owner of the socket; or Define APACHEWS_ENDPOINT_DIRECTORIES",
    ("socket-link",),
)
HTTP2: Final = Reason(
    "http2",
    403,
    "WebSockets over HTTP/2 are not supported; connect with HTTP/1.1.",
    "the client opened the WebSocket over HTTP/2",
    "keep H2WebSockets off",
    ("http2",),
)
LOGIN_ENDED: Final = Reason(
    "login-ended",
    401,
    "Log in again.",
    "the login ends before the WebSocket opens: the variable of APACHEWS_EXPIRES has a past time",
    "log in again; compare the clocks if the login is new",
)
NO_EXPIRY: Final = Reason(
    "no-expiry",
    500,
    _MISCONFIGURED,
    "the variable of APACHEWS_EXPIRES is missing, or has no time",
    "check the name; the value is seconds since 1970 or an HTTP date (docs/howto/logins.md)",
)
TICKET: Final = Reason(
    "ticket",
    401,
    "A valid ticket is required.",
    "the ticket is missing, used, expired, forged or for another endpoint",
    "fetch a ticket for each WebSocket; APACHEWS_TICKET_FOR names the socket file of the endpoint",
)
TICKET_LOGIN: Final = Reason(
    "ticket-login",
    500,
    _MISCONFIGURED,
    "the location that gives tickets has no logged-in user, or one with a name of over 512 bytes",
    "add AuthType and Require valid-user to the location of ticket.py",
)
TICKET_METHOD: Final = Reason(
    "ticket-method",
    405,
    "GET and POST only.",
    "a ticket was requested by another method",
    "fetch it with POST",
)
TICKETS: Final = Reason(
    "tickets",
    503,
    _UNAVAILABLE,
    "the file of the tickets cannot be read, locked or written",
    "check the file system of the run directory; the log has the error",
)
API_METHOD: Final = Reason(
    "api-method",
    405,
    "POST only.",
    "the HTTP API of channels was asked by another method than POST",
    "use POST",
)
API_BODY: Final = Reason(
    "api-body",
    400,
    "The request ended early.",
    "a request of the HTTP API of channels ended before its Content-Length, or is malformed",
    "send the whole body; a proxy or a timeout may have cut it off",
)
API_LENGTH: Final = Reason(
    "api-length",
    413,
    "The request is too long.",
    "a request of the HTTP API of channels is longer than APACHEWS_MAX_MESSAGE",
    "send shorter messages, or set APACHEWS_MAX_MESSAGE in the location",
)
API_KEY: Final = Reason(
    "api-key",
    401,
    "The key of the API is required.",
    "a request of the HTTP API of channels has no key, or a wrong one",
    "send the key of [api] as X-API-Key",
)
API_OFF: Final = Reason(
    "api-off",
    404,
    "The API is off.",
    "the configuration of the channels has no [api]",
    "add [api] with a key_file to the configuration of the channels",
)
API_ANSWER: Final = Reason(
    "api-answer",
    502,
    _UNAVAILABLE,
    "the producer did not answer a request of the HTTP API: it is not one of channels, or it ended",
    "check that APACHEWS_API_FOR names the socket file of apachews.channels",
)
API_TIMEOUT: Final = Reason(
    "api-timeout",
    504,
    _UNAVAILABLE,
    "the producer did not answer a request of the HTTP API in time: it is busy, or not of channels",
    "check that APACHEWS_API_FOR names a socket file of channels; see APACHEWS_CONNECT_TIMEOUT",
)
NO_SUCH_ENDPOINT: Final = Reason(
    "no-such-endpoint",
    404,
    _ABSENT,
    "the socket file does not exist",
    "start the producer, or check the path",
    ("socket",),
)
ADDRESS_LIMIT: Final = Reason(
    "address-limit",
    429,
    "There are too many connections from your address.",
    "the address of the client has as many connections as the limit allows",
    "raise SetEnv APACHEWS_MAX_CONNECTIONS_PER_ADDRESS; behind a proxy, enable mod_remoteip",
)
CONNECTION_LIMIT: Final = Reason(
    "connection-limit",
    503,
    _UNAVAILABLE,
    "there are as many connections as the limit of the site allows",
    "raise SetEnv APACHEWS_MAX_CONNECTIONS",
)
ENDPOINT_LIMIT: Final = Reason(
    "endpoint-limit",
    503,
    _UNAVAILABLE,
    "the endpoint has as many connections as the limit allows",
    "raise SetEnv APACHEWS_MAX_CONNECTIONS_PER_ENDPOINT",
)
WAITING_LIMIT: Final = Reason(
    "waiting-limit",
    503,
    _UNAVAILABLE,
    "too many handshakes wait already, or too many long answers pass: the producer or the backend"
    " is stopped or slow",
    "restart it or make it answer sooner; see APACHEWS_MAX_WAITING",
    ("producer",),
)
STATUS_BUSY: Final = Reason(
    "status-busy",
    503,
    "The status is not available at the moment.",
    "too many requests collect the status already: a child or a custodian hangs",
    "find the process with apachews status",
)
CANNOT_COUNT: Final = Reason(
    "cannot-count",
    503,
    _UNAVAILABLE,
    "the connection or the waiting handshake cannot be counted",
    "check the file system of the run directory; the log has the error",
)
NO_PRODUCER: Final = Reason(
    "no-producer",
    503,
    _UNAVAILABLE,
    "no producer listens on the socket file, which a producer left when it died",
    "start the producer",
    ("producer",),
)
WRONG_PRODUCER: Final = Reason(
    "wrong-producer",
    503,
    _UNAVAILABLE,
    "another program has the port of the loopback socket's producer",
    "restart the producer",
    ("producer",),
)
BACKLOG_FULL: Final = Reason(
    "backlog-full",
    503,
    _UNAVAILABLE,
    "the backlog of the producer stayed full",
    "make the program call server.dequeue() again sooner, or restart it",
    ("producer",),
)
NO_ANSWER: Final = Reason(
    "no-answer",
    503,
    _UNAVAILABLE,
    "the producer did not answer in time",
    "APACHEWS_ACCEPT producer needs accept() or reject(); see APACHEWS_CONNECT_TIMEOUT",
    ("producer",),
)
PRODUCER_LEFT: Final = Reason(
    "producer-left",
    503,
    _UNAVAILABLE,
    "the producer closed the connection instead of answering",
    "see the log of the producer",
)
NO_DESCRIPTORS: Final = Reason(
    "no-descriptors",
    503,
    _UNAVAILABLE,
    "the child of Apache has no file descriptor for another WebSocket",
    "raise Apache's limit: LimitNOFILE= of its systemd unit, or ulimit -n",
    ("descriptors",),
)
NO_PORTS: Final = Reason(
    "no-ports",
    503,
    _UNAVAILABLE,
    "no port of 127.0.0.1 is left for another connection to a loopback socket",
    "widen net.ipv4.ip_local_port_range, or serve by a Unix socket",
)
CHILD_ENDING: Final = Reason(
    "child-ending",
    503,
    _UNAVAILABLE,
    "this child of Apache is ending, or its bridge has failed",
    "connect again; if the log has a traceback, please report it",
)
BAD_BACKEND_ANSWER: Final = Reason(
    "bad-backend-answer",
    502,
    _UNAVAILABLE,
    "the backend of the tunnel did not answer with valid HTTP, or its 101 does not fit the request",
    "check that APACHEWS_BACKEND is the WebSocket server; see the log of the backend",
)
NO_BACKEND: Final = Reason(
    "no-backend",
    503,
    _UNAVAILABLE,
    "the backend of the tunnel does not listen, or its host cannot be resolved",
    "start the backend, or change SetEnv APACHEWS_BACKEND",
)
BACKEND_TIMEOUT: Final = Reason(
    "backend-timeout",
    504,
    _UNAVAILABLE,
    "the backend of the tunnel did not answer in time",
    "find out why the backend is slow; see APACHEWS_BACKEND_TIMEOUT",
)
PERMISSION: Final = Reason(
    "permission",
    500,
    _MISCONFIGURED,
    "Apache's user has no permission to connect to the socket",
    "give that user the right to write to the socket, and to enter its directories: Server(group=)",
    ("socket-permission", "confinement"),
)
CANNOT_CONNECT: Final = Reason(
    "cannot-connect",
    500,
    _MISCONFIGURED,
    "the connection to the producer failed",
    "see the error in the log",
)
TOO_MANY_LINKS: Final = Reason(
    "too-many-links",
    500,
    _MISCONFIGURED,
    "too many symbolic links lead to the socket",
    "link to the socket directly",
    ("socket-link",),
)
BAD_ANSWER: Final = Reason(
    "bad-answer",
    500,
    _MISCONFIGURED,
    "the producer sent an invalid ANSWER",
    "fix the producer: docs/reference/wire.md has the format, and a subprotocol must be one of"
    " those offered",
)
HANDLER_MODE: Final = Reason(
    "handler-mode",
    500,
    _MISCONFIGURED,
    "the handler runs in a daemon process or in a sub-interpreter",
    "run it in Apache's children and in the main interpreter; the log names the option",
    ("handler-mode",),
)
# ``apachews_handler/wsgi.py`` has the token once more: this module is one of the packages.
NO_PACKAGES: Final = Reason(
    "no-packages",
    500,
    "",
    "the Python of mod_wsgi does not find the packages of the handler",
    "after an upgrade of the system, install again: docs/howto/after-a-system-upgrade.md",
    ("packages", "python-version"),
)
TUNNEL_HANDLER: Final = Reason(
    "tunnel-handler",
    500,
    _MISCONFIGURED,
    "the tunnel runs by the name of a handler, which an .htaccess file could use too",
    "map it with WSGIScriptAlias in the configuration of the server",
)
HTACCESS: Final = Reason(
    "htaccess",
    500,
    _MISCONFIGURED,
    "an .htaccess file of another directory led the request here, and could have set variables",
    "put that rule into the virtual host",
    ("htaccess",),
)
PASS_REQUEST: Final = Reason(
    "pass-request",
    500,
    _MISCONFIGURED,
    "mod_wsgi does not pass the request to the handler",
    "add WSGIPassApacheRequest On",
    ("pass-request",),
)
SETTINGS: Final = Reason(
    "settings",
    500,
    _MISCONFIGURED,
    "a SetEnv or Define of a setting has an unknown name or a value that is not allowed",
    "change that line; apachews doctor finds it",
    ("settings",),
)
NO_ROOT: Final = Reason(
    "no-root",
    500,
    _MISCONFIGURED,
    "the location of the WSGIScriptAlias lacks the directory of the sockets",
    "add SetEnv APACHEWS_ROOT with that directory",
    ("add-handler",),
)
NO_PROC: Final = Reason(
    "no-proc",
    500,
    _MISCONFIGURED,
    "/proc/self/fd cannot be read",
    "mount /proc where Apache's children run (inside ChrootDir, or in the container)",
)
RUN_DIRECTORY: Final = Reason(
    "run-directory",
    500,
    _MISCONFIGURED,
    "Apache's user cannot write to its run directory, so connections cannot be counted",
    "remove the directory if it belongs to another user, or set TMPDIR for Apache",
)
CHECK_FAILED: Final = Reason(
    "check-failed",
    500,
    _MISCONFIGURED,
    "this httpd or OpenSSL differs from what the handler knows; the connection was left alone",
    "please report the line of the log, with the output of apachectl -V",
)
UNEXPECTED: Final = Reason(
    "unexpected",
    500,
    _MISCONFIGURED,
    "the handler failed",
    "please report the traceback in the log",
)
ERROR_DOCUMENT: Final = Reason(
    "error-document",
    0,
    "The WebSocket is not available.",
    "an ErrorDocument names a WebSocket",
    "name a page in that ErrorDocument",
)
PRODUCER: Final = Reason(
    "producer",
    0,
    "",
    "the producer rejected the connection, with a status of its own",
    "see the log of the producer",
)
BACKEND: Final = Reason(
    "backend",
    0,
    "",
    "the backend of the tunnel did not upgrade, and answered with a status of its own",
    "see the log of the backend",
)

REASONS: Final[dict[str, Reason]] = {
    reason.token: reason for reason in tuple(globals().values()) if isinstance(reason, Reason)
}

# The line that ``HandlerError`` refusals have in the error log.
_LOGGED: Final = re.compile(r"apachews: \d{3} ([a-z0-9-]+) for ")


def find(header: str, logged: str = "") -> Reason | None:
    """Return the row of a refusal; None for an answer that is not the handler's.

    Args:
        header: value of ``HEADER``, "" without one.  It is a list: if an ErrorDocument names a
            WebSocket, the first token is that of the request that failed first.
        logged: line of the error log, for an answer whose header a proxy removed.
    """
    tokens = [token.strip() for token in header.split(",")] + _LOGGED.findall(logged)
    return next((REASONS[token] for token in tokens if token in REASONS), None)
