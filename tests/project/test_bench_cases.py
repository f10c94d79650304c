"""The table of what is benchmarked, and the command line."""

from __future__ import annotations

import pytest

from bench import __main__ as command
from bench import scale
from bench.cases import CASES, ON_UVLOOP, PEERS, Case, Kind, select
from bench.limits import TooFewDescriptors, require_descriptors
from bench.results import Figures


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name", ["round-trip", "echo-64KiB-c500-w8", "echo-64B-c32-w1-text", "wss-echo-64B-c1-w1"]
)
def test_there_is(name: str) -> None:
    assert [case.name for case in select([name])] == [name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_peers_are_known_and_ours_is_the_first(case: Case) -> None:
    assert case.peers[0].startswith("ours")
    assert {PEERS[name].tls for name in case.peers} == {"wss" in case.name}


def test_the_variants_on_uvloop_differ_in_that_alone() -> None:
    for plain, on_uvloop in ON_UVLOOP.items():
        a, b = PEERS[plain], PEERS[on_uvloop]
        assert (a.backend, a.proxied, a.tls) == (b.backend, b.proxied, b.tls)
        assert (a.uvloop, b.uvloop) == (False, True)


def test_a_whole_run_takes_half_an_hour() -> None:
    assert 15 * 60 < sum(case.estimate_s(5) for case in CASES) <= 35 * 60


def test_patterns_choose_in_the_tables_order() -> None:
    names = [case.name for case in select(["memory-*", "fan-out-1*"])]
    assert names == ["fan-out-100", "fan-out-1000", "memory-ws", "memory-wss"]


def test_a_pattern_that_matches_nothing_is_told() -> None:
    with pytest.raises(ValueError, match="nonesuch"):
        select(["round-trip", "nonesuch"])


def test_quick_cases_are_shorter_and_no_crowd() -> None:
    for case in CASES:
        quick = case.quick()
        assert quick.window_s < 0.5
        assert case.kind not in (Kind.FAN_OUT, Kind.MEMORY) or quick.connections <= 500


def test_the_peers_take_turns_and_another_begins_each_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def run_peer(case: Case, name: str) -> Figures:
        order.append(name)
        return {"cpu_us": 1.0}

    monkeypatch.setattr(command, "run_peer", run_peer)
    found = command.run_case(Case("x", Kind.ECHO, ("ours", "websockets", "picows")), 3)
    assert order == [
        *("ours", "websockets", "picows"),
        *("websockets", "picows", "ours"),
        *("picows", "ours", "websockets"),
    ]
    assert len(found.rounds) == 3


def test_the_list_has_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        case.name for case in CASES
    ]


@pytest.mark.parametrize("arguments", [["--case", "nonesuch"], ["--report", "/nonexistent"]])
def test_what_cannot_be_is_said_in_a_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_too_few_descriptors_are_named_with_what_to_do() -> None:
    with pytest.raises(TooFewDescriptors, match=r"ulimit -Hn"):
        require_descriptors(10**9)


def test_children_for_the_sockets_are_stock_where_they_may_be() -> None:
    assert scale.servers_for(20_000, 500_000) == (2, [])
    servers, notes = scale.servers_for(20_000, 20_000)
    assert servers == 3
    assert "StartServers 3" in notes[0]


def test_one_bad_moment_does_not_spoil_the_http_figures() -> None:
    calm = [n / 1000 for n in range(100)]
    found = scale.Http.of([*calm * 2, *[9.0] * 100, *calm * 2])
    assert (found.p50_s, found.p99_s) == (0.050, 0.099)
    assert scale.Http.of([*calm * 2, *[9.0] * 300]).p99_s == 9.0
