"""apachews_handler.lifecycle.portable: a connection at rest as plain data, and back."""

from __future__ import annotations

import dataclasses
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import wire
from apachews_handler.bridge.connection import NOT_WATCHED, Connection, ConnectionInfo, Leg
from apachews_handler.bridge.send_queue import SendQueue
from apachews_handler.bridge.transport import PlainTransport
from apachews_handler.lifecycle.portable import NotPortable, decode, encode, restore
from apachews_handler.monitoring.close_log import CloseFormat, Ending, Handshake
from apachews_handler.protocol import new_session
from apachews_handler.protocol.client_reader import ClientReader
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.protocol.deflate import Agreement, Inflater
from apachews_handler.protocol.frame_walker import FrameWalker
from apachews_handler.protocol.opaque import OpaqueSession
from apachews_handler.protocol.producer_reader import ProducerReader
from apachews_handler.protocol.progress import Progress, TcpState
from apachews_handler.protocol.raw import RawReader, RawSession
from apachews_handler.protocol.session import Session
from apachews_handler.protocol.session_data import SessionData
from apachews_handler.protocol.timeouts import Timeouts
from apachews_handler.protocol.tunnel import TunnelSession
from apachews_handler.setting_values import Rate
from apachews_handler.settings import Settings

from ..conftest import slots_of
from ..support.frames import masked
from .test_bridge import OPEN, Lines

NOW = 1000.0


class Pair:
    """A connection, the document it becomes, and the connection made of that."""

    def __init__(self, settings: Settings, deflate: Agreement | None = None, **more: Any) -> None:
        self.sockets = [*socket.socketpair(), *socket.socketpair()]
        session = new_session(settings, deflate)
        session.open(OPEN)
        self.connection = Connection(
            transport=PlainTransport(self.sockets[0]),
            producer_socket=self.sockets[2],
            session=session,
            settings=settings,
            endpoint="/a\udcff.ws",
            name="[client x] /a.ws",
            log=Lines(),
            **more,
        )
        self.connection.client.mask = self.connection.producer.mask = 1  # EPOLLIN
        session.to_producer.clear()

    def moved(self) -> Connection:
        document = encode(self.connection)
        assert document is not None
        client, producer = self.sockets[0].dup(), self.sockets[2].dup()
        self.sockets += (client, producer)
        return restore(decode(document), client, producer, Lines(), None)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


Make = Callable[..., Pair]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Pair] = []

    def pair(deflate: Agreement | None = None, changes: Any = None, **more: Any) -> Pair:
        made.append(Pair(Settings(**(changes or {})), deflate, **more))
        return made[-1]

    yield pair
    for pair_ in made:
        pair_.close()


def session_of(connection: Connection) -> Session:
    assert isinstance(connection.session, Session)
    return connection.session


def state_of(value: Any) -> dict[str, Any]:
    """Return the slots of an object and of its bases."""
    slots = [name for kind in type(value).__mro__ for name in slots_of(kind)]
    # (What is left of the share of a turn means nothing in the next turn.)
    return {name: getattr(value, name) for name in slots if name != "_frames_left"}


def test_everything_comes_through(make: Make) -> None:
    handshake = Handshake({"SERVER_PROTOCOL": "HTTP/1.1"}, OPEN, None, "/a.ws", NOW)
    format_ = CloseFormat('%h "%r" %>s %{ms}T %{id}x')
    info = ConnectionInfo("id", "/a.ws", "192.0.2.1", 4711, "ann", "ws", "chat")
    changes = {
        "message_rate": Rate(10, 5.0),
        "origins": ("https://example.org",),
        "close_log": "/var/log/closes.log",
        "close_log_format": format_,
    }
    pair = make(None, changes, info=info, close_line=format_.begin(handshake))
    connection, session = pair.connection, pair.connection.session
    session.receive_client(masked(0x81, b"one") + masked(0x8A, b"pong"), NOW)
    session.receive_producer(b"\x81\x03two\x81\x05three")
    assert session.ping(NOW)
    session.to_client.clear()
    session.to_producer.clear()
    connection.opened_at, connection.entrusted_at = 1.5, 2.5
    timeouts = connection.timeouts
    timeouts.hold_ends_at, timeouts.resumed_at, timeouts.said_before = 3.5, 4.5, 6
    timeouts.heard_at, timeouts.passed_at = 7.5, 8.5
    timeouts.due(100.0)  # a PING was asked for
    timeouts.way_s = 0.5
    connection.progress = Progress(TcpState(5000, 300, 4000))
    connection.progress.note_ping(TcpState(5100, 300, 4100), 100.0, is_answered=False)

    moved = pair.moved()
    for name in ("settings", "info", "name", "endpoint", "opened_at", "entrusted_at"):
        assert getattr(moved, name) == getattr(connection, name), name
    assert moved.session.traffic() == session.traffic() == (1, 3, 2, 8)
    for reader in ("_client", "_producer"):
        before, after = getattr(session, reader), getattr(moved.session, reader)
        assert state_of(after) == state_of(before)
    assert state_of(moved.timeouts) == state_of(connection.timeouts)
    assert state_of(moved.progress) == state_of(connection.progress)
    assert session_of(moved)._open_frame == session_of(connection)._open_frame
    assert not moved.session.is_ping_answered
    ending = Ending(1000, "", "client", "X", 1.0, NOW, (0, 0, 0, 0), None, 1)
    assert moved.close_line
    assert connection.close_line
    assert moved.close_line.finish(ending) == connection.close_line.finish(ending)
    # The PONG to the PING before is not the producer's.
    moved.session.receive_client(masked(0x8A, b"apachews keep-alive"), NOW + 0.25)
    assert moved.session.to_producer == []
    assert moved.session.round_trip_s == 0.25


def half(data: bytes) -> Callable[[Session], None]:
    return lambda session: session.receive_client(data, NOW)


def producer(data: bytes) -> Callable[[Session], None]:
    return lambda session: session.receive_producer(data)


@pytest.mark.parametrize(
    "spoil",
    [
        half(b"\x81"),
        half(masked(0x81, b"half")[:8]),
        half(masked(0x82, b"x" * 5000)[:2000]),
        half(masked(0x01, b"half a message")),
        half(masked(0x88, b"\x03\xe8")),
        half(b"\x81\x00"),
        half(masked(0x81, b"to be sent")),
        producer(b"\x81"),
        producer(b"\x81\x05hal"),
        producer(b"\x01\x02hi"),
        producer(b"\x81\x02hi"),
        producer(b"\x88\x02\x03\xe8"),
        producer(b"\x85\x00"),  # MOVE
        producer(b"\x86\x00"),  # to be logged
        lambda session: session.set_congested(True),
        lambda session: session.close(CloseCause.IDLE),
        lambda session: session.receive_client_eof(),
        lambda session: session.receive_producer_eof(),
    ],
)
def test_what_is_not_at_rest_stays(make: Make, spoil: Callable[[Session], None]) -> None:
    pair = make()
    assert encode(pair.connection) is not None
    spoil(session_of(pair.connection))
    assert encode(pair.connection) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda connection: connection.client.queue.push(b"x"),
        lambda connection: connection.producer.queue.push(b"x"),
        lambda connection: setattr(connection.client, "mask", 0),
        lambda connection: setattr(connection.producer, "mask", NOT_WATCHED),
        lambda connection: setattr(connection, "drain_cause", CloseCause.DRAINED),
        lambda connection: setattr(connection, "write_failed", True),
        lambda connection: setattr(connection, "is_shut_down", True),
    ],
)
def test_a_connection_that_waits_or_ends_stays(
    make: Make, spoil: Callable[[Connection], None]
) -> None:
    pair = make()
    spoil(pair.connection)
    assert encode(pair.connection) is None


@pytest.mark.parametrize(
    "name", ["waiting_since", "held_until", "drain_at", "close_by", "is_heard", "has_client"]
)
def test_a_deadline_keeps_it(make: Make, name: str) -> None:
    pair = make()
    value: object = NOW
    if name in ("is_heard", "has_client"):
        value = False
    setattr(pair.connection.timeouts, name, value)
    assert encode(pair.connection) is None


def test_one_with_tls_stays(make: Make) -> None:
    pair = make()

    class Encrypted:
        pass

    pair.connection.transport = Encrypted()  # type: ignore[assignment]
    assert encode(pair.connection) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(more=1),
        lambda document: document.pop("path"),
        lambda document: document["session"].update(more=1),
        lambda document: document["session"].pop("opened"),
        lambda document: document["watch"].pop("heard_at"),
        lambda document: document.update(settings=change_settings(document, more=1)),
        lambda document: document.update(settings=change_settings(document, hold_s=None)),
        lambda document: document.update(settings=change_settings(document, drain_rate={"a": 1})),
        lambda document: document["session"]["client"].pop("messages"),
        lambda document: document["about"].update(more=1),
        lambda document: document.update(deflate={"bits": 9}),
        lambda document: document.update(close_line=["x", None]),
        lambda document: document.update(opened_at="then"),
        lambda document: document.update(session=[]),
    ],
)
def test_a_document_of_another_version_is_refused(
    make: Make, change: Callable[[dict[str, Any]], None]
) -> None:
    pair = make()
    document = json.loads(encode(pair.connection) or b"")
    change(document)
    client, producer = pair.sockets[0].dup(), pair.sockets[2].dup()
    pair.sockets += (client, producer)
    with pytest.raises(NotPortable):
        restore(decode(json.dumps(document).encode()), client, producer, Lines(), None)
    assert -1 not in (client.fileno(), producer.fileno()), "they are the caller's"


def change_settings(document: dict[str, Any], **changes: Any) -> str:
    settings = {**json.loads(document["settings"]), **changes}
    if settings["hold_s"] is None:
        del settings["hold_s"]
    return json.dumps(settings)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"1", b"[" * 100_000])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(NotPortable):
        decode(data)


def test_connections_with_the_same_settings_have_one_object(make: Make) -> None:
    pair = make(None, {"max_message_bytes": 4711})
    assert pair.moved().settings is pair.moved().settings


def test_a_raw_one_moves_unless_a_part_of_a_line_waits(make: Make) -> None:
    pair = make(None, {"wire": "raw", "raw_delimiter": "newline"})
    moved = pair.moved()
    assert isinstance(moved.session, RawSession)
    moved.session.receive_producer(b"a line\n")
    assert moved.session.to_client == [b"\x81\x06a line"]
    pair.connection.session.receive_producer(b"half a line")
    assert encode(pair.connection) is None


def test_new_state_is_noticed() -> None:
    """New state of these must be added to ``portable``, then here."""
    kinds = (
        *(ClientReader, ProducerReader, RawReader, RawSession),
        *(FrameWalker, TunnelSession, OpaqueSession),
        *(SessionData, Session, Timeouts, Inflater, Connection, Leg, SendQueue),
    )
    assert {kind.__name__: len(slots_of(kind)) for kind in kinds} == {
        "ClientReader": 24,
        "ProducerReader": 27,
        "RawReader": 1,
        "RawSession": 2,
        "FrameWalker": 14,
        "TunnelSession": 22,
        "OpaqueSession": 0,
        "SessionData": 25,
        "Session": 0,
        "Timeouts": 17,
        "Inflater": 6,
        "Connection": 27,
        "Leg": 3,
        "SendQueue": 3,
    }
    assert len(dataclasses.fields(ConnectionInfo)) == 7
    assert len(dataclasses.fields(Agreement)) == 4


def squeeze(deflater: Any, text: bytes) -> bytes:
    return bytes((deflater.compress(text) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4])


def inflate(inflater: Inflater, data: bytes) -> bytes:
    inflater.feed(data)
    out = b""
    while piece := inflater.read(1000):
        out += piece
    inflater.end_message()
    return out


@given(
    bits=st.integers(9, 15),
    before=st.lists(st.binary(max_size=20_000), max_size=6),
    after=st.binary(max_size=2000),
)
def test_an_inflater_goes_on_with_the_window(bits: int, before: list[bytes], after: bytes) -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -bits)
    inflater = Inflater(bits)
    for text in before:
        assert inflate(inflater, squeeze(deflater, text)) == text
    history = b"".join(before)
    window = inflater.window()
    assert window == history[-(1 << bits) :]
    assert inflater.window() == window, "it was only looked at"
    successor = Inflater(bits, window)
    assert successor.window() == window
    # What refers to the whole of it, from its beginning to its end.
    for text in (after, history[-(1 << bits) :], after):
        data = squeeze(deflater, text)
        assert inflate(inflater, data) == text
        assert inflate(successor, data) == text
    assert successor.window() == inflater.window()


@pytest.mark.parametrize(
    "size", [1, 2, 3, 4, 5, 257, 258, 259, 511, 512, 4096, 32767, 32768, 99999]
)
def test_the_window_has_every_length(size: int) -> None:
    text = b"".join(number.to_bytes(3, "big") for number in range(size))[:size]
    inflater = Inflater(15)
    assert inflate(inflater, squeeze(zlib.compressobj(1, zlib.DEFLATED, -15), text)) == text
    assert inflater.window() == text[-32768:]


def test_a_stream_that_ended_leaves_no_window() -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    final = deflater.compress(b"the last of its stream") + deflater.flush(zlib.Z_FINISH)
    inflater = Inflater(15)
    assert inflate(inflater, final + b"\x00") == b"the last of its stream"
    assert inflater.window() == b""


def test_a_compressing_session_continues_both_ways(make: Make) -> None:
    pair = make(Agreement(9, 9))
    deflater, inflater = zlib.compressobj(9, zlib.DEFLATED, -9), zlib.decompressobj(-9)
    text = b"a text that both sides refer to, again and again " * 10
    session = session_of(pair.connection)

    def exchange(session: Session) -> int:
        data = squeeze(deflater, text)
        session.receive_client(masked(0xC1, data), NOW)
        ((_, _, start),) = [wire.decode_header(session.to_producer[0], 0) or (0, 0, 0)]
        assert session.to_producer[0][start:] == text
        session.receive_producer(wire.encode_frame(wire.TEXT, text))
        frame = b"".join(session.to_client)
        header = wire.decode_header(frame, 0)
        assert header
        assert header[0] == 0xC1
        assert inflater.decompress(frame[header[2] :] + b"\0\0\xff\xff") == text
        session.to_client.clear()
        session.to_producer.clear()
        return len(data)

    first = exchange(session)
    moved = session_of(pair.moved())
    assert exchange(moved) < first / 2
    exchange(moved)


MESSAGES = st.lists(
    st.tuples(st.sampled_from([0x81, 0x82, 0x89, 0x8A]), st.text(max_size=100)), max_size=8
)


@given(messages=MESSAGES, cut=st.integers(0, 8), is_compressed=st.booleans())
def test_a_session_that_moves_says_what_one_that_stays_says(
    messages: list[tuple[int, str]], cut: int, is_compressed: bool
) -> None:
    """At any message the state may move; both sides see the same bytes."""
    agreement = Agreement(10, 10) if is_compressed else None
    pair = Pair(Settings(message_rate=Rate(5, 1.0), deflate_min_size_bytes=10_000), agreement)
    staying = Session(pair.connection.settings, agreement)
    moving = session_of(pair.connection)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -10)
    for session in (staying, moving):
        session.open(OPEN)
        session.to_producer.clear()
    try:
        for number, (first, text) in enumerate(messages):
            data = text.encode()[:100] if first >= 0x88 else text.encode()
            if is_compressed and first < 0x88:
                frame = masked(first | 0x40, squeeze(deflater, data))
            else:
                frame = masked(first, data)
            if number == cut and encode(pair.connection) is not None:
                moving = session_of(pair.moved())
            said = []
            for session in (staying, moving):
                session.receive_client(frame, NOW + number / 10)
                session.receive_producer(wire.encode_frame(wire.BINARY, data))
                said.append((b"".join(session.to_producer), b"".join(session.to_client)))
                session.to_producer.clear()
                session.to_client.clear()
            assert said[0] == said[1]
        assert staying.traffic() == moving.traffic()
        assert staying.close_code == moving.close_code
    finally:
        pair.close()
