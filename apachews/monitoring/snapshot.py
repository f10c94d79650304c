"""The status of Apache's processes and their WebSockets at one moment.

Contract: data, sans-I/O, except ``with_relays``.  A process with WebSockets describes itself in
a ``ProcessStatus``; ``Status`` holds those of all processes of one Apache.  ``encode`` returns
JSON; ``decode`` reads it, ignores members that it does not know, so that a later version can add
some, and raises ``StatusError`` for any other document.

``apachews_handler`` makes these, ``apachews.monitoring.collect`` collects them; the status page
and the command line show them.  They contain no message, no query string and no cookie.  *In*
is from the client, *out* to it; bytes are those of uncompressed messages.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from apachews.exceptions import StatusError

from .relays import RelayStatus, ask_relays

VERSION: Final = 1
# The number of connections of a process that are described; the counters count all.
MAX_LISTED: Final = 1000
# States of a connection.
OPEN: Final = "open"
HELD: Final = "held"
CLOSING: Final = "closing"
# Kinds of a process.
CHILD: Final = "child"
CUSTODIAN: Final = "custodian"
# Upper bounds of the histogram of round trips, seconds: from the same network to a telephone.
ROUND_TRIP_BOUNDS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One WebSocket.

    Attributes:
        id: as the producer has it (``Client.guid``).
        endpoint: the producer's socket file.
        path: of the URI, without its query.
        address, port: the client's; port 0 if only the address is known (mod_remoteip).
        user: as Apache authenticated it; "" without authentication.
        scheme: ``ws`` or ``wss``.
        subprotocol: "" without one.
        state: ``open``, ``held`` (its producer is gone, and the next one is awaited) or
            ``closing``.
        age_s: since its handshake.
        messages_in, bytes_in, messages_out, bytes_out: relayed so far.
        queued_in: bytes that wait for the producer.
        queued_out: bytes that wait for the client.
        round_trip_s: of the last PING of Apache that it answered; None before.
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
    """A producer's socket file, and the traffic through it.

    Attributes:
        path: the socket file.
        open, held, closing: connections, by their state.
        total: connections since the start, the present ones included.
        messages_in, bytes_in, messages_out, bytes_out: of all of these.
        queued_in, queued_out: bytes that wait, as those of a connection.
        closes: ended connections by close code; ``other`` for further codes beyond the
            limit.
        framed: present connections whose producer speaks the wire, and can be asked for its
            relay; not those of tunnels and of the raw wire.
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
    framed: int = 0

    def copy(self) -> EndpointStatus:
        """Return a copy."""
        return dataclasses.replace(self, closes=dict(self.closes))

    def add(self, other: EndpointStatus) -> None:
        """Add the numbers that another process has of the same endpoint."""
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
        counts: number of round trips up to each of ``ROUND_TRIP_BOUNDS_S`` and above the
            previous bound; the last: above all bounds.
        sum_s: their sum.
    """

    counts: list[int] = dataclasses.field(
        default_factory=lambda: [0] * (len(ROUND_TRIP_BOUNDS_S) + 1)
    )
    sum_s: float = 0.0

    def observe(self, round_trip_s: float) -> None:
        """Count a round trip."""
        self.counts[bisect.bisect_left(ROUND_TRIP_BOUNDS_S, round_trip_s)] += 1
        self.sum_s += round_trip_s

    @property
    def count(self) -> int:
        """The number of round trips."""
        return sum(self.counts)

    def copy(self) -> RoundTrips:
        """Return a copy."""
        return RoundTrips(list(self.counts), self.sum_s)


def _fields(value: Any) -> dict[str, Any]:
    """Return the members of a dataclass; ``dataclasses.asdict`` would copy all of them."""
    return {name: getattr(value, name) for name in value.__slots__}


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process.

    Attributes:
        pid: of the process, as it sees itself.
        kind: ``child`` (of Apache's) or ``custodian``.
        apache: process id of its Apache's parent.
        started: seconds since 1970; a custodian has the start and the counters of the
            child that it was.
        cpu_s: processor time of the thread that relays the messages.
        longest_turn_s: the longest time in the last minute that this thread was busy
            without polling its sockets; 0.0 for less than a millisecond.
        round_trips: of all its connections.
        endpoints: in the order of their paths.
        connections_count: number of connections.
        memory_bytes: memory that the process does not share; 0: unknown.
        compiled: 1 if the modules that messages pass are compiled, 0 if they are interpreted.
        channels: number of channels for groups; one for each producer process that broadcasts.
        channel_clients: number of connections that have their messages from a channel.
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
    compiled: int = 0
    channels: int = 0
    channel_clients: int = 0

    def encode(self, connections: Iterable[str] | None = None) -> bytes:
        """Return it as JSON.

        Args:
            connections: the encoded ``connections``; None: encode them here.
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
            StatusError: another kind of document, or another version.
        """
        return _read_process(_decode_document(data), listed)


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """All processes of one Apache that have or had WebSockets.

    Attributes:
        apache: process id of its parent.
        time: when this was collected, seconds since 1970.
        processes: children first, then custodians, the oldest first.
        silent: process ids of those that did not answer in time, or not correctly.
        relays: of the producers with a relay and a WebSocket, in the order of their endpoints.
    """

    apache: int
    time: float
    processes: tuple[ProcessStatus, ...] = ()
    silent: tuple[int, ...] = ()
    version: int = VERSION
    relays: tuple[RelayStatus, ...] = ()

    def with_relays(self) -> Status:
        """Return a copy with the relays of the producers, which are asked for them here."""
        paths = [endpoint.path for endpoint in self.endpoints() if endpoint.framed]
        return dataclasses.replace(self, relays=ask_relays(paths))

    def endpoints(self) -> list[EndpointStatus]:
        """Return the endpoints, summed over all processes, in the order of their paths."""
        found: dict[str, EndpointStatus] = {}
        for process in self.processes:
            for endpoint in process.endpoints:
                if endpoint.path in found:
                    found[endpoint.path].add(endpoint)
                else:
                    found[endpoint.path] = endpoint.copy()
        return [found[path] for path in sorted(found)]

    def total(self) -> EndpointStatus:
        """Return the sum over all endpoints."""
        total = EndpointStatus("")
        for endpoint in self.endpoints():
            total.add(endpoint)
        return total

    def connections(self) -> Iterator[tuple[ProcessStatus, ConnectionStatus]]:
        """Return the described connections, each with its process."""
        for process in self.processes:
            for connection in process.connections:
                yield process, connection

    @property
    def connections_count(self) -> int:
        """The number of connections."""
        return sum(process.connections_count for process in self.processes)

    def limit_to(self, listed: int) -> Status:
        """Return a copy with at most this many described connections, shared fairly."""
        processes = []
        left = listed
        # Ascending, so that unused quota goes to the processes with more connections.
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
        rest["relays"] = [relay.document() for relay in self.relays]
        processes = b", ".join(process.encode() for process in self.processes)
        return json.dumps(rest)[:-1].encode() + b', "processes": [' + processes + b"]}"

    @classmethod
    def decode(cls, data: bytes, listed: int = MAX_LISTED) -> Status:
        """Read what ``encode`` wrote.

        Args:
            listed: the number of connections of each process that are read.

        Raises:
            StatusError: another kind of document, or another version.
        """
        return _read(
            cls,
            _decode_document(data),
            processes=lambda values: tuple(_read_process(value, listed) for value in values),
            silent=tuple,
            relays=_read_relays,
        )


def _read_relays(values: Any) -> tuple[RelayStatus, ...]:
    relays = []
    for value in values:
        relay = RelayStatus.from_document(value, str(value["endpoint"]))
        if relay is None:
            raise StatusError("invalid RelayStatus")
        relays.append(relay)
    return tuple(relays)


def in_order(processes: Iterable[ProcessStatus]) -> tuple[ProcessStatus, ...]:
    """Return processes in the order of display: children first, the oldest first."""
    return tuple(
        sorted(processes, key=lambda process: (process.kind != CHILD, process.started, process.pid))
    )


def _decode_document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise StatusError("invalid JSON") from None
    if not isinstance(document, dict) or "version" not in document:
        raise StatusError("it has no version")
    if document["version"] != VERSION:
        raise StatusError(f"version {document['version']!r:.20}; expected {VERSION}")
    return document


def _read_process(document: Any, listed: int) -> ProcessStatus:
    process = _read(
        ProcessStatus,
        document,
        round_trips=lambda value: _read(RoundTrips, value),
        endpoints=lambda values: tuple(_read(EndpointStatus, value) for value in values),
        connections=lambda values: tuple(
            _read(ConnectionStatus, value) for value in values[:listed]
        ),
    )
    # The sums over processes index the counts by their bounds.
    if len(process.round_trips.counts) != len(ROUND_TRIP_BOUNDS_S) + 1:
        raise StatusError("round_trips.counts does not fit the bounds of this version")
    return process


def _read(kind: type[T], document: Any, **nested: Callable[[Any], Any]) -> T:
    """Make a dataclass of a decoded object.

    Members that it does not know are ignored; those that have a default may be missing.  The
    values that are added and compared must be numbers; no other value is checked.

    Args:
        nested: functions that read members which are objects or lists themselves.

    Raises:
        StatusError
    """
    values = {}
    try:
        for name, is_number in _FIELDS[kind]:
            if name in document:
                value = nested[name](document[name]) if name in nested else document[name]
                # A bool is an int to Python, infinity is a float, and neither counts anything.
                if is_number and (type(value) not in (int, float) or not 0 <= value <= 1e300):
                    raise StatusError(f"{name} is {value!r:.40}; expected a number")
                values[name] = value
        return kind(**values)
    except (TypeError, KeyError, AttributeError) as error:
        # A missing member, or an object or a list in the place of another type.
        raise StatusError(f"invalid {kind.__name__}: {error}") from None


def _fields_of(kind: type[Any]) -> tuple[tuple[str, bool], ...]:
    """Return the names of a dataclass's fields, and whether they must be numbers."""
    return tuple((one.name, one.type in ("int", "float")) for one in dataclasses.fields(kind))


_FIELDS: Final[dict[type[Any], tuple[tuple[str, bool], ...]]] = {
    kind: _fields_of(kind)
    for kind in (ConnectionStatus, EndpointStatus, RoundTrips, ProcessStatus, Status)
}
