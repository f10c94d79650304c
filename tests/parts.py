"""The tables of the tests' parts: what runs alone, what in one process, what elsewhere.

Contract: ``markers(nodeid)`` returns the markers of a test, ``scope(nodeid)`` the group of tests
that one process runs.  An entry is a directory, a file or a test, relative to ``tests``; it holds
for all tests below it.  A new file needs no entry: its tests run beside others, in one process,
on Debian's Python only.

How to choose: a test is of ``MEASURES`` if it measures time, processor or memory with little
room, or loads both processors for seconds, or counts on a process without other threads.  A test
is of ``PORTABILITY`` if it depends on the interpreter (ctypes, sockets, signals, asyncio, ssl,
threads), on the host of the handler (mod_wsgi, mod_python), or on what pip has built.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

DIRECTORY: Final = Path(__file__).parent

# Expressions of markers.
ALONE: Final = "alone"
BESIDE: Final = "not alone"
ELSEWHERE: Final = "portability"

MEASURES: Final = (
    "bench",
    "stress",
    "integration/test_floods.py",
    "integration/test_waiting_handshakes.py",
    # A fork in a process with threads is a warning from Python 3.12 on, and a worker has threads.
    "handler/test_limits.py::test_a_fork_keeps_the_places",
    # The kernel's notifications are signals to the process: any thread of a worker may take one.
    "handler/test_custodian.py",
)

# They wait nearly all the time, for slow peers or for httpd: 6 s of processor in a minute.
NOT_MEASURES: Final = (
    "stress/test_slow_networks.py",
    "stress/test_slow_peers.py",
    "stress/test_restarts.py::test_mod_proxy_and_apachews_side_by_side",
    "stress/test_tunnel.py::test_reloads_with_proxied_sockets",
)

# All these tests run in one process, one after the other, beside the others: each loads a
# processor (compilers, browsers, Autobahn), and those of ``c`` build in one directory.
TOGETHER: Final = ("browser", "c", "conformance", "docs", "php")

# Each test of the file starts its own Apache, and some take many seconds: any process takes the
# next test.  Tests of other files share fixtures, and a process takes a whole file.
SPREAD: Final = (
    "integration/test_handover.py",
    "integration/test_restarts.py",
    "integration/test_run.py",
    "stress/test_restarts.py",
    "stress/test_tunnel.py",
)

PORTABILITY: Final = (
    "library",
    "handler",
    "tools",
    "project/test_examples.py",
    # The handshake, the detachment and TLS: every MPM, plain and TLS.
    "integration/test_upgrade.py",
    "integration/test_seed.py",
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

NOT_PORTABILITY: Final = (
    # A program in C, built by cc; the test is only its client and its custodian.  That the
    # extension with the same code works in an interpreter: integration/test_handover.py.
    "handler/test_tls_relay.py",
    # A process for each row of a table, which differ in their text.
    "tools/test_connect.py::test_a_refusal_of_the_handler_has_its_hint_whatever_its_words",
    "tools/test_connect.py::test_a_refusal_is_explained",
)


def markers(nodeid: str) -> list[str]:
    """Return the markers of a test, by its pytest name (``tests/handler/test_x.py::test_y``)."""
    name = nodeid.removeprefix("tests/")
    found = []
    if _is_among(name, MEASURES) and not _is_among(name, NOT_MEASURES):
        found.append(ALONE)
    if _is_among(name, PORTABILITY) and not _is_among(name, NOT_PORTABILITY):
        found.append(ELSEWHERE)
    return found


def scope(nodeid: str) -> str:
    """Return the name of the group of tests that one process runs: most often a file."""
    name = nodeid.removeprefix("tests/")
    if _is_among(name, TOGETHER):
        return "together"
    return name if _is_among(name, SPREAD) else name.partition("::")[0]


def may_have(file: str, expressions: Iterable[str]) -> bool:
    """Return whether a file may have a test that matches all of these expressions.

    Args:
        file: relative to ``tests``.
        expressions: ``ALONE``, ``BESIDE`` and ``ELSEWHERE`` are understood.
    """
    whole = markers(file)
    matches = {
        ALONE: ALONE in whole or _is_named_within(file, MEASURES),
        BESIDE: ALONE not in whole or _is_named_within(file, NOT_MEASURES),
        ELSEWHERE: ELSEWHERE in whole or _is_named_within(file, PORTABILITY),
    }
    return all(matches.get(expression, True) for expression in expressions)


def _is_among(name: str, entries: tuple[str, ...]) -> bool:
    return any(
        name == entry or name.startswith((f"{entry}/", f"{entry}::", f"{entry}["))
        for entry in entries
    )


def _is_named_within(file: str, entries: tuple[str, ...]) -> bool:
    return any(entry.startswith(f"{file}::") for entry in entries)
