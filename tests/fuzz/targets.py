"""The fuzz targets: one function for each interface that reads untrusted bytes.

Contract: a target accepts any bytes, and raises if the product breaks its contract:
AssertionError, or an exception that the product let escape.  ``TARGETS`` has them by name.
This module imports no fuzzer: ``run.py`` runs the targets with one, the unit tests with the
corpora.

Each target begins with a comment on the structure of its input (``source.py``).

Sources: the contracts at the head of the modules; docs/reference/wire.md; RFC 6455; RFC 7692.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import h11
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as WsprotoPing
from wsproto.utilities import RemoteProtocolError, generate_accept_token

from apachews import wire
from apachews.exceptions import WireError
from apachews.wire.answer import Answer
from apachews.wire.channel import (
    ADD,
    MAX_FRAME_BYTES,
    MAX_NUMBERS,
    OFFER,
    REMOVE,
    ChannelReader,
    Multicast,
    Numbers,
    Unicast,
    encode_multicast,
    encode_unicast,
)
from apachews.wire.channel import Item as ChannelItem
from apachews.wire.reader import BridgeChanged, Item, MessageReader, Moved, Offered, Pong
from apachews_handler.backend.answer import MAX_HEAD_BYTES, Accepted, AnswerReader, BadAnswer
from apachews_handler.exceptions import BadSetting, Refusal
from apachews_handler.handshake.request_info import Peer, describe
from apachews_handler.handshake.upgrade import Upgrade
from apachews_handler.origins import normalise_origin
from apachews_handler.protocol.client_reader import (
    FRAMES_A_TURN,
    INFLATED_FRAMES,
    ClientReader,
    KeepalivePong,
    Ping,
)
from apachews_handler.protocol.client_reader import Event as ClientEvent
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.protocol.deflate import Agreement
from apachews_handler.protocol.frame_walker import Event as WalkerEvent
from apachews_handler.protocol.frame_walker import FrameWalker
from apachews_handler.protocol.producer_reader import Event as ProducerEvent
from apachews_handler.protocol.producer_reader import Move, ProducerReader
from apachews_handler.protocol.session import Session
from apachews_handler.protocol.states import ClientState, ProducerState
from apachews_handler.setting_values import Rate
from apachews_handler.settings import PREFIX, Settings, parse_settings

from .channels_target import channels
from .oracle import (
    ClientView,
    Event,
    Meaning,
    ProducerView,
    bridge_stream,
    client_stream,
    producer_stream,
)
from .source import Source, cut

OPEN: Final = wire.Open(id="1", uri="/")
HELLO: Final = OPEN.encode()
REOPEN: Final = dataclasses.replace(OPEN, resumed=True).encode()

# Lengths around which a header changes its form, and one that is never reached.
MESSAGE_LIMITS: Final = (10, 126, 1000, 3000, 2**40)
# The product's own bounds are larger; these are reached with few bytes.
BUFFER_LIMITS: Final = (32, 64, 1000, 4096)
LARGE_BUFFER: Final = 65536
# Single bytes take one call each; their findings need short streams only.
MAX_BYTEWISE: Final = 100
# A header that a call may add to a message's next piece.
HEADER_BYTES: Final = 10


def _agreement(source: Source) -> Agreement | None:
    """One byte: 0x01 compression at all, 0x0e and 0xe0 the windows, 0x10 contexts."""
    flags = source.byte()
    if not flags & 1:
        return None
    keeps_context = bool(flags & 0x10)
    return Agreement(
        client_window_bits=8 + (flags >> 1 & 7),
        server_window_bits=9 + (flags >> 5) % 7,
        client_keeps_context=keeps_context,
        server_keeps_context=keeps_context,
    )


# From the client


def client_reader(data: bytes) -> None:
    """A client's bytes end in messages, a CLOSE or a Violation, however they are cut."""
    # An agreement; a limit; a buffer; frames allowed, 0 for any number; sizes of
    # the pieces; what the client sends.
    source = Source(data)
    deflate = _agreement(source)
    limit = source.choose(MESSAGE_LIMITS)
    # Without a limit, a small buffer would cause a pause every few bytes.
    room = source.choose(BUFFER_LIMITS) if limit < 2**40 else LARGE_BUFFER
    max_frames = source.byte()
    sizes = source.short_list()
    stream = source.rest()

    expected = client_stream(stream, limit, max_frames, deflate)
    ways = [sizes] if sizes else []
    if len(stream) <= MAX_BYTEWISE:
        ways.append([1])
    for way in ([], *ways):
        reader = ClientReader(limit, room, deflate)
        _check_client(stream, way, reader, max_frames, room, deflate, expected)


def _check_client(
    stream: bytes,
    sizes: Sequence[int],
    reader: ClientReader,
    max_frames: int,
    room: int,
    deflate: Agreement | None,
    expected: Meaning,
) -> None:
    """Feed a reader, and compare its output with the expected result."""
    if max_frames:
        reader.max_frames = max_frames
    controls: list[ClientEvent] = []
    out: list[bytes] = []
    fed = 0
    for piece in cut(stream, sizes):
        fed += len(piece)
        pauses = 0
        controls += reader.receive(piece)
        out += _pop_bounded(reader, room + fed + HEADER_BYTES)
        while reader.is_paused:
            pauses += 1
            controls += reader.receive(b"")
            out += _pop_bounded(reader, room + fed + HEADER_BYTES)
        # A pause comes after a buffer is full, or after so many frames.
        inflated = sum(map(len, out))
        frames = fed * (1 + INFLATED_FRAMES)
        assert pauses <= inflated // room + frames // FRAMES_A_TURN, "a pause without progress"
    pings = [control.payload for control in controls if isinstance(control, Ping)]
    end = controls[-1] if len(pings) < len(controls) else None
    if end:
        assert not isinstance(end, (Ping, KeepalivePong)) and len(pings) == len(controls) - 1
        wire.encode_close(end.code, end.reason)
        assert not reader.receive(b"\x81\x80\0\0\0\0" + stream)
        assert not reader.out and not reader.is_paused, "something after the end"

    view = ProducerView()
    view.feed(b"".join(out))
    assert view.is_between and not view.is_closed
    if not sizes:
        items = MessageReader().receive(HELLO + b"".join(out))
        assert items == [OPEN, *map(_item, view.events)]

    # (Without an expected answer to a PING of the bridge's own, the reader forwards every PONG.)
    passed = [event for event in expected.events if event[0] != wire.PING]
    code = end.code if isinstance(end, wire.Violation) else 0
    # zlib accepts a reference beyond its window if the bytes are in the same output: not every
    # client that exceeds the negotiated window is found.
    is_found = code == 1007 and deflate and deflate.client_window_bits < 15
    if not expected.is_sure or (is_found and code not in expected.codes):
        shorter = min(len(passed), len(view.events))
        assert passed[:shorter] == view.events[:shorter]
        return
    assert view.events == passed
    assert pings == [payload for opcode, payload in expected.events if opcode == wire.PING]
    if expected.codes:
        assert code in expected.codes, (end, expected.codes)
        return
    assert end == (wire.Close(*expected.close) if expected.close else None)
    # The reader has forwarded the incomplete message.
    assert view.payload == expected.partial
    messages = [payload for opcode, payload in passed if opcode < wire.CLOSE]
    assert reader.messages == len(messages) + bool(expected.opcode)
    assert reader.payload_bytes == sum(map(len, messages)) + len(expected.partial)
    assert reader.controls == len(expected.events) - len(messages) + expected.empty


def _pop_bounded(reader: ClientReader, most: int) -> list[bytes]:
    out = list(reader.out)
    reader.out.clear()
    assert sum(map(len, out)) <= most, "more than the buffer and what came"
    return out


def _item(event: Event) -> Item:
    opcode, payload = event
    if opcode == wire.OPEN:
        return wire.Open.decode(payload)
    if opcode == wire.PONG:
        return Pong(payload)
    if opcode == wire.MOVE:
        return Moved()
    if opcode == wire.LANE:
        if payload[0] == OFFER:
            return Offered(int.from_bytes(payload[1:], "big"))
        return BridgeChanged(payload[1:].decode())
    return payload.decode() if opcode == wire.TEXT else payload


def client_reader_vs_wsproto(data: bytes) -> None:
    """A client's bytes give the same messages, PINGs and end as with wsproto."""
    # Sizes of the pieces; what the client sends.
    source = Source(data)
    sizes = source.short_list()
    stream = source.rest()
    messages, pings, code = _ours(stream, sizes)
    assert (messages, pings, code) == _expected(stream, sizes, code)


Outcome = tuple[list[object], list[bytes], int]  # messages, PINGs, close code or 0


def _ours(stream: bytes, sizes: Sequence[int]) -> Outcome:
    reader = ClientReader(2**63)
    controls: list[ClientEvent] = []
    for piece in cut(stream, sizes):
        controls += reader.receive(piece)
    items = MessageReader(2**63).receive(HELLO + b"".join(reader.out))[1:]
    code = 0
    if controls and not isinstance(controls[-1], (Ping, KeepalivePong)):
        code = controls[-1].code
    return (
        [item for item in items if isinstance(item, (str, bytes))],
        [control.payload for control in controls if isinstance(control, Ping)],
        code,
    )


def _expected(stream: bytes, sizes: Sequence[int], our_code: int) -> Outcome:
    """Return wsproto's outcome, corrected by its known differences."""
    messages, pings, code, reason = _wsproto(cut(stream, sizes))
    if our_code == 1002 and not code:
        # The reader reports a missing mask or a bad opcode before the header is complete;
        # wsproto waits for the rest of it.
        _, _, code, reason = _wsproto([stream + bytes(16)])
    if our_code in (1014, 1007) and reason == "CLOSE with unknown reserved code":
        # 1014 was registered with IANA later; 1007 is then for its reason, which is not UTF-8.
        code = our_code
    return messages, pings, code


def _wsproto(chunks: Iterator[bytes] | list[bytes]) -> tuple[list[object], list[bytes], int, str]:
    connection = Connection(ConnectionType.SERVER)
    messages: list[object] = []
    pings: list[bytes] = []
    parts: list[Any] = []
    for chunk in chunks:
        connection.receive_data(chunk)
        try:
            for event in connection.events():
                if isinstance(event, (TextMessage, BytesMessage)):
                    parts.append(event.data)
                    if event.message_finished:
                        messages.append(event.data[:0].join(parts))
                        parts = []
                elif isinstance(event, WsprotoPing):
                    pings.append(bytes(event.payload))
                elif isinstance(event, CloseConnection):
                    return messages, pings, int(event.code), event.reason or ""
        except RemoteProtocolError as error:
            assert isinstance(error.event_hint, CloseConnection)
            return messages, pings, int(error.event_hint.code), str(error)
    return messages, pings, 0, ""


# From the producer

MIN_DEFLATE: Final = (0, 1, 20, 256)
# The bridge's action after a piece, by the upper bits of its byte.
INSERT_PING: Final = 0x80
INSERT_PONG: Final = 0xA0
INSERT_BOTH: Final = 0xC0
INSERT_LAST: Final = 0xE0
PIECES: Final = (*range(1, 17), 20, 32, 50, 64, 100, 125, 126, 127, 128, 150, 200, 256, 300, 500)
LAST: Final = wire.encode_frame(wire.CLOSE, wire.encode_close(1001, "going away"))


def producer_reader(data: bytes) -> None:
    """A producer's bytes reach the client as valid frames of the same messages."""
    # An agreement; the shortest message to compress; the level; for each piece, in
    # turn, its size (an index in PIECES) and what the bridge inserts after it; what
    # the producer sends.
    source = Source(data)
    deflate = _agreement(source)
    min_bytes = source.choose(MIN_DEFLATE)
    level = 1 + source.byte() % 9
    turns = source.short_list()
    stream = source.rest()
    expected = producer_stream(stream)

    # Without frames of the bridge's own: the same bytes.
    reader = ProducerReader(deflate, min_bytes, level)
    found = reader.receive(stream)
    assert found.count(Move()) == expected.moves
    _check_end(_end_of(found), expected)
    assert reader.ignored == expected.ignored
    assert reader.requests == expected.requests
    is_forwarded = not (expected.ignored or expected.requests or expected.moves)
    if not deflate and is_forwarded:
        assert b"".join(reader.out) == stream[: expected.passed]

    inserting = _Inserting(ProducerReader(deflate, min_bytes, level), ClientView(deflate))
    sizes = [PIECES[turn % 32 % len(PIECES)] for turn in turns]
    ended: ProducerEvent | None = None
    for index, piece in enumerate(cut(stream, sizes)):
        end = _end_of(inserting.reader.receive(piece))
        assert not (end and ended), "two ends"
        ended = end or ended
        inserting.drain()
        if turns:
            inserting.insert(turns[index % len(turns)] & 0xE0)
    inserting.finish(has_ended=ended is not None)

    view = inserting.view
    events = [event for event in view.events if event[1] not in inserting.tags]
    if inserting.sent_last:
        assert events == expected.events[: len(events)]
        return
    _check_end(ended, expected)
    assert events == expected.events
    if expected.is_between:
        # Fragments of the producer reach the client as fragments, compressed or not.
        assert view.payload == expected.partial
    else:
        assert view.payload.startswith(expected.partial)


class _Inserting:
    """A producer's reader, its client, and frames of the bridge's own."""

    def __init__(self, reader: ProducerReader, view: ClientView) -> None:
        self.reader = reader
        self.view = view
        self.sent_last = False
        self.tags: list[bytes] = []  # payloads of the inserted frames
        self._sent_at_once: list[bytes] = []

    def drain(self) -> None:
        """Let the client read the output."""
        self.view.feed(b"".join(self.reader.out))
        self.reader.out.clear()
        assert self.reader.is_between_frames == self.view.is_between
        assert self.reader.has_sent_last == self.view.is_closed

    def insert(self, action: int) -> None:
        """Insert the frames that the upper bits of a turn select."""
        if action in (INSERT_PING, INSERT_BOTH):
            self._insert(wire.PING)
        if action in (INSERT_PONG, INSERT_BOTH):
            self._insert(wire.PONG)
        if action == INSERT_LAST and not self.sent_last:
            self.sent_last = True
            self.reader.insert_last(LAST)
            self.drain()

    def _insert(self, opcode: int) -> None:
        # The fuzzer does not send these bytes by chance.
        tag = b"#%d \xd5\x1c\x93\x7e\xa8" % len(self.tags)
        self.tags.append(tag)
        if self.reader.is_between_frames and not self.sent_last:
            self._sent_at_once.append(tag)
        self.reader.insert(wire.encode_frame(opcode, tag))
        self.drain()

    def finish(self, has_ended: bool) -> None:
        """Check the client's view of the inserted frames."""
        seen = [payload for _, payload in self.view.events if payload in self.tags]
        assert len(set(seen)) == len(seen)
        assert set(self._sent_at_once) <= set(seen)
        before = len(self.view.events)
        if self.sent_last:
            assert self.reader.has_sent_last == self.reader.is_between_frames
            self.reader.insert(wire.encode_frame(wire.PING, b"late"))
            if self.reader.has_sent_last:
                assert self.reader.receive(wire.encode_frame(wire.TEXT, b"late")) == []
        if has_ended:
            assert self.reader.receive(wire.encode_frame(wire.TEXT, b"late")) == []
        self.drain()
        assert len(self.view.events) == before, "something after the end"


def _end_of(events: list[ProducerEvent]) -> ProducerEvent | None:
    """Return the CLOSE or the violation among a read's events; nothing follows it."""
    assert all(event == Move() for event in events[:-1]), "an event after the end"
    return events[-1] if events and events[-1] != Move() else None


def _check_end(end: ProducerEvent | None, expected: Meaning) -> None:
    if isinstance(end, wire.Violation):
        assert end.code in expected.codes
    else:
        assert not expected.codes
        assert end == (wire.Close(*expected.close) if expected.close else None)


# On the wire

READER_LIMITS: Final = (10, 126, 1000, 2**40)


def messages(data: bytes) -> None:
    """The library returns the same items for the wire's bytes in any cut."""
    # A limit, with 0x80 for an OPEN before; sizes of the pieces; what the bridge sends.
    source = Source(data)
    flags = source.byte()
    limit = READER_LIMITS[flags % len(READER_LIMITS)]
    sizes = source.short_list()
    stream = (HELLO if flags & 0x80 else b"") + source.rest()

    expected = bridge_stream(stream, limit)
    ways = [sizes] if sizes else []
    if len(stream) <= MAX_BYTEWISE:
        ways.append([1])
    for way in ([], *ways):
        reader = MessageReader(limit)
        items: list[Item] = []
        for piece in cut(stream, way):
            items += reader.receive(piece)
        is_over = expected.codes or expected.close or expected.has_moved
        end = items.pop() if is_over else None
        if expected.codes:
            assert isinstance(end, wire.Violation) and end.code in expected.codes
        elif expected.close:
            assert end == wire.Close(*expected.close)
        elif expected.has_moved:
            assert end == Moved()
        assert items == list(map(_item, expected.events))
        if end:
            assert reader.receive(HELLO + stream) == []
        elif expected.opcode:
            assert not reader.is_idle


def channel(data: bytes) -> None:
    """A channel's frames are the same items in any cut, and are encoded as they came."""
    # Sizes of the pieces; what one end sends.
    source = Source(data)
    sizes = source.short_list()
    stream = source.rest()

    whole = ChannelReader().receive(stream)
    encoded = b"".join(map(_encode_item, whole))
    assert stream.startswith(encoded)
    if whole and isinstance(whole[-1], wire.Violation):
        assert whole[-1].code == wire.PROTOCOL_ERROR
    else:
        assert len(stream) - len(encoded) <= 10 + 1 + 4 + 2 + 4 * MAX_NUMBERS + MAX_FRAME_BYTES
    for way in ([sizes] if sizes else []) + ([[1]] if len(stream) <= MAX_BYTEWISE else []):
        reader = ChannelReader()
        items: list[ChannelItem] = []
        for piece in cut(stream, way):
            items += reader.receive(piece)
        assert items == whole
        if reader.has_ended:
            assert reader.receive(stream) == []


def _encode_item(item: ChannelItem) -> bytes:
    if isinstance(item, Multicast):
        assert len(item.frame) <= MAX_FRAME_BYTES and item.frame[0] in (0x81, 0x82)
        return encode_multicast(item.group, list(item.excluded), item.frame)
    if isinstance(item, Unicast):
        assert len(item.frame) <= MAX_FRAME_BYTES and item.frame[0] in (0x81, 0x82, 0x89, 0x8A)
        return encode_unicast(item.number, item.frame)
    if isinstance(item, Numbers):
        has_group = item.kind in (ADD, REMOVE)
        prefix = item.group.to_bytes(4, "big") if has_group else b""
        numbers = b"".join(number.to_bytes(4, "big") for number in item.numbers)
        return wire.encode_frame(wire.LANE, bytes((item.kind,)) + prefix + numbers)
    return b""


def documents(data: bytes) -> None:
    """The two JSON documents of the wire are decoded or rejected, and survive a round trip."""
    # 0 for an OPEN, 1 for an ANSWER; the document.
    kind: type[wire.Open | Answer] = Answer if data[:1] == b"\1" else wire.Open
    try:
        value = kind.decode(data[1:])
    except WireError as error:
        wire.encode_close(error.code, wire.truncate_reason(error.reason))
        return
    frame = value.encode()
    found = wire.decode_header(frame, 0)
    assert found
    first, length, start = found
    assert first == wire.FIN | (wire.ANSWER if kind is Answer else wire.OPEN)
    assert start + length == len(frame)
    assert kind.decode(frame[start:]) == value


# Both sides

CLIENT, PRODUCER, CLIENT_EOF, PRODUCER_EOF, PING, END, CONGESTED, RESUME = range(8)
ENDS: Final = (CloseCause.GOING_AWAY, CloseCause.IDLE, CloseCause.NO_PONG, CloseCause.TOO_SLOW)
FAIL: Final = 24  # the upper bits of an END that is an error of ours
ORDER: Final = list(ClientState)


def session(data: bytes) -> None:
    """A session handles events in any order; both sides get valid frames."""
    # An agreement; a limit; a buffer, with 0x80 for a limit of the rate and 0x40 for no
    # hold; the shortest message to compress; then steps: a byte (what, and in its upper bits how),
    # and for bytes of a side their number, 0 for 256, and they.
    source = Source(data)
    deflate = _agreement(source)
    limit = source.choose(MESSAGE_LIMITS[:4])
    flags = source.byte()
    session = Session(
        Settings(
            max_message_bytes=limit,
            max_buffer_bytes=BUFFER_LIMITS[flags % len(BUFFER_LIMITS)],
            message_rate=Rate(3, 1.0) if flags & 0x80 else None,
            deflate_min_size_bytes=source.choose(MIN_DEFLATE),
            hold_s=0.0 if flags & 0x40 else 30.0,
        ),
        deflate,
    )
    session.open(OPEN)
    sides = _Sides(session, deflate)
    now = 0.0
    while not source.is_empty:
        step = source.byte()
        what, how = step & 7, step >> 3
        if what == CLIENT:
            session.receive_client(source.take(source.byte() or 256), now)
        elif what in (PRODUCER, PRODUCER_EOF) and session.producer_state is ProducerState.DETACHED:
            if what == PRODUCER:
                session.resume()
                sides.replace_producer()
            else:
                session.expire_hold()
        elif what == PRODUCER:
            session.receive_producer(source.take(source.byte() or 256))
        elif what == CLIENT_EOF:
            session.receive_client_eof()
        elif what == PRODUCER_EOF:
            session.receive_producer_eof()
            assert sides.client.is_between or session.client_state is ClientState.GONE
        elif what == PING:
            assert (
                session.ping() == sides.client.is_between
                or session.client_state is ClientState.GONE
            )
        elif what == END and how < FAIL:
            session.close(ENDS[how % len(ENDS)])
        elif what == END:
            session.fail()
        elif what == CONGESTED:
            session.set_congested(bool(how & 1))
        elif session.is_paused:
            session.receive_client(b"", now)
        else:
            now += how
        sides.check()
    session.counts()


class _Sides:
    """The two sides of a session, and what they receive."""

    def __init__(self, session: Session, deflate: Agreement | None) -> None:
        self.session = session
        self.client = ClientView(deflate)
        self.producer = ProducerView()
        self._state = ClientState.OPEN
        self._client_finished = self._producer_finished = False
        (hello,) = session.to_producer
        assert hello == HELLO
        session.to_producer.clear()

    def replace_producer(self) -> None:
        """Replace the producer: the next one gets an OPEN first."""
        assert self.session.to_producer.pop(0) == REOPEN
        self.producer = ProducerView()

    def check(self) -> None:
        """Empty the session's output, as the bridge does after every call, and check it."""
        session = self.session
        if self._state is ClientState.GONE:
            session.to_client.clear()  # the bridge has closed the client, and the producer
        assert not (self._client_finished and session.to_client), "client_finished was wrong"
        assert not (self._producer_finished and session.to_producer), "producer_finished was wrong"
        self.client.feed(b"".join(session.to_client))
        self.producer.feed(b"".join(session.to_producer))
        session.to_client.clear()
        session.to_producer.clear()
        session.ignored.clear()
        session.requests.clear()
        assert self.producer.is_between

        assert ORDER.index(session.client_state) >= ORDER.index(self._state), (
            "back to an earlier state"
        )
        self._state = session.client_state
        assert (session.close_cause is None) == (session.client_state is ClientState.OPEN)
        if session.close_cause:
            code = session.close_code
            assert code == wire.ABNORMAL or code == wire.NO_CODE or wire.is_sendable_code(code)
        if session.client_state is ClientState.OPEN:
            assert not self.client.is_closed and not self.producer.is_closed
        elif session.client_state is not ClientState.GONE:
            # The client has its CLOSE, but for one that waits for the end of a frame.
            assert self.client.is_closed == self.client.is_between
        assert session.client_finished or not self._client_finished
        assert session.producer_finished or not self._producer_finished
        self._client_finished = session.client_finished
        self._producer_finished = session.producer_finished


# The handshake


def settings(data: bytes) -> None:
    """What an owner sets is taken or refused by name."""
    # Lines of a name, without its prefix, and a value.
    environ = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        name, _, value = line.partition(" ")
        environ[PREFIX + name] = value
    try:
        found = parse_settings(environ)
    except BadSetting as refusal:
        assert refusal.status.startswith("500")
        assert refusal.name in environ and refusal.name in refusal.logged and refusal.allowed
        assert refusal.name not in refusal.told
        return
    assert found.max_message_bytes >= 1 and 4096 <= found.max_buffer_bytes <= 16 * 1024 * 1024
    assert found.connect_timeout_s >= 0.001 and found.close_timeout_s >= 0.001
    for time in (
        found.ping_interval_s,
        found.ping_timeout_s,
        found.idle_timeout_s,
        found.send_timeout_s,
    ):
        assert time == 0 or 0.001 <= time < 1e9
    for count in (
        found.max_connections,
        found.max_connections_per_address,
        found.max_connections_per_endpoint,
    ):
        assert 0 <= count <= 1 << 20
    if found.message_rate:
        assert found.message_rate.burst >= 1 and found.message_rate.per_s > 0
    if found.origins != ("*",):
        assert all(normalise_origin(origin) == origin for origin in found.origins)
    assert found.deflate_min_size_bytes >= 0
    assert 1 <= found.deflate_level <= 9 and 9 <= found.deflate_window_bits <= 15
    assert found.accept in ("bridge", "producer")
    assert not found.root or found.root.startswith("/")
    # What is read is ready for use.
    ClientReader(found.max_message_bytes, found.max_buffer_bytes)


GOOD_REQUEST: Final = {
    "REQUEST_METHOD": "GET",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REQUEST_URI": "/chat.ws",
    "wsgi.url_scheme": "http",
    "HTTP_HOST": "example.org",
    "HTTP_UPGRADE": "websocket",
    "HTTP_CONNECTION": "Upgrade",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
}
ORIGINS: Final = ((), ("*",), ("https://b.example", "http://[::1]:8080"), ("null",))
FORWARDED: Final = ("off", "forwarded", "x-forwarded")
SUBPROTOCOLS: Final = ((), ("chat",), ("x", "superchat"))
_PSEUDO: Final = {
    ":method": "REQUEST_METHOD",
    ":protocol": "SERVER_PROTOCOL",
    "content-length": "CONTENT_LENGTH",
    "content-type": "CONTENT_TYPE",
}
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9-]+")
# What browsers send, in the form in which it can be compared as it is.
_PLAIN_ORIGIN: Final = re.compile(r"https?://[a-z0-9-]+(\.[a-z0-9-]+)*")
_PLAIN_HOST: Final = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")


def upgrade(data: bytes) -> None:
    """A request is answered with the 101 that belongs to it, or refused."""
    # A byte each for the settings of the origin, the subprotocols and the
    # compression; then lines that end with CRLF: "name: value" of the request,
    # "<name: value" of the producer's answer.
    source = Source(data)
    flags = source.byte()
    subprotocols = source.choose(SUBPROTOCOLS)
    compression = source.byte()
    chosen = Settings(
        origins=ORIGINS[flags & 3],
        require_origin=bool(flags & 4),
        forwarded=FORWARDED[(flags >> 3) % 3],
        subprotocols=subprotocols,
        deflate=bool(compression & 1),
        deflate_context_takeover=bool(compression & 2),
        deflate_window_bits=9 + (compression >> 2) % 7,
    )
    environ, extra = _request(source.rest())
    try:
        found = Upgrade.negotiate(environ, chosen)
    except Refusal as refusal:
        _check_refusal(refusal)
        return
    _check_origin(environ, chosen)
    peer = Peer("1", ("203.0.113.7", 0), ("192.0.2.1", 80), None)
    open_ = describe(environ, chosen, found, peer, "b1")
    (item,) = MessageReader().receive(open_.encode())
    assert item == open_
    try:
        answer = Answer.accept(found.choose(chosen), extra)
    except ValueError:
        answer = Answer.accept(found.choose(chosen), ())
    head, agreement = found.accept(chosen, answer.subprotocol, answer.headers)
    _check_head(head, environ, answer)
    _check_agreement(head, environ, chosen, agreement)


def _request(lines: bytes) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the WSGI environment, and the headers of the producer's answer."""
    environ, extra = dict(GOOD_REQUEST), []
    for line in lines.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":" if line[:1] != ":" else " ")
        if name[:1] == "<":
            extra.append((name[1:], value[1:]))
        elif name == ":scheme":
            environ["wsgi.url_scheme"] = "https" if value == "https" else "http"
        elif name.lower() in _PSEUDO:
            environ[_PSEUDO[name.lower()]] = value.strip(" \t")
        elif _FIELD_NAME.fullmatch(name):
            # httpd passes on no other names.
            environ["HTTP_" + name.upper().replace("-", "_")] = value.strip(" \t")
    return environ, extra


def _check_refusal(refusal: Refusal) -> None:
    assert re.fullmatch(r"(4\d\d|501) [A-Z][A-Za-z ]+", refusal.status)
    for text in (refusal.told, refusal.logged):
        assert not set(text) & set("\r\n"), "a line of the log, or the answer, is broken"
    h11.Response(
        status_code=int(refusal.status[:3]),
        headers=[(name.encode(), value.encode()) for name, value in refusal.headers],
    )
    assert refusal.body().endswith(b"\n")


def _check_origin(environ: dict[str, str], chosen: Settings) -> None:
    """Hold an accepted origin against the plainest case of the rule."""
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:
        assert not chosen.require_origin
        return
    if chosen.origins == ("*",):
        return
    assert origin.count("/") == 2 and "@" not in origin, "not an origin"
    if origin in chosen.origins or chosen.forwarded != "off":
        return
    if _PLAIN_ORIGIN.fullmatch(origin) and _PLAIN_HOST.fullmatch(environ["HTTP_HOST"]):
        assert origin == f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}", origin


def _check_head(head: bytes, environ: dict[str, str], answer: Answer) -> None:
    """Check the head of the 101: what belongs there, and nothing else."""
    client = h11.Connection(h11.CLIENT)
    client.send(
        h11.Request(
            method="GET",
            target="/",
            headers=[("Host", "x"), ("Connection", "Upgrade"), ("Upgrade", "websocket")],
        )
    )
    client.receive_data(head)
    response = client.next_event()
    assert isinstance(response, h11.InformationalResponse) and response.status_code == 101
    assert client.trailing_data == (b"", False)
    key = environ["HTTP_SEC_WEBSOCKET_KEY"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    expected = [
        (b"upgrade", b"websocket"),
        (b"connection", b"upgrade"),
        (b"sec-websocket-accept", base64.b64encode(hashlib.sha1(key).digest())),
    ]
    if answer.subprotocol:
        expected.append((b"sec-websocket-protocol", answer.subprotocol.encode()))
        offered = environ["HTTP_SEC_WEBSOCKET_PROTOCOL"].split(",")
        assert answer.subprotocol in [name.strip() for name in offered]
    expected += [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers]
    headers = [
        (name, value.lower() if name in (b"upgrade", b"connection") else value)
        for name, value in response.headers
        if name != b"sec-websocket-extensions"
    ]
    # h11 writes a Host first.
    assert sorted(headers) == sorted(expected)
    assert head.count(b"\n") == len(response.headers) + 2


def _check_agreement(
    head: bytes, environ: dict[str, str], chosen: Settings, agreed: Agreement | None
) -> None:
    """Check what is said of permessage-deflate against the offers (RFC 7692 7.1)."""
    lines = [
        line.partition(b":")[2].strip().decode()
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-extensions:")
    ]
    assert len(lines) == (agreed is not None)
    if agreed is None:
        return
    assert chosen.deflate
    name, *items = (item.strip() for item in lines[0].split(";"))
    assert name == "permessage-deflate"
    parameters = dict(item.partition("=")[::2] for item in items)
    assert len(parameters) == len(items)
    offers = [
        {key.strip(): value.strip().strip('"') for key, _, value in pairs}
        for offer in environ["HTTP_SEC_WEBSOCKET_EXTENSIONS"].split(",")
        if offer.partition(";")[0].strip() == "permessage-deflate"
        for pairs in [[item.partition("=") for item in offer.split(";")[1:]]]
    ]
    assert any(_is_answered(offer, parameters) for offer in offers)
    client_bits = int(parameters.pop("client_max_window_bits", 15))
    assert agreed.client_window_bits == client_bits
    # The server may compress with a smaller window than it answered, or than it was asked for.
    server_bits = int(parameters.pop("server_max_window_bits", 15))
    assert agreed.server_window_bits == min(server_bits, chosen.deflate_window_bits)
    assert 8 <= client_bits <= 15 and agreed.server_window_bits >= 9
    server_forgets = parameters.pop("server_no_context_takeover", None) is not None
    client_forgets = parameters.pop("client_no_context_takeover", None) is not None
    assert agreed.server_keeps_context == (not server_forgets)
    assert agreed.client_keeps_context == (not client_forgets)
    assert chosen.deflate_context_takeover or (server_forgets and client_forgets)
    assert not parameters


def _is_answered(offer: dict[str, str], answer: dict[str, str]) -> bool:
    """Tell whether an answer is one that RFC 7692 7.1 allows to an offer."""
    client, server = "client_max_window_bits", "server_max_window_bits"
    return (
        (client not in answer or client in offer)
        and int(answer.get(client, 15)) <= _most_bits(offer.get(client) or "15")
        and (server in answer) == (server in offer)
        and int(answer.get(server, 15)) <= _most_bits(offer.get(server, "15"))
        and ("server_no_context_takeover" not in offer or "server_no_context_takeover" in answer)
    )


def _most_bits(value: str) -> int:
    """Return the largest allowed value, 0 if the parameter cannot be answered."""
    return int(value) if re.fullmatch("[89]|1[0-5]", value) else 0


# Tunnels

KEY: Final = base64.b64encode(bytes(16))
_ACCEPT_LINE: Final = re.compile(
    rb"(?i:sec-websocket-accept):[ \t]*" + re.escape(generate_accept_token(KEY)) + rb"[ \t]*\r?\n"
)
_CLOSE: Final = wire.encode_frame(wire.CLOSE, wire.encode_close(1001, "the fuzzer's own"))
_HEAD: Final = re.compile(
    rb"HTTP/1\.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    rb"([!-9;-~]+: [^\r\n\0]*\r\n)+\r\n"
)


def backend_answer(data: bytes) -> None:
    """A backend's bytes are one answer however they are cut, and only a right 101 is a tunnel."""
    # Sizes of the pieces; what the backend sends, up to its end of file.
    source = Source(data)
    sizes = source.short_list()
    stream = source.rest()[:MAX_HEAD_BYTES]
    expected = _answer(stream, [])
    ways = [sizes] if sizes else []
    if len(stream) <= MAX_BYTEWISE:
        ways.append([1])
    for way in ways:
        assert _answer(stream, way) == expected
    if isinstance(expected, tuple) and expected[0] == 101:
        head, first = expected[1:3]
        assert _HEAD.fullmatch(head), head
        before = stream[: len(stream) - len(first)]
        assert len(before) <= MAX_HEAD_BYTES
        assert b"HTTP/1.1 101" in before
        assert len(_ACCEPT_LINE.findall(before)) >= 1


def _answer(stream: bytes, sizes: Sequence[int]) -> object:
    """Return what a client gets of an answer; None for an answer that is refused."""
    reader = AnswerReader(KEY)
    rest = stream
    pieces = cut(stream, sizes)
    try:
        answer = None
        while answer is None:
            piece = next(pieces, b"")
            rest = rest[len(piece) :]
            answer = reader.receive(piece)
        if isinstance(answer, Accepted):
            return 101, answer.head, answer.first + rest
        body = answer.body.receive(None)
        while not answer.body.is_complete:
            piece = next(pieces, b"")
            body += answer.body.receive(piece)
    except BadAnswer:
        return None
    return answer.status, answer.reason, answer.headers, body


def tunnel(data: bytes) -> None:
    """Bytes pass a tunnel untouched; its own frames stand between frames, and are counted once."""
    # For each piece, in turn, its size (an index in PIECES), and with 0x80 a PING of the
    # bridge's own after it, with 0x40 a pause in it; what one end sends.
    source = Source(data)
    turns = source.short_list()
    stream = source.rest()
    whole = FrameWalker()
    events = whole.receive(stream)
    expected = b"".join(whole.out)
    assert stream.startswith(expected)
    walker = FrameWalker()
    found: list[WalkerEvent] = []
    passed = b""
    ping = wire.encode_frame(wire.PING, b"the bridge's own")
    sizes = [PIECES[turn % 32 % len(PIECES)] for turn in turns]
    for index, piece in enumerate(cut(stream, sizes)):
        turn = turns[index % len(turns)] if turns else 0
        found += walker.receive(piece, 1) if turn & 0x40 else walker.receive(piece)
        while walker.is_paused:
            found += walker.receive(b"")
        passed += b"".join(walker.out)
        walker.out.clear()
        assert len(walker.rest) <= 138
        if turn & 0x80 and walker.insert(ping):
            assert walker.out == [ping]
            walker.out.clear()
            # A walker that reads on from here sees the same frames: this is a border.
            after = FrameWalker()
            after.receive(stream[len(passed) :])
            assert after.messages == whole.messages - walker.messages
    assert passed == expected
    assert found == events
    assert (walker.messages, walker.payload_bytes) == (whole.messages, whole.payload_bytes)
    # The bridge's CLOSE after some byte: the frame of that byte passes, then the CLOSE, then
    # nothing.
    closed = FrameWalker()
    for index, piece in enumerate(cut(stream, sizes or [len(stream) // 2 or 1])):
        if index == 1:
            closed.insert_last(_CLOSE)
        closed.receive(piece)
    passed = b"".join(closed.out)
    if not passed.endswith(_CLOSE):
        assert passed == expected[: len(passed)]
    elif not expected.endswith(_CLOSE):
        assert expected.startswith(passed.removesuffix(_CLOSE))
        assert closed.has_sent_last
        before = FrameWalker()
        before.receive(passed.removesuffix(_CLOSE))
        assert not before.remaining


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (
        client_reader,
        client_reader_vs_wsproto,
        producer_reader,
        messages,
        documents,
        session,
        settings,
        upgrade,
        backend_answer,
        tunnel,
        channel,
        channels,
    )
}
