"""The parts of the benchmarks: cases, readings of /proc, results, targets, report and plots."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import __main__ as command
from bench import cpu, docs, machine, memory, plot, processes, reach, relay, report, scale
from bench.cases import CASES, ON_UVLOOP, PEERS, Case, Kind, select
from bench.cpu import Reading
from bench.limits import TooFewDescriptors, require_descriptors
from bench.plot import Group
from bench.profile import NO_FRAME, top_frames
from bench.results import BadResults, CaseResults, Figures, Results, Spread
from bench.targets import TARGETS, Target, judge

from ..conftest import wait_for


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
    assert case.peers[0].startswith(("ours", "tunnel"))
    assert {PEERS[name].tls for name in case.peers} == {"wss" in case.name}


def test_the_variants_on_uvloop_differ_in_that_alone() -> None:
    for plain, on_uvloop in ON_UVLOOP.items():
        a, b = PEERS[plain], PEERS[on_uvloop]
        assert (a.backend, a.proxied, a.tls) == (b.backend, b.proxied, b.tls)
        assert (a.uvloop, b.uvloop) == (False, True)


def test_a_whole_run_takes_less_than_an_hour() -> None:
    assert 15 * 60 < sum(case.estimate_s(5) for case in CASES) <= 50 * 60


def test_a_busy_machine_is_noted() -> None:
    assert command.load_notes(0.3) == []
    (note,) = command.load_notes(13.84)
    assert "load average 13.8" in note


def test_a_case_that_takes_long_has_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_peer", lambda case, name: {"cpu_us": 1.0})
    case = Case("x", Kind.FAN_OUT, ("ours",), most_rounds=2)
    assert len(command.run_case(case, 5).rounds) == 2
    assert case.estimate_s(5) == case.estimate_s(2)


def test_every_server_stands_alone_and_with_the_proxy() -> None:
    for name in ("round-trip", "echo-64B-c32-w1", "fan-out-1000"):
        (case,) = select([name])
        peers = {PEERS[peer] for peer in case.peers}
        alone = {peer.backend for peer in peers if not peer.proxied}
        proxied = {peer.backend for peer in peers if peer.proxied}
        assert alone - proxied == {"apachews"} | ({"nchan"} if name == "fan-out-1000" else set())
        assert {"websockets", "picows", "uvicorn", "ws", "uws"} == proxied


def test_the_clients_of_two_children_need_fewer_descriptors() -> None:
    one = Case("x", Kind.FAN_OUT, ("ours",), 10_000)
    two = Case("x", Kind.FAN_OUT, ("ours",), 10_000, our_children=2)
    assert (one.descriptors, two.descriptors) == (20_200, 12_200)


def test_patterns_choose_in_the_tables_order() -> None:
    names = [case.name for case in select(["memory-*", "fan-out-1*"])]
    assert names == ["fan-out-100", "fan-out-1000", "fan-out-10000", "memory-ws", "memory-wss"]


def test_a_pattern_that_matches_nothing_is_told() -> None:
    with pytest.raises(ValueError, match="nonesuch"):
        select(["round-trip", "nonesuch"])


def test_the_clients_of_relayed_peers_are_on_two_machines() -> None:
    for case in select(["relay-*"]):
        assert [PEERS[name].relayed for name in case.peers] == [True, False, True, True]
        for one in (case, case.quick()):
            assert one.connections % relay.MACHINES == 0 < one.connections
            assert one.our_children % relay.MACHINES == 0


def test_quick_cases_are_shorter_and_no_crowd() -> None:
    for case in CASES:
        quick = case.quick()
        assert quick.window_s < 0.5
        assert case.kind not in (Kind.FAN_OUT, Kind.MEMORY) or quick.connections <= 500
        assert quick.stalled * 10 == case.stalled
        assert not quick.stalled or quick.stalled < quick.connections


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


def test_the_cases_with_targets_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list", "--targets"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert set(names) == {target.case for target in TARGETS}


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


# What the benchmarks read in /proc, and from the clocks of processes.


STAT = "42 (a (b) c) S 1 42 42 0 -1 4194560 10 0 0 0 150 50 7 8 20 0 1 0 100 0 0"
ROLLUP = """\
55d0c9a00000-7ffd2b7f1000 ---p 00000000 00:00 0                          [rollup]
Rss:                9000 kB
Pss:                5000 kB
Pss_Dirty:          4000 kB
"""


def test_ticks_are_user_and_system_time_whatever_the_program_is_called() -> None:
    assert cpu.ticks_in(STAT) == 200


def test_what_was_used_is_the_difference() -> None:
    before = Reading({1: 1_000_000_000, 2: 5}, {1: 100, 2: 1})
    after = Reading({1: 3_000_000_000, 2: 5}, {1: 300, 2: 1})
    used = cpu.used(before, after)
    assert used.seconds == 2.0
    assert used.stat_seconds == 200 / cpu.TICKS_A_SECOND
    assert used.ended == 0


def test_a_new_process_counts_from_its_start_and_one_that_ended_is_noticed() -> None:
    used = cpu.used(Reading({1: 10**9}, {1: 100}), Reading({2: 5 * 10**8}, {2: 50}))
    assert used.seconds == 0.5
    assert used.ended == 1


def test_the_clock_of_another_process_has_all_of_its_threads() -> None:
    """Two threads, as hashing lets both go on at once."""
    program = (
        "import hashlib, threading, time\n"
        "def spin():\n"
        "    while time.process_time() < 0.3: hashlib.sha256(bytes(10**6))\n"
        "threads = [threading.Thread(target=spin) for _ in range(2)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print(time.process_time_ns(), flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        own = int(process.stdout.readline())
        reading = cpu.read([process.pid])
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert own <= reading.ns[process.pid] < own + 100_000_000
    assert abs(reading.ticks[process.pid] / cpu.TICKS_A_SECOND - own / 1e9) < 0.1


def test_the_programs_part_of_a_reading() -> None:
    reading = Reading({1: 5, 2: 7}, {1: 1, 2: 2})
    assert cpu.of([2, 3], reading) == Reading({2: 7}, {2: 2})


def test_the_processes_of_a_program_end_with_it() -> None:
    """nginx's worker: the process that was started is its parent."""
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, start_new_session=True
    )
    wait_for(lambda: len(processes.of_session(process.pid)) == 2)
    child = processes.of_session(process.pid)[1]
    assert process.pid in processes.of_session(process.pid)
    processes.end(process)
    assert process.stdin
    process.stdin.close()
    wait_for(lambda: child not in cpu.read([child]).ns)
    processes.end(process)  # again does nothing


def test_a_process_that_has_ended_is_left_out() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert cpu.read([process.pid, os.getpid()]).ns.keys() == {os.getpid()}
    assert memory.pss([process.pid]) == 0


def test_our_own_clock_is_the_process_clock() -> None:
    before = time.process_time_ns()
    reading = cpu.read([os.getpid()])
    assert before <= reading.ns[os.getpid()] <= time.process_time_ns()


def test_busy_workers_are_those_of_mod_status() -> None:
    assert memory.busy_workers_in("ServerUptimeSeconds: 9\nBusyWorkers: 3\nIdleWorkers: 22\n") == 3
    with pytest.raises(ValueError, match="no BusyWorkers"):
        memory.busy_workers_in("<html>")


def test_memory_is_the_proportional_share() -> None:
    assert memory.pss_in(ROLLUP) == 5000 * 1024
    with pytest.raises(ValueError, match="Pss"):
        memory.pss_in("Rss: 1 kB")


def test_the_machine_is_named() -> None:
    assert machine.cpu_model("processor\t: 0\nmodel name\t: A CPU  \n") == "A CPU"
    assert machine.memory_gib("MemTotal:       16777216 kB\n") == 16.0
    assert machine.version_of("a-package-that-is-not-there") == "not installed"


def test_the_form_of_a_module_is_named() -> None:
    assert machine.form_of("apachews") == "interpreted"
    assert machine.form_of("_sqlite3") == "compiled"


def test_py_spys_stacks_are_counted_by_their_innermost_frame() -> None:
    raw = "main (a.py:1);run (b.py:2) 3\nother (c.py:1);run (b.py:2) 2\nmain (a.py:1) 1\n 4\n"
    assert top_frames(raw) == {"run (b.py:2)": 5, "main (a.py:1)": 1, NO_FRAME: 4}


# What the benchmarks make of what they measured: medians, ratios, targets.


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


def test_a_target_with_a_unit_is_the_difference_to_the_peer() -> None:
    case = CaseResults("relay-latency", "relay", 2)
    for ours, local in ((300, 100), (350, 80), (310, 90)):
        case.rounds.append({"ours, relayed": {"p50_us": ours}, "ours": {"p50_us": local}})
    (target,) = (target for target in TARGETS if target.case == "relay-latency")
    outcome = judge(target, Results({}, [case]))
    assert outcome.is_met
    assert outcome.measured == Spread(220, 200, 270)


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


def test_the_targets_of_the_cases_that_ran_are_printed() -> None:
    lines = report.targets_text(some_results()).splitlines()
    assert lines[0].split() == [
        *("case", "figure", "as", "against", "target", "measured", "peer", "on", "uvloop")
    ]
    (echo, *_) = [line for line in lines if "proxy+websockets" in line and "CPU" in line]
    assert echo.split("  ")[0] == "echo-64B-c32-w1"
    assert "0.26" in echo and echo.endswith("missed")
    assert not [line for line in lines if "not measured" in line]
    assert report.targets_text(Results({})) == ""


def test_the_overview_has_a_line_for_each_peer_that_ran() -> None:
    text = report.overview(some_results())
    assert text.splitlines()[2:] == ["| **ours** | 21 |", f"| {PEER} | 80 (0.26) |"]
    assert report.overview(Results({})) == ""


# The report of the benchmarks, its plots, and the part of the documentation it fills.


SVG = "{http://www.w3.org/2000/svg}"


def some_results() -> Results:
    figures = {
        "messages": 1000.0,
        "per_second": 20_000.0,
        "cpu_us": 25.0,
        "generator_share": 0.4,
        "lost": 0.0,
    }
    rounds = [
        {
            "ours": figures | {"cpu_us": 20.0 + n},
            PEER: figures | {"cpu_us": 80.0, "generator_share": 0.95},
        }
        for n in range(3)
    ]
    idle = {"apache_kib": 3.0, "backend_kib": 1.5, "workers_each": 0.0}
    return Results(
        {"Processor": "A CPU", "Command": "bench/run"},
        [
            CaseResults("echo-64B-c32-w1", "echo", 32, rounds),
            CaseResults("memory-ws", "memory", 1000, [{"ours": idle, PEER: idle}]),
            CaseResults("scale", "scale", 20_000, [{"ours": {"lost": 0.0, "cost_ratio": 1.1}}]),
        ],
    )


def test_the_report_has_targets_figures_ratios_and_the_machine(tmp_path: Path) -> None:
    path = report.write(some_results(), tmp_path)
    text = path.read_text()
    assert "| Processor | `A CPU` |" in text
    assert "| echo-64B-c32-w1 | CPU per message | proxy+websockets | ≤ 0.2 | 0.26" in text
    assert "21 [20 … 22]" in text
    assert "*generator-bound*" in text
    assert "No message was lost" in text
    assert text.index("## Targets") < text.index("## Cases")
    for name in report.plots(some_results()):
        assert f"]({name})" in text
        ElementTree.parse(tmp_path / name)
    assert Results.read(tmp_path / "results.json") == some_results()


def test_what_went_wrong_stands_above() -> None:
    results = some_results()
    results.cases[0].rounds[0]["ours"]["lost"] = 3
    text = report.text(results, [])
    assert "- echo-64B-c32-w1, ours: 3 lost" in text
    assert "No message was lost" not in text


def test_tables_have_as_many_cells_in_every_line() -> None:
    for case in some_results().cases:
        lines = report.case_table(case).splitlines()
        assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("spread", "digits", "expected"),
    [
        (None, None, "-"),
        (Spread(2.0, 2.0, 2.0), 2, "2.00"),
        (Spread(0.456, 0.4, 0.51), 2, "0.46 [0.40 … 0.51]"),
        (Spread(12345.6, 12000.0, 13000.0), None, "12,346 [12,000 … 13,000]"),
    ],
)
def test_a_figure_is_shown_with_its_range(
    spread: Spread | None, digits: int | None, expected: str
) -> None:
    assert report.show(spread, digits) == expected


def test_a_plot_has_a_bar_and_a_whisker_for_each_figure() -> None:
    groups = [
        Group("small & <fast>", [("ours", Spread(1, 0.5, 2)), (PEER, Spread(4, 3, 5))]),
        Group("large", [("ours", Spread(10, 10, 10))]),
    ]
    root = ElementTree.fromstring(plot.bars("A title <&>", "µs", groups))
    assert root.tag == f"{SVG}svg"
    assert len([e for e in root.iter(f"{SVG}path") if e.get("class") == "whisker"]) == 3
    shown = [e.text for e in root.iter(f"{SVG}text")]
    assert {"A title <&>", "µs", "small & <fast>", "ours", PEER} <= set(shown)
    bars = [e for e in root.iter(f"{SVG}rect") if e.get("height") == str(plot.BAR_HEIGHT)]
    widths = [float(e.attrib["width"]) for e in bars]
    assert widths[2] == pytest.approx(10 * widths[0], rel=0.02)


def test_a_peer_has_the_same_colour_in_every_plot() -> None:
    spread = Spread(1, 1, 1)
    colours = []
    for names in (["ours", PEER], [PEER]):
        groups = [Group("g", [(name, spread) for name in names])]
        root = ElementTree.fromstring(plot.bars("t", "a", groups, ["ours", PEER]))
        bars = [e for e in root.iter(f"{SVG}rect") if e.get("height") == str(plot.BAR_HEIGHT)]
        colours.append(bars[-1].get("fill"))
    assert colours[0] == colours[1]


def test_a_plot_of_nothing_but_zeros_is_none_the_less_one() -> None:
    ElementTree.fromstring(plot.bars("t", "a", [Group("g", [("ours", Spread(0, 0, 0))])]))


@pytest.mark.parametrize(
    ("most", "expected"),
    [(4.2, (5.0, 1.0)), (10, (10, 2)), (97, (100, 20)), (0.012, (0.0125, 0.0025)), (0, (1, 0.2))],
)
def test_an_axis_ends_at_a_round_figure(most: float, expected: tuple[float, float]) -> None:
    assert plot.scale([0.0, most]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.1234, "0.123"), (12.34, "12.3"), (123.4, "123"), (45678.9, "45,679")],
)
def test_figures_have_three_digits_that_mean_something(value: float, expected: str) -> None:
    assert plot.number(value) == expected


def test_the_documentation_gets_the_figures_between_its_comments(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n\n{docs.BEGIN}\n\nold figures\n\n{docs.END}\n\nafter\n")
    (tmp_path / "performance").mkdir()
    (tmp_path / "performance" / "old.svg").write_text("")
    for _ in range(2):  # the second time changes nothing
        docs.write(some_results(), tmp_path)
        text = page.read_text()
        assert text.startswith(f"before\n\n{docs.BEGIN}\n\n")
        assert text.endswith(f"\n\n{docs.END}\n\nafter\n")
        assert "old figures" not in text
        assert "### Targets" in text
    plots = [path.name for path in (tmp_path / "performance").iterdir()]
    assert plots and "old.svg" not in plots
    assert all(f"](performance/{name})" in text for name in plots)


@pytest.mark.parametrize(
    ("begin", "name", "peers"),
    [
        (docs.BEGIN_TUNNELS, "tunnel-echo-64B-c32", ("tunnel+picows", "proxy+picows")),
        (docs.BEGIN_RELAYS, "relay-2x1000", ("ours, relayed", "ours")),
    ],
)
def test_a_run_of_one_subject_alone_keeps_the_other_figures(
    begin: str, name: str, peers: tuple[str, str], tmp_path: Path
) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"{begin}\n\nold\n\n{docs.END}\n\n{docs.BEGIN}\n\nkept\n\n{docs.END}\n")
    (tmp_path / "performance").mkdir()
    plot_of_others = tmp_path / "performance" / "cpu.svg"
    plot_of_others.write_text("")
    figures = {peers[0]: {"cpu_us": 6.0}, peers[1]: {"cpu_us": 10.0}}
    case = CaseResults(name, select([name])[0].kind.value, 32, [figures])
    docs.write(Results({"Processor": "A CPU"}, [case]), tmp_path)
    block, _, others = page.read_text().partition(docs.END)
    assert "old" not in block
    assert f"| {name} | CPU per " in block
    assert "fan-out-1000" not in block
    assert "kept" in others
    assert plot_of_others.exists()


def test_a_page_without_the_comments_is_left_alone() -> None:
    with pytest.raises(docs.NoMarkers):
        docs.put_between("a page", "figures")


def test_the_page_that_ships_has_the_comments() -> None:
    page = (docs.DOCS / "performance.md").read_text()
    for begin in (docs.BEGIN, *docs.BLOCKS):
        docs.put_between(page, "", begin)


# How far a relay goes.


@pytest.mark.parametrize(("machines", "members"), [(10, 2), (10, 30), (100, 250)])
def test_the_simulated_site_is_that_of_a_random_placement(machines: int, members: int) -> None:
    rng = random.Random(7)
    number = machines * reach.CLIENTS // members // 10
    placed = [len({rng.randrange(machines) for _ in range(members)}) for _ in range(number)]
    found = reach.load(machines, members)
    assert found.groups == pytest.approx(sum(placed) * 10 / machines, rel=0.02)
    assert found.written == pytest.approx(machines * found.groups)


def test_the_cost_of_a_broker_is_read_from_its_figures() -> None:
    alone = {1: 10.0 + 5.5, 10: 10.0 + 55, 100: 10.0 + 550}
    at_once = {1: 8.5, 10: 13.0, 100: 58.0}
    cost = reach.fitted(alone, at_once)
    assert (cost.publish_us, cost.write_us, cost.send_us) == pytest.approx((8.0, 0.5, 5.0))


def test_the_page_of_machines_has_what_the_simulation_finds() -> None:
    assert reach.table() in (reach.DOCS / "machines.md").read_text()
    assert (reach.DOCS / reach.PLOT).read_text() == reach.drawing()


def test_a_plot_of_lines_has_logarithmic_axes() -> None:
    line = [(10.0, 1.0), (100.0, 10.0), (1000.0, 100.0)]
    root = ElementTree.fromstring(plot.lines("A <t>", "x", "y", [("one", line)], [(10, "mark")]))
    (path,) = [e for e in root.iter(f"{SVG}path") if e.get("stroke-width") == "2"]
    points = [tuple(map(float, pair.split())) for pair in path.attrib["d"][1:].split("L")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0, y1 - y0) == pytest.approx((x2 - x1, y2 - y1), abs=0.2)
    assert x0 < x1 and y0 > y1, "larger figures are to the right, and above"
    assert {"A <t>", "x", "y", "one", "mark", "1,000"} <= {e.text for e in root.iter(f"{SVG}text")}
