"""A relay that fails under load: every lost message is in a gap that was reported."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apachews import Group, RelayBackEvent, RelayLostEvent

from ..conftest import let_pass, wait_for
from ..library.test_relay import Producer, producers, received, resident_mib
from ..support.bridge_by_hand import Bridge
from ..support.brokers import Broker, OtherMachine, other_machine, running_broker
from .conftest import scaled

FAILURES = scaled(24, 3)
CUTS = scaled(12, 1)
RATE = 1000  # messages a second
GROUPS = 500
MEMBERS = 40
CHANGES_S = scaled(600, 3)
STOPPED_S = scaled(60, 2)
# The clock of the test and of the producers is the same; threads wait for each other.
SLACK_S = 1.0


@pytest.fixture
def broker(short_path: Path) -> Iterator[Broker]:
    with running_broker(short_path) as broker:
        yield broker


class Sender:
    """Broadcasts numbers to a group at a steady rate; ``sent_at[n]`` is when number n was sent."""

    def __init__(self, producer: Producer, rate: int = RATE, group: str = "room") -> None:
        self.sent_at: list[float] = []
        self._producer = producer
        self._group = group
        self._interval_s = 1.0 / rate
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        group = self._producer.server.group(self._group)
        due = time.monotonic()
        for number in itertools.count():
            if self._is_stopped.is_set():
                return
            self.sent_at.append(time.monotonic())
            group.broadcast(str(number))
            due += self._interval_s
            time.sleep(max(0.0, due - time.monotonic()))

    def stop(self) -> None:
        self._is_stopped.set()
        self._thread.join()


class Listener:
    """Collects what a client receives; the producer's gaps, as intervals of time."""

    def __init__(self, producer: Producer, group: str = "room") -> None:
        self._producer = producer
        self._bridge = producer.client(group)
        self.numbers: list[int] = []
        self.gaps: list[tuple[float, float]] = []
        self._seen = 0

    def poll(self) -> None:
        self.numbers += [int(item) for item in self._bridge.read_available()]  # type: ignore[arg-type]
        for event in self._producer.relay_events()[self._seen :]:
            self._seen += 1
            if isinstance(event, RelayBackEvent):
                now = time.monotonic()
                self.gaps.append((now - event.gap_s - SLACK_S, now + SLACK_S))

    @property
    def is_back(self) -> bool:
        events = self._producer.relay_events()
        return bool(events) and isinstance(events[-1], RelayBackEvent)

    @property
    def losses(self) -> int:
        return sum(isinstance(e, RelayLostEvent) for e in self._producer.relay_events())


@contextmanager
def polled(*listeners: Listener) -> Iterator[None]:
    """Let a thread poll the listeners, so that their gaps have the right time."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            for listener in listeners:
                listener.poll()
            time.sleep(0.005)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def fail(broker: Broker, kind: str, listeners: list[Listener]) -> None:
    """Let the broker fail in one way, and return when all producers are back."""
    losses = [listener.losses for listener in listeners]
    if kind == "kill":
        broker.kill()
        let_pass(random.uniform(0.0, 0.5))
        broker.start()
    elif kind == "pause":
        broker.pause()
        for listener, before in zip(listeners, losses, strict=True):
            wait_for(lambda o=listener, n=before: o.losses > n, 20.0)  # type: ignore[misc]
        broker.resume()
    else:
        broker.call("CLIENT", "KILL", "TYPE", "pubsub")
    for listener, before in zip(listeners, losses, strict=True):
        wait_for(lambda o=listener, n=before: o.losses > n and o.is_back, 30.0)  # type: ignore[misc]


def losses_in(numbers: list[int], sender: Sender, gaps: list[tuple[float, float]]) -> set[int]:
    """Return the numbers that a client misses, after a check that each was sent in a gap."""
    assert numbers == sorted(set(numbers)), "in order, and none twice"
    lost = set(range(len(sender.sent_at))) - set(numbers)
    silent = [
        number
        for number in lost
        if not any(begin <= sender.sent_at[number] <= end for begin, end in gaps)
    ]
    assert not silent, f"{len(silent)} of {len(lost)} lost messages are in no gap"
    return lost


def test_what_is_lost_under_load_is_in_a_reported_gap(short_path: Path, broker: Broker) -> None:
    with producers(short_path, f"{broker.url}?socket_timeout=1") as (one, two):
        near, far = Listener(one), Listener(two)
        sender = Sender(one)
        with polled(near, far):
            kinds = itertools.cycle(("kill", "pause", "close"))
            for _, kind in zip(range(FAILURES), kinds, strict=False):
                fail(broker, kind, [near, far])
                let_pass(0.5)
            sender.stop()
            count = len(sender.sent_at)
            wait_for(lambda: far.numbers and far.numbers[-1] == count - 1)
            wait_for(lambda: near.numbers and near.numbers[-1] == count - 1)
    assert near.numbers == list(range(count)), "the local client misses nothing"
    lost = losses_in(far.numbers, sender, near.gaps + far.gaps)
    assert len(near.gaps) == len(far.gaps) == FAILURES
    print(f"{count} messages, {FAILURES} failures, {len(lost)} lost")


@contextmanager
def on_two_machines(
    directory: Path, there: OtherMachine
) -> Iterator[tuple[Broker, Producer, Producer]]:
    """Run Redis and a producer here, and another producer on the other machine."""
    bind = ("--bind", "127.0.0.1", there.here, "--protected-mode", "no")
    with running_broker(directory, *bind) as broker:
        url = f"redis://{there.here}:{broker.port}/0?socket_timeout=1"
        near = Producer(directory / "near.ws", url, relay_name="chat.ws")
        far = there.run(lambda: Producer(directory / "far.ws", url, relay_name="chat.ws"))
        try:
            for producer in (near, far):
                wait_for(lambda producer=producer: producer.is_up)  # type: ignore[misc]
            yield broker, near, far
        finally:
            near.close()
            far.close()


def cut(there: OtherMachine, broker: Broker, cut_off: Listener) -> None:
    """Cut the link of the other machine; return when its producer is back."""
    losses = cut_off.losses
    there.disconnect()
    wait_for(lambda: cut_off.losses > losses, 30.0)
    assert not cut_off.is_back
    let_pass(random.uniform(0.0, 1.0))
    there.connect()
    wait_for(lambda: cut_off.is_back, 30.0)
    # Redis does not know for a moment that the old connections have ended.
    for channel in ("apachews:chat.ws", "apachews:chat.ws:here", "apachews:chat.ws:there"):
        wait_for(lambda c=channel: broker.call("PUBSUB", "NUMSUB", c).endswith(b":2\r\n"), 30.0)  # type: ignore[misc]


def test_a_machine_that_is_cut_off(short_path: Path) -> None:
    """Each machine has a client in a group of the other one's sender."""
    with other_machine() as there, on_two_machines(short_path, there) as (broker, near, far):
        own = [Listener(near, "here"), Listener(far, "there")]
        crossed = [Listener(far, "here"), Listener(near, "there")]
        senders = [Sender(near, group="here"), Sender(far, RATE // 10, "there")]
        with polled(*own, *crossed):
            for _ in range(CUTS):
                cut(there, broker, crossed[0])
                let_pass(0.5)
            for sender in senders:
                sender.stop()
            for listener, sender in zip(own + crossed, senders * 2, strict=True):
                last = len(sender.sent_at) - 1
                wait_for(lambda o=listener, n=last: o.numbers and o.numbers[-1] == n, 30.0)  # type: ignore[misc]
        dropped = far.server.relay_status()
        assert not near.relay_events(), "only the producer that was cut off reports it"
        assert len(far.relay_events()) == 2 * CUTS == 2 * len(crossed[0].gaps)
    for listener, sender in zip(own, senders, strict=True):
        assert listener.numbers == list(range(len(sender.sent_at))), "the local client has all"
    lost = [
        losses_in(listener.numbers, sender, crossed[0].gaps)
        for listener, sender in zip(crossed, senders, strict=True)
    ]
    assert lost[0], "messages from here did not cross the link while it was cut"
    # What the other machine sent waited there, but for the messages that were under way.
    assert dropped and len(lost[1]) <= dropped.dropped
    print(f"{CUTS} cuts, {[len(sender.sent_at) for sender in senders]} sent, {lost=!s:.100}")


class Member:
    """A client that joins groups at random, and checks that it misses nothing while a member."""

    def __init__(self, producer: Producer, counts: list[int]) -> None:
        self._producer = producer
        self._counts = counts  # of each group: how many messages were sent
        known = set(producer.server.clients())
        self._bridge: Bridge = producer.client()
        (self._client,) = wait_for(lambda: set(producer.server.clients()) - known)
        self._group = -1
        self._first: int | None = None
        self._last: int | None = None
        self._leave_at = 0.0
        self._numbers: list[int] = []
        self.memberships = 0

    def step(self) -> None:
        items = [str(item).partition(":") for item in self._bridge.read_available()]
        self._numbers += [int(n) for group, _, n in items if int(group) == self._group]
        if self._group < 0:
            self._group = random.randrange(GROUPS)
            self._first, self._last, self._numbers = None, None, []
            self._set.add(self._client)
        elif self._first is None:
            if self._set.is_relayed:
                self._first = self._counts[self._group]
                self._leave_at = time.monotonic() + random.uniform(0.0, 0.5)
        elif self._last is None:
            if time.monotonic() > self._leave_at:
                self._last = self._counts[self._group] - 1
                self._leave_at = time.monotonic() + 10.0
        elif self._last < self._first or (self._numbers and self._numbers[-1] >= self._last):
            missed = {*range(self._first, self._last + 1)} - {*self._numbers}
            assert not missed, f"group {self._group}: {missed} missed while a member"
            self._set.discard(self._client)
            self._group = -1
            self.memberships += 1
        else:
            assert time.monotonic() < self._leave_at, f"{self._last} did not arrive"

    @property
    def _set(self) -> Group:
        return self._producer.server.group(str(self._group))


def test_a_member_of_a_changing_group_misses_nothing(short_path: Path, broker: Broker) -> None:
    with producers(short_path, broker.url) as (one, two):
        counts = [0] * GROUPS
        members = [Member(two, counts) for _ in range(MEMBERS)]
        stop = threading.Event()

        def send() -> None:
            due = time.monotonic()
            while not stop.is_set():
                group = random.randrange(GROUPS)
                # Counted first: a member that joins now must not wait for this message.
                counts[group] += 1
                one.server.group(str(group)).broadcast(f"{group}:{counts[group] - 1}")
                due += 1.0 / RATE
                time.sleep(max(0.0, due - time.monotonic()))

        thread = threading.Thread(target=send)
        thread.start()
        try:
            end = time.monotonic() + CHANGES_S
            while time.monotonic() < end:
                for member in members:
                    member.step()
                time.sleep(0.002)
        finally:
            stop.set()
            thread.join()
        assert not two.relay_events()
        total = sum(member.memberships for member in members)
        assert total > 10 * CHANGES_S
        print(f"{total} memberships, {sum(counts)} messages")


def test_memory_is_bounded_while_the_broker_hangs(short_path: Path, broker: Broker) -> None:
    with producers(short_path, f"{broker.url}?socket_timeout=1") as (one, two):
        client = two.client("room")
        data = "x" * 10_000
        group = one.server.group("room")
        group.broadcast(data)
        received(client, 1)
        before = resident_mib()
        broker.pause()
        sent = 0
        end = time.monotonic() + STOPPED_S
        while time.monotonic() < end:
            group.broadcast(data)
            sent += 1
            time.sleep(0.001)
        grown = resident_mib() - before
        # Four MiB wait, and as much is being sent; Python's allocator keeps some of the rest.
        assert grown < 48, f"{grown:.0f} MiB for {sent} messages of 10 KB"
        broker.resume()
        for producer in (one, two):
            wait_for(lambda producer=producer: producer.is_up, 30.0)  # type: ignore[misc]
        assert two.server.group("room").is_relayed
        group.broadcast("last")
        items: list[object] = []

        def has_last() -> bool:
            items.extend(client.read_available())
            return items[-1:] == ["last"]

        wait_for(has_last, 20.0)
        print(f"{sent} messages sent, {len(items)} received, {grown:.1f} MiB")
