"""Channels as groups of the library: who is subscribed, recovery, presence.

Contract: for ``Channels`` and ``Commands``; in the thread that calls ``dequeue()``.

How this works: a channel is a group with a history, whose ``formatter`` makes the push of a
message.  So the order of the messages, and that none is missed or doubled, is the library's part;
a subscription that comes back is ``group.add(client, since=…)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from apachews.client import Client, Group
from apachews.exceptions import HistoryError
from apachews.history import Position, Replay
from apachews.server import Server

from . import protocol
from .config import Config, Namespace
from .connection import Connection, Subscription, expiry
from .protocol import ReplyError

# A position that no history has.
NOWHERE: Final = Position("?", 0)
# Called once, before the client receives any message: with what it has missed since its position.
Answer = Callable[[Connection, str, Replay, "Position | None"], None]


class Subscriptions:
    """The channels of a server.

    Args:
        server: the library's.
        config: namespaces and limits.
    """

    def __init__(self, server: Server, config: Config) -> None:
        self._server = server
        self.config = config

    def namespace(self, channel: str) -> Namespace:
        """Return the options of a channel.

        Raises:
            ReplyError: its name is empty or too long, or has characters that cannot be printed.
            UnknownNamespace
        """
        # JSON can escape half of a surrogate pair, which is not a text.  And a channel must not
        # have the name of the group of ``control``.
        if not 0 < len(channel) <= self.config.max_channel_length or not channel.isprintable():
            raise protocol.bad_request("channel: empty, too long, or not printable")
        return self.config.namespace(channel)

    def group(self, channel: str) -> Group:
        """Return the group of a channel.

        Raises:
            ReplyError: Redis cannot store a channel of this name.
            UnknownNamespace
        """
        namespace = self.namespace(channel)

        def push(data: str | bytes, position: Position) -> str:
            offset = position.offset if namespace.history_size else 0
            return protocol.publication_push(channel, data, offset)

        try:
            return self._server.group(
                channel,
                # The order of the messages, and their form, are those of a history.
                history=max(1, namespace.history_size),
                seconds=namespace.history_seconds,
                formatter=push,
            )
        except ValueError:  # braces, with a relay
            raise ReplyError(*protocol.UNKNOWN_CHANNEL) from None

    def add(
        self,
        connection: Connection,
        channel: str,
        position: Position | None,
        answer: Answer,
        subscription: Subscription,
    ) -> None:
        """Subscribe a connection.

        Args:
            connection: the client's.
            channel: the name.
            position: up to which the client has the messages; None: it has none, and wants none.
            answer: tells the client.
            subscription: what is known of it.

        Raises:
            ReplyError: the connection has too many.
            HistoryError: the store cannot be read.
            UnknownNamespace
        """
        if len(connection.channels) >= self.config.max_channels:
            raise ReplyError(*protocol.LIMIT_EXCEEDED)
        group = self.group(channel)
        if channel in connection.gaps:
            # It has received messages after the lost ones, and would not notice.
            connection.gaps.discard(channel)
            position = None if position is None else NOWHERE
        connection.channels[channel] = subscription
        member = protocol.dumps(connection.describe(subscription.info))

        def on_replay(client: Client, replay: Replay) -> None:
            answer(connection, channel, replay, position)

        try:
            group.add(connection.client, member, since=position, on_replay=on_replay)
        except HistoryError:
            self.remove(connection, channel)
            raise

    def remove(self, connection: Connection, channel: str) -> bool:
        """End a subscription without a word; return whether there was one."""
        if connection.channels.pop(channel, None) is None:
            return False
        self.group(channel).discard(connection.client)
        return True

    def tell(
        self, connection: Connection, channel: str, replay: Replay, position: Position | None
    ) -> None:
        """Tell a client that the server has subscribed it, and send what it has missed."""
        value = self._state(connection, channel, replay)
        connection.client.send(protocol.push(channel, "subscribe", value))
        for message in replay.messages:
            connection.client.send(protocol.publication_push(channel, message.data, message.offset))

    def result(
        self, connection: Connection, channel: str, replay: Replay, position: Position | None
    ) -> str:
        """Return the result of a subscription as JSON, with what the client has missed."""
        result = self._state(connection, channel, replay)
        if position is None:
            return protocol.dumps(result)
        result |= {"was_recovering": True, "recovered": not replay.has_gap}
        return protocol.subscribe_result(result, [] if replay.has_gap else replay.messages)

    def _state(self, connection: Connection, channel: str, replay: Replay) -> dict[str, Any]:
        """Return what a client needs to know of a new subscription."""
        subscription = connection.channels[channel]
        # The client would ask its page for a token; one without is judged when it comes back.
        state = expiry(subscription.expires_at) if subscription.has_token else {}
        if self.namespace(channel).history_size:
            epoch, offset = replay.position
            state |= {"recoverable": True, "positioned": True, "epoch": epoch, "offset": offset}
        return state

    def presence(self, channel: str) -> dict[str, dict[str, Any]]:
        """Return who is subscribed: connection id to ClientInfo.

        Raises:
            ReplyError: the channel has no presence.
            UnknownNamespace
        """
        if not self.namespace(channel).presence:
            raise ReplyError(*protocol.NOT_AVAILABLE)
        members = map(client_info, self.group(channel).members())
        return {member["client"]: member for member in members if member is not None}

    def history(
        self, channel: str, since: tuple[str, int] | None, function: Callable[[Replay], object]
    ) -> None:
        """Call a function with the kept messages after a position; None: all.

        Raises:
            ReplyError: the channel has no history.
            UnknownNamespace
        """
        if not self.namespace(channel).history_size:
            raise ReplyError(*protocol.NOT_AVAILABLE)
        self.group(channel).replay(since or ("", 0), function)


def client_info(member: str) -> dict[str, Any] | None:
    """Return a member of a group as ClientInfo; None for one of another program."""
    try:
        found = json.loads(member)
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(found, dict) and {"client", "user"} <= found.keys()
    return found if is_one and isinstance(found["client"], str) else None
