"""A timer heap with lazy deletion.

Contract: ``schedule`` sets an item's deadline; ``pop_due`` returns each expired item once;
``cancel`` removes an item's deadline.  Sans-I/O, on the caller's clock, for one thread.

How this works: every scheduled deadline has a ticket, and an item has at most one valid
ticket.  An earlier deadline replaces a later one, whose stale ticket stays in the heap and
is skipped when it expires: no entry is searched for or moved.  The heap holds tickets and no
items, so it keeps no removed item alive.  When stale entries outnumber valid ones, the heap
is rebuilt.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Final, Generic, Protocol, TypeVar

# Rebuild the heap when stale entries exceed valid ones by this many: below, a rebuild costs
# more than the entries.
SPARE_TICKETS: Final = 1000


class Schedulable(Protocol):
    """The attributes that an item must have.

    Attributes:
        scheduled_at: math.inf at first; for ``Deadlines`` alone.
        ticket: 0 at first; for ``Deadlines`` alone.
    """

    scheduled_at: float
    ticket: int


T = TypeVar("T", bound=Schedulable)


class Deadlines(Generic[T]):
    """The deadlines of many items."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._tickets: dict[int, T] = {}
        self._next_ticket = itertools.count(1)

    def __len__(self) -> int:
        """Return how many entries the heap has, the stale ones included."""
        return len(self._heap)

    def schedule(self, item: T, at: float) -> None:
        """Set an item's deadline, unless it has an earlier one; inf sets none."""
        if at < item.scheduled_at:
            self._tickets.pop(item.ticket, None)
            item.scheduled_at = at
            item.ticket = next(self._next_ticket)
            self._tickets[item.ticket] = item
            heapq.heappush(self._heap, (at, item.ticket))

    def cancel(self, item: T) -> None:
        """Cancel an item's deadline."""
        self._tickets.pop(item.ticket, None)
        item.scheduled_at = math.inf

    def next_at(self) -> float:
        """Return the earliest deadline; inf without deadlines."""
        heap, tickets = self._heap, self._tickets
        # A stale entry would wake the driver for nothing.
        while heap and heap[0][1] not in tickets:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def pop_due(self, now: float) -> list[T]:
        """Return the items whose deadline has passed, earliest first; they have none afterwards."""
        heap, tickets = self._heap, self._tickets
        if len(heap) > 2 * len(tickets) + SPARE_TICKETS:
            heap[:] = [entry for entry in heap if entry[1] in tickets]
            heapq.heapify(heap)
        due = []
        while heap and heap[0][0] <= now:
            item = tickets.pop(heapq.heappop(heap)[1], None)
            if item is not None:  # else the entry is stale
                item.scheduled_at = math.inf
                due.append(item)
        return due
