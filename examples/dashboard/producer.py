"""Figures of this machine: processor, memory, network and disks, once a second.

Run it with the path of its socket file as the argument.

A client receives JSON objects: first ``{"every_s": 1, "samples": […]}`` with the last
minutes, then one sample a second.  A sample is ``{"at": 1767225600.0, "cpu": {…}, …}``, see
``Sampler.sample``.  Messages from clients are ignored.

All clients get the same samples: the program takes and encodes each sample once.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from apachews import Event, Server

EVERY_S = 1.0
HISTORY = 300  # samples for clients that connect later: five minutes
SECTOR_BYTES = 512  # unit of /proc/diskstats, independent of the disk

Sample = dict[str, Any]


def main(path: str) -> None:
    """Serve on a socket file until the server is closed."""
    sampler = Sampler()
    history: deque[Sample] = deque(maxlen=HISTORY)
    with Server(path) as server:
        watchers = server.group("watchers")
        due_at = time.monotonic()
        while True:
            event = server.dequeue(max(0.0, due_at - time.monotonic()))
            if event is not None and event.type() is Event.Accept:
                event.client().send_json({"every_s": EVERY_S, "samples": list(history)})
                watchers.add(event.client())
            if time.monotonic() < due_at:
                continue
            due_at = max(due_at + EVERY_S, time.monotonic())
            if sample := sampler.sample():
                history.append(sample)
                watchers.broadcast_json(sample)


class Sampler:
    """Reads the kernel's counters and returns their changes as rates.

    Args:
        proc, block: the directories ``/proc`` and ``/sys/block``, or others in tests.
    """

    def __init__(self, proc: Path = Path("/proc"), block: Path = Path("/sys/block")) -> None:
        self._proc = proc
        self._block = block
        self._before: tuple[float, dict[str, int]] | None = None

    def sample(self) -> Sample | None:
        """Return the figures for the time since the last call; None at the first call.

        ``at``: seconds since 1970.  ``cpu``: user, system, wait (for disks) and stolen (by
        other virtual machines), percent of all processors.  ``memory``: used, cache (which
        the kernel frees on demand), total and swap, bytes.  ``network``: in and out, bytes a
        second over all interfaces except the loopback.  ``disk``: read and written, bytes a
        second.  ``load``: load average of the last minute; ``processors``: their number.
        """
        at, counters = time.time(), self._counters()
        before, self._before = self._before, (time.monotonic(), counters)
        if before is None:
            return None
        elapsed_s = max(self._before[0] - before[0], 1e-3)
        # Not below zero: a sum falls when an interface or a disk is removed.
        grown = {name: max(0, counters[name] - before[1].get(name, 0)) for name in counters}
        ticks = max(1, sum(grown[name] for name in CPU_FIELDS))

        def percent(*names: str) -> float:
            return round(100 * sum(grown[name] for name in names) / ticks, 1)

        def rate(name: str) -> int:
            return round(grown[name] / elapsed_s)

        return {
            "at": round(at, 3),
            "cpu": {
                "user": percent("user", "nice"),
                "system": percent("system", "irq", "softirq"),
                "wait": percent("iowait"),
                "stolen": percent("steal"),
            },
            "memory": self._memory(),
            "network": {"in": rate("received"), "out": rate("sent")},
            "disk": {"read": rate("read"), "written": rate("written")},
            "load": float((self._proc / "loadavg").read_text().split()[0]),
            "processors": counters["processors"],
        }

    def _counters(self) -> dict[str, int]:
        """Return the counters, which only grow."""
        stat = (self._proc / "stat").read_text().splitlines()
        counters = dict(zip(CPU_FIELDS, map(int, stat[0].split()[1:]), strict=False))
        counters["processors"] = sum(line.startswith("cpu") for line in stat[1:])
        counters |= {"received": 0, "sent": 0, "read": 0, "written": 0}
        for line in (self._proc / "net" / "dev").read_text().splitlines()[2:]:
            name, _, numbers = line.partition(":")
            if name.strip() != "lo":
                counters["received"] += int(numbers.split()[0])
                counters["sent"] += int(numbers.split()[8])
        for line in (self._proc / "diskstats").read_text().splitlines():
            fields = line.split()
            if self._is_disk(fields[2]):
                counters["read"] += int(fields[5]) * SECTOR_BYTES
                counters["written"] += int(fields[9]) * SECTOR_BYTES
        return counters

    def _is_disk(self, name: str) -> bool:
        """Return whether it is a physical disk, not a partition or a combination of disks."""
        return (self._block / name / "device").exists()

    def _memory(self) -> dict[str, int]:
        kib = {}
        for line in (self._proc / "meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            kib[name] = int(value.split()[0])
        used = kib["MemTotal"] - kib["MemAvailable"]
        return {
            "used": used * 1024,
            "cache": max(0, kib["MemAvailable"] - kib["MemFree"]) * 1024,
            "total": kib["MemTotal"] * 1024,
            "swap": (kib["SwapTotal"] - kib["SwapFree"]) * 1024,
        }


# The fields of the first line of /proc/stat, in order; proc(5).  (user includes guest.)
CPU_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


if __name__ == "__main__":
    main(sys.argv[1])
