"""apachews_handler.monitoring.counters: what is counted of connections, and what is bounded."""

from __future__ import annotations

from apachews_handler.monitoring.counters import (
    MAX_CODES,
    MAX_ENDPOINTS,
    OTHER_CODES,
    OTHERS,
    Counters,
)


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
