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
from apachews_handler.settings import Rate, Settings

from ..support.frames import masked

OPEN = wire.Open(id="1", uri="/")
TEXT = wire.encode_frame(wire.TEXT, b"hi")


class Ends:
    """A session and what its two sides received."""

    def __init__(self, limit: int = 1000, **changes: Any) -> None:
        self.session = Session(Settings(max_message=limit, **changes))
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

    def from_client(self, data: bytes) -> Ends:
        self.session.receive_client(data)
        self.drain()
        return self

    def from_producer(self, data: bytes) -> Ends:
        self.session.receive_producer(data)
        self.drain()
        return self

    def next_producer(self, unsent: bytes = b"", sent: int = 0) -> Ends:
        """Have the producer die and another one come; ``producer`` is the new one's."""
        self.session.receive_producer_eof(unsent, sent)
        assert self.session.producer_state is ProducerState.DETACHED
        return self.resume()

    def resume(self) -> Ends:
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
    ends = Ends().from_client(masked(0x81, b"a")).from_producer(TEXT)
    assert ends.producer == ["a"]
    assert ends.client == TEXT
    assert ends.session.client_state is ClientState.OPEN


def test_a_ping_is_answered_and_not_passed_on() -> None:
    ends = Ends().from_client(masked(0x89, b"p"))
    assert ends.client == wire.encode_frame(wire.PONG, b"p")
    assert ends.producer == []


def test_every_ping_is_answered_while_the_client_reads() -> None:
    ends = Ends().from_client(b"".join(masked(0x89, bytes((i,))) for i in range(10)))
    assert ends.client == b"".join(wire.encode_frame(wire.PONG, bytes((i,))) for i in range(10))


def test_only_the_last_ping_is_answered_while_the_client_does_not_read() -> None:
    ends = Ends()
    ends.session.set_congested(True)
    ends.from_client(masked(0x89, b"a") + masked(0x89, b"b"))
    assert ends.client == b""
    ends.session.set_congested(False)
    ends.drain()
    assert ends.client == wire.encode_frame(wire.PONG, b"b")


def test_client_closes() -> None:
    ends = Ends().from_client(masked(0x81, b"a") + masked(0x88, b"\x0f\xa0bye"))
    assert ends.producer == ["a", wire.Close(4000, "bye")]
    assert ends.client == close(4000, "bye")  # both come back (RFC 6455 5.5.1)
    assert ends.session.client_state is ClientState.CLOSED
    assert ends.session.client_finished
    assert ends.session.producer_finished
    assert ends.why == (CloseCause.CLIENT_CLOSED, 4000)


def test_client_closes_without_a_code() -> None:
    ends = Ends().from_client(masked(0x88))
    assert ends.producer == [wire.Close(1005, "")]
    assert ends.client == b"\x88\x00"


def test_client_violates() -> None:
    ends = Ends().from_client(masked(0x81, b"\xff"))
    assert ends.producer == [wire.Close(1007, "text message is not UTF-8")]
    assert ends.client == close(1007, "text message is not UTF-8")
    assert ends.session.client_state is ClientState.CLOSED
    assert ends.session.client_finished
    assert ends.why == (CloseCause.INVALID_DATA, 1007)
    assert "UTF-8" in ends.session.close_reason


def test_client_breaks_off() -> None:
    ends = Ends()
    ends.session.receive_client_eof()
    ends.drain()
    assert (ends.producer, ends.client) == ([], b"")
    assert ends.session.client_state is ClientState.GONE
    assert ends.session.client_finished
    assert ends.session.producer_finished
    assert ends.why == (CloseCause.CLIENT_LEFT, 1006)


def test_producer_closes_and_gets_the_answer() -> None:
    ends = Ends().from_producer(TEXT + close(3001, "x") + TEXT)
    assert ends.client == TEXT + close(3001, "x")
    assert (ends.session.client_state, ends.session.client_finished) == (ClientState.CLOSING, False)
    ends.from_client(masked(0x81, b"crossing") + masked(0x88, b"\x0b\xb9"))
    assert ends.producer == [wire.Close(3001, "")]
    assert ends.client == TEXT + close(3001, "x")
    assert (ends.session.client_state, ends.session.client_finished) == (ClientState.CLOSED, True)
    assert ends.session.producer_finished
    assert ends.why == (CloseCause.PRODUCER_CLOSED, 3001)


def test_producer_dies_between_frames() -> None:
    ends = Ends(hold=0).from_producer(TEXT)
    ends.session.receive_producer_eof()
    ends.drain()
    assert ends.client == TEXT + close(1012, "the producer is gone")
    assert ends.session.client_state is ClientState.CLOSING
    ends.from_client(masked(0x88, b"\x03\xf4"))
    assert ends.session.client_finished
    assert ends.session.producer_finished


def test_producer_dies_inside_a_frame() -> None:
    ends = Ends(max_buffer=3).from_producer(TEXT[:3])
    ends.session.receive_producer_eof()
    ends.drain()
    assert ends.client == TEXT[:3]
    assert ends.session.client_state is ClientState.GONE
    assert ends.session.client_finished
    assert ends.why == (CloseCause.PRODUCER_CUT_OFF, 1006)


def test_producer_violates() -> None:
    ends = Ends().from_producer(TEXT + b"\xc1\x00")
    assert ends.client == TEXT + close(1011)
    assert ends.producer == [wire.Close(1002, "")]
    assert ends.session.client_state is ClientState.CLOSING
    assert ends.why == (CloseCause.PRODUCER_ERROR, 1011)
    assert "reserved bit" in ends.session.close_reason


def test_bridge_closes() -> None:
    ends = Ends()
    ends.session.close(CloseCause.GOING_AWAY)
    ends.session.close(CloseCause.TOO_SLOW)
    ends.drain()
    goodbye = CloseCause.GOING_AWAY.reason
    assert ends.client == close(1001, goodbye)
    assert ends.producer == [wire.Close(1001, goodbye)]
    ends.from_producer(TEXT).from_client(masked(0x81, b"late"))
    assert ends.client == close(1001, goodbye)
    ends.from_client(masked(0x88, b"\x03\xe9"))
    assert ends.session.client_finished
    assert ends.session.producer_finished
    assert ends.why == (CloseCause.GOING_AWAY, 1001)


@pytest.mark.parametrize("how", ["close", "violation", "bridge"])
def test_a_close_waits_for_the_producers_frame(how: str) -> None:
    ends = Ends(max_buffer=3).from_producer(TEXT[:2])
    if how == "close":
        ends.from_client(masked(0x88, b"\x03\xe8"))
    elif how == "violation":
        ends.from_client(b"\x81\x00")
    else:
        ends.session.close(CloseCause.GOING_AWAY)
        ends.drain()
    assert ends.client == TEXT[:2]
    assert not ends.session.client_finished
    assert not ends.session.producer_finished  # the rest is still wanted of it
    ends.from_producer(TEXT[2:] + TEXT)
    assert ends.client[: len(TEXT) + 1] == TEXT + b"\x88"
    assert ends.client.count(TEXT) == 1
    assert ends.session.client_finished == (how != "bridge")


def test_ends_of_file_in_any_order_finish_both() -> None:
    for first, second in (("client", "producer"), ("producer", "client")):
        ends = Ends(hold=0)
        for side in (first, second):
            getattr(ends.session, f"receive_{side}_eof")()
        assert ends.session.client_finished
        assert ends.session.producer_finished


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
    ends = Ends(max_buffer=3)
    assert ends.session.ping()
    ends.drain()
    assert ends.client == wire.encode_frame(wire.PING, KEEPALIVE)
    ends.from_client(masked(0x8A, KEEPALIVE))
    assert ends.producer == []
    ends.from_producer(TEXT[:2])
    assert not ends.session.ping()


def test_round_trips_are_measured_where_one_ping_is_under_way() -> None:
    session = Session(Settings())
    session.round_trips = RoundTrips()
    pong = masked(0x8A, KEEPALIVE)
    session.receive_client(pong, now=100.0)  # to none of ours
    assert session.round_trip_s is None
    session.ping(100.0)
    session.receive_client(pong, now=100.5)
    assert session.round_trip_s == 0.5
    # Of two nobody can say which one is answered.
    session.ping(120.0)
    session.ping(140.0)
    session.receive_client(pong * 2, now=141.0)
    assert session.round_trip_s == 0.5
    session.ping(160.0)
    session.receive_client(pong, now=160.25)
    assert session.round_trip_s == 0.25
    assert (session.round_trips.count, session.round_trips.sum_s) == (2, 0.75)


def test_a_fault_of_ours_is_an_end_as_well() -> None:
    ends = Ends()
    ends.session.fail()
    assert ends.why == (CloseCause.FAILED, 1006)
    assert ends.session.producer_finished


def test_the_counts_of_the_log() -> None:
    ends = Ends().from_client(masked(0x81, b"abc")).from_producer(TEXT * 2)
    assert ends.session.counts() == "messages_in=1 bytes_in=3 messages_out=2 bytes_out=4"


RESUMED = dataclasses.replace(OPEN, resumed=True)


def test_a_client_is_held_and_resumed_with_the_same_id() -> None:
    ends = Ends().from_client(masked(0x81, b"read")).from_producer(TEXT + TEXT[:3])
    ends.session.receive_producer_eof()
    assert (ends.session.client_state, ends.session.producer_state) == (
        ClientState.OPEN,
        ProducerState.DETACHED,
    )
    ends.from_client(masked(0x81, b"one") + masked(0x89, b"p") + masked(0x8A, b"old"))
    ends.from_client(masked(0x01, b"t"))
    assert ends.producer == ["read"]
    assert ends.session.backlog_bytes == len(b"..one..t")
    ends.resume().from_client(masked(0x80, b"wo")).from_producer(TEXT)
    assert ends.producer == [RESUMED, "one", "two"]
    # Nothing of the frame in which the first one died.
    assert ends.client == TEXT + wire.encode_frame(wire.PONG, b"p") + TEXT
    assert ends.session.backlog_bytes == 0


def test_what_was_not_sent_goes_to_the_next_producer_and_a_half_message_to_nobody() -> None:
    frames = wire.encode_frame(wire.TEXT, b"aa") + wire.encode_frame(wire.TEXT, b"bb")
    assert Ends().next_producer(frames, 4).producer == [RESUMED, "bb"]
    assert Ends().next_producer(frames, 3).producer == [RESUMED, "bb"]
    assert Ends().next_producer(frames, 5).producer == [RESUMED]
    ends = Ends().from_client(masked(0x01, b"half"))
    ends.next_producer().from_client(masked(0x00, b"lost") + masked(0x80, b"lost"))
    ends.from_client(masked(0x81, b"next"))
    assert ends.producer == [RESUMED, "next"]


def test_the_producer_is_not_told_of_an_answer_it_need_not_give_again() -> None:
    session = Session(Settings())
    session.open(dataclasses.replace(OPEN, answer_required=True), is_told=True)
    assert session.to_producer == []
    session.receive_producer_eof()
    session.resume()
    assert MessageReader().receive(session.to_producer[0]) == [RESUMED]


def test_nobody_comes_in_time() -> None:
    ends = Ends()
    ends.session.receive_producer_eof()
    ends.from_client(masked(0x81, b"waits"))
    ends.session.expire_hold()
    ends.drain()
    assert ends.client == close(1012, "the producer is gone")
    ends.from_client(masked(0x88, b"\x03\xf4"))
    assert ends.session.client_finished
    assert ends.session.producer_finished
    assert ends.why == (CloseCause.PRODUCER_LEFT, 1012)


@pytest.mark.parametrize("data", [wire.encode_frame(wire.TEXT, b"a", fin=False), TEXT[:3]])
def test_inside_a_message_nobody_can_go_on(data: bytes) -> None:
    ends = Ends(max_buffer=3).from_producer(data)
    ends.session.receive_producer_eof()
    assert ends.session.producer_state is ProducerState.DONE
    assert ends.session.client_state in (ClientState.CLOSING, ClientState.GONE)


@pytest.mark.parametrize("goes", ["close", "eof", "bridge"])
@pytest.mark.parametrize("waits", [True, False])
def test_a_held_client_that_goes_is_outlived_by_its_messages(goes: str, waits: bool) -> None:
    ends = Ends()
    ends.session.receive_producer_eof()
    if waits:
        ends.from_client(masked(0x81, b"last words"))
    if goes == "close":
        ends.from_client(masked(0x88, b"\x03\xe8"))
        assert ends.session.client_finished
    elif goes == "eof":
        ends.session.receive_client_eof()
    else:
        ends.session.close(CloseCause.IDLE)
        ends.from_client(masked(0x88, b"\x03\xe9"))
    assert ends.session.producer_state is (ProducerState.DETACHED if waits else ProducerState.DONE)
    if waits:
        ends.resume()
        expected: list[Item] = [RESUMED, "last words"]
        if goes != "eof":
            code, reason = (1000, "") if goes == "close" else (1001, "idle")
            expected.append(wire.Close(code, reason))
        assert ends.producer == expected
    assert ends.session.producer_finished


MOVE = wire.encode_frame(wire.MOVE, b"")


def test_a_producer_that_moves_gets_what_came_before_and_the_next_one_the_rest() -> None:
    ends = Ends().from_client(masked(0x81, b"one") + masked(0x01, b"tw"))
    ends.from_producer(MOVE)
    assert ends.producer == ["one"]
    ends.from_client(masked(0x89, b"") + masked(0x80, b"o") + masked(0x81, b"three"))
    ends.from_client(masked(0x81, b"four"))
    assert ends.producer == ["one", "two", Moved()]
    ends.from_producer(TEXT)  # its answer to what it got
    ends.next_producer()
    assert ends.producer == [RESUMED, "three", "four"]
    assert ends.client == wire.encode_frame(wire.PONG, b"") + TEXT


def test_a_move_is_answered_at_once_between_messages() -> None:
    ends = Ends().from_producer(MOVE + TEXT + MOVE)
    assert ends.producer == [Moved()]
    assert ends.client == TEXT
    # A second producer may move as well.
    ends.next_producer().from_producer(MOVE)
    assert ends.producer == [RESUMED, Moved()]


def test_a_client_that_closes_meanwhile() -> None:
    ends = Ends().from_client(masked(0x01, b"ha")).from_producer(MOVE)
    ends.from_client(masked(0x88, b"\x03\xe8"))
    assert ends.producer == [wire.Close(1000, "")]
    moved = Ends().from_producer(MOVE).from_client(masked(0x88, b"\x03\xe8"))
    assert moved.producer == [Moved()]
    for session in (ends.session, moved.session):
        assert session.client_finished
        assert session.producer_finished


def test_what_the_leaving_producer_was_not_sent_comes_first_at_the_next() -> None:
    ends = Ends().from_producer(MOVE).from_client(masked(0x81, b"two"))
    ends.next_producer(wire.encode_frame(wire.TEXT, b"one") + MOVE)
    assert ends.producer == [RESUMED, "one", "two"]


def test_a_move_is_answered_while_the_rest_of_a_lost_message_comes() -> None:
    ends = Ends().from_client(masked(0x01, b"half"))
    ends.next_producer().from_producer(MOVE)
    assert ends.producer == [RESUMED, Moved()]
    ends.from_client(masked(0x80, b"lost") + masked(0x81, b"next")).next_producer()
    assert ends.producer == [RESUMED, "next"]


@pytest.mark.parametrize("sent", [0, 3])
def test_what_a_producer_was_not_sent_before_it_moved_and_died_waits(sent: int) -> None:
    """It is slow, asks to move, and takes nothing more."""
    ends = Ends().from_producer(MOVE)
    unsent = wire.encode_frame(wire.TEXT, b"begun") + wire.encode_frame(wire.TEXT, b"unsent")
    ends.session.receive_producer_write_error(unsent + MOVE, sent)
    ends.from_client(masked(0x81, b"later"))
    ends.next_producer()
    first = [] if sent else ["begun"]
    assert ends.producer == [RESUMED, *first, "unsent", "later"]


@pytest.mark.parametrize("begun", [TEXT[:3], wire.encode_frame(wire.TEXT, b"a", fin=False)])
def test_nobody_goes_on_with_half_a_message_whatever_waits(begun: bytes) -> None:
    ends = Ends(max_buffer=3).from_producer(begun)
    ends.session.receive_producer_write_error(wire.encode_frame(wire.TEXT, b"unsent"), 0)
    ends.session.receive_producer_eof()
    ends.drain()
    told = ends.client
    assert ends.session.client_state in (ClientState.CLOSING, ClientState.GONE)
    assert ends.session.producer_state is ProducerState.DETACHED
    ends.resume().from_producer(TEXT)
    assert ends.producer == [RESUMED, "unsent"]
    assert ends.client == told, "the next one has no say"
    assert ends.session.producer_finished


def test_many_small_messages_take_the_memory_of_their_bytes() -> None:
    ends = Ends()
    ends.session.receive_producer_eof()
    tracemalloc.start()
    for _ in range(1000):
        ends.session.receive_client(masked(0x81, b"") * 30)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ends.session.backlog_bytes == 60_000
    assert used < 2 * 60_000


def test_a_producer_that_closes_after_all_means_it() -> None:
    ends = Ends().from_producer(MOVE).from_client(masked(0x81, b"for the next one"))
    ends.from_producer(close(4000))
    assert ends.client == close(4000)
    ends.from_client(masked(0x88, b"\x0f\xa0"))
    assert ends.session.producer_finished
    ends.session.receive_producer_eof()
    assert ends.session.producer_state is ProducerState.DONE


def test_a_move_inside_a_message_is_a_violation() -> None:
    ends = Ends().from_producer(wire.encode_frame(wire.TEXT, b"a", fin=False) + MOVE)
    assert ends.why == (CloseCause.PRODUCER_ERROR, 1011)


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=20) | st.none()), max_size=20))
def test_arbitrary_bytes_and_ends_never_raise(steps: list[tuple[bool, bytes | None]]) -> None:
    ends = Ends(limit=50)
    for is_client, data in steps:
        if data is None:
            if is_client:
                ends.session.receive_client_eof()
            elif ends.session.producer_state is ProducerState.DETACHED:
                ends.resume()
            else:
                ends.session.receive_producer_eof()
            ends.drain()
        elif is_client:
            ends.from_client(data)
        else:
            ends.from_producer(data)
    # The client got whole frames, but for the last, and nothing after a CLOSE.
    position = 0
    while header := wire.decode_header(ends.client, position):
        first, length, payload_at = header
        assert not first & wire.RSV
        position = payload_at + length
        if first == wire.FIN | wire.CLOSE:
            assert position == len(ends.client)
    assert position >= len(ends.client)
