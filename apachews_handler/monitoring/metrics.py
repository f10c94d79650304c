"""The status as metrics, in the text format of Prometheus.

Contract: ``to_text(status)`` returns the text, and ``CONTENT_TYPE`` is its type.  Pure.

How this works: every counter has the label ``pid``, so a process that exits takes its own
series along and the value of a series never falls.  Queries sum the rates, ``sum without
(pid, kind) (rate(…))``.  A custodian continues the totals of its child in a series of its
own; ``rate`` ignores the first value of a series.

Sources: Prometheus's "Exposition formats" (text format 0.0.4) and "Metric and label naming".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from apachews.monitoring.relays import RelayStatus
from apachews.monitoring.snapshot import (
    CHILD,
    CUSTODIAN,
    ROUND_TRIP_BOUNDS_S,
    EndpointStatus,
    ProcessStatus,
    Status,
)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# The close codes that sites set alerts on start at 0: a series that starts at 1 has not
# increased, and an alert would miss the first close.
_ALERT_CODES: Final = dict.fromkeys(("1000", "1001", "1006", "1009", "1011", "1012", "1013"), 0)

Labels = dict[str, str]
Sample = tuple[Labels, float]

# Of each process: name, kind, help, attribute of ProcessStatus.
_PROCESS_METRICS: Final = (
    (
        "apachews_start_time_seconds",
        "gauge",
        "Time of the first WebSocket of the process, seconds since 1970.",
        "started",
    ),
    (
        "apachews_loop_cpu_seconds_total",
        "counter",
        "Processor time of the thread that carries the messages.",
        "cpu_s",
    ),
    (
        "apachews_loop_longest_turn_seconds",
        "gauge",
        "Longest interval of the last minute in which this thread did not poll its sockets.",
        "longest_turn_s",
    ),
    (
        "apachews_process_memory_bytes",
        "gauge",
        "Memory of the process that is not shared with other processes.",
        "memory_bytes",
    ),
    (
        "apachews_process_compiled",
        "gauge",
        "1 if the modules that messages pass are compiled, 0 if they are interpreted.",
        "compiled",
    ),
    (
        "apachews_channels",
        "gauge",
        "Channels for groups, one for each producer process that broadcasts.",
        "channels",
    ),
    (
        "apachews_channel_clients",
        "gauge",
        "WebSockets whose messages come by a channel for groups.",
        "channel_clients",
    ),
)
# Of each endpoint of a process: name, kind, help, the label that tells the samples apart, and
# for each of its values the attribute of EndpointStatus.
_ENDPOINT_METRICS: Final[tuple[tuple[str, str, str, str, dict[str, str]], ...]] = (
    (
        "apachews_connections",
        "gauge",
        "WebSockets: open, held until a producer returns, or closing.",
        "state",
        {"open": "open", "held": "held", "closing": "closing"},
    ),
    (
        "apachews_connections_opened_total",
        "counter",
        "WebSockets that were opened.",
        "",
        {"": "total"},
    ),
    (
        "apachews_messages_total",
        "counter",
        "Messages, in from clients and out to them.",
        "direction",
        {"in": "messages_in", "out": "messages_out"},
    ),
    (
        "apachews_message_bytes_total",
        "counter",
        "Bytes of messages, not compressed, in from clients and out to them.",
        "direction",
        {"in": "bytes_in", "out": "bytes_out"},
    ),
    (
        "apachews_queued_bytes",
        "gauge",
        "Bytes that wait in Apache, in for the producer and out for clients.",
        "direction",
        {"in": "queued_in", "out": "queued_out"},
    ),
)
# Of each relay: name, kind, help, attribute of RelayStatus.
_RELAY_METRICS: Final = (
    (
        "apachews_relay_up",
        "gauge",
        "1 if the producer is connected to the relay and all its subscriptions are proven.",
        "is_up",
    ),
    (
        "apachews_relay_published_total",
        "counter",
        "Messages that the producer has given to the relay.",
        "published",
    ),
    (
        "apachews_relay_received_total",
        "counter",
        "Messages of other producers that have arrived.",
        "received",
    ),
    (
        "apachews_relay_dropped_total",
        "counter",
        "Messages that were dropped, because the relay was lost or the producer too slow.",
        "dropped",
    ),
    (
        "apachews_relay_gaps_total",
        "counter",
        "Losses of the relay that are over; messages may have been missed.",
        "gaps",
    ),
    (
        "apachews_relay_lag_seconds",
        "gauge",
        "Latest round trip from the producer to the relay and back.",
        "lag_s",
    ),
)


def to_text(status: Status) -> str:
    """Return the metrics of all processes."""
    lines: list[str] = []
    for name, kind, help_, samples in _families(status):
        lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{_labels(labels)} {value!r}" for labels, value in samples]
    lines += _round_trips(status)
    return "\n".join(lines) + "\n"


def _families(status: Status) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    processes = [(_of(process), process) for process in status.processes]
    endpoints: list[tuple[Labels, EndpointStatus]] = [
        ({**labels, "endpoint": endpoint.path}, endpoint)
        for labels, process in processes
        for endpoint in process.endpoints
    ]
    yield (
        "apachews_processes",
        "gauge",
        "Processes of Apache that have, or had, WebSockets.",
        [
            ({"kind": kind}, sum(process.kind == kind for process in status.processes))
            for kind in (CHILD, CUSTODIAN)
        ],
    )
    yield (
        "apachews_silent_processes",
        "gauge",
        "Processes that did not answer, and are missing in the other metrics.",
        [({}, len(status.silent))],
    )
    for name, kind, help_, attribute in _PROCESS_METRICS:
        yield name, kind, help_, [(of, getattr(one, attribute)) for of, one in processes]
    for name, kind, help_, label, attributes in _ENDPOINT_METRICS:
        yield (
            name,
            kind,
            help_,
            [
                ({**labels, label: value} if label else labels, getattr(endpoint, attribute))
                for labels, endpoint in endpoints
                for value, attribute in attributes.items()
            ],
        )
    for name, kind, help_, attribute in _RELAY_METRICS if status.relays else ():
        yield (
            name,
            kind,
            help_,
            [(_of_relay(relay), float(getattr(relay, attribute))) for relay in status.relays],
        )
    yield (
        "apachews_connections_closed_total",
        "counter",
        "WebSockets that were closed, by close code.",
        [
            ({**labels, "code": code}, count)
            for labels, endpoint in endpoints
            for code, count in sorted({**_ALERT_CODES, **endpoint.closes}.items())
        ],
    )


def _round_trips(status: Status) -> list[str]:
    name = "apachews_ping_round_trip_seconds"
    lines = [
        f"# HELP {name} Round-trip time of Apache's keep-alive pings.",
        f"# TYPE {name} histogram",
    ]
    for process in status.processes:
        labels, trips, below = _of(process), process.round_trips, 0
        for bound, count in zip((*ROUND_TRIP_BOUNDS_S, "+Inf"), trips.counts, strict=True):
            below += count
            lines.append(f"{name}_bucket{_labels({**labels, 'le': str(bound)})} {below}")
        lines.append(f"{name}_sum{_labels(labels)} {trips.sum_s!r}")
        lines.append(f"{name}_count{_labels(labels)} {below}")
    return lines


def _of(process: ProcessStatus) -> Labels:
    return {"pid": str(process.pid), "kind": process.kind}


def _of_relay(relay: RelayStatus) -> Labels:
    return {"endpoint": relay.endpoint, "relay": relay.address, "name": relay.name}


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    # A file name can be any bytes.  The format is UTF-8, and two files must stay two series.
    text = value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
