"""apachews_handler.monitoring.tally: what is counted of connections, and what is bounded."""

from __future__ import annotations

from apachews_handler.monitoring.tally import MAX_CODES, MAX_ENDPOINTS, OTHER_CODES, OTHERS, Tally


def test_what_has_ended_is_counted_by_endpoint_and_code() -> None:
    tally = Tally()
    for path in ("/a", "/a", "/b"):
        tally.begin(path)
    tally.end("/a", (1, 10, 2, 20), 1000)
    tally.end("/a", (1, 1, 1, 1), 1006)
    endpoints = tally.endpoints()
    assert endpoints["/a"].total == 2
    assert endpoints["/a"].bytes_in == 11
    assert endpoints["/a"].messages_out == 3
    assert endpoints["/a"].closes == {"1000": 1, "1006": 1}
    assert endpoints["/b"].closes == {}
    endpoints["/a"].closes["1000"] = 99
    assert tally.endpoints()["/a"].closes["1000"] == 1  # it was a copy


def test_sockets_without_end_are_counted_together() -> None:
    tally = Tally()
    for number in range(MAX_ENDPOINTS + 5):
        tally.begin(f"/{number}")
    tally.begin("/0")
    for number in range(MAX_ENDPOINTS + 5):
        tally.end(f"/{number}", (1, 0, 0, 0), 1000)
    endpoints = tally.endpoints()
    assert len(endpoints) == MAX_ENDPOINTS + 1
    assert (endpoints[OTHERS].total, endpoints[OTHERS].messages_in) == (5, 5)
    assert endpoints["/0"].total == 2


def test_codes_without_end_are_counted_together_and_hide_no_fault() -> None:
    tally = Tally()
    for code in (*range(3000, 3100), 1011):
        tally.begin("/a")
        tally.end("/a", (0, 0, 0, 0), code)
    closes = tally.endpoints()["/a"].closes
    assert len(closes) == MAX_CODES + 2
    assert sum(closes.values()) == 101
    assert closes[OTHER_CODES] == 100 - MAX_CODES
    assert closes["1011"] == 1
