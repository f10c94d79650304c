"""apachews_handler.bridge.deadlines: everything comes out once, at its time, or not at all."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews_handler.bridge.deadlines import Deadlines


class Thing:
    def __init__(self) -> None:
        self.scheduled_at = math.inf
        self.ticket = 0


def test_an_earlier_time_replaces_a_later_one_and_not_the_other_way_round() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    thing = Thing()
    deadlines.schedule(thing, 5.0)
    deadlines.schedule(thing, 3.0)
    deadlines.schedule(thing, 4.0)
    assert deadlines.next_at() == 3.0
    assert deadlines.pop_due(2.9) == []
    assert deadlines.pop_due(3.0) == [thing]
    assert deadlines.pop_due(9.0) == []
    deadlines.schedule(thing, 10.0)
    assert deadlines.pop_due(10.0) == [thing]


def test_never_is_no_time() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    deadlines.schedule(Thing(), math.inf)
    assert deadlines.next_at() == math.inf


def test_what_was_dropped_does_not_come_out_and_is_not_kept_alive() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    thing = Thing()
    deadlines.schedule(thing, 1.0)
    deadlines.cancel(thing)
    gone = weakref.ref(thing)
    del thing
    gc.collect()
    assert gone() is None
    assert deadlines.pop_due(2.0) == []


def test_the_heap_does_not_grow_by_what_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apachews_handler.bridge.deadlines.SPARE_TICKETS", 5)
    deadlines: Deadlines[Thing] = Deadlines()
    for _ in range(100):
        thing = Thing()
        deadlines.schedule(thing, 1e9)
        deadlines.cancel(thing)
        deadlines.pop_due(0.0)
    assert len(deadlines) <= 6


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),  # which thing
            st.one_of(st.none(), st.integers(0, 50)),  # dropped, or at which time
        )
    )
)
def test_what_comes_out_is_what_was_scheduled(steps: list[tuple[int, int | None]]) -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    things = [Thing() for _ in range(5)]
    expected: dict[int, float] = {}
    for index, at in steps:
        if at is None:
            deadlines.cancel(things[index])
            expected.pop(index, None)
        else:
            deadlines.schedule(things[index], at)
            expected[index] = min(at, expected.get(index, math.inf))
    for now in range(51):
        due = deadlines.pop_due(now)
        assert {things.index(thing) for thing in due} == {
            index for index, at in expected.items() if at == now
        }


def test_a_time_that_was_dropped_causes_no_wakeup() -> None:
    deadlines: Deadlines[Thing] = Deadlines()
    first, second = Thing(), Thing()
    deadlines.schedule(first, 1.0)
    deadlines.schedule(second, 2.0)
    deadlines.cancel(first)
    assert deadlines.next_at() == 2.0
    deadlines.schedule(first, 3.0)
    deadlines.cancel(second)
    assert deadlines.next_at() == 3.0
    deadlines.cancel(first)
    assert deadlines.next_at() == math.inf
