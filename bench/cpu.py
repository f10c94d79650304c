"""The processor time that processes have had, to the nanosecond.

Source: a process's own CPU clock (clock_getcpuclockid(3)), which the kernel lets others
read.  It counts all of the process's threads, those too that have ended, user and
system time alike, without the 10 ms ticks in which /proc/PID/stat has them.  One call a
process, however many threads: reading thousands of /proc/PID/task/*/schedstat would itself
be a load.  The sums of /proc/PID/stat are read beside it, as a check; the report says
how far apart the two were.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Reading:
    """What processes had had at a moment.

    Attributes:
        ns: by process, its CPU clock.
        ticks: by process, utime and stime.
    """

    ns: dict[int, int]
    ticks: dict[int, int]


@dataclass(frozen=True)
class Used:
    """What processes had between two readings.

    Attributes:
        seconds: by their CPU clocks.
        stat_seconds: by /proc/PID/stat.
        ended: processes that ended in between; what they had last is not counted.
    """

    seconds: float
    stat_seconds: float
    ended: int


def clock_of(pid: int) -> int:
    """Return the id of a process's CPU clock.

    As glibc's clock_getcpuclockid(3) makes it: the complement of the process id, three
    bits up, and CPUCLOCK_SCHED (2).
    """
    return (~pid << 3) | 2


def ticks_in(stat: str) -> int:
    """Return utime + stime of the text of a /proc/PID/stat (proc(5): fields 14 and 15)."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def read(pids: Iterable[int]) -> Reading:
    """Read what these processes have had; those that have ended are left out."""
    ns, ticks = {}, {}
    for pid in pids:
        try:
            ns[pid] = time.clock_gettime_ns(clock_of(pid))
            ticks[pid] = ticks_in(Path(f"/proc/{pid}/stat").read_text())
        except OSError:
            ns.pop(pid, None)
    return Reading(ns, ticks)


def of(pids: Iterable[int], reading: Reading) -> Reading:
    """Return the part of a reading that is about these processes."""
    return Reading(
        {pid: reading.ns[pid] for pid in pids if pid in reading.ns},
        {pid: reading.ticks[pid] for pid in pids if pid in reading.ticks},
    )


def used(before: Reading, after: Reading) -> Used:
    """Return what was used between two readings; a process that is new counts from its start."""
    ns = sum(value - before.ns.get(pid, 0) for pid, value in after.ns.items())
    ticks = sum(value - before.ticks.get(pid, 0) for pid, value in after.ticks.items())
    return Used(ns / 1e9, ticks / TICKS_A_SECOND, len(before.ns.keys() - after.ns.keys()))
