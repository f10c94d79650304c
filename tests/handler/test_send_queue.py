"""bridge.send_queue: what one side has not taken, sent in order and only once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews_handler.bridge.send_queue import SendQueue


class Peer:
    """A receiver that takes a limited number of bytes per call."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.received = b""
        self.calls = 0

    def send(self, data: bytes | memoryview) -> int:
        self.calls += 1
        self.received += data[: self.limit]
        return min(self.limit, len(data))


def test_a_queue_is_empty_at_first() -> None:
    queue, peer = SendQueue(), Peer()
    assert queue.unsent_bytes == 0
    assert queue.undelivered() == (b"", 0)
    assert queue.flush(peer.send) == 0
    assert peer.calls == 0, "an empty queue sends nothing"


def test_the_sent_part_of_a_frame_stays_until_all_is_sent() -> None:
    queue, peer = SendQueue(), Peer(3)
    queue.push(b"frame")
    assert queue.flush(peer.send) == 3
    assert queue.undelivered() == (b"frame", 3)
    queue.push(b"next")
    assert queue.undelivered() == (b"framenext", 3)
    assert queue.unsent_bytes == 6
    peer.limit = 100
    assert queue.flush(peer.send) == 6
    assert peer.received == b"framenext"
    assert queue.undelivered() == (b"", 0)


def test_the_first_bytes_may_be_sent_already() -> None:
    queue, peer = SendQueue(), Peer(100)
    queue.push(b"frame", 2)
    assert (queue.unsent_bytes, queue.undelivered()) == (3, (b"frame", 2))
    queue.flush(peer.send)
    assert peer.received == b"ame"


@pytest.mark.parametrize("frames", [[], [b"one"], [b"one", b"two"]])
def test_the_output_of_a_session_is_moved_into_the_queue(frames: list[bytes]) -> None:
    queue, output = SendQueue(), list(frames)
    queue.push(b"first", 2)
    queue.push_all(output)
    assert output == []
    assert queue.undelivered() == (b"first" + b"".join(frames), 2)
    assert queue.unsent_bytes == 3 + len(b"".join(frames))


def test_a_full_peer_changes_nothing() -> None:
    queue, peer = SendQueue(), Peer(0)
    queue.push(b"frame")
    assert queue.flush(peer.send) == 0
    assert queue.undelivered() == (b"frame", 0)


def test_an_error_changes_nothing() -> None:
    def fail(data: bytes | memoryview) -> int:
        raise BrokenPipeError

    queue = SendQueue()
    queue.push(b"frame", 1)
    with pytest.raises(BrokenPipeError):
        queue.flush(fail)
    assert queue.undelivered() == (b"frame", 1)
    queue.clear()
    assert (queue.unsent_bytes, queue.undelivered()) == (0, (b"", 0))


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=20), st.integers(0, 30)), max_size=30))
def test_everything_is_sent_once_and_in_order(steps: list[bytes | int]) -> None:
    queue, peer, pushed = SendQueue(), Peer(), b""
    for step in steps:
        if isinstance(step, bytes):
            queue.push(step)
            pushed += step
        else:
            peer.limit = step
            queue.flush(peer.send)
        assert peer.received == pushed[: len(peer.received)]
        assert queue.unsent_bytes == len(pushed) - len(peer.received)
        data, sent = queue.undelivered()
        assert data[sent:] == pushed[len(peer.received) :]
        assert peer.received.endswith(data[:sent])
