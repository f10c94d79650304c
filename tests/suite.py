"""Runs pytest as CI does: side by side what mostly waits, alone what measures.

::

    python -m tests.suite [--portability] [-n PROCESSES] [pytest's arguments]

Contract: the tests without the marker ``alone`` run first, in ``-n`` processes; the tests with
it run after them, in one.  ``-n 0`` runs all tests in one process.  ``--portability`` selects
the tests that can differ between interpreters and hosts, unless ``APACHEWS_EVERYTHING`` is set
(``deploy/test --everything``).  A test that fails runs once more, in a fresh process and with
nothing beside it.  If it passes then, a line ``FLAKY: <test's name>`` reports it.  The exit
status is 1 if a test failed twice, if a fixture's teardown failed, or if pytest itself failed.

How this works: this module is also the plugin of the runs of pytest that it starts.  The plugin
assigns tests to processes as ``tests/parts.py`` says, does not import files without a selected
test, and appends the names of failed tests to a file.  A failed teardown is final: the fixture
may serve many tests (an Apache whose child crashed), and one of them alone proves nothing about
the others.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from . import parts

# Most tests wait for Apache or for a deadline: so many processes keep two processors busy.
PROCESSES: Final = "5"
# The order of the command line: the long tests first, so that short ones fill the end.
IN_ORDER: Final = "--no-loadscope-reorder"
# What to shorten next.
SLOWEST: Final = ("--durations", "10", "--durations-min", "5")
# More failures than this have one cause, which a retry does not remove.
MOST_RETRIES: Final = 10
EVERYTHING: Final = "APACHEWS_EVERYTHING"
# For the plugin: a file for the names of failed tests; and the selected part of the tests, as
# words of ``parts.may_have``.
FAILURES: Final = "APACHEWS_FAILURES"
PART: Final = "APACHEWS_PART"


def main(arguments: list[str]) -> bool:
    """Run the suite; return whether it passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.suite", allow_abbrev=False)
    parser.add_argument("-n", default=PROCESSES, help="processes; 0: all tests in one")
    parser.add_argument("--portability", action="store_true", help="what can differ elsewhere")
    parser.add_argument("-m", default="", help="an expression of markers")
    options, rest = parser.parse_known_args(arguments)
    selected = [options.m] if options.m else []
    if options.portability and EVERYTHING not in os.environ:
        selected.append(parts.ELSEWHERE)
    with tempfile.TemporaryDirectory() as directory:
        failures = Path(directory, "failures")
        if options.n == "0":
            statuses = [run_pytest(failures, *rest, selected=selected)]
        else:
            beside = ("-n", options.n, IN_ORDER, *rest)
            statuses = [
                run_pytest(failures, *beside, selected=[*selected, parts.BESIDE]),
                run_pytest(failures, *rest, selected=[*selected, parts.ALONE]),
            ]
        return conclude(statuses, failures)


def run_pytest(failures: Path, *arguments: str, selected: list[str]) -> int:
    """Run pytest in a process of its own; return its exit status.

    Args:
        failures: gets the names of the failed tests.
        selected: expressions of markers, all of which a test must match.
    """
    command = [sys.executable, "-m", "pytest", "-p", "tests.suite", *SLOWEST, *arguments]
    command += ["-m", " and ".join(f"({expression})" for expression in selected)]
    environment = {**os.environ, FAILURES: str(failures), PART: ",".join(selected)}
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
    flaky = [name for name in names if not run_pytest(failures, name, selected=[])]
    for name in flaky:
        print(f"FLAKY: {name}", flush=True)
    return flaky == names


# The plugin.


class Scheduler(LoadScopeScheduling):
    """Gives each process the next group of tests, in the order of the command line."""

    def _split_scope(self, nodeid: str) -> str:
        return parts.scope(nodeid)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Schedule as ``tests/parts.py`` says."""
    return Scheduler(config, log)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out files that have no selected test: imports take seconds."""
    name = os.path.relpath(collection_path, parts.DIRECTORY)
    selected = os.environ.get(PART, "").split(",")
    if name.endswith(".py") and not name.startswith("..") and not parts.may_have(name, selected):
        return True
    return None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append a failure to the file; pytest-xdist's workers leave that to their controller.

    A line is ``<setup|call|teardown|???> <test's name>``; ``???`` is a worker that crashed.
    """
    if report.failed and FAILURES in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ[FAILURES], "a", encoding="utf-8") as file:
            file.write(f"{report.when} {report.nodeid}\n")


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
