"""Redis and Valkey as the relay's broker, by redis-py.

Contract: an ``Engine``.  Imported only by a program that uses such a relay: ``redis`` (the extra
``apachews[redis]``) is not part of the standard library.

How this works: two connections to a server, one that publishes and one that receives.  Both are
``redis.Connection`` objects and not ``Redis`` and ``PubSub``: ``PubSub`` reconnects without a
word, so that messages would be lost and no gap reported; and its read of a message that has
arrived in part ends in such a reconnection.  In a cluster each node has the two connections, and
the channels are sharded (SSUBSCRIBE), so that a message reaches only the node of its channel.

Long because one class is the interface, for a server and for a cluster.

Sources: Redis's documentation of pub/sub, RESP and ``PUBSUB NUMSUB``; redis-py 4.3 to 8.1.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import redis
import redis.sentinel
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import (
    MovedError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from apachews.exceptions import RelayError
from apachews.history import Bounds, Position, Reading

from . import stream
from .address import Address
from .engine import EngineError, Message, Question, Rejection, Stored
from .envelope import NOWHERE, Envelope, channel_of, group_of
from .redis_node import VERSION, RedisNode

# The time limit for Redis to answer; ``socket_timeout`` in the URL overrides it.
TIMEOUT_S: Final = 3.0


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise an ``EngineError`` in place of an error of redis-py or of the system."""
    try:
        yield
    except MovedError as error:
        raise EngineError("a slot of the cluster has moved to another node") from error
    except (RedisError, RedisClusterException, OSError, TypeError, ValueError) as error:
        # redis-py's texts have the host and the port, never the password.
        raise EngineError(str(error) or type(error).__name__) from error


class RedisEngine:
    """See ``Engine``.

    Args:
        target: an address, or a client of redis-py: ``redis.Redis`` (one of a Sentinel as well)
            or ``RedisCluster``.
        name: the relay's, part of all channels.

    Raises:
        RelayError: redis-py does not know a parameter of the address.
        ValueError: a client without a time limit, or one that decodes what it receives.
    """

    has_history = True
    max_message_bytes: int | None = None

    def __init__(self, target: Any, name: str) -> None:
        self._target = target
        self._name = name
        self._proof = b""
        # Of this process, for its messages in histories: made by the first ``connect``, after
        # the workers have forked.
        self._sender = ""
        self._nodes: dict[Any, RedisNode] = {}
        # redis-py has no types for most of a cluster.
        self._cluster: Any = None
        self.wanted: set[str | None] = set()
        # Wanted when the latest ping was sent: its answer comes after their confirmations.
        self._expected: set[str | None] = set()
        # Channels whose UNSUBSCRIBE was not answered yet, with the number of answers.
        self._ending: Counter[bytes] = Counter()
        self.subscribed: set[str | None] = set()
        self.heard_at = time.monotonic()
        self.lag_s = 0.0
        if isinstance(target, Address):
            self.address = target.shown
            if target.kind == "server":
                self._require_known_parameters()
        else:
            self.address = _address_of(target)
            _require_usable(target)

    def _require_known_parameters(self) -> None:
        try:
            self._pool().make_connection()  # does not connect
        except (TypeError, ValueError) as error:
            raise RelayError(
                self.address, f"invalid parameter: {error}", "use those of redis-py, and name"
            ) from error

    @property
    def is_cluster(self) -> bool:
        """True if the channels are sharded over the nodes of a cluster."""
        target = self._target
        if isinstance(target, Address):
            return target.kind == "cluster"
        return isinstance(target, RedisCluster)

    def connect(self) -> None:
        self.close()
        self._sender = self._sender or os.urandom(8).hex()
        # A channel of this connection alone: its number of subscribers proves that the broker
        # has this one, and not only those of other producers or workers.
        self._proof = b"apachews-producer:%s" % os.urandom(16).hex().encode()
        with _translated():
            if self.is_cluster:
                # A new object: it asks the nodes anew which has which slots.
                self._cluster = self._open_cluster()
                for node in self._cluster.get_primaries():
                    client = self._cluster.get_redis_connection(node)
                    self._nodes[node.name] = RedisNode(client.connection_pool, True)
            else:
                self._nodes[None] = RedisNode(self._pool(), False)
            for one in self._nodes.values():
                one.connect()
            self._node_of(self._proof).subscribe([self._proof])

    def close(self) -> None:
        for node in self._nodes.values():
            node.close()
        self._nodes = {}
        if self._cluster is not None and isinstance(self._target, Address):
            with contextlib.suppress(RedisError, OSError):
                self._cluster.close()
        self._cluster = None
        self.wanted = set()
        self._expected = set()
        self._ending.clear()
        self.subscribed = set()

    def publish(self, messages: Sequence[Message]) -> list[tuple[Message, Rejection]]:
        rejected: list[tuple[Message, Rejection]] = []
        # The number of the last message of each group with a history.
        previous: dict[str | None, int] = {}
        with _translated():
            # One node after the other in the order of the messages: a sender's order is kept
            # in each group, and between groups as far as the nodes allow.
            for node, some in itertools.groupby(messages, self._node_of_message):
                sent: list[Message] = []
                commands = []
                for message in some:
                    before = previous.get(message.group, 0)
                    try:
                        commands.append(self._publish_command(node, message, before))
                    except NoPermissionError as error:  # of SCRIPT LOAD
                        rejected.append((message, _rejection(error)))
                        continue
                    sent.append(message)
                    if message.stored is not None and message.stored.number:
                        previous[message.group] = message.stored.number
                answers = node.answers(commands) if commands else []
                rejected += [
                    (message, _rejection(answer))
                    for message, answer in zip(sent, answers, strict=True)
                    if isinstance(answer, ResponseError)
                ]
        return rejected

    def read(self, questions: Sequence[Question]) -> list[Reading | Rejection]:
        readings: list[Reading | Rejection] = []
        with _translated():
            for question in questions:
                channel = self._channel(question.group)
                node = self._node_of(channel)
                keys = stream.keys_of(channel, self._sender)
                arguments = (*keys, *stream.read_arguments(question))
                try:
                    node.load(stream.SCRIPTS)
                    answer = node.answers([("EVALSHA", stream.READ_SHA, len(keys), *arguments)])[0]
                except NoPermissionError as error:  # of SCRIPT LOAD
                    answer = error
                if isinstance(answer, ResponseError):
                    readings.append(_rejection(answer))
                else:
                    readings.append(stream.reading_of(answer, time.monotonic()))
        return readings

    def subscribe(self, groups: Iterable[str | None]) -> None:
        new = [group for group in groups if group not in self.wanted]
        self.wanted.update(new)
        with _translated():
            for node, channels in self._by_node(new).items():
                node.subscribe(channels)

    def unsubscribe(self, groups: Iterable[str | None]) -> None:
        old = [group for group in groups if group in self.wanted]
        self.wanted.difference_update(old)
        self.subscribed.difference_update(old)
        self._expected.difference_update(old)
        with _translated():
            for node, channels in self._by_node(old).items():
                self._ending.update(channels)
                node.subscribe(channels, ends=True)

    def receive(self, timeout_s: float, wake_fd: int) -> list[Message]:
        messages: list[Message] = []
        with _translated():
            fds = {node.fileno(): node for node in self._nodes.values()}
            poll = select.poll()
            for fd in (*fds, wake_fd):
                poll.register(fd, select.POLLIN)
            if any(node.has_more for node in fds.values()):
                timeout_s = 0.0
            ready = {fd for fd, _ in poll.poll(max(0.0, timeout_s) * 1000)}
            for fd, node in fds.items():
                if fd in ready or node.has_more:
                    for item in node.receive():
                        self._handle(node, item, messages)
        self.heard_at = min(node.heard_at for node in fds.values())
        return messages

    def ping(self) -> None:
        waiting = {name: node for name, node in self._nodes.items() if node.pinged_at is not None}
        with _translated():
            for name, node in waiting.items():
                # The answer may be among what this process had no time to read.
                if not node.is_readable():
                    where = "" if name is None else f" of {name}"
                    raise EngineError(f"no answer{where} to a ping")
            if not waiting:
                for node in self._nodes.values():
                    node.ping()
                self._expected = set(self.wanted)

    def verify(self, groups: Sequence[str | None]) -> None:
        with _translated():
            for node, channels in self._by_node(groups).items():
                if node is self._node_of(self._proof):
                    channels.append(self._proof)
                numbers = node.subscribers(channels)
                for channel in channels:
                    if not numbers.get(channel):
                        raise EngineError(f"PUBSUB NUMSUB: {channel!r:.80} has no subscriber")

    def information(self) -> dict[str, dict[str, Any]]:
        """Return INFO and settings of each node, by its address; for ``doctor``.

        What the user may not read is missing.
        """
        found: dict[str, dict[str, Any]] = {}
        with _translated():
            for name, node in self._nodes.items():
                values: dict[str, Any] = {}
                with contextlib.suppress(ResponseError):
                    sections = ("server", "memory", "replication")
                    text = node.call([("INFO", section) for section in sections])
                    for line in b"\n".join(text).decode(errors="replace").splitlines():
                        key, _, value = line.partition(":")
                        values[key] = value
                for setting in ("maxmemory-policy", "client-output-buffer-limit"):
                    with contextlib.suppress(ResponseError):
                        answer = node.call([("CONFIG", "GET", setting)])[0]
                        pairs = answer.items() if isinstance(answer, dict) else [answer[:2]]
                        values.update({_text(pair[0]): _text(pair[1]) for pair in pairs if pair})
                found[name or self.address] = values
        return found

    def try_history(self, group: str) -> Rejection | None:
        bounds, nowhere = Bounds(1, 1.0, 1), Position("", 0)
        message = Message(group, Envelope.of_frame(NOWHERE, b"\x81\0").encode())
        rejected = self.publish([message._replace(stored=Stored(bounds, nowhere, 1))])
        if rejected:
            return rejected[0][1]
        (reading,) = self.read([Question(group, bounds, nowhere, "", 1)])
        with _translated():
            channel = self._channel(group)
            self._node_of(channel).call([("DEL", *stream.keys_of(channel, self._sender))])
        return reading if isinstance(reading, Rejection) else None

    def publish_once(self, message: Message) -> tuple[int, Position | None]:
        with _translated():
            node = self._node_of_message(message)
            answer = node.call([self._publish_command(node, message, 0)])[0]
        if isinstance(answer, int):
            return answer, None
        reached, epoch, offset = answer
        return reached, Position(epoch.decode(), offset)

    def _publish_command(self, node: RedisNode, message: Message, previous: int) -> tuple[Any, ...]:
        """Return the command for a message: the script for one that a history stores.

        Args:
            node: that has the channel.
            message: the message.
            previous: number of the message for the same history that was sent just before, and
                may have been rejected; 0: none.
        """
        channel = self._channel(message.group)
        command = "SPUBLISH" if self.is_cluster else "PUBLISH"
        stored = message.stored
        if stored is None:
            return command, channel, message.data
        keys = stream.keys_of(channel, self._sender)
        # From outside.  A group with a brace has no history, and its keys would have other slots.
        if stored.bounds is None and (
            b"{" in channel or b"}" in channel or not node.may_store(keys[0])
        ):
            return command, channel, message.data
        arguments = stream.append_arguments(stored, previous, command, channel, message.data)
        node.load(stream.SCRIPTS)
        return ("EVALSHA", stream.APPEND_SHA, len(keys), *keys, *arguments)

    def _handle(self, node: RedisNode, item: Any, messages: list[Message]) -> None:
        if isinstance(item, (list, tuple)) and len(item) >= 2:
            kind = bytes(item[0])
            if kind in (b"message", b"smessage"):
                if item[1] != self._proof:
                    messages.append(Message(group_of(self._name, item[1]), item[2]))
                return
            if kind in (b"subscribe", b"ssubscribe"):
                self._add_confirmed(item[1])
                return
            if kind in (b"unsubscribe", b"sunsubscribe"):
                # The answer to ``unsubscribe``; or a slot of the cluster has moved away.
                self._ending[item[1]] -= 1
                if self._ending[item[1]] < 0:
                    raise EngineError("the server has ended a subscription")
                if not self._ending[item[1]]:
                    del self._ending[item[1]]
                return
            if kind == b"pong":
                self._receive_pong(node)
                return
        if item in (b"PONG", "PONG"):  # RESP3
            self._receive_pong(node)

    def _add_confirmed(self, channel: bytes) -> None:
        if channel != self._proof and (group := group_of(self._name, channel)) in self.wanted:
            self.subscribed.add(group)

    def _receive_pong(self, node: RedisNode) -> None:
        if node.pinged_at is None:
            return
        self.lag_s = time.monotonic() - node.pinged_at
        node.pinged_at = None
        is_last = all(one.pinged_at is None for one in self._nodes.values())
        if is_last and (missing := self._expected - self.subscribed):
            raise EngineError(f"{len(missing)} subscriptions were not confirmed")

    def _channel(self, group: str | None) -> bytes:
        return channel_of(self._name, group)

    def _node_of_message(self, message: Message) -> RedisNode:
        return self._node_of(self._channel(message.group))

    def _node_of(self, channel: bytes) -> RedisNode:
        if self._cluster is None:
            return self._nodes[None]
        node = self._cluster.get_node_from_key(channel)
        if node is None or node.name not in self._nodes:
            raise EngineError("the nodes of the cluster have changed")
        return self._nodes[node.name]

    def _by_node(self, groups: Iterable[str | None]) -> dict[RedisNode, list[bytes]]:
        found: dict[RedisNode, list[bytes]] = {}
        for group in groups:
            channel = self._channel(group)
            found.setdefault(self._node_of(channel), []).append(channel)
        return found

    def _pool(self) -> Any:
        address = self._target
        if not isinstance(address, Address):
            return address.connection_pool
        if address.kind == "sentinel":
            options = _options(address)
            sentinel: Any = redis.sentinel.Sentinel
            sentinels = sentinel(
                list(address.hosts),
                sentinel_kwargs={key: options[key] for key in ("socket_timeout",)},
                **options,
            )
            return sentinels.master_for(address.service).connection_pool
        settings = _settings()
        if address.url.startswith("unix:"):
            del settings["socket_connect_timeout"]  # redis-py 4 does not know it there
        return redis.ConnectionPool.from_url(address.url, **settings)

    def _open_cluster(self) -> Any:
        address = self._target
        if not isinstance(address, Address):
            address.nodes_manager.initialize()
            return address
        return RedisCluster.from_url(address.url, **_settings())


def _settings() -> dict[str, Any]:
    # No retries: a PUBLISH that is sent again may arrive twice.
    settings: dict[str, Any] = {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
    }
    if VERSION >= (5,):
        settings["protocol"] = 2
    return settings


def _options(address: Address) -> dict[str, Any]:
    """Return the settings that the address of a Sentinel has, and those of every connection."""
    options = _settings()
    parse_url: Any = redis.connection.parse_url
    options.update(parse_url(address.url))
    options.pop("host", None)
    options.pop("port", None)
    options.pop("connection_class", None)
    if urllib.parse.urlsplit(address.url).scheme == "rediss":
        options["ssl"] = True
    return options


def _settings_of(client: Any) -> dict[str, Any]:
    if isinstance(client, RedisCluster):
        settings: dict[str, Any] = client.nodes_manager.connection_kwargs
    else:
        settings = client.connection_pool.connection_kwargs
    return settings


def _require_usable(client: Any) -> None:
    if not isinstance(client, (redis.Redis, RedisCluster)):
        raise ValueError(
            f"relay={client!r:.80}: expected a URL, a redis.Redis or a redis.cluster.RedisCluster"
        )
    settings = _settings_of(client)
    if settings.get("socket_timeout") is None:
        raise ValueError("relay: the client has no time limit; give it socket_timeout=3")
    if settings.get("decode_responses"):
        raise ValueError("relay: the client decodes responses; binary messages are not text")


def _rejection(error: ResponseError) -> Rejection:
    return Rejection(str(error) or type(error).__name__)


def _address_of(client: Any) -> str:
    if isinstance(client, RedisCluster):
        return "a Redis cluster"
    pool = getattr(client, "connection_pool", None)
    if service := getattr(pool, "service_name", None):
        return f"the master {service} of Redis Sentinels"
    settings = getattr(pool, "connection_kwargs", {})
    if "path" in settings:
        return f"unix://{settings['path']}"
    return f"redis://{settings.get('host', '?')}:{settings.get('port', '?')}"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
