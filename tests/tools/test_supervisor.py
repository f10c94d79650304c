"""dev.program: killing by force; tests/integration/test_run.py has the rest."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apachews_tools.dev.program import Producer, ProgramProcess

from ..conftest import wait_for

# Each process starts the next one, which gets SIGHUP when its parent exits and then makes a
# directory at once: so do the runner's program and that program's workers.
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


def kill_program(process: subprocess.Popen[bytes] | None) -> None:
    program = ProgramProcess(Producer("x", Path("x.py"), Path("x.ws")), None)
    program.process = process
    program.kill()


def started(directory: Path, depth: int) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Return the root of a tree of processes, and all process ids, once all are ready."""
    directory.mkdir()
    root = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, PROGRAM, str(directory), str(depth), "-"]
    )
    wait_for(lambda: len(os.listdir(directory)) == depth + 1)
    return root, [int(name) for name in os.listdir(directory)]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_killed_tree_gets_no_chance_to_react(tmp_path: Path, depth: int) -> None:
    for number in range(8):
        directory = tmp_path / str(number)
        root, pids = started(directory, depth)
        kill_program(root)
        assert root.returncode == -signal.SIGKILL
        for pid in pids:
            wait_for(functools.partial(has_ended, pid))
        assert sorted(map(int, os.listdir(directory))) == sorted(pids)


def has_ended(pid: int) -> bool:
    """Tell whether a process has exited; its new parent may not have reaped it yet."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def test_a_process_of_another_user_is_left_alone(
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
        kill_program(root)
    assert root.returncode == -signal.SIGKILL
    os.kill(other, signal.SIGKILL)


def test_a_process_that_has_exited_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as parent:
        parent.wait()
    kill_program(parent)
    kill_program(None)
