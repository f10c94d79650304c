"""apachews_handler.protocol.redelivery: no message is delivered twice, or in part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import wire
from apachews_handler.protocol.redelivery import Backlog, undelivered_frames

HI = wire.encode_frame(wire.TEXT, b"hi")
YO = wire.encode_frame(wire.BINARY, b"yo")
BEGIN = wire.encode_frame(wire.TEXT, b"be", fin=False)
MORE = wire.encode_frame(wire.CONTINUATION, b"more", fin=False)
LAST = wire.encode_frame(wire.CONTINUATION, b"end")
PONG = wire.encode_frame(wire.PONG, b"x")


@pytest.mark.parametrize(
    ("frames", "sent", "has_begun", "kept", "is_lost"),
    [
        ([], 0, False, [], False),
        ([], 0, True, [], True),  # its beginning was sent earlier
        ([HI, YO], 0, False, [HI, YO], False),
        ([HI, YO], 1, False, [YO], False),
        ([HI, YO], len(HI), False, [YO], False),
        ([HI, YO], len(HI) + 1, False, [], False),
        ([PONG, HI, PONG], 0, False, [HI], False),
        ([PONG], 0, True, [], True),
        ([BEGIN, MORE, LAST, HI], 0, False, [BEGIN, MORE, LAST, HI], False),
        ([BEGIN, MORE, LAST, HI], 1, False, [HI], False),
        ([BEGIN, MORE, LAST, HI], len(BEGIN + MORE), False, [HI], False),
        ([MORE, LAST, HI], 0, False, [HI], False),
        ([LAST], 0, False, [], False),
        ([BEGIN, MORE], 0, True, [BEGIN, MORE], False),
        ([BEGIN, PONG], 0, True, [BEGIN], False),
        ([BEGIN, MORE], 3, True, [], True),
        ([MORE], 0, True, [], True),
        ([HI, BEGIN], len(HI), True, [BEGIN], False),
        ([HI, BEGIN], len(HI) + 1, True, [], True),
    ],
)
def test_only_messages_of_which_nothing_was_sent(
    frames: list[bytes], sent: int, has_begun: bool, kept: list[bytes], is_lost: bool
) -> None:
    assert undelivered_frames(b"".join(frames), sent, has_begun) == (kept, is_lost)


@given(st.lists(st.integers(1, 4), max_size=6), st.integers(0, 200))
def test_whole_messages_at_the_end_are_kept(parts: list[int], sent: int) -> None:
    """Messages of 1 to 4 frames; every cut keeps a whole number of messages."""
    messages = [
        [
            wire.encode_frame(wire.CONTINUATION if part else wire.TEXT, b"12345", part == count - 1)
            for part in range(count)
        ]
        for count in parts
    ]
    frames = b"".join(b"".join(message) for message in messages)
    kept, is_lost = undelivered_frames(frames, min(sent, len(frames)), has_begun=False)
    untouched = [
        message
        for index, message in enumerate(messages)
        if sent <= sum(len(b"".join(earlier)) for earlier in messages[:index])
    ]
    assert kept == [frame for message in untouched for frame in message]
    assert not is_lost


def test_a_backlog_has_its_frames_in_order_and_pops_them_once() -> None:
    backlog = Backlog()
    assert not backlog
    backlog.append([PONG, HI])  # a PONG was for the producer that has gone
    backlog.append([YO])
    backlog.prepend([BEGIN, LAST])
    assert len(backlog) == len(BEGIN + LAST + HI + YO)
    assert backlog.pop_all() == BEGIN + LAST + HI + YO
    assert (len(backlog), backlog.pop_all()) == (0, b"")


def test_a_backlog_ends_with_one_close_and_never_consists_of_one() -> None:
    first, second = (wire.encode_frame(wire.CLOSE, wire.encode_close(c)) for c in (1000, 1001))
    backlog = Backlog()
    backlog.append_close(first)
    assert not backlog
    backlog.append([HI])
    backlog.append_close(first)
    backlog.append_close(second)
    assert backlog.pop_all() == HI + first
    backlog.append([YO])
    backlog.append_close(second)
    assert backlog.pop_all() == YO + second
