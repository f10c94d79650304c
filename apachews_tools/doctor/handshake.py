"""A real handshake with a URL: what a browser would get, and why.

Contract: ``check_url(address, …)`` connects, asks, and yields findings; blocks for at
most the timeout, and as long again where it tries the echo.  The client is a few lines
of its own (RFC 6455 4.1, 5.1), so that ``doctor`` needs nothing but the standard library.

How this works: the handler's own refusals are told from httpd's by their body, and what
the error log says of this very connection, known by our port, is quoted.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apachews.exceptions import WireError
from apachews.wire import decode_header
from apachews_tools.httpd.address import Address

from .finding import ALWAYS, Finding, Level, error, ok, warning

# RFC 6455 1.3.
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _CLOSE, _PING = 0x1, 0x8, 0x9
_FIN, _MASKED = 0x80, 0x80
# X509_V_ERR_…: self-signed, itself or in its chain; an issuer that is not known.
_OWN: Final = frozenset({18, 19, 20, 21})
MAX_HEAD_BYTES: Final = 65536
# Of an answer's body; the handler's own are one line.
MAX_BODY_BYTES: Final = 16384
# The end of the error log that is looked at.
LOG_TAIL_BYTES: Final = 256 * 1024
# What is quoted of it, in characters.
MAX_LOGGED: Final = 300
ECHO: Final = "apachews doctor"

# (status, a piece of the handler's own body, "" for httpd's or somebody else's) ->
# what it means, what mends it.  Tried in this order.
ANSWERS: Final[list[tuple[int, str, str, str]]] = [
    (
        200,
        "",
        "an ordinary page: the request has not come to the handler",
        "AddHandler websocket .ws; and no rewriting of .ws paths (RewriteRule \\.ws$ - [END])",
    ),
    (
        400,
        "speaking plain HTTP to an SSL-enabled server port",
        "this port is for TLS",
        "connect with wss://",
    ),
    (
        400,
        "",
        "something between here and Apache has changed the handshake",
        "look for a proxy; the error log names the header",
    ),
    (
        401,
        "",
        "Apache wants a login here; a page of the same site has its users' already",
        "nothing, where that is meant; else Require all granted",
    ),
    (
        403,
        "This page's origin",
        "the page's origin may not connect",
        "SetEnv APACHEWS_ORIGINS with that origin; behind a proxy, SetEnv APACHEWS_FORWARDED",
    ),
    (
        403,
        "Only browsers",
        "the site wants an Origin, as browsers send it",
        "connect with one; or SetEnv APACHEWS_REQUIRE_ORIGIN off",
    ),
    (
        403,
        "There is no WebSocket",
        "the path is a file, and no socket; or a link leads to a socket of another user",
        "start the producer on that path, once the file is moved away; a link made as root",
    ),
    (
        403,
        "",
        "Apache does not allow access: Options without FollowSymLinks (AH00038), or Require"
        " (AH01630)",
        "Options +FollowSymLinks and Require all granted, for the directory",
    ),
    (
        404,
        "There is no WebSocket",
        "there is no such socket file",
        "start the producer; look at the path",
    ),
    (
        404,
        "",
        "no such file, and the request has not come to the handler",
        "look at the path; AddHandler websocket .ws; is this the right virtual host?",
    ),
    (
        426,
        "",
        "the request that came to Apache was no handshake: a proxy in front has taken the header"
        " Upgrade away",
        "have that proxy pass Upgrade and Connection on",
    ),
    (
        429,
        "",
        "too many connections from this address",
        "SetEnv APACHEWS_MAX_CONNECTIONS_PER_ADDRESS with a larger number",
    ),
    (
        500,
        "not set up correctly",
        "the handler cannot work in this configuration",
        "what the error log says: its line begins with apachews: 500",
    ),
    (
        500,
        "",
        "mod_wsgi cannot run the handler",
        "what the error log says; often packages that Apache's user cannot read",
    ),
    (
        501,
        "",
        "a proxy answers here, and does not do WebSockets",
        "ProxyPass … !",
    ),
    (502, "", "a proxy answers here, and does not reach what is behind it", "ProxyPass … !"),
    (
        503,
        "not available at the moment",
        "nobody listens on the socket, its backlog is full, or too many are connected",
        "start the producer; the error log says which",
    ),
    (
        503,
        "",
        "a proxy, or an Apache without a free worker, answers",
        "no ProxyPass for this path; MaxRequestWorkers",
    ),
    (504, "", "a proxy answers here, and has waited in vain", "no ProxyPass for this path"),
]
# What httpd and mod_wsgi log of a connection -> the same; better known than by a status.
LOGGED: Final[dict[str, tuple[str, str]]] = {
    "AH00035": (
        "Apache's user may not enter a directory on the way to the socket",
        "chmod o+x for the directory that the error log names, or a socket elsewhere",
    ),
    "AH00037": (
        "a symbolic link that httpd may not follow, or that leads where Apache's user may not go",
        "Options +FollowSymLinks; chmod o+x for the directories that it leads to",
    ),
    "AH00038": (
        "the directory's Options lack FollowSymLinks",
        "Options +FollowSymLinks, for the directory",
    ),
    "AH00132": (
        "httpd takes the socket for a file: nothing gives it to the handler",
        "AddHandler websocket .ws",
    ),
    "AH00957": (
        "a proxy answers here, and does not reach what is behind it",
        "in front of its rule: ProxyPass with this path and !, or RewriteRule \\.ws$ - [END]",
    ),
    "AH01114": (
        "a proxy answers here, and does not reach what is behind it",
        "in front of its rule: ProxyPass with this path and !, or RewriteRule \\.ws$ - [END]",
    ),
    "AH01630": (
        "Require keeps this client out",
        "Require all granted, or whoever may, for the directory",
    ),
    # With an AllowOverride, httpd looks for an .htaccess before it looks for the socket.
    "AH00529": (
        "Apache's user may not enter a directory on the way to the socket, or not read its"
        " .htaccess",
        "chmod o+x for the directory that the error log names, or a socket elsewhere",
    ),
    "Embedded mode of mod_wsgi disabled": (
        "mod_wsgi may run nothing in Apache's children",
        "WSGIRestrictEmbedded Off",
    ),
    "ModuleNotFoundError": (
        "the handler's packages are not where mod_wsgi's Python looks",
        "WSGIPythonHome with the environment that has them; apachews config prints the line",
    ),
    "Target WSGI script not found": (
        "the handler's file is not there, or Apache's user cannot read it",
        "Define APACHEWS_HANDLER with its directory; apachews config prints the line",
    ),
    "Unable to connect to WSGI daemon": (
        "mod_wsgi looks for a daemon process, and the handler works in none",
        "process-group=%{GLOBAL} in WSGIHandlerScript",
    ),
}

# What is logged, or a status and "" -> the checks whose findings are the reason, and
# know the very line that mends it.
REASONS: Final[dict[tuple[int, str], tuple[str, ...]]] = {
    (403, "AH00035"): ("socket-permission",),
    (403, "AH00037"): ("socket-permission", "follow-symlinks"),
    (403, "AH00529"): ("socket-permission",),
    (403, "AH00038"): ("follow-symlinks",),
    (403, "AH00132"): ("add-handler",),
    (403, "AH01630"): ("access",),
    (403, ""): (
        *("access", "follow-symlinks", "socket-permission", "socket-link", "add-handler"),
        "socket",
    ),
    (404, ""): ("add-handler", "socket"),
    (500, "no permission to connect"): ("socket-permission",),
}


@dataclass(frozen=True)
class Answer:
    """What came back: status, header (names in lower case), the beginning of the body."""

    status: int
    headers: dict[str, str]
    body: str


class _Channel:
    """A connection that is read in pieces, until a deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.socket = sock
        self.buffer = b""
        self._deadline = deadline

    def allow(self, timeout_s: float) -> None:
        """Begin anew: all that follows may take so long together."""
        self._deadline = time.monotonic() + timeout_s
        self.socket.settimeout(timeout_s)

    def fill(self) -> bool:
        self.socket.settimeout(_left_s(self._deadline))
        data = self.socket.recv(65536)
        self.buffer += data
        return bool(data)

    def take(self, size: int) -> bytes:
        while len(self.buffer) < size and self.fill():
            pass
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken


def _left_s(deadline: float) -> float:
    """Return the time until a deadline, for a socket's timeout.

    Raises:
        TimeoutError: it has passed.
    """
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s


def _dial(address: Address, deadline: float) -> socket.socket:
    """Connect to the first of a host's addresses that answers.

    Raises:
        OSError: none does.
    """
    failure: OSError = OSError("it has no address")
    for family, kind, number, _, place in socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    ):
        sock = None
        try:
            sock = socket.socket(family, kind, number)
            sock.settimeout(_left_s(deadline))
            sock.connect(place)
        except OSError as error:
            failure = error
            if sock is not None:
                sock.close()
        else:
            return sock
    raise failure


def check_url(
    address: Address,
    *,
    origin: str | None = None,
    echoes: bool = False,
    timeout_s: float = 10.0,
    error_logs: tuple[str, ...] = (),
    cafile: str | None = None,
    errors: Sequence[Finding] = (),
) -> Iterator[Finding]:
    """Do a handshake, and say what came of it.

    Args:
        address: of the URL.
        origin: of the page that connects; None: one of the same site.
        echoes: the producer sends back what it gets: try that as well.
        timeout_s: for all of the handshake, and again for the echo.
        error_logs: of httpd, where it is on this machine.
        cafile: certificates to trust instead of the system's.
        errors: what other checks have found of this URL.
    """
    deadline = time.monotonic() + timeout_s
    try:
        plain = _dial(address, deadline)
    except OSError as failure:
        yield error(
            "connect",
            f"{address.host_header}: {failure.strerror or failure}",
            breaks="nobody reaches the site",
            remedy="start Apache; Listen with that port; look at the firewall and at the name",
        )
        return
    our_port = plain.getsockname()[1]
    sock = plain
    try:
        if address.is_secure:
            sock, finding = _start_tls(plain, address, deadline, cafile)
            our_port = sock.getsockname()[1]
            yield finding
        channel = _Channel(sock, deadline)
        key = base64.b64encode(os.urandom(16))
        sock.sendall(_request(address, key.decode(), origin or address.origin))
        answer = _read_answer(channel)
    except (OSError, ValueError) as failure:
        yield error(
            "connect",
            f"{address.url}: {getattr(failure, 'strerror', None) or failure}",
            breaks="nobody gets a WebSocket there",
            remedy=f"is it {'wss' if not address.is_secure else 'ws'}:// on this port? The error"
            " log may say more",
        )
        sock.close()
        return
    with sock:
        if answer.status != 101:
            yield explain(address, answer, origin, _logged(error_logs, our_port), errors)
            return
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        if answer.headers.get("sec-websocket-accept") != accept:
            yield error(
                "handshake",
                f"{address.url}: 101, with a Sec-WebSocket-Accept that does not answer the key",
                breaks="browsers refuse it",
                remedy="something in between answers from a cache, or is no WebSocket server",
            )
            return
        yield ok("handshake", f"{address.url}: 101 Switching Protocols")
        if echoes:
            channel.allow(timeout_s)
            yield from _check_echo(channel, address)
        with contextlib.suppress(OSError):  # it has hung up first
            channel.allow(timeout_s)
            _send(sock, _CLOSE, b"\x03\xe8")


def _start_tls(
    plain: socket.socket, address: Address, deadline: float, cafile: str | None
) -> tuple[socket.socket, Finding]:
    """Return the encrypted connection, without a certificate that is good if need be.

    Raises:
        OSError: it is no TLS.
    """
    context = ssl.create_default_context(cafile=cafile)
    plain.settimeout(_left_s(deadline))
    try:
        sock: socket.socket = context.wrap_socket(plain, server_hostname=address.host)
        return sock, ok("certificate", f"the certificate is good for {address.host}")
    except ssl.SSLCertVerificationError as bad:
        plain.close()
        finding = error(
            "certificate",
            f"{address.host}: {bad.verify_message}",
            breaks="browsers refuse the WebSocket, without asking their user",
            remedy="SSLCertificateFile with a certificate for that name and the intermediate ones,"
            " as certbot's fullchain.pem"
            + ("; for one of your own making: --cafile FILE" if bad.verify_code in _OWN else ""),
        )
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    again = _dial(address, deadline)
    again.settimeout(_left_s(deadline))
    return context.wrap_socket(again, server_hostname=address.host), finding


def _request(address: Address, key: str, origin: str) -> bytes:
    lines = [
        f"GET {address.target} HTTP/1.1",
        f"Host: {address.host_header}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        f"Origin: {origin}",
        "User-Agent: apachews-doctor",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")


def _read_answer(channel: _Channel) -> Answer:
    """Read the head, and a little of the body.

    Raises:
        OSError, ValueError: it breaks off, or it is no HTTP.
    """
    while b"\r\n\r\n" not in channel.buffer:
        if len(channel.buffer) > MAX_HEAD_BYTES or not channel.fill():
            raise ValueError(f"no HTTP response: {channel.buffer[:60]!r}")
    head, _, channel.buffer = channel.buffer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    match = re.match(r"HTTP/1\.[01] (\d{3})", first)
    if match is None:
        raise ValueError(f"no HTTP response: {first[:60]!r}")
    fields = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    status = int(match[1])
    if status == 101:
        return Answer(status, headers, "")
    try:
        length = min(int(headers.get("content-length", MAX_BODY_BYTES)), MAX_BODY_BYTES)
        body = channel.take(length).decode("utf-8", "replace")
    except (OSError, ValueError):
        body = ""  # it does not matter so much
    return Answer(status, headers, body)


def explain(
    address: Address,
    answer: Answer,
    origin: str | None,
    logged: str = "",
    errors: Sequence[Finding] = (),
) -> Finding:
    """Return what an answer other than 101 means.

    Args:
        address: of the URL.
        answer: what came.
        origin: the one that was asked for, or None.
        logged: what the error log says, or "".
        errors: what other checks have found: one that is the reason has the better remedy.
    """
    shown = logged if len(logged) <= MAX_LOGGED else f"{logged[:MAX_LOGGED]}…"
    says = f"; the error log says: {shown}" if logged else ""
    if 300 <= answer.status < 400:
        location = answer.headers.get("location", "")
        there = re.sub(r"^http", "ws", location)
        return error(
            "handshake",
            f"{address.url}: {answer.status}, to {location or 'nowhere'}{says}",
            breaks="browsers follow no redirect of a WebSocket",
            remedy=f"connect to {there}" if there else "connect to where it is to lead",
        )
    meaning, remedy = next(
        (
            (meaning, remedy)
            for status, piece, meaning, remedy in ANSWERS
            if status == answer.status and piece in answer.body
        ),
        ("an answer that the handler never gives", "what the error log says"),
    )
    meaning, remedy = next(
        (known for piece, known in LOGGED.items() if piece in logged), (meaning, remedy)
    )
    if reason := _reason(answer, logged, errors):
        remedy = f"{reason.remedy} ({reason.id}, above)"
        if not logged:
            meaning = reason.text
    # A page of another origin that is refused is what was to be found out.
    is_wanted = answer.status == 403 and origin is not None and "origin" in answer.body
    return Finding(
        "handshake",
        Level.WARNING if is_wanted or answer.status == 401 else Level.ERROR,
        f"{address.url}: {answer.status}: {meaning}{says}",
        breaks="no WebSocket" + (f" for pages of {origin}" if is_wanted else ""),
        load=ALWAYS,
        remedy=remedy,
    )


def _reason(answer: Answer, logged: str, errors: Sequence[Finding]) -> Finding | None:
    """Return which of the errors is why the answer is what it is, None for none."""
    if "origin" in answer.body or "Only browsers" in answer.body:
        return None  # the handler has had the request, and says why
    known = [
        ids
        for (status, piece), ids in REASONS.items()
        if status == answer.status and piece in logged
    ]
    by_id = {error.id: error for error in errors}
    return next((by_id[id] for ids in known[:1] for id in ids if id in by_id), None)


def _check_echo(channel: _Channel, address: Address) -> Iterator[Finding]:
    begun_at = time.monotonic()
    try:
        _send(channel.socket, _TEXT, ECHO.encode())
        while frame := _read_frame(channel):
            opcode, payload = frame
            if opcode == _TEXT and payload == ECHO.encode():
                elapsed_ms = (time.monotonic() - begun_at) * 1000
                yield ok("echo", f"a message came back after {elapsed_ms:.1f} ms")
                return
            if opcode == _CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                why = f"it was closed with {code} {payload[2:].decode('utf-8', 'replace')}".strip()
                break
            if opcode == _PING:
                _send(channel.socket, 0xA, payload)
        else:
            why = "the connection broke off"
    except TimeoutError:
        why = "nothing came back in time"
    except WireError as bad:
        why = f"what came is no frame of a server's: {bad.reason}"
    except OSError as failure:
        why = failure.strerror or str(failure)
    yield warning(
        "echo",
        f"{address.url}: {why}",
        breaks="the producer does not send back what it gets",
        remedy="nothing, where it is no echo; else look at its log, and for CLOSE codes at"
        " docs/reference/close-codes.md",
    )


def _send(sock: socket.socket, opcode: int, payload: bytes) -> None:
    """Send a frame of at most 125 bytes, masked (RFC 6455 5.3)."""
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    sock.sendall(bytes([_FIN | opcode, _MASKED | len(payload)]) + mask + masked)


def _read_frame(channel: _Channel) -> tuple[int, bytes] | None:
    """Return opcode and payload of the next frame, None at the end."""
    while (header := decode_header(channel.buffer, 0)) is None:
        if not channel.fill():
            return None
    first, length, start = header
    channel.take(start)
    payload = channel.take(min(length, MAX_BODY_BYTES))
    return (first & 0x0F, payload) if len(payload) == length else None


def _logged(error_logs: tuple[str, ...], our_port: int) -> str:
    """Return what httpd's error log says of our connection, "" for nothing."""
    for name in error_logs:
        try:
            with Path(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            continue  # a pipe, syslog, or not for us to see
        wanted = re.compile(rf"\[(?:client|remote) [^\]]*:{our_port}\] (.*)")
        # Later lines are of this connection; earlier ones may be of another with its number.
        found = [match[1] for line in lines[-200:] if (match := wanted.search(line))]
        if found:
            # mod_wsgi says more than once what it is about; the handler's line counts.
            own = [text for text in found if "apachews:" in text or "AH0" in text]
            return (own or found)[-1]
    return ""
