"""The processor time of processes, in nanoseconds.

Source: the CPU clock of a process (clock_getcpuclockid(3)), which other processes may read.  It
counts user and system time of all threads, also of those that have ended, without the 10 ms ticks
of /proc/PID/stat.  One call for each process, whatever its number of threads: to read thousands
of /proc/PID/task/*/schedstat would itself be a load.  The sums of /proc/PID/stat are a check; the
report has the difference between the two.
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
    """The time that processes had used at a moment.

    Attributes:
        ns: by process, its CPU clock.
        ticks: by process, utime and stime.
    """

    ns: dict[int, int]
    ticks: dict[int, int]


@dataclass(frozen=True)
class Used:
    """The time that processes used between two readings.

    Attributes:
        seconds: by their CPU clocks.
        stat_seconds: by /proc/PID/stat.
        ended: number of processes that ended in between; their last part is not counted.
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
    """Read the clocks of these processes; the ones that have ended are left out."""
    ns, ticks = {}, {}
    for pid in pids:
        try:
            ns[pid] = time.clock_gettime_ns(clock_of(pid))
            ticks[pid] = ticks_in(Path(f"/proc/{pid}/stat").read_text())
        except OSError:
            ns.pop(pid, None)
    return Reading(ns, ticks)


def of(pids: Iterable[int], reading: Reading) -> Reading:
    """Return the part of a reading for these processes."""
    return Reading(
        {pid: reading.ns[pid] for pid in pids if pid in reading.ns},
        {pid: reading.ticks[pid] for pid in pids if pid in reading.ticks},
    )


def used(before: Reading, after: Reading) -> Used:
    """Return the time between two readings; a new process counts from its start."""
    ns = sum(value - before.ns.get(pid, 0) for pid, value in after.ns.items())
    ticks = sum(value - before.ticks.get(pid, 0) for pid, value in after.ticks.items())
    return Used(ns / 1e9, ticks / TICKS_A_SECOND, len(before.ns.keys() - after.ns.keys()))
