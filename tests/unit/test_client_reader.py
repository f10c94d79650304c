"""apachews_handler.client_reader: RFC 6455 on reading, by table and against wsproto."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as WsprotoPing
from wsproto.utilities import RemoteProtocolError

from apachews import wire
from apachews.messages import MessageReader, Pong
from apachews_handler.client_reader import ClientReader, Control, Ping
from apachews_handler.exceptions import Violation
from apachews_handler.mask import unmask

from ..frames import MASK, masked

LIMIT = 70_000


def feed(data: bytes, size: int | None = None) -> tuple[list[object], list[Control]]:
    """Return the messages that the producer's library makes of it, and the controls."""
    reader = ClientReader(LIMIT)
    messages = MessageReader(10 * LIMIT)
    messages.receive(wire.Open(id="1", uri="/").encode())
    items: list[object] = []
    controls: list[Control] = []
    for start in range(0, len(data), size or max(1, len(data))):
        controls += reader.receive(data[start : start + (size or len(data))])
        items += messages.receive(b"".join(reader.wire_out))
        reader.wire_out.clear()
    return items, controls


TEXT, BINARY, CONT = 0x81, 0x82, 0x80
CASES: list[tuple[str, bytes, list[object], list[Control]]] = [
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
        "fragments of binary that are no text",
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
    ("data", "items", "controls"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
@pytest.mark.parametrize("size", [None, 1, 3, 1000])
def test_good_frames(
    data: bytes, items: list[object], controls: list[Control], size: int | None
) -> None:
    if size == 1 and len(data) > 10_000:
        size = 997
    assert feed(data, size) == (items, controls)


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"\x81\x02hi", 1002, "not masked"),
        (b"\xc1\x80" + MASK, 1002, "RSV"),
        (b"\xa1\x80" + MASK, 1002, "RSV"),
        (b"\x91\x80" + MASK, 1002, "RSV"),
        *[(masked(0x80 | opcode), 1002, "reserved") for opcode in (3, 4, 5, 6, 7)],
        *[(masked(0x80 | opcode), 1002, "reserved") for opcode in range(0xB, 0x10)],
        (masked(0x09, b"x"), 1002, "control frame is fragmented"),
        (masked(0x89, b"x" * 126), 1002, "more than 125"),
        (masked(0x88, b"x" * 126), 1002, "more than 125"),
        (masked(CONT, b"x"), 1002, "no message to continue"),
        (masked(0x01, b"a") + masked(TEXT, b"b"), 1002, "inside a fragmented"),
        (masked(0x01, b"a") + masked(CONT, b"b") + masked(CONT, b"c"), 1002, "no message"),
        (b"\x82\xfe\x00\x7d" + MASK, 1002, "shortest"),
        (b"\x82\xff" + (65535).to_bytes(8, "big") + MASK, 1002, "shortest"),
        (b"\x82\xff" + (2**63).to_bytes(8, "big") + MASK, 1002, "over 2"),
        (masked(0x88, b"\x03"), 1002, "one byte"),
        (masked(0x88, (1005).to_bytes(2, "big")), 1002, "may not be sent"),
        (masked(0x88, (999).to_bytes(2, "big")), 1002, "may not be sent"),
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
    _, controls = feed(data + masked(TEXT, b"late"), size)
    violation = controls[-1]
    assert isinstance(violation, Violation)
    assert violation.code == code
    assert reason in violation.reason


def test_bad_text_is_found_before_the_message_is_whole() -> None:
    _, controls = feed(masked(TEXT, b"x" * 50 + b"\xff" + b"x" * 50)[:60])
    assert isinstance(controls[-1], Violation)


def test_what_came_before_a_violation_is_passed_on() -> None:
    items, controls = feed(masked(TEXT, b"good") + masked(CONT, b"bad"))
    assert items == ["good"]
    assert isinstance(controls[-1], Violation)


def test_a_large_frame_is_passed_on_as_it_comes() -> None:
    reader = ClientReader(2**40)
    reader.receive(b"\x82\xff" + (2**39).to_bytes(8, "big") + MASK + b"x" * 1000)
    passed = b"".join(reader.wire_out)
    assert passed[:4] == b"\x02\x7e\x03\xe8"
    assert len(passed) == 1004


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmask_is_exclusive_or(data: bytes, mask: bytes) -> None:
    assert unmask(data, mask) == bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


# Against wsproto: the same messages, the same end.

opcodes = st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x80, 0x00, 0x89, 0x8A])
payloads = st.binary(max_size=20) | st.text(max_size=200).map(
    lambda text: text.encode(errors="surrogatepass")
)
good = st.builds(masked, opcodes, payloads, st.binary(min_size=4, max_size=4))
closes = st.builds(
    lambda code, reason: masked(0x88, code.to_bytes(2, "big") + reason),
    # 1014 was registered with IANA after RFC 6455; wsproto takes it for invalid.
    (st.integers(990, 1020) | st.integers(2990, 5010)).filter(lambda code: code != 1014),
    st.binary(max_size=5),
)
wild = st.binary(max_size=12)
streams = st.lists(good | good | good | closes | wild, max_size=12)


def outcome_of_wsproto(chunks: list[bytes]) -> tuple[list[object], int]:
    """Return the finished messages and pings, and the close code: 0 for none."""
    connection = Connection(ConnectionType.SERVER)
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


def outcome_of_ours(chunks: list[bytes]) -> tuple[list[object], int]:
    reader = ClientReader(10**9)
    messages = MessageReader(10**9)
    messages.receive(wire.Open(id="1", uri="/").encode())
    out: list[object] = []
    for chunk in chunks:
        # One frame can complete a message only once its bytes are all there, so
        # feeding single bytes keeps messages and pings in their order.
        for byte in chunk:
            controls = reader.receive(bytes((byte,)))
            for item in messages.receive(b"".join(reader.wire_out)):
                if isinstance(item, (str, bytes)):
                    out.append(item)
            reader.wire_out.clear()
            for control in controls:
                if isinstance(control, Ping):
                    out.append(control)
                else:
                    return out, control.code
    return out, 0


@settings(max_examples=400, deadline=None)
@given(streams, st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_ends_as_wsproto_does(stream: list[bytes], sizes: list[int]) -> None:
    data = b"".join(stream)
    chunks: list[bytes] = []
    position = 0
    while position < len(data):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(data[position : position + size])
        position += size
    ours, code = outcome_of_ours(chunks)
    theirs, their_code = outcome_of_wsproto(chunks)
    assert code == their_code
    assert ours == theirs
