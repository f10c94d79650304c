"""apachews_handler.protocol.deflate: negotiation, bounded inflation, ends of zlib streams."""

from __future__ import annotations

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews.exceptions import WireError
from apachews_handler.protocol import deflate
from apachews_handler.protocol.deflate import Agreement, Deflater, Inflater, Negotiation

OFFERS: list[tuple[str, str | None, Agreement | None]] = [
    # Clients fail on a server_max_window_bits that they did not offer; the server's window
    # is the smaller one nevertheless.
    ("", "", Agreement(15, 12)),
    ("; client_max_window_bits", "client_max_window_bits=12", Agreement(12, 12)),
    (
        "; client_max_window_bits=10; server_max_window_bits=9",
        "client_max_window_bits=10; server_max_window_bits=9",
        Agreement(10, 9),
    ),
    ('; server_max_window_bits="10"', "server_max_window_bits=10", Agreement(15, 10)),
    ("; server_max_window_bits=15", "server_max_window_bits=12", Agreement(15, 12)),
    ("; client_max_window_bits=8", "client_max_window_bits=8", Agreement(8, 12)),
    (
        "; server_no_context_takeover; client_no_context_takeover",
        "server_no_context_takeover; client_no_context_takeover",
        Agreement(15, 12, False, False),
    ),
    # zlib cannot compress with a window of 8 bits.
    ("; server_max_window_bits=8", None, None),
    # RFC 7692 7.1: a server declines these.
    ("; server_max_window_bits", None, None),
    ("; server_max_window_bits=7", None, None),
    ("; server_max_window_bits=16", None, None),
    ("; server_max_window_bits=010", None, None),
    ("; client_max_window_bits=x", None, None),
    ("; client_max_window_bits=", None, None),
    ("; server_no_context_takeover=1", None, None),
    ("; client_max_window_bits; client_max_window_bits=10", None, None),
    ("; who_knows", None, None),
    ("; ", None, None),
]


@pytest.mark.parametrize(("offer", "answer", "agreed"), OFFERS)
def test_offers(offer: str, answer: str | None, agreed: Agreement | None) -> None:
    negotiation = Negotiation(window_bits=12, keeps_context=True)
    assert negotiation.accept(f"permessage-deflate{offer}") == answer
    assert negotiation.agreed == agreed


def test_a_client_without_the_offer_reads_the_smaller_window() -> None:
    negotiation = Negotiation(9, keeps_context=True)
    assert negotiation.accept("permessage-deflate") == ""
    assert negotiation.agreed
    deflater = Deflater(negotiation.agreed.server_window_bits, 6)
    client = zlib.decompressobj(-15)
    for message in (os.urandom(5000), b"chat " * 5000, os.urandom(5000)):
        payload = deflater.compress(message) + deflater.finish()
        assert client.decompress(payload + b"\x00\x00\xff\xff") == message


def test_the_first_valid_offer_is_accepted() -> None:
    negotiation = Negotiation(15, True)
    assert negotiation.accept("permessage-deflate; x") is None
    assert negotiation.accept("permessage-deflate; client_max_window_bits=10") is not None
    assert negotiation.accept("permessage-deflate") is None
    assert negotiation.agreed == Agreement(10, 15)


def test_context_takeover_can_be_switched_off_for_both() -> None:
    negotiation = Negotiation(15, False)
    answer = negotiation.accept("permessage-deflate")
    assert answer == "server_no_context_takeover; client_no_context_takeover"
    assert negotiation.agreed == Agreement(15, 15, False, False)


def inflate(inflater: Inflater, payload: bytes, size: int = 10_000) -> bytes:
    """Return one whole message."""
    inflater.feed(payload)
    parts = []
    while True:
        parts.append(inflater.read(size))
        assert len(parts[-1]) <= size
        if len(parts[-1]) < size:
            inflater.end_message()
            return b"".join(parts)


def compressed(data: bytes) -> bytes:
    deflater = Deflater(15, 6)
    return deflater.compress(data) + deflater.finish()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        # RFC 7692 7.2.3
        (bytes.fromhex("f2 48 cd c9 c9 07 00"), b"Hello"),
        (bytes.fromhex("00 05 00 fa ff 48 65 6c 6c 6f 00"), b"Hello"),
        (bytes.fromhex("f3 48 cd c9 c9 07 00 00"), b"Hello"),  # its block ends the stream
        (bytes.fromhex("f3 48 cd c9 c9 07 00"), b"Hello"),  # the same without the padding
        (bytes.fromhex("01 05 00 fa ff 48 65 6c 6c 6f"), b"Hello"),  # stored, without either
        (bytes.fromhex("00 05 00 fa ff 48 65 6c 6c 6f 01"), b"Hello"),  # an empty final block
        (bytes.fromhex("f2 48 cd c9 c9 07 00 00 00 ff ff"), b"Hello"),  # with its tail
        (bytes.fromhex("f2 48 05 00 00 00 ff ff ca c9 c9 07 00"), b"Hello"),  # two blocks
        (b"\x00", b""),
        (b"", b""),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_the_examples_of_the_rfc(payload: bytes, message: bytes, size: int) -> None:
    inflater = Inflater(15)
    for _ in range(3):  # and the messages after them
        assert inflate(inflater, payload, size) == message
        assert inflate(inflater, compressed(b"more"), size) == b"more"


def test_a_message_may_refer_to_the_one_before() -> None:
    deflater = Deflater(15, 6)
    data = os.urandom(500)
    first = deflater.compress(data) + deflater.finish()
    second = deflater.compress(data) + deflater.finish()
    assert len(second) < 50  # it refers to the first
    inflater = Inflater(15)
    assert inflate(inflater, first) == data
    assert inflate(inflater, second) == data
    with pytest.raises(WireError, match="1007"):
        inflate(Inflater(15), second)


@pytest.mark.parametrize("data", [b"\xff" * 10, os.urandom(300), b"\x07", b"\x05\x00"])
def test_invalid_deflate_data_is_an_error(data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        inflate(Inflater(15), data + b"\xff" * 20)
    assert caught.value.code == 1007


def test_a_message_without_the_last_code_of_its_block_is_an_error() -> None:
    # A block of dynamic codes; its end would be one bit.
    payload = bytes.fromhex("ecc1010d000000c2a0da8f6f0e37a0000078d2ff")
    with pytest.raises(WireError, match="truncated"):
        inflate(Inflater(15), payload)


def test_output_is_limited_to_the_room() -> None:
    bomb = compressed(bytes(10_000_000))
    assert len(bomb) < 10_000
    inflater = Inflater(15)
    inflater.feed(bomb)
    for _ in range(20):
        assert len(inflater.read(1000)) == 1000


def test_streams_per_message_are_limited() -> None:
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    block = stream.compress(b"x") + stream.flush()
    inflater = Inflater(15)
    allowed = deflate.MAX_STREAMS - 1
    assert inflate(inflater, block * allowed + b"\0") == b"x" * allowed
    assert inflate(inflater, block * allowed + b"\0") == b"x" * allowed
    with pytest.raises(WireError, match="too many"):
        inflate(inflater, block * (allowed + 1) + b"\0")


@given(
    messages=st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=4), max_size=5),
    window_bits=st.integers(9, 15),
    level=st.integers(1, 9),
    size=st.integers(1, 400),
)
def test_round_trip(messages: list[list[bytes]], window_bits: int, level: int, size: int) -> None:
    deflater = Deflater(window_bits, level)
    inflater = Inflater(window_bits)
    for pieces in messages:
        payload = b""
        for piece in pieces:
            payload += deflater.compress(piece)
            if len(piece) % 3 == 0:
                payload += deflater.flush()
        payload += deflater.finish()
        assert inflate(inflater, payload, size) == b"".join(pieces)


# The ways to end a block in zlib; Z_FINISH makes it a final one.
FLUSHES = [zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_FINISH]


class Sender:
    """Any sender that RFC 7692 allows: zlib's compressor with every kind of block."""

    def __init__(self, window_bits: int, keeps_context: bool) -> None:
        self._window_bits = window_bits
        self._keeps_context = keeps_context
        self._zlib: zlib._Compress | None = None

    def message(self, blocks: list[tuple[bytes, int, int]], is_padded: bool) -> bytes:
        """Compress a message of blocks: their bytes, level and flush."""
        payload, flush = b"", zlib.Z_SYNC_FLUSH
        for data, level, flush in blocks:
            if self._zlib is None:
                self._zlib = zlib.compressobj(level, zlib.DEFLATED, -self._window_bits)
            payload += self._zlib.compress(data) + self._zlib.flush(flush)
            if flush == zlib.Z_FINISH:
                self._zlib = None
        if not self._keeps_context:
            self._zlib = None
        if flush == zlib.Z_FINISH:
            return payload + b"\x00" if is_padded else payload
        assert payload.endswith(b"\x00\x00\xff\xff")
        return payload[:-4]


BLOCKS = st.lists(
    st.tuples(
        st.one_of(
            st.binary(max_size=80),
            st.just(b"hello, hello " * 40),
            st.randoms().map(lambda random: random.randbytes(60)),
        ),
        st.sampled_from([0, 1, 6, 9]),
        st.sampled_from(FLUSHES),
    ),
    min_size=1,
    max_size=4,
)


@given(
    messages=st.lists(st.tuples(BLOCKS, st.booleans()), min_size=1, max_size=5),
    window_bits=st.integers(9, 15),
    keeps_context=st.booleans(),
    size=st.integers(1, 400),
)
def test_round_trip_of_every_kind_of_block(
    messages: list[tuple[list[tuple[bytes, int, int]], bool]],
    window_bits: int,
    keeps_context: bool,
    size: int,
) -> None:
    sender = Sender(window_bits, keeps_context)
    inflater = Inflater(window_bits)
    for blocks, is_padded in messages:
        payload = sender.message(blocks, is_padded)
        # (A second flush of zlib has no output.)
        assert inflate(inflater, payload, size) == b"".join(data for data, _, _ in blocks)
        if not keeps_context:
            inflater = Inflater(window_bits)


@given(BLOCKS, st.booleans(), st.data())
def test_a_truncated_message_never_becomes_other_bytes(
    blocks: list[tuple[bytes, int, int]], is_padded: bool, data: st.DataObject
) -> None:
    payload = Sender(15, True).message(blocks, is_padded)
    whole = b"".join(block for block, _, _ in blocks)
    inflater = Inflater(15)
    try:
        found = inflate(inflater, payload[: data.draw(st.integers(0, len(payload)))])
    except WireError as error:
        assert error.code == 1007
        return
    assert whole.startswith(found)  # the cut is between two blocks
    assert inflate(inflater, compressed(b"more")) == b"more"
