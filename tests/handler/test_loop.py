"""bridge.loop and bridge.deadlines: the time of turns.  What turns carry: test_bridge."""

from __future__ import annotations

import gc
import math
import select
import time
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews_handler.bridge.deadlines import SPARE_TICKETS, Deadlines
from apachews_handler.bridge.loop import TIMERS_S, Loop


class Epoll:
    """Epoll and the clock; tests set how long a wait and the work after it take."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits_s = 0.0
        self.works_s = 0.0

    def register(self, fd: int, events: int) -> None:
        pass

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        self.now += self.waits_s
        return [(5, 1)]

    def work(self) -> None:
        self.now += self.works_s


def loop_over(epoll: Epoll, monkeypatch: pytest.MonkeyPatch) -> Loop:
    monkeypatch.setattr(time, "monotonic", lambda: epoll.now)
    loop = Loop()
    loop._poller.epoll.close()
    loop._poller.epoll = cast(select.epoll, epoll)
    return loop


def test_the_longest_turn_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    epoll = Epoll()
    loop = loop_over(epoll, monkeypatch)
    # A deadline far away, so that the loop has something to wait for.
    item: Any = SimpleNamespace(scheduled_at=math.inf, ticket=0)
    loop._deadlines.schedule(item, 1e6)
    loop.add_reader(5, epoll.work)

    def longest_after(waits_s: float, works_s: float) -> float:
        epoll.waits_s, epoll.works_s = waits_s, works_s
        loop.turn()
        epoll.waits_s = epoll.works_s = 0.0
        loop.turn()  # the duration is noted when the next turn starts
        return loop.longest_turn_s()

    assert longest_after(100, 0.0005) == 0.0
    assert longest_after(0, 0.5) == pytest.approx(0.5)
    assert longest_after(1, 0.25) == pytest.approx(0.5)
    assert longest_after(40, 0.1) == pytest.approx(0.5)
    assert longest_after(30, 0.05) == pytest.approx(0.1)
    assert longest_after(61, 0.0) == 0.0
    # Also if the turn does not wait, because a client is pending.
    loop._poller.pending = {object(): None}  # type: ignore[dict-item]
    epoll.works_s = 0.0
    epoll.now += 0.3
    assert loop._wait_s(None) == 0
    assert loop.longest_turn_s() == pytest.approx(0.3)


def test_deadlines_that_are_close_are_handled_in_one_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    epoll = Epoll()
    loop = loop_over(epoll, monkeypatch)
    loop.add_reader(5, epoll.work)

    def waits_s(due_in_s: float, max_wait_s: float | None = None) -> float | None:
        item: Any = SimpleNamespace(scheduled_at=math.inf, ticket=0)
        loop._deadlines.schedule(item, epoll.now + due_in_s)
        timeout = loop._wait_s(max_wait_s)
        loop._deadlines.pop_due(math.inf)
        return timeout

    assert waits_s(1.0) == pytest.approx(1.0)
    assert waits_s(0.001) == TIMERS_S
    assert waits_s(0.0) == waits_s(-1.0) == 0.0  # it is late already
    assert waits_s(0.001, 0.01) == 0.01
    assert waits_s(1.0, 0.01) == 0.01
    assert loop._wait_s(None) is None
    assert loop._wait_s(0.01) == 0.01


# bridge.deadlines: each expired item is returned once, and a cancelled one never.


class Item:
    def __init__(self) -> None:
        self.scheduled_at = math.inf
        self.ticket = 0


def test_an_earlier_time_replaces_a_later_one_and_not_the_other_way_round() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    item = Item()
    deadlines.schedule(item, 5.0)
    deadlines.schedule(item, 3.0)
    deadlines.schedule(item, 4.0)
    assert deadlines.next_at() == 3.0
    assert deadlines.pop_due(2.9) == []
    assert deadlines.pop_due(3.0) == [item]
    assert deadlines.pop_due(9.0) == []
    deadlines.schedule(item, 10.0)
    assert deadlines.pop_due(10.0) == [item]


def test_infinity_sets_no_deadline() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    deadlines.schedule(Item(), math.inf)
    assert deadlines.next_at() == math.inf


def test_a_cancelled_item_is_not_returned_and_not_kept_alive() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    item = Item()
    deadlines.schedule(item, 1.0)
    deadlines.cancel(item)
    gone = weakref.ref(item)
    del item
    gc.collect()
    assert gone() is None
    assert deadlines.pop_due(2.0) == []


def test_the_heap_does_not_grow_with_stale_entries() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    for _ in range(3 * SPARE_TICKETS):
        item = Item()
        deadlines.schedule(item, 1e9)
        deadlines.cancel(item)
        deadlines.pop_due(0.0)
    assert len(deadlines) <= SPARE_TICKETS + 1


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),  # which item
            st.one_of(st.none(), st.integers(0, 50)),  # cancelled, or the deadline
        )
    )
)
def test_the_items_that_were_scheduled_are_returned(steps: list[tuple[int, int | None]]) -> None:
    deadlines: Deadlines[Item] = Deadlines()
    items = [Item() for _ in range(5)]
    expected: dict[int, float] = {}
    for index, at in steps:
        if at is None:
            deadlines.cancel(items[index])
            expected.pop(index, None)
        else:
            deadlines.schedule(items[index], at)
            expected[index] = min(at, expected.get(index, math.inf))
    for now in range(51):
        due = deadlines.pop_due(now)
        assert {items.index(item) for item in due} == {
            index for index, at in expected.items() if at == now
        }


def test_a_cancelled_deadline_causes_no_wakeup() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    first, second = Item(), Item()
    deadlines.schedule(first, 1.0)
    deadlines.schedule(second, 2.0)
    deadlines.cancel(first)
    assert deadlines.next_at() == 2.0
    deadlines.schedule(first, 3.0)
    deadlines.cancel(second)
    assert deadlines.next_at() == 3.0
    deadlines.cancel(first)
    assert deadlines.next_at() == math.inf
