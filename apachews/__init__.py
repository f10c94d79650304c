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

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .client import Client, Group
    from .delivery import Delivery
    from .events import (
        AcceptEvent,
        CloseEvent,
        ConnectionClosedEvent,
        ErrorEvent,
        Event,
        EventType,
        GapEvent,
        InvalidEvent,
        JoinEvent,
        LeaveEvent,
        MessageEvent,
        PongEvent,
        RelayBackEvent,
        RelayLostEvent,
    )
    from .exceptions import (
        ApachewsError,
        ConnectionClosed,
        HistoryError,
        MessageTooLarge,
        NotAsked,
        NotASocket,
        NotListening,
        PublishError,
        RelayError,
        ServerClosed,
        ServerError,
        SocketInUse,
        WireError,
    )
    from .history import PastMessage, Position, Replay
    from .publishing import publish
    from .server import Server

# Public name -> its module, which the first use imports: the handler needs only a few of these
# modules, in every child of Apache.
_MODULES: Final = {
    "Client": "client",
    "Delivery": "delivery",
    "Group": "client",
    "AcceptEvent": "events",
    "CloseEvent": "events",
    "ConnectionClosedEvent": "events",
    "ErrorEvent": "events",
    "Event": "events",
    "EventType": "events",
    "GapEvent": "events",
    "InvalidEvent": "events",
    "JoinEvent": "events",
    "LeaveEvent": "events",
    "MessageEvent": "events",
    "PongEvent": "events",
    "RelayBackEvent": "events",
    "RelayLostEvent": "events",
    "ApachewsError": "exceptions",
    "ConnectionClosed": "exceptions",
    "HistoryError": "exceptions",
    "MessageTooLarge": "exceptions",
    "NotListening": "exceptions",
    "NotASocket": "exceptions",
    "NotAsked": "exceptions",
    "PublishError": "exceptions",
    "RelayError": "exceptions",
    "ServerClosed": "exceptions",
    "ServerError": "exceptions",
    "SocketInUse": "exceptions",
    "WireError": "exceptions",
    "PastMessage": "history",
    "Position": "history",
    "Replay": "history",
    "publish": "publishing",
    "Server": "server",
}

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
    "GapEvent",
    "Group",
    "HistoryError",
    "InvalidEvent",
    "JoinEvent",
    "LeaveEvent",
    "MessageEvent",
    "MessageTooLarge",
    "NotASocket",
    "NotAsked",
    "NotListening",
    "PastMessage",
    "PongEvent",
    "Position",
    "PublishError",
    "RelayBackEvent",
    "RelayError",
    "RelayLostEvent",
    "Replay",
    "Server",
    "ServerClosed",
    "ServerError",
    "SocketInUse",
    "WireError",
    "publish",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
