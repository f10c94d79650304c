"""What the processes of one site's channels tell each other: other workers, other machines.

Contract: ``Control.order(…)`` carries an order out in every process, this one included, and
``ask_presence(…)`` answers for all of them.  In the thread that calls ``dequeue()``.

How this works: the processes share a group of the library, which has no clients; its messages are
JSON objects.  A client cannot name it: a channel's name has printable characters only.  Programs
that may write to the socket file, or to the relay, can; they may publish to every channel as well.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable
from typing import Any, Final

from apachews.server import Server

from . import protocol
from .connection import Connection, Subscription
from .protocol import ReplyError
from .subscriptions import Subscriptions

GROUP: Final = "\x1fapachews.channels"
# Another process answers between two events of its program.
PRESENCE_TIMEOUT_S: Final = 1.0

_logger: Final = logging.getLogger("apachews")

OnPresence = Callable[[dict[str, dict[str, Any]]], object]


class Control:
    """Carries out orders for connections, here and in the other processes.

    Args:
        server: the library's.
        subscriptions: its channels.
        find: returns the connections here of a user, or the one with an id.
        disconnect: closes a connection.
        unsubscribe: ends a subscription, and tells the client.
    """

    def __init__(
        self,
        server: Server,
        subscriptions: Subscriptions,
        find: Callable[[str, str], list[Connection]],
        disconnect: Callable[[Connection, int, str], None],
        unsubscribe: Callable[[Connection, str, int, str], None],
    ) -> None:
        self._server = server
        self._subscriptions = subscriptions
        self._find = find
        self._disconnect = disconnect
        self._unsubscribe = unsubscribe
        # Questions of this process, by number; the first answer that has members counts.
        self._questions: dict[str, OnPresence] = {}
        self._id = os.urandom(8).hex()
        self._asked = 0
        self._orders: dict[str, Callable[[dict[str, Any]], None]] = {
            "disconnect": self._run_disconnect,
            "subscribe": self._run_subscribe,
            "unsubscribe": self._run_unsubscribe,
            "refresh": self._run_refresh,
            "presence": self._answer_presence,
            "members": self._receive_presence,
        }
        self._group = server.group(GROUP)
        self._group.on_message(self._receive)

    def order(self, do: str, params: dict[str, Any]) -> None:
        """Carry out an order in all processes.

        Args:
            do: ``disconnect``, ``subscribe``, ``unsubscribe`` or ``refresh``.
            params: as those of Centrifugo's server API, of checked types: ``user`` and
                ``client`` name the connections.
        """
        self._orders[do](params)
        self._send({"do": do, **params})

    def ask_presence(self, channel: str, function: OnPresence) -> None:
        """Call a function with who is subscribed, in any process: connection id to ClientInfo.

        Raises:
            ReplyError: the channel has no presence.
            UnknownNamespace
        """
        members = self._subscriptions.presence(channel)
        if members or not self._group.is_relayed:
            function(members)
            return
        # Only a process that has a subscriber knows the members.
        self._asked += 1
        question = f"{self._id}.{self._asked}"
        self._questions[question] = function
        self._send({"do": "presence", "channel": channel, "question": question})
        end = functools.partial(self._end_question, question, {})
        self._server.call_later(PRESENCE_TIMEOUT_S, end)

    def _send(self, order: dict[str, Any]) -> None:
        self._group.broadcast(protocol.dumps(order))

    def _receive(self, message: str | bytes) -> None:
        """Carry out an order of another process."""
        try:
            order = json.loads(message)
            self._orders[order.pop("do")](order)
        except Exception:
            # Of another version, or of a program that may publish here.
            _logger.exception("an order for channels cannot be carried out: %.200r", message)

    def _chosen(self, order: dict[str, Any]) -> list[Connection]:
        user, client_id = order["user"], order["client"]
        found = self._find(user, client_id)
        return [one for one in found if not user or one.user == user]

    def _run_disconnect(self, order: dict[str, Any]) -> None:
        spared = order.get("whitelist", ())
        for connection in self._chosen(order):
            if connection.id not in spared:
                self._disconnect(connection, order["code"], order["reason"])

    def _run_subscribe(self, order: dict[str, Any]) -> None:
        channel = order["channel"]
        for connection in self._chosen(order):
            if channel not in connection.channels:
                subscription = Subscription(is_own=False)
                subscription.info = order.get("info")
                try:
                    self._subscriptions.add(
                        connection, channel, None, self._subscriptions.tell, subscription
                    )
                except ReplyError as error:
                    _logger.warning("subscribe %r to %r: %s", connection.id, channel, error)

    def _run_unsubscribe(self, order: dict[str, Any]) -> None:
        for connection in self._chosen(order):
            self._unsubscribe(connection, order["channel"], *protocol.SERVER_UNSUBSCRIBE)

    def _run_refresh(self, order: dict[str, Any]) -> None:
        for connection in self._chosen(order):
            if order.get("expired"):
                self._disconnect(connection, *protocol.CONNECTION_EXPIRED)
            else:
                connection.expires_at = order.get("expire_at")

    def _answer_presence(self, order: dict[str, Any]) -> None:
        if members := self._subscriptions.presence(order["channel"]):
            self._send({"do": "members", "question": order["question"], "members": members})

    def _receive_presence(self, order: dict[str, Any]) -> None:
        self._end_question(order["question"], order["members"])

    def _end_question(self, question: str, members: dict[str, dict[str, Any]]) -> None:
        if function := self._questions.pop(question, None):
            function(members)
