"""The peers ``python-socketio`` and ``channels_redis``, on uvicorn: each message to all by Redis.

Run as ``python -m bench.backends.relayed_server socketio|channels REDIS``; it prints the port on
which it listens.  Each is set up as its documentation says.  channels_redis has two layers; the
one on pub/sub costs less for a message to all, because Redis copies it once for each program.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from .uvicorn_server import run


def socketio_program(redis: str) -> Any:
    """Return a program of python-socketio with its Redis manager."""
    import socketio

    manager = socketio.AsyncRedisManager(redis)
    # Without async_handlers two messages of a client reach the other program in their order.
    server = socketio.AsyncServer(async_mode="asgi", client_manager=manager, async_handlers=False)

    async def hello(sid: str) -> None:
        # Messages of the other program arrive from now on.
        while manager.pubsub is None or not manager.pubsub.subscribed:
            await asyncio.sleep(0.01)
        await server.emit("hello", to=sid, ignore_queue=True)  # not by Redis

    async def message(sid: str, data: str) -> None:
        await server.emit("m", data)

    server.on("hello", hello)
    server.on("m", message)
    return socketio.ASGIApp(server)


def channels_program(redis: str) -> Any:
    """Return a consumer of Django Channels with the pub/sub layer of channels_redis."""
    from django.conf import settings

    layer = {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [redis]},
    }
    settings.configure(CHANNEL_LAYERS={"default": layer})
    from channels.generic.websocket import AsyncWebsocketConsumer

    class Consumer(AsyncWebsocketConsumer):  # type: ignore[misc,unused-ignore]
        groups = ["all"]  # noqa: RUF012 -- as its documentation has it

        async def receive(
            self, text_data: str | None = None, bytes_data: bytes | None = None
        ) -> None:
            if text_data is not None:
                await self.send(text_data)
            else:
                await self.channel_layer.group_send("all", {"type": "to.all", "data": bytes_data})

        async def to_all(self, event: dict[str, Any]) -> None:
            await self.send(bytes_data=event["data"])

    return Consumer.as_asgi()


PROGRAMS = {"socketio": socketio_program, "channels": channels_program}

if __name__ == "__main__":
    run(PROGRAMS[sys.argv[1]](sys.argv[2]))
