"""Producer programs as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..conftest import DEADLINE_S

ROOT = Path(__file__).parents[2]

# Its arguments: the socket file; how many workers.
ECHO = """
import os, sys
from apachews import Event, Server

server = Server(sys.argv[1], workers=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
for event in server:
    if event.type() is Event.IO:
        event.write(str(os.getpid()) if event.read() == "who" else event.read())
"""

# Becomes a program as systemd would start it: its arguments are the descriptors, a
# comma between them, and the program's.
AS_SYSTEMD = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 100) for fd in sys.argv[1].split(",")]
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)))
os.execv(sys.executable, [sys.executable, "-W", "error", *sys.argv[2:]])
"""


def program(directory: Path, text: str = ECHO, name: str = "program.py") -> str:
    """Write a program; return its path."""
    path = directory / name
    path.write_text(text)
    return str(path)


@contextmanager
def running(
    *command: str,
    env: dict[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
    **account: Any,
) -> Iterator[subprocess.Popen[str]]:
    """Run Python with these arguments; at the end it must be gone, or is killed.

    Args:
        command: Python's arguments.
        env: variables beside those of the tests.
        pass_fds: descriptors that it inherits.
        account: as what user, as ``subprocess.Popen`` has it.
    """
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=pass_fds,
        start_new_session=True,
        **account,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; return the exit status, and all that was written."""
    output, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, output


def children_of(pid: int) -> list[int]:
    """Return a process's children, the oldest first."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in text.split()]


def is_alive(pid: int) -> bool:
    """Return whether the process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
