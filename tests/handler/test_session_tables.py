"""apachews_handler.protocol.states: every row and cell of its two tables is what a session does.

The tables are parsed from the module's docstring.  A row without an event here, an effect
without a check, or an anchor in ``session.py`` without a row is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apachews import wire
from apachews_handler.protocol import states
from apachews_handler.protocol.close_causes import CloseCause
from apachews_handler.protocol.session import Session
from apachews_handler.protocol.states import ClientState, ProducerState
from apachews_handler.settings import Settings

from ..support.frames import masked

BUFFER = 64
MESSAGE = wire.encode_frame(wire.TEXT, b"hi")
FRAGMENT = wire.encode_frame(wire.TEXT, b"hi", fin=False)
HALF_FRAME = wire.encode_frame(wire.BINARY, b"x" * 2 * BUFFER)[: BUFFER + 10]
MOVE = wire.encode_frame(wire.MOVE, b"")
CLOSE = wire.encode_frame(wire.CLOSE, wire.encode_close(1000))
RESERVED_BIT = b"\xc1\x00"
CLIENT_CLOSE = masked(0x88, b"\x03\xe8")


def tables() -> Iterator[list[list[str]]]:
    """Yield the cells of each table of the docstring, its header first."""
    lines = [line.strip() for line in (states.__doc__ or "").splitlines()]
    rulers = [index for index, line in enumerate(lines) if re.fullmatch(r"=+( +=+)+", line)]
    for top, middle, bottom in zip(*[iter(rulers)] * 3, strict=True):
        columns = [match.span() for match in re.finditer("=+", lines[top])]
        yield [
            [line[start:end].strip() for start, end in columns]
            for line in (lines[top + 1 : middle] + lines[middle + 1 : bottom])
        ]


(CLIENT_STATES, *CLIENT_ROWS), (_, *PRODUCER_ROWS) = tables()
ClientEvent = Callable[[Session], None]


def new_session(hold: float = 30.0) -> Session:
    session = Session(Settings(max_buffer_bytes=BUFFER, hold_s=hold))
    session.open(wire.Open(id="1", uri="/"))
    session.to_producer.clear()
    return session


def empty(session: Session) -> None:
    session.to_client.clear()
    session.to_producer.clear()


def opcodes(chunks: list[bytes]) -> list[int]:
    """Return the opcodes of whole frames."""
    data, found, position = b"".join(chunks), [], 0
    while header := wire.decode_header(data, position):
        first, length, start = header
        found.append(first & wire.OPCODE)
        position = start + length
    assert position == len(data), "only whole frames"
    return found


# Table 1.  Each event: what the producer sent before, and the event itself.
CLIENT_EVENTS: dict[str, tuple[bytes, ClientEvent]] = {
    "client's CLOSE": (b"", lambda session: session.receive_client(CLIENT_CLOSE)),
    "client's violation": (b"", lambda session: session.receive_client(b"\x81\x00")),
    "client's EOF": (b"", lambda session: session.receive_client_eof()),
    "producer's CLOSE": (b"", lambda session: session.receive_producer(CLOSE)),
    "producer's violation": (b"", lambda session: session.receive_producer(RESERVED_BIT)),
    "producer's EOF": (b"", lambda session: session.receive_producer_eof()),
    "EOF without hold": (b"", lambda session: session.receive_producer_eof()),
    "EOF inside a message": (FRAGMENT, lambda session: session.receive_producer_eof()),
    "EOF inside a frame": (HALF_FRAME, lambda session: session.receive_producer_eof()),
    "close()": (b"", lambda session: session.close(CloseCause.IDLE)),
    "fail()": (b"", lambda session: session.fail()),
}


def session_in(state: ClientState, event: str) -> Session:
    """Return a session in a client state, before an event."""
    session = new_session(hold=0 if event == "EOF without hold" else 30.0)
    session.receive_producer(CLIENT_EVENTS[event][0])
    if state is ClientState.CLOSING and event.startswith("client's"):
        session.receive_producer(CLOSE)  # so that the producer awaits the client's CLOSE
    elif state is ClientState.CLOSING:
        session.close(CloseCause.GOING_AWAY)
    elif state is ClientState.CLOSED:
        session.receive_client(CLIENT_CLOSE)
    elif state is ClientState.GONE:
        session.receive_client_eof()
    assert session.client_state is state
    empty(session)
    return session


@pytest.mark.parametrize("state", list(ClientState))
@pytest.mark.parametrize("row", CLIENT_ROWS, ids=lambda row: row[0])
def test_table_1(row: list[str], state: ClientState) -> None:
    event = row[0]
    cells = {**dict(zip(CLIENT_STATES, row, strict=True)), "GONE": "GONE"}
    following, _, sent = cells[state.name].partition("; ")
    session = session_in(state, event)
    CLIENT_EVENTS[event][1](session)
    assert session.client_state is ClientState[following]
    to_client, to_producer = {
        "": ([], []),
        "CLOSE to both": ([wire.CLOSE], [wire.CLOSE]),
        "CLOSE to client": ([wire.CLOSE], []),
        "CLOSE to producer": ([], [wire.CLOSE]),
    }[sent]
    assert opcodes(session.to_client) == to_client
    assert opcodes(session.to_producer) == to_producer


def test_every_state_and_event_of_the_client_is_in_table_1() -> None:
    names = [state.name for state in ClientState if state is not ClientState.GONE]
    assert ["event", *names] == CLIENT_STATES
    assert [row[0] for row in CLIENT_ROWS] == [*CLIENT_EVENTS]


# Table 2.


def begin_message(session: Session) -> None:
    session.receive_client(masked(0x01, b"begun"))
    session.to_producer.clear()


def hand_over(session: Session) -> None:
    begin_message(session)
    session.receive_producer(MOVE)


def detach(session: Session) -> None:
    session.receive_producer_eof()


def deliver_backlog(session: Session) -> None:
    detach(session)
    session.receive_client(masked(0x81, b"last words"))
    session.close(CloseCause.IDLE)  # the client is CLOSING, and not GONE
    session.resume()


ENTER: dict[ProducerState, ClientEvent] = {
    ProducerState.CONNECTED: lambda session: None,
    ProducerState.HANDING_OVER: hand_over,
    ProducerState.AWAITING_EOF: lambda session: session.receive_producer(MOVE),
    ProducerState.DETACHED: detach,
    ProducerState.DELIVERING_BACKLOG: deliver_backlog,
    ProducerState.DONE: lambda session: session.close(CloseCause.IDLE),
}


def fill_backlog(session: Session) -> None:
    session.receive_client(masked(0x81, b"earlier"))
    assert session.backlog_bytes


def leave_backlog(session: Session) -> None:
    fill_backlog(session)
    session.receive_client_eof()


def nothing(session: Session) -> None:
    pass


# Each event: what happens before it, and the event itself.
PRODUCER_EVENTS: dict[str, tuple[ClientEvent, ClientEvent]] = {
    "MOVE": (nothing, lambda session: session.receive_producer(MOVE)),
    "MOVE inside a message": (begin_message, lambda session: session.receive_producer(MOVE)),
    "message": (nothing, lambda session: session.receive_client(masked(0x81, b"hi"))),
    "message ends": (nothing, lambda session: session.receive_client(masked(0x80, b"end"))),
    "write error": (nothing, lambda session: session.receive_producer_write_error(MESSAGE, 0)),
    "EOF": (nothing, lambda session: session.receive_producer_eof(MESSAGE, 0)),
    "EOF, no hold": (nothing, lambda session: session.receive_producer_eof(MESSAGE, 0)),
    "producer's CLOSE": (fill_backlog, lambda session: session.receive_producer(CLOSE)),
    "producer's message": (nothing, lambda session: session.receive_producer(MESSAGE)),
    "client leaves": (nothing, lambda session: session.receive_client_eof()),
    "client leaves, backlog": (fill_backlog, lambda session: session.receive_client_eof()),
    "successor": (fill_backlog, lambda session: session.resume()),
    "successor, client has left": (leave_backlog, lambda session: session.resume()),
    "hold expires": (fill_backlog, lambda session: session.expire_hold()),
}


@pytest.mark.parametrize("row", PRODUCER_ROWS, ids=lambda row: f"{row[0]}, {row[1]}")
def test_table_2(row: list[str]) -> None:
    name, event, following, effect = row
    session = new_session(hold=0 if event == "EOF, no hold" else 30.0)
    ENTER[ProducerState[name]](session)
    prepare, happen = PRODUCER_EVENTS[event]
    prepare(session)
    assert session.producer_state is ProducerState[name]
    empty(session)
    backlog_bytes = session.backlog_bytes
    happen(session)
    assert session.producer_state is ProducerState[following]

    grown = session.backlog_bytes - backlog_bytes
    sent = opcodes(session.to_producer)
    if effect == "MOVE to producer":
        end = [wire.CONTINUATION] if event == "message ends" else []
        assert (sent, grown) == ([*end, wire.MOVE], 0)
    elif effect == "OPEN to producer":
        assert sent == [wire.OPEN, wire.TEXT]
        assert (session.backlog_bytes, grown) == (0, -backlog_bytes)
    elif effect in ("unsent to backlog", "message to backlog"):
        assert (sent, grown) == ([], len(MESSAGE))
    elif effect == "backlog is dropped":
        assert backlog_bytes
        assert (sent, session.backlog_bytes) == ([], 0)
        assert opcodes(session.to_client) == [wire.CLOSE]
    else:
        assert (effect, sent, grown) == ("", [], 0)
        if event != "EOF, no hold":  # table 1 has the CLOSE of this one
            assert session.to_client == []


# Events that are possible only in the states for which table 2 has them.
SPECIAL = {
    *("EOF, no hold", "MOVE inside a message", "message ends", "client leaves, backlog"),
    *("successor", "successor, client has left", "hold expires"),
}
IMPOSSIBLE = {
    ProducerState.HANDING_OVER: {"message"},  # inside another message
    ProducerState.DETACHED: {  # there are only the client's events
        *("MOVE", "write error", "EOF", "producer's message", "producer's CLOSE"),
    },
}
WITHOUT_ROW = [
    (state, event)
    for state in ENTER
    for event in PRODUCER_EVENTS
    if state is not ProducerState.DONE
    and [state.name, event] not in [row[:2] for row in PRODUCER_ROWS]
    and event not in SPECIAL | IMPOSSIBLE.get(state, set())
]


@pytest.mark.parametrize(("state", "event"), WITHOUT_ROW)
def test_events_without_a_row_in_table_2_change_nothing(state: ProducerState, event: str) -> None:
    session = new_session()
    ENTER[state](session)
    PRODUCER_EVENTS[event][1](session)
    assert session.producer_state is state
    assert session.backlog_bytes == 0


@pytest.mark.parametrize(
    "event", [event for event in PRODUCER_EVENTS if not event.startswith("successor")]
)
def test_done_is_final(event: str) -> None:
    session = new_session()
    session.receive_client_eof()
    assert session.producer_state is ProducerState.DONE
    empty(session)
    PRODUCER_EVENTS[event][1](session)
    assert session.producer_state is ProducerState.DONE
    assert (session.to_client, session.to_producer, session.backlog_bytes) == ([], [], 0)


def test_every_state_and_event_of_the_producer_is_in_table_2() -> None:
    pairs = [(row[0], row[1]) for row in PRODUCER_ROWS]
    assert len({*pairs}) == len(pairs)
    assert {row[0] for row in PRODUCER_ROWS} == {
        state.name for state in ProducerState if state is not ProducerState.DONE
    }
    assert {row[1] for row in PRODUCER_ROWS} == {*PRODUCER_EVENTS}


def test_each_row_is_anchored_in_the_code() -> None:
    """A branch of ``session.py`` names its rows in a comment: Table 2, "MOVE"."""
    # (A compiled module's own file is not its source.)
    source = Path(states.__file__).with_name("session.py").read_text()
    comments = " ".join(re.findall(r"^ *# (.*)$", source, re.MULTILINE))
    anchored = {
        (table.lower(), event)
        for table, events in re.findall(r'([Tt]able [12]), ("[^"]+"(?: and "[^"]+")*)', comments)
        for event in re.findall('"([^"]+)"', events)
    }
    rows = {("table 1", row[0]) for row in CLIENT_ROWS}
    rows |= {("table 2", row[1]) for row in PRODUCER_ROWS}
    assert anchored == rows
