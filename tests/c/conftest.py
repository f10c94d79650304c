"""Skips these tests if the library cannot be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from .build import KINDS, built, why_not


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give the first test time to build, or to wait for another process that does."""
    item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(autouse=True, scope="session")
def can_build() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(params=KINDS)
def programs(request: pytest.FixtureRequest, can_build: None) -> Path:
    """The directory of the programs, of each kind in turn."""
    return built(request.param)
