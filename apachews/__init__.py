"""The producer's side of a WebSocket that Apache httpd serves.

A producer is a program that listens on a Unix socket; Apache bridges WebSockets
to it.  Standard library only.  The echo program::

    from apachews import *

    server = Server('/var/www/public_html/websocket.ws')
    while True:
        event = server.dequeue()
        if event.type() == Event.IO:
            event.write(event.read())
"""

from __future__ import annotations

from .client import Client
from .events import (
    AcceptEvent,
    CloseEvent,
    ConnectionClosedEvent,
    ErrorEvent,
    Event,
    EventType,
    InvalidEvent,
    MessageEvent,
    PongEvent,
)
from .exceptions import (
    ApachewsError,
    ConnectionClosed,
    NobodyListens,
    NotAsked,
    NotASocket,
    PublishError,
    ServerClosed,
    ServerError,
    SocketInUse,
    WireError,
)
from .groups import Delivery, Group
from .publishing import publish
from .server import Server

__all__ = [
    "AcceptEvent",
    "ApachewsError",
    "Client",
    "CloseEvent",
    "ConnectionClosed",
    "ConnectionClosedEvent",
    "Delivery",
    "ErrorEvent",
    "Event",
    "EventType",
    "Group",
    "InvalidEvent",
    "MessageEvent",
    "NobodyListens",
    "NotASocket",
    "NotAsked",
    "PongEvent",
    "PublishError",
    "Server",
    "ServerClosed",
    "ServerError",
    "SocketInUse",
    "WireError",
    "publish",
]
