"""A running httpd, as /proc shows it.

Contract: ``running(pid_file)`` returns the httpd that wrote a pid file, or None.  Reads
/proc only; another user's processes show less of themselves, and what they do not show
is None.

Sources: proc(5), cgroups(7).
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROGRAMS: Final = ("apache2", "httpd")
PROC: Final = Path("/proc")


@dataclass(frozen=True)
class Httpd:
    """A running httpd.

    Attributes:
        pid: of its first process.
        children: of the others.
        uid: of the user whom its children serve as.
        descriptor_limit: of a child, the soft one; None where it cannot be read.
        descriptors: how many the child with the most has open; None likewise.
        unit: its own of systemd, as ``apache2.service``; "" for none.
        renewed_at: when the youngest of its processes was started, as ``time.time()``
            has it; httpd has read its configuration before that.
    """

    pid: int
    children: tuple[int, ...]
    uid: int
    descriptor_limit: int | None
    descriptors: int | None
    unit: str
    renewed_at: float


def running(pid_file: str) -> Httpd | None:
    """Return the httpd that a pid file names, None where none runs."""
    try:
        pid = int(Path(pid_file).read_text())
        name = (PROC / str(pid) / "comm").read_text().strip()
    except (OSError, ValueError):
        return None
    if name not in PROGRAMS:
        return None  # somebody else has its number now
    children = tuple(_children(pid))
    serving = children or (pid,)
    counts = [count for count in map(_descriptors, serving) if count is not None]
    limits = [limit for limit in map(_descriptor_limit, serving) if limit is not None]
    return Httpd(
        pid,
        children,
        _uid(serving[0]),
        min(limits, default=None),
        max(counts, default=None),
        unit_in((PROC / str(pid) / "cgroup").read_text()),
        max(map(_started_at, serving)),
    )


def unit_in(cgroup: str) -> str:
    """Return httpd's service, from /proc/<pid>/cgroup; "" where it runs in none of its own."""
    match = re.search(r"/((?:apache2|httpd)(?:@[^/\n]*)?\.service)(?:/|$)", cgroup, re.MULTILINE)
    return match[1] if match else ""


def limit_in(limits: str) -> int | None:
    """Return the soft limit on descriptors, from /proc/<pid>/limits."""
    match = re.search(r"^Max open files\s+(\d+|unlimited)", limits, re.MULTILINE)
    if match is None:
        return None
    return 1 << 30 if match[1] == "unlimited" else int(match[1])


def _started_at(pid: int) -> float:
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0.0  # it has just ended
    started_s = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + started_s


def _children(pid: int) -> list[int]:
    try:
        text = (PROC / str(pid) / "task" / str(pid) / "children").read_text()
    except OSError:
        return []  # it has just ended, or the kernel has no such file
    return [int(child) for child in text.split()]


def _uid(pid: int) -> int:
    # Not the owner of /proc/<pid>: that is root for whoever has changed his user.
    try:
        match = re.search(r"^Uid:\s+\d+\s+(\d+)", (PROC / str(pid) / "status").read_text(), re.M)
    except OSError:
        match = None
    return int(match[1]) if match else os.geteuid()


def _descriptor_limit(pid: int) -> int | None:
    try:
        return limit_in((PROC / str(pid) / "limits").read_text())
    except OSError:
        return None


def _descriptors(pid: int) -> int | None:
    try:
        return len(os.listdir(PROC / str(pid) / "fd"))
    except OSError:
        return None
