"""Running a command as an asyncio program: signals, and tasks that end together."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from .command import ENDING

T = TypeVar("T")


def run_until_signal(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own; return its result.

    SIGINT, SIGTERM and SIGHUP cancel the coroutine, which then cleans up.  Further
    signals do not interrupt the cleanup.  A signal that was ignored before stays
    ignored, as with nohup(1).

    Raises:
        KeyboardInterrupt: SIGINT.
        SystemExit: another signal; the status is 128 and its number.
    """
    received: Final[list[int]] = []

    async def supervised() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task

        def cancel(number: int) -> None:
            received.append(number)
            if len(received) == 1:
                task.cancel()

        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, cancel, number)
        return await main

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        if not received:
            raise
        if received[0] == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + received[0]) from None


async def first_result(*coroutines: Coroutine[Any, Any, T]) -> T:
    """Run coroutines side by side; return the result of the first that ends.

    The others are cancelled, and have ended when this returns.  An exception counts as a
    result, and is raised.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
