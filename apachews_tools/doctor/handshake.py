"""A real handshake with a URL: the answer that a browser would get, and its cause.

Contract: ``check_url(address, …)`` connects, sends a handshake, and yields findings; it blocks
for at most the timeout, and as long again if it tries the echo.  The client is a few lines
of its own (RFC 6455 4.1, 5.1), so that ``doctor`` needs the standard library only.

How this works: a refusal of the handler has a token (``httpd.answers``).  The finding quotes what
the error log says of this very connection, which our port identifies.
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
from pathlib import Path
from typing import Final

from apachews.exceptions import WireError
from apachews.monitoring import refusals
from apachews.wire import decode_header
from apachews_tools.httpd.address import Address
from apachews_tools.httpd.answers import (
    Answer,
    Cause,
    cause_of,
    cause_of_proxied,
    joined,
    websocket_url,
)

from .finding import ALWAYS, Finding, Level, error, ok, warning

# RFC 6455 1.3.
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _CLOSE, _PING = 0x1, 0x8, 0x9
_FIN, _MASKED = 0x80, 0x80
# X509_V_ERR_…: self-signed, itself or in its chain; an unknown issuer.
_OWN: Final = frozenset({18, 19, 20, 21})
MAX_HEAD_BYTES: Final = 65536
# Of an answer's body; the handler's own have one line.
MAX_BODY_BYTES: Final = 16384
# How much of the end of the error log is searched.
LOG_TAIL_BYTES: Final = 256 * 1024
# How much of a line is quoted, in characters.
MAX_LOGGED: Final = 300
ECHO: Final = "apachews doctor"

# Without it, a server of Socket.IO answers 400.
SOCKET_IO_QUERY: Final = "?EIO=4&transport=websocket"

_UNKNOWN: Final = Cause("the handler does not give this answer", "see the error log")


class _Channel:
    """A connection that is read in pieces, until a deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.socket = sock
        self.buffer = b""
        self._deadline = deadline

    def allow(self, timeout_s: float) -> None:
        """Start a new deadline for all calls that follow."""
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
        TimeoutError: the deadline has passed.
    """
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s


def _dial(address: Address, deadline: float) -> socket.socket:
    """Connect to the first address of a host that answers.

    Raises:
        OSError: of the last address.
    """
    failure: OSError = OSError("the host has no address")
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


def with_query(address: Address) -> Address:
    """Return the address with the query that Socket.IO needs, if the path is Socket.IO's."""
    path, mark, _ = address.target.partition("?")
    if mark or not path.rstrip("/").endswith("/socket.io"):
        return address
    return Address.parse(f"{address.url.rstrip('/')}/{SOCKET_IO_QUERY}")


def check_url(
    address: Address,
    *,
    origin: str | None = None,
    echoes: bool = False,
    timeout_s: float = 10.0,
    error_logs: tuple[str, ...] = (),
    cafile: str | None = None,
    errors: Sequence[Finding] = (),
    proxied_to: str = "",
) -> Iterator[Finding]:
    """Send a handshake, and yield what its answer means.

    Args:
        address: of the URL.
        origin: of the page that connects; None: a page of the same site.
        echoes: the producer sends every message back: try that as well.
        timeout_s: for the whole handshake, and again for the echo.
        error_logs: of httpd, if it runs on this machine.
        cafile: certificates to trust instead of the system's.
        errors: findings of other checks about this URL.
        proxied_to: the server to which a proxy leads the URL; "" without one.
    """
    deadline = time.monotonic() + timeout_s
    try:
        plain = _dial(address, deadline)
    except OSError as failure:
        yield error(
            "connect",
            f"{address.host_header}: {failure.strerror or failure}",
            breaks="clients do not reach the site",
            remedy="start Apache; Listen with that port; check the firewall and the host name",
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
            breaks="no client gets a WebSocket there",
            remedy=f"try {'wss' if not address.is_secure else 'ws'}:// on this port; see the error"
            " log",
        )
        sock.close()
        return
    with sock:
        if answer.status != 101:
            logged = _logged(error_logs, our_port)
            yield explain(address, answer, origin, logged, errors, proxied_to)
            return
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        if answer.headers.get("sec-websocket-accept") != accept:
            yield error(
                "handshake",
                f"{address.url}: 101, with a Sec-WebSocket-Accept that does not answer the key",
                breaks="browsers reject it",
                remedy="look for a cache or a server in front that is not a WebSocket server",
            )
            return
        yield ok("handshake", f"{address.url}: 101 Switching Protocols")
        if echoes:
            channel.allow(timeout_s)
            yield from _check_echo(channel, address)
        with contextlib.suppress(OSError):  # the server closed first
            channel.allow(timeout_s)
            _send(sock, _CLOSE, b"\x03\xe8")


def _start_tls(
    plain: socket.socket, address: Address, deadline: float, cafile: str | None
) -> tuple[socket.socket, Finding]:
    """Return the encrypted connection, even if the certificate is not valid.

    Raises:
        OSError: the server does not speak TLS.
    """
    context = ssl.create_default_context(cafile=cafile)
    plain.settimeout(_left_s(deadline))
    try:
        sock: socket.socket = context.wrap_socket(plain, server_hostname=address.host)
        return sock, ok("certificate", f"the certificate is valid for {address.host}")
    except ssl.SSLCertVerificationError as bad:
        plain.close()
        finding = error(
            "certificate",
            f"{address.host}: {bad.verify_message}",
            breaks="browsers reject the WebSocket, without asking their user",
            remedy="SSLCertificateFile with a certificate for that name and the intermediate ones,"
            " as certbot's fullchain.pem"
            + ("; for your own authority: --cafile FILE" if bad.verify_code in _OWN else ""),
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
    """Read the head, and the beginning of the body.

    Raises:
        OSError, ValueError: the connection ended, or the data is not HTTP.
    """
    while b"\r\n\r\n" not in channel.buffer:
        if len(channel.buffer) > MAX_HEAD_BYTES or not channel.fill():
            raise ValueError(f"not an HTTP response: {channel.buffer[:60]!r}")
    head, _, channel.buffer = channel.buffer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    match = re.match(r"HTTP/1\.[01] (\d{3})", first)
    if match is None:
        raise ValueError(f"not an HTTP response: {first[:60]!r}")
    fields = (line.partition(":") for line in lines)
    headers = joined((name.strip(), value.strip()) for name, _, value in fields)
    status = int(match[1])
    if status == 101:
        return Answer(status, headers, "")
    try:
        length = min(int(headers.get("content-length", MAX_BODY_BYTES)), MAX_BODY_BYTES)
        body = channel.take(length).decode("utf-8", "replace")
    except (OSError, ValueError):
        body = ""  # the status and the headers suffice
    return Answer(status, headers, body)


def explain(
    address: Address,
    answer: Answer,
    origin: str | None,
    logged: str = "",
    errors: Sequence[Finding] = (),
    proxied_to: str = "",
) -> Finding:
    """Return what an answer other than 101 means.

    Args:
        address: of the URL.
        answer: the HTTP answer.
        origin: the one that was asked for, or None.
        logged: what the error log says, or "".
        errors: other checks' findings: one that is the cause has the better remedy.
        proxied_to: the server to which a proxy leads the URL; "" without one.
    """
    shown = logged if len(logged) <= MAX_LOGGED else f"{logged[:MAX_LOGGED]}…"
    says = f"; the error log says: {shown}" if logged else ""
    if 300 <= answer.status < 400 and not answer.refusal(logged):
        location = answer.headers.get("location", "")
        return error(
            "handshake",
            f"{address.url}: {answer.status}, to {location or 'an unknown place'}{says}",
            breaks="browsers do not follow a redirect of a WebSocket",
            remedy=f"connect to {websocket_url(location)}"
            if location
            else "connect to the URL that the redirect should name",
        )
    cause = cause_of(answer, logged) or _UNKNOWN
    if proxied_to and answer.refusal(logged) is None:
        cause = cause_of_proxied(answer, proxied_to)
    meaning, remedy = cause.meaning, cause.remedy
    if finding := _finding_of(cause, errors):
        remedy = f"{finding.remedy} ({finding.id}, above)"
        if not logged:
            meaning = finding.text
    # With --origin the question was whether a page of that origin is refused.
    is_wanted = origin is not None and answer.refusal(logged) is refusals.ORIGIN
    return Finding(
        "handshake",
        Level.WARNING if is_wanted or answer.status == 401 else Level.ERROR,
        f"{address.url}: {answer.status}: {meaning}{says}",
        breaks="no WebSocket" + (f" for pages of {origin}" if is_wanted else ""),
        when=ALWAYS,
        remedy=remedy,
    )


def _finding_of(cause: Cause, errors: Sequence[Finding]) -> Finding | None:
    """Return the error that explains a cause, None if the other checks found none."""
    by_id = {error.id: error for error in errors}
    return next((by_id[id] for id in cause.findings if id in by_id), None)


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
                reason = payload[2:].decode("utf-8", "replace")
                why = f"the server closed it with {code} {reason}".strip()
                break
            if opcode == _PING:
                _send(channel.socket, 0xA, payload)
        else:
            why = "the connection ended"
    except TimeoutError:
        why = "no message came back in time"
    except WireError as bad:
        why = f"invalid frame from the server: {bad.reason}"
    except OSError as failure:
        why = failure.strerror or str(failure)
    yield warning(
        "echo",
        f"{address.url}: {why}",
        breaks="the producer does not send messages back",
        remedy="nothing, if it is not an echo; otherwise see its log, and for CLOSE codes"
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
    """Return the line of httpd's error log about our connection, "" without one."""
    for name in error_logs:
        try:
            with Path(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            continue  # a pipe, syslog, or not readable
        wanted = re.compile(rf"\[(?:client|remote) [^\]]*:{our_port}\] (.*)")
        # The last lines are of this connection; earlier ones may be of another with its port.
        found = [match[1] for line in lines[-200:] if (match := wanted.search(line))]
        if found:
            # mod_wsgi adds lines of its own; the handler's line has the cause.
            own = [text for text in found if "apachews:" in text or "AH0" in text]
            return (own or found)[-1]
    return ""
