"""A backend's answer to a handshake, read from its bytes.

Contract: ``AnswerReader.receive(data)`` accepts bytes, cut at any position, and b"" for the end of
file.  It returns ``Accepted`` once a 101 answers this very handshake, ``Answered`` once another
answer has begun, and None before.  Everything else raises ``BadAnswer``: a connection becomes a
tunnel by a valid 101 only.  ``BodyReader`` reads the body of an ``Answered``.  Sans-I/O, and
bounded: ``room`` says how many bytes of a head may still come.

How this works: a 101 is a few short lines, and a strict pattern reads it.  If the bytes are
anything else, h11 reads them from the beginning: interim responses, lengths, chunks,
HTTP/1.0, violations.  (The pattern accepts less than h11 and means the same; a test and a fuzzer
compare them.  h11 takes ten times as long.)

Sources: RFC 6455 4.1 (the server's handshake); RFC 9110 15.2 (1xx), 7.8 (Upgrade); RFC 9112 6.
(lengths); CVE-2019-17567 (a tunnel after an answer that was not a 101).
"""

from __future__ import annotations

import http
import re
from dataclasses import dataclass
from typing import Final

import h11
from wsproto.utilities import generate_accept_token

from .request import HOP_BY_HOP, Header, named_by_connection

# Of a head, with the interim responses before it; the bytes that follow a 101 count too.
MAX_HEAD_BYTES: Final = 64 * 1024
_SWITCHING: Final = b"HTTP/1.1 101"
# The end of a head; h11 accepts bare line feeds.
_END: Final = re.compile(rb"\n\r?\n")
# RFC 9112 4., 5.: lines that need no interpretation.  (A field's value has no blank at its end
# here, and no byte that h11 might treat in its own way.)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 101(?: [ -~]*)?")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[!-~](?:[ -~]*[!-~])?)?)")
_MIN_STATUS, _MAX_STATUS = 200, 599
_LENGTH: Final = b"content-length"
# off_t: httpd does not send a longer body, and mod_wsgi answers 500.
_MAX_BODY_BYTES: Final = 2**63 - 1


class BadAnswer(Exception):
    """The bytes do not answer the handshake; the text says why, for the log."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The backend accepts.

    Attributes:
        head: the 101 for the client.
        subprotocol: what the backend has chosen, None for nothing.
        first: the bytes that came after its head.
    """

    head: bytes
    subprotocol: str | None
    first: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """The backend answers with another response, which is for the client.

    Attributes:
        status: 200 to 599.
        reason: its phrase.
        headers: without those of the connection; ISO 8859-1.
        body: reads the rest.
    """

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: BodyReader


class AnswerReader:
    """Reads one answer.

    Args:
        key: of the handshake, Sec-WebSocket-Key.

    Attributes:
        room: how many bytes may be received before the answer.
    """

    def __init__(self, key: bytes) -> None:
        self._accept = generate_accept_token(key)
        self._data = bytearray()  # as long as it may be a 101
        self._h11: h11.Connection | None = None
        self.room = MAX_HEAD_BYTES

    def receive(self, data: bytes) -> Accepted | Answered | None:
        """Read bytes.

        Args:
            data: at most ``room`` bytes; b"" for the end of file.

        Raises:
            BadAnswer
        """
        if not data:
            raise BadAnswer("it closed the connection before the end of an answer")
        self.room -= len(data)
        answer = self._read_by_h11(data) if self._h11 else self._read_by_pattern(data)
        if answer is None and self.room <= 0:
            raise BadAnswer(f"its head has more than {MAX_HEAD_BYTES} bytes")
        return answer

    def _read_by_pattern(self, data: bytes) -> Accepted | Answered | None:
        # Earlier bytes contain no end, at most the first two of its three bytes: a head that drips
        # is searched once and not once per byte.
        searched = max(0, len(self._data) - 2)
        self._data += data
        end = _END.search(self._data, searched)
        if end:
            headers = _read_switching(bytes(self._data[: end.end()]))
            if headers is not None:
                return self._accepted(headers, bytes(self._data[end.end() :]))
        elif _SWITCHING.startswith(self._data[: len(_SWITCHING)]):
            return None  # the rest is to come
        self._h11 = _client()
        data = bytes(self._data)
        self._data.clear()
        return self._read_by_h11(data)

    def _read_by_h11(self, data: bytes) -> Accepted | Answered | None:
        connection = self._h11
        assert connection
        try:
            connection.receive_data(data)
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.InformationalResponse):
                    if event.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS:
                        if event.http_version != b"1.1":
                            raise BadAnswer("a 101 of HTTP/1.0")
                        first = bytes(connection.trailing_data[0])
                        return self._accepted(list(event.headers.raw_items()), first)
                    continue  # RFC 9110 15.2: another response follows
                if isinstance(event, h11.Response):
                    return _answered(connection, event)
                raise BadAnswer("it is not an answer")
        except h11.RemoteProtocolError as error:
            raise BadAnswer(str(error)) from error

    def _accepted(self, headers: list[Header], first: bytes) -> Accepted:
        """Check a 101.

        Raises:
            BadAnswer: it does not answer this handshake.
        """
        found: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            found.setdefault(name.lower(), []).append(value)
        upgrades = found.get(b"upgrade", [])
        if [value.lower() for value in upgrades] != [b"websocket"]:
            raise BadAnswer(f"a 101 with the Upgrade {_shown(upgrades)}")
        # Compared as bytes: base64 has one form, and case matters in it.
        accepts = found.get(b"sec-websocket-accept", [])
        if accepts != [self._accept]:
            raise BadAnswer(f"a 101 with the Sec-WebSocket-Accept {_shown(accepts)}")
        named = named_by_connection(headers)
        if b"upgrade" not in named:
            raise BadAnswer("a 101 without Connection: Upgrade")
        lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
        if any(name.startswith(b"sec-") for name in named):
            raise BadAnswer(f"a 101 with the Connection {_shown(sorted(named))}")
        # A 101 has no body, so no length either.
        dropped = HOP_BY_HOP | named | {b"content-length"}
        lines += [
            b"%s: %s" % (name, value) for name, value in headers if name.lower() not in dropped
        ]
        chosen = found.get(b"sec-websocket-protocol")
        subprotocol = chosen[0].decode("latin-1") if chosen else None
        return Accepted(b"\r\n".join([*lines, b"", b""]), subprotocol, first)


class BodyReader:
    """Reads the body of an answer.

    Attributes:
        is_complete: the body has ended.
    """

    def __init__(self, connection: h11.Connection) -> None:
        self._h11 = connection
        self.is_complete = False

    def receive(self, data: bytes | None) -> bytes:
        """Return the content among some bytes.

        Args:
            data: b"" for the end of file; None for what came together with the head.

        Raises:
            BadAnswer: the body has ended early, or is malformed.
        """
        pieces: list[bytes] = []
        try:
            if data is not None:
                self._h11.receive_data(data)
            while not self.is_complete:
                event = self._h11.next_event()
                if isinstance(event, h11.Data):
                    pieces.append(bytes(event.data))
                elif event is h11.NEED_DATA:
                    break
                else:  # EndOfMessage; its trailers do not pass
                    self.is_complete = True
        except h11.RemoteProtocolError as error:
            raise BadAnswer(str(error)) from error
        return b"".join(pieces)


def _read_switching(head: bytes) -> list[Header] | None:
    """Return the headers of a plain 101, None for a head that h11 is to read."""
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if not head.endswith(b"\r\n\r\n") or not _STATUS_LINE.fullmatch(first):
        return None
    headers = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        # (h11 checks these, and one of them would be a body.)
        if not match or match[1].lower() in (b"content-length", b"transfer-encoding"):
            return None
        headers.append((match[1], match[2]))
    return headers


def _client() -> h11.Connection:
    """Return a connection that has sent a request to upgrade."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    headers = [("Host", "backend"), ("Connection", "Upgrade"), ("Upgrade", "websocket")]
    connection.send(h11.Request(method="GET", target="/", headers=headers))
    connection.send(h11.EndOfMessage())
    return connection


def _answered(connection: h11.Connection, response: h11.Response) -> Answered:
    """Return an answer that is not a 101.

    Raises:
        BadAnswer: the client could not be given it.
    """
    status = response.status_code
    names = {name for name, _ in response.headers}
    if {b"content-length", b"transfer-encoding"} <= names:
        raise BadAnswer("it has both Content-Length and Transfer-Encoding")
    # (h11 has checked that these are digits, and that all lengths are equal.)
    if any(int(value) > _MAX_BODY_BYTES for name, value in response.headers if name == _LENGTH):
        raise BadAnswer(f"the length of its body is more than {_MAX_BODY_BYTES}")
    if not _MIN_STATUS <= status <= _MAX_STATUS:
        raise BadAnswer(f"its status is {status}")
    raw = list(response.headers.raw_items())
    dropped = set(HOP_BY_HOP | named_by_connection(raw))
    if status == http.HTTPStatus.UPGRADE_REQUIRED:
        dropped.discard(b"upgrade")  # RFC 9110 15.5.22: it says to what
    if status in (http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_MODIFIED):
        dropped.add(b"content-length")
    headers = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in raw
        if name.lower() not in dropped
    ]
    return Answered(status, _reason(status, response.reason), headers, BodyReader(connection))


def _reason(status: int, sent: bytes) -> str:
    reason = bytes(sent).decode("latin-1")
    if reason.isascii() and reason.isprintable() and reason.strip():
        return reason
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _shown(values: list[bytes]) -> str:
    return ", ".join(value.decode("ascii", "replace")[:60] for value in values) or "missing"
