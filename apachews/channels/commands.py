"""What clients ask for: a method for each command of the protocol.

Contract: ``Commands.run(connection, command)`` answers, or raises ``Disconnect``, and nothing else.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from apachews.client import Group
from apachews.exceptions import HistoryError, MessageTooLarge
from apachews.history import Position, Replay

from . import protocol
from .access import Access
from .config import Config, Namespace, UnknownNamespace
from .connection import Connection, Subscription, expiry
from .protocol import Command, Disconnect, ReplyError

# What clients are told of the server.
VERSION: Final = "apachews"

_logger: Final = logging.getLogger("apachews")

OnConnect = Callable[[Connection], "list[str] | None"]
OnSubscribe = Callable[[Connection, str, Any], Any]
OnPublish = Callable[[Connection, str, Any], Any]
OnRpc = Callable[[Connection, str, Any], Any]


# Called with the answer of a history: what a client has missed since its position.
OnSubscribed = Callable[[Connection, str, Replay, "Position | None"], None]


class Hooks(NamedTuple):
    """The functions of a program; see ``Channels``."""

    on_connect: OnConnect | None
    on_subscribe: OnSubscribe | None
    on_publish: OnPublish | None
    on_rpc: OnRpc | None


class Port(Protocol):
    """What commands need of ``Channels``, which describes it."""

    config: Config

    def namespace(self, channel: str) -> Namespace: ...

    def group(self, channel: str) -> Group: ...

    def add(
        self,
        connection: Connection,
        channel: str,
        position: Position | None,
        answer: OnSubscribed,
        subscription: Subscription,
    ) -> None: ...

    def remove(self, connection: Connection, channel: str) -> bool: ...

    def result(
        self, connection: Connection, channel: str, replay: Replay, position: Position | None
    ) -> str: ...

    def tell_subscribed(
        self, connection: Connection, channel: str, replay: Replay, position: Position | None
    ) -> None: ...

    def presence(self, channel: str) -> dict[str, dict[str, Any]]: ...

    def history(
        self, channel: str, since: tuple[str, int] | None, function: Callable[[Replay], object]
    ) -> None: ...


class Commands:
    """Runs the commands of clients.

    Args:
        channels: what they are about.
        hooks: of the program.
    """

    def __init__(self, channels: Port, hooks: Hooks) -> None:
        self._channels = channels
        self._hooks = hooks
        self._access = Access(channels.config)
        self._functions: dict[str, Callable[[Connection, Command], None]] = {
            "connect": self._connect,
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "publish": self._publish,
            "presence": self._presence,
            "presence_stats": self._presence,
            "history": self._history,
            "refresh": self._refresh,
            "sub_refresh": self._refresh_subscription,
            "rpc": self._rpc,
            "ping": self._ping,
            "send": lambda connection, command: None,
        }

    def run(self, connection: Connection, command: Command) -> None:
        """Run a command.

        Raises:
            Disconnect: the connection is to be closed.
        """
        if not command.method:
            return  # the answer to a ping
        try:
            function = self._functions.get(command.method)
            if function is None:
                raise ReplyError(*protocol.METHOD_NOT_FOUND)
            if not connection.is_connected and command.method != "connect":
                if connection.is_resumed:
                    raise Disconnect(*protocol.FORCE_RECONNECT)
                raise Disconnect(protocol.BAD_REQUEST[0], "bad request: not connected")
            function(connection, command)
            return
        except Disconnect:
            raise
        except ReplyError as refusal:
            error = refusal
        except UnknownNamespace:
            error = protocol.unknown_channel()
        except Exception:
            # Of a hook, or of a store; the other clients are served on.
            _logger.exception("%s of a client failed", command.method)
            error = protocol.internal_error()
        connection.client.send(protocol.error_reply(command.id, error))

    def _connect(self, connection: Connection, command: Command) -> None:
        if connection.is_connected:
            raise Disconnect(protocol.BAD_REQUEST[0], "bad request: connected already")
        params = command.params
        connection.data = params.get("data")
        channels = self._channels
        names = self._identify(connection, params.get("token"))
        if self._hooks.on_connect is not None:
            names = [*names, *(self._hooks.on_connect(connection) or ())]
        connection.is_connected = True
        positions = params.get("subs")
        result: dict[str, Any] = {
            "client": connection.id,
            "version": VERSION,
            "ping": round(self._channels.config.ping_seconds),
            "pong": True,
            **expiry(connection.expires_at),
        }
        subscriptions: dict[str, str] = {}
        is_answered = False

        def answer(
            connection: Connection, channel: str, replay: Replay, position: Position | None
        ) -> None:
            if is_answered:  # the store of a relay answers later
                channels.tell_subscribed(connection, channel, replay, position)
            else:
                subscriptions[channel] = self._channels.result(
                    connection, channel, replay, position
                )

        for channel in dict.fromkeys(names):
            since = positions.get(channel) if isinstance(positions, dict) else None
            position = None
            if isinstance(since, dict) and since.get("recover") is True:
                position = _position(since)
            channels.add(connection, channel, position, answer, Subscription())
        is_answered = True
        text = protocol.reply(command.id, "connect", result)
        if subscriptions:
            subs = ",".join(f"{protocol.dumps(name)}:{one}" for name, one in subscriptions.items())
            text = f'{text[:-2]},"subs":{{{subs}}}}}}}'
        connection.client.send(text)

    def _identify(self, connection: Connection, token: object) -> list[str]:
        """Find out who a client is; return the channels of its token."""
        if token:
            claims = self._access.connection_token(token)
            connection.user, connection.expires_at, connection.info, channels = claims
            return [*channels]
        connection.user = connection.client.request.user or ""
        # on_connect may know the client.
        if (
            not connection.user
            and not self._channels.config.anonymous
            and self._hooks.on_connect is None
        ):
            raise ReplyError(*protocol.UNAUTHORIZED)
        return []

    def _refresh(self, connection: Connection, command: Command) -> None:
        claims = self._access.connection_token(command.params.get("token"))
        if claims.user != connection.user:
            raise Disconnect(*protocol.INVALID_TOKEN)
        connection.expires_at, connection.info = claims.expires_at, claims.info
        result = {"client": connection.id, "version": VERSION, **expiry(claims.expires_at)}
        connection.client.send(protocol.reply(command.id, "refresh", result))

    def _subscribe(self, connection: Connection, command: Command) -> None:
        params = command.params
        channel = _channel(params)
        namespace = self._channels.namespace(channel)
        if channel in connection.channels:
            raise ReplyError(*protocol.ALREADY_SUBSCRIBED)
        subscription = self._permit(connection, channel, namespace, params)
        position = None
        if params.get("recover") is True and namespace.history_size:
            position = _position(params)
        answer = functools.partial(self._answer_subscribe, command.id)
        self._channels.add(connection, channel, position, answer, subscription)

    def _permit(
        self, connection: Connection, channel: str, namespace: Namespace, params: dict[str, Any]
    ) -> Subscription:
        """Return a subscription that is allowed.

        Raises:
            ReplyError: it is not.
        """
        subscription = Subscription()
        if token := params.get("token"):
            claims = self._access.subscription_token(connection, channel, token)
            subscription.has_token = True
            subscription.expires_at, subscription.info = claims
        if self._hooks.on_subscribe is not None:
            info = self._hooks.on_subscribe(connection, channel, params.get("data"))
            subscription.info = subscription.info if info is None else info
        elif not subscription.has_token:
            self._access.require(connection, channel, namespace.subscribe)
        return subscription

    def _answer_subscribe(
        self,
        number: int,
        connection: Connection,
        channel: str,
        replay: Replay,
        position: Position | None,
    ) -> None:
        result = self._channels.result(connection, channel, replay, position)
        connection.client.send(f'{{"id":{number},"subscribe":{result}}}')

    def _unsubscribe(self, connection: Connection, command: Command) -> None:
        self._channels.remove(connection, _channel(command.params))
        connection.client.send(protocol.reply(command.id, "unsubscribe", {}))

    def _refresh_subscription(self, connection: Connection, command: Command) -> None:
        channel = _channel(command.params)
        subscription = connection.channels.get(channel)
        if subscription is None:
            raise protocol.permission_denied()
        claims = self._access.subscription_token(connection, channel, command.params.get("token"))
        subscription.expires_at = claims.expires_at
        result = expiry(claims.expires_at)
        connection.client.send(protocol.reply(command.id, "sub_refresh", result))

    def _publish(self, connection: Connection, command: Command) -> None:
        channel = _channel(command.params)
        namespace = self._channels.namespace(channel)
        if "data" not in command.params:
            raise protocol.bad_request("publish without data")
        data = command.params["data"]
        if self._hooks.on_publish is not None:
            data = self._hooks.on_publish(connection, channel, data)
        else:
            self._access.require(connection, channel, namespace.publish)
        subscription = connection.channels.get(channel)
        info = connection.describe(None if subscription is None else subscription.info)
        try:
            self._channels.group(channel).broadcast(protocol.stored(data, info))
        except MessageTooLarge as error:
            raise protocol.bad_request(str(error)) from None
        except HistoryError as error:
            _logger.warning("%s", error)
            raise protocol.internal_error() from None
        connection.client.send(protocol.reply(command.id, "publish", {}))

    def _presence(self, connection: Connection, command: Command) -> None:
        channel = _channel(command.params)
        self._access.require(connection, channel, self._channels.namespace(channel).see_presence)
        members = self._channels.presence(channel)
        result: dict[str, Any] = {"presence": members}
        if command.method == "presence_stats":
            users = {member["user"] for member in members.values()}
            result = {"num_clients": len(members), "num_users": len(users)}
        connection.client.send(protocol.reply(command.id, command.method, result))

    def _history(self, connection: Connection, command: Command) -> None:
        params = command.params
        channel = _channel(params)
        self._access.require(connection, channel, self._channels.namespace(channel).history)
        since = params.get("since")
        position = _position(since) if isinstance(since, dict) else None
        limit = params.get("limit", 0)
        if type(limit) is not int:
            raise protocol.bad_request("limit: expected a number")

        def answer(replay: Replay) -> None:
            if position is not None and replay.has_gap:
                error = ReplyError(*protocol.UNRECOVERABLE)
                connection.client.send(protocol.error_reply(command.id, error))
                return
            result = protocol.history_result(replay, limit, bool(params.get("reverse")))
            connection.client.send(f'{{"id":{command.id},"history":{result}}}')

        self._channels.history(channel, position, answer)

    def _rpc(self, connection: Connection, command: Command) -> None:
        if self._hooks.on_rpc is None:
            raise protocol.not_available()
        method = command.params.get("method", "")
        if not isinstance(method, str):
            raise protocol.bad_request("method: expected a text")
        result = {"data": self._hooks.on_rpc(connection, method, command.params.get("data"))}
        connection.client.send(protocol.reply(command.id, "rpc", result))

    def _ping(self, connection: Connection, command: Command) -> None:
        connection.client.send(protocol.reply(command.id, "ping", {}))


def _channel(params: dict[str, Any]) -> str:
    channel = params.get("channel")
    # JSON can escape half of a surrogate pair, which is not a text.
    if not isinstance(channel, str) or not channel.isprintable():
        raise protocol.bad_request("channel: expected a text that can be printed")
    return channel


def _position(params: dict[str, Any]) -> Position:
    """Return the position that a client has."""
    epoch, offset = params.get("epoch", ""), params.get("offset", 0)
    if not isinstance(epoch, str) or type(offset) is not int:
        raise protocol.bad_request("epoch, offset: expected a text and a number")
    # "" would be before all messages: the client knows of none.
    return Position(epoch or "?", offset)
