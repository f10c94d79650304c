"""What clients ask for: a method for each command of the protocol.

Contract: ``Commands.run(connection, command)`` answers, at once or when a hook has finished, or
disconnects the client; nothing is raised.

How this works: a method that calls hooks is a generator.  It yields the future that a hook has
returned, and is resumed in ``dequeue()`` with its result; the client's later commands wait until
then.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from apachews.exceptions import HistoryError, MessageTooLarge
from apachews.history import Position, Replay

from . import protocol
from .access import Access, is_named
from .calls import Calls, Steps
from .config import Namespace, UnknownNamespace
from .connection import Connection, Subscription, expiry
from .control import Control
from .protocol import Command, Disconnect, ReplyError
from .proxy import Answer, Proxy
from .subscriptions import Subscriptions

# What clients are told of the server.
VERSION: Final = "apachews"

_logger: Final = logging.getLogger("apachews")

# Each returns a value, or a future of it.
OnConnect = Callable[[Connection], Any]
OnSubscribe = Callable[[Connection, str, Any], Any]
OnPublish = Callable[[Connection, str, Any], Any]
OnRpc = Callable[[Connection, str, Any], Any]


class Hooks(NamedTuple):
    """The functions of a program; see ``Channels``."""

    on_connect: OnConnect | None
    on_subscribe: OnSubscribe | None
    on_publish: OnPublish | None
    on_rpc: OnRpc | None


class Commands:
    """Runs the commands of clients.

    Args:
        subscriptions: the channels that they are about.
        control: asks the other processes.
        hooks: of the program.
        calls: runs them.
        proxy: asks the site; None: the configuration has no URL.
        disconnect: closes a connection with a code and a reason.
    """

    def __init__(
        self,
        subscriptions: Subscriptions,
        control: Control,
        hooks: Hooks,
        calls: Calls,
        proxy: Proxy | None,
        disconnect: Callable[[Connection, int, str], None],
    ) -> None:
        self._subscriptions = subscriptions
        self._control = control
        self._calls = calls
        self._proxy = proxy
        self._disconnect = disconnect
        self._config = subscriptions.config
        self._hooks = hooks
        self._access = Access(subscriptions.config)
        self._functions: dict[str, Callable[[Connection, Command], Steps[None] | None]] = {
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
        """Run a command, or let it wait for the one before it."""
        if not command.method:
            return  # the answer to a ping
        if connection.waiting is None:
            self._guard(connection, command, functools.partial(self._begin, connection, command))
        else:
            connection.waiting.append(command)

    def _begin(self, connection: Connection, command: Command) -> None:
        function = self._functions.get(command.method)
        if function is None:
            raise ReplyError(*protocol.METHOD_NOT_FOUND)
        if not connection.is_connected and command.method != "connect":
            if connection.is_resumed:
                raise Disconnect(*protocol.FORCE_RECONNECT)
            raise Disconnect(protocol.BAD_REQUEST[0], "bad request: not connected")
        steps = function(connection, command)
        if steps is not None:
            self._drive(connection, command, steps, lambda: None)

    def _drive(
        self,
        connection: Connection,
        command: Command,
        steps: Steps[None],
        result_of: Callable[[], Any],
    ) -> None:
        """Run the steps of a command, up to their end or to a hook that has not finished."""
        try:
            try:
                result = result_of()
            except Exception as error:
                future = steps.throw(error)
            else:
                future = steps.send(result)
        except StopIteration:
            return
        connection.hold()
        resume = functools.partial(self._resume, connection, command, steps)
        self._calls.wait(future, resume)

    def _resume(
        self,
        connection: Connection,
        command: Command,
        steps: Steps[None],
        result_of: Callable[[], Any],
    ) -> None:
        """Go on with a command, and with those that wait for it."""
        if not connection.is_open:
            steps.close()
            return
        later = connection.release()
        drive = functools.partial(self._drive, connection, command, steps, result_of)
        self._guard(connection, command, drive)
        for one in later:
            if connection.is_open:
                self.run(connection, one)

    def _guard(
        self, connection: Connection, command: Command, function: Callable[[], None]
    ) -> None:
        """Call a function; answer with its error."""
        try:
            function()
            return
        except Disconnect as end:
            self._disconnect(connection, end.code, end.reason)
            return
        except ReplyError as refusal:
            error = refusal
        except UnknownNamespace:
            error = ReplyError(*protocol.UNKNOWN_CHANNEL)
        except Exception:
            # Of a hook, or of a store; the other clients are served on.
            _logger.exception("%s of a client failed", command.method)
            error = ReplyError(*protocol.INTERNAL, is_temporary=True)
        connection.client.send(protocol.error_reply(command.id, error))

    def _connect(self, connection: Connection, command: Command) -> Steps[None]:
        if connection.is_connected:
            raise Disconnect(protocol.BAD_REQUEST[0], "bad request: connected already")
        names, data = yield from self._identify(connection, command.params)
        for name in names:
            self._subscriptions.namespace(name)  # before the client has any of them
        connection.is_connected = True
        subs = self._subscribe_to(connection, names, command.params.get("subs"))
        result = {
            "client": connection.id,
            "version": VERSION,
            # The protocol has whole seconds, and 0 means that the server sends none.
            "ping": max(1, round(self._config.ping_seconds)),
            "pong": True,
            **({} if data is None else {"data": data}),
            # The client would ask its page for a token; one without is judged when it comes back.
            **(expiry(connection.expires_at) if command.params.get("token") else {}),
        }
        connection.client.send(protocol.connect_reply(command.id, result, subs))

    def _identify(
        self, connection: Connection, params: dict[str, Any]
    ) -> Steps[tuple[list[str], Any]]:
        """Find out who a client is.

        Returns:
            The channels to which the server subscribes it, and data for the page.
        """
        connection.data = params.get("data")
        connection.info = connection.expires_at = None  # an attempt before may have failed
        names: list[str] = []
        data = None
        token = params.get("token")
        if token:
            claims = self._access.connection_token(token)
            connection.user, connection.expires_at, connection.info, channels = claims
            names += channels
        else:
            connection.user = connection.client.request.user or ""
            if self._proxy is not None and self._proxy.rules.connect:
                found = Answer((yield self._proxy.connect(connection)))
                connection.user = found.text("user") or connection.user
                connection.info, connection.expires_at = found.value("info"), found.expiry()
                names += found.texts("channels")
                data = found.value("data")
        if self._hooks.on_connect is not None:
            names += (yield from self._calls.call(self._hooks.on_connect, connection)) or ()
        if not (token or connection.user or self._config.anonymous):
            raise ReplyError(*protocol.UNAUTHORIZED)
        return [*dict.fromkeys(names)], data

    def _subscribe_to(
        self, connection: Connection, names: list[str], positions: object
    ) -> dict[str, str]:
        """Subscribe a new connection; return the results that are known now.

        With a relay the store answers later, and the client is told then.
        """
        results: dict[str, str] = {}
        is_answered = False

        def answer(
            connection: Connection, channel: str, replay: Replay, position: Position | None
        ) -> None:
            if is_answered:
                self._subscriptions.tell(connection, channel, replay, position)
            else:
                results[channel] = self._subscriptions.result(connection, channel, replay, position)

        for name in names:
            since = positions.get(name) if isinstance(positions, dict) else None
            position = None
            if isinstance(since, dict) and since.get("recover") is True:
                position = protocol.position(since)
            self._subscriptions.add(connection, name, position, answer, Subscription(is_own=False))
        is_answered = True
        return results

    def _refresh(self, connection: Connection, command: Command) -> None:
        claims = self._access.connection_token(command.params.get("token"))
        if claims.user != connection.user:
            raise Disconnect(*protocol.INVALID_TOKEN)
        connection.expires_at, connection.info = claims.expires_at, claims.info
        result = {"client": connection.id, "version": VERSION, **expiry(claims.expires_at)}
        connection.client.send(protocol.reply(command.id, "refresh", result))

    def _subscribe(self, connection: Connection, command: Command) -> Steps[None]:
        params = command.params
        channel = _channel(params)
        namespace = self._subscriptions.namespace(channel)
        if channel in connection.channels:
            raise ReplyError(*protocol.ALREADY_SUBSCRIBED)
        subscription = yield from self._permit(connection, channel, namespace, params)
        if channel in connection.channels:  # by the server, meanwhile
            raise ReplyError(*protocol.ALREADY_SUBSCRIBED)
        position = None
        if params.get("recover") is True and namespace.history_size:
            position = protocol.position(params)
        answer = functools.partial(self._answer_subscribe, command.id)
        self._subscriptions.add(connection, channel, position, answer, subscription)

    def _permit(
        self, connection: Connection, channel: str, namespace: Namespace, params: dict[str, Any]
    ) -> Steps[Subscription]:
        """Return a subscription that is allowed.

        Raises:
            ReplyError: it is not.
        """
        subscription = Subscription(is_own=True)
        if token := params.get("token"):
            claims = self._access.subscription_token(connection, channel, token)
            subscription.has_token = True
            subscription.expires_at, subscription.info = claims
        data = params.get("data")
        if (hook := self._hooks.on_subscribe) is not None:
            info = yield from self._calls.call(hook, connection, channel, data)
            subscription.info = subscription.info if info is None else info
            return subscription
        if not is_named(connection.user, channel):
            raise ReplyError(*protocol.PERMISSION_DENIED)
        rights = namespace.subscribe
        if subscription.has_token or self._access.may(connection, channel, rights):
            return subscription
        if "proxy" not in rights or self._proxy is None:
            raise ReplyError(*protocol.PERMISSION_DENIED)
        asked = yield self._proxy.subscribe(connection, channel, data)
        found = Answer(asked)
        subscription.info, subscription.expires_at = found.value("info"), found.expiry()
        return subscription

    def _answer_subscribe(
        self,
        number: int,
        connection: Connection,
        channel: str,
        replay: Replay,
        position: Position | None,
    ) -> None:
        result = self._subscriptions.result(connection, channel, replay, position)
        connection.client.send(f'{{"id":{number},"subscribe":{result}}}')

    def _unsubscribe(self, connection: Connection, command: Command) -> None:
        self._subscriptions.remove(connection, _channel(command.params))
        connection.client.send(protocol.reply(command.id, "unsubscribe", {}))

    def _refresh_subscription(self, connection: Connection, command: Command) -> None:
        channel = _channel(command.params)
        subscription = connection.channels.get(channel)
        if subscription is None:
            raise ReplyError(*protocol.PERMISSION_DENIED)
        claims = self._access.subscription_token(connection, channel, command.params.get("token"))
        subscription.expires_at = claims.expires_at
        result = expiry(claims.expires_at)
        connection.client.send(protocol.reply(command.id, "sub_refresh", result))

    def _publish(self, connection: Connection, command: Command) -> Steps[None]:
        channel = _channel(command.params)
        namespace = self._subscriptions.namespace(channel)
        if "data" not in command.params:
            raise protocol.bad_request("publish without data")
        data = command.params["data"]
        if (hook := self._hooks.on_publish) is not None:
            data = yield from self._calls.call(hook, connection, channel, data)
        elif not self._access.may(connection, channel, namespace.publish):
            if "proxy" not in namespace.publish or self._proxy is None:
                raise ReplyError(*protocol.PERMISSION_DENIED)
            if not is_named(connection.user, channel):
                raise ReplyError(*protocol.PERMISSION_DENIED)
            asked = yield self._proxy.publish(connection, channel, data)
            data = asked.get("data", data)
        subscription = connection.channels.get(channel)
        info = connection.describe(None if subscription is None else subscription.info)
        try:
            self._subscriptions.group(channel).broadcast(protocol.stored(data, info))
        except MessageTooLarge as error:
            raise protocol.bad_request(str(error)) from None
        except HistoryError as error:
            _logger.warning("%s", error)
            raise ReplyError(*protocol.INTERNAL, is_temporary=True) from None
        connection.client.send(protocol.reply(command.id, "publish", {}))

    def _presence(self, connection: Connection, command: Command) -> None:
        channel = _channel(command.params)
        self._access.require(
            connection, channel, self._subscriptions.namespace(channel).see_presence
        )

        def answer(members: dict[str, dict[str, Any]]) -> None:
            is_short = command.method == "presence_stats"
            result = protocol.presence_stats(members) if is_short else {"presence": members}
            connection.client.send(protocol.reply(command.id, command.method, result))

        self._control.ask_presence(channel, answer)

    def _history(self, connection: Connection, command: Command) -> None:
        params = command.params
        channel = _channel(params)
        self._access.require(connection, channel, self._subscriptions.namespace(channel).history)
        since = params.get("since")
        position = protocol.position(since) if isinstance(since, dict) else None
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

        self._subscriptions.history(channel, position, answer)

    def _rpc(self, connection: Connection, command: Command) -> Steps[None]:
        method = command.params.get("method", "")
        if not isinstance(method, str):
            raise protocol.bad_request("method: expected a text")
        data = command.params.get("data")
        if self._hooks.on_rpc is not None:
            answer = yield from self._calls.call(self._hooks.on_rpc, connection, method, data)
        elif self._proxy is not None and self._proxy.rules.rpc:
            asked = yield self._proxy.rpc(connection, method, data)
            answer = asked.get("data")
        else:
            raise ReplyError(*protocol.NOT_AVAILABLE)
        connection.client.send(protocol.reply(command.id, "rpc", {"data": answer}))

    def _ping(self, connection: Connection, command: Command) -> None:
        connection.client.send(protocol.reply(command.id, "ping", {}))


def _channel(params: dict[str, Any]) -> str:
    channel = params.get("channel")
    if not isinstance(channel, str):
        raise protocol.bad_request("channel: expected a text")
    return channel
