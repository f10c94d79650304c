"""What all tests share: waiting with a deadline, and short paths for sockets."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest

from apachews_handler.shared import rundir
from apachews_tools.httpd import private_apache

from . import parts

# CI tries the same examples every time; a developer's machine looks for new ones.  On another
# interpreter a few show that a property holds there too; Debian's Python tries all of them.
is_elsewhere = parts.ELSEWHERE in os.environ.get("APACHEWS_PART", "").split(",")
examples = 20 if is_elsewhere else 100
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=examples)
hypothesis.settings.register_profile("here", deadline=None, max_examples=examples)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

# A shell has its background jobs ignore these, nohup the last of them, and so do the
# programs that they start; the tests send them.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

# pytest-xdist's workers divide the ports among them.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    private_apache.ports = private_apache.ports[
        int(worker.removeprefix("gw")) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    ]

T = TypeVar("T")
DEADLINE_S = 10.0


def pytest_configure(config: pytest.Config) -> None:
    """Let Apache's user in before pytest-xdist's workers start.

    A worker that did it and undid it would undo it while others need it.
    """
    from .support.site import make_readable  # which needs wait_for of this module

    if getattr(config.option, "numprocesses", None):
        make_readable()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test the markers of its part."""
    for item in items:
        for marker in parts.markers(item.nodeid):
            item.add_marker(marker)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Put back what Apache's user was let into, and say so."""
    from .support.site import restore_modes  # which needs wait_for of this module

    for line in restore_modes():
        terminalreporter.write_line(line)


def wait_for(
    condition: Callable[[], T], timeout_s: float = DEADLINE_S, what: Callable[[], object] = str
) -> T:
    """Return the first true result of the condition; fail when the time is over.

    ``what`` is asked for an explanation only then.
    """
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:g} s in vain; {what()}")
        time.sleep(0.01)
    return result


def slots_of(kind: type) -> list[str]:
    """Return the names of the state that a class adds to its bases', interpreted or compiled."""
    if not hasattr(kind, "__mypyc_attrs__"):
        return list(kind.__dict__.get("__slots__", ()))
    inherited = getattr(kind.__base__, "__mypyc_attrs__", ())
    return [name for name in kind.__mypyc_attrs__ if name not in inherited]


def let_pass(seconds: float) -> None:
    """Wait for what must *not* happen; for what must, there is ``wait_for``."""
    time.sleep(seconds)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for the 107 bytes of a Unix socket's."""
    path = Path(tempfile.mkdtemp(prefix="aws"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def temporary(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files, and none of ours in it yet."""
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    monkeypatch.setattr(rundir, "_directory_fd", -1)
    yield short_path / f"apachews-{os.geteuid()}"
    descriptor = rundir.descriptor()
    if descriptor is not None:
        os.close(descriptor)
