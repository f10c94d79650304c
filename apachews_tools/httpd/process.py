"""A running httpd, according to /proc.

Contract: ``running(pid_file)`` returns the httpd that wrote a pid file, or None.  Reads
/proc only; what it does not reveal of another user's processes is None.

Sources: proc(5), cgroups(7).
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apachews._processes.supervise import children_of

PROGRAMS: Final = ("apache2", "httpd")
PROC: Final = Path("/proc")


@dataclass(frozen=True)
class Httpd:
    """A running httpd.

    Attributes:
        pid: of the parent process.
        children: process ids of the others.
        uid: of the user of the children.
        descriptor_limit: the soft limit of a child; None if it is not readable.
        descriptors: the largest number of open descriptors in a child; None likewise.
        unit: its systemd unit, for example ``apache2.service``; "" without one.
        renewed_at: the start of the youngest process, as ``time.time()``; httpd read its
            configuration before that.
    """

    pid: int
    children: tuple[int, ...]
    uid: int
    descriptor_limit: int | None
    descriptors: int | None
    unit: str
    renewed_at: float


def running(pid_file: str) -> Httpd | None:
    """Return the httpd that a pid file names, None if it does not run."""
    try:
        pid = int(Path(pid_file).read_text())
        name = (PROC / str(pid) / "comm").read_text().strip()
    except (OSError, ValueError):
        return None
    if name not in PROGRAMS:
        return None  # another program has this process id now
    children = tuple(children_of(pid))
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
    """Return httpd's service, from /proc/<pid>/cgroup; "" if it is in another unit."""
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
        return 0.0  # it has just exited
    started_s = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + started_s


def _uid(pid: int) -> int:
    # Not the owner of /proc/<pid>, which is root after a process has changed its user.
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
