"""Waiting for a file descriptor in an asyncio program."""

from __future__ import annotations

import asyncio


async def wait_readable(fd: int, timeout_s: float | None = None) -> None:
    """Return when the descriptor is readable, or when the timeout has passed.

    One caller per descriptor.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(fd, readable.set)
    except PermissionError:
        # EPERM of epoll: a file or /dev/null, which is always readable.  (Other tasks run.)
        await asyncio.sleep(0)
        return
    try:
        await asyncio.wait_for(readable.wait(), timeout_s)
    except asyncio.TimeoutError:
        pass
    finally:
        loop.remove_reader(fd)
