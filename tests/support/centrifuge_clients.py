"""Coroutines of tests with clients of ``centrifuge-python``."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

from ..conftest import DEADLINE_S


def run(talk: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, and what its clients have left of their connections."""

    async def talk_and_wait() -> None:
        await talk
        await asyncio.sleep(0)

    with warnings.catch_warnings():
        # The client leaves closing its transports to the loop, which run() ends first.
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(talk_and_wait())
        gc.collect()


async def eventually(condition: Callable[[], Any]) -> Any:
    """Return the first true result, as ``wait_for`` in a coroutine."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)
    return found
