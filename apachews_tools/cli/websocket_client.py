"""A WebSocket client on asyncio's streams, for ``apachews connect``.

Contract: ``await WebSocketClient.connect(…)`` returns an open connection or raises.
``send``, ``ping`` and ``close`` queue frames; ``drain`` waits until most of the queue is
written.  ``events`` yields messages, pongs and at last the close.

The protocol is wsproto's (``apachews[cli]``), so a command that must run without it
imports this module late.  Not the client of ``websockets``: Debian 12 has version 10.4,
whose only client is the API that later versions deprecate.

Sources: RFC 6455 4.1 (the client's handshake), 7.1.1 (which side closes).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Final

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.utilities import ProtocolError, RemoteProtocolError

from apachews_tools.httpd.address import Address

from .command import CommandError

# Of one message, which is held in memory until it is complete.
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
# Of the body of a refusal.
MAX_BODY_BYTES: Final = 64 * 1024
# For the last frame to leave, once the connection is closed.
FLUSH_TIMEOUT_S: Final = 1.0
_READ_BYTES: Final = 65536


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A complete message: str for text, bytes for binary."""

    data: str | bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """A ping was answered."""

    latency_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Closed:
    """The connection has ended.

    Attributes:
        code, reason: those of the server; 1006 if the connection broke off, 1005 if the
            server sent no code.
    """

    code: int
    reason: str


class Refused(CommandError):
    """The server answered the handshake with plain HTTP.

    Attributes:
        status: the status code.
        headers: names (lower case) and values.
        body: its beginning.
    """

    def __init__(self, status: int, headers: Sequence[tuple[str, str]], body: str) -> None:
        super().__init__(status, body)
        self.status = status
        self.headers = tuple(headers)
        self.body = body

    def header(self, name: str) -> str:
        """Return a header's value, "" if it is absent."""
        return next((value for key, value in self.headers if key == name), "")


class WebSocketClient:
    """One connection; ``connect`` makes it.

    Attributes:
        subprotocol: what the server chose, or None.
        extensions: what the server agreed to.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._websocket = WSConnection(ConnectionType.CLIENT)
        self._parts: list[str | bytes] = []  # of an incomplete message
        self._part_bytes = 0
        self._pings: dict[bytes, float] = {}
        self._close: Closed | None = None
        self._refusal: RejectConnection | None = None
        self._body = bytearray()  # of the refusal
        self.subprotocol: str | None = None
        self.extensions: list[str] = []

    @classmethod
    async def connect(
        cls,
        address: Address,
        *,
        headers: Sequence[tuple[str, str]] = (),
        subprotocols: Sequence[str] = (),
        deflate: bool = True,
        tls: ssl.SSLContext | None = None,
        timeout_s: float,
    ) -> WebSocketClient:
        """Connect, within the timeout.

        Args:
            address: of the server.
            headers: further headers of the request.
            subprotocols: those to offer.
            deflate: whether to offer permessage-deflate.
            tls: for ``wss``.
            timeout_s: for all steps together.

        Raises:
            Refused: the server answered with plain HTTP.
            CommandError: the server is unreachable, or does not speak WebSocket.
        """
        offered: list[Extension] = [PerMessageDeflate()] if deflate else []
        request = Request(
            host=address.host_header,
            target=address.target,
            extensions=offered,
            extra_headers=[(name.encode(), value.encode()) for name, value in headers],
            subprotocols=list(subprotocols),
        )
        client: WebSocketClient | None = None

        async def open_connection() -> WebSocketClient:
            nonlocal client
            client = cls(*await _open_streams(address, tls))
            await client._shake_hands(request)
            return client

        try:
            return await asyncio.wait_for(open_connection(), timeout_s)
        except BaseException as error:
            if client:
                client.abort()
            if isinstance(error, RemoteProtocolError):
                raise CommandError(f"{_name(address)}: not a WebSocket server ({error})") from None
            if isinstance(error, (asyncio.TimeoutError, ConnectionError)):
                if client and client._refusal:  # only the end of the body is missing
                    raise client._refused() from None
                problem = error.strerror if isinstance(error, ConnectionError) else None
                raise CommandError(
                    f"{_name(address)}: {problem or f'no answer within {timeout_s:g} s'}"
                ) from None
            raise

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent: neither side has closed the connection."""
        return self._websocket.state is ConnectionState.OPEN and self._close is None

    def send(self, data: str | bytes) -> None:
        """Send a message; without effect once the connection is being closed."""
        self._send(TextMessage(data) if isinstance(data, str) else BytesMessage(data))

    def ping(self) -> None:
        """Send a ping; ``events`` yields ``Answered`` for its pong."""
        payload = os.urandom(8)
        self._pings[payload] = time.monotonic()
        self._send(Ping(payload=payload))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame, unless one was sent; ``events`` yields the answer."""
        self._send(CloseConnection(code=code, reason=reason))

    async def drain(self) -> None:
        """Wait until most of what was sent has been written."""
        with suppress(OSError):  # the end is read
            await self._writer.drain()

    async def finish(self) -> None:
        """Write what was sent, and close the socket."""
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), FLUSH_TIMEOUT_S)
        except asyncio.TimeoutError:
            self.abort()
        except OSError:
            pass  # the server has closed it

    def abort(self) -> None:
        """Close the socket at once, without a close frame."""
        self._writer.transport.abort()

    async def events(self) -> AsyncIterator[Message | Answered | Closed]:
        """Yield what the server sends; ``Closed`` is the last."""
        data: bytes | None = None  # frames may have come with the handshake
        while True:
            for item in self._receive(data):
                yield item
            # (After close frames the server hangs up first (7.1.1), but some take long.)
            if self._close is None:
                try:
                    data = await self._reader.read(_READ_BYTES)
                except OSError:
                    data = b""
            if self._close or not data:
                yield self._close or Closed(1006, "")
                return

    def _receive(self, data: bytes | None) -> Iterator[Message | Answered]:
        try:
            if data:
                self._websocket.receive_data(data)
            for event in self._websocket.events():
                yield from self._handle(event)
        except ProtocolError as error:
            self._fail(1002, str(error))

    def _handle(self, event: Event) -> Iterator[Message | Answered]:
        if isinstance(event, (TextMessage, BytesMessage)):
            self._parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
            self._part_bytes += len(event.data)
            if self._part_bytes > MAX_MESSAGE_BYTES:
                self._fail(1009, f"a message has more than {MAX_MESSAGE_BYTES} bytes")
            elif event.message_finished:
                yield Message(_joined(self._parts))
                self._parts.clear()
                self._part_bytes = 0
        elif isinstance(event, Ping):
            self._send(event.response())
        elif isinstance(event, Pong):
            sent_at = self._pings.pop(bytes(event.payload), None)
            if sent_at is not None:
                yield Answered(time.monotonic() - sent_at)
        elif isinstance(event, CloseConnection):
            if self._websocket.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
                # Not a close frame: wsproto reports a violation of the protocol.
                self._fail(int(event.code), event.reason or "")
                return
            if self._websocket.state is ConnectionState.REMOTE_CLOSING:
                self._writer.write(self._websocket.send(event.response()))
            self._close = Closed(int(event.code), event.reason or "")

    def _send(self, event: Event) -> None:
        if self._websocket.state is ConnectionState.OPEN:
            self._writer.write(self._websocket.send(event))

    def _fail(self, code: int, problem: str) -> None:
        if self._close is None:
            self._close = Closed(1006, f"the server breaks the protocol: {problem}")
            self._send(CloseConnection(code=code))

    # The handshake

    async def _shake_hands(self, request: Request) -> None:
        try:
            self._writer.write(self._websocket.send(request))
        except (ProtocolError, ValueError) as error:
            raise CommandError(f"the request cannot be sent: {error}") from None
        has_read = False
        while True:
            data = await self._reader.read(_READ_BYTES)
            if not data and not has_read:
                raise CommandError("the server closed the connection during the handshake")
            has_read = True
            self._websocket.receive_data(data or None)
            for event in self._websocket.handshake.events():
                if isinstance(event, AcceptConnection):
                    self.subprotocol = event.subprotocol
                    self.extensions = [extension.name for extension in event.extensions]
                    return
                if isinstance(event, RejectConnection):
                    self._refusal = event
                elif isinstance(event, RejectData):
                    self._body += event.data
                    if event.body_finished or len(self._body) > MAX_BODY_BYTES:
                        raise self._refused()
            if not data:
                raise self._refused()

    def _refused(self) -> Refused:
        assert self._refusal
        pairs = [(a.decode("latin-1"), b.decode("latin-1")) for a, b in self._refusal.headers]
        return Refused(
            self._refusal.status_code,
            pairs,
            self._body[:MAX_BODY_BYTES].decode(errors="replace"),
        )


async def _open_streams(
    address: Address, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect by TCP, then by TLS: the message says which of them failed."""
    where = _name(address)
    try:
        sock = await _dial(address)
    except socket.gaierror as error:
        raise CommandError(f"unknown host {address.host!r}: {error.strerror}") from None
    except OSError as error:
        hint = ": is Apache running?" if isinstance(error, ConnectionRefusedError) else ""
        raise CommandError(f"{where}: {os.strerror(error.errno or 0)}{hint}") from None
    try:
        # (asyncio closes the socket if this fails, and sets TCP_NODELAY.)
        return await asyncio.open_connection(
            sock=sock, ssl=tls, server_hostname=address.host if tls else None
        )
    except ssl.SSLCertVerificationError as error:
        raise CommandError(
            f"{where}: the certificate is not trusted ({error.verify_message}): --cafile FILE"
            " names a certificate to trust, --insecure trusts any"
        ) from None
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        raise CommandError(
            f"{where}: no TLS ({reason}): is this a port for ws:// instead?"
        ) from None


async def _dial(address: Address) -> socket.socket:
    """Connect to the first address of the host that accepts."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    failure: OSError | None = None
    for family, kind, protocol, _, endpoint in found:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, endpoint)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:  # cancelled
            sock.close()
            raise
    assert failure  # getaddrinfo returns at least one address
    raise failure


def _name(address: Address) -> str:
    return f"{address.host}, port {address.port}"


def _joined(parts: Sequence[str | bytes]) -> str | bytes:
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(parts):
        return "".join(texts)
    return b"".join(part for part in parts if isinstance(part, bytes))
