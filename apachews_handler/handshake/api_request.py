"""A request of the HTTP API of channels: from Apache to the producer, and its answer.

Contract: ``send(request, environ, settings)`` returns the JSON of the answer, or raises
``Refusal``.  Blocks for the timeout of a handshake at most (APACHEWS_CONNECT_TIMEOUT); on the
request's thread.

How this works: the producer gets an ordinary connection.  Its OPEN has the method POST, which no
WebSocket has, and the path after that of the API; the body is one message.  The last message
before the CLOSE is the answer, because a producer may also send one that is for all clients.  A
close code of 4400 to 4599 is an HTTP status, plus 4000.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

from apachews import wire
from apachews.exceptions import WireError
from apachews.monitoring import refusals
from apachews_handler.exceptions import BadSetting, Refusal
from apachews_handler.native import httpd
from apachews_handler.native.httpd_process import spare_workers
from apachews_handler.settings import Settings
from apachews_handler.shared import waiting

from . import producer
from .request_info import peer_of

# Of an answer: the presence of 100,000 clients.
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
READ_BYTES: Final = 64 * 1024
# What the producer needs of the request's headers.
_HEADERS: Final = frozenset((b"authorization", b"x-api-key"))
_REASONS: Final = {
    4000 + reason.status: reason for reason in (refusals.API_KEY, refusals.API_OFF)
} | {wire.TOO_BIG: refusals.API_LENGTH}


def send(request: httpd.Request, environ: Mapping[str, Any], settings: Settings) -> str:
    """Pass a request on; return the JSON of the answer.

    Raises:
        Refusal
    """
    if not settings.api_for:
        raise BadSetting("APACHEWS_API_FOR", "", "the path of the socket file of the channels")
    if environ["REQUEST_METHOD"] != "POST":
        raise Refusal(refusals.API_METHOD, headers=(("Allow", "POST"),))
    body = _read_body(environ, settings.max_message_bytes)
    path = os.fsdecode(settings.api_for.encode("latin-1"))
    timeout_s, directories = settings.connect_timeout_s, settings.endpoint_directories
    place = functools.partial(waiting.place, path, settings.max_waiting, spare_workers(), timeout_s)
    with (
        producer.connect(path, timeout_s, directories, place) as sock,
        # The worker waits for the answer, so it needs a place.
        place(producer.user_of(sock, path, directories)),
    ):
        answer, code = _ask(sock, _open(request, environ).encode() + body, path, timeout_s)
    # Not in the place: a wrong key is not a failure of the producer, after which the surplus
    # handshakes of its WebSockets would be rejected at once.
    return _judge(answer, code)


def _read_body(environ: Mapping[str, Any], most: int) -> bytes:
    """Return the body as the frame of a message."""
    try:
        body = environ["wsgi.input"].read(most + 1)
    except OSError as error:
        raise Refusal(refusals.API_BODY, str(error)) from error
    if len(body) > most:
        raise Refusal(refusals.API_LENGTH)
    return wire.encode_frame(wire.TEXT, body if _is_utf8(body) else b"")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False  # not JSON: the producer says so of an empty message, too
    return True


def _open(request: httpd.Request, environ: Mapping[str, Any]) -> wire.Open:
    peer = peer_of(request)
    headers = [
        (name.lower().decode("latin-1"), value.decode("latin-1"))
        for name, value in request.request_headers()
        if name.lower() in _HEADERS
    ]
    return wire.Open(
        id=peer.id,
        method="POST",
        uri=environ.get("PATH_INFO") or "/",
        headers=tuple(headers),
        remote=peer.remote,
        local=peer.local,
        scheme="wss" if peer.tls else "ws",
        tls=peer.tls,
        user=environ.get("REMOTE_USER"),
        vhost=environ.get("SERVER_NAME", ""),
    )


def _ask(sock: socket.socket, data: bytes, path: str, timeout_s: float) -> tuple[str | None, int]:
    """Send a request; return the last message before the CLOSE, if any, and its code.

    Raises:
        Refusal: 504 no answer in time; 502 an invalid one, or none before the end of file.
    """
    deadline = time.monotonic() + timeout_s
    try:
        sock.settimeout(timeout_s)
        sock.sendall(data)
        received = b""
        answer: str | None = None
        while True:
            while (frame := _next_frame(received)) is not None:
                first, payload, received = frame
                if first == wire.WHOLE_TEXT:
                    answer = payload.decode()
                elif first == wire.FIN | wire.MOVE:
                    # The producer ends: it answers before the end of the connection.
                    sock.sendall(wire.encode_frame(wire.MOVE, b""))
                elif first == wire.FIN | wire.CLOSE:
                    return answer, wire.decode_close(payload).code
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError
            sock.settimeout(remaining_s)
            more = sock.recv(READ_BYTES)
            if not more and answer is None:
                raise Refusal(refusals.API_ANSWER, "the producer ended the connection")
            if not more:
                return answer, wire.ABNORMAL
            received += more
    except TimeoutError as error:
        fact = f"the producer of {path!r} did not answer within {timeout_s:g} s"
        raise Refusal(refusals.API_TIMEOUT, fact) from error
    except OSError as error:
        fact = f"the connection to the producer failed: {error.strerror or error}"
        raise Refusal(refusals.API_ANSWER, fact) from error
    except (WireError, UnicodeDecodeError) as error:
        raise Refusal(refusals.API_ANSWER, f"invalid data from the producer: {error}") from error


def _next_frame(received: bytes) -> tuple[int, bytes, bytes] | None:
    """Return the first frame's first byte, its payload, and the rest; None until it is whole."""
    header = wire.decode_header(received, 0)
    if header is None:
        return None
    first, length, start = header
    if length > MAX_ANSWER_BYTES:
        raise WireError(f"{length} bytes; the limit is {MAX_ANSWER_BYTES}")
    end = start + length
    if len(received) < end:
        return None
    return first, received[start:end], received[end:]


def _judge(answer: str | None, code: int) -> str:
    """Return the answer.

    Raises:
        Refusal: with the status of the CLOSE; 502 without an answer.
    """
    if code in _REASONS:
        raise Refusal(_REASONS[code])
    if answer is None:
        raise Refusal(refusals.API_ANSWER, f"the producer ended the connection, code {code}")
    return answer
