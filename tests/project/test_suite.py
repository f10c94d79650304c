"""tests/suite.py: what runs side by side and alone, and what a failure becomes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .. import parts
from ..support.site import ROOT

# A test that fails the first time: it leaves a file beside itself.
FAILS_ONCE = """
def test_{name}():
    seen = pathlib.Path(__file__).with_name("{name}.seen")
    if not seen.exists():
        seen.touch()
        assert False
"""
WORKER = 'os.environ.get("PYTEST_XDIST_WORKER", "none")'


ENTRIES = (
    *parts.MEASURES,
    *parts.NOT_MEASURES,
    *parts.TOGETHER,
    *parts.SPREAD,
    *parts.PORTABILITY,
    *parts.NOT_PORTABILITY,
)
CONFIGURATION = """
[pytest]
addopts = -p xdist.plugin -p no:cacheprovider
markers =
    alone
    portability
"""


def suite(directory: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the suite on one file of tests."""
    (directory / "pytest.ini").write_text(CONFIGURATION)
    (directory / "test_it.py").write_text(f"import os, pathlib, pytest\n{text}")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "APACHEWS_"))
    }
    return subprocess.run(
        [sys.executable, "-m", "tests.suite", "-n", "1", *options],
        cwd=directory,
        # Other plugins only cost time here.
        env=environment | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_tests_marked_alone_run_in_no_worker(tmp_path: Path) -> None:
    done = suite(
        tmp_path,
        f"def test_beside(): assert {WORKER} != 'none'\n"
        f"@pytest.mark.alone\ndef test_alone(): assert {WORKER} == 'none'\n",
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("1 passed") == 2
    assert "FLAKY" not in done.stdout


def test_one_process_can_run_all_tests(tmp_path: Path) -> None:
    done = suite(
        tmp_path,
        f"def test_a(): assert {WORKER} == 'none'\n@pytest.mark.alone\ndef test_b(): pass\n",
        *("-n", "0"),
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("2 passed") == 1


def test_a_file_runs_in_one_process(tmp_path: Path) -> None:
    """As its tests share fixtures; pytest-xdist alone would divide them."""
    text = (
        "@pytest.mark.parametrize('number', range(20))\n"
        f"def test_it(number): pathlib.Path('ran-in', {WORKER}).touch()\n"
    )
    (tmp_path / "ran-in").mkdir()
    assert suite(tmp_path, text, "-n", "2").returncode == 0
    assert len(list((tmp_path / "ran-in").iterdir())) == 1


@pytest.mark.parametrize("marker", ["", "@pytest.mark.alone"])
def test_a_failure_that_passes_alone_is_flaky(tmp_path: Path, marker: str) -> None:
    done = suite(tmp_path, marker + FAILS_ONCE.format(name="late"))
    assert done.returncode == 0, done.stdout
    assert "1 failed" in done.stdout
    assert done.stdout.splitlines()[-1] == "FLAKY: test_it.py::test_late"


def test_a_second_failure_is_final(tmp_path: Path) -> None:
    once = FAILS_ONCE.format(name="late")
    done = suite(tmp_path, once + "def test_never(): assert False\n")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "FLAKY: test_it.py::test_late"


def test_a_crash_of_a_worker_is_retried(tmp_path: Path) -> None:
    text = FAILS_ONCE.format(name="late").replace("assert False", "os.kill(os.getpid(), 9)")
    done = suite(tmp_path, text)
    assert done.returncode == 0, done.stdout
    assert "FLAKY: " in done.stdout


def test_a_failed_teardown_is_final(tmp_path: Path) -> None:
    fixture = "@pytest.fixture(scope='module')\ndef site():\n    yield\n    assert False\n"
    done = suite(tmp_path, f"{fixture}def test_it(site): pass\n")
    assert done.returncode == 1
    assert "a failed teardown is not retried: " in done.stdout


def test_a_file_that_cannot_be_imported_is_final(tmp_path: Path) -> None:
    assert suite(tmp_path, "import absent_module\n").returncode == 1


def test_many_failures_are_not_retried(tmp_path: Path) -> None:
    text = "@pytest.mark.parametrize('i', range(11))\ndef test_it(i): assert False\n"
    done = suite(tmp_path, text)
    assert done.returncode == 1
    assert "11 tests failed; up to 10 are retried" in done.stdout


def test_a_selection_that_selects_nothing_fails(tmp_path: Path) -> None:
    done = suite(tmp_path, "def test_it(): pass\n", "-k", "absent")
    assert done.returncode == 1
    assert "no test was selected" in done.stdout


def test_portability_is_a_part_of_the_tests(tmp_path: Path) -> None:
    text = (
        "def test_other(): assert False\n"
        "@pytest.mark.portability\ndef test_beside(): pass\n"
        "@pytest.mark.alone\n@pytest.mark.portability\ndef test_alone(): pass\n"
    )
    done = suite(tmp_path, text, "--portability")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("1 passed") == 2


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_table_names_what_exists(entry: str) -> None:
    path, _, name = entry.partition("::")
    assert (ROOT / "tests" / path).exists()
    assert not name or f"def {name}(" in (ROOT / "tests" / path).read_text()


@pytest.mark.parametrize(
    ("nodeid", "markers"),
    [
        ("tests/stress/test_memory.py::test_memory[ws]", ["alone"]),
        ("tests/stress/test_slow_peers.py::test_x", []),
        ("tests/c/test_wire.py::test_x", []),
        ("tests/handler/test_mask.py::test_x", ["portability"]),
        ("tests/handler/test_tls_relay.py::test_x", []),
        ("tests/handler/test_limits.py::test_a_fork_keeps_the_places", ["alone", "portability"]),
        ("tests/project/test_systemd_units.py::test_x", []),
        ("tests/conftest_c.py::test_x", []),
    ],
)
def test_the_table_by_directory_file_and_test(nodeid: str, markers: list[str]) -> None:
    assert parts.markers(nodeid) == markers


@pytest.mark.parametrize(
    ("nodeid", "scope"),
    [
        ("tests/c/test_wire.py::test_x[1]", "together"),
        ("tests/php/test_library.py::test_y", "together"),
        ("tests/integration/test_run.py::test_x[1]", "integration/test_run.py::test_x[1]"),
        ("tests/integration/test_seed.py::test_x[1]", "integration/test_seed.py"),
    ],
)
def test_a_process_takes_a_group_of_tests(nodeid: str, scope: str) -> None:
    assert parts.scope(nodeid) == scope


@pytest.mark.parametrize(
    ("file", "expressions", "expected"),
    [
        ("stress/test_memory.py", ["alone"], True),
        ("stress/test_memory.py", ["not alone"], False),
        ("stress/test_slow_peers.py", ["alone"], False),
        ("handler/test_mask.py", ["portability", "not alone"], True),
        ("handler/test_mask.py", ["portability", "alone"], False),
        # One of its tests is.
        ("handler/test_limits.py", ["portability", "alone"], True),
        ("handler/test_limits.py", ["portability", "not alone"], True),
        ("integration/test_handover.py", ["portability"], True),
        ("integration/test_examples.py", ["portability"], False),
        ("handler/test_tls_relay.py", ["portability"], False),
        ("tools/test_connect.py", ["portability"], True),
        ("integration/test_examples.py", ["slow or not slow"], True),
    ],
)
def test_files_without_a_selected_test(file: str, expressions: list[str], expected: bool) -> None:
    assert parts.may_have(file, expressions) == expected


def test_such_files_are_not_imported(tmp_path: Path) -> None:
    """In a checkout in which they cannot be imported."""
    tests = tmp_path / "tests"
    (tests / "handler").mkdir(parents=True)
    (tests / "stress").mkdir()
    for name in ("__init__.py", "parts.py", "suite.py"):
        shutil.copy(ROOT / "tests" / name, tests)
    (tests / "stress" / "test_memory.py").write_text("import absent_module\n")
    (tests / "handler" / "test_mask.py").write_text("def test_it(): pass\n")
    (tmp_path / "pytest.ini").write_text(CONFIGURATION)
    command = [sys.executable, "-m", "pytest", "-p", "tests.suite"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "APACHEWS_PART": parts.BESIDE,
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 1 passed" in done.stdout


@pytest.mark.parametrize("status", [0, 1])
def test_ci_lists_skips_and_at_last_flaky_tests(tmp_path: Path, status: int) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / "deploy").mkdir()
    run = shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    program = tmp_path / "deploy" / "test"
    program.write_text(
        "#!/bin/sh\necho 'FLAKY: a::b'\necho 'SKIPPED [1] x: y'\necho '3 passed'\n"
        f"echo '  py314: SKIP (0.01 seconds)'\nexit {status}\n"
    )
    program.chmod(0o755)
    done = subprocess.run([run], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "3 passed" in done.stdout
    assert done.stdout.splitlines()[-4:] == [
        "Skipped:",
        "SKIPPED [1] x: y",
        "  py314: SKIP (0.01 seconds)",
        "FLAKY: a::b",
    ]
