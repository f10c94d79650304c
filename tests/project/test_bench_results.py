"""What the benchmarks make of what they measured: medians, ratios, targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cases import CASES, PEERS
from bench.results import BadResults, CaseResults, Results, Spread
from bench.targets import TARGETS, Target, judge

PEER = "proxy+websockets"


def echo_case(*rounds: tuple[float, float]) -> CaseResults:
    """A case with so many µs of ours and of the peer in each round."""
    return CaseResults(
        "echo-64B-c32-w1",
        "echo",
        32,
        [{"ours": {"cpu_us": ours}, PEER: {"cpu_us": theirs}} for ours, theirs in rounds],
    )


def test_a_spread_is_the_median_and_what_lies_around_it() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0)
    assert Spread.of([]) is None


def test_a_ratio_is_that_of_the_same_round() -> None:
    """The machine was twice as slow in the second round, for both."""
    case = echo_case((10, 20), (20, 40), (12, 20))
    ratio = case.ratio("ours", PEER, "cpu_us")
    assert ratio == Spread(0.5, 0.5, 0.6)


def test_a_peer_that_did_not_run_has_no_figures() -> None:
    case = echo_case((10, 20))
    assert case.spread("picows", "cpu_us") is None
    assert case.ratio("ours", "picows", "cpu_us") is None


def test_ours_comes_first() -> None:
    case = CaseResults("x", "echo", 1, [{PEER: {}, "ours": {}}])
    assert case.peers() == ["ours", PEER]


@pytest.mark.parametrize(("share", "expected"), [(0.95, True), (0.9, False), (0.3, False)])
def test_a_generator_without_time_left_is_noticed(share: float, expected: bool) -> None:
    case = CaseResults("x", "echo", 1, [{"ours": {"generator_share": share}}])
    assert case.is_generator_bound("ours") is expected


def test_what_was_lost_in_any_round_is_named() -> None:
    case = CaseResults("x", "echo", 1, [{"ours": {"lost": 0}}, {"ours": {"lost": 2, "wrong": 1}}])
    assert Results({}, [case]).harm() == ["x, ours: 2 lost, 1 wrong"]


def test_results_are_stored_and_read_again(tmp_path: Path) -> None:
    results = Results(
        {"Date": "today"}, [echo_case((1, 2))], notes=["quick"], profile=[("perf", "text")]
    )
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 0}'])
def test_what_is_no_results_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(BadResults):
        Results.read(path)


def test_the_two_ways_to_count_cpu_are_compared() -> None:
    figures = {"cpu_s": 2.0, "stat_cpu_s": 1.9}
    results = Results({}, [CaseResults("x", "echo", 1, [{"ours": figures}])])
    assert results.stat_deviation() == pytest.approx(0.05)
    assert Results({}).stat_deviation() is None


@pytest.mark.parametrize(
    ("ours", "at_least", "expected"),
    [(4, False, True), (5, False, True), (6, False, False), (4, True, False), (6, True, True)],
)
def test_a_target_is_met_or_missed(ours: float, at_least: bool, expected: bool) -> None:
    target = Target("echo-64B-c32-w1", "CPU", "cpu_us", 0.5, PEER, at_least=at_least)
    outcome = judge(target, Results({}, [echo_case((ours, 10))]))
    assert outcome.is_met is expected
    assert outcome.measured == Spread(ours / 10, ours / 10, ours / 10)


def test_the_peer_on_uvloop_is_shown_beside() -> None:
    case = echo_case((5, 10))
    case.rounds[0]["proxy+websockets (uvloop)"] = {"cpu_us": 8}
    outcome = judge(Target(case.name, "CPU", "cpu_us", 0.6, PEER), Results({}, [case]))
    assert outcome.is_met
    assert outcome.on_uvloop == Spread(0.625, 0.625, 0.625)


def test_a_target_without_a_peer_is_the_figure_itself() -> None:
    case = CaseResults("memory-ws", "memory", 1000, [{"ours": {"apache_kib": 3.5}}])
    outcome = judge(Target("memory-ws", "memory", "apache_kib", 4), Results({}, [case]))
    assert outcome.is_met
    assert outcome.measured == Spread(3.5, 3.5, 3.5)


def test_what_did_not_run_is_neither_met_nor_missed() -> None:
    assert all(judge(target, Results({})).is_met is None for target in TARGETS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.case}-{target.metric}")
def test_every_targets_case_has_its_peers(target: Target) -> None:
    case = next(case for case in CASES if case.name == target.case)
    assert target.peer in case.peers
    assert not target.against or target.against in case.peers
    assert target.peer in PEERS
