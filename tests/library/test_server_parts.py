"""Parts of a server without I/O: mailboxes, and the language a browser prefers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews._server.languages import preferred_language
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


# apachews._server.languages: the language a browser prefers.


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", None),
        ("de", "de"),
        ("en-GB,en;q=0.9,de;q=0.8", "en-GB"),
        ("de;q=0.5, fr ; q=0.8", "fr"),
        ("de;q=0, *;q=0.5", None),
        ("de;q=x,en;q=0.1", "en"),
        ("de;q=7,en;q=0.1", "en"),
        ("da, en", "da"),
    ],
)
def test_preferred_language(header: str, language: str | None) -> None:
    assert preferred_language(header) == language


@given(st.text(max_size=50))
def test_arbitrary_headers(header: str) -> None:
    preferred_language(header)
