"""The table that gives tests their markers: ``alone`` and ``portability``.

Contract: ``markers(nodeid)`` returns the markers of a test.  An entry is a directory, a file or
a test, relative to ``tests``; it holds for all tests below it.  A new file needs no entry: its
tests run beside others, on Debian's Python only.

How to choose: a test is ``alone`` if it measures time, processor or memory with little room, if
it loads both processors for seconds, or if it shares a directory or a browser with other tests.
A test is of ``portability`` if it depends on the interpreter (ctypes, sockets, signals, asyncio,
ssl, threads), on the host of the handler (mod_wsgi, mod_python), or on what pip has built.
"""

from __future__ import annotations

from typing import Final

ALONE: Final = (
    "bench",
    "browser",
    "c",  # they build in one directory
    "conformance",
    "docs",
    "packages",  # steps on one machine
    "php",
    "stress",
    "integration/test_floods.py",
    "integration/test_waiting_handshakes.py",
    # A fork in a process with threads is a warning from Python 3.12 on, and a worker has threads.
    "handler/test_limits.py::test_a_fork_keeps_the_places",
    # The kernel's notifications are signals to the process: any thread of a worker may take one.
    "handler/test_custodian.py",
)

PORTABILITY: Final = (
    "library",
    "handler",
    "tools",
    "project",
    # The handshake, the detachment and TLS: every MPM, plain and TLS.
    "integration/test_upgrade.py",
    "integration/test_seed.py",
    "integration/test_seed_faults.py",
    # What the host does: its log, its environ, its answers.
    "integration/test_answers.py",
    "integration/test_client_facts.py",
    "integration/test_error_document.py",
    "integration/test_logs.py",
    "integration/test_modpython.py",
    # Restarts: threads and forks of an embedded interpreter.
    "integration/test_restarts.py",
    # What is exported to another process: the codec, the inflater, the limits.
    "integration/test_handover.py::test_a_compressed_message_refers_to_those_before_the_handover",
    "integration/test_handover.py::test_sessions_of_clients_with_tls_move_and_a_small_relay_stays",
    "integration/test_handover.py::test_limits_count_clients_that_were_handed_over",
    "integration/test_handover.py::test_a_producer_that_restarts_later_resumes_them",
    # The library's ways to serve, and the command line.
    "integration/test_library.py",
    "integration/test_run.py",
)

# Of the checkout and its tools; the interpreter has no part in it.
NOT_PORTABILITY: Final = (
    "project/test_bench_cases.py",
    "project/test_bench_readings.py",
    "project/test_bench_report.py",
    "project/test_bench_results.py",
    "project/test_deploy.py",
    "handler/test_close_causes.py",
    "project/test_fuzz_corpus.py",
    "project/test_layers.py",
    "project/test_suite.py",
    "project/test_systemd_units.py",
)


def markers(nodeid: str) -> list[str]:
    """Return the markers of a test, by its pytest name (``tests/handler/test_x.py::test_y``)."""
    found = []
    if _is_among(nodeid, ALONE):
        found.append("alone")
    if _is_among(nodeid, PORTABILITY) and not _is_among(nodeid, NOT_PORTABILITY):
        found.append("portability")
    return found


def _is_among(nodeid: str, entries: tuple[str, ...]) -> bool:
    name = nodeid.removeprefix("tests/")
    return any(
        name == entry or name.startswith((f"{entry}/", f"{entry}::", f"{entry}["))
        for entry in entries
    )
