"""apachews_handler.protocol: frame_walker and tunnel: bytes pass untouched, and ends are clean."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import wire
from apachews_handler.protocol import new_tunnel, restored_session
from apachews_handler.protocol.client_reader import FRAMES_A_TURN, KEEPALIVE
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.protocol.frame_walker import CloseFrame, FrameWalker, OwnPong
from apachews_handler.protocol.opaque import OpaqueSession
from apachews_handler.protocol.producer_reader import MANY_MESSAGES, SHORT_READ_BYTES
from apachews_handler.protocol.session import HEADER_BYTES
from apachews_handler.protocol.states import ClientState, ProducerState
from apachews_handler.protocol.tunnel import TunnelSession
from apachews_handler.setting_values import Rate
from apachews_handler.settings import OPAQUE, Settings, for_tunnel

from ..support.frames import masked

# A mask of zeros.
FROM_BRIDGE = b"\x88\x82\0\0\0\0\x03\xe9"
CLOSE_1000 = wire.encode_frame(wire.CLOSE, wire.encode_close(1000, "done"))
CLIENT_CLOSE = masked(0x88, wire.encode_close(4001, "left"))


def tunnel(**changes: object) -> TunnelSession:
    limited = "max_message_bytes" in changes
    return new_tunnel(for_tunnel(Settings(**changes), is_message_limited=limited))  # type: ignore[arg-type]


def taken(frames: list[bytes]) -> bytes:
    data = b"".join(frames)
    frames.clear()
    return data


# The walker, against a plain reading of the whole stream.


@dataclass
class Reading:
    """What a whole stream means.

    Attributes:
        borders: positions at which a frame of the bridge's own may stand.
        passed: how many bytes pass at once: not an incomplete header or control frame.
    """

    borders: set[int] = field(default_factory=lambda: {0})
    close: bytes | None = None
    messages: int = 0
    payload_bytes: int = 0
    passed: int = 0


def read(stream: bytes) -> Reading:
    found, position = Reading(), 0
    while len(stream) - position >= 2:
        first, second = stream[position : position + 2]
        size = {126: 2, 127: 8}.get(second & 0x7F, 0)
        start = position + 2 + size + (4 if second & 0x80 else 0)
        if len(stream) < start:
            return found
        length = second & 0x7F
        if size:
            length = int.from_bytes(stream[position + 2 : position + 2 + size], "big")
        is_control = bool(first & 8) and length <= 125
        if is_control and len(stream) < start + length:
            return found
        if is_control and first & 0xF == 8:
            key = stream[start - 4 : start] if second & 0x80 else bytes(4)
            payload = stream[start : start + length]
            found.close = bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
            found.passed = start + length
            return found
        if not is_control:
            found.messages += first & 0xF != 0
            found.payload_bytes += length
        position = start + length
        found.passed = min(position, len(stream))
        if position <= len(stream):
            found.borders.add(position)
    return found


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame of any kind, valid or not, with a header of any form."""
    first = draw(st.integers(0, 255))
    is_masked = draw(st.booleans())
    length = draw(st.sampled_from([0, 1, 5, 124, 125, 126, 127, 300, 70_000]))
    forms = [form for form, most in ((0, 125), (2, 0xFFFF), (8, 1 << 63)) if length <= most]
    form = draw(st.sampled_from(forms))
    second = (0x80 if is_masked else 0) | {0: length, 2: 126, 8: 127}[form]
    key = draw(st.binary(min_size=4, max_size=4)) if is_masked else b""
    field_ = length.to_bytes(form, "big") if form else b""
    return bytes((first, second)) + field_ + key + draw(st.binary(min_size=1, max_size=1)) * length


STREAMS = st.lists(frames(), max_size=6).map(b"".join) | st.binary(max_size=60)


def pieces(stream: bytes, sizes: Sequence[int]) -> list[bytes]:
    found, position, turn = [], 0, 0
    while position < len(stream):
        size = sizes[turn % len(sizes)] if sizes else len(stream)
        found.append(stream[position : position + size])
        position += size
        turn += 1
    return found


@given(STREAMS, st.lists(st.sampled_from([1, 2, 3, 7, 50, 130, 1000]), max_size=5), st.data())
def test_bytes_pass_untouched_and_own_frames_stand_between_frames(
    stream: bytes, sizes: list[int], data: st.DataObject
) -> None:
    expected = read(stream)
    walker = FrameWalker()
    events = []
    sent = 0
    own = wire.encode_frame(wire.PING, b"the bridge's own, unlike all others")
    for piece in pieces(stream, sizes):
        pauses = data.draw(st.integers(1, 3)) if data.draw(st.booleans()) else None
        events += walker.receive(piece, pauses) if pauses else walker.receive(piece)
        while walker.is_paused:
            events += walker.receive(b"", pauses or 1)
        passed = taken(walker.out)
        assert stream[sent : sent + len(passed)] == passed
        sent += len(passed)
        if walker.insert(own):
            assert taken(walker.out) == own
            assert sent in expected.borders
        else:
            assert walker.has_sent_last or sent not in expected.borders
        assert len(walker.rest) <= 13 + 125
    assert sent == expected.passed
    assert (walker.messages, walker.payload_bytes) == (expected.messages, expected.payload_bytes)
    assert events == ([] if expected.close is None else [CloseFrame(expected.close)])


@given(STREAMS, st.integers(0, 400), st.lists(st.sampled_from([1, 5, 200]), max_size=3))
def test_the_last_frame_waits_for_a_border(stream: bytes, at: int, sizes: list[int]) -> None:
    at = min(at, len(stream))
    expected = read(stream)
    walker = FrameWalker()
    last = wire.encode_frame(wire.CLOSE, wire.encode_close(1001, "the server is shutting down"))
    walker.receive(stream[:at])
    was_ended = walker.has_sent_last
    walker.insert_last(last)
    for piece in pieces(stream[at:], sizes):
        walker.receive(piece)
        walker.insert_last(last)  # a second one adds nothing
    passed = taken(walker.out)
    if was_ended:
        assert passed == stream[: expected.passed]
        return
    if walker.has_sent_last:
        assert passed.endswith(last)
        border = len(passed) - len(last)
        assert stream.startswith(passed[:border])
        assert border in expected.borders
        before = {border for border in expected.borders if border <= at}
        assert border >= max(before), "not before a frame that has begun"
    else:
        assert passed == stream
        assert len(stream) not in expected.borders


def test_a_length_in_a_longer_form_moves_the_mask() -> None:
    payload = b"\x03\xe8done"
    mask = b"\1\2\3\4"
    hidden = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    for field_ in (b"\xfe\0\6", b"\xff" + bytes(7) + b"\6"):
        walker = FrameWalker()
        frame = b"\x88" + field_ + mask + hidden
        assert walker.receive(frame) == [CloseFrame(payload)]
        assert taken(walker.out) == frame


def test_only_own_pongs_are_taken_out() -> None:
    walker = FrameWalker()
    own, other = masked(0x8A, KEEPALIVE), masked(0x8A, b"other")
    text = masked(0x81, b"text")
    assert walker.receive(own) == []  # no PING was sent
    assert taken(walker.out) == own
    walker.expected_pongs = 1
    assert walker.receive(text + other + own + text + own) == [OwnPong()]
    assert taken(walker.out) == text + other + text + own
    assert walker.expected_pongs == 0
    walker.expected_pongs = 1
    events = [event for byte in own for event in walker.receive(bytes((byte,)))]
    assert events == [OwnPong()]
    assert taken(walker.out) == b""


@pytest.mark.parametrize(
    ("stream", "passed", "code"),
    [
        (masked(0x81, bytes(11)), b"", 1009),
        (masked(0x81, bytes(10)), masked(0x81, bytes(10)), 0),
        # A message is as long as its fragments together; control frames do not count.
        (
            masked(0x01, bytes(6)) + masked(0x89, bytes(9)) + masked(0x80, bytes(5)),
            masked(0x01, bytes(6)) + masked(0x89, bytes(9)),
            1009,
        ),
        (masked(0x81, bytes(9)) * 2, masked(0x81, bytes(9)) * 2, 0),
        (b"\x82\xff" + (1 << 63).to_bytes(8, "big") + bytes(4), b"", 1009),
    ],
)
def test_a_long_message_is_a_violation(stream: bytes, passed: bytes, code: int) -> None:
    for sizes in ([], [1], [3]):
        walker = FrameWalker(10)
        events = [event for piece in pieces(stream, sizes) for event in walker.receive(piece)]
        assert taken(walker.out) == passed
        codes = [event.code for event in events if isinstance(event, wire.Violation)]
        assert codes == ([code] if code else [])
        assert walker.has_ended is bool(code)


@pytest.mark.parametrize(
    "costly", [masked(0x81, b"x"), masked(0x89, b""), masked(0x8A, b"x"), masked(0x00, b"")]
)
def test_the_rate_counts_what_costs_something(costly: bytes) -> None:
    walker = FrameWalker()
    walker.max_frames = 2
    assert walker.receive(costly * 2) == []
    (violation,) = walker.receive(costly)
    assert isinstance(violation, wire.Violation)
    assert violation.code == wire.POLICY_VIOLATION
    assert taken(walker.out) == costly * 2


# Sessions.


def test_messages_pass_and_are_counted() -> None:
    session = tunnel()
    for frame in (masked(0x81, b"text"), masked(0xC2, bytes(125)), masked(0x82, bytes(70_000))):
        session.receive_client(frame)
        assert taken(session.to_producer) == frame
    for frame in (b"\x81\x02ok", b"\xc1\x7e\x01\x00" + bytes(256)):
        session.receive_producer(frame)
        assert taken(session.to_client) == frame
    assert session.traffic() == (3, 4 + 125 + 70_000, 2, 258)
    assert session.counts() == "messages_in=3 bytes_in=70129 messages_out=2 bytes_out=258"
    assert session.client_state is ClientState.OPEN


def test_a_large_frame_passes_as_it_comes() -> None:
    session = tunnel()
    frame = masked(0x82, bytes(100_000))
    for piece in pieces(frame, [30_000]):
        session.receive_client(piece)
        assert taken(session.to_producer) == piece
    answer = wire.encode_frame(0x2, bytes(100_000))
    for piece in pieces(answer, [30_000]):
        session.receive_producer(piece)
        assert taken(session.to_client) == piece
        assert session.ping() is (piece == pieces(answer, [30_000])[-1])
    assert session.traffic() == (1, 100_000, 1, 100_000)


def test_a_flood_of_small_frames_pauses() -> None:
    session = tunnel()
    session.receive_client(masked(0x81, b"") * (FRAMES_A_TURN + 1))
    assert session.is_paused
    assert len(taken(session.to_producer)) == 6 * FRAMES_A_TURN
    session.receive_client(b"", 0.0, busy=1000)
    assert not session.is_paused
    assert taken(session.to_producer) == masked(0x81, b"")
    assert session.producer_room == 64 * 1024 + HEADER_BYTES
    session.receive_producer(b"\x81\x00" * (MANY_MESSAGES + 1))
    assert session.producer_room == SHORT_READ_BYTES
    session.receive_producer(b"\x81\x00" * 2)
    assert session.producer_room == 64 * 1024 + HEADER_BYTES


def test_a_round_trip_is_measured() -> None:
    session = tunnel()
    assert session.ping(10.0)
    assert taken(session.to_client) == wire.encode_frame(wire.PING, KEEPALIVE)
    assert not session.is_ping_answered
    session.receive_client(masked(0x8A, KEEPALIVE), 10.25)
    assert session.is_ping_answered
    assert session.round_trip_s == 0.25
    assert taken(session.to_producer) == b""


@dataclass
class After:
    """What a session has sent after some events, and where it is."""

    client: bytes
    producer: bytes
    state: ClientState
    cause: CloseCause
    code: int
    half_closes: bool = False


OPEN_FRAME = b"\x82\x7e\x10\x00"  # the header of a frame of the backend's
Step = Callable[[TunnelSession], None]


def client(data: bytes) -> Step:
    return lambda session: session.receive_client(data)


def backend(data: bytes) -> Step:
    return lambda session: session.receive_producer(data)


def close(cause: CloseCause) -> Step:
    return lambda session: session.close(cause)


def client_eof(session: TunnelSession) -> None:
    session.receive_client_eof()


def backend_eof(session: TunnelSession) -> None:
    session.receive_producer_eof()


def bridge_close(cause: CloseCause) -> bytes:
    return wire.encode_frame(wire.CLOSE, wire.encode_close(cause.code, cause.reason))


LEFT = wire.encode_frame(wire.CLOSE, wire.encode_close(4001, "left"))
CLIENT_CLOSED, BACKEND_CLOSED = CloseCause.CLIENT_CLOSED, CloseCause.PRODUCER_CLOSED
BACKEND_LEFT, GOING = CloseCause.PRODUCER_LEFT, CloseCause.GOING_AWAY
CLOSING, CLOSED, GONE = ClientState.CLOSING, ClientState.CLOSED, ClientState.GONE


@pytest.mark.parametrize(
    ("steps", "after"),
    [
        # The client closes.
        ([client(CLIENT_CLOSE)], After(b"", CLIENT_CLOSE, CLOSING, CLIENT_CLOSED, 4001)),
        (
            [client(CLIENT_CLOSE), backend(CLOSE_1000)],
            After(CLOSE_1000, CLIENT_CLOSE, CLOSED, CLIENT_CLOSED, 4001),
        ),
        # Messages that were on their way still arrive.
        (
            [client(CLIENT_CLOSE), backend(b"\x81\x01x"), backend(CLOSE_1000), backend(b"more")],
            After(b"\x81\x01x" + CLOSE_1000, CLIENT_CLOSE, CLOSED, CLIENT_CLOSED, 4001),
        ),
        # An end of file after the client's CLOSE passes, and the answer too.
        (
            [client(CLIENT_CLOSE), client_eof, backend(CLOSE_1000)],
            After(CLOSE_1000, CLIENT_CLOSE, CLOSED, CLIENT_CLOSED, 4001, half_closes=True),
        ),
        (
            [client(CLIENT_CLOSE), client_eof, client_eof],
            After(b"", CLIENT_CLOSE, GONE, CLIENT_CLOSED, 4001, half_closes=True),
        ),
        # A backend that ends without an answer: Mosquitto.
        (
            [client(CLIENT_CLOSE), backend_eof],
            After(LEFT, b"", CLOSED, CLIENT_CLOSED, 4001),
        ),
        (
            [client(CLIENT_CLOSE), backend(OPEN_FRAME), backend_eof],
            After(OPEN_FRAME, b"", GONE, CLIENT_CLOSED, 4001),
        ),
        # A CLOSE that RFC 6455 does not allow is for the other end to judge.
        (
            [client(masked(0x88, b"x"))],
            After(b"", masked(0x88, b"x"), CLOSING, CLIENT_CLOSED, 1002),
        ),
        ([client(masked(0x88, b""))], After(b"", masked(0x88, b""), CLOSING, CLIENT_CLOSED, 1005)),
        # The client leaves.
        ([client_eof], After(b"", b"", GONE, CloseCause.CLIENT_LEFT, 1006, half_closes=True)),
        (
            [client_eof, backend(b"\x81\x01x")],
            After(b"", b"", GONE, CloseCause.CLIENT_LEFT, 1006, half_closes=True),
        ),
        # The backend closes.
        ([backend(CLOSE_1000)], After(CLOSE_1000, b"", CLOSING, BACKEND_CLOSED, 1000)),
        (
            [backend(CLOSE_1000), client(masked(0x81, b"x") + CLIENT_CLOSE)],
            After(CLOSE_1000, masked(0x81, b"x") + CLIENT_CLOSE, CLOSED, BACKEND_CLOSED, 1000),
        ),
        (
            [backend(CLOSE_1000), backend_eof, client(CLIENT_CLOSE)],
            After(CLOSE_1000, b"", CLOSED, BACKEND_CLOSED, 1000),
        ),
        (
            [backend(CLOSE_1000), client_eof],
            After(CLOSE_1000, b"", GONE, BACKEND_CLOSED, 1000, half_closes=True),
        ),
        # The backend goes.
        ([backend_eof], After(bridge_close(BACKEND_LEFT), b"", CLOSING, BACKEND_LEFT, 1012)),
        (
            [backend(b"\x81"), backend_eof],  # inside a header, which was kept back
            After(bridge_close(BACKEND_LEFT), b"", CLOSING, BACKEND_LEFT, 1012),
        ),
        (
            [backend(b"\x89\x05pi"), backend_eof],  # inside a control frame
            After(bridge_close(BACKEND_LEFT), b"", CLOSING, BACKEND_LEFT, 1012),
        ),
        (
            [backend(OPEN_FRAME + b"half"), backend_eof],
            After(OPEN_FRAME + b"half", b"", GONE, CloseCause.PRODUCER_CUT_OFF, 1006),
        ),
        (
            [backend_eof, client(CLIENT_CLOSE)],
            After(bridge_close(BACKEND_LEFT), b"", CLOSED, BACKEND_LEFT, 1012),
        ),
        # The bridge closes.
        ([close(GOING)], After(bridge_close(GOING), FROM_BRIDGE, CLOSING, GOING, 1001)),
        (
            [close(GOING), backend(b"\x81\x01x" + CLOSE_1000), client(CLIENT_CLOSE)],
            After(bridge_close(GOING), FROM_BRIDGE, CLOSED, GOING, 1001),
        ),
        (
            [backend(b"\x81\x03a"), close(GOING), backend(b"bc\x81\x01x")],
            After(b"\x81\x03abc" + bridge_close(GOING), FROM_BRIDGE, CLOSING, GOING, 1001),
        ),
        (
            [client(masked(0x81, b"abc")[:7]), close(GOING), client(masked(0x81, b"abc")[7:])],
            After(bridge_close(GOING), masked(0x81, b"abc") + FROM_BRIDGE, CLOSING, GOING, 1001),
        ),
        (
            [backend(b"\x81\x03a"), close(GOING), backend_eof],
            After(b"\x81\x03a", b"", GONE, GOING, 1001),
        ),
        (
            [close(GOING), client_eof],
            After(bridge_close(GOING), FROM_BRIDGE, GONE, GOING, 1001, half_closes=True),
        ),
        ([client_eof, close(GOING)], After(b"", b"", GONE, CloseCause.CLIENT_LEFT, 1006, True)),
        (
            [lambda session: session.fail()],
            After(b"", b"", GONE, CloseCause.FAILED, 1006),
        ),
    ],
)
def test_every_end_is_clean(steps: list[Step], after: After) -> None:
    session = tunnel()
    for step in steps:
        step(session)
    assert session.close_cause
    found = After(
        taken(session.to_client),
        taken(session.to_producer),
        session.client_state,
        session.close_cause,
        session.close_code,
        session.is_half_closing,
    )
    assert found == after


def test_limits_close_both_sides() -> None:
    for changes, cause in (
        ({"max_message_bytes": 10}, CloseCause.TOO_BIG),
        ({"message_rate": Rate(1, 1.0)}, CloseCause.TOO_MANY_MESSAGES),
    ):
        session = tunnel(**changes)
        session.receive_client(masked(0x81, b"x"), 0.0)
        taken(session.to_producer)
        session.receive_producer(b"\x81\x05ab")
        session.receive_client(masked(0x81, bytes(11)), 0.0)
        assert session.close_cause is cause
        assert taken(session.to_producer) == FROM_BRIDGE
        assert not session.client_finished, "the backend's frame has not ended"
        assert session.producer_state is ProducerState.AWAITING_EOF
        session.receive_producer(b"cde\x81\x01x")
        shown = taken(session.to_client)
        assert shown.startswith(b"\x81\x05abcde\x88")
        assert int.from_bytes(shown[9:11], "big") == cause.code
        assert session.client_finished


def test_the_rate_refills() -> None:
    session = tunnel(message_rate=Rate(2, 1.0))
    for second in range(5):
        session.receive_client(masked(0x81, b"x"), float(second))
    assert session.client_state is ClientState.OPEN
    session.receive_client(masked(0x81, b"x") * 3, 5.0)
    assert session.close_cause is CloseCause.TOO_MANY_MESSAGES


def test_the_default_limit_of_a_message_is_the_backends() -> None:
    session = tunnel()
    session.receive_client(masked(0x82, bytes(3 * 1024 * 1024))[:1000])
    assert session.client_state is ClientState.OPEN


def test_a_session_is_finishing_while_two_ends_close() -> None:
    session = tunnel()
    assert not session.is_finishing
    session.receive_client(CLIENT_CLOSE)
    assert session.is_finishing
    session.receive_producer(CLOSE_1000)
    assert not session.is_finishing
    session = tunnel()
    session.close(GOING)
    assert not session.is_finishing


def test_opaque_bytes_pass_and_so_do_their_ends() -> None:
    session = new_tunnel(for_tunnel(Settings(tunnel=OPAQUE), is_message_limited=False))
    assert isinstance(session, OpaqueSession)
    session.receive_client(CLIENT_CLOSE)
    session.receive_producer(b"RFB 003.008\n")
    assert taken(session.to_producer) == CLIENT_CLOSE
    assert taken(session.to_client) == b"RFB 003.008\n"
    assert not session.ping()
    session.receive_client_eof()
    assert (session.is_half_closing, session.has_client_eof) == (True, True)
    assert session.client_state is CLOSING
    session.receive_producer(b"the rest")
    session.receive_producer_eof()
    assert taken(session.to_client) == b"the rest"
    assert session.client_finished
    assert session.producer_finished
    assert session.traffic() == (0, len(CLIENT_CLOSE), 0, 20)
    session.receive_client_eof()
    assert session.client_state is GONE


def test_an_opaque_tunnel_ends_with_its_backend_or_with_apache() -> None:
    session = OpaqueSession(Settings())
    session.receive_producer_eof()
    assert session.close_cause is CloseCause.PRODUCER_ENDED
    assert session.client_finished
    session = OpaqueSession(Settings())
    session.close(GOING)
    assert session.client_state is GONE
    assert session.to_client == []
    assert session.is_half_closing


# Another process.


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=8),
    st.integers(0, 8),
    st.booleans(),
)
def test_a_tunnel_that_moves_says_what_one_that_stays_says(
    messages: list[tuple[bool, int]], cut: int, is_opaque: bool
) -> None:
    settings = for_tunnel(
        Settings(
            message_rate=Rate(4, 1.0),
            max_message_bytes=200,
            tunnel=OPAQUE if is_opaque else "frames",
        ),
        is_message_limited=True,
    )
    staying, moving = new_tunnel(settings), new_tunnel(settings)
    for number, (is_last, length) in enumerate(messages):
        state = moving.export_state() if number == cut else None
        if state is not None:
            restored = restored_session(settings, None)
            restored.import_state(json.loads(json.dumps(state)))
            assert type(restored) is type(moving)
            assert isinstance(restored, TunnelSession)
            moving = restored
        said = []
        for session in (staying, moving):
            session.ping(number / 10)
            session.receive_client(masked(0x81 if is_last else 0x01, bytes(length)), number / 10)
            session.receive_client(masked(0x8A, KEEPALIVE), number / 10)
            session.receive_producer(wire.encode_frame(wire.BINARY, bytes(length)))
            said.append((taken(session.to_producer), taken(session.to_client)))
        assert said[0] == said[1]
    assert staying.traffic() == moving.traffic()
    assert staying.close_code == moving.close_code


@pytest.mark.parametrize(
    "spoil",
    [
        client(masked(0x81, b"abc")[:7]),
        client(masked(0x81, b"abc")[:3]),
        client(masked(0x81, b"") * (FRAMES_A_TURN + 1)),
        backend(b"\x81"),
        backend(b"\x89\x05p"),
        backend(OPEN_FRAME),
        client(CLIENT_CLOSE),
        backend(CLOSE_1000),
        close(GOING),
        client_eof,
        backend_eof,
    ],
)
def test_what_is_not_at_rest_stays(spoil: Step) -> None:
    session = tunnel()
    assert session.export_state() is not None
    spoil(session)
    taken(session.to_client)
    taken(session.to_producer)
    assert session.export_state() is None
