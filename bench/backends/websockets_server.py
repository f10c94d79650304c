"""The peer ``websockets``: echo, or each message to all, with its asyncio server.

Run as ``python -m bench.backends.websockets_server echo|fan-out asyncio|uvloop deflate|""``; it
prints the port on which it listens.
"""

from __future__ import annotations

import asyncio
import sys

from websockets.asyncio.server import ServerConnection, broadcast, serve

from ..limits import BACKLOG, MAX_MESSAGE_BYTES

connections: set[ServerConnection] = set()


async def echo(connection: ServerConnection) -> None:
    """Send every message back."""
    async for message in connection:
        await connection.send(message)


async def fan_out(connection: ServerConnection) -> None:
    """Send every message to all clients; a text is a greeting, and answered."""
    connections.add(connection)
    try:
        async for message in connection:
            if isinstance(message, str):
                await connection.send(message)
            else:
                broadcast(connections, message)
    finally:
        connections.remove(connection)


async def serve_forever(mode: str, compression: str) -> None:
    """Serve until killed."""
    async with serve(
        fan_out if mode == "fan-out" else echo,
        "127.0.0.1",
        0,
        compression=compression or None,
        ping_interval=None,
        max_size=MAX_MESSAGE_BYTES,
        backlog=BACKLOG,
    ) as server:
        print("listening", next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.serve_forever()


def main() -> None:
    """Choose the loop."""
    _, mode, loop, compression = sys.argv
    if loop == "uvloop":
        import uvloop

        uvloop.run(serve_forever(mode, compression))
    else:
        asyncio.run(serve_forever(mode, compression))


main()
