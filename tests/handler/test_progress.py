"""protocol.progress: which acknowledgements and windows show that a client reads."""

from __future__ import annotations

import pytest

from apachews_handler.protocol.progress import (
    MAX_UNREAD_BYTES,
    SLOWEST_READER_BYTES_S,
    Progress,
    TcpState,
)

START = TcpState(acked=1000, unacked=500, window=4000)
ARRIVED = TcpState(acked=1500, unacked=0, window=4000)
NOW = 1e6


def asked(state: TcpState, *, has_read: bool = True) -> Progress:
    """Return the state of a client that is sent a PING, and has answered one just before."""
    progress = Progress(state)
    if has_read:
        progress.ask(state, NOW, is_answered=False)
    progress.ask(state, NOW, is_answered=has_read)
    return progress


@pytest.mark.parametrize(
    ("first", "second", "is_reading"),
    [
        pytest.param(START, START, False, id="nothing arrives"),
        pytest.param(START, TcpState(1001, 520, 4000), True, id="some arrives"),
        pytest.param(START, TcpState(1000, 520, 5000), False, id="a window, and nothing arrives"),
        pytest.param(START, TcpState(1520, 0, 3000), True, id="all arrives"),
        pytest.param(ARRIVED, TcpState(1520, 0, 4000), False, id="only the PING arrives"),
        pytest.param(ARRIVED, TcpState(9000, 0, 100), False, id="what comes later arrives"),
        pytest.param(ARRIVED, TcpState(1520, 0, 4001), True, id="the window grows"),
        pytest.param(ARRIVED, TcpState(1520, 0, 3999), False, id="the window shrinks"),
    ],
)
def test_a_client_that_was_asked(first: TcpState, second: TcpState, is_reading: bool) -> None:
    progress = asked(first)
    assert progress.is_reading(second, NOW + 20) is is_reading
    assert progress.is_reading(second, NOW + 40) is False  # and now it takes nothing any more


def test_everything_has_arrived_though_less_than_was_estimated() -> None:
    """Behind a relay: what it had not taken at the PING is counted with the kernel's overhead."""
    sent = TcpState(acked=1000, unacked=20 * SLOWEST_READER_BYTES_S, window=0)
    progress = asked(sent, has_read=False)
    arrived = 1000 + 15 * SLOWEST_READER_BYTES_S
    assert progress.is_reading(TcpState(arrived, 0, 0), NOW + 10)
    # It has it all in its kernel, and reads there: nothing more is acknowledged.
    assert progress.is_reading(TcpState(arrived, 0, 0), NOW + 20)
    assert not progress.is_reading(TcpState(arrived, 0, 0), NOW + 40)


def test_what_is_sent_after_the_ping_proves_nothing() -> None:
    progress = asked(ARRIVED)
    for count in range(1, 10):
        more = TcpState(1500 + 1000 * count, 1000, 4000)
        assert not progress.is_reading(more, NOW + 20 * count)


def test_what_is_acknowledged_with_the_ping_under_way_counts_once() -> None:
    progress = asked(START)
    assert progress.is_reading(TcpState(1400, 1100, 4000), NOW + 20)
    assert progress.is_reading(TcpState(1500, 1000, 4000), NOW + 40)
    assert not progress.is_reading(TcpState(2500, 1000, 4000), NOW + 60)


def test_what_was_not_proven_to_be_read_takes_time() -> None:
    sent = TcpState(acked=20 * SLOWEST_READER_BYTES_S, unacked=0, window=4000)
    progress = asked(sent, has_read=False)
    arrived = sent._replace(acked=sent.acked + 21)
    assert progress.is_reading(arrived, NOW + 19)
    assert not progress.is_reading(arrived, NOW + 21)
    assert not asked(sent, has_read=False).is_reading(sent, NOW + 1)  # the PING does not arrive
    assert not asked(sent).is_reading(arrived, NOW + 1)  # it was read before


def test_the_time_for_what_is_unread_is_bounded() -> None:
    sent = TcpState(acked=10**12, unacked=0)
    progress = asked(sent, has_read=False)
    arrived = sent._replace(acked=sent.acked + 21)
    most_s = MAX_UNREAD_BYTES / SLOWEST_READER_BYTES_S
    assert progress.is_reading(arrived, NOW + most_s - 1)
    assert not progress.is_reading(arrived, NOW + most_s + 1)


@pytest.mark.parametrize(
    ("first", "second", "is_taking"),
    [
        pytest.param(START, START, False, id="nothing arrives"),
        pytest.param(START, TcpState(1001, 499, 10), True, id="some arrives, some is to come"),
        pytest.param(START, TcpState(1500, 0, 5000), False, id="the last arrives"),
        pytest.param(ARRIVED, TcpState(1504, 0, 9000), False, id="only the CLOSE arrives"),
    ],
)
def test_a_client_that_is_being_closed(first: TcpState, second: TcpState, is_taking: bool) -> None:
    progress = Progress(first)
    assert progress.is_taking(second) is is_taking
    assert progress.is_taking(second) is False
    assert Progress(first).is_taking(second, 2) is False  # too little
