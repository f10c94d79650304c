"""shared.waiting: how many handshakes wait at a time, and what happens to the others."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apachews.monitoring import refusals
from apachews_handler.exceptions import Refusal
from apachews_handler.shared import waiting
from apachews_handler.shared.waiting import MAX_COLLECTING, Waiting

from ..conftest import wait_for

PATH = "/srv/a.ws"
USER, OTHER_USER = 1001, 1002
TIMEOUT_S = 5.0


def place(
    child: Waiting, path: str, most: int, spare: int, user: int = USER
) -> contextlib.AbstractContextManager[None]:
    """Take a place for a handshake that waits up to ``TIMEOUT_S``."""
    return child.place(path, most, spare, TIMEOUT_S, user)


@pytest.fixture
def make(temporary: Path) -> Iterator[Callable[[], Waiting]]:
    """Make the state of one child; all children of a test have one Apache."""
    made: list[Waiting] = []

    def make() -> Waiting:
        made.append(Waiting())
        return made[-1]

    yield make
    for child in made:
        if child._slots:
            child._slots.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses between two tries, each of which ends the patience."""
    recorded: list[float] = []
    clock = [1000.0]

    def pause(_: float) -> None:
        recorded.append(clock[0])
        clock[0] += waiting.PATIENCE_S

    monkeypatch.setattr("apachews_handler.shared.waiting.time.sleep", pause)
    monkeypatch.setattr(Waiting, "_pause", pause)
    monkeypatch.setattr("apachews_handler.shared.waiting.time.monotonic", lambda: clock[0])
    return recorded


def fill(
    stack: contextlib.ExitStack, child: Waiting, paths: list[str], most: int, spare: int
) -> int:
    """Take places for these endpoints in turn; return how many there were."""
    taken = 0
    with contextlib.suppress(Refusal):
        while True:
            stack.enter_context(place(child, paths[taken % len(paths)], most, spare))
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
        # One more is of the user, outside of the bound on all.
        assert fill(stack, make(), paths, most, spare) == in_all + 1


def test_children_share_the_slots(make: Callable[[], Waiting], pauses: list[float]) -> None:
    one, other = make(), make()
    with place(one, PATH, 1, 25):
        with (
            pytest.raises(Refusal, match="APACHEWS_MAX_WAITING") as caught,
            place(other, PATH, 1, 25),
        ):
            pass
        assert PATH in caught.value.logged
        assert PATH not in caught.value.told
        assert dict(caught.value.headers) == {
            "Apachews-Refused": "waiting-limit",
            "Retry-After": "5",
        }
        with place(other, "/srv/b.ws", 1, 25):
            pass
    with place(other, PATH, 1, 25):
        pass


def test_a_refusal_leaves_no_place_taken(make: Callable[[], Waiting], pauses: list[float]) -> None:
    child = make()
    with place(child, PATH, 0, 1), place(child, "/srv/reserve.ws", 0, 1):
        for number in range(5):
            # It has a place of its endpoint, none of all, and none of its user.
            with (
                pytest.raises(Refusal, match=f"one more for a server of user {USER}"),
                place(child, f"/srv/{number}.ws", 0, 1),
            ):
                pass
    with place(child, "/srv/0.ws", 0, 1):
        pass


def test_one_user_does_not_close_the_endpoints_of_another(
    make: Callable[[], Waiting], pauses: list[float]
) -> None:
    one, other = make(), make()
    with contextlib.ExitStack() as stack:
        assert fill(stack, one, [f"/srv/{number}.ws" for number in range(100)], 0, 25) == 13 + 1
        pauses.clear()
        for child in (one, other):
            for _ in range(3):
                with place(child, PATH, 0, 25, OTHER_USER):
                    pass
        assert pauses == []
        # The first user's surplus is rejected after its patience, once for each child.
        for number in range(3):
            with pytest.raises(Refusal), place(other, f"/srv/new{number}.ws", 0, 25):
                pass
        assert len(pauses) == 1


def test_the_places_of_others_do_not_end_the_patience_with_an_endpoint(
    make: Callable[[], Waiting], pauses: list[float]
) -> None:
    child = make()
    with contextlib.ExitStack() as stack:
        assert fill(stack, child, [f"/srv/{number}.ws" for number in range(100)], 0, 25) == 13 + 1
        with (
            place(child, "/srv/reserve.ws", 0, 25, OTHER_USER),
            pytest.raises(Refusal, match=f"user {OTHER_USER}"),
            place(child, PATH, 0, 25, OTHER_USER),
        ):
            pass
    with place(child, PATH, 1, 25):
        assert refused_after(child, pauses) == 1


def test_places_of_another_bound_are_the_same_slots(
    make: Callable[[], Waiting], pauses: list[float]
) -> None:
    """As before and after a reload that changes APACHEWS_MAX_WAITING."""
    paths = [f"/srv/{number}.ws" for number in range(100)]
    with contextlib.ExitStack() as stack:
        assert fill(stack, make(), paths, 20, 25) == 20 + 1
        for most in (0, 14, 20):
            assert fill(stack, make(), paths, most, 25) == 0


def test_a_place_comes_back_when_the_wait_fails(make: Callable[[], Waiting]) -> None:
    child = make()
    for _ in range(3):
        with pytest.raises(Refusal, match="backlog"), place(child, PATH, 1, 1):
            raise Refusal(refusals.BACKLOG_FULL, "its backlog stayed full")


def test_a_place_that_is_released_soon_is_waited_for(
    make: Callable[[], Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE_S", 10.0)
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
        with place(other, PATH, 1, 25):
            got.set()

    with place(one, PATH, 1, 25):
        thread = threading.Thread(target=wait)
        thread.start()
        assert has_tried.wait(10)
        assert not got.is_set()
    thread.join()
    assert got.is_set()


def refused_after(child: Waiting, pauses: list[float]) -> int:
    """Fail to get a place; return how many pauses that took."""
    pauses.clear()
    with pytest.raises(Refusal), place(child, PATH, 1, 25):
        pass
    return len(pauses)


def test_patience_ends_with_the_first_failure_and_returns_with_a_success(
    make: Callable[[], Waiting], pauses: list[float]
) -> None:
    holder, child = make(), make()
    with place(holder, PATH, 1, 25):
        assert refused_after(child, pauses) == 1
        assert refused_after(child, pauses) == 0
        assert refused_after(child, pauses) == 0
    with place(child, PATH, 1, 25):
        pass
    with place(holder, PATH, 1, 25):
        assert refused_after(child, pauses) == 1


def test_prompt_answers_to_a_burst_count_for_the_next_one(
    make: Callable[[], Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They came while its surplus waited, and not only after the end of the patience."""
    child, clock = make(), [1000.0]
    pauses: list[float] = []
    monkeypatch.setattr("apachews_handler.shared.waiting.time.monotonic", lambda: clock[0])
    burst = contextlib.ExitStack()

    def answer(_: object) -> None:
        clock[0] += waiting.PATIENCE_S / 2
        burst.close()

    burst.enter_context(place(child, PATH, 1, 25))
    monkeypatch.setattr(Waiting, "_pause", answer)
    with place(child, PATH, 1, 25):
        pass

    def wait(_: object) -> None:
        clock[0] += waiting.PATIENCE_S
        pauses.append(clock[0])

    monkeypatch.setattr(Waiting, "_pause", wait)
    clock[0] += 10
    with place(child, PATH, 1, 25):
        assert refused_after(child, pauses) == 1
        assert refused_after(child, pauses) == 0


def test_a_backend_of_tunnels_may_take_longer(
    make: Callable[[], Waiting], pauses: list[float]
) -> None:
    holder, child = make(), make()

    def place_of_tunnel(child: Waiting) -> contextlib.AbstractContextManager[None]:
        return child.place(PATH, 1, 25, TIMEOUT_S, USER, waiting.TUNNEL_PATIENCE_S)

    for _ in range(2):
        with place_of_tunnel(holder):
            pauses.clear()
            with pytest.raises(Refusal), place_of_tunnel(child):
                pass
            assert len(pauses) == waiting.TUNNEL_PATIENCE_S / waiting.PATIENCE_S
        with place_of_tunnel(child):
            time.sleep(0)  # an answer after one step of the clock: it is prompt for a tunnel


def test_a_producer_that_does_not_answer_ends_patience(
    make: Callable[[], Waiting], pauses: list[float]
) -> None:
    holder, child = make(), make()
    with pytest.raises(Refusal), place(child, PATH, 1, 25):
        raise Refusal(refusals.NO_ANSWER, "it did not answer")
    with place(holder, PATH, 1, 25):
        assert refused_after(child, pauses) == 0


def test_a_slow_answer_is_no_reason_for_patience(
    make: Callable[[], Waiting], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, child = make(), make()
    with place(holder, PATH, 1, 25):
        assert refused_after(child, pauses) == 1
    with place(child, PATH, 1, 25):
        time.sleep(0)  # for as long as the producer thinks
    with place(holder, PATH, 1, 25):
        assert refused_after(child, pauses) == 0


@pytest.mark.parametrize("is_same_child", [True, False])
def test_patience_lasts_while_the_producer_answers_others(
    make: Callable[[], Waiting],
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    is_same_child: bool,
) -> None:
    """One that answers one after another: the last of them waited for long."""
    holder, child = make(), make()
    answering = child if is_same_child else holder
    step_s = waiting.PATIENCE_S * 0.8
    begun_at = time.monotonic()

    def answer(_: float) -> None:
        pauses.append(step_s)
        now = begun_at + step_s * len(pauses)
        monkeypatch.setattr("apachews_handler.shared.waiting.time.monotonic", lambda: now)
        assert answering._slots
        limit = waiting._Limit(f"endpoint {PATH}", (), waiting.PATIENCE_S, "")
        answering._note_answer(answering._slots, limit, begun_at)

    with place(answering, "/srv/b.ws", 1, 25), place(holder, PATH, 1, 25):
        monkeypatch.setattr(Waiting, "_pause", answer)
        assert refused_after(child, pauses) == math.ceil(TIMEOUT_S / step_s)


def test_an_endpoint_is_not_remembered_for_ever(
    make: Callable[[], Waiting], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MEMORY_S", waiting.PATIENCE_S)
    holder, child = make(), make()
    with place(holder, PATH, 1, 25):
        for _ in range(3):
            time.sleep(waiting.MEMORY_S)
            assert refused_after(child, pauses) == 1
    for number in range(5):
        time.sleep(waiting.MEMORY_S)
        with pytest.raises(Refusal), place(child, f"/srv/{number}.ws", 1, 25):
            raise Refusal(refusals.NO_ANSWER, "it did not answer")
    assert set(child._patience) == {"endpoint /srv/4.ws", f"user {USER}"}


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

    monkeypatch.setattr(waiting, "SlotFile", fail)
    with pytest.raises(Refusal, match="LimitNOFILE"), place(make(), PATH, 0, 25):
        pass


@pytest.mark.parametrize(
    ("most", "spare", "of_one_backend", "in_all"),
    [(0, 1, 1, 1), (0, 5, 1, 2), (0, 25, 4, 7), (0, 75, 10, 19), (20, 25, 20, 20)],
)
def test_long_answers_have_places_of_their_own(
    make: Callable[[], Waiting],
    pauses: list[float],
    most: int,
    spare: int,
    of_one_backend: int,
    in_all: int,
) -> None:
    def fill_with(*names: str) -> int:
        with contextlib.ExitStack() as stack, contextlib.suppress(Refusal):
            for count in range(1000):
                name = names[count % len(names)]
                stack.enter_context(make().place_for_body(name, most, spare))
        return count

    with contextlib.ExitStack() as stack:
        fill(stack, make(), [PATH], most, spare)  # the waiting handshakes take none of them
        pauses.clear()
        assert fill_with("http://a") == of_one_backend
        assert fill_with(*(f"http://{number}" for number in range(100))) == in_all
        with make().place_for_body("http://a", most, spare):
            assert fill_with("http://a") == of_one_backend - 1
    assert pauses == []


def test_few_requests_collect_the_status_at_a_time(
    make: Callable[[], Waiting], pauses: list[float]
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_COLLECTING):
            stack.enter_context(make().place_for_status())
        with pytest.raises(Refusal, match="collect the status already"), make().place_for_status():
            pass
        with place(make(), PATH, 0, 1):  # a bound of its own
            pass


def test_a_released_place_is_taken_at_once(
    make: Callable[[], Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake of the same child does not wait for the next try."""
    monkeypatch.setattr(waiting, "RETRY_S", 30.0)
    child = make()
    tries = threading.Event()

    def is_patient(*_: object) -> bool:
        tries.set()
        return True

    monkeypatch.setattr(Waiting, "_is_patient", is_patient)
    taken = threading.Event()

    def take() -> None:
        with place(child, PATH, 1, 25):
            taken.set()

    thread = threading.Thread(target=take)
    with place(child, PATH, 1, 25):
        thread.start()
        assert tries.wait(10)
        # The thread holds the condition's lock until it waits.
        wait_for(lambda: bool(child._released._waiters))  # type: ignore[attr-defined]
    assert taken.wait(10)
    thread.join()
