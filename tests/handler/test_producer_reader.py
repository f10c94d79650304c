"""protocol.producer_reader: the producer's frames, unchanged, and the bridge's own between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from apachews import wire
from apachews_handler.protocol.deflate import Agreement
from apachews_handler.protocol.producer_reader import Event, ProducerReader

PONG = wire.encode_frame(wire.PONG, b"ours")
AGREED = Agreement()
LAST = wire.encode_frame(wire.CLOSE, b"")


def frame(opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    return wire.encode_frame(opcode, payload, fin)


def feed(data: bytes, size: int | None = None) -> tuple[bytes, object, list[int]]:
    reader = ProducerReader()
    end: Event | None = None
    for start in range(0, len(data), size or max(1, len(data))):
        events = reader.receive(data[start : start + (size or len(data))])
        assert not (events and end), "an event after the end"
        end = events[0] if events else end
        assert len(events) < 2
    return b"".join(reader.out), end, reader.ignored


GOOD = [
    frame(wire.TEXT, b"hi"),
    frame(wire.BINARY, b"x" * 300),
    frame(wire.BINARY, b"x" * 70_000),
    frame(wire.TEXT),
    frame(wire.PING, b"p") + frame(wire.PONG),
    frame(wire.TEXT, b"a", fin=False) + frame(wire.PING) + frame(wire.CONTINUATION, b"b"),
    frame(wire.TEXT, b"a") * 100,
]


@pytest.mark.parametrize("size", [None, 1, 9, 4096])
@pytest.mark.parametrize("data", GOOD)
def test_frames_pass_untouched(data: bytes, size: int | None) -> None:
    if size == 1 and len(data) > 10_000:
        size = 997
    assert feed(data, size) == (data, None, [])


def test_whole_frames_pass_without_a_copy() -> None:
    reader = ProducerReader()
    data = frame(wire.TEXT, b"a") * 3
    reader.receive(data)
    assert reader.out[0] is data


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("opcode", [0x3, 0x4, 0x7, 0xB, 0xF])
def test_reserved_frames_are_dropped_and_reported(opcode: int, size: int | None) -> None:
    before, after = frame(wire.TEXT, b"a"), frame(wire.TEXT, b"b")
    for payload in (b"", b"x" * 100):
        data = before + frame(opcode, payload) + after
        assert feed(data, size) == (before + after, None, [opcode])


@pytest.mark.parametrize("size", [None, 1])
def test_close_is_removed_and_ends_the_stream(size: int | None) -> None:
    before = frame(wire.TEXT, b"a")
    data = before + frame(wire.CLOSE, wire.encode_close(3000, "x")) + frame(wire.TEXT, b"late")
    assert feed(data, size) == (before, wire.Close(3000, "x"), [])


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    "bad",
    [
        b"\xc1\x01a",
        b"\x81\x81aaaaa",
        frame(wire.CONTINUATION, b"a"),
        frame(wire.TEXT, b"a", fin=False) + frame(wire.BINARY, b"b"),
        frame(wire.PING, b"", fin=False),
        frame(wire.PING, b"x" * 126),
        frame(wire.CLOSE, b"\x03"),
        b"\x82\x7f" + (2**63).to_bytes(8, "big"),
    ],
)
def test_violations_end_the_stream_after_the_valid_frames(bad: bytes, size: int | None) -> None:
    before = frame(wire.TEXT, b"a")
    passed, end, _ = feed(before + bad + before, size)
    assert isinstance(end, wire.Violation)
    assert end.code == 1002
    assert passed.startswith(before)
    # Only whole frames are in the output.
    reader = ProducerReader()
    reader.receive(passed)
    assert reader.is_between_frames


def test_our_frame_waits_for_the_end_of_theirs() -> None:
    theirs = frame(wire.BINARY, b"x" * 100)
    reader = ProducerReader()
    reader.receive(theirs[:50])
    reader.insert(wire.encode_frame(wire.PONG, b"first"))
    reader.insert(PONG)
    assert b"".join(reader.out) == theirs[:50]
    reader.receive(theirs[50:] + theirs)
    assert b"".join(reader.out) == theirs + PONG + theirs


def test_our_last_frame_waits_too_and_nothing_follows() -> None:
    theirs = frame(wire.BINARY, b"x" * 100)
    reader = ProducerReader()
    reader.receive(theirs[:50])
    reader.insert_last(LAST)
    reader.insert(PONG)
    assert not reader.has_sent_last
    reader.receive(theirs[50:] + theirs)
    reader.receive(theirs)
    reader.insert(PONG)
    assert b"".join(reader.out) == theirs + LAST
    assert reader.has_sent_last
    assert reader.has_ended


def test_our_frames_go_at_once_between_theirs_even_inside_a_message() -> None:
    reader = ProducerReader()
    first = frame(wire.TEXT, b"a", fin=False)
    reader.receive(first + b"\x80")  # and the beginning of a header
    reader.insert(PONG)
    assert b"".join(reader.out) == first + PONG
    reader.receive(b"\x01b")
    assert b"".join(reader.out) == first + PONG + frame(wire.CONTINUATION, b"b")


def test_counts() -> None:
    reader = ProducerReader()
    reader.receive(
        frame(wire.TEXT, b"abc")
        + frame(wire.BINARY, b"x", fin=False)
        + frame(wire.PING, b"not counted")
        + frame(wire.CONTINUATION, b"y")
        + frame(wire.TEXT)
    )
    assert (reader.messages, reader.payload_bytes) == (3, 5)


def test_a_ping_and_a_pong_of_ours_are_both_deferred() -> None:
    theirs = frame(wire.BINARY, b"x" * 100)
    ping = frame(wire.PING, b"ours")
    reader = ProducerReader()
    reader.receive(theirs[:50])
    for own in (PONG, ping, PONG):
        reader.insert(own)
    reader.receive(theirs[50:])
    assert b"".join(reader.out) == theirs + PONG + ping


# Compression: what a client reads.  (The client is that of websockets: wsproto's
# fails on a PING between the fragments of a compressed message.)


def read_as_client(data: bytes, agreement: Agreement = AGREED) -> list[object]:
    """Return the messages and PINGs that the client of websockets reads."""
    client = ClientProtocol(parse_uri("ws://localhost"), state=State.OPEN, max_size=None)
    client.extensions = [
        PerMessageDeflate(
            remote_no_context_takeover=not agreement.server_keeps_context,
            local_no_context_takeover=False,
            remote_max_window_bits=agreement.server_window_bits,
            local_max_window_bits=15,
        )
    ]
    client.receive_data(data)
    assert client.parser_exc is None, client.parser_exc
    items: list[object] = []
    message: list[Frame] = []
    for event in client.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
            items.append(event.opcode)
            continue
        message.append(event)
        if event.fin:
            whole = b"".join(frame.data for frame in message)
            items.append(whole.decode() if message[0].opcode is Opcode.TEXT else whole)
            message = []
    assert not message
    return items


def compress(data: bytes, size: int | None = None, agreement: Agreement = AGREED) -> bytes:
    reader = ProducerReader(agreement, min_deflate_bytes=10, deflate_level=3)
    for start in range(0, len(data), size or max(1, len(data))):
        assert reader.receive(data[start : start + (size or len(data))]) == []
    return b"".join(reader.out)


@pytest.mark.parametrize("keeps_context", [True, False])
@pytest.mark.parametrize("size", [None, 1, 100])
def test_a_client_reads_what_was_compressed(size: int | None, keeps_context: bool) -> None:
    agreement = Agreement(server_window_bits=10, server_keeps_context=keeps_context)
    data = (
        frame(wire.TEXT, b"hello, hello, hello, hello")
        + frame(wire.TEXT, b"short")
        + frame(wire.BINARY, b"x" * 3000)
        + frame(wire.TEXT, b"in ", fin=False)
        + frame(wire.PING)
        + frame(wire.CONTINUATION, b"", fin=False)
        + frame(wire.CONTINUATION, b"three")
        + frame(wire.BINARY, b"", fin=False)
        + frame(wire.CONTINUATION)
        + frame(0x7, b"reserved")
        + frame(wire.TEXT, b"hello, hello, hello, hello")
    )
    out = compress(data, size, agreement)
    assert len(out) < len(data) / 5 or size == 1
    assert read_as_client(out, agreement) == [
        "hello, hello, hello, hello",
        "short",
        b"x" * 3000,
        Opcode.PING,
        "in three",
        b"",
        "hello, hello, hello, hello",
    ]


def test_messages_below_the_minimum_pass_unchanged() -> None:
    data = frame(wire.TEXT, b"123456789") * 3
    assert compress(data) == data
    assert compress(frame(wire.TEXT, b"1234567890"))[0] == 0xC1


def test_a_complete_fragment_is_flushed() -> None:
    reader = ProducerReader(AGREED)
    reader.receive(frame(wire.TEXT, b"a", fin=False))
    first = b"".join(reader.out)
    assert first[0] == 0x41
    reader.receive(frame(wire.CONTINUATION, b"b", fin=False))
    assert len(b"".join(reader.out)) > len(first)


def test_compressed_frames_are_sent_whole() -> None:
    theirs = frame(wire.BINARY, b"x" * 1000)
    reader = ProducerReader(AGREED)
    reader.receive(theirs[:500])
    assert reader.is_between_frames
    reader.insert(PONG)
    reader.insert_last(LAST)
    out = b"".join(reader.out)
    assert out.endswith(PONG + LAST)


@given(st.lists(st.binary(max_size=40), max_size=20), st.booleans())
def test_arbitrary_bytes_end_in_bytes_or_a_violation(pieces: list[bytes], deflate: bool) -> None:
    reader = ProducerReader(AGREED if deflate else None)
    for piece in pieces:
        reader.receive(piece)
