"""A client of channels: who it is, and to what it is subscribed.

Contract: plain data, for ``Channels`` and for hooks.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from apachews._server.connection import connection_of
from apachews.client import Client

from .protocol import Command


class Connection:
    """A client that has connected, for hooks.

    Attributes:
        client: of the server: its ``request`` has the headers, cookies and addresses.
        user: who it is; "": anonymous.
        info: of its token, or of ``on_connect``: for presence and publications.
        data: what the page has sent with ``connect``.
        channels: to which it is subscribed.
    """

    __slots__ = (
        "channels",
        "client",
        "data",
        "expires_at",
        "gaps",
        "heard_at",
        "info",
        "is_connected",
        "is_open",
        "is_resumed",
        "opened_at",
        "user",
        "waiting",
    )

    def __init__(self, client: Client, is_resumed: bool) -> None:
        self.client = client
        # It has connected and subscribed to a producer before this one, which knows nothing of it.
        self.is_resumed = is_resumed
        self.user = ""
        self.info: Any = None
        self.data: Any = None
        self.channels: dict[str, Subscription] = {}
        self.expires_at: float | None = None  # time.time()
        self.opened_at = self.heard_at = time.monotonic()
        self.is_connected = False
        self.is_open = True
        # The channels of which it has lost messages, and is not told yet.
        self.gaps: set[str] = set()
        # The commands after one whose hook has not finished; None: no hook runs.
        self.waiting: deque[Command] | None = None

    def hold(self) -> None:
        """Let later commands wait; the client is not read meanwhile."""
        self.waiting = deque()
        self._pause(True)

    def release(self) -> deque[Command]:
        """End this; return the commands that wait."""
        later, self.waiting = self.waiting or deque(), None
        self._pause(False)
        return later

    def _pause(self, is_paused: bool) -> None:
        connection = connection_of(self.client)
        with self.client._link.lock:
            connection.pause(is_paused)

    @property
    def id(self) -> str:
        """The id of the connection, which the protocol calls the client."""
        return self.client.guid()

    def describe(self, channel_info: Any = None) -> dict[str, Any]:
        """Return who it is, as the protocol's ClientInfo."""
        found: dict[str, Any] = {"client": self.id, "user": self.user}
        if self.info is not None:
            found["conn_info"] = self.info
        if channel_info is not None:
            found["chan_info"] = channel_info
        return found


class Subscription:
    """A subscription of one client; ``info`` and ``expires_at`` are those of its token.

    Args:
        is_own: the client has asked for it; False: the server subscribed the client.
    """

    __slots__ = ("expires_at", "has_token", "info", "is_own")

    def __init__(self, *, is_own: bool) -> None:
        self.is_own = is_own
        self.info: Any = None
        self.expires_at: float | None = None  # time.time()
        self.has_token = False


def expiry(expires_at: float | None) -> dict[str, Any]:
    """Return what a client is told of the end of a token; None: it has none.

    Args:
        expires_at: ``time.time()``.
    """
    if expires_at is None:
        return {}
    return {"expires": True, "ttl": max(1, round(expires_at - time.time()))}
