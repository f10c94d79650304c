"""Calls of hooks that may take a while: in threads, in asyncio's loop, or at another server.

Contract: ``Calls.call(hook, …)`` is for the generators of ``Commands``: it returns the result, and
yields the future of a hook that has not finished.  ``wait(future, resume)`` calls ``resume`` once,
in ``dequeue()``.  A future has ``add_done_callback`` and ``result``, as those of
``concurrent.futures`` and of asyncio.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

from apachews.server import Server

from . import protocol
from .protocol import ReplyError

# Then the client gets an error, and may try again.
HOOK_TIMEOUT_S: Final = 10.0

T = TypeVar("T")
# What ``Commands`` runs: yields futures, is resumed with their results, and returns a value.
Steps = Generator[Any, Any, T]


class Calls:
    """Calls hooks.

    Args:
        server: the library's.
        executor: runs them; None: this thread does.
    """

    def __init__(self, server: Server, executor: concurrent.futures.Executor | None) -> None:
        self._server = server
        self._executor = executor

    def call(self, hook: Callable[..., Any], *arguments: Any) -> Steps[Any]:
        """Call a hook; return its result, whether it comes at once or later."""
        if self._executor is not None:
            found: Any = self._executor.submit(hook, *arguments)
        else:
            found = hook(*arguments)
        if inspect.iscoroutine(found):
            try:
                found = asyncio.get_running_loop().create_task(found)
            except RuntimeError:
                found.close()
                raise TypeError(
                    f"the hook {hook!r} is a coroutine: serve with apachews.aio"
                ) from None
        return (yield found) if hasattr(found, "add_done_callback") else found

    def wait(self, future: Any, resume: Callable[[Callable[[], Any]], object]) -> None:
        """Call a function in ``dequeue()`` when a future is done, or is late.

        Args:
            resume: called with a function that returns the result, or raises.
        """
        is_over = False

        def finish(result: Callable[[], Any]) -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                resume(result)

        def on_done(future: Any) -> None:
            self._server.call_soon(functools.partial(finish, functools.partial(_result, future)))

        future.add_done_callback(on_done)
        self._server.call_later(HOOK_TIMEOUT_S, functools.partial(finish, _late))


def _result(future: Any) -> Any:
    try:
        return future.result()
    except (asyncio.CancelledError, concurrent.futures.CancelledError):
        raise ReplyError(*protocol.INTERNAL, is_temporary=True) from None


def _late() -> Any:
    raise ReplyError(*protocol.INTERNAL, is_temporary=True)
