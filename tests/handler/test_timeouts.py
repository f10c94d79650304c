"""protocol.timeouts and protocol.progress: what is due when, on a clock that the tests set."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews_handler.protocol.progress import (
    MAX_UNREAD_BYTES,
    SLOWEST_READER_BYTES_S,
    Progress,
    TcpState,
)
from apachews_handler.protocol.timeouts import AGE_SPREAD, CRASH_DELAY_S, SETTLED_S, Due, Timeouts
from apachews_handler.settings import Settings

# An uptime of nine days: a float rounds its sums.
START = 800_000.123
OFF = Settings(ping_interval_s=0.0, ping_timeout_s=0.0, idle_timeout_s=0.0, send_timeout_s=0.0)


def timeouts(**settings: float) -> Timeouts:
    defaults = {"ping_interval_s": 0.0, "ping_timeout_s": 0.0, "send_timeout_s": 0.0}
    return Timeouts(Settings(**{**defaults, **settings}), START)  # type: ignore[arg-type]


def test_without_timeouts_nothing_is_ever_due() -> None:
    made = Timeouts(OFF, START)
    assert made.next_at() == math.inf
    assert made.due(START + 1e9) is None


def test_a_silent_client_is_pinged_and_then_closed() -> None:
    made = timeouts(ping_interval_s=20, ping_timeout_s=10)
    assert made.next_at() == START + 20
    assert made.due(START + 19) is None
    assert made.due(START + 20) is Due.PING
    assert made.next_at() == START + 30
    assert made.due(START + 29) is None
    assert made.due(START + 30) is Due.NO_PONG


def test_a_pong_gets_its_round_trip_time_in_addition() -> None:
    made = timeouts(ping_interval_s=20, ping_timeout_s=10)
    assert made.due(START + 20) is Due.PING
    made.way_s = 3.0
    assert made.next_at() == START + 33
    assert made.due(START + 32) is None
    assert made.due(START + 33) is Due.NO_PONG
    made.await_pong(START + 33)  # it reads what was sent before the PING
    assert made.next_at() == START + 46
    assert made.due(START + 46) is Due.NO_PONG


def test_any_bytes_count_as_a_sign_of_life() -> None:
    made = timeouts(ping_interval_s=20, ping_timeout_s=10)
    made.heard_at = START + 15
    assert made.due(START + 20) is None
    assert made.next_at() == START + 35
    assert made.due(START + 35) is Due.PING
    made.heard_at = START + 36
    assert made.due(START + 45) is None
    assert made.next_at() == START + 56
    assert made.due(START + 56) is Due.PING


def test_without_a_timeout_it_is_pinged_again() -> None:
    made = timeouts(ping_interval_s=20)
    assert made.due(START + 20) is Due.PING
    assert made.next_at() == START + 40
    assert made.due(START + 30) is None
    assert made.due(START + 40) is Due.PING


def test_a_client_that_is_not_read_is_not_judged_by_its_silence() -> None:
    made = timeouts(ping_interval_s=20, ping_timeout_s=10)
    assert made.due(START + 20) is Due.PING
    made.is_heard = False
    assert made.due(START + 30) is None
    assert made.next_at() == START + 50
    made.is_heard = True
    assert made.due(START + 50) is Due.PING


def test_no_ping_is_queued_after_bytes_that_wait() -> None:
    made = timeouts(ping_interval_s=20, ping_timeout_s=10, send_timeout_s=100)
    made.waiting_since = START + 19
    assert made.due(START + 20) is None
    assert made.due(START + 118) is None
    assert made.due(START + 119) is Due.TOO_SLOW


def test_a_ping_that_could_not_be_sent_is_put_off() -> None:
    made = timeouts(ping_interval_s=20, ping_timeout_s=10)
    assert made.due(START + 20) is Due.PING
    made.postpone_ping(START + 20)
    assert made.next_at() == START + 40
    assert made.due(START + 39) is None
    assert made.due(START + 40) is Due.PING


def test_a_client_that_takes_nothing_is_too_slow() -> None:
    made = timeouts(send_timeout_s=30)
    assert made.next_at() == math.inf
    made.waiting_since = START + 5
    assert made.next_at() == START + 35
    made.waiting_since = START + 20  # it took some
    assert made.due(START + 35) is None
    assert made.due(START + 50) is Due.TOO_SLOW


def test_a_connection_without_messages_is_idle() -> None:
    made = timeouts(idle_timeout_s=60, ping_interval_s=20, ping_timeout_s=20)
    made.heard_at = START + 59  # a PONG
    assert made.due(START + 60) is Due.IDLE
    made.passed_at = START + 30
    assert made.due(START + 60) is None
    assert made.next_at() == START + 79  # a PING comes first


def test_a_client_for_which_bytes_wait_is_not_idle() -> None:
    made = timeouts(idle_timeout_s=10, send_timeout_s=100)
    made.waiting_since = START + 5
    assert made.next_at() == START + 105
    assert made.due(START + 20) is None


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_a_connection_lives_no_longer_than_its_age(spread: float) -> None:
    made = timeouts(max_age_s=100)
    made.limit_age(START, spread, 0.0)
    made.passed_at = made.heard_at = START + 80  # traffic does not matter
    end = made.next_at()
    assert START + 100 * (1 - AGE_SPREAD) <= end <= START + 100
    assert made.due(end - 0.001) is None
    assert made.due(end) is Due.MAX_AGE


def test_a_connection_ends_with_its_login_in_another_process_too() -> None:
    made = timeouts(max_age_s=100)
    made.limit_age(START, 0.0, START + 50)
    state = made.export_state()
    assert state is not None
    restored = Timeouts(Settings(ping_interval_s=0.0, max_age_s=100.0), START + 40)
    restored.import_state(state)
    assert restored.next_at() == START + 50
    assert restored.due(START + 50) is Due.LOGIN_ENDED
    restored.login_ends_at = 0.0
    assert restored.next_at() == START + 100


def test_the_deadline_of_a_close_replaces_all_others() -> None:
    made = timeouts(ping_interval_s=20, ping_timeout_s=10, idle_timeout_s=15)
    made.close_by = START + 100
    assert made.next_at() == START + 100
    assert made.due(START + 99) is None
    assert made.due(START + 100) is Due.OVERDUE


def test_a_close_has_a_deadline_and_a_last_one() -> None:
    made = timeouts(close_timeout_s=3)
    made.start_close(START)
    assert (made.close_by, made.cut_at) == (START + 3, START + 30)


@given(
    st.tuples(*[st.sampled_from([0.0, 0.3, 1.1, 20.0])] * 4),
    st.lists(
        st.tuples(
            st.floats(0, 10),
            st.sampled_from(["heard_at", "passed_at", "waiting_since", "nothing", "is_heard"]),
        ),
        max_size=30,
    ),
)
def test_the_next_deadline_is_in_the_future(
    times: tuple[float, ...], steps: list[tuple[float, str]]
) -> None:
    """After ``due`` returned None: the driver would spin otherwise."""
    names = ("ping_interval_s", "ping_timeout_s", "idle_timeout_s", "send_timeout_s")
    made = timeouts(**dict(zip(names, times, strict=True)))
    now = START
    for step_s, what in steps:
        now += step_s
        if what == "is_heard":
            made.is_heard = not made.is_heard
        elif what != "nothing":
            setattr(made, what, now)
        for _ in range(3):
            due = made.due(now)
            if due not in (None, Due.PING):
                return  # the driver closes it
        assert made.next_at() > now


@given(
    st.floats(1.0, 1e7),
    st.sampled_from([0.001, 0.1, 0.3, 1.1, 20.0]),
    st.sampled_from(["ping_interval_s", "idle_timeout_s", "send_timeout_s"]),
)
def test_something_is_due_at_the_deadline(now: float, limit_s: float, name: str) -> None:
    """At the very tick, because next_at() and due() round alike."""
    settings = {"ping_interval_s": 0.0, "ping_timeout_s": 0.0, "send_timeout_s": 0.0, name: limit_s}
    made = Timeouts(Settings(**settings), now)  # type: ignore[arg-type]
    made.waiting_since = now if name == "send_timeout_s" else 0.0
    assert made.due(made.next_at()) is not None


def test_a_quiet_client_is_pinged_early_once() -> None:
    made = Timeouts(Settings(ping_interval_s=20.0, ping_timeout_s=5.0), START)
    assert not made.ping_early(START + 9)
    assert made.ping_early(START + 10)
    assert not made.ping_early(START + 11), "a PING is on its way"
    assert made.next_at() == START + 15
    assert made.due(START + 15) is Due.NO_PONG
    made.heard_at = START + 14
    assert made.due(START + 15) is None
    assert made.next_at() == START + 34
    assert made.ping_early(START + 24)


@pytest.mark.parametrize("name", ["waiting_since", "held_until", "drain_at", "close_by"])
def test_a_client_with_another_deadline_is_not_pinged_early(name: str) -> None:
    made = Timeouts(Settings(), START)
    setattr(made, name, START)
    assert not made.ping_early(START + 15)


def test_without_a_ping_interval_no_client_is_pinged_early() -> None:
    assert not Timeouts(Settings(ping_interval_s=0.0), START).ping_early(START + 1000)


def test_a_client_is_held_from_the_end_of_its_producer() -> None:
    made = timeouts(hold_s=30)
    assert made.start_hold(START + 5, 7, is_moving=False) == START + 5, "look at once"
    assert made.held_until == START + 35
    assert made.due(START + 34) is None
    assert made.due(START + 35) is Due.HOLD_EXPIRED
    made.end_hold(START + 20, 7)
    assert made.held_until == 0.0
    assert made.next_at() == math.inf


@pytest.mark.parametrize(
    ("lasted_s", "said", "is_moving", "delay_s", "held_until"),
    [
        pytest.param(SETTLED_S / 2, 7, False, CRASH_DELAY_S, START + 30, id="it crashes"),
        pytest.param(SETTLED_S / 2, 8, False, CRASH_DELAY_S, None, id="it has said something"),
        pytest.param(SETTLED_S / 2, 7, True, 0.0, None, id="it moves"),
        pytest.param(SETTLED_S * 2, 7, False, 0.0, None, id="it has settled"),
    ],
)
def test_a_producer_that_ends_right_after_it_got_the_client(
    lasted_s: float, said: int, is_moving: bool, delay_s: float, held_until: float | None
) -> None:
    made = timeouts(hold_s=30)
    made.start_hold(START, 7, is_moving=False)
    made.end_hold(START + 10, 7)
    ended_at = START + 10 + lasted_s
    assert made.start_hold(ended_at, said, is_moving=is_moving) == ended_at + delay_s
    assert made.held_until == (ended_at + 30 if held_until is None else held_until)


def test_producers_that_all_crash_are_given_the_client_until_the_hold_ends() -> None:
    made, now, attempts = timeouts(hold_s=2.0), START, 0
    retry_at = made.start_hold(now, 0, is_moving=False)
    while retry_at < made.held_until:
        made.end_hold(retry_at, 0)
        attempts += 1
        now = retry_at + 0.001
        retry_at = made.start_hold(now, 0, is_moving=False)
    assert made.held_until == START + 2.0
    assert attempts == 4


# protocol.progress: which acknowledgements and windows show that a client reads.


TCP_START = TcpState(acked=1000, unacked=500, window=4000)
ARRIVED = TcpState(acked=1500, unacked=0, window=4000)
NOW = 1e6


def pinged(state: TcpState, *, has_read: bool = True) -> Progress:
    """Return the progress of a client that was sent a PING and has answered the one before."""
    progress = Progress(state)
    if has_read:
        progress.note_ping(state, NOW, is_answered=False)
    progress.note_ping(state, NOW, is_answered=has_read)
    return progress


@pytest.mark.parametrize(
    ("first", "second", "is_reading"),
    [
        pytest.param(TCP_START, TCP_START, False, id="nothing arrives"),
        pytest.param(TCP_START, TcpState(1001, 520, 4000), True, id="some arrives"),
        pytest.param(
            TCP_START, TcpState(1000, 520, 5000), False, id="a window, and nothing arrives"
        ),
        pytest.param(TCP_START, TcpState(1520, 0, 3000), True, id="all arrives"),
        pytest.param(ARRIVED, TcpState(1520, 0, 4000), False, id="only the PING arrives"),
        pytest.param(ARRIVED, TcpState(9000, 0, 100), False, id="bytes after the PING arrive"),
        pytest.param(ARRIVED, TcpState(1520, 0, 4001), True, id="the window grows"),
        pytest.param(ARRIVED, TcpState(1520, 0, 3999), False, id="the window shrinks"),
    ],
)
def test_a_client_that_was_pinged(first: TcpState, second: TcpState, is_reading: bool) -> None:
    progress = pinged(first)
    assert progress.is_reading(second, NOW + 20) is is_reading
    assert progress.is_reading(second, NOW + 40) is False  # no progress since the last call


def test_everything_has_arrived_though_less_than_was_estimated() -> None:
    """Behind a relay: what it had not taken at the PING is counted with the kernel's overhead."""
    sent = TcpState(acked=1000, unacked=20 * SLOWEST_READER_BYTES_S, window=0)
    progress = pinged(sent, has_read=False)
    arrived = 1000 + 15 * SLOWEST_READER_BYTES_S
    assert progress.is_reading(TcpState(arrived, 0, 0), NOW + 10)
    # It has it all in its kernel, and reads there: nothing more is acknowledged.
    assert progress.is_reading(TcpState(arrived, 0, 0), NOW + 20)
    assert not progress.is_reading(TcpState(arrived, 0, 0), NOW + 40)


def test_bytes_after_the_ping_prove_nothing() -> None:
    progress = pinged(ARRIVED)
    for count in range(1, 10):
        more = TcpState(1500 + 1000 * count, 1000, 4000)
        assert not progress.is_reading(more, NOW + 20 * count)


def test_an_acknowledgement_before_that_of_the_ping_counts_once() -> None:
    progress = pinged(TCP_START)
    assert progress.is_reading(TcpState(1400, 1100, 4000), NOW + 20)
    assert progress.is_reading(TcpState(1500, 1000, 4000), NOW + 40)
    assert not progress.is_reading(TcpState(2500, 1000, 4000), NOW + 60)


def test_bytes_not_proven_to_be_read_get_time() -> None:
    sent = TcpState(acked=20 * SLOWEST_READER_BYTES_S, unacked=0, window=4000)
    progress = pinged(sent, has_read=False)
    arrived = sent._replace(acked=sent.acked + 21)
    assert progress.is_reading(arrived, NOW + 19)
    assert not progress.is_reading(arrived, NOW + 21)
    assert not pinged(sent, has_read=False).is_reading(sent, NOW + 1)  # the PING does not arrive
    assert not pinged(sent).is_reading(arrived, NOW + 1)  # it was read before


def test_the_time_for_unread_bytes_is_bounded() -> None:
    sent = TcpState(acked=10**12, unacked=0)
    progress = pinged(sent, has_read=False)
    arrived = sent._replace(acked=sent.acked + 21)
    most_s = MAX_UNREAD_BYTES / SLOWEST_READER_BYTES_S
    assert progress.is_reading(arrived, NOW + most_s - 1)
    assert not progress.is_reading(arrived, NOW + most_s + 1)


@pytest.mark.parametrize(
    ("first", "second", "is_receiving"),
    [
        pytest.param(TCP_START, TCP_START, False, id="nothing arrives"),
        pytest.param(TCP_START, TcpState(1001, 499, 10), True, id="some arrives, some is to come"),
        pytest.param(TCP_START, TcpState(1500, 0, 5000), False, id="the last arrives"),
        pytest.param(ARRIVED, TcpState(1504, 0, 9000), False, id="only the CLOSE arrives"),
    ],
)
def test_a_client_receives_while_bytes_arrive(
    first: TcpState, second: TcpState, is_receiving: bool
) -> None:
    progress = Progress(first)
    assert progress.is_receiving(second) is is_receiving
    assert progress.is_receiving(second) is False
    assert Progress(first).is_receiving(second, 2) is False  # fewer bytes do not count
