"""The peer ``picows``: echo, or each message to all, on uvloop.

Run as ``python -m bench.backends.picows_server echo|fan-out``; it prints the port on which it
listens.
"""

from __future__ import annotations

import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from ..limits import BACKLOG, MAX_MESSAGE_BYTES

transports: set[WSTransport] = set()


class Echo(WSListener):
    """One connection; sends every frame back."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Answer a frame (picows answers pings itself)."""
        if frame.msg_type in (WSMsgType.BINARY, WSMsgType.TEXT, WSMsgType.CONTINUATION):
            transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()


class FanOut(Echo):
    """One connection; sends every message to all clients."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Add it to the clients that get every message."""
        transports.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Remove it."""
        transports.discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Send a message to all, in one frame as it came; a text is a greeting, and answered."""
        if frame.msg_type == WSMsgType.BINARY:
            message = frame.get_payload_as_bytes()
            for other in transports:
                other.send(WSMsgType.BINARY, message)
        else:
            super().on_ws_frame(transport, frame)


async def serve_forever(mode: str) -> None:
    """Serve until killed."""

    def accept(request: WSUpgradeRequest) -> WSListener:
        return FanOut() if mode == "fan-out" else Echo()

    server = await ws_create_server(
        accept,
        "127.0.0.1",
        0,
        max_frame_size=MAX_MESSAGE_BYTES,
        backlog=BACKLOG,
    )
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


uvloop.run(serve_forever(sys.argv[1]))
