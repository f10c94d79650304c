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
        pytest.param(START, START, False, id="nothing arrives"),
        pytest.param(START, TcpState(1001, 520, 4000), True, id="some arrives"),
        pytest.param(START, TcpState(1000, 520, 5000), False, id="a window, and nothing arrives"),
        pytest.param(START, TcpState(1520, 0, 3000), True, id="all arrives"),
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
    progress = pinged(START)
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
        pytest.param(START, START, False, id="nothing arrives"),
        pytest.param(START, TcpState(1001, 499, 10), True, id="some arrives, some is to come"),
        pytest.param(START, TcpState(1500, 0, 5000), False, id="the last arrives"),
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
