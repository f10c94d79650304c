"""apachews.wire.reader: frames of the wire become messages, in any cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import wire
from apachews.wire.reader import (
    FRAMES_A_TURN,
    MIN_FRAMES_A_TURN,
    SHARED_FRAMES_A_TURN,
    Item,
    MessageReader,
    Moved,
    Pong,
)

OPEN = wire.Open(id="1", uri="/")
HELLO = OPEN.encode()


def frame(opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    return wire.encode_frame(opcode, payload, fin)


def read(data: bytes, size: int | None = None, limit: int = 1000) -> list[Item]:
    reader = MessageReader(limit)
    items: list[Item] = []
    for start in range(0, len(data), size or len(data)):
        items += reader.receive(data[start : start + (size or len(data))])
    return items


CASES: list[tuple[str, bytes, list[Item]]] = [
    ("open", b"", []),
    ("text", frame(wire.TEXT, b"hi"), ["hi"]),
    ("binary", frame(wire.BINARY, b"\x00\xff"), [b"\x00\xff"]),
    ("empty text", frame(wire.TEXT), [""]),
    ("empty binary", frame(wire.BINARY), [b""]),
    ("long text", frame(wire.TEXT, b"x" * 300), ["x" * 300]),
    ("nul", frame(wire.TEXT, b"a\0b"), ["a\0b"]),
    ("two", frame(wire.TEXT, b"a") + frame(wire.BINARY, b"b"), ["a", b"b"]),
    (
        "pieces cut inside a character",
        frame(wire.TEXT, b"\xc3", fin=False)
        + frame(wire.CONTINUATION, b"", fin=False)
        + frame(wire.CONTINUATION, b"\xa9"),
        ["é"],
    ),
    (
        "a pong between pieces",
        frame(wire.BINARY, b"a", fin=False)
        + frame(wire.PONG, b"p")
        + frame(wire.CONTINUATION, b"b"),
        [Pong(b"p"), b"ab"],
    ),
    ("empty last piece", frame(wire.TEXT, b"a", fin=False) + frame(wire.CONTINUATION), ["a"]),
    ("close", frame(wire.CLOSE, b"\x03\xe8bye"), [wire.Close(1000, "bye")]),
    ("close without code", frame(wire.CLOSE), [wire.Close(1005, "")]),
    ("nothing after a close", frame(wire.CLOSE) + frame(wire.TEXT, b"a"), [wire.Close(1005, "")]),
    ("a move is the last", frame(1, b"a") + frame(wire.MOVE) + frame(1, b"b"), ["a", Moved()]),
    ("ping is ignored", frame(wire.PING, b"x") + frame(wire.TEXT, b"a"), ["a"]),
    ("reserved opcodes are ignored", frame(0x7, b"x" * 200) + frame(0xF) + frame(1, b"a"), ["a"]),
]


@pytest.mark.parametrize(("data", "items"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
@pytest.mark.parametrize("size", [None, 1, 7])
def test_frames_become_messages(data: bytes, items: list[Item], size: int | None) -> None:
    assert read(HELLO + data, size) == [OPEN, *items]


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(wire.TEXT, b"a"), 1002),  # before OPEN
        (frame(wire.PONG), 1002),
        (HELLO + HELLO, 1002),
        (HELLO + frame(wire.CONTINUATION, b"a"), 1002),
        (HELLO + frame(wire.TEXT, b"a", fin=False) + frame(wire.TEXT, b"b"), 1002),
        (HELLO + b"\xc1\x01a", 1002),  # RSV1
        (HELLO + b"\x81\x81aaaab", 1002),  # masked
        (HELLO + b"\x09\x00", 1002),  # fragmented control
        (HELLO + b"\x89\x7e\x00\x7e", 1002),  # long control
        (HELLO + b"\x88\x01\x03", 1002),
        (HELLO + b"\x88\x03\x03\xe8\xff", 1007),
        (frame(wire.MOVE), 1002),  # before OPEN
        (HELLO + frame(wire.TEXT, b"a", fin=False) + frame(wire.MOVE), 1002),
        (HELLO + frame(wire.TEXT, b"\xff"), 1007),
        (HELLO + frame(wire.TEXT, b"\xc3", fin=False) + frame(wire.CONTINUATION, b"a"), 1007),
        (HELLO + frame(wire.TEXT, b"x" * 1001), 1009),
        (HELLO + frame(wire.BINARY, b"x" * 1000, fin=False) + frame(wire.CONTINUATION, b"x"), 1009),
        (HELLO + b"\x82\x7f" + (2**62).to_bytes(8, "big"), 1009),
        (b"\x83\x7f" + (wire.MAX_OPEN_BYTES + 1).to_bytes(8, "big"), 1002),
        (frame(wire.OPEN, b"{}"), 1002),
    ],
)
def test_a_violation_is_the_last_item(data: bytes, code: int, size: int | None) -> None:
    items = read(data + frame(wire.TEXT, b"late"), size)
    last = items[-1]
    assert isinstance(last, wire.Violation)
    assert last.code == code
    assert all(item == OPEN for item in items[:-1])


def test_idle_only_between_messages() -> None:
    reader = MessageReader()
    assert reader.is_idle
    reader.receive(HELLO[:5])
    assert not reader.is_idle
    reader.receive(HELLO[5:])
    assert reader.is_idle
    reader.receive(frame(wire.TEXT, b"a", fin=False))
    assert not reader.is_idle


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_arbitrary_bytes_end_in_items(pieces: list[bytes]) -> None:
    reader = MessageReader(100)
    reader.receive(HELLO)
    for piece in pieces:
        reader.receive(piece)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=50) | st.binary(max_size=50),
        max_size=6,
    ),
    st.integers(1, 50),
    st.randoms(use_true_random=False),
)
def test_messages_survive_any_cut(messages: list[str | bytes], size: int, random) -> None:  # type: ignore[no-untyped-def]
    data = HELLO
    for message in messages:
        payload = message.encode() if isinstance(message, str) else message
        opcode = wire.TEXT if isinstance(message, str) else wire.BINARY
        while len(payload) > 1 and random.random() < 0.5:
            cut = random.randrange(len(payload))
            data += frame(opcode, payload[:cut], fin=False)
            payload, opcode = payload[cut:], wire.CONTINUATION
        data += frame(opcode, payload)
    assert read(data, size, limit=10_000)[1:] == messages


@pytest.mark.parametrize(
    ("busy", "turn"),
    [(1, FRAMES_A_TURN), (8, SHARED_FRAMES_A_TURN // 8), (10_000, MIN_FRAMES_A_TURN)],
)
def test_a_reader_pauses_after_its_share_of_the_frames(busy: int, turn: int) -> None:
    reader = MessageReader()
    reader.receive(HELLO)
    assert reader.receive(frame(wire.TEXT, b"a") * (turn + 1) + frame(wire.CLOSE), busy) == (
        ["a"] * turn
    )
    assert reader.is_paused
    assert reader.receive(b"", busy) == ["a", wire.Close(1005, "")]
    assert not reader.is_paused


def test_pauses_do_not_change_the_items() -> None:
    """Input during a pause follows the input that the reader has stored."""
    reader = MessageReader()
    texts = [str(number) for number in range(2000)]
    stream = HELLO + b"".join(frame(wire.TEXT, text.encode()) for text in texts)
    items: list[Item] = []
    for start in range(0, len(stream), 1000):
        items += reader.receive(stream[start : start + 1000], 10)
    while reader.is_paused:
        items += reader.receive(b"", 10)
    assert items == [OPEN, *texts]
