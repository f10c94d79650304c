"""apachews.monitoring.snapshot: what is written is read again, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews.exceptions import StatusError
from apachews.monitoring.relays import RelayStatus
from apachews.monitoring.snapshot import (
    CHILD,
    CUSTODIAN,
    ROUND_TRIP_BOUNDS_S,
    ConnectionStatus,
    EndpointStatus,
    ProcessStatus,
    RoundTrips,
    Status,
)

COUNT = st.integers(0, 2**63)
SECONDS = st.floats(0, 1e12)
OF_TYPE = {"str": st.text(), "int": COUNT, "float": SECONDS, "float | None": st.none() | SECONDS}
CONNECTIONS = st.builds(
    ConnectionStatus,
    **{field.name: OF_TYPE[str(field.type)] for field in dataclasses.fields(ConnectionStatus)},
)


def connection(**changes: Any) -> ConnectionStatus:
    made = ConnectionStatus(
        id="6c7e",
        endpoint="/srv/chat.ws",
        path="/chat.ws",
        address="203.0.113.7",
        port=51514,
        user="",
        scheme="wss",
        subprotocol="",
        state="open",
        age_s=1.5,
        messages_in=3,
        bytes_in=30,
        messages_out=4,
        bytes_out=40,
        queued_in=5,
        queued_out=6,
        round_trip_s=0.025,
    )
    return dataclasses.replace(made, **changes)


def process(pid: int = 101, kind: str = CHILD, **changes: Any) -> ProcessStatus:
    made = ProcessStatus(
        pid=pid,
        kind=kind,
        apache=100,
        started=1_700_000_000.0,
        cpu_s=1.25,
        longest_turn_s=0.002,
        round_trips=RoundTrips(),
        endpoints=(
            EndpointStatus("/srv/chat.ws", 1, 0, 0, 5, 30, 300, 40, 400, 5, 6, {"1000": 4}),
        ),
        connections_count=1,
        connections=(connection(),),
        memory_bytes=12 * 1024 * 1024,
    )
    return dataclasses.replace(made, **changes)


RELAY = RelayStatus(
    address="redis://10.0.0.1:6379/0",
    name="chat.ws",
    is_up=True,
    published=7,
    received=8,
    dropped=2,
    gaps=1,
    lag_s=0.0005,
    endpoint="/srv/chat.ws",
)


def status(*processes: ProcessStatus) -> Status:
    return Status(100, 1_700_000_100.0, processes, (109,))


def test_what_is_written_is_read_again() -> None:
    assert ProcessStatus.decode(process().encode()) == process()
    whole = status(process(), process(102, CUSTODIAN, connections=()))
    assert Status.decode(whole.encode()) == whole
    related = dataclasses.replace(whole, relays=(RELAY,))
    assert Status.decode(related.encode()) == related


@given(st.lists(CONNECTIONS, max_size=3))
def test_any_connection_survives(connections: list[ConnectionStatus]) -> None:
    made = process(connections=tuple(connections))
    assert ProcessStatus.decode(made.encode(c.encode() for c in connections)) == made


@given(st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_anything_else_is_refused(data: bytes | str) -> None:
    with pytest.raises(StatusError):
        Status.decode(data.encode(errors="replace") if isinstance(data, str) else data)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "version 2; expected 1"),
        ({"apache": "100"}, "apache is '100'; expected a number"),
        ({"apache": True}, "apache is True"),
        ({"apache": -1}, "apache is -1"),
        ({"time": "now"}, "time is 'now'"),
        ({"time": float("nan")}, "time is nan"),
        ({"time": 10**400}, "time is 1000"),
        ({"processes": None}, "invalid Status: "),
        ({"processes": [None]}, "invalid ProcessStatus: "),
        ({"silent": 1.5}, "invalid Status: "),
        ({"relays": 1}, "invalid Status: "),
        ({"relays": [{"endpoint": "/a.ws"}]}, "invalid RelayStatus"),
        ({"relays": [{**RELAY.document(), "gaps": True}]}, "invalid RelayStatus"),
        ({"relays": [{**RELAY.document(), "lag_s": -1}]}, "invalid RelayStatus"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, Any], problem: str) -> None:
    document = json.loads(status().encode()) | change
    with pytest.raises(StatusError, match=f"not an apachews status document: {problem}"):
        Status.decode(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff", b"{", b"[" * 100_000])
def test_a_document_that_is_not_json(data: bytes) -> None:
    with pytest.raises(StatusError) as caught:
        Status.decode(data)
    assert str(caught.value) == "not an apachews status document: invalid JSON"


@pytest.mark.parametrize("data", [b"[]", b"null", b'{"processes": []}'])
def test_a_document_of_another_program(data: bytes) -> None:
    with pytest.raises(StatusError, match="it has no version"):
        Status.decode(data)


def test_a_missing_member_is_named_and_a_new_one_ignored() -> None:
    document = json.loads(process().encode())
    assert ProcessStatus.decode(json.dumps({**document, "later": [{}]}).encode()) == process()
    del document["cpu_s"]
    with pytest.raises(StatusError, match=r"invalid ProcessStatus: .*'cpu_s'"):
        ProcessStatus.decode(json.dumps(document).encode())
    document = json.loads(process().encode())
    document["round_trips"]["counts"].pop()
    with pytest.raises(StatusError, match=r"round_trips\.counts"):
        ProcessStatus.decode(json.dumps(document).encode())


def test_endpoints_of_all_processes_are_added_up() -> None:
    other = EndpointStatus("/srv/a.ws", open=2, total=2)
    whole = status(process(), process(102, CUSTODIAN, endpoints=(other, *process().endpoints)))
    first, second = whole.endpoints()
    assert (first.path, first.open) == ("/srv/a.ws", 2)
    assert (second.open, second.total, second.messages_in) == (2, 10, 60)
    assert second.closes == {"1000": 8}
    assert whole.total().total == 12
    assert whole.connections_count == 2
    # The processes' own are as they were.
    assert process() == whole.processes[0]


def test_a_limit_is_shared_between_processes() -> None:
    few = process(connections=(connection(),))
    many = process(102, connections=tuple(connection(port=n) for n in range(10)))
    for order in ((few, many), (many, few)):
        limited = status(*order).limit_to(6)
        assert [len(p.connections) for p in limited.processes] == [1, 5]
        assert limited.connections_count == 2  # as they said themselves
    assert status(few, many).limit_to(100).processes == (few, many)


def test_round_trips_fall_between_their_bounds() -> None:
    trips = RoundTrips()
    for seconds in (0.0, 0.001, 0.0011, 0.3, 60.0):
        trips.observe(seconds)
    assert trips.counts[:2] == [2, 1]
    assert trips.counts[ROUND_TRIP_BOUNDS_S.index(0.5)] == 1
    assert trips.counts[-1] == 1
    assert trips.count == 5
    assert trips.sum_s == pytest.approx(60.3021)
