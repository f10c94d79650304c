"""apachews.cli.supervisor: what is killed by force; tests/integration/test_run.py has the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from apachews.cli.supervisor import _kill_tree

from ..conftest import wait_for

# Starts a program that is told of its parent's end by SIGHUP, as the runner's is, and is
# quick to say so.
PARENT = """
import os, signal, subprocess, sys
from apachews.signals import Lifeline

lifeline = Lifeline()
subprocess.Popen(
    [sys.executable, "-c", sys.argv[1], str(lifeline.reader_fd), sys.argv[2]],
    pass_fds=[lifeline.reader_fd],
)
lifeline.keep()
signal.pause()
"""
PROGRAM = """
import os, signal, sys
from apachews.signals import signal_at_end_of

signal.signal(signal.SIGHUP, lambda *_: os.mkdir(sys.argv[2] + "/heard"))
signal_at_end_of(int(sys.argv[1]), signal.SIGHUP)
os.mkdir(sys.argv[2] + "/ready")
while True:
    signal.pause()
"""


def test_a_tree_that_is_killed_hears_nothing_of_it(tmp_path: Path) -> None:
    for number in range(10):
        directory = tmp_path / str(number)
        directory.mkdir()
        parent = subprocess.Popen([sys.executable, "-c", PARENT, PROGRAM, str(directory)])
        wait_for((directory / "ready").exists)
        _kill_tree(parent)
        assert parent.poll() is not None
        assert [path.name for path in directory.iterdir()] == ["ready"]


def test_a_tree_that_has_ended_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as parent:
        parent.wait()
    _kill_tree(parent)
    _kill_tree(None)
