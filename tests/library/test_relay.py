"""apachews._relay: broadcasts between producers, over a real Redis and Valkey."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis
from redis.cluster import RedisCluster
from redis.sentinel import Sentinel

from apachews import (
    Event,
    MessageTooLarge,
    PublishError,
    RelayBackEvent,
    RelayError,
    RelayLostEvent,
    Server,
    ServerClosed,
    aio,
    publish,
    threads,
    wire,
)
from apachews._relay import address
from apachews._relay.engine import EngineError, Message
from apachews._relay.envelope import NOWHERE, Envelope, channel_of, group_of
from apachews._relay.nats_engine import NatsEngine
from apachews._relay.redis_engine import RedisEngine
from apachews._relay.relay import open_engine, open_relay
from apachews._relay.sibling_relay import SiblingRelay
from apachews._relay.thread import MAX_QUEUE_BYTES
from apachews.exceptions import WireError
from apachews.monitoring.relays import ask_relays
from apachews_tools.doctor.relay import check_relay

from ..conftest import DEADLINE_S, let_pass, wait_for
from ..support.bridge_by_hand import Bridge
from ..support.brokers import (
    SERVERS,
    Broker,
    NatsBroker,
    free_port,
    running_broker,
    running_cluster,
    running_sentinel,
)
from ..support.producers import ROOT, children_of, program, running

ORIGIN = bytes(range(16))


# The bytes on the channel.


@pytest.mark.parametrize("message", ["", "text", "ümläut", b"", b"\0\xff"])
def test_an_envelope_is_read_as_it_was_written(message: str | bytes) -> None:
    frame = wire.encode_message(message)
    envelope = Envelope.of_frame(ORIGIN, frame)
    assert envelope.encode()[:2] == (b"1t" if isinstance(message, str) else b"1b")
    read = Envelope.decode(envelope.encode())
    assert read == envelope and read.frame() == frame


@pytest.mark.parametrize(
    "data",
    [b"", b"1", b"1t", b"2t" + NOWHERE, b"1x" + NOWHERE, b"1t" + NOWHERE[:15], b"{}"],
)
def test_foreign_bytes_on_the_channel_are_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="invalid relay message"):
        Envelope.decode(data)


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(WireError, match="not UTF-8"):
        Envelope.decode(b"1t" + NOWHERE + b"\xff")
    assert Envelope.decode(b"1b" + NOWHERE + b"\xff").payload == b"\xff"


@pytest.mark.parametrize("group", [None, "", "room", "a:b", "zimmer ü", "\udc80"])
def test_every_group_has_its_channel(group: str | None) -> None:
    assert group_of("chat:1.ws", channel_of("chat:1.ws", group)) == group


def test_no_two_groups_of_two_names_share_a_channel() -> None:
    assert channel_of("a", "b:c") != channel_of("a:b", "c")
    assert channel_of("a", "") != channel_of("a", None)


# Addresses.


def test_a_password_is_in_no_message() -> None:
    read = address.parse("redis://ann:secret@host:6379/1?name=chat&ssl_password=secret&db=2")
    assert "secret" in read.url and "db=2" in read.url and "name=" not in read.url
    assert (read.kind, read.name) == ("server", "chat")
    assert read.shown == "redis://host:6379/1"


@pytest.mark.parametrize("character", "/?#@:")
@pytest.mark.parametrize(
    "form",
    [
        "redis://ann:{}@host/0",
        "rediss://ann:{}@host:6379",
        "nats://ann:{}@host",
        "redis+sentinel://ann:{}@host,host2/mymaster",
    ],
)
def test_a_password_that_is_not_escaped_is_in_no_message(form: str, character: str) -> None:
    url = form.format(f"sec{character}ret")
    try:
        assert "ret" not in address.parse(url).shown
    except RelayError as error:
        assert "sec" not in str(error) and "ret" not in str(error)
        assert character in "/?#"


@pytest.mark.parametrize(
    "url",
    [
        "ann:secret@host:6379",
        "secret@host",
        "redis:/ann:secret@host",
        "redis://ann:a@secret?b@host/0",
        "redis://ann:1/secret@host",
        "redis://ann:1?secret@host",
        "redis://ann:[secret@host/0",
        "redis://ann:secret\uff0f@host",
    ],
)
def test_an_address_of_which_the_password_is_unclear_shows_none_of_it(url: str) -> None:
    with pytest.raises(RelayError) as caught:
        address.parse(url)
    assert "secret" not in f"{caught.value}{caught.value!r}"


def test_a_password_in_a_parameter_is_in_no_message() -> None:
    assert "secret" not in address.parse("redis://host/0?password=x@secret").shown


def test_messages_that_a_worker_does_not_accept_count_as_dropped() -> None:
    busy = SimpleNamespace(others=[1], send_nowait=lambda *_: False)
    broker = open_relay("redis://127.0.0.1:1", "chat.ws", NOWHERE, 1024)
    siblings = SiblingRelay(cast(Any, busy), lambda *_: None, broker.counters)
    for _ in range(6):
        siblings.publish("room", wire.encode_message(b"x" * (MAX_QUEUE_BYTES // 4)))
    assert broker.status().dropped == 3  # three and what each message costs besides fit


@pytest.mark.parametrize("size", [0, -1, MAX_QUEUE_BYTES + 1])
def test_a_bound_that_the_queues_do_not_hold_is_refused(short_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"relay_max_message_bytes={size}.*{MAX_QUEUE_BYTES}"):
        Server(short_path / "a.ws", relay="redis://127.0.0.1:1", relay_max_message_bytes=size)


def test_the_address_of_sentinels() -> None:
    read = address.parse("redis+sentinel://:secret@one:26380,two/mymaster/3?socket_timeout=1")
    assert (read.kind, read.service) == ("sentinel", "mymaster")
    assert read.hosts == (("one", 26380), ("two", 26379))
    assert read.url == "redis://:secret@localhost/3?socket_timeout=1"


def test_the_address_of_nats() -> None:
    read = address.parse("nats://ann:secret@one:4222,two?name=chat")
    assert (read.kind, read.name) == ("nats", "chat")
    assert read.url == "nats://ann:secret@one:4222,nats://ann:secret@two"
    assert "secret" not in read.shown


def test_the_address_of_a_socket_file() -> None:
    read = address.parse("unix:///run/redis.sock?db=1&name=x")
    assert (read.url, read.name) == ("unix:///run/redis.sock?db=1", "x")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://host", "unknown scheme"),
        ("redis+other://host", "unknown scheme"),
        ("redis:///0", "no host"),
        ("unix://", "no path"),
        ("redis://host/0?colour=blue", "invalid parameter"),
        ("redis+sentinel://host/", "no name of the master"),
        ("redis+sentinel://host:x/m", "not a host and a port"),
        ("nats://", "not an address of NATS"),
        ("nats://host/room", "not an address of NATS"),
    ],
)
def test_a_wrong_address_is_an_error_at_once(short_path: Path, url: str, why: str) -> None:
    with pytest.raises(RelayError, match=why):
        Server(short_path / "a.ws", relay=url)
    assert not os.listdir(short_path)


def test_a_client_of_redis_py_that_would_block_or_decode_is_refused(short_path: Path) -> None:
    with pytest.raises(ValueError, match="no time limit"):
        Server(short_path / "a.ws", relay=redis.Redis(socket_timeout=None))
    with pytest.raises(ValueError, match="decodes"):
        Server(short_path / "a.ws", relay=redis.Redis(socket_timeout=1, decode_responses=True))
    with pytest.raises(ValueError, match="expected a URL"):
        Server(short_path / "a.ws", relay=42)


def test_without_a_relay_nothing_third_party_is_imported(short_path: Path) -> None:
    code = (
        "import sys; from apachews import Server; Server(sys.argv[1]).close();"
        "assert 'redis' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(short_path / "a.ws")], check=True)


def test_without_redis_py_the_error_says_what_to_install(short_path: Path) -> None:
    code = (
        "import sys; sys.modules['redis'] = None; from apachews import Server, RelayError\n"
        "try: Server(sys.argv[1], relay='redis://localhost')\n"
        "except RelayError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(short_path / "a.ws")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "apachews[redis]" in done.stdout and "python3-redis" in done.stdout


# Producers.


@pytest.fixture(scope="module", params=[*SERVERS])
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    with running_broker(tmp_path_factory.mktemp("r"), program=request.param) as broker:
        yield broker


@pytest.fixture
def own_broker(short_path: Path) -> Iterator[Broker]:
    """A server that a test may stop."""
    with running_broker(short_path) as broker:
        yield broker


class Producer:
    """A server and a thread that takes its events; a client joins a group by ``join:GROUP``."""

    def __init__(self, path: Path, relay: Any, **settings: Any) -> None:
        self.path = str(path)
        self.events: list[Event] = []
        self._clients: list[Bridge] = []
        self.server = Server(path, relay=relay, **settings)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            for event in self.server:
                if event.type() is Event.IO:
                    group = event.read().partition(":")[2]
                    self.server.group(group).add(event.client())
                    event.write("joined")
                else:
                    self.events.append(event)
        except ServerClosed:
            pass

    @property
    def is_up(self) -> bool:
        status = self.server.relay_status()
        return status is not None and status.is_up

    def relay_events(self) -> list[Event]:
        return [e for e in self.events if isinstance(e, (RelayLostEvent, RelayBackEvent))]

    def client(self, *groups: str) -> Bridge:
        """Return a client that is in these groups, whose subscriptions are confirmed."""
        bridge = Bridge(self.path)
        self._clients.append(bridge)
        for group in groups:
            bridge.send(wire.TEXT, b"join:" + group.encode())
            assert wait_for(bridge.read_available) == ["joined"]
            wait_for(lambda group=group: self.server.group(group).is_relayed)  # type: ignore[misc]
        wait_for(self.server.clients)
        return bridge

    def close(self) -> None:
        self.server.close()
        self._thread.join()
        for client in self._clients:
            client.socket.close()


@contextmanager
def producers(
    directory: Path, relay: Any, count: int = 2, **settings: Any
) -> Iterator[list[Producer]]:
    """Run producers as on several machines: with the same relay and name."""
    with ExitStack() as stack:
        made = []
        for number in range(count):
            producer = Producer(directory / f"{number}.ws", relay, relay_name="chat.ws", **settings)
            stack.callback(producer.close)
            made.append(producer)
        for producer in made:
            wait_for(lambda producer=producer: producer.is_up)  # type: ignore[misc]
        yield made


def received(bridge: Bridge, count: int, timeout_s: float = 10.0) -> list[Any]:
    """Return the next messages of a client."""
    items: list[Any] = []

    def has_all() -> bool:
        items.extend(bridge.read_available())
        return len(items) >= count

    wait_for(has_all, timeout_s, lambda: f"{len(items)} of {count}: {items[-3:]!r:.200}")
    return items


def test_a_broadcast_reaches_the_clients_of_every_producer(
    short_path: Path, broker: Broker
) -> None:
    with producers(short_path, broker.url, 3) as three:
        clients = [producer.client() for producer in three]
        assert three[0].server.broadcast("to all") == 1
        assert three[1].server.broadcast_json({"x": 1}) == 1
        for client in clients:
            assert sorted(received(client, 2)) == ["to all", '{"x":1}']
        let_pass(0.05)
        assert [client.read_available() for client in clients] == [[]] * 3, "none came twice"


def test_a_group_reaches_its_members_everywhere(short_path: Path, broker: Broker) -> None:
    with producers(short_path, broker.unix_url) as (one, two):
        inside, outside, far = one.client("room"), one.client("other"), two.client("room")
        delivery = one.server.group("room").broadcast(b"\0binary")
        assert delivery == (1, 0) and delivery.relayed
        assert received(inside, 1) == received(far, 1) == [b"\0binary"]
        # From a producer without a member of its own.
        two.server.group("other").broadcast("from afar")
        assert received(outside, 1) == ["from afar"]
        assert far.read_available() == []


def test_scope_here_stays_here(short_path: Path, broker: Broker) -> None:
    with producers(short_path, broker.url) as (one, two):
        near, far = one.client("room"), two.client("room")
        delivery = one.server.group("room").broadcast("near", scope="here")
        assert delivery == (1, 0) and not delivery.relayed
        one.server.broadcast("near too", scope="here")
        one.server.group("room").broadcast("last")
        assert received(near, 3) == ["near", "near too", "last"]
        assert received(far, 1) == ["last"]
        with pytest.raises(ValueError, match="scope='there'"):
            one.server.broadcast("x", scope="there")  # type: ignore[arg-type]


def test_names_separate_relays(short_path: Path, broker: Broker) -> None:
    with producers(short_path, broker.url, 1) as (one,):
        other = Producer(short_path / "other.ws", f"{broker.url}?name=other")
        try:
            wait_for(lambda: other.is_up)
            client = one.client()
            other.server.broadcast("not for you")
            one.server.broadcast("for you")
            assert received(client, 1) == ["for you"]
        finally:
            other.close()


def test_the_environment_names_the_relay(
    short_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APACHEWS_RELAY", broker.url)
    with Server(short_path / "a.ws") as server:
        status = server.relay_status()
        assert status and status.name == "a.ws" and status.address == broker.url
    with Server(short_path / "b.ws", relay="") as server:
        assert server.relay_status() is None


def test_the_order_of_each_sender_is_kept(short_path: Path, broker: Broker) -> None:
    count = 500
    with producers(short_path, broker.url, 3) as (one, two, three):
        client = three.client("room")

        def send(producer: Producer, name: str) -> None:
            for number in range(count):
                if number % 3:
                    producer.server.group("room").broadcast(f"{name} {number}")
                else:
                    producer.server.broadcast(f"{name} {number}")

        threads = [
            threading.Thread(target=send, args=(one, "a")),
            threading.Thread(target=send, args=(two, "b")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        items = received(client, 2 * count)
        for name in "ab":
            own = [item for item in items if item.startswith(name)]
            assert own == [f"{name} {number}" for number in range(count)]


def test_a_message_of_a_megabyte_arrives_whole(short_path: Path, broker: Broker) -> None:
    with producers(short_path, broker.url) as (one, two):
        client = two.client()
        data = os.urandom(1024 * 1024)
        one.server.broadcast(data)
        assert received(client, 1) == [data]


def test_a_message_that_is_too_large_is_refused_and_no_producer_misses_a_later_one(
    short_path: Path, broker: Broker
) -> None:
    with producers(short_path, broker.url, 8) as eight:
        clients = [producer.client("room") for producer in eight]
        group = eight[0].server.group("room")
        big = bytes(33 * 1024 * 1024)
        for call in (
            lambda: group.broadcast(big),
            lambda: eight[0].server.broadcast(big),
            lambda: group.broadcast_json("x" * 1024 * 1024),
        ):
            with pytest.raises(MessageTooLarge, match="the relay carries 1048576"):
                call()
        for producer in eight:
            producer.server.group("room").broadcast("later")
        for client in clients:
            assert received(client, 8) == ["later"] * 8
        assert all(not producer.relay_events() for producer in eight)


def test_a_group_is_subscribed_only_while_it_has_members(short_path: Path, broker: Broker) -> None:
    with producers(short_path, broker.url) as (one, _):
        assert not one.server.group("room").is_relayed
        client = one.client("room", "hall")
        wait_for(lambda: b"\r\n:1\r\n" in broker.call("PUBSUB", "NUMSUB", "apachews:chat.ws:room"))
        client.socket.close()
        wait_for(lambda: b"\r\n:0\r\n" in broker.call("PUBSUB", "NUMSUB", "apachews:chat.ws:room"))
        # It works again, as often as a client comes and goes.
        for _ in range(20):
            client = one.client("room")
            client.socket.close()
            wait_for(lambda: not one.server.group("room").is_relayed)


def test_a_subscription_that_the_broker_does_not_have_is_noticed(broker: Broker) -> None:
    engine = open_engine(address.parse(broker.url), "chat.ws")
    engine.connect()
    try:
        engine.subscribe([None, "room"])
        engine.verify([None, "room"])
        redis.Redis(port=broker.port).client_kill_filter(_type="pubsub")
        with pytest.raises(EngineError, match=r"PUBSUB NUMSUB: .* has no subscriber"):
            engine.verify([None, "room"])
    finally:
        engine.close()


def test_foreign_messages_on_the_channel_do_no_harm(short_path: Path, broker: Broker) -> None:
    with producers(short_path, broker.url, 1) as (one,):
        client = one.client("room")
        for data in (b"nonsense", b"", b"1t" + NOWHERE + b"\xff", b"1t" + NOWHERE + b"hello"):
            redis.Redis(port=broker.port).publish("apachews:chat.ws:room", data)
        assert received(client, 1) == ["hello"]
        assert one.is_up and not one.relay_events()


# Loss and return.


def lose_and_return(two: list[Producer], stop: Callable[[], None], go: Callable[[], None]) -> None:
    """Let the broker fail and return; every producer must report it, and work again."""
    started_at = time.monotonic()
    stop()
    for producer in two:
        wait_for(producer.relay_events, 30.0)
        lost = producer.relay_events()[0]
        assert isinstance(lost, RelayLostEvent) and lost.reason
        assert not producer.is_up and lost.client_or_none() is None
    # The local clients notice nothing, and their messages cost no time: one that waited for the
    # broker would wait for a second.
    near = two[0].client()
    begin = time.monotonic()
    delivery = two[0].server.group("room").broadcast("meanwhile", scope="everywhere")
    two[0].server.broadcast("local")
    for _ in range(20):
        two[0].server.group("empty").broadcast("no client")
    assert time.monotonic() - begin < DEADLINE_S
    assert not delivery.relayed
    assert received(near, 1) == ["local"]
    go()
    for producer in two:
        wait_for(lambda producer=producer: len(producer.relay_events()) == 2, 30.0)  # type: ignore[misc]
        back = producer.relay_events()[1]
        assert isinstance(back, RelayBackEvent)
        assert 0 < back.gap_s < time.monotonic() - started_at + 5.0
        status = producer.server.relay_status()
        assert status and status.is_up and status.gaps == 1


def has_after(client: Bridge) -> None:
    """Wait for "after" in the group; what waited during an outage may arrive before it."""
    items: list[Any] = []

    def has_it() -> bool:
        items.extend(client.read_available())
        return "after" in items

    wait_for(has_it, what=lambda: items)
    # The order holds within a group: "local", which is for all clients, may follow.
    assert [item for item in items if item != "local"] in (["after"], ["meanwhile", "after"])


def test_a_broker_that_is_killed_and_restarted(short_path: Path, own_broker: Broker) -> None:
    with producers(short_path, own_broker.url) as two:
        far = two[1].client("room")
        lose_and_return(two, own_broker.kill, own_broker.start)
        two[0].server.group("room").broadcast("after")
        has_after(far)
        numbers = own_broker.call("PUBSUB", "NUMSUB", "apachews:chat.ws:room", "apachews:chat.ws")
        assert b":1\r\n" in numbers and b":2\r\n" in numbers


def test_a_broker_that_hangs(short_path: Path, own_broker: Broker) -> None:
    with producers(short_path, f"{own_broker.url}?socket_timeout=1") as two:
        far = two[1].client("room")
        lose_and_return(two, own_broker.pause, own_broker.resume)
        two[0].server.group("room").broadcast("after")
        has_after(far)


def test_a_broker_is_not_lost_while_this_program_does_not_run(
    short_path: Path, own_broker: Broker
) -> None:
    with closing(RedisEngine(address.parse(own_broker.url), "chat.ws")) as engine:
        engine.connect()
        (node,) = engine._nodes.values()
        for _ in range(2):
            engine.ping()
            wait_for(node.is_readable)
        wait_for(lambda: engine.receive(0.01, node.fileno()) or node.pinged_at is None)
        own_broker.pause()
        engine.ping()
        with pytest.raises(EngineError, match="no answer to a ping"):
            engine.ping()


def test_a_message_that_was_being_sent_does_not_arrive_after_later_ones(
    short_path: Path, own_broker: Broker
) -> None:
    """The kernel would deliver what it has of the connection that was closed.

    The message is longer than what the broker receives while it hangs.
    """
    with (
        producers(short_path, f"{own_broker.url}?socket_timeout=1", 1) as (one,),
        socket.create_connection(("127.0.0.1", own_broker.port), DEADLINE_S) as subscriber,
    ):
        subscriber.sendall(b"SUBSCRIBE apachews:chat.ws\r\n")
        subscriber.recv(1000)
        own_broker.pause()
        one.server.broadcast("being sent " * 90_000)
        wait_for(one.relay_events)
        own_broker.resume()
        wait_for(lambda: one.is_up)
        one.server.broadcast("later")
        data = b""
        while b"later" not in data:
            data += subscriber.recv(100_000)
        assert b"being sent" not in data, f"{len(data)} bytes"


def test_a_broker_that_closes_a_connection(short_path: Path, own_broker: Broker) -> None:
    """As Redis does with a subscriber whose output buffer is full."""
    with producers(short_path, own_broker.url) as two:
        far = two[1].client("room")
        own_broker.call("CLIENT", "KILL", "TYPE", "pubsub")
        for producer in two:
            wait_for(lambda producer=producer: len(producer.relay_events()) == 2)  # type: ignore[misc]
        two[0].server.group("room").broadcast("after")
        assert received(far, 1) == ["after"]


def test_a_broker_that_starts_after_the_producers(short_path: Path) -> None:
    broker = Broker(short_path)
    made = [Producer(short_path / f"{n}.ws", broker.url, relay_name="chat.ws") for n in (0, 1)]
    try:
        for producer in made:
            wait_for(producer.relay_events)
            assert "refused" in producer.relay_events()[0].reason.lower()
        made[0].server.broadcast("early")
        broker.start()
        for producer in made:
            wait_for(lambda producer=producer: producer.is_up)  # type: ignore[misc]
        client = made[1].client()
        made[0].server.broadcast("late")
        # The early message waited, and arrives if this producer was back before the other one.
        items = received(client, 1)
        if items == ["early"]:
            items += received(client, 1)
        assert items in (["late"], ["early", "late"])
    finally:
        for producer in made:
            producer.close()
        broker.kill()


def test_memory_is_bounded_while_the_broker_is_gone(short_path: Path, own_broker: Broker) -> None:
    with producers(short_path, own_broker.url, 1) as (one,):
        own_broker.pause()
        data = b"x" * 100_000
        for _ in range(500):  # 50 MB
            one.server.broadcast(data)
        status = one.server.relay_status()
        assert status and status.dropped > 300
        assert one.server._loop.broker
        thread = one.server._loop.broker._running()
        assert thread._outbox_bytes <= 4 * 1024 * 1024
        assert sum(len(message.data) for message in thread._outbox) == thread._outbox_bytes
        own_broker.resume()


def test_a_program_that_is_busy_loses_the_oldest_messages_and_counts_them(
    short_path: Path, broker: Broker
) -> None:
    with producers(short_path, broker.url, 1) as (one,), ExitStack() as stack:
        slow = Server(short_path / "slow.ws", relay=broker.url, relay_name="chat.ws")
        try:
            wait_for(lambda: (s := slow.relay_status()) and s.is_up)
            for number in range(200):
                one.server.broadcast(b"x" * 100_000)
                # Otherwise the sender would drop some: these bytes are all that may wait.
                wait_for(lambda n=number: (s := one.server.relay_status()) and s.published > n - 20)  # type: ignore[misc]
            wait_for(lambda: (s := slow.relay_status()) and s.received == 200)
            status = slow.relay_status()
            assert status and 150 < status.dropped < 170  # 4 MiB stay
            bridge = Bridge(str(short_path / "slow.ws"))
            stack.callback(bridge.socket.close)
            wait_for(lambda: slow.dequeue(0.01))
            one.server.broadcast("newest")
            items: list[Any] = []

            def step() -> bool:
                slow.dequeue(0.01)
                items.extend(bridge.read_available())
                return "newest" in items

            wait_for(step)
        finally:
            slow.close()


def test_close_publishes_what_is_queued(short_path: Path, broker: Broker) -> None:
    with producers(short_path, broker.url) as (one, two):
        client = two.client()
        for number in range(100):
            one.server.broadcast(str(number))
        one.server.close()
        assert received(client, 100) == [str(number) for number in range(100)]


def test_close_does_not_wait_for_a_broker_that_hangs(short_path: Path, own_broker: Broker) -> None:
    with producers(short_path, own_broker.url, 1) as (one,):
        own_broker.pause()
        one.server.broadcast("x")
        begin = time.monotonic()
        one.server.close()
        assert time.monotonic() - begin < 2.5
        own_broker.resume()


# From other programs.


def test_a_message_to_one_producer_reaches_the_clients_of_all(
    short_path: Path, broker: Broker
) -> None:
    with producers(short_path, broker.url) as (one, two):
        near, far = one.client("room"), two.client("room")
        delivery = publish(one.path, "hello", group="room")
        assert delivery == (1, 0) and delivery.relayed
        assert received(near, 1) == received(far, 1) == ["hello"]


def test_a_program_publishes_through_the_relay(short_path: Path, broker: Broker) -> None:
    with producers(short_path, broker.url) as (one, two):
        near, far = one.client("room"), two.client()
        url = f"{broker.url}?name=chat.ws"
        delivery = publish(url, "to the room", group="room")
        assert delivery == (0, 0) and delivery.relayed
        assert publish(url, b"to all").relayed
        assert sorted(map(str, received(near, 2))) == ["b'to all'", "to the room"]
        assert received(far, 1) == [b"to all"]
        assert not publish(url, "x", group="empty").relayed
        with pytest.raises(MessageTooLarge):
            publish(url, bytes(2_000_000))
        with pytest.raises(RelayError, match=r"add \?name="):
            publish(broker.url, "x")
    with pytest.raises(RelayError, match="refused"):
        publish("redis://127.0.0.1:1/0?name=x", "x")


def test_a_message_that_is_too_large_is_refused_to_a_publisher(
    short_path: Path, broker: Broker
) -> None:
    with producers(short_path, broker.url, 1, relay_max_message_bytes=10) as (one,):
        client = one.client("room")
        with pytest.raises(PublishError, match="the relay carries 10"):
            publish(one.path, "eleven bytes", group="room")
        assert publish(one.path, "ten bytes", group="room") == (1, 0)
        assert received(client, 1) == ["ten bytes"]


def test_the_state_of_the_relay_can_be_asked_for(short_path: Path, broker: Broker) -> None:
    with (
        producers(short_path, broker.url) as (one, two),
        Server(short_path / "plain.ws", relay="") as plain,
    ):
        client = two.client()
        one.server.broadcast("hello")
        received(client, 1)
        wait_for(lambda: (s := one.server.relay_status()) and s.published == 1)
        stop = threading.Event()
        thread = threading.Thread(
            target=lambda: [plain.dequeue(0.01) for _ in iter(stop.is_set, True)]
        )
        thread.start()
        try:
            found = ask_relays([one.path, plain.path, two.path, str(short_path / "nothing.ws")])
        finally:
            stop.set()
            thread.join()
        assert [relay.endpoint for relay in found] == [one.path, two.path]
        assert found[0].is_up and found[0].published == 1 and found[1].received == 1
        assert found[0].name == "chat.ws" and 0 < found[0].lag_s < 5
        assert all(event.type() is not Event.Invalid for event in one.events)


# Passwords, TLS, Sentinels, clusters.


def test_a_password_and_a_user(short_path: Path) -> None:
    with running_broker(short_path, "--requirepass", "secret") as broker:
        plain = Producer(short_path / "plain.ws", broker.url, relay_name="chat.ws")
        try:
            wait_for(plain.relay_events)
            assert "secret" not in plain.relay_events()[0].reason
            url = broker.url.replace("//", "//default:secret@")
            with producers(short_path, url) as (one, two):
                client = two.client()
                one.server.broadcast("hello")
                assert received(client, 1) == ["hello"]
                status = one.server.relay_status()
                assert status and "secret" not in str(status)
        finally:
            plain.close()


def test_a_user_with_the_rights_of_the_manual(short_path: Path) -> None:
    text = (ROOT / "docs" / "howto" / "machines.md").read_text()
    rules = next(line for line in text.splitlines() if line.startswith("ACL SETUSER")).split()[2:]
    with running_broker(short_path) as broker:
        assert broker.call("ACL", "SETUSER", *rules).startswith(b"+OK")
        url = broker.url.replace("//", "//apachews:secret@")
        with producers(short_path, url) as (one, two):
            client = two.client("room")
            one.server.group("room").broadcast("hello")
            assert received(client, 1) == ["hello"]
            assert publish(f"{url}?name=chat.ws", "again", group="room").relayed
            assert received(client, 1) == ["again"]


def test_a_program_that_ends_without_close_says_nothing(short_path: Path, broker: Broker) -> None:
    code = (
        "import sys, time; from apachews import Server\n"
        "server = Server(sys.argv[1], relay=sys.argv[2])\n"
        "while not server.relay_status().is_up: time.sleep(0.01)\n"
    )
    command = [sys.executable, "-W", "default", "-c", code, str(short_path / "a.ws"), broker.url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr and "Fatal" not in done.stderr, done.stderr


def test_tls(short_path: Path) -> None:
    certificate, key = short_path / "c.pem", short_path / "k.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(certificate), "-keyout", str(key)),
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    options: tuple[str, ...] = ("--tls-port", str(port), "--tls-cert-file", str(certificate))
    options += ("--tls-key-file", str(key), "--tls-auth-clients", "no")
    with running_broker(short_path, *options):
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
        with producers(short_path, url) as (one, two):
            client = two.client()
            data = os.urandom(500_000)
            one.server.broadcast(data)
            one.server.broadcast("small")
            assert received(client, 2) == [data, "small"]


def test_a_client_of_redis_py_as_the_relay(short_path: Path, broker: Broker) -> None:
    made = redis.Redis(port=broker.port, socket_timeout=3)
    with producers(short_path, made) as (one, two), made:
        client = two.client()
        one.server.broadcast("hello")
        assert received(client, 1) == ["hello"]
        status = one.server.relay_status()
        assert status and status.address == f"redis://localhost:{broker.port}"


def test_a_cluster_shards_the_channels(short_path: Path) -> None:
    names = [f"room-{number}" for number in range(30)]
    with running_cluster(short_path) as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[1].port}"
        with producers(short_path, url) as (one, two):
            client = two.client(*names)
            shards = [node.call("PUBSUB", "SHARDCHANNELS").count(b"room-") for node in nodes]
            assert sum(shards) == 30 and all(shards), "each node has some of them"
            for name in names:
                one.server.group(name).broadcast(name)
            one.server.broadcast("to all")
            items = received(client, 31)
            assert sorted(items) == sorted([*names, "to all"])
            assert publish(f"{url}?name=chat.ws", "outside", group="room-7").relayed
            assert received(client, 1) == ["outside"]
            braced = two.client("a{b}c")
            assert publish(one.path, "by a producer", group="a{b}c").relayed
            assert publish(f"{url}?name=chat.ws", "outside", group="a{b}c").relayed
            assert received(braced, 2) == ["by a producer", "outside"]
            assert not one.relay_events()
            for node in nodes:
                node.call("CLIENT", "KILL", "TYPE", "pubsub")
            for producer in (one, two):
                wait_for(lambda producer=producer: len(producer.relay_events()) == 2)  # type: ignore[misc]
            for name in names:
                one.server.group(name).broadcast(name)
            assert sorted(received(client, 30)) == sorted(names)
            made = RedisCluster(host="127.0.0.1", port=nodes[0].port, socket_timeout=3)
            third = Producer(short_path / "third.ws", made, relay_name="chat.ws")
            try:
                wait_for(lambda: third.is_up)
                third.server.group("room-7").broadcast("by a client of redis-py")
                assert received(client, 1) == ["by a client of redis-py"]
            finally:
                third.close()
                made.close()


def test_a_failover_by_a_sentinel(short_path: Path) -> None:
    with (
        running_broker(short_path) as first,
        running_broker(short_path, "--replicaof", "127.0.0.1", str(first.port)) as second,
        running_sentinel(short_path, first) as sentinel,
    ):
        wait_for(lambda: b"num-slaves\r\n$1\r\n1" in sentinel.call("SENTINEL", "MASTERS"), 20.0)
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster/0?socket_timeout=1"
        with producers(short_path, url) as (one, two):
            client = two.client("room")
            one.server.group("room").broadcast("before")
            assert received(client, 1) == ["before"]
            first.kill()
            for producer in (one, two):
                wait_for(lambda producer=producer: len(producer.relay_events()) == 2, 30.0)  # type: ignore[misc]
            one.server.group("room").broadcast("after")
            assert received(client, 1)[-1] == "after"
            make: Any = Sentinel  # without types
            sentinels = make([("127.0.0.1", sentinel.port)], socket_timeout=3)
            made = sentinels.master_for("mymaster", socket_timeout=3)
            third = Producer(short_path / "third.ws", made, relay_name="chat.ws")
            try:
                wait_for(lambda: third.is_up)
                third.server.group("room").broadcast("by a client of redis-py")
                assert received(client, 1) == ["by a client of redis-py"]
                status = third.server.relay_status()
                assert status and status.address == "the master mymaster of Redis Sentinels"
            finally:
                third.close()
            assert b"role:master" in second.call("INFO", "replication")


# The other forms of the library.


def test_asyncio(short_path: Path, own_broker: Broker) -> None:
    events: list[Event] = []

    async def join(connection: aio.Connection) -> None:
        connection.server.group("room").add(connection.client)
        async for _ in connection:
            pass

    async def scenario() -> None:
        path = short_path / "aio.ws"
        settings = {"relay": own_broker.url, "relay_name": "chat.ws"}
        async with aio.serve(path, join, on_event=events.append, **settings) as server:
            bridge = Bridge(str(path))
            items: list[Any] = []
            await until(lambda: server.group("room").is_relayed)
            await asyncio.to_thread(publish, f"{own_broker.url}?name=chat.ws", "hello", "room")
            await until(lambda: items.extend(bridge.read_available()) or items)  # type: ignore[func-returns-value]
            assert items == ["hello"]
            own_broker.kill()
            await until(lambda: len(events) == 1)
            own_broker.start()
            await until(lambda: len(events) == 2)
            bridge.socket.close()

    async def until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert [event.type() for event in events] == [Event.RelayLost, Event.RelayBack]


def test_threads(short_path: Path, own_broker: Broker) -> None:
    events: list[Event] = []

    def join(connection: threads.Connection) -> None:
        connection.server.group("room").add(connection.client)
        for _ in connection:
            pass

    path = short_path / "threads.ws"
    with threads.serve(
        path, join, on_event=events.append, relay=own_broker.url, relay_name="chat.ws"
    ) as server:
        bridge = Bridge(str(path))
        wait_for(lambda: server.group("room").is_relayed)
        publish(f"{own_broker.url}?name=chat.ws", "hello", "room")
        assert received(bridge, 1) == ["hello"]
        own_broker.kill()
        wait_for(lambda: events)
        own_broker.start()
        wait_for(lambda: len(events) == 2)
        bridge.socket.close()
    assert [event.type() for event in events] == [Event.RelayLost, Event.RelayBack]


# Workers of one supervisor.


WORKERS = """
import json, os, sys
from apachews import Event, Server

server = Server(
    sys.argv[1], workers=int(sys.argv[2]), relay=sys.argv[3], relay_name="chat.ws"
)
for event in server:
    if event.type() is Event.IO:
        word, _, rest = event.read().partition(" ")
        if word == "who":
            event.write(str(os.getpid()))
        elif word == "join":
            server.group(rest).add(event.client())
            event.write("joined")
        elif word == "up":
            status = server.relay_status()
            event.write(str(status is None or status.is_up))
        elif word == "status":
            event.write(json.dumps(server.relay_status().document()))
        elif word == "many":
            for number in range(int(rest)):
                server.group("room").broadcast(str(number))
        elif word == "large":
            server.broadcast("x" * int(rest))
        elif word == "room":
            server.group("room").broadcast(rest, exclude=event.client())
        else:
            server.broadcast(rest)
"""


@contextmanager
def workers(directory: Path, relay: str, count: int = 2) -> Iterator[dict[str, Bridge]]:
    """Run workers; return a client of each in the group ``room``, by the process id."""
    path = str(directory / "w.ws")
    clients: dict[str, Bridge] = {}
    with running(program(directory, WORKERS), path, str(count), relay) as process:
        wait_for(lambda: len(children_of(process.pid)) == count and os.path.exists(path))
        try:
            while len(clients) < count:
                bridge = Bridge(path)
                bridge.send(wire.TEXT, b"who")
                pid = received(bridge, 1)[0]
                if pid in clients:
                    bridge.socket.close()
                    continue
                clients[pid] = bridge
                ask(bridge, "join room")
                wait_for(lambda bridge=bridge: ask(bridge, "up") == "True")  # type: ignore[misc]
            yield clients
        finally:
            for bridge in clients.values():
                bridge.socket.close()


def ask(bridge: Bridge, text: str) -> str:
    bridge.send(wire.TEXT, text.encode())
    return str(received(bridge, 1)[0])


def test_a_broadcast_reaches_the_clients_of_all_workers(short_path: Path) -> None:
    with workers(short_path, "", 3) as clients:
        one, two, three = clients.values()
        one.send(wire.TEXT, b"all hello")
        assert [received(client, 1) for client in (one, two, three)] == [["hello"]] * 3
        two.send(wire.TEXT, b"room hello, room")
        assert [received(client, 1) for client in (one, three)] == [["hello, room"]] * 2
        assert two.read_available() == [], "it was excluded"
        three.send(wire.TEXT, b"large 3000000")
        for client in (one, two, three):
            assert received(client, 1) == ["x" * 3_000_000]


def test_a_burst_of_broadcasts_reaches_the_other_workers_in_order(short_path: Path) -> None:
    """More than the socket between them holds: the rest waits in the sender."""
    with workers(short_path, "") as clients:
        one, two = clients.values()
        one.send(wire.TEXT, b"many 5000")
        expected = [str(number) for number in range(5000)]
        assert received(two, 5000, 20.0) == expected
        assert received(one, 5000) == expected


def test_workers_and_a_relay_deliver_each_message_once(short_path: Path, broker: Broker) -> None:
    with workers(short_path, broker.url) as clients, producers(short_path, broker.url, 1) as (far,):
        one, two = clients.values()
        other = far.client("room")
        one.send(wire.TEXT, b"all from a worker")
        far.server.group("room").broadcast("from afar")
        delivery = publish(str(short_path / "w.ws"), "published", group="room")
        assert delivery == (2, 0) and delivery.relayed
        everything = ["from a worker", "from afar", "published"]
        for client in (one, two, other):
            assert sorted(received(client, 3)) == everything
        let_pass(0.1)
        assert [client.read_available() for client in (one, two, other)] == [[]] * 3


def test_the_counters_of_workers_are_added_and_survive_one_of_them(
    short_path: Path, broker: Broker
) -> None:
    with workers(short_path, broker.url) as clients:

        def numbers(of: Bridge) -> tuple[bool, int]:
            status = json.loads(ask(of, "status"))
            return status["is_up"], status["published"]

        (pid, one), (_, two) = clients.items()
        for client in (one, two):
            client.send(wire.TEXT, b"all hello")
            assert [received(client, 1) for client in (one, two)] == [["hello"]] * 2
        for client in (one, two):
            wait_for(lambda client=client: numbers(client) == (True, 2))  # type: ignore[misc]
        os.kill(int(pid), signal.SIGKILL)
        # The worker that replaces it begins with its numbers.
        wait_for(lambda: numbers(two) == (False, 2) or numbers(two) == (True, 2))
        let_pass(0.2)
        wait_for(lambda: numbers(two) == (True, 2))
        two.send(wire.TEXT, b"all again")
        assert received(two, 1) == ["again"]
        wait_for(lambda: numbers(two) == (True, 3))


def test_a_hanging_worker_costs_its_siblings_no_memory(short_path: Path) -> None:
    with workers(short_path, "") as clients:
        (_, one), (pid, _) = clients.items()
        os.kill(int(pid), signal.SIGSTOP)
        try:
            worker = next(int(p) for p in clients if p != pid)
            for _ in range(60):
                one.send(wire.TEXT, b"large 1000000")
                received(one, 1)
            assert resident_mib(worker) < 100
        finally:
            os.kill(int(pid), signal.SIGCONT)


def resident_mib(pid: int = 0) -> float:
    """Return the memory of a process; 0: this one."""
    pages = int(Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024


# NATS, the second engine.


@pytest.fixture
def nats(short_path: Path) -> Iterator[NatsBroker]:
    if shutil.which("nats-server") is None:
        pytest.skip("nats-server is not installed")
    broker = NatsBroker(short_path)
    broker.start()
    yield broker
    broker.kill()


def test_nats_carries_broadcasts_and_groups(short_path: Path, nats: NatsBroker) -> None:
    rooms = ["room", "", "a.b", "a b*>", "zimmer ü", "/" * 1500]
    with producers(short_path, nats.url, 3) as (one, two, three):
        far, other = two.client(*rooms), three.client()
        for room in rooms:
            delivery = one.server.group(room).broadcast(room or "empty")
            assert delivery.relayed
        one.server.broadcast(b"\0to all")
        items = received(far, 7)
        # The order between groups is that of their tasks in nats-py.
        assert sorted(map(str, items)) == sorted(
            map(str, ["room", "empty", "a.b", "a b*>", "zimmer ü", "/" * 1500, b"\0to all"])
        )
        assert received(other, 1) == [b"\0to all"]
        url = f"{nats.url}?name=chat.ws"
        assert publish(url, "from outside", group="a.b").relayed
        assert received(far, 1) == ["from outside"]
        with pytest.raises(MessageTooLarge):
            one.server.broadcast(bytes(1024 * 1024))
        data = bytes(1024 * 1024 - 64)
        one.server.broadcast(data)
        assert received(far, 1) == [data]
        for number in range(500):
            one.server.group("room").broadcast(str(number))
        assert received(far, 500) == [str(number) for number in range(500)]
        far.socket.close()
        wait_for(lambda: not two.server.group("room").is_relayed)


@pytest.mark.parametrize("failure", ["kill", "hang"])
def test_nats_that_fails_and_returns(short_path: Path, nats: NatsBroker, failure: str) -> None:
    with producers(short_path, nats.url) as two:
        far = two[1].client("room")
        stop = nats.kill if failure == "kill" else nats.pause
        lose_and_return(two, stop, nats.start if failure == "kill" else nats.resume)
        two[0].server.group("room").broadcast("after")
        has_after(far)


def test_nats_has_what_it_confirms(nats: NatsBroker, short_path: Path) -> None:
    """A ping that overtakes what it is to confirm would confirm nothing."""

    def commands() -> list[str]:
        return re.findall(r"<<- \[(SUB|PUB|PING)\b", (short_path / "nats.log").read_text())

    with closing(NatsEngine(address.parse(nats.url), "chat.ws")) as engine:
        engine.connect()
        engine.subscribe(["room", "hall"])
        assert commands()[-3:] == ["SUB", "SUB", "PING"]
        engine.publish([Message("room", b"1tx"), Message("hall", b"1tx")])
        assert commands()[-3:] == ["PUB", "PUB", "PING"]


def test_nats_is_not_lost_while_this_program_does_not_run(
    nats: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apachews._relay.nats_engine.LAST_WAIT_S", DEADLINE_S)
    with closing(NatsEngine(address.parse(nats.url), "chat.ws")) as engine:
        engine.connect()
        for _ in range(3):
            engine.ping()  # without a turn of the loop between them
        nats.pause()
        monkeypatch.setattr("apachews._relay.nats_engine.LAST_WAIT_S", 0.1)
        with pytest.raises(EngineError, match="no answer to a ping"):
            for _ in range(2):
                engine.ping()


def test_the_doctor_of_nats(nats: NatsBroker) -> None:
    found = list(check_relay(nats.url))
    assert [(finding.id, finding.level.value) for finding in found] == [
        ("relay", "ok"),
        ("relay-history", "note"),
        ("relay-version", "ok"),
    ]
    (finding,) = check_relay("nats://127.0.0.1:1")
    assert finding.level.value == "error"


def test_without_nats_py_the_error_says_what_to_install(short_path: Path) -> None:
    code = (
        "import sys; sys.modules['nats'] = None; from apachews import Server, RelayError\n"
        "try: Server(sys.argv[1], relay='nats://localhost')\n"
        "except RelayError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(short_path / "a.ws")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "apachews[nats]" in done.stdout
