"""The status as metrics, in Prometheus's text format.

Contract: ``to_text(status)`` gives the text, ``CONTENT_TYPE`` what it is.  Pure.

How this works: every counter has the label ``pid``: a process that ends takes its own
series along, and no other one's value ever falls.  What is of interest is the sum of the
rates, ``sum without (pid, kind) (rate(…))``.  A custodian goes on from what its child had
counted, in a series of its own, whose first value counts for nothing in a rate.

Sources: Prometheus's "Exposition formats" (text format 0.0.4) and "Metric and label naming".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from apachews.monitoring.snapshot import (
    CHILD,
    CUSTODIAN,
    ROUND_TRIP_BOUNDS_S,
    EndpointStatus,
    ProcessStatus,
    Status,
)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# Those that a site is alerted of: a series that begins at 1 has not increased.
_NONE_CLOSED: Final = dict.fromkeys(("1000", "1001", "1006", "1009", "1011", "1012", "1013"), 0)

Labels = dict[str, str]
Sample = tuple[Labels, float]


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
    endpoints = [
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
    yield (
        "apachews_start_time_seconds",
        "gauge",
        "When the process began to have WebSockets, since 1970.",
        [(labels, process.started) for labels, process in processes],
    )
    yield (
        "apachews_loop_cpu_seconds_total",
        "counter",
        "Processor time of the thread that carries the messages.",
        [(labels, process.cpu_s) for labels, process in processes],
    )
    yield (
        "apachews_loop_longest_turn_seconds",
        "gauge",
        "Longest time in the last minute that this thread did not look at its sockets.",
        [(labels, process.longest_turn_s) for labels, process in processes],
    )
    yield (
        "apachews_process_memory_bytes",
        "gauge",
        "Memory that the process shares with no other.",
        [(labels, process.memory_bytes) for labels, process in processes],
    )
    yield (
        "apachews_connections",
        "gauge",
        "WebSockets: open, held for a producer that is away, or closing.",
        [
            ({**labels, "state": state}, getattr(endpoint, state))
            for labels, endpoint in endpoints
            for state in ("open", "held", "closing")
        ],
    )
    yield (
        "apachews_connections_opened_total",
        "counter",
        "WebSockets that were opened.",
        [(labels, endpoint.total) for labels, endpoint in endpoints],
    )
    yield (
        "apachews_connections_closed_total",
        "counter",
        "WebSockets that have ended, by their close code.",
        [
            ({**labels, "code": code}, count)
            for labels, endpoint in endpoints
            for code, count in sorted({**_NONE_CLOSED, **endpoint.closes}.items())
        ],
    )
    for name, kind, help_, fields in (
        (
            "apachews_messages_total",
            "counter",
            "Messages, in from clients and out to them.",
            "messages",
        ),
        (
            "apachews_message_bytes_total",
            "counter",
            "Bytes of messages, not compressed, in from clients and out to them.",
            "bytes",
        ),
        (
            "apachews_queued_bytes",
            "gauge",
            "Bytes that wait in Apache, in for the producer and out for clients.",
            "queued",
        ),
    ):
        yield name, kind, help_, list(_both_ways(endpoints, fields))


def _both_ways(endpoints: list[tuple[Labels, EndpointStatus]], fields: str) -> Iterator[Sample]:
    for labels, endpoint in endpoints:
        for direction in ("in", "out"):
            yield {**labels, "direction": direction}, getattr(endpoint, f"{fields}_{direction}")


def _round_trips(status: Status) -> list[str]:
    name = "apachews_ping_round_trip_seconds"
    lines = [
        f"# HELP {name} Time that clients took to answer Apache's keep-alive pings.",
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


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    # A name of a file may be any bytes; the format is UTF-8, and two files are two series.
    text = value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
