"""Functions that the program wants called between two events.

Contract: for ``Loop``.  ``call_soon`` is for any thread and for signal handlers, without a lock;
the other methods are under the server's lock.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable

Function = Callable[[], object]


class Calls:
    """A queue of functions to call at once, and a heap of functions to call later.

    Attributes:
        soon: functions that are due.
        later: deadline, number and function of those that are not, as a heap.  The number
            keeps the order of equal deadlines, and functions cannot be compared.
    """

    def __init__(self) -> None:
        self.soon: deque[Function] = deque()
        self.later: list[tuple[float, int, Function]] = []
        self._numbers = itertools.count()

    def call_soon(self, function: Function) -> None:
        """Add a function that is due at once."""
        self.soon.append(function)

    def call_later(self, delay_s: float, function: Function) -> None:
        """Add a function that is due after some seconds."""
        deadline = time.monotonic() + delay_s
        heapq.heappush(self.later, (deadline, next(self._numbers), function))

    def next_at(self) -> float | None:
        """Return when the next function of ``later`` is due (``time.monotonic()``), or None."""
        return self.later[0][0] if self.later else None

    def run_due(self) -> None:
        """Call the functions that are due; an exception of one leaves the others in ``soon``."""
        # Collected before any is called: a function that calls call_later(0, itself) is due in
        # the next call of this method, and not in an endless loop here.
        if self.later:
            now = time.monotonic()
            while self.later and self.later[0][0] <= now:
                self.soon.append(heapq.heappop(self.later)[2])
        while self.soon:
            self.soon.popleft()()
