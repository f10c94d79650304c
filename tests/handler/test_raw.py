"""apachews_handler.protocol.raw: bytes to frames, frames to bytes, and the end of a producer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import wire
from apachews.exceptions import WireError
from apachews.wire.reader import MessageReader
from apachews_handler.protocol import new_session
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.protocol.deflate import Agreement
from apachews_handler.protocol.raw import Framer, LineFramer, RawSession, ReadFramer
from apachews_handler.protocol.session import Session
from apachews_handler.protocol.states import ClientState, ProducerState
from apachews_handler.settings import Settings

from ..support.frames import masked

OPEN = wire.Open(id="1", uri="/")
Message = str | bytes


def messages(frames: bytes) -> list[Message]:
    """Return the messages in whole frames; fails if they violate RFC 6455."""
    reader = MessageReader()
    reader.receive(OPEN.encode())
    items = reader.receive(frames)
    assert reader.is_idle, "a message is not whole"
    assert not [item for item in items if not isinstance(item, (str, bytes))], items
    return [item for item in items if isinstance(item, (str, bytes))]


def frame_all(framer: Framer, pieces: list[bytes]) -> list[Message]:
    frames: list[bytes] = []
    for piece in pieces:
        framer.frame(piece, frames)
    framer.finish(frames)
    return messages(b"".join(frames))


@pytest.mark.parametrize(
    ("type_", "reads", "expected"),
    [
        ("auto", [b"hi", "ü".encode()], ["hi", "ü"]),
        ("auto", [b"\xff\x00"], [b"\xff\x00"]),
        ("auto", [b"a\xc3", b"\xa9b"], ["a", "éb"]),
        ("auto", [b"\xf0", b"\x9f", b"\x99", b"\x82"], ["🙂"]),
        ("auto", [b"a\xc3", b"("], ["a", b"\xc3("]),
        ("auto", [b"a\xc3"], ["a", b"\xc3"]),
        ("text", [b"hi", b"a\xc3", b"\xa9"], ["hi", "a", "é"]),
        ("binary", [b"hi", b"\xc3"], [b"hi", b"\xc3"]),
    ],
)
def test_a_read_is_a_message(type_: str, reads: list[bytes], expected: list[Message]) -> None:
    assert frame_all(ReadFramer(type_), reads) == expected


@pytest.mark.parametrize("type_", ["auto", "text", "binary"])
@pytest.mark.parametrize("by_line", [True, False])
def test_an_empty_read_is_not_a_message(type_: str, by_line: bool) -> None:
    framer = LineFramer(type_, 8) if by_line else ReadFramer(type_)
    assert frame_all(framer, [b""]) == []


@pytest.mark.parametrize(
    ("type_", "reads", "expected"),
    [
        ("auto", [b"a\nb\n"], ["a", "b"]),
        ("auto", [b"a", b"b\n", b"c"], ["ab", "c"]),
        ("auto", [b"\n\n"], ["", ""]),
        ("auto", [b"a\r\n"], ["a\r"]),
        ("auto", [b"a\n\xff\nb\n"], ["a", b"\xff", "b"]),
        ("auto", [b"\xc3", b"\xa9\n"], ["é"]),
        ("auto", [b"\xc3"], [b"\xc3"]),
        # A line longer than the limit becomes the fragments of one message.
        ("auto", [b"123456789", b"0\nx\n"], ["1234567890", "x"]),
        ("auto", [b"12345678\xc3", b"\xa9\n"], ["12345678é"]),
        ("auto", [b"12345678\xff", b"\xff\n"], [b"12345678\xff\xff"]),
        ("auto", [b"123456789"], ["123456789"]),
        ("text", [b"a\nb"], ["a", "b"]),
        ("binary", [b"a\nb\n"], [b"a", b"b"]),
        ("binary", [b"123456789", b"\n"], [b"123456789"]),
    ],
)
def test_a_line_is_a_message(type_: str, reads: list[bytes], expected: list[Message]) -> None:
    assert frame_all(LineFramer(type_, 8), reads) == expected


@pytest.mark.parametrize(
    ("framer", "reads"),
    [
        (ReadFramer("text"), [b"\xff"]),
        (ReadFramer("text"), [b"a\xc3"]),
        (LineFramer("text", 8), [b"\xc3\n"]),
        (LineFramer("text", 8), [b"\xc3"]),
        (LineFramer("text", 8), [b"12345678\xff"]),
        (LineFramer("auto", 8), [b"123456789", b"\xff\n"]),
        (LineFramer("auto", 8), [b"12345678\xc3"]),
    ],
)
def test_text_must_be_utf8(framer: Framer, reads: list[bytes]) -> None:
    with pytest.raises(WireError, match="APACHEWS_RAW_TYPE"):
        frame_all(framer, reads)


@given(st.lists(st.binary(min_size=1, max_size=12)))
def test_no_byte_is_lost_nor_added(reads: list[bytes]) -> None:
    got = frame_all(ReadFramer("auto"), reads)
    as_bytes = [one.encode() if isinstance(one, str) else one for one in got]
    assert b"".join(as_bytes) == b"".join(reads)


@given(st.lists(st.binary(max_size=10)), st.integers(1, 9), st.integers(1, 40))
def test_lines_are_the_same_however_they_are_cut(
    lines: list[bytes], size: int, max_partial: int
) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    data = b"".join(line + b"\n" for line in lines)
    reads = [data[start : start + size] for start in range(0, len(data), size)]
    framer = LineFramer("binary", max_partial)
    got: list[bytes] = []
    for read in reads:
        framer.frame(read, got)
        assert framer.partial_bytes <= max_partial
    framer.finish(got)
    assert messages(b"".join(got)) == lines


@given(st.lists(st.text(max_size=5) | st.binary(max_size=5), max_size=8), st.integers(1, 9))
def test_lines_have_the_type_of_each_line_alone(items: list[str | bytes], size: int) -> None:
    """In any mix and cut, a line is text if it is UTF-8."""
    lines = [item.encode() if isinstance(item, str) else item for item in items]
    lines = [line.replace(b"\n", b"") for line in lines]
    data = b"".join(line + b"\n" for line in lines)
    reads = [data[start : start + size] for start in range(0, len(data), size)]
    alone = [frame_all(LineFramer("auto", 1000), [line + b"\n"])[0] for line in lines]
    assert frame_all(LineFramer("auto", 1000), reads) == alone


def test_frames_before_a_violation_are_valid() -> None:
    harness = RawHarness(raw_delimiter="newline", raw_type="text")
    harness.from_producer(b"a\nb\n\xff\nc\n")
    texts = wire.encode_frame(wire.TEXT, b"a") + wire.encode_frame(wire.TEXT, b"b")
    assert harness.client == texts + wire.encode_frame(wire.CLOSE, wire.encode_close(1011))


def test_lines_are_read_in_small_pieces() -> None:
    assert (
        RawHarness(raw_delimiter="newline", max_buffer_bytes=1 << 20).session.producer_room == 4096
    )
    assert RawHarness(raw_delimiter="newline", max_buffer_bytes=4096).session.producer_room == 4096
    assert RawHarness(max_buffer_bytes=1 << 20).session.producer_room == 1 << 20


class RawHarness:
    """A raw session, and what its two sides have received."""

    def __init__(self, deflate: Agreement | None = None, **changes: Any) -> None:
        self.session = new_session(Settings(wire="raw", **changes), deflate)
        assert isinstance(self.session, RawSession)
        self.client = self.producer = b""
        self.session.open(OPEN)
        self.drain()

    def drain(self) -> None:
        self.client += b"".join(self.session.to_client)
        self.session.to_client.clear()
        self.producer += b"".join(self.session.to_producer)
        self.session.to_producer.clear()

    def from_client(self, *data: bytes) -> None:
        for piece in data:
            self.session.receive_client(piece)
            self.drain()

    def from_producer(self, *data: bytes) -> None:
        for piece in data:
            self.session.receive_producer(piece)
            self.drain()

    def end_producer(self, unsent: bytes = b"", sent: int = 0) -> None:
        self.session.receive_producer_eof(unsent, sent)
        self.drain()


def test_new_session_selects_the_wire() -> None:
    assert type(new_session(Settings())) is Session


def test_the_producer_reads_what_the_client_sent() -> None:
    harness = RawHarness()
    harness.from_client(masked(0x81, "hü".encode()) + masked(0x82, b"\0"))
    harness.from_client(masked(0x81, b"") + masked(0x01, b"a") + masked(0x80, b"b"))
    harness.from_client(masked(0x8A, b"a pong") + masked(0x89, b"a ping"))
    assert harness.producer == "hü".encode() + b"\0ab"
    assert harness.client == wire.encode_frame(wire.PONG, b"a ping")


def test_the_producer_reads_lines() -> None:
    harness = RawHarness(raw_delimiter="newline")
    harness.from_client(masked(0x81, b"a") + masked(0x81, b""))
    harness.from_client(masked(0x01, b"b") + masked(0x00, b"c"))
    harness.from_client(masked(0x80, b"d"))
    assert harness.producer == b"a\n\nbcd\n"


def test_the_client_reads_what_the_producer_wrote() -> None:
    harness = RawHarness()
    harness.from_producer(b"hi")
    assert harness.client == wire.encode_frame(wire.TEXT, b"hi")
    assert harness.session.traffic() == (0, 0, 1, 2)


def test_long_messages_are_compressed() -> None:
    harness = RawHarness(deflate=Agreement())
    harness.from_producer(b"a" * 10_000)
    assert len(harness.client) < 100
    assert harness.client[0] == 0xC1


def test_partial_bytes_count_towards_the_buffer() -> None:
    harness = RawHarness(raw_delimiter="newline", max_buffer_bytes=4096)
    harness.from_producer(b"x" * 2048)
    assert harness.session.partial_bytes == 2048
    harness.from_producer(b"x")
    assert harness.session.partial_bytes == 0
    assert harness.client[0] == wire.TEXT


@pytest.mark.parametrize("unsent", [b"", b"half"])
def test_a_producer_that_ends_closes_with_1000(unsent: bytes) -> None:
    harness = RawHarness(raw_delimiter="newline")
    harness.from_producer(b"last words")
    harness.end_producer(unsent, 0)
    assert harness.session.client_state is ClientState.CLOSING
    assert harness.session.producer_state is ProducerState.DONE
    assert harness.session.close_cause is CloseCause.PRODUCER_ENDED
    last = wire.encode_frame(wire.CLOSE, wire.encode_close(1000))
    assert harness.client == wire.encode_frame(wire.TEXT, b"last words") + last
    harness.from_client(masked(0x88, wire.encode_close(1000)))
    assert harness.session.client_finished
    assert harness.session.producer_finished
    assert not harness.producer


@pytest.mark.parametrize("type_", ["auto", "text"])
def test_a_producer_that_ends_inside_a_character(type_: str) -> None:
    harness = RawHarness(raw_type=type_)
    harness.from_producer(b"a\xc3")
    harness.end_producer()
    text = wire.encode_frame(wire.TEXT, b"a")
    if type_ == "auto":
        assert harness.client.startswith(text + wire.encode_frame(wire.BINARY, b"\xc3"))
        assert harness.session.close_code == 1000
    else:
        assert harness.client == text + wire.encode_frame(wire.CLOSE, wire.encode_close(1011))
        assert harness.session.close_cause is CloseCause.PRODUCER_ERROR
        assert "APACHEWS_RAW_TYPE" in harness.session.close_reason


def test_text_that_is_not_utf8_closes_with_1011() -> None:
    harness = RawHarness(raw_type="text")
    harness.from_producer(b"\xff")
    assert harness.session.close_cause is CloseCause.PRODUCER_ERROR
    assert "APACHEWS_RAW_TYPE" in harness.session.close_reason
    assert harness.client == wire.encode_frame(wire.CLOSE, wire.encode_close(1011))
    assert harness.session.producer_state is ProducerState.DONE


def test_a_client_that_closes_ends_the_producer() -> None:
    harness = RawHarness()
    harness.from_client(masked(0x81, b"bye") + masked(0x88, wire.encode_close(1000)))
    assert harness.producer == b"bye"
    assert harness.session.producer_finished
    harness.from_producer(b"too late")
    harness.end_producer()
    assert harness.client == wire.encode_frame(wire.CLOSE, wire.encode_close(1000))


def test_a_client_that_leaves_inside_a_message() -> None:
    harness = RawHarness()
    harness.from_client(masked(0x01, b"ha"))
    harness.session.receive_client_eof()
    harness.drain()
    assert harness.producer == b"ha"
    assert harness.session.producer_finished


@pytest.mark.parametrize("write_failed", [True, False])
def test_a_producer_is_never_held(write_failed: bool) -> None:
    harness = RawHarness(hold_s=30.0)
    if write_failed:
        harness.session.receive_producer_write_error(b"rest", 1)
        harness.drain()
        assert harness.session.producer_state is ProducerState.CONNECTED
    harness.from_client(masked(0x81, b"a"))
    harness.end_producer()
    assert harness.session.producer_state is ProducerState.DONE
    assert not harness.session.backlog_bytes


def test_a_close_of_the_bridge_sends_the_producer_nothing() -> None:
    harness = RawHarness()
    harness.session.close(CloseCause.GOING_AWAY)
    harness.drain()
    assert not harness.producer
    assert harness.client == wire.encode_frame(
        wire.CLOSE, wire.encode_close(1001, "the server is shutting down")
    )


@given(
    st.binary(max_size=200),
    st.sampled_from(["off", "newline"]),
    st.sampled_from(["auto", "text", "binary"]),
)
def test_arbitrary_output_becomes_valid_frames(data: bytes, delimiter: str, type_: str) -> None:
    harness = RawHarness(raw_delimiter=delimiter, raw_type=type_)
    for start in range(0, len(data), 7):
        harness.from_producer(data[start : start + 7])
    harness.end_producer()
    reader = MessageReader()
    reader.receive(OPEN.encode())
    items = reader.receive(harness.client)
    assert not [item for item in items if isinstance(item, wire.Violation)]
    assert isinstance(items[-1], wire.Close)
