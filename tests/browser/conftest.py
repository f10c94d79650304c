"""One demo for all that look at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .chromium import CHROMEDRIVER, CHROMIUM, Demo, running_demo


@pytest.fixture(scope="session")
def demo() -> Iterator[Demo]:
    """The demo, running."""
    if not CHROMIUM or not CHROMEDRIVER:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    with running_demo() as demo:
        yield demo
