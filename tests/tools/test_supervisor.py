"""dev.supervisor: what is killed by force; tests/integration/test_run.py has the rest."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apachews_tools.dev.supervisor import _kill_tree

from ..conftest import wait_for

# Each starts the next one, which is told of its end by SIGHUP, as the runner's program is,
# and that program's workers; and which is quick to say so.
PROGRAM = """
import os, signal, subprocess, sys
from apachews._processes.signals import Lifeline, signal_at_end_of

program, directory, depth, lifeline_fd = sys.argv[1], *sys.argv[2:]
if lifeline_fd != "-":
    signal.signal(signal.SIGHUP, lambda *_: os.mkdir(f"{directory}/heard-{depth}"))
    signal_at_end_of(int(lifeline_fd), signal.SIGHUP)
if depth != "0":
    lifeline = Lifeline()
    subprocess.Popen(
        [sys.executable, "-c", program, program, directory, str(int(depth) - 1),
         str(lifeline.reader_fd)],
        pass_fds=[lifeline.reader_fd],
    )
    lifeline.close_reader()
os.mkdir(f"{directory}/{os.getpid()}")
while True:
    signal.pause()
"""


def started(directory: Path, depth: int) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Return the first of a tree, and the process ids of all, once all are ready."""
    directory.mkdir()
    root = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, PROGRAM, str(directory), str(depth), "-"]
    )
    wait_for(lambda: len(os.listdir(directory)) == depth + 1)
    return root, [int(name) for name in os.listdir(directory)]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_tree_that_is_killed_hears_nothing_of_it(tmp_path: Path, depth: int) -> None:
    for number in range(8):
        directory = tmp_path / str(number)
        root, pids = started(directory, depth)
        _kill_tree(root)
        assert root.returncode == -signal.SIGKILL
        for pid in pids:
            wait_for(functools.partial(has_ended, pid))
        assert sorted(map(int, os.listdir(directory))) == sorted(pids)


def has_ended(pid: int) -> bool:
    """Tell whether a process has ended; it may wait for its new parent to see it."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def test_who_is_somebody_elses_keeps_nobody_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, pids = started(tmp_path / "x", 1)
    (other,) = {*pids} - {root.pid}
    kill = os.kill

    def kill_ours(pid: int, number: int) -> None:
        if pid == other:
            raise PermissionError
        kill(pid, number)

    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", kill_ours)
        _kill_tree(root)
    assert root.returncode == -signal.SIGKILL
    os.kill(other, signal.SIGKILL)


def test_a_tree_that_has_ended_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as parent:
        parent.wait()
    _kill_tree(parent)
    _kill_tree(None)
