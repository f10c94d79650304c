"""bridge.deadlines: each expired item is returned once, and a cancelled one never."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews_handler.bridge.deadlines import Deadlines


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


def test_the_heap_does_not_grow_with_stale_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apachews_handler.bridge.deadlines.SPARE_TICKETS", 5)
    deadlines: Deadlines[Item] = Deadlines()
    for _ in range(100):
        item = Item()
        deadlines.schedule(item, 1e9)
        deadlines.cancel(item)
        deadlines.pop_due(0.0)
    assert len(deadlines) <= 6


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
