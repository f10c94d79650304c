"""A tunnel whose bytes are not frames after the handshake.

Contract: ``OpaqueSession`` is a ``TunnelSession`` that passes bytes and ends of file, and looks at
neither.  Sans-I/O; one session per connection, on one thread.

How this works: some programs use the handshake of WebSocket for a stream of their own.  Between
their bytes a PING or a CLOSE would be garbage, so such a connection has no keep-alive, and what
closes it is an end of file.
"""

from __future__ import annotations

from typing import ClassVar, Final

from .close_causes import CloseCause
from .states import ClientState, ProducerState
from .tunnel import TunnelSession

# (Hoisted: the lookup of an Enum member costs as much as a call in Python 3.11.)
_OPEN: Final = ClientState.OPEN
_CLOSING: Final = ClientState.CLOSING
_CONNECTED: Final = ProducerState.CONNECTED


class OpaqueSession(TunnelSession):
    """A tunnel whose bytes are not WebSocket frames after the handshake.

    It counts bytes.  The client's end of file passes as one: the backend's output goes on until
    its own end, or until nothing passes for APACHEWS_CLOSE_TIMEOUT.  The backend's end of file
    ends both directions.
    """

    __slots__ = ()

    has_frames: ClassVar[bool] = False

    def receive_client(self, data: bytes, now: float = 0.0, busy: int = 1) -> None:
        """Pass bytes of the client on."""
        if self.producer_state is _CONNECTED:
            self._up.payload_bytes += len(data)
            self.to_producer.append(data)

    def receive_producer(self, data: bytes) -> None:
        """Pass bytes of the backend on."""
        if not self.client_finished:
            self._down.payload_bytes += len(data)
            self.to_client.append(data)

    def receive_client_eof(self) -> None:
        """Handle the client's end of file; the second call means that it is gone."""
        self._record_cause(CloseCause.CLIENT_LEFT)
        if self.client_state is _OPEN:
            self.client_state = _CLOSING
            self.has_client_eof = True
            self.producer_state = ProducerState.AWAITING_EOF
        else:
            self._end_client(ClientState.GONE)

    def receive_producer_eof(self, unsent: bytes = b"", sent: int = 0) -> None:
        """Handle the backend's end of file: what it has sent is the end of the stream."""
        self.to_producer.clear()
        self.producer_state = ProducerState.DONE
        if self.client_state is not ClientState.GONE:
            self._record_cause(CloseCause.PRODUCER_ENDED)
            self._down.has_sent_last = True
            self.client_state = ClientState.CLOSED

    def ping(self, now: float = 0.0) -> bool:
        """Return False: there are no frames."""
        return False

    def close(self, cause: CloseCause, code: int = 0) -> None:
        """End the connection: there are no frames that could say why."""
        if self.client_state is _OPEN:
            self._record_cause(cause, code)
            self._end_client(ClientState.GONE)
