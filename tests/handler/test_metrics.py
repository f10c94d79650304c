"""handler.monitoring: counters, and the text of the metrics for Prometheus's own parser."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from apachews.monitoring.snapshot import CUSTODIAN, EndpointStatus, RoundTrips, Status
from apachews_handler.monitoring.counters import (
    MAX_CODES,
    MAX_ENDPOINTS,
    OTHER_CODES,
    OTHERS,
    Counters,
)
from apachews_handler.monitoring.metrics import to_text

from ..library.test_snapshot import RELAY, process, status

OPERATIONS = Path(__file__).parents[2] / "docs" / "howto" / "operations.md"


def parse(made: Status) -> dict[str, Metric]:
    families = list(text_string_to_metric_families(to_text(made)))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families}


def value(family: Metric, **labels: str) -> float:
    (found,) = (s.value for s in family.samples if labels.items() <= s.labels.items())
    return float(found)


def test_each_relay_has_its_series() -> None:
    families = parse(dataclasses.replace(status(process()), relays=(RELAY,)))
    found = {
        name: value(family, endpoint="/srv/chat.ws", relay=RELAY.address, name="chat.ws")
        for name, family in families.items()
        if name.startswith("apachews_relay_")
    }
    assert found == {
        "apachews_relay_up": 1,
        "apachews_relay_published": 7,
        "apachews_relay_received": 8,
        "apachews_relay_dropped": 2,
        "apachews_relay_gaps": 1,
        "apachews_relay_lag_seconds": 0.0005,
    }


def test_each_process_has_its_own_series() -> None:
    families = parse(status(process(), process(102, CUSTODIAN)))
    opened = families["apachews_connections_opened"]
    assert opened.type == "counter"
    assert value(opened, pid="101", kind="child", endpoint="/srv/chat.ws") == 5
    assert value(opened, pid="102", kind="custodian") == 5
    messages = families["apachews_messages"]
    assert value(messages, pid="101", direction="in") == 30
    assert value(messages, pid="101", direction="out") == 40
    assert value(families["apachews_message_bytes"], pid="101", direction="out") == 400
    assert value(families["apachews_queued_bytes"], pid="101", direction="in") == 5
    assert value(families["apachews_connections"], pid="101", state="open") == 1
    assert value(families["apachews_connections_closed"], pid="101", code="1000") == 4
    assert value(families["apachews_connections_closed"], pid="101", code="1011") == 0
    assert value(families["apachews_processes"], kind="custodian") == 1
    assert value(families["apachews_silent_processes"]) == 1
    assert value(families["apachews_loop_cpu_seconds"], pid="101") == 1.25
    assert value(families["apachews_process_memory_bytes"], pid="101") == 12 * 1024 * 1024


def test_two_files_are_two_series() -> None:
    """Though their names are no UTF-8, and differ in just that."""
    paths = [os.fsdecode(name) for name in (b"/a\xff.ws", b"/a\xfe.ws")]
    made = status(process(endpoints=tuple(EndpointStatus(path, total=1) for path in paths)))
    opened = parse(made)["apachews_connections_opened"]
    assert len({sample.labels["endpoint"] for sample in opened.samples}) == 2


def test_the_histogram_is_cumulative_and_ends_with_all() -> None:
    trips = RoundTrips()
    for seconds in (0.0005, 0.03, 0.03, 99.0):
        trips.observe(seconds)
    family = parse(status(process(round_trips=trips)))["apachews_ping_round_trip_seconds"]
    assert family.type == "histogram"
    buckets = [
        (float(sample.labels["le"]), sample.value)
        for sample in family.samples
        if sample.name.endswith("_bucket")
    ]
    assert buckets == sorted(buckets)
    assert dict(buckets)[0.025] == 1
    assert dict(buckets)[0.05] == 3
    assert buckets[-1] == (math.inf, 4)
    sums = {s.name.rpartition("_")[2]: s.value for s in family.samples if "le" not in s.labels}
    assert sums == {"sum": trips.sum_s, "count": 4}


def test_without_a_process_there_are_names_and_no_series() -> None:
    families = parse(Status(100, 0.0))
    assert families["apachews_messages"].samples == []
    assert value(families["apachews_processes"], kind="child") == 0


@given(st.text())
def test_any_path_is_a_label(path: str) -> None:
    family = parse(status(process(endpoints=(EndpointStatus(path, total=7),))))[
        "apachews_connections_opened"
    ]
    (sample,) = family.samples
    assert (sample.labels["endpoint"], sample.value) == (path, 7)


def test_a_path_that_is_not_utf_8_is_spelt_out() -> None:
    text = to_text(status(process(endpoints=(EndpointStatus("/\udcff.ws"),))))
    assert r'endpoint="/\\xff.ws"' in text


def test_names_follow_the_conventions() -> None:
    for family in parse(status(process())).values():
        assert family.name.startswith("apachews_")
        assert family.documentation.endswith(".")
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith("_total")


def test_the_manual_lists_every_name() -> None:
    documented = set(re.findall(r"^\| `(apachews_\w+)` \|", OPERATIONS.read_text(), re.MULTILINE))
    made = dataclasses.replace(status(process()), relays=(RELAY,))
    names = re.findall(r"^# TYPE (\w+)", to_text(made), re.MULTILINE)
    assert documented == set(names)


# apachews_handler.monitoring.counters: what is counted of connections, and what is bounded.


def test_what_has_ended_is_counted_by_endpoint_and_code() -> None:
    counters = Counters()
    for path in ("/a", "/a", "/b"):
        counters.begin(path)
    counters.end("/a", (1, 10, 2, 20), 1000)
    counters.end("/a", (1, 1, 1, 1), 1006)
    endpoints = counters.endpoints()
    assert endpoints["/a"].total == 2
    assert endpoints["/a"].bytes_in == 11
    assert endpoints["/a"].messages_out == 3
    assert endpoints["/a"].closes == {"1000": 1, "1006": 1}
    assert endpoints["/b"].closes == {}
    endpoints["/a"].closes["1000"] = 99
    assert counters.endpoints()["/a"].closes["1000"] == 1  # it was a copy


def test_sockets_without_end_are_counted_together() -> None:
    counters = Counters()
    for number in range(MAX_ENDPOINTS + 5):
        counters.begin(f"/{number}")
    counters.begin("/0")
    for number in range(MAX_ENDPOINTS + 5):
        counters.end(f"/{number}", (1, 0, 0, 0), 1000)
    endpoints = counters.endpoints()
    assert len(endpoints) == MAX_ENDPOINTS + 1
    assert (endpoints[OTHERS].total, endpoints[OTHERS].messages_in) == (5, 5)
    assert endpoints["/0"].total == 2


def test_codes_without_end_are_counted_together_and_hide_no_fault() -> None:
    counters = Counters()
    for code in (*range(3000, 3100), 1011):
        counters.begin("/a")
        counters.end("/a", (0, 0, 0, 0), code)
    closes = counters.endpoints()["/a"].closes
    assert len(closes) == MAX_CODES + 2
    assert sum(closes.values()) == 101
    assert closes[OTHER_CODES] == 100 - MAX_CODES
    assert closes["1011"] == 1
