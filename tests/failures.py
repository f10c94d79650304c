"""A pytest plugin that writes the failures of a run to a file, for ``tests/suite.py``.

Contract: ``APACHEWS_FAILURES`` names the file.  Each failed phase of a test appends one line,
``<setup|call|teardown|???> <test's name>``.  ``???`` is a worker process that crashed.
"""

from __future__ import annotations

import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append a failure; pytest-xdist's workers leave that to their controller."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ["APACHEWS_FAILURES"], "a", encoding="utf-8") as file:
            file.write(f"{report.when} {report.nodeid}\n")
