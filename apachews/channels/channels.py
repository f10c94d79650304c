"""The clients of a server as those of Centrifuge: connections, subscriptions, recovery, presence.

Contract: ``Channels(server).handle(event)`` for every event of the server, in the thread that calls
``dequeue()``.  A client can send anything: it gets an error, or is disconnected, and no exception
reaches the program.

How this works: a channel is a group of the library with a history, whose ``formatter`` makes the
push of a message.  So the order of the messages, and that none is missed or doubled, is the
library's part; a subscription that comes back is ``group.add(client, since=…)``.  Messages of
other programs (``publish()``) are the data of a publication.
"""

from __future__ import annotations

import functools
import json
import logging
import random
import time
from collections.abc import Callable
from typing import Any, Final

from apachews.client import Client, Group
from apachews.delivery import Delivery
from apachews.events import AcceptEvent, Event, EventType, JoinEvent, LeaveEvent, MessageEvent
from apachews.exceptions import HistoryError
from apachews.history import Position, Replay
from apachews.server import Server

from . import protocol
from .commands import Commands, Hooks, OnConnect, OnPublish, OnRpc, OnSubscribe, OnSubscribed
from .config import Config, ConfigError, Namespace, UnknownNamespace
from .connection import Connection, Subscription, expiry
from .protocol import Disconnect, ReplyError

# The interval in which expired tokens and clients that say nothing are noticed.
CHECK_S: Final = 1.0
# A client has so long to send ``connect``.
CONNECT_TIMEOUT_S: Final = 10.0
# After a token's end its client has so long to present another one.
EXPIRY_GRACE_S: Final = 5.0
# After a deploy the clients connect again, and recover; not all in one moment.
RECONNECT_SPREAD_S: Final = 5.0

_logger: Final = logging.getLogger("apachews")


class Channels:
    """Serves the clients of Centrifuge on a server.

    Hooks run in ``handle``.  They raise ``ReplyError`` for an error that the client gets, or
    ``Disconnect``; another exception is logged, and the client gets the error 100.

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
    ) -> None:
        self.server = server
        self.config = config or Config()
        if self.config.needs_presence and not server.has_presence:
            raise ConfigError("presence and join_leave need Server(path, presence=True)")
        self._connections: dict[Client, Connection] = {}
        self._pinged_at = 0.0
        self._commands = Commands(self, Hooks(on_connect, on_subscribe, on_publish, on_rpc))
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
        elif event.type() in (EventType.ConnectionClosed, EventType.Error):
            client = event.client_or_none()
            if client is not None:
                self._connections.pop(client, None)

    # What programs call.

    def publish(self, channel: str, data: object, tags: dict[str, str] | None = None) -> Delivery:
        """Publish a value to a channel.

        Raises:
            UnknownNamespace, HistoryError, MessageTooLarge
        """
        return self.group(channel).broadcast(protocol.stored(data, None, tags))

    def presence(self, channel: str) -> dict[str, dict[str, Any]]:
        """Return who is subscribed: connection id to ClientInfo.

        Raises:
            UnknownNamespace
        """
        if not self.namespace(channel).presence:
            raise protocol.not_available()
        members = [json.loads(member) for member in self.group(channel).members()]
        return {member["client"]: member for member in members}

    def history(
        self, channel: str, since: tuple[str, int] | None, function: Callable[[Replay], object]
    ) -> None:
        """Call a function with the kept messages after a position; None: all.

        Raises:
            UnknownNamespace
        """
        if not self.namespace(channel).history_size:
            raise protocol.not_available()
        self.group(channel).replay(since or ("", 0), function)

    def connections(self, user: str = "", client_id: str = "") -> list[Connection]:
        """Return the connections of a user in this process, or the one with an id."""
        return [
            one
            for one in self._connections.values()
            if one.is_connected
            and (not client_id or one.id == client_id)
            and (client_id or one.user == user)
        ]

    def disconnect(
        self,
        connection: Connection,
        code: int = protocol.FORCE_DISCONNECT[0],
        reason: str = protocol.FORCE_DISCONNECT[1],
    ) -> None:
        """Close a connection with a code of the protocol."""
        self._connections.pop(connection.client, None)
        connection.client.close(code, reason)

    def subscribe(self, connection: Connection, channel: str) -> None:
        """Subscribe a connection from the server's side.

        Raises:
            ReplyError: it cannot be subscribed.
        """
        if channel not in connection.channels:
            self.add(connection, channel, None, self.tell_subscribed, Subscription())

    def unsubscribe(
        self,
        connection: Connection,
        channel: str,
        code: int = protocol.SERVER_UNSUBSCRIBE[0],
        reason: str = protocol.SERVER_UNSUBSCRIBE[1],
    ) -> None:
        """End a subscription from the server's side."""
        if self.remove(connection, channel):
            value = {"code": code, "reason": reason}
            connection.client.send(protocol.push(channel, "unsubscribe", value))

    # The connection.

    def _accept(self, event: AcceptEvent) -> None:
        client = event.client()
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
            return  # disconnected
        connection.heard_at = time.monotonic()
        try:
            for command in protocol.decode(data):
                self._commands.run(connection, command)
        except Disconnect as error:
            self.disconnect(connection, error.code, error.reason)

    # Subscriptions.

    def add(
        self,
        connection: Connection,
        channel: str,
        position: Position | None,
        answer: OnSubscribed,
        subscription: Subscription,
    ) -> None:
        """Subscribe a connection.

        Args:
            connection: the client's.
            channel: the name.
            position: up to which the client has the messages; None: it has none, and wants none.
            answer: called before the client receives any message.
            subscription: what is known of it.

        Raises:
            ReplyError: the connection has too many.
            UnknownNamespace
        """
        if len(connection.channels) >= self.config.max_channels:
            raise ReplyError(*protocol.LIMIT_EXCEEDED)
        group = self.group(channel)
        connection.channels[channel] = subscription
        member = protocol.dumps(connection.describe(subscription.info))

        def on_replay(client: Client, replay: Replay) -> None:
            answer(connection, channel, replay, position)

        try:
            group.add(connection.client, member, since=position, on_replay=on_replay)
        except HistoryError:
            self.remove(connection, channel)
            raise

    def tell_subscribed(
        self, connection: Connection, channel: str, replay: Replay, position: Position | None
    ) -> None:
        """Tell a client that the server has subscribed it, and send what it has missed."""
        value = self._state(connection, channel, replay)
        connection.client.send(protocol.push(channel, "subscribe", value))
        for message in replay.messages:
            connection.client.send(protocol.publication_push(channel, message.data, message.offset))

    def _state(self, connection: Connection, channel: str, replay: Replay) -> dict[str, Any]:
        """Return what a client needs to know of a new subscription."""
        result: dict[str, Any] = {}
        if self.namespace(channel).history_size:
            epoch, offset = replay.position
            result = {"recoverable": True, "positioned": True, "epoch": epoch, "offset": offset}
        return {**result, **expiry(connection.channels[channel].expires_at)}

    def result(
        self, connection: Connection, channel: str, replay: Replay, position: Position | None
    ) -> str:
        """Return the result of a subscription as JSON, with what the client has missed."""
        result = self._state(connection, channel, replay)
        if position is None:
            return protocol.dumps(result)
        result |= {"was_recovering": True, "recovered": not replay.has_gap}
        return protocol.subscribe_result(result, [] if replay.has_gap else replay.messages)

    def remove(self, connection: Connection, channel: str) -> bool:
        """End a subscription without a word; return whether there was one."""
        if connection.channels.pop(channel, None) is None:
            return False
        self.group(channel).discard(connection.client)
        return True

    # Commands about a channel.

    # What channels are.

    def namespace(self, channel: str) -> Namespace:
        """Return the options of a channel.

        Raises:
            ReplyError: its name is empty or too long.
            UnknownNamespace
        """
        if not channel or len(channel) > self.config.max_channel_length:
            raise protocol.bad_request("channel: too long")
        return self.config.namespace(channel)

    def group(self, channel: str) -> Group:
        """Return the group of a channel.

        Raises:
            UnknownNamespace
        """
        namespace = self.namespace(channel)
        name = protocol.dumps(channel)
        has_offset = bool(namespace.history_size)

        def push(data: str | bytes, position: Position) -> str:
            offset = position.offset if has_offset else 0
            return f'{{"push":{{"channel":{name},"pub":{protocol.publication(data, offset)}}}}}'

        try:
            return self.server.group(
                channel,
                # The order of the messages, and their form, are those of a history.
                history=max(1, namespace.history_size),
                seconds=namespace.history_seconds,
                formatter=push,
            )
        except ValueError:  # of the relay: a name with braces
            raise protocol.unknown_channel() from None

    def _open(self, channel: str) -> None:
        """Open the channel of a message from outside, if the configuration has it."""
        try:
            self.group(channel)
        except (UnknownNamespace, ReplyError):
            _logger.warning("a message for %r is not of a channel: no namespace", channel)

    def _announce(self, event: JoinEvent | LeaveEvent) -> None:
        """Tell the subscribers here who has come or gone, on any machine."""
        try:
            if not self.namespace(event.group).join_leave:
                return
        except (UnknownNamespace, ReplyError):
            return
        kind = "join" if isinstance(event, JoinEvent) else "leave"
        value = {"info": json.loads(event.member)}
        self.group(event.group).broadcast(protocol.push(event.group, kind, value), scope="here")

    # Timers.

    def _ping(self) -> None:
        """Ping all clients; close those that have not answered the last one."""
        self.server.call_later(self.config.ping_seconds, self._ping)
        self.server.call_later(self.config.pong_seconds, self._require_pongs)
        self._pinged_at = time.monotonic()
        self.server.broadcast("{}", scope="here")

    def _require_pongs(self) -> None:
        for connection in [*self._connections.values()]:
            if connection.heard_at < self._pinged_at and connection.opened_at < self._pinged_at:
                self.disconnect(connection, *protocol.NO_PONG)

    def _check(self) -> None:
        """Close what has expired."""
        self.server.call_later(CHECK_S, self._check)
        now, wall = time.monotonic(), time.time() - EXPIRY_GRACE_S
        for connection in [*self._connections.values()]:
            if not connection.is_connected:
                if connection.opened_at + CONNECT_TIMEOUT_S < now:
                    self.disconnect(connection, *protocol.STALE)
            elif connection.expires_at is not None and connection.expires_at < wall:
                self.disconnect(connection, *protocol.CONNECTION_EXPIRED)
            else:
                for channel, subscription in [*connection.channels.items()]:
                    if subscription.expires_at is not None and subscription.expires_at < wall:
                        self.unsubscribe(connection, channel, *protocol.SUBSCRIPTION_EXPIRED)
