"""A client of HTTP/2 on the library h2, for the handshake of RFC 8441."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings

# RFC 9113 7: the request has to come again, by HTTP/1.1.
HTTP_1_1_REQUIRED = 0xD


@dataclass
class Outcome:
    """How a stream went.

    Attributes:
        status: of the response; 0 if the stream was reset before.
        headers, body: of the response.
        reset: the error code of the stream's reset; None if it was not reset.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    reset: int | None = None


class H2Client:
    """A connection of HTTP/2.

    Args:
        sock: a TLS connection that has agreed on ``h2``.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._flush()
        self._events: list[h2.events.Event] = []
        self.allows_websockets = self._wait_for_settings()

    def __enter__(self) -> H2Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def open_websocket(self, authority: str, path: str) -> Outcome:
        """Ask for a WebSocket (RFC 8441 5); the stream stays open."""
        return self._ask(
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "https"),
                (":authority", authority),
                (":path", path),
                ("origin", f"https://{authority}"),
                ("sec-websocket-version", "13"),
            ],
            has_ended=False,
        )

    def get(self, authority: str, path: str) -> Outcome:
        """Ask for a page."""
        names = {":method": "GET", ":scheme": "https", ":authority": authority, ":path": path}
        return self._ask(list(names.items()), has_ended=True)

    def _ask(self, headers: list[tuple[str, str]], has_ended: bool) -> Outcome:
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, headers, end_stream=has_ended)
        self._flush()
        outcome = Outcome()
        while True:
            for event in self._next_events():
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    outcome.headers = dict(event.headers or ())  # type: ignore[arg-type]
                    outcome.status = int(outcome.headers[":status"])
                    if outcome.status == 200 and not has_ended:
                        return outcome
                elif isinstance(event, h2.events.DataReceived):
                    outcome.body += event.data or b""
                elif isinstance(event, h2.events.StreamReset):
                    outcome.reset = event.error_code
                    return outcome
                elif isinstance(event, h2.events.StreamEnded):
                    return outcome

    def _wait_for_settings(self) -> bool:
        while True:
            for event in self._next_events():
                if isinstance(event, h2.events.RemoteSettingsChanged):
                    code = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
                    return bool(self._h2.remote_settings.get(code, 0))

    def _next_events(self) -> list[h2.events.Event]:
        data = self._socket.recv(1 << 16)
        assert data, "the server has closed the connection"
        events = self._h2.receive_data(data)
        self._flush()
        return events

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())
