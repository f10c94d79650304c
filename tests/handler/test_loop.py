"""bridge.loop: how long its turns take.  What it carries is tested in test_bridge."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from apachews_handler.bridge import loop as loop_module
from apachews_handler.bridge import poller as poller_module
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
    for module in (loop_module, poller_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: epoll.now))
        monkeypatch.setattr(module, "select", SimpleNamespace(epoll=lambda: epoll))
    return Loop()


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
