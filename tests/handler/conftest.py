"""What unit tests share: a run directory of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews_handler.shared import rundir


@pytest.fixture
def temporary(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files, and none of ours in it yet."""
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    monkeypatch.setattr(rundir, "_directory_fd", -1)
    yield short_path / f"apachews-{os.geteuid()}"
    descriptor = rundir.descriptor()
    if descriptor is not None:
        os.close(descriptor)
