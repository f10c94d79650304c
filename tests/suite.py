"""Runs pytest as CI does: side by side what mostly waits, alone what measures.

::

    python -m tests.suite [--portability] [-n PROCESSES] [pytest's arguments]

Contract: the tests without the marker ``alone`` run first, in ``-n`` processes; the tests with
it run after them, in one.  ``-n 0`` runs all tests in one process.  ``--portability`` selects
the tests that can differ between interpreters and hosts, unless ``APACHEWS_EVERYTHING`` is set
(``deploy/test --everything``).  A test that fails runs once more, in a fresh process and with
nothing beside it.  If it passes then, a line ``FLAKY: <test's name>`` reports it.  The exit
status is 1 if a test failed twice, if a fixture's teardown failed, or if pytest itself failed.

How this works: ``tests/failures.py`` writes the names of the failed tests to a file.  A failed
teardown is final: the fixture may serve many tests (an Apache whose child crashed), and one of
them alone proves nothing about the others.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import pytest

# Most tests wait for Apache or for a deadline: twice as many processes as CI has processors.
PROCESSES: Final = "4"
# Each process begins with tests that stand together, so that few Apaches are started twice, and
# takes tests from the others at its end.
SHARED_OUT: Final = ("--dist", "worksteal")
# What to shorten next.
SLOWEST: Final = ("--durations", "10", "--durations-min", "5")
# More failures than this have one cause, which a retry does not remove.
MOST_RETRIES: Final = 10
EVERYTHING: Final = "APACHEWS_EVERYTHING"


def main(arguments: list[str]) -> bool:
    """Run the suite; return whether it passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.suite", allow_abbrev=False)
    parser.add_argument("-n", default=PROCESSES, help="processes; 0: all tests in one")
    parser.add_argument("--portability", action="store_true", help="what can differ elsewhere")
    parser.add_argument("-m", default="", help="an expression of markers")
    options, rest = parser.parse_known_args(arguments)
    selected = [options.m] if options.m else []
    if options.portability and EVERYTHING not in os.environ:
        selected.append("portability")
    with tempfile.TemporaryDirectory() as directory:
        failures = Path(directory, "failures")
        runs = (
            [
                ("-n", options.n, "-m", both(*selected, "not alone")),
                ("-m", both(*selected, "alone")),
            ]
            if options.n != "0"
            else [("-m", both(*selected))]
        )
        statuses = [run_pytest(failures, *run, *rest) for run in runs]
        return conclude(statuses, failures)


def both(*expressions: str) -> str:
    """Return the expression that selects what every one of these selects."""
    return " and ".join(f"({expression})" for expression in expressions)


def run_pytest(failures: Path, *arguments: str) -> int:
    """Run pytest in a process of its own; return its exit status."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.failures", *SLOWEST, *arguments]
    environment = {**os.environ, "APACHEWS_FAILURES": str(failures)}
    return subprocess.run(command, env=environment, check=False).returncode


def conclude(statuses: list[int], failures: Path) -> bool:
    """Retry what failed; return whether the suite passed.

    Args:
        statuses: of the runs of pytest.
        failures: the file that they wrote.
    """
    if set(statuses) == {pytest.ExitCode.NO_TESTS_COLLECTED}:
        print("no test was selected")
        return False
    understood = {
        pytest.ExitCode.OK,
        pytest.ExitCode.TESTS_FAILED,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    }
    if not understood.issuperset(statuses):
        return False
    if pytest.ExitCode.TESTS_FAILED not in statuses:
        return True
    lines = failures.read_text(encoding="utf-8").splitlines() if failures.exists() else []
    failed = [line.partition(" ") for line in lines]
    names = sorted({name for _, _, name in failed})
    if not 0 < len(names) <= MOST_RETRIES:
        print(f"{len(names)} tests failed; up to {MOST_RETRIES} are retried")
        return False
    if final := {name for phase, _, name in failed if phase == "teardown"}:
        print(f"a failed teardown is not retried: {', '.join(sorted(final))}")
        return False
    print(f"\n{len(names)} failed; each runs once more, alone", flush=True)
    flaky = [name for name in names if not run_pytest(failures, name)]
    for name in flaky:
        print(f"FLAKY: {name}", flush=True)
    return flaky == names


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
