"""A WebSocket client on a plain or a TLS socket, for ``apachews connect``.

Contract: ``WebSocketClient`` connects in its constructor, and waits for no longer than
it was told to.  After that nothing blocks: poll for ``fileno()`` (for writing too
while ``queued_bytes``), then ``progress_nowait()`` returns what came.  One thread.

The protocol is wsproto's, which is in ``apachews[bridge]``: import this module where
it is needed only.  So the client that tries a bridge out shares no code with it.

Sources: RFC 6455 4.1 (the client's handshake), 7.1.1 (who closes).
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
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

from apachews_tools.httpd.address import Address as Address

from .command import CommandError

# Held in memory until it is whole.
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
# Of the body of a refusal.
MAX_BODY_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 65536
# After which others have their turn, however much comes.
READS_IN_A_ROW: Final = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A whole message: str for text, bytes for binary."""

    data: str | bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """A ping was answered."""

    latency_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Closed:
    """The connection has ended.

    Attributes:
        code, reason: the server's; 1006 where it broke off, 1005 for none.
    """

    code: int
    reason: str


class Refused(CommandError):
    """The server answered the handshake with plain HTTP.

    Attributes:
        status: its code.
        headers: names (lower case) and values.
        body: its beginning.
    """

    def __init__(self, status: int, headers: Sequence[tuple[str, str]], body: str) -> None:
        super().__init__(status, body)
        self.status = status
        self.headers = tuple(headers)
        self.body = body

    def header(self, name: str) -> str:
        """Return a header's value, "" where there is none."""
        return next((value for key, value in self.headers if key == name), "")


class WebSocketClient:
    """One WebSocket.

    Args:
        address: where to.
        headers: more of them for the request.
        subprotocols: to offer.
        deflate: whether to offer permessage-deflate.
        tls: for ``wss``.
        timeout_s: for all of connecting.

    Attributes:
        subprotocol: what the server chose, or None.
        extensions: what it agreed to.
        has_more: whether ``progress_nowait`` is to be called again at once.

    Raises:
        Refused: the server does not want to.
        CommandError: it could not be reached, or speaks no WebSocket.
    """

    def __init__(
        self,
        address: Address,
        *,
        headers: Sequence[tuple[str, str]] = (),
        subprotocols: Sequence[str] = (),
        deflate: bool = True,
        tls: ssl.SSLContext | None = None,
        timeout_s: float,
    ) -> None:
        self._address = address
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._websocket = WSConnection(ConnectionType.CLIENT)
        self._output = bytearray()
        self._parts: list[str | bytes] = []  # of a message that is not whole
        self._part_bytes = 0
        self._pings: dict[bytes, float] = {}
        self._close: Closed | None = None
        self.has_more = False
        self.subprotocol: str | None = None
        self.extensions: list[str] = []
        offered: list[Extension] = [PerMessageDeflate()] if deflate else []
        request = Request(
            host=address.host_header,
            target=address.target,
            extensions=offered,
            extra_headers=[(name.encode(), value.encode()) for name, value in headers],
            subprotocols=list(subprotocols),
        )
        self._socket = self._dial(tls)
        try:
            self._shake_hands(request)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent: nobody has said goodbye."""
        return self._websocket.state is ConnectionState.OPEN and self._close is None

    @property
    def queued_bytes(self) -> int:
        """What waits to be written."""
        return len(self._output)

    def send(self, data: str | bytes) -> None:
        """Send a message; does nothing where the connection is being closed."""
        if isinstance(data, str):
            self._send(TextMessage(data=data))
        else:
            self._send(BytesMessage(data=data))

    def ping(self) -> None:
        """Ask for a sign of life; ``Answered`` tells how long it took."""
        payload = os.urandom(8)
        self._pings[payload] = time.monotonic()
        self._send(Ping(payload=payload))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye; ``Closed`` follows.  Closing again does nothing."""
        self._send(CloseConnection(code=code, reason=reason))

    def abort(self) -> None:
        """Close the socket, without a word."""
        self._socket.close()

    def progress_nowait(self) -> Iterator[Message | Answered | Closed]:
        """Write and read what goes without waiting; ``Closed`` is the last.

        To be called once before ``fileno()`` is waited for (frames may have come with
        the handshake), and again at once while ``has_more``.
        """
        self.has_more = False
        yield from self._receive(b"")
        for _ in range(READS_IN_A_ROW):
            # (7.1.1 would have the server hang up first, but some take their time.)
            if self._close and not self._output:
                self._socket.close()
                yield self._close
                return
            data = self._read()
            if data is None:
                return
            if not data:
                self._socket.close()
                yield self._close or Closed(1006, "")
                return
            yield from self._receive(data)
        self.has_more = True

    def _receive(self, data: bytes) -> Iterator[Message | Answered]:
        """Take what was read, and what came with the handshake; write what that asks for."""
        try:
            if self._close is None:  # (wsproto wants nothing after the server's goodbye.)
                if data:
                    self._websocket.receive_data(data)
                for event in self._websocket.events():
                    yield from self._take(event)
        except ProtocolError as error:
            self._break_off(1002, str(error))
        self._write()

    def _send(self, event: Event) -> None:
        if self._websocket.state is ConnectionState.OPEN:
            self._output += self._websocket.send(event)

    def _take(self, event: Event) -> Iterator[Message | Answered]:
        if isinstance(event, (TextMessage, BytesMessage)):
            self._parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
            self._part_bytes += len(event.data)
            if self._part_bytes > MAX_MESSAGE_BYTES:
                self._break_off(1009, f"a message of more than {MAX_MESSAGE_BYTES} bytes")
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
                # No goodbye: wsproto tells so that the server breaks the protocol.
                self._break_off(int(event.code), event.reason or "")
                return
            if self._websocket.state is ConnectionState.REMOTE_CLOSING:
                self._output += self._websocket.send(event.response())
            self._close = Closed(int(event.code), event.reason or "")

    def _break_off(self, code: int, problem: str) -> None:
        if self._close is None:
            self._close = Closed(1006, f"the server breaks the protocol: {problem}")
            self._send(CloseConnection(code=code))

    def _write(self) -> None:
        while self._output:
            try:
                del self._output[: self._socket.send(self._output[: 1 << 18])]
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            except OSError:
                self._output.clear()  # the end is read
                return

    def _read(self) -> bytes | None:
        """Return what has come; b"" at the end, None where there is nothing."""
        try:
            return self._socket.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError:
            return b""

    # The handshake

    def _dial(self, tls: ssl.SSLContext | None) -> socket.socket:
        address = self._address
        where = f"{address.host}, port {address.port}"
        try:
            plain = socket.create_connection((address.host, address.port), self._timeout_s)
        except UnicodeError:
            raise CommandError(f"there is no host {address.host!r}: no name of a host") from None
        except socket.gaierror as error:
            raise CommandError(f"there is no host {address.host!r}: {error.strerror}") from None
        except TimeoutError:
            raise CommandError(f"{where}: no answer within {self._timeout_s:g} s") from None
        except OSError as error:
            hint = ": is Apache running?" if error.errno == errno.ECONNREFUSED else ""
            raise CommandError(f"{where}: {error.strerror}{hint}") from None
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            return plain
        try:
            plain.settimeout(self._left_s())
            return tls.wrap_socket(plain, server_hostname=address.host)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise CommandError(
                f"{where}: its certificate is not trusted ({error.verify_message}): --cafile FILE"
                " names the one to trust, --insecure trusts any"
            ) from None
        except TimeoutError:
            plain.close()
            raise CommandError(f"{where}: no TLS within {self._timeout_s:g} s") from None
        except OSError as error:
            plain.close()
            reason = getattr(error, "reason", None) or error.strerror or error
            raise CommandError(
                f"{where}: no TLS ({reason}): is this a port for ws:// instead?"
            ) from None

    def _shake_hands(self, request: Request) -> None:
        address = self._address
        try:
            self._output += self._websocket.send(request)
        except (ProtocolError, ValueError) as error:
            raise CommandError(f"the request cannot be sent: {error}") from None
        refusal: RejectConnection | None = None
        body = bytearray()
        has_read = False
        try:
            self._socket.settimeout(self._left_s())
            self._socket.sendall(self._output)
            self._output.clear()
            while True:
                self._socket.settimeout(self._left_s())
                data = self._socket.recv(_READ_BYTES)
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
                        refusal = event
                    elif isinstance(event, RejectData) and refusal:
                        body += event.data
                        if event.body_finished or len(body) > MAX_BODY_BYTES:
                            raise _refused(refusal, body)
                if not data:
                    assert refusal  # or wsproto would have raised
                    raise _refused(refusal, body)
        except TimeoutError:
            if refusal:
                raise _refused(refusal, body) from None
            raise CommandError(
                f"{address.host}, port {address.port}: no answer to the handshake within"
                f" {self._timeout_s:g} s"
            ) from None
        except RemoteProtocolError as error:
            raise CommandError(
                f"{address.host}, port {address.port}: this is no WebSocket server ({error})"
            ) from None
        except OSError as error:
            raise CommandError(f"{address.host}, port {address.port}: {error.strerror}") from None

    def _left_s(self) -> float:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s


def _joined(parts: Sequence[str | bytes]) -> str | bytes:
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(parts):
        return "".join(texts)
    return b"".join(part for part in parts if isinstance(part, bytes))


def _refused(refusal: RejectConnection, body: bytearray) -> Refused:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in refusal.headers]
    return Refused(refusal.status_code, headers, body[:MAX_BODY_BYTES].decode(errors="replace"))
