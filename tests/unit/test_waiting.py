"""apachews_handler.waiting: how many handshakes wait at a time, and what happens to the others."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apachews_handler import waiting
from apachews_handler.exceptions import Unavailable
from apachews_handler.waiting import MAX_COLLECTING, Waiting

PATH = "/srv/a.ws"


@pytest.fixture
def make(temporary: Path) -> Iterator[Callable[[], Waiting]]:
    """Make the state of one child; all children of a test have one Apache."""
    made: list[Waiting] = []

    def make() -> Waiting:
        made.append(Waiting())
        return made[-1]

    yield make
    for child in made:
        if child._places:
            child._places.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses between two tries, each of which ends the patience."""
    recorded: list[float] = []
    clock = [1000.0]

    def pause(child: Waiting) -> None:
        recorded.append(clock[0])
        clock[0] += waiting.PATIENCE_S

    monkeypatch.setattr(Waiting, "_pause", pause)
    monkeypatch.setattr("apachews_handler.waiting.time.monotonic", lambda: clock[0])
    return recorded


def fill(
    stack: contextlib.ExitStack, child: Waiting, paths: list[str], most: int, spare: int
) -> int:
    """Take places for these endpoints in turn; return how many there were."""
    taken = 0
    with contextlib.suppress(Unavailable):
        while True:
            stack.enter_context(child.place(paths[taken % len(paths)], most, spare))
            taken += 1
    return taken


@pytest.mark.parametrize(
    ("most", "spare", "of_one_endpoint", "in_all"),
    [
        (0, 1, 1, 1),
        (0, 5, 2, 3),  # prefork
        (0, 25, 7, 13),  # event, as Debian has it
        (0, 75, 19, 38),  # event
        (1, 75, 1, 38),
        (20, 25, 20, 20),
        (20, 75, 20, 38),
    ],
)
def test_the_bounds(
    make: Callable[[], Waiting],
    pauses: list[float],
    most: int,
    spare: int,
    of_one_endpoint: int,
    in_all: int,
) -> None:
    with contextlib.ExitStack() as stack:
        assert fill(stack, make(), [PATH], most, spare) == of_one_endpoint
    with contextlib.ExitStack() as stack:
        paths = [f"/srv/{number}.ws" for number in range(100)]
        assert fill(stack, make(), paths, most, spare) == in_all


def test_children_share_the_places(make: Callable[[], Waiting], pauses: list[float]) -> None:
    one, other = make(), make()
    with one.place(PATH, 1, 25):
        with (
            pytest.raises(Unavailable, match="APACHEWS_MAX_WAITING") as caught,
            other.place(PATH, 1, 25),
        ):
            pass
        assert PATH in caught.value.logged
        assert PATH not in caught.value.told
        assert dict(caught.value.headers) == {"Retry-After": "5"}
        with other.place("/srv/b.ws", 1, 25):
            pass
    with other.place(PATH, 1, 25):
        pass


def test_a_refusal_leaves_no_place_taken(make: Callable[[], Waiting], pauses: list[float]) -> None:
    child = make()
    with child.place(PATH, 0, 1):
        for number in range(5):
            # It has a place of its endpoint, and none of all.
            with (
                pytest.raises(Unavailable, match="would be one more"),
                child.place(f"/srv/{number}.ws", 0, 1),
            ):
                pass
    with child.place("/srv/0.ws", 0, 1):
        pass


def test_a_place_comes_back_when_the_wait_fails(make: Callable[[], Waiting]) -> None:
    child = make()
    for _ in range(3):
        with pytest.raises(Unavailable, match="backlog"), child.place(PATH, 1, 1):
            raise Unavailable("its backlog stayed full")


def test_a_place_that_is_released_soon_is_waited_for(
    make: Callable[[], Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE_S", 10.0)
    monkeypatch.setattr(waiting, "MAX_PATIENCE_S", 10.0)
    one, other = make(), make()
    got = threading.Event()
    has_tried = threading.Event()
    take = waiting._try

    def note(*arguments: object) -> int | None:
        position = take(*arguments)  # type: ignore[arg-type]
        if position is None:
            has_tried.set()
        return position

    monkeypatch.setattr(waiting, "_try", note)

    def wait() -> None:
        with other.place(PATH, 1, 25):
            got.set()

    with one.place(PATH, 1, 25):
        thread = threading.Thread(target=wait)
        thread.start()
        assert has_tried.wait(10)
        assert not got.is_set()
    thread.join()
    assert got.is_set()


def refused_after(child: Waiting, pauses: list[float]) -> int:
    """Fail to get a place; return how many pauses that took."""
    pauses.clear()
    with pytest.raises(Unavailable), child.place(PATH, 1, 25):
        pass
    return len(pauses)


def test_patience_ends_with_the_first_failure_and_returns_with_a_success(
    make: Callable[[], Waiting], pauses: list[float]
) -> None:
    holder, child = make(), make()
    with holder.place(PATH, 1, 25):
        assert refused_after(child, pauses) == 1
        assert refused_after(child, pauses) == 0
        assert refused_after(child, pauses) == 0
    with child.place(PATH, 1, 25):
        pass
    with holder.place(PATH, 1, 25):
        assert refused_after(child, pauses) == 1


def test_a_producer_that_does_not_answer_ends_patience(
    make: Callable[[], Waiting], pauses: list[float]
) -> None:
    holder, child = make(), make()
    with pytest.raises(Unavailable), child.place(PATH, 1, 25):
        raise Unavailable("it did not answer")
    with holder.place(PATH, 1, 25):
        assert refused_after(child, pauses) == 0


def test_a_slow_answer_is_no_reason_for_patience(
    make: Callable[[], Waiting], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, child = make(), make()
    with holder.place(PATH, 1, 25):
        assert refused_after(child, pauses) == 1
    with child.place(PATH, 1, 25):
        child._pause()  # for as long as the producer thinks
    with holder.place(PATH, 1, 25):
        assert refused_after(child, pauses) == 0


def test_patience_lasts_while_the_producer_answers_others(
    make: Callable[[], Waiting], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, child = make(), make()
    pause = Waiting._pause

    def answer_another(waiting_child: Waiting) -> None:
        pause(waiting_child)
        with waiting_child.place("/srv/b.ws", 1, 25):
            pass
        waiting_child._fast_at[PATH] = waiting_child._fast_at["/srv/b.ws"]

    with holder.place(PATH, 1, 25):
        monkeypatch.setattr(Waiting, "_pause", answer_another)
        assert refused_after(child, pauses) == waiting.MAX_PATIENCE_S // waiting.PATIENCE_S
        assert refused_after(child, pauses) == 0


def test_an_endpoint_is_not_remembered_for_ever(
    make: Callable[[], Waiting], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MEMORY_S", 0.0)
    holder, child = make(), make()
    with holder.place(PATH, 1, 25):
        for _ in range(3):
            assert refused_after(child, pauses) == 1
    for number in range(5):
        with pytest.raises(Unavailable), child.place(f"/srv/{number}.ws", 1, 25):
            raise Unavailable("it did not answer")
    assert list(child._slow_until) == ["/srv/4.ws"]


def test_without_a_run_directory_each_child_counts_for_itself(
    make: Callable[[], Waiting], temporary: Path, pauses: list[float]
) -> None:
    temporary.write_text("another user's")
    one, other = make(), make()
    with contextlib.ExitStack() as stack:
        assert fill(stack, one, [PATH], 3, 1) == 3
        assert fill(stack, other, [PATH], 3, 1) == 3


def test_without_descriptors_it_may_work_in_a_moment(
    make: Callable[[], Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(waiting, "Places", fail)
    with pytest.raises(Unavailable, match="LimitNOFILE"), make().place(PATH, 0, 25):
        pass


def test_few_requests_collect_the_status_at_a_time(
    make: Callable[[], Waiting], pauses: list[float]
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_COLLECTING):
            stack.enter_context(make().place_for_status())
        with pytest.raises(Unavailable, match="a process hangs"), make().place_for_status():
            pass
        with make().place(PATH, 0, 1):  # a bound of its own
            pass
