"""What Apache's processes say of their WebSockets, at one moment.

Contract: data.  A process with WebSockets describes itself in a ``ProcessStatus``;
``Status`` is those of all processes of one Apache.  ``encode`` gives JSON, ``decode``
checks what it reads and raises ``StatusError``; names it does not know are passed
over, so that a later version may say more.  Sans-I/O.

``apachews_handler`` makes these, ``apachews.monitoring.collect`` collects them; the status page
and the command line show them.  Nothing of a message is in them, no query string, no
cookie.  *In* is from the client, *out* to it; bytes are those of messages, not
compressed.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import functools
import json
import operator
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from apachews.exceptions import StatusError

VERSION: Final = 1
# So many connections of a process are described one by one; what is counted is all.
MAX_LISTED: Final = 1000
# States of a connection.
OPEN: Final = "open"
HELD: Final = "held"
CLOSING: Final = "closing"
# Kinds of a process.
CHILD: Final = "child"
CUSTODIAN: Final = "custodian"
# Upper bounds of the histogram of round trips, seconds: from a neighbour to a telephone.
ROUND_TRIP_BOUNDS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One WebSocket.

    Attributes:
        id: what its producer knows it by.
        endpoint: the producer's socket file.
        path: of the URI, without its query.
        address, port: the client's; port 0 if only the address is known (mod_remoteip).
        user: as Apache authenticated it; "" for nobody.
        scheme: ``ws`` or ``wss``.
        subprotocol: "" for none.
        state: ``open``, ``held`` (its producer is gone, another one awaited) or
            ``closing``.
        age_s: since its handshake.
        messages_in, bytes_in, messages_out, bytes_out: what passed.
        queued_in: bytes that wait for the producer.
        queued_out: bytes that wait for the client.
        round_trip_s: of Apache's last PING that it answered; None before.
    """

    id: str
    endpoint: str
    path: str
    address: str
    port: int
    user: str
    scheme: str
    subprotocol: str
    state: str
    age_s: float
    messages_in: int
    bytes_in: int
    messages_out: int
    bytes_out: int
    queued_in: int
    queued_out: int
    round_trip_s: float | None = None

    def encode(self) -> str:
        """Return it as JSON."""
        return _to_json(dict(zip(_CONNECTION_FIELDS, _values_of(self), strict=True)))


_CONNECTION_FIELDS: Final = tuple(field.name for field in dataclasses.fields(ConnectionStatus))
_values_of: Final = operator.attrgetter(*_CONNECTION_FIELDS)
_to_json: Final = json.JSONEncoder().encode


@dataclasses.dataclass(slots=True)
class EndpointStatus:
    """A producer's socket file, and what passed through it.

    Attributes:
        path: the socket file.
        open, held, closing: connections, by their state.
        total: how many there ever were, those that are there among them.
        messages_in, bytes_in, messages_out, bytes_out: of all of these.
        queued_in, queued_out: bytes that wait, as those of a connection.
        closes: how many ended, by their close code; ``other`` for codes of which
            there are too many.
    """

    path: str
    open: int = 0
    held: int = 0
    closing: int = 0
    total: int = 0
    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0
    queued_in: int = 0
    queued_out: int = 0
    closes: dict[str, int] = dataclasses.field(default_factory=dict)

    def copy(self) -> EndpointStatus:
        """Return another one with the same numbers."""
        return dataclasses.replace(self, closes=dict(self.closes))

    def add(self, other: EndpointStatus) -> None:
        """Count what another process has of the same endpoint."""
        for name in _ENDPOINT_NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for code, count in other.closes.items():
            self.closes[code] = self.closes.get(code, 0) + count


_ENDPOINT_NUMBERS: Final = tuple(
    field.name
    for field in dataclasses.fields(EndpointStatus)
    if field.name not in ("path", "closes")
)


@dataclasses.dataclass(slots=True)
class RoundTrips:
    """How long clients took to answer Apache's PINGs: a histogram.

    Attributes:
        counts: how many took no longer than each of ``ROUND_TRIP_BOUNDS_S`` and
            longer than the one before; the last: longer than all.
        sum_s: all of them together.
    """

    counts: list[int] = dataclasses.field(
        default_factory=lambda: [0] * (len(ROUND_TRIP_BOUNDS_S) + 1)
    )
    sum_s: float = 0.0

    def observe(self, round_trip_s: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(ROUND_TRIP_BOUNDS_S, round_trip_s)] += 1
        self.sum_s += round_trip_s

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def copy(self) -> RoundTrips:
        """Return another one with the same numbers."""
        return RoundTrips(list(self.counts), self.sum_s)


def _fields(value: Any) -> dict[str, Any]:
    """Return what is in one of these, as it is: ``dataclasses.asdict`` copies all of it."""
    return {name: getattr(value, name) for name in value.__slots__}


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process.

    Attributes:
        pid: of the process, as it sees itself.
        kind: ``child`` (of Apache's) or ``custodian``.
        apache: process id of its Apache's parent.
        started: when it began, seconds since 1970; a custodian counts on from what
            the child before it had counted.
        cpu_s: processor time of the thread that carries the messages.
        longest_turn_s: the longest that thread was busy without looking at its
            sockets, in the last minute; 0.0 for less than a millisecond.
        round_trips: of all its connections.
        endpoints: in the order of their paths.
        connections_count: how many there are.
        memory_bytes: memory that the process shares with no other; 0 for unknown.
        connections: the oldest ``MAX_LISTED`` of them.
    """

    pid: int
    kind: str
    apache: int
    started: float
    cpu_s: float
    longest_turn_s: float
    round_trips: RoundTrips
    endpoints: tuple[EndpointStatus, ...]
    connections_count: int
    connections: tuple[ConnectionStatus, ...] = ()
    version: int = VERSION
    memory_bytes: int = 0

    def encode(self, connections: Iterable[str] | None = None) -> bytes:
        """Return it as JSON.

        Args:
            connections: those of ``connections``, encoded one by one before; None:
                they are encoded here.
        """
        if connections is None:
            connections = (connection.encode() for connection in self.connections)
        rest = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "connections"
        }
        text = json.dumps(rest, default=_fields)
        return f'{text[:-1]}, "connections": [{", ".join(connections)}]}}'.encode()

    @classmethod
    def decode(cls, data: bytes, listed: int = MAX_LISTED) -> ProcessStatus:
        """Read what ``encode`` wrote.

        Args:
            listed: so many of the connections; the others are passed over.

        Raises:
            StatusError: it is something else.
        """
        process = _decode(cls, data, listed)
        if len(process.round_trips.counts) != len(ROUND_TRIP_BOUNDS_S) + 1:
            raise StatusError("round_trips.counts", "another number of them than there are bounds")
        return process


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """All processes of one Apache that have, or had, WebSockets.

    Attributes:
        apache: process id of its parent.
        time: when this was collected, seconds since 1970.
        processes: children first, then custodians, the oldest first.
        silent: process ids of those that did not answer in time, or not in order.
    """

    apache: int
    time: float
    processes: tuple[ProcessStatus, ...] = ()
    silent: tuple[int, ...] = ()
    version: int = VERSION

    def endpoints(self) -> list[EndpointStatus]:
        """Return the endpoints, those of all processes together, in the order of their paths."""
        found: dict[str, EndpointStatus] = {}
        for process in self.processes:
            for endpoint in process.endpoints:
                if endpoint.path in found:
                    found[endpoint.path].add(endpoint)
                else:
                    found[endpoint.path] = endpoint.copy()
        return [found[path] for path in sorted(found)]

    def total(self) -> EndpointStatus:
        """Return what all endpoints have together."""
        total = EndpointStatus("")
        for endpoint in self.endpoints():
            total.add(endpoint)
        return total

    def connections(self) -> Iterator[tuple[ProcessStatus, ConnectionStatus]]:
        """Return the connections that are described, each with its process."""
        for process in self.processes:
            for connection in process.connections:
                yield process, connection

    @property
    def connections_count(self) -> int:
        """How many connections there are."""
        return sum(process.connections_count for process in self.processes)

    def limit_to(self, listed: int) -> Status:
        """Return the same with so many connections described, each process's share alike."""
        processes = []
        left = listed
        # Who has few leaves more to the others.
        ordered = sorted(self.processes, key=lambda process: len(process.connections))
        for index, process in enumerate(ordered):
            share = left // (len(ordered) - index)
            kept = process.connections[:share]
            left -= len(kept)
            processes.append(dataclasses.replace(process, connections=kept))
        return dataclasses.replace(self, processes=in_order(processes))

    def encode(self) -> bytes:
        """Return it as JSON."""
        rest = {name: getattr(self, name) for name in ("version", "apache", "time", "silent")}
        processes = b", ".join(process.encode() for process in self.processes)
        return json.dumps(rest)[:-1].encode() + b', "processes": [' + processes + b"]}"

    @classmethod
    def decode(cls, data: bytes, listed: int = MAX_LISTED) -> Status:
        """Read what ``encode`` wrote.

        Args:
            listed: so many connections of each process; the others are passed over.

        Raises:
            StatusError: it is something else.
        """
        status = _decode(cls, data, listed)
        for process in status.processes:
            if len(process.round_trips.counts) != len(ROUND_TRIP_BOUNDS_S) + 1:
                raise StatusError("round_trips.counts", "another number than there are bounds")
        return status


def in_order(processes: Iterable[ProcessStatus]) -> tuple[ProcessStatus, ...]:
    """Return processes as they are shown: children first, the oldest first."""
    return tuple(
        sorted(processes, key=lambda process: (process.kind != CHILD, process.started, process.pid))
    )


def _decode(kind: type[T], data: bytes, listed: int) -> T:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise StatusError("it", "no JSON") from None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        version = found.get("version") if isinstance(found, dict) else None
        raise StatusError("version", f"{version!r:.20}, not {VERSION}")
    for process in (found, *_list_of(found, "processes")):
        # Most of what there is; what nobody wants is not looked at.
        if isinstance(process, dict) and "connections" in process:
            process["connections"] = _list_of(process, "connections")[:listed]
    made: T = _checker(kind)(found, "it")  # type: ignore[arg-type]
    return made


def _list_of(found: dict[str, Any], name: str) -> list[Any]:
    value = found.get(name, [])
    if not isinstance(value, list):
        raise StatusError(name, "no list")
    return value


# Returns a value as what it must be, or raises StatusError with the name it is given.
_Checker = Callable[[Any, str], Any]


@functools.cache
def _checker(kind: Any) -> _Checker:
    """Return what checks a value that must be of a type; made once for each type."""
    if dataclasses.is_dataclass(kind):
        return _dataclass_checker(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (tuple, list):
        return _sequence_checker(origin, _checker(arguments[0]))
    if origin is dict:
        return _dict_checker(_checker(arguments[1]))
    if origin in (Union, types.UnionType):
        check = _checker(arguments[0])
        return lambda value, where: None if value is None else check(value, where)
    return {str: _check_text, int: _check_int, float: _check_float}[kind]


def _dataclass_checker(kind: Any) -> _Checker:
    hints = get_type_hints(kind)
    fields = [(field.name, _checker(hints[field.name])) for field in dataclasses.fields(kind)]
    defaults = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise StatusError(where, "no object")
        made = []
        for name, check_field in fields:
            if name in value:
                made.append(check_field(value[name], name))
            elif name in defaults:
                made.append(copy.copy(defaults[name]))
            else:
                raise StatusError(name, "missing")
        return kind(*made)

    return check


def _sequence_checker(kind: Callable[[Iterable[Any]], Any], check_item: _Checker) -> _Checker:
    def check(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise StatusError(where, "no list")
        return kind([check_item(item, where) for item in value])

    return check


def _dict_checker(check_item: _Checker) -> _Checker:
    def check(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise StatusError(where, "no object")
        return {name: check_item(item, where) for name, item in value.items()}

    return check


def _check_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise StatusError(where, f"{value!r:.40}")
    return value


# Nothing that is counted or timed here is less than 0; and a bool is an int to Python.
def _check_int(value: Any, where: str) -> int:
    if type(value) is not int or value < 0:
        raise StatusError(where, f"{value!r:.40}")
    return value


def _check_float(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1e300:
        raise StatusError(where, f"{value!r:.40}")
    return float(value)
