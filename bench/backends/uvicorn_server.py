"""The peer ``uvicorn``: echo, or each message to all, as a plain ASGI program on uvloop.

Run as ``python -m bench.backends.uvicorn_server echo|fan-out``; it prints the port on which it
listens.  Of uvicorn's three implementations of WebSockets, ``websockets-sansio`` costs least: an
echo takes two thirds of the CPU of the other two.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from ..limits import BACKLOG, MAX_MESSAGE_BYTES

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

senders: set[Send] = set()


async def serve(scope: Message, receive: Receive, send: Send) -> None:
    """Answer every message to its client; in fan-out, send it to all clients.

    A text is a greeting in fan-out, and answered.
    """
    await receive()
    await send({"type": "websocket.accept"})
    senders.add(send)
    try:
        while (message := await receive())["type"] == "websocket.receive":
            if (data := message.get("bytes")) is None:
                await send({"type": "websocket.send", "text": message["text"]})
            elif sys.argv[1] == "fan-out":
                for other in list(senders):
                    await other({"type": "websocket.send", "bytes": data})
            else:
                await send({"type": "websocket.send", "bytes": data})
    finally:
        senders.remove(send)


def run(program: Any) -> None:
    """Serve an ASGI program until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    config = uvicorn.Config(
        program,
        loop="uvloop",
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="off",
        log_level="warning",
        backlog=BACKLOG,
    )
    print("listening", listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    run(serve)
