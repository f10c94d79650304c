"""apachews_handler.protocol.session: how a connection ends, and how a client is handed over."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import wire
from apachews.monitoring.snapshot import RoundTrips
from apachews.wire.reader import Item, MessageReader, Moved
from apachews_handler.protocol.client_reader import KEEPALIVE
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.protocol.session import Session
from apachews_handler.protocol.states import ClientState, ProducerState
from apachews_handler.setting_values import Rate
from apachews_handler.settings import Settings

from ..support.frames import masked

OPEN = wire.Open(id="1", uri="/")
TEXT = wire.encode_frame(wire.TEXT, b"hi")


class SessionHarness:
    """A session, and what its two sides have received."""

    def __init__(self, limit: int = 1000, **changes: Any) -> None:
        self.session = Session(Settings(max_message_bytes=limit, **changes))
        self.session.open(OPEN)
        self.client = b""
        self.producer: list[Item] = []
        self._reader = MessageReader()
        self.drain()
        assert self.producer == [OPEN]
        self.producer.clear()

    def drain(self) -> None:
        self.client += b"".join(self.session.to_client)
        self.session.to_client.clear()
        self.producer += self._reader.receive(b"".join(self.session.to_producer))
        self.session.to_producer.clear()

    def from_client(self, data: bytes) -> SessionHarness:
        self.session.receive_client(data)
        self.drain()
        return self

    def from_producer(self, data: bytes) -> SessionHarness:
        self.session.receive_producer(data)
        self.drain()
        return self

    def next_producer(self, unsent: bytes = b"", sent: int = 0) -> SessionHarness:
        """Replace the producer; ``producer`` then has what the new one receives."""
        self.session.receive_producer_eof(unsent, sent)
        assert self.session.producer_state is ProducerState.DETACHED
        return self.resume()

    def resume(self) -> SessionHarness:
        self.session.resume()
        self._reader = MessageReader()
        self.producer.clear()
        self.drain()
        return self

    @property
    def why(self) -> tuple[CloseCause | None, int]:
        return self.session.close_cause, self.session.close_code


def close(code: int, reason: str = "") -> bytes:
    return wire.encode_frame(wire.CLOSE, wire.encode_close(code, reason))


def test_messages_pass_both_ways() -> None:
    harness = SessionHarness().from_client(masked(0x81, b"a")).from_producer(TEXT)
    assert harness.producer == ["a"]
    assert harness.client == TEXT
    assert harness.session.client_state is ClientState.OPEN


def test_a_ping_is_answered_and_not_forwarded() -> None:
    harness = SessionHarness().from_client(masked(0x89, b"p"))
    assert harness.client == wire.encode_frame(wire.PONG, b"p")
    assert harness.producer == []


def test_every_ping_is_answered_while_the_client_reads() -> None:
    harness = SessionHarness().from_client(b"".join(masked(0x89, bytes((i,))) for i in range(10)))
    assert harness.client == b"".join(wire.encode_frame(wire.PONG, bytes((i,))) for i in range(10))


def test_only_the_last_ping_is_answered_while_the_client_does_not_read() -> None:
    harness = SessionHarness()
    harness.session.set_congested(True)
    harness.from_client(masked(0x89, b"a") + masked(0x89, b"b"))
    assert harness.client == b""
    harness.session.set_congested(False)
    harness.drain()
    assert harness.client == wire.encode_frame(wire.PONG, b"b")


def test_client_closes() -> None:
    harness = SessionHarness().from_client(masked(0x81, b"a") + masked(0x88, b"\x0f\xa0bye"))
    assert harness.producer == ["a", wire.Close(4000, "bye")]
    assert harness.client == close(4000, "bye")  # the answer repeats both (RFC 6455 5.5.1)
    assert harness.session.client_state is ClientState.CLOSED
    assert harness.session.client_finished
    assert harness.session.producer_finished
    assert harness.why == (CloseCause.CLIENT_CLOSED, 4000)


def test_client_closes_without_a_code() -> None:
    harness = SessionHarness().from_client(masked(0x88))
    assert harness.producer == [wire.Close(1005, "")]
    assert harness.client == b"\x88\x00"


def test_client_violates() -> None:
    harness = SessionHarness().from_client(masked(0x81, b"\xff"))
    assert harness.producer == [wire.Close(1007, "text message is not UTF-8")]
    assert harness.client == close(1007, "text message is not UTF-8")
    assert harness.session.client_state is ClientState.CLOSED
    assert harness.session.client_finished
    assert harness.why == (CloseCause.INVALID_DATA, 1007)
    assert "UTF-8" in harness.session.close_reason


def test_client_disconnects() -> None:
    harness = SessionHarness()
    harness.session.receive_client_eof()
    harness.drain()
    assert (harness.producer, harness.client) == ([], b"")
    assert harness.session.client_state is ClientState.GONE
    assert harness.session.client_finished
    assert harness.session.producer_finished
    assert harness.why == (CloseCause.CLIENT_LEFT, 1006)


def test_producer_closes_and_gets_the_answer() -> None:
    harness = SessionHarness().from_producer(TEXT + close(3001, "x") + TEXT)
    assert harness.client == TEXT + close(3001, "x")
    assert (harness.session.client_state, harness.session.client_finished) == (
        ClientState.CLOSING,
        False,
    )
    harness.from_client(masked(0x81, b"crossing") + masked(0x88, b"\x0b\xb9"))
    assert harness.producer == [wire.Close(3001, "")]
    assert harness.client == TEXT + close(3001, "x")
    assert (harness.session.client_state, harness.session.client_finished) == (
        ClientState.CLOSED,
        True,
    )
    assert harness.session.producer_finished
    assert harness.why == (CloseCause.PRODUCER_CLOSED, 3001)


def test_producer_dies_between_frames() -> None:
    harness = SessionHarness(hold_s=0).from_producer(TEXT)
    harness.session.receive_producer_eof()
    harness.drain()
    assert harness.client == TEXT + close(1012, "the producer is gone")
    assert harness.session.client_state is ClientState.CLOSING
    assert harness.why == (CloseCause.PRODUCER_LEFT, 1012)
    harness.from_client(masked(0x88, b"\x03\xf4"))
    assert harness.session.client_finished
    assert harness.session.producer_finished


@pytest.mark.parametrize("hold_s", [0, 30])
def test_producer_dies_inside_a_message(hold_s: float) -> None:
    fragment = wire.encode_frame(wire.TEXT, b"hi", fin=False)
    harness = SessionHarness(hold_s=hold_s).from_producer(fragment)
    harness.session.receive_producer_eof()
    harness.drain()
    # A hold does not help: the next producer cannot finish this message.
    assert harness.client == fragment + close(1012, "the producer is gone")
    assert harness.session.client_state is ClientState.CLOSING
    assert harness.session.producer_state is ProducerState.DONE
    assert harness.why == (CloseCause.PRODUCER_LEFT, 1012)


def test_producer_dies_inside_a_frame() -> None:
    harness = SessionHarness(max_buffer_bytes=3).from_producer(TEXT[:3])
    harness.session.receive_producer_eof()
    harness.drain()
    assert harness.client == TEXT[:3]
    assert harness.session.client_state is ClientState.GONE
    assert harness.session.client_finished
    assert harness.why == (CloseCause.PRODUCER_CUT_OFF, 1006)


def test_producer_violates() -> None:
    harness = SessionHarness().from_producer(TEXT + b"\xc1\x00")
    assert harness.client == TEXT + close(1011)
    assert harness.producer == [wire.Close(1002, "")]
    assert harness.session.client_state is ClientState.CLOSING
    assert harness.why == (CloseCause.PRODUCER_ERROR, 1011)
    assert "reserved bit" in harness.session.close_reason


def test_bridge_closes() -> None:
    harness = SessionHarness()
    harness.session.close(CloseCause.GOING_AWAY)
    harness.session.close(CloseCause.TOO_SLOW)
    harness.drain()
    reason = CloseCause.GOING_AWAY.reason
    assert harness.client == close(1001, reason)
    assert harness.producer == [wire.Close(1001, reason)]
    harness.from_producer(TEXT).from_client(masked(0x81, b"late"))
    assert harness.client == close(1001, reason)
    harness.from_client(masked(0x88, b"\x03\xe9"))
    assert harness.session.client_finished
    assert harness.session.producer_finished
    assert harness.why == (CloseCause.GOING_AWAY, 1001)


@pytest.mark.parametrize("how", ["close", "violation", "bridge"])
def test_a_close_waits_for_the_producers_frame(how: str) -> None:
    harness = SessionHarness(max_buffer_bytes=3).from_producer(TEXT[:2])
    if how == "close":
        harness.from_client(masked(0x88, b"\x03\xe8"))
    elif how == "violation":
        harness.from_client(b"\x81\x00")
    else:
        harness.session.close(CloseCause.GOING_AWAY)
        harness.drain()
    assert harness.client == TEXT[:2]
    assert not harness.session.client_finished
    assert not harness.session.producer_finished  # the rest of its frame is still to come
    harness.from_producer(TEXT[2:] + TEXT)
    assert harness.client[: len(TEXT) + 1] == TEXT + b"\x88"
    assert harness.client.count(TEXT) == 1
    assert harness.session.client_finished == (how != "bridge")


def test_ends_of_file_in_any_order_finish_both() -> None:
    for first, second in (("client", "producer"), ("producer", "client")):
        harness = SessionHarness(hold_s=0)
        for side in (first, second):
            getattr(harness.session, f"receive_{side}_eof")()
        assert harness.session.client_finished
        assert harness.session.producer_finished


def test_a_rate_is_a_bucket_that_time_refills() -> None:
    session = Session(Settings(message_rate=Rate(3, 0.5)))
    frame = masked(0x81, b"a")
    session.receive_client(frame * 3, now=100.0)
    assert session.client_state is ClientState.OPEN
    session.receive_client(frame * 2, now=104.0)
    assert session.client_state is ClientState.OPEN
    session.receive_client(frame, now=105.0)
    assert (session.close_cause, session.close_code) == (CloseCause.TOO_MANY_MESSAGES, 1008)


def test_a_bucket_does_not_overflow() -> None:
    session = Session(Settings(message_rate=Rate(3, 100.0)))
    session.receive_client(masked(0x81, b"a"), now=100.0)
    session.receive_client(masked(0x81, b"a") * 4, now=1000.0)
    assert session.close_cause is CloseCause.TOO_MANY_MESSAGES


def test_a_ping_of_the_bridges_own() -> None:
    harness = SessionHarness(max_buffer_bytes=3)
    assert harness.session.ping()
    harness.drain()
    assert harness.client == wire.encode_frame(wire.PING, KEEPALIVE)
    harness.from_client(masked(0x8A, KEEPALIVE))
    assert harness.producer == []
    harness.from_producer(TEXT[:2])
    assert not harness.session.ping()


def test_round_trips_are_measured_while_one_ping_is_unanswered() -> None:
    session = Session(Settings())
    session.round_trips = RoundTrips()
    pong = masked(0x8A, KEEPALIVE)
    session.receive_client(pong, now=100.0)  # unsolicited
    assert session.round_trip_s is None
    session.ping(100.0)
    session.receive_client(pong, now=100.5)
    assert session.round_trip_s == 0.5
    # With two unanswered PINGs, a PONG may belong to either.
    session.ping(120.0)
    session.ping(140.0)
    session.receive_client(pong * 2, now=141.0)
    assert session.round_trip_s == 0.5
    session.ping(160.0)
    session.receive_client(pong, now=160.25)
    assert session.round_trip_s == 0.25
    assert (session.round_trips.count, session.round_trips.sum_s) == (2, 0.75)


def test_an_error_of_the_bridge_has_a_close_cause() -> None:
    harness = SessionHarness()
    harness.session.fail()
    assert harness.why == (CloseCause.FAILED, 1006)
    assert harness.session.producer_finished


def test_counts_for_the_log() -> None:
    harness = SessionHarness().from_client(masked(0x81, b"abc")).from_producer(TEXT * 2)
    assert harness.session.counts() == "messages_in=1 bytes_in=3 messages_out=2 bytes_out=4"


RESUMED = dataclasses.replace(OPEN, resumed=True)


def test_a_client_is_held_and_resumed_with_the_same_id() -> None:
    harness = SessionHarness().from_client(masked(0x81, b"read")).from_producer(TEXT + TEXT[:3])
    harness.session.receive_producer_eof()
    assert (harness.session.client_state, harness.session.producer_state) == (
        ClientState.OPEN,
        ProducerState.DETACHED,
    )
    harness.from_client(masked(0x81, b"one") + masked(0x89, b"p") + masked(0x8A, b"old"))
    harness.from_client(masked(0x01, b"t"))
    assert harness.producer == ["read"]
    assert harness.session.backlog_bytes == len(b"..one..t")
    harness.resume().from_client(masked(0x80, b"wo")).from_producer(TEXT)
    assert harness.producer == [RESUMED, "one", "two"]
    # Without the partial frame of the first producer.
    assert harness.client == TEXT + wire.encode_frame(wire.PONG, b"p") + TEXT
    assert harness.session.backlog_bytes == 0


def test_unsent_messages_go_to_the_next_producer_and_partial_ones_are_dropped() -> None:
    frames = wire.encode_frame(wire.TEXT, b"aa") + wire.encode_frame(wire.TEXT, b"bb")
    assert SessionHarness().next_producer(frames, 4).producer == [RESUMED, "bb"]
    assert SessionHarness().next_producer(frames, 3).producer == [RESUMED, "bb"]
    assert SessionHarness().next_producer(frames, 5).producer == [RESUMED]
    harness = SessionHarness().from_client(masked(0x01, b"half"))
    harness.next_producer().from_client(masked(0x00, b"lost") + masked(0x80, b"lost"))
    harness.from_client(masked(0x81, b"next"))
    assert harness.producer == [RESUMED, "next"]


def test_the_next_producer_is_not_asked_for_an_answer_again() -> None:
    session = Session(Settings())
    session.open(dataclasses.replace(OPEN, answer_required=True), is_told=True)
    assert session.to_producer == []
    session.receive_producer_eof()
    session.resume()
    assert MessageReader().receive(session.to_producer[0]) == [RESUMED]


def test_the_hold_expires_without_another_producer() -> None:
    harness = SessionHarness()
    harness.session.receive_producer_eof()
    harness.from_client(masked(0x81, b"waits"))
    harness.session.expire_hold()
    harness.drain()
    assert harness.client == close(1012, "the producer is gone")
    harness.from_client(masked(0x88, b"\x03\xf4"))
    assert harness.session.client_finished
    assert harness.session.producer_finished
    assert harness.why == (CloseCause.PRODUCER_LEFT, 1012)


@pytest.mark.parametrize("data", [wire.encode_frame(wire.TEXT, b"a", fin=False), TEXT[:3]])
def test_inside_a_message_a_successor_cannot_take_over(data: bytes) -> None:
    harness = SessionHarness(max_buffer_bytes=3).from_producer(data)
    harness.session.receive_producer_eof()
    assert harness.session.producer_state is ProducerState.DONE
    assert harness.session.client_state in (ClientState.CLOSING, ClientState.GONE)


@pytest.mark.parametrize("goes", ["close", "eof", "bridge"])
@pytest.mark.parametrize("waits", [True, False])
def test_messages_of_a_held_client_that_leaves_are_delivered(goes: str, waits: bool) -> None:
    harness = SessionHarness()
    harness.session.receive_producer_eof()
    if waits:
        harness.from_client(masked(0x81, b"last words"))
    if goes == "close":
        harness.from_client(masked(0x88, b"\x03\xe8"))
        assert harness.session.client_finished
    elif goes == "eof":
        harness.session.receive_client_eof()
    else:
        harness.session.close(CloseCause.IDLE)
        harness.from_client(masked(0x88, b"\x03\xe9"))
    assert harness.session.producer_state is (
        ProducerState.DETACHED if waits else ProducerState.DONE
    )
    if waits:
        harness.resume()
        expected: list[Item] = [RESUMED, "last words"]
        if goes != "eof":
            code, reason = (1000, "") if goes == "close" else (1001, "idle")
            expected.append(wire.Close(code, reason))
        assert harness.producer == expected
    assert harness.session.producer_finished


MOVE = wire.encode_frame(wire.MOVE, b"")


def test_a_producer_that_moves_gets_earlier_messages_and_its_successor_later_ones() -> None:
    harness = SessionHarness().from_client(masked(0x81, b"one") + masked(0x01, b"tw"))
    harness.from_producer(MOVE)
    assert harness.producer == ["one"]
    harness.from_client(masked(0x89, b"") + masked(0x80, b"o") + masked(0x81, b"three"))
    harness.from_client(masked(0x81, b"four"))
    assert harness.producer == ["one", "two", Moved()]
    harness.from_producer(TEXT)  # its answer to the earlier messages
    harness.next_producer()
    assert harness.producer == [RESUMED, "three", "four"]
    assert harness.client == wire.encode_frame(wire.PONG, b"") + TEXT


def test_a_move_is_answered_at_once_between_messages() -> None:
    harness = SessionHarness().from_producer(MOVE + TEXT + MOVE)
    assert harness.producer == [Moved()]
    assert harness.client == TEXT
    # A second producer may send MOVE too.
    harness.next_producer().from_producer(MOVE)
    assert harness.producer == [RESUMED, Moved()]


def test_a_client_that_closes_during_a_move() -> None:
    harness = SessionHarness().from_client(masked(0x01, b"ha")).from_producer(MOVE)
    harness.from_client(masked(0x88, b"\x03\xe8"))
    assert harness.producer == [wire.Close(1000, "")]
    moved = SessionHarness().from_producer(MOVE).from_client(masked(0x88, b"\x03\xe8"))
    assert moved.producer == [Moved()]
    for session in (harness.session, moved.session):
        assert session.client_finished
        assert session.producer_finished


def test_unsent_messages_precede_the_backlog() -> None:
    harness = SessionHarness().from_producer(MOVE).from_client(masked(0x81, b"two"))
    harness.next_producer(wire.encode_frame(wire.TEXT, b"one") + MOVE)
    assert harness.producer == [RESUMED, "one", "two"]


def test_a_move_is_answered_inside_a_discarded_message() -> None:
    harness = SessionHarness().from_client(masked(0x01, b"half"))
    harness.next_producer().from_producer(MOVE)
    assert harness.producer == [RESUMED, Moved()]
    harness.from_client(masked(0x80, b"lost") + masked(0x81, b"next")).next_producer()
    assert harness.producer == [RESUMED, "next"]


@pytest.mark.parametrize("sent", [0, 3])
def test_unsent_messages_of_a_producer_that_moved_and_died_go_to_the_backlog(sent: int) -> None:
    """The producer is slow, sends MOVE, and then its socket fails."""
    harness = SessionHarness().from_producer(MOVE)
    unsent = wire.encode_frame(wire.TEXT, b"begun") + wire.encode_frame(wire.TEXT, b"unsent")
    harness.session.receive_producer_write_error(unsent + MOVE, sent)
    harness.from_client(masked(0x81, b"later"))
    harness.next_producer()
    first = [] if sent else ["begun"]
    assert harness.producer == [RESUMED, *first, "unsent", "later"]


@pytest.mark.parametrize("begun", [TEXT[:3], wire.encode_frame(wire.TEXT, b"a", fin=False)])
def test_a_backlog_does_not_let_a_successor_continue_half_a_message(begun: bytes) -> None:
    harness = SessionHarness(max_buffer_bytes=3).from_producer(begun)
    harness.session.receive_producer_write_error(wire.encode_frame(wire.TEXT, b"unsent"), 0)
    harness.session.receive_producer_eof()
    harness.drain()
    received = harness.client
    assert harness.session.client_state in (ClientState.CLOSING, ClientState.GONE)
    assert harness.session.producer_state is ProducerState.DETACHED
    harness.resume().from_producer(TEXT)
    assert harness.producer == [RESUMED, "unsent"]
    assert harness.client == received, "output of the successor is ignored"
    assert harness.session.producer_finished


def test_many_small_messages_take_the_memory_of_their_bytes() -> None:
    harness = SessionHarness()
    harness.session.receive_producer_eof()
    tracemalloc.start()
    for _ in range(1000):
        harness.session.receive_client(masked(0x81, b"") * 30)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert harness.session.backlog_bytes == 60_000
    assert used < 2 * 60_000


def test_a_close_after_a_move_closes_the_client() -> None:
    harness = SessionHarness().from_producer(MOVE).from_client(masked(0x81, b"for the next one"))
    harness.from_producer(close(4000))
    assert harness.client == close(4000)
    harness.from_client(masked(0x88, b"\x0f\xa0"))
    assert harness.session.producer_finished
    harness.session.receive_producer_eof()
    assert harness.session.producer_state is ProducerState.DONE


def test_a_move_inside_a_message_is_a_violation() -> None:
    harness = SessionHarness().from_producer(wire.encode_frame(wire.TEXT, b"a", fin=False) + MOVE)
    assert harness.why == (CloseCause.PRODUCER_ERROR, 1011)


@pytest.mark.parametrize("hold", [0.0, 30.0])
def test_a_session_that_is_moving_is_not_at_rest(hold: float) -> None:
    harness = SessionHarness(hold_s=hold)
    assert harness.session.export_state() is not None
    harness.from_producer(MOVE)
    assert harness.session.is_moving
    assert harness.session.export_state() is None


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=20) | st.none()), max_size=20))
def test_arbitrary_bytes_and_ends_never_raise(steps: list[tuple[bool, bytes | None]]) -> None:
    harness = SessionHarness(limit=50)
    for is_client, data in steps:
        if data is None:
            if is_client:
                harness.session.receive_client_eof()
            elif harness.session.producer_state is ProducerState.DETACHED:
                harness.resume()
            else:
                harness.session.receive_producer_eof()
            harness.drain()
        elif is_client:
            harness.from_client(data)
        else:
            harness.from_producer(data)
    # Every frame for the client but the last is whole, and nothing follows a CLOSE.
    position = 0
    while header := wire.decode_header(harness.client, position):
        first, length, payload_at = header
        assert not first & wire.RSV
        position = payload_at + length
        if first == wire.FIN | wire.CLOSE:
            assert position == len(harness.client)
    assert position >= len(harness.client)
