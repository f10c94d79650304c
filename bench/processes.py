"""Start, find and end the programs of this package."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with the installed packages (``-P``: see bench/run)."""
    return [sys.executable, "-P", "-m", module, *arguments]


def end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Kill the session that a process leads, and reap the process."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of them have ended
    process.wait()


def of_session(leader: int) -> list[int]:
    """Return the processes of a session: a program, and what it has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue  # it has ended
        # proc(5): the fields after the name are state, ppid, pgrp, session
        if stat.rpartition(")")[2].split()[3] == str(leader):
            found.append(int(entry.name))
    return sorted(found)


def kill(pid: int) -> None:
    """Kill a process that may have ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended


def of_apache(root: Path) -> list[int]:
    """Return the processes of the httpd that has this ServerRoot, with the custodians.

    A custodian is no longer a child of httpd, but its command line still names the directory.
    """
    found = []
    wanted = str(root).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        program = command.partition(b"\0")[0].rpartition(b"/")[2]
        if program in (b"apache2", b"httpd") and wanted in command:
            found.append(int(entry.name))
    return sorted(found)
