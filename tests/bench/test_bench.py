"""The benchmarks run from end to end: quickly, a handful of cases, as a user runs them."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.results import CaseResults, Results

from ..conftest import wait_for

ROOT = Path(__file__).parents[2]
RUN = ROOT / "bench" / "run"
CASES = [
    "round-trip",
    "echo-64B-c32-w1-text",
    "wss-echo-64KiB-c1-w1",
    "fan-out-100",
    "handshakes",
    "memory-wss",
    "scale",
]
WHOLE_S = 90


def arguments(output: Path, cases: list[str]) -> list[str]:
    named = [word for case in cases for word in ("--case", case)]
    return [str(RUN), "--quick", "--output", str(output), *named]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bench")
    done = subprocess.run(
        arguments(directory, CASES),
        capture_output=True,
        text=True,
        check=False,
        timeout=WHOLE_S,
        cwd="/",
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return directory


@pytest.fixture(scope="module")
def results(output: Path) -> Results:
    return Results.read(output / "results.json")


def leftovers() -> list[str]:
    """Return the command lines of what a run has started and not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has ended
        if "apachews-bench-" in line or " -m bench." in line:
            found.append(line)
    return found


def case_of(results: Results, name: str) -> CaseResults:
    case = results.case(name)
    assert case
    return case


@pytest.mark.parametrize("name", CASES)
def test_every_peer_has_figures(results: Results, name: str) -> None:
    for figures in case_of(results, name).rounds:
        assert all(figures.values())
        assert all("cpu_us" not in found or found["cpu_us"] > 0 for found in figures.values())


def test_nothing_was_lost(results: Results) -> None:
    assert not results.harm()
    scale = case_of(results, "scale").rounds[0]["ours"]
    assert (scale["lost"], scale["storm_lost"], scale["dropped"]) == (0, 0, 0)


def test_round_trips_are_timed(results: Results) -> None:
    for found in case_of(results, "round-trip").rounds[0].values():
        assert 0 < found["p50_us"] <= found["p99_us"]


def test_the_two_ways_to_count_cpu_agree(results: Results) -> None:
    deviation = results.stat_deviation()
    assert deviation is not None
    assert deviation < 0.1


def test_mod_proxy_holds_a_worker_for_each_socket_and_ours_none(results: Results) -> None:
    (found,) = case_of(results, "memory-wss").rounds
    workers = {peer: figures["workers_each"] for peer, figures in found.items()}
    assert workers == {"ours, wss": 0, "proxy+websockets, wss": 1}


def test_the_report_has_tables_and_plots(output: Path, results: Results) -> None:
    text = (output / "report.md").read_text()
    for name in CASES:
        assert f"### {name}\n" in text
    plots = list(output.glob("*.svg"))
    assert plots
    for plot in plots:
        ElementTree.parse(plot)
        assert f"]({plot.name})" in text
    assert results.about["httpd"] in text
    assert results.about["websockets"] != "not installed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_interrupted_it_leaves_no_process(output: Path, tmp_path: Path, number: int) -> None:
    """``output`` only so that this comes after the whole run."""
    process = subprocess.Popen(
        [
            *(ROOT / ".venv" / "bench" / "bin" / "python", "-P", "-m", "bench", "--rounds", "50"),
            *("--output", tmp_path, "--case", "echo-64B-c1-w1"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any(" -m bench.load" in line for line in leftovers()), 30)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    wait_for(lambda: not leftovers(), 10, leftovers)
