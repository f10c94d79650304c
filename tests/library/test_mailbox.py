"""apachews._server.mailbox: when a connection should not be read on."""

from __future__ import annotations

import pytest

from apachews._server.mailbox import FULL_BYTES, LOW_BYTES, MESSAGE_BYTES, Mailbox


@pytest.mark.parametrize("message", ["", b"", "x" * 1000, b"x" * FULL_BYTES])
def test_it_is_full_at_a_bound_and_until_little_is_left(message: str | bytes) -> None:
    box = Mailbox()
    size = len(message) + MESSAGE_BYTES
    count = 0
    while not box.is_full:
        box.put(message)
        count += 1
        assert box.is_full == (count * size > FULL_BYTES)
    assert len(box) == count
    while box.is_full:
        assert box.get() == message
        count -= 1
        assert box.is_full == (count * size > LOW_BYTES)
    assert len(box) == count


def test_messages_come_out_in_order() -> None:
    box = Mailbox()
    for number in range(10):
        box.put(str(number))
    assert [box.get() for _ in range(10)] == [str(number) for number in range(10)]
    assert not box
