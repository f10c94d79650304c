"""The benchmarks run from end to end: quickly, a handful of cases, as a user runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import reach
from bench.results import CaseResults, Results

from ..conftest import wait_for

ROOT = Path(__file__).parents[2]
RUN = ROOT / "bench" / "run"
CASES = [
    "round-trip",
    "echo-64B-c32-w1-text",
    "wss-echo-64KiB-c1-w1",
    "fan-out-10000",
    "fan-out-json",
    "fan-out-stalled",
    "handshakes",
    "memory-wss",
    "relay-2x1000",
    "scale",
]
# A new checkout also installs the servers; the limit is for a machine with other work.
WHOLE_S = 240
pytestmark = pytest.mark.timeout(WHOLE_S + 60)


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
        env=os.environ | {"APACHEWS_COMPILE": "0"},  # a build that compiles takes a minute
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert re.search(
        r"^fan-out-10000 +CPU of a broadcast to all .* (met|missed)$", done.stdout, re.M
    )
    return directory


@pytest.fixture(scope="module")
def results(output: Path) -> Results:
    return Results.read(output / "results.json")


def started_by(run: str) -> list[str]:
    """Return the command lines of a run and of all that it has started and not ended.

    Args:
        run: a variable that each of them has in its environment, as ``NAME=value``.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"\0{run}\0".encode() in b"\0" + (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended
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


def test_every_server_delivers_to_all(results: Results) -> None:
    (found,) = case_of(results, "fan-out-10000").rounds
    assert list(found) == ["ours", "picows", "nchan"]
    for figures in found.values():
        # The program is a part of all that serves, or the whole.
        assert 0 < figures["backend_cpu_us"] <= figures["cpu_us"]
    assert found["nchan"]["backend_cpu_us"] == found["nchan"]["cpu_us"]


def test_those_that_read_get_every_message_while_others_stall(results: Results) -> None:
    (found,) = case_of(results, "fan-out-stalled").rounds
    assert found["ours"]["broadcasts_per_second"] > 0


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
        env=os.environ | {"LC_RUN": str(tmp_path)},  # root's Apache gets no other variables
    )
    run = f"LC_RUN={tmp_path}"
    wait_for(lambda: any(" -m bench.load" in line for line in started_by(run)), 30)
    assert any("apache2" in line for line in started_by(run))
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    wait_for(lambda: not started_by(run), 10, lambda: started_by(run))


def test_what_a_broker_carries_is_measured() -> None:
    for name, broker in reach.brokers():
        rate, processor_us = reach.measure(broker, 3, 5, seconds=0.2)
        assert rate > 0 < processor_us, name
