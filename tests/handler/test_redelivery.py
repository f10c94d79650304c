"""apachews_handler.protocol.redelivery: no message twice, and none in part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import wire
from apachews_handler.protocol.redelivery import undelivered_frames

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
        ([], 0, True, [], True),  # its first part was sent long ago
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
def test_what_is_kept_are_the_last_messages_whole(parts: list[int], sent: int) -> None:
    """Messages of so many frames each; every cut leaves a whole number of them."""
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
