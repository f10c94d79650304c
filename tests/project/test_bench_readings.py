"""What the benchmarks read in /proc, and from the clocks of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bench import cpu, machine, memory
from bench.cpu import Reading
from bench.profile import NO_FRAME, top_frames

STAT = "42 (a (b) c) S 1 42 42 0 -1 4194560 10 0 0 0 150 50 7 8 20 0 1 0 100 0 0"
ROLLUP = """\
55d0c9a00000-7ffd2b7f1000 ---p 00000000 00:00 0                          [rollup]
Rss:                9000 kB
Pss:                5000 kB
Pss_Dirty:          4000 kB
"""


def test_ticks_are_user_and_system_time_whatever_the_program_is_called() -> None:
    assert cpu.ticks_in(STAT) == 200


def test_what_was_used_is_the_difference() -> None:
    before = Reading({1: 1_000_000_000, 2: 5}, {1: 100, 2: 1})
    after = Reading({1: 3_000_000_000, 2: 5}, {1: 300, 2: 1})
    used = cpu.used(before, after)
    assert used.seconds == 2.0
    assert used.stat_seconds == 200 / cpu.TICKS_A_SECOND
    assert used.ended == 0


def test_a_new_process_counts_from_its_start_and_one_that_ended_is_noticed() -> None:
    used = cpu.used(Reading({1: 10**9}, {1: 100}), Reading({2: 5 * 10**8}, {2: 50}))
    assert used.seconds == 0.5
    assert used.ended == 1


def test_the_clock_of_another_process_has_all_of_its_threads() -> None:
    """Two threads, as hashing lets both go on at once."""
    program = (
        "import hashlib, threading, time\n"
        "def spin():\n"
        "    while time.process_time() < 0.3: hashlib.sha256(bytes(10**6))\n"
        "threads = [threading.Thread(target=spin) for _ in range(2)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print(time.process_time_ns(), flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        own = int(process.stdout.readline())
        reading = cpu.read([process.pid])
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert own <= reading.ns[process.pid] < own + 100_000_000
    assert abs(reading.ticks[process.pid] / cpu.TICKS_A_SECOND - own / 1e9) < 0.1


def test_a_process_that_has_ended_is_left_out() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert cpu.read([process.pid, os.getpid()]).ns.keys() == {os.getpid()}
    assert memory.pss([process.pid]) == 0


def test_our_own_clock_is_the_process_clock() -> None:
    before = time.process_time_ns()
    reading = cpu.read([os.getpid()])
    assert before <= reading.ns[os.getpid()] <= time.process_time_ns()


def test_busy_workers_are_those_of_mod_status() -> None:
    assert memory.busy_workers_in("ServerUptimeSeconds: 9\nBusyWorkers: 3\nIdleWorkers: 22\n") == 3
    with pytest.raises(ValueError, match="no BusyWorkers"):
        memory.busy_workers_in("<html>")


def test_memory_is_the_proportional_share() -> None:
    assert memory.pss_in(ROLLUP) == 5000 * 1024
    with pytest.raises(ValueError, match="Pss"):
        memory.pss_in("Rss: 1 kB")


def test_the_machine_is_named() -> None:
    assert machine.cpu_model("processor\t: 0\nmodel name\t: A CPU  \n") == "A CPU"
    assert machine.memory_gib("MemTotal:       16777216 kB\n") == 16.0
    assert machine.version_of("a-package-that-is-not-there") == "not installed"


def test_py_spys_stacks_are_counted_by_their_innermost_frame() -> None:
    raw = "main (a.py:1);run (b.py:2) 3\nother (c.py:1);run (b.py:2) 2\nmain (a.py:1) 1\n 4\n"
    assert top_frames(raw) == {"run (b.py:2)": 5, "main (a.py:1)": 1, NO_FRAME: 4}
