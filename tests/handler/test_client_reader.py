"""apachews_handler.protocol.client_reader: RFC 6455, by table and against wsproto."""

from __future__ import annotations

import itertools
import zlib
from typing import TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as WsprotoPing
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import RemoteProtocolError

from apachews import wire
from apachews.wire.reader import MessageReader, Pong
from apachews_handler.protocol.client_reader import (
    FRAMES_A_TURN,
    INFLATED_FRAMES,
    KEEPALIVE,
    MIN_FRAMES_A_TURN,
    SHARED_FRAMES_A_TURN,
    ClientReader,
    Event,
    KeepalivePong,
    Ping,
)
from apachews_handler.protocol.deflate import Agreement

from ..support.frames import MASK, masked

LIMIT = 70_000
Feed: TypeAlias = "tuple[list[object], list[Event]]"


def feed(
    data: bytes,
    size: int | None = None,
    buffer: int = 65536,
    deflate: Agreement | None = None,
) -> Feed:
    """Return the messages that the producer's library makes of it, and the events.

    Like the bridge, this empties the reader's output at each pause.
    """
    reader = ClientReader(LIMIT, buffer, deflate)
    messages = MessageReader(10 * LIMIT)
    messages.receive(wire.Open(id="1", uri="/").encode())
    items: list[object] = []
    events: list[Event] = []
    for start in range(0, len(data), size or max(1, len(data))):
        events += reader.receive(data[start : start + (size or len(data))])
        while True:
            assert sum(map(len, reader.out)) <= buffer + len(data)
            items += messages.receive(b"".join(reader.out))
            reader.out.clear()
            if not reader.is_paused:
                break
            events += reader.receive(b"")
    return items, events


TEXT, BINARY, CONT = 0x81, 0x82, 0x80
CASES: list[tuple[str, bytes, list[object], list[Event]]] = [
    ("text", masked(TEXT, b"hi"), ["hi"], []),
    ("text of 126", masked(TEXT, b"x" * 126), ["x" * 126], []),
    ("text of 65536", masked(TEXT, b"x" * 65536), ["x" * 65536], []),
    ("binary", masked(BINARY, b"\x00\xff"), [b"\x00\xff"], []),
    ("empty text", masked(TEXT), [""], []),
    ("empty binary", masked(BINARY), [b""], []),
    ("nul bytes", masked(TEXT, b"a\0\0b"), ["a\0\0b"], []),
    ("mask of zeros", masked(TEXT, b"hi", b"\0\0\0\0"), ["hi"], []),
    ("two in one segment", masked(TEXT, b"a") + masked(TEXT, b"b"), ["a", "b"], []),
    (
        "fragments with a ping between",
        masked(0x01, b"\xc3") + masked(0x89, b"p") + masked(0x00) + masked(CONT, b"\xa9"),
        ["é"],
        [Ping(b"p")],
    ),
    (
        "fragments of binary that are not text",
        masked(0x02, b"\xff") + masked(CONT, b"\xfe"),
        [b"\xff\xfe"],
        [],
    ),
    ("pong", masked(0x8A, b"x"), [Pong(b"x")], []),
    ("ping of 125", masked(0x89, b"p" * 125), [], [Ping(b"p" * 125)]),
    ("close", masked(0x88, b"\x03\xe8bye"), [], [wire.Close(1000, "bye")]),
    ("close without code", masked(0x88), [], [wire.Close(1005, "")]),
    ("nothing after close", masked(0x88) + masked(TEXT, b"a"), [], [wire.Close(1005, "")]),
]


@pytest.mark.parametrize(
    ("data", "items", "events"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
@pytest.mark.parametrize("size", [None, 1, 3, 1000])
def test_good_frames(
    data: bytes, items: list[object], events: list[Event], size: int | None
) -> None:
    if size == 1 and len(data) > 10_000:
        size = 997
    assert feed(data, size) == (items, events)


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"\x81\x02hi", 1002, "not masked"),
        (b"\xc1\x80" + MASK, 1002, "reserved bit"),
        (b"\xa1\x80" + MASK, 1002, "reserved bit"),
        (b"\x91\x80" + MASK, 1002, "reserved bit"),
        *[(masked(0x80 | opcode), 1002, "is reserved") for opcode in (3, 4, 5, 6, 7)],
        *[(masked(0x80 | opcode), 1002, "is reserved") for opcode in range(0xB, 0x10)],
        (masked(0x09, b"x"), 1002, "control frame is fragmented"),
        (masked(0x89, b"x" * 126), 1002, "more than 125"),
        (masked(0x88, b"x" * 126), 1002, "more than 125"),
        (masked(CONT, b"x"), 1002, "without a message to continue"),
        (masked(0x01, b"a") + masked(TEXT, b"b"), 1002, "inside a fragmented"),
        (masked(0x01, b"a") + masked(CONT, b"b") + masked(CONT, b"c"), 1002, "without a message"),
        (b"\x82\xfe\x00\x7d" + MASK, 1002, "shortest"),
        (b"\x82\xff" + (65535).to_bytes(8, "big") + MASK, 1002, "shortest"),
        (b"\x82\xff" + (2**63).to_bytes(8, "big") + MASK, 1002, "over 2"),
        (masked(0x88, b"\x03"), 1002, "1 byte"),
        (masked(0x88, (1005).to_bytes(2, "big")), 1002, "is not allowed"),
        (masked(0x88, (999).to_bytes(2, "big")), 1002, "is not allowed"),
        (masked(0x88, b"\x03\xe8\xff"), 1007, "not UTF-8"),
        (masked(TEXT, b"\xff"), 1007, "not UTF-8"),
        (masked(TEXT, b"x" * 200 + b"\xc3"), 1007, "not UTF-8"),
        (masked(0x01, b"\xc3") + masked(CONT, b"a"), 1007, "not UTF-8"),
        (masked(0x01, b"\xc3") + masked(CONT), 1007, "not UTF-8"),
        (masked(TEXT, b"\xed\xa0\x80"), 1007, "not UTF-8"),  # a surrogate
        (masked(TEXT, b"\xf4\x90\x80\x80"), 1007, "not UTF-8"),  # beyond U+10FFFF
        (masked(BINARY, b"x" * (LIMIT + 1))[:20], 1009, f"more than {LIMIT}"),
        (b"\x82\xff" + (2**63 - 1).to_bytes(8, "big") + MASK, 1009, "more than"),
        (masked(0x02, b"x" * LIMIT) + masked(CONT, b"x"), 1009, "more than"),
    ],
)
def test_violations(data: bytes, code: int, reason: str, size: int | None) -> None:
    if size == 1 and len(data) > 10_000:
        size = 997
    _, events = feed(data + masked(TEXT, b"late"), size)
    violation = events[-1]
    assert isinstance(violation, wire.Violation)
    assert violation.code == code
    assert reason in violation.reason


def test_bad_text_is_found_before_the_message_is_whole() -> None:
    _, events = feed(masked(TEXT, b"x" * 50 + b"\xff" + b"x" * 50)[:60])
    assert isinstance(events[-1], wire.Violation)


def test_frames_before_a_violation_are_forwarded() -> None:
    items, events = feed(masked(TEXT, b"good") + masked(CONT, b"bad"))
    assert items == ["good"]
    assert isinstance(events[-1], wire.Violation)


def test_a_large_frame_is_forwarded_as_it_arrives() -> None:
    reader = ClientReader(2**40)
    reader.receive(b"\x82\xff" + (2**39).to_bytes(8, "big") + MASK + b"x" * 1000)
    passed = b"".join(reader.out)
    assert passed[:4] == b"\x02\x7e\x03\xe8"
    assert len(passed) == 1004


def test_an_empty_fragment_in_the_middle_is_dropped() -> None:
    reader = ClientReader(LIMIT)
    reader.receive((masked(0x01) + masked(0x00)) * 1 + masked(0x00) * 50 + masked(CONT, b"x"))
    assert b"".join(reader.out) == b"\x81\x01x"


def test_counts() -> None:
    reader = ClientReader(LIMIT)
    reader.receive(
        masked(TEXT, b"abc") + masked(0x02, b"x" * 300) + masked(0x89) + masked(CONT, b"y")
    )
    assert (reader.messages, reader.payload_bytes, reader.controls) == (2, 304, 1)


@pytest.mark.parametrize(
    "frame", [masked(TEXT, b"a"), masked(BINARY, b"a"), masked(0x89), masked(0x8A)]
)
def test_more_frames_than_allowed(frame: bytes) -> None:
    reader = ClientReader(LIMIT)
    reader.max_frames = 3
    assert not any(isinstance(end, wire.Violation) for end in reader.receive(frame * 3))
    (violation,) = reader.receive(frame)
    assert isinstance(violation, wire.Violation)
    assert violation.code == 1008


def test_answers_to_the_bridges_own_pings_are_neither_forwarded_nor_counted() -> None:
    reader = ClientReader(LIMIT)
    reader.expected_pongs = 2
    events = reader.receive(masked(0x8A, KEEPALIVE) * 3 + masked(0x8A, b"other"))
    assert events == [KeepalivePong()] * 2
    assert b"".join(reader.out) == (
        wire.encode_frame(wire.PONG, KEEPALIVE) + wire.encode_frame(wire.PONG, b"other")
    )
    assert reader.controls == 2


def test_empty_fragments_are_counted() -> None:
    reader = ClientReader(LIMIT)
    reader.max_frames = 10
    events = reader.receive(masked(0x01, b"a") + masked(0x00) * 100)
    assert isinstance(events[-1], wire.Violation)
    assert events[-1].code == 1008


# Compressed messages.

DEFLATE = Agreement()


def deflated(data: bytes, *, first: int = 0xC1, cuts: tuple[int, ...] = ()) -> bytes:
    """Return a compressed message, in fragments cut at these offsets."""
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    payload = (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    pieces = [payload[a:b] for a, b in itertools.pairwise((0, *cuts, len(payload)))]
    frames = [masked(first & 0x7F if index == 0 else 0, p) for index, p in enumerate(pieces)]
    last = bytearray(frames[-1])
    last[0] |= 0x80
    return b"".join([*frames[:-1], bytes(last)])


COMPRESSED: list[tuple[str, bytes, list[object]]] = [
    ("one frame", deflated(b"hello"), ["hello"]),
    ("binary", deflated(b"\xff\0", first=0xC2), [b"\xff\0"]),
    ("fragments", deflated(b"hello, hello, hello", cuts=(1, 2, 5)), ["hello, hello, hello"]),
    ("a character over fragments", deflated("é".encode(), cuts=(2,)), ["é"]),
    ("empty", masked(0xC1, b"\0"), [""]),
    ("empty without a byte", masked(0xC1) + deflated(b"a"), ["", "a"]),
    ("more than the buffer", deflated(b"x" * 50_000), ["x" * 50_000]),
    ("exactly the buffer", deflated(b"x" * 1000) + deflated(b"y" * 1000), ["x" * 1000, "y" * 1000]),
    ("many in one read", deflated(b"x" * 5000) * 5, ["x" * 5000] * 5),
    ("plain among them", deflated(b"a") + masked(TEXT, b"b") + deflated(b"c"), ["a", "b", "c"]),
    (
        "fragments and a ping",
        deflated(b"a" * 99, cuts=(2,))[:8]
        + masked(0x8A, b"p")
        + deflated(b"a" * 99, cuts=(2,))[8:],
        [Pong(b"p"), "a" * 99],
    ),
]


@pytest.mark.parametrize("buffer", [1, 1000, 65536])
@pytest.mark.parametrize("size", [None, 1, 7])
@pytest.mark.parametrize(
    ("data", "items"), [case[1:] for case in COMPRESSED], ids=[c[0] for c in COMPRESSED]
)
def test_compressed_messages(
    data: bytes, items: list[object], size: int | None, buffer: int
) -> None:
    if buffer == 1 and len(data) > 60:
        buffer = 97
    assert feed(data, size, buffer, DEFLATE) == (items, [])


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (deflated(b"x" * (LIMIT + 1)), 1009),
        (deflated(b"\xff"), 1007),
        (deflated("é".encode()[:1]), 1007),
        (masked(0xC1, b"\xff\xff\xff"), 1007),
        (masked(0xE1, b"x"), 1002),
        (masked(0xD1, b"x"), 1002),
        (masked(0xC9, b"x"), 1002),
        (masked(0xC8), 1002),
        (masked(0x41, b"\0") + masked(0xC0, b"x"), 1002),
        (masked(0xC3, b"x"), 1002),
    ],
)
def test_violations_with_compression(data: bytes, code: int, size: int | None) -> None:
    _, events = feed(data + masked(TEXT, b"late"), size, 1000, DEFLATE)
    violation = events[-1]
    assert isinstance(violation, wire.Violation)
    assert violation.code == code


def test_without_context_takeover_a_message_refers_to_nothing() -> None:
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    first, second = (
        masked(0xC1, (stream.compress(b"hello, hello") + stream.flush(zlib.Z_SYNC_FLUSH))[:-4])
        for _ in range(2)
    )
    reader = ClientReader(LIMIT, 1000, Agreement(client_keeps_context=False))
    assert reader.receive(first) == []
    (violation,) = reader.receive(second)
    assert isinstance(violation, wire.Violation)
    assert violation.code == 1007


def test_a_decompression_bomb_is_found_early() -> None:
    bomb = deflated(bytes(50_000_000))
    reader = ClientReader(LIMIT, 1000, DEFLATE)
    out, events = 0, reader.receive(bomb)
    while reader.is_paused:
        assert sum(map(len, reader.out)) < 1100
        out += sum(map(len, reader.out))
        reader.out.clear()
        events += reader.receive(b"")
    assert out < LIMIT + 10_000
    (violation,) = events
    assert isinstance(violation, wire.Violation)
    assert violation.code == 1009


def test_a_control_after_a_compressed_message_waits_for_it() -> None:
    reader = ClientReader(LIMIT, 1000, DEFLATE)
    assert reader.receive(deflated(b"x" * 5000) + masked(0x88)) == []
    turns = 0
    while reader.is_paused:
        reader.out.clear()
        events = reader.receive(b"")
        turns += 1
    assert turns == 5
    assert events == [wire.Close(1005, "")]


# Against wsproto: the same messages, the same end, with and without compression.

opcodes = st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x80, 0x00, 0x89, 0x8A])
payloads = st.binary(max_size=20) | st.text(max_size=200).map(
    lambda text: text.encode(errors="surrogatepass")
)
good = st.builds(masked, opcodes, payloads, st.binary(min_size=4, max_size=4))
squeezed = st.builds(
    lambda data, first, cut: deflated(data, first=first, cuts=(cut,) if cut else ()),
    payloads,
    st.sampled_from([0xC1, 0xC2]),
    st.integers(0, 3),
)
closes = st.builds(
    lambda code, reason: masked(0x88, code.to_bytes(2, "big") + reason),
    # 1014 was registered with IANA after RFC 6455; wsproto rejects it.
    (st.integers(990, 1020) | st.integers(2990, 5010)).filter(lambda code: code != 1014),
    st.binary(max_size=5),
)
wild = st.binary(max_size=12)
streams = st.lists(good | good | good | closes | wild, max_size=12)
squeezed_streams = st.lists(squeezed | squeezed | good | closes | wild, max_size=12)


def outcome_of_wsproto(chunks: list[bytes], *, deflate: bool) -> tuple[list[object], int]:
    """Return the finished messages and pings, and the close code: 0 for none."""
    extension = PerMessageDeflate()
    # Each of the messages above is compressed by itself.
    extension.finalize("permessage-deflate; client_no_context_takeover")
    connection = Connection(ConnectionType.SERVER, [extension] if deflate else [])
    out: list[object] = []
    parts: list[str] | list[bytes] = []
    for chunk in chunks:
        connection.receive_data(chunk)
        try:
            for event in connection.events():
                if isinstance(event, (TextMessage, BytesMessage)):
                    parts.append(event.data)  # type: ignore[arg-type]
                    if event.message_finished:
                        empty = "" if isinstance(event, TextMessage) else b""
                        out.append(empty.join(parts))  # type: ignore[arg-type]
                        parts = []
                elif isinstance(event, WsprotoPing):
                    out.append(Ping(bytes(event.payload)))
                elif isinstance(event, CloseConnection):
                    return out, event.code
        except RemoteProtocolError as error:
            assert error.event_hint is not None
            return out, error.event_hint.code  # type: ignore[attr-defined]
    return out, 0


def outcome_of_ours(chunks: list[bytes], *, deflate: bool) -> tuple[list[object], int]:
    agreement = Agreement(client_keeps_context=False) if deflate else None
    reader = ClientReader(10**9, 65536, agreement)
    messages = MessageReader(10**9)
    messages.receive(wire.Open(id="1", uri="/").encode())
    out: list[object] = []
    for chunk in chunks:
        # One frame can complete a message only once its bytes are all there, so
        # feeding single bytes keeps messages and pings in their order.
        for byte in chunk:
            events = reader.receive(bytes((byte,)))
            for item in messages.receive(b"".join(reader.out)):
                if isinstance(item, (str, bytes)):
                    out.append(item)
            reader.out.clear()
            for event in events:
                if isinstance(event, Ping):
                    out.append(event)
                elif not isinstance(event, KeepalivePong):
                    return out, event.code
    return out, 0


@settings(max_examples=4 * settings().max_examples)
@given(streams, st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_ends_as_wsproto_does(stream: list[bytes], sizes: list[int]) -> None:
    assert_same(stream, sizes, deflate=False)


@settings(max_examples=4 * settings().max_examples)
@given(squeezed_streams, st.lists(st.integers(1, 40), min_size=1, max_size=5))
@example([masked(0x01), masked(0x41, b"\6")], [1])  # the start of a message within another one
def test_ends_as_wsproto_does_with_compression(stream: list[bytes], sizes: list[int]) -> None:
    assert_same(stream, sizes, deflate=True)


def assert_same(stream: list[bytes], sizes: list[int], *, deflate: bool) -> None:
    data = b"".join(stream)
    chunks: list[bytes] = []
    position = 0
    while position < len(data):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(data[position : position + size])
        position += size
    ours, code = outcome_of_ours(chunks, deflate=deflate)
    theirs, their_code = outcome_of_wsproto(chunks, deflate=deflate)
    if code == 1002 and not their_code:
        # The reader reports a missing mask or a bad opcode before the header is complete;
        # wsproto waits for the rest of it.
        theirs, their_code = outcome_of_wsproto([*chunks, bytes(16)], deflate=deflate)
    if code == 1002 and their_code == 1007:
        # wsproto inflates a frame before it sees that no such frame may come there.  The reader
        # sees it in the second byte; with that byte for an empty frame wsproto has only that fault.
        end = next(n for n in range(len(data)) if outcome_of_ours([data[:n]], deflate=deflate)[1])
        empty = [data[: end - 1], b"\x80" + bytes(4)]
        theirs, their_code = outcome_of_wsproto(empty, deflate=deflate)
    assert code == their_code
    assert ours == theirs


@pytest.mark.parametrize(
    ("busy", "turn"),
    [(1, FRAMES_A_TURN), (8, SHARED_FRAMES_A_TURN // 8), (10_000, MIN_FRAMES_A_TURN)],
)
@pytest.mark.parametrize("frame", [masked(BINARY), masked(BINARY, b"x"), masked(0x89)])
def test_a_reader_pauses_after_its_share_of_the_frames(busy: int, turn: int, frame: bytes) -> None:
    reader = ClientReader(LIMIT)
    more = frame * (2 * turn) + masked(0x88)
    found = len(reader.receive(more, busy)) + len(reader.out)
    assert found == turn and reader.is_paused
    found += len(reader.receive(b"", busy)) + len(reader.out) - turn * (frame[0] == BINARY)
    assert found == 2 * turn and reader.is_paused
    assert reader.receive(b"", busy) == [wire.Close(1005, "")]
    assert not reader.is_paused


def test_compressed_frames_count_for_several() -> None:
    """Inflating costs more than framing; so does each zlib stream of a message."""
    empty, streams = masked(0xC2, b"\0"), masked(0xC2, b"\3\0" * 15 + b"\0")
    for frame, most in ((empty, FRAMES_A_TURN // INFLATED_FRAMES), (streams, FRAMES_A_TURN // 16)):
        reader = ClientReader(LIMIT, 65536, DEFLATE)
        reader.receive(frame * FRAMES_A_TURN)
        assert reader.is_paused
        assert 0 < reader.messages <= most


def test_busy_connections_share_the_room_for_inflated_bytes() -> None:
    reader = ClientReader(LIMIT, 65536, DEFLATE)
    reader.receive(deflated(bytes(60_000)), 8)
    assert reader.is_paused
    assert sum(map(len, reader.out)) <= 65536 // 8 + 10
