"""A profile of our processes: strace, perf and py-spy on Apache's children and the producer.

Only for ours, and not during the measurement: each of these tools slows the processes.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from . import measure, peers
from .cases import PEERS, Case, Kind

KINDS: Final = (Kind.ECHO, Kind.FAN_OUT, Kind.HANDSHAKES)
SECONDS: Final = 2
END_TIMEOUT_S: Final = 20
LINES: Final = 40
NO_FRAME: Final = "(not in Python)"


def run(case: Case) -> list[tuple[str, str]]:
    """Run a case for ours alone, under each tool; return a heading and a text for each.

    Raises:
        PeerFailed, GeneratorFailed
    """
    peer = PEERS[case.peers[0]]
    mode = "fan-out" if case.kind is Kind.FAN_OUT else "echo"
    with measure.driven(peer, mode, case.connections, case.our_children) as (running, generator):
        measure.begin(case, peer, running, generator)
        assert running.apache
        looked_at = {
            "Apache's child": running.apache.children(),
            "producer": running.backend_pids(),
        }
        root = running.apache.root
        found = []
        for who, pids in looked_at.items():
            for tool, look in (("strace", _strace), ("perf", _perf), ("py-spy", _py_spy)):
                path = _which(tool)
                text = look(path, pids, root) if path else f"{tool} is not installed"
                found.append((f"{case.name}, {who}: {tool}", _head(text)))
        generator.ask("halt")
    return found


def _which(tool: str) -> str | None:
    """Return the path of a tool in this environment, or else in PATH; or None."""
    own = shutil.which(tool, path=str(Path(sys.executable).parent))
    return own or shutil.which(tool)


def _strace(path: str, pids: list[int], root: Path) -> str:
    """Count system calls."""
    log = root / "strace.txt"
    attach = [argument for pid in pids for argument in ("-p", str(pid))]
    tool = subprocess.Popen(
        [path, "-c", "-f", "-q", "-o", str(log), *attach],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        time.sleep(SECONDS)
        tool.send_signal(signal.SIGINT)
        _, said = tool.communicate(timeout=END_TIMEOUT_S)
    finally:
        tool.kill()
        tool.wait()
    return peers.tail(log) or said


def _perf(path: str, pids: list[int], root: Path) -> str:
    """Sample functions, including the kernel's if that is allowed."""
    data = root / "perf.data"
    recorded = _say(
        *(path, "record", "-q", "-o", str(data), "-p", ",".join(map(str, pids))),
        *("--", "sleep", str(SECONDS)),
    )
    if not data.exists():
        return recorded
    report = _say(
        *(path, "report", "-i", str(data), "--stdio", "--percent-limit", "1"),
        *("--sort", "dso,symbol"),
    )
    lines = [line for line in report.splitlines() if line and not line.startswith("#")]
    return "\n".join(re.sub(r"(\s+-)*\s*$", "", line) for line in lines)


def _py_spy(path: str, pids: list[int], root: Path) -> str:
    """Sample Python's functions: the share of samples in which each was the innermost."""
    tops: Counter[str] = Counter()
    said = ""
    for pid in pids:
        raw = root / f"py-spy-{pid}.txt"
        said = _say(
            *(path, "record", "--nonblocking", "-r", "200", "-d", str(SECONDS), "-f", "raw"),
            *("-o", str(raw), "-p", str(pid)),
        )
        if raw.exists():
            tops += top_frames(raw.read_text())
    total = sum(tops.values())
    lines = [f"{count / total:6.1%}  {frame}" for frame, count in tops.most_common(LINES)]
    return "\n".join(lines) or said


def top_frames(raw: str) -> Counter[str]:
    """Count the innermost frames in py-spy's raw format: ``frame;frame;frame count``.

    A thread outside Python has no frame, for example an Apache worker between two requests.
    """
    tops: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        tops[stack.rpartition(";")[2] or NO_FRAME] += int(count)
    return tops


def _say(*command: str) -> str:
    """Run a tool and return its output."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=END_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} took too long"
    return done.stdout + done.stderr


def _head(text: str) -> str:
    return "\n".join(text.splitlines()[:LINES])
