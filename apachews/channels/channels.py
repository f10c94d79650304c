"""The clients of a server as those of Centrifuge: connections, pings, the end of tokens.

Contract: ``Channels(server).handle(event)`` for every event of the server, in the thread that calls
``dequeue()``.  A client can send anything: it gets an error, or is disconnected, and no exception
reaches the program.

Messages of other programs (``publish()``) are the data of a publication.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final

from apachews.client import Client
from apachews.delivery import Delivery
from apachews.events import (
    AcceptEvent,
    Event,
    EventType,
    GapEvent,
    JoinEvent,
    LeaveEvent,
    MessageEvent,
)
from apachews.exceptions import HistoryError
from apachews.history import Replay
from apachews.server import Server

from . import protocol
from .api import Api
from .calls import Calls
from .commands import Commands, Hooks, OnConnect, OnPublish, OnRpc, OnSubscribe
from .config import Config, ConfigError, UnknownNamespace
from .connection import Connection, Subscription
from .control import Control
from .protocol import Disconnect, ReplyError
from .proxy import proxy_of
from .subscriptions import Subscriptions, client_info

# The interval in which expired tokens and clients that say nothing are noticed.
CHECK_S: Final = 1.0
# A client has so long to send ``connect``.
CONNECT_TIMEOUT_S: Final = 10.0
# After a token's end its client has so long to present another one.
EXPIRY_GRACE_S: Final = 5.0
# After a deploy the clients connect again, and recover; not all in one moment.
RECONNECT_SPREAD_S: Final = 5.0

# A close code from 4400 on is the status of a request of the API, plus 4000.
API_KEY: Final = (4401, "the key of the API is missing or wrong")
API_OFF: Final = (4404, "the configuration of the channels has no [api]")

_logger: Final = logging.getLogger("apachews")


class Channels:
    """Serves the clients of Centrifuge on a server.

    Hooks run in ``handle``.  They raise ``ReplyError`` for an error that the client gets, or
    ``Disconnect``; another exception is logged, and the client gets the error 100.  A hook may
    return a future, or be a coroutine with ``apachews.aio``: the later commands of the client
    wait for it, for ten seconds at most, and those of other clients do not.

    Args:
        server: with ``presence=True`` if a namespace has presence.
        config: namespaces and tokens.
        on_connect: called with a connection before it is answered; it may set ``user`` and
            ``info``, and returns the channels to which the server subscribes it, or None.
        on_subscribe: called with connection, channel and the page's data, in place of the
            configuration's ``subscribe``; returns information for presence, or None.
        on_publish: called with connection, channel and data, in place of the configuration's
            ``publish``; returns the data to publish.
        on_rpc: called with connection, method and data; returns the result.
        executor: calls the hooks in its threads; they must not use the server there, except
            for ``call_soon``.

    Raises:
        ConfigError: the tokens' rules cannot be used, or the server has no presence.

    Example:
        >>> channels = Channels(server)
        >>> channels.publish("news", {"text": "hello"}).position.offset
        1
    """

    def __init__(
        self,
        server: Server,
        config: Config | None = None,
        *,
        on_connect: OnConnect | None = None,
        on_subscribe: OnSubscribe | None = None,
        on_publish: OnPublish | None = None,
        on_rpc: OnRpc | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.server = server
        self.config = config or Config()
        if self.config.needs_presence and not server.has_presence:
            raise ConfigError("presence and join_leave need Server(path, presence=True)")
        if not server.keeps_histories:
            raise ConfigError(
                "channels need a place for their messages: with workers a history file or a Redis;"
                " NATS keeps none"
            )
        self._connections: dict[Client, Connection] = {}
        self._subscriptions = Subscriptions(server, self.config)
        hooks = Hooks(on_connect, on_subscribe, on_publish, on_rpc)
        control = Control(
            server, self._subscriptions, self.connections, self.disconnect, self.unsubscribe
        )
        self._commands = Commands(
            self._subscriptions,
            control,
            hooks,
            Calls(server, executor),
            proxy_of(self.config),
            self.disconnect,
        )
        api = self.config.api
        self._api = None if api is None else Api(api, self._subscriptions, control)
        # The requests of the API whose body has not arrived.
        self._requests: set[Client] = set()
        # What other programs publish reaches channels that are not open here, too.
        server.on_unopened_group(self._open)
        server.call_later(CHECK_S, self._check)
        server.call_later(self.config.ping_seconds, self._ping)

    def run(self) -> None:
        """Serve until the server is closed."""
        for event in self.server:
            self.handle(event)

    def handle(self, event: Event) -> None:
        """Handle an event of the server."""
        if isinstance(event, MessageEvent):
            self._receive(event.client(), event.data)
        elif isinstance(event, AcceptEvent):
            self._accept(event)
        elif isinstance(event, (JoinEvent, LeaveEvent)):
            self._announce(event)
        elif isinstance(event, GapEvent):
            self._tell_gap(event.group)
        elif event.type() in (EventType.ConnectionClosed, EventType.Error):
            client = event.client_or_none()
            if client is not None:
                self._remove(client)
                self._requests.discard(client)

    # What programs call.

    def publish(self, channel: str, data: object, tags: dict[str, str] | None = None) -> Delivery:
        """Publish a value to a channel.

        Raises:
            UnknownNamespace, HistoryError, MessageTooLarge
        """
        return self._subscriptions.group(channel).broadcast(protocol.stored(data, None, tags))

    def presence(self, channel: str) -> dict[str, dict[str, Any]]:
        """Return who is subscribed: connection id to ClientInfo.

        With workers or a relay: over all of them, while this process has a subscriber.

        Raises:
            ReplyError: the channel has no presence.
            UnknownNamespace
        """
        return self._subscriptions.presence(channel)

    def history(
        self, channel: str, since: tuple[str, int] | None, function: Callable[[Replay], object]
    ) -> None:
        """Call a function with the kept messages after a position; None: all.

        Raises:
            ReplyError: the channel has no history.
            UnknownNamespace
        """
        self._subscriptions.history(channel, since, function)

    def connections(self, user: str = "", client_id: str = "") -> list[Connection]:
        """Return the connections of a user in this process, or the one with an id."""
        return [
            one
            for one in self._connections.values()
            if one.is_connected and (one.id == client_id if client_id else one.user == user)
        ]

    def disconnect(
        self,
        connection: Connection,
        code: int = protocol.FORCE_DISCONNECT[0],
        reason: str = protocol.FORCE_DISCONNECT[1],
    ) -> None:
        """Close a connection with a code of the protocol."""
        self._remove(connection.client)
        connection.client.close(code, reason)

    def subscribe(self, connection: Connection, channel: str) -> None:
        """Subscribe a connection from the server's side.

        Raises:
            ReplyError: it cannot be subscribed.
        """
        if channel not in connection.channels:
            self._subscriptions.add(
                connection, channel, None, self._subscriptions.tell, Subscription(is_own=False)
            )

    def unsubscribe(
        self,
        connection: Connection,
        channel: str,
        code: int = protocol.SERVER_UNSUBSCRIBE[0],
        reason: str = protocol.SERVER_UNSUBSCRIBE[1],
    ) -> None:
        """End a subscription from the server's side."""
        if self._subscriptions.remove(connection, channel):
            value = {"code": code, "reason": reason}
            connection.client.send(protocol.push(channel, "unsubscribe", value))

    # The connection.

    def _remove(self, client: Client) -> None:
        """Forget a connection, if it is known."""
        connection = self._connections.pop(client, None)
        if connection is not None:
            connection.is_open = False
            if connection.waiting is not None:
                connection.release()  # the answer to a CLOSE is read

    def _accept(self, event: AcceptEvent) -> None:
        client = event.client()
        if client.request.method == "POST":
            self._accept_request(client)
            return
        self._connections[client] = Connection(client, event.resumed)
        if event.resumed:
            # The subscriptions were in the process before: the client subscribes again, and
            # recovers what it misses meanwhile.
            delay_s = random.uniform(0.0, RECONNECT_SPREAD_S)
            self.server.call_later(
                delay_s, functools.partial(client.close, *protocol.FORCE_RECONNECT)
            )

    def _receive(self, client: Client, data: str | bytes) -> None:
        connection = self._connections.get(client)
        if connection is None:
            if self._api is not None and client in self._requests:
                self._requests.discard(client)
                self._api.run(client.request.uri, data, functools.partial(_answer, client))
            return  # disconnected
        connection.heard_at = time.monotonic()
        try:
            for command in protocol.decode(data):
                if connection.is_open:  # a hook may have disconnected it
                    self._commands.run(connection, command)
        except Disconnect as error:
            self.disconnect(connection, error.code, error.reason)

    def _accept_request(self, client: Client) -> None:
        """Accept a request of the API, whose body follows."""
        if self._api is None:
            client.close(*API_OFF)
        elif not self._api.is_permitted(dict(client.request.headers)):
            client.close(*API_KEY)
        else:
            self._requests.add(client)

    def _open(self, channel: str) -> None:
        """Open the channel of a message from outside, if the configuration has it."""
        try:
            self._subscriptions.group(channel)
        except (UnknownNamespace, ReplyError):
            _logger.warning("a message for %r is not of a channel: no namespace", channel)

    def _announce(self, event: JoinEvent | LeaveEvent) -> None:
        """Tell the subscribers here who has come or gone, on any machine."""
        try:
            if not self._subscriptions.namespace(event.group).join_leave:
                return
        except (UnknownNamespace, ReplyError):
            return
        info = client_info(event.member)
        if info is not None:
            kind = "join" if isinstance(event, JoinEvent) else "leave"
            message = protocol.push(event.group, kind, {"info": info})
            self._subscriptions.group(event.group).broadcast(message, scope="here")

    def _tell_gap(self, channel: str) -> None:
        """Let the subscribers here begin anew: the store has lost messages."""
        for connection in [*self._connections.values()]:
            subscription = connection.channels.get(channel)
            if subscription is None:
                continue
            # The client subscribes again, and is told that it cannot recover.
            connection.gaps.add(channel)
            self.unsubscribe(connection, channel, *protocol.INSUFFICIENT_STATE)
            if not subscription.is_own:
                try:
                    self._subscriptions.add(
                        connection, channel, None, self._subscriptions.tell, subscription
                    )
                except (HistoryError, ReplyError) as error:
                    _logger.warning("%s", error)

    # Timers.

    def _ping(self) -> None:
        """Ping all clients."""
        sent_at = time.monotonic()
        require = functools.partial(self._require_pongs, sent_at)
        self.server.call_later(self.config.pong_seconds, require)
        self.server.call_later(self.config.ping_seconds, self._ping)
        self.server.broadcast("{}", scope="here")

    def _require_pongs(self, sent_at: float) -> None:
        """Close the clients that have said nothing since a ping."""
        for connection in [*self._connections.values()]:
            # One whose hook has not finished is not read.
            if connection.waiting is not None:
                continue
            if max(connection.heard_at, connection.opened_at) < sent_at:
                self.disconnect(connection, *protocol.NO_PONG)

    def _check(self) -> None:
        """Close what has expired."""
        self.server.call_later(CHECK_S, self._check)
        now, wall = time.monotonic(), time.time() - EXPIRY_GRACE_S
        for connection in [*self._connections.values()]:
            if not connection.is_connected:
                is_waiting = connection.waiting is not None
                if connection.opened_at + CONNECT_TIMEOUT_S < now and not is_waiting:
                    self.disconnect(connection, *protocol.STALE)
            elif connection.expires_at is not None and connection.expires_at < wall:
                self.disconnect(connection, *protocol.CONNECTION_EXPIRED)
            else:
                for channel, subscription in [*connection.channels.items()]:
                    if subscription.expires_at is not None and subscription.expires_at < wall:
                        self.unsubscribe(connection, channel, *protocol.SUBSCRIPTION_EXPIRED)


def _answer(client: Client, text: str) -> None:
    """Answer a request of the API."""
    client.send(text)
    client.close()
