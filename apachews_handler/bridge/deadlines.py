"""Times at which things want to be looked at: a heap that nothing is taken out of.

Contract: ``schedule`` has a thing come out of ``take_due`` at a time, once;
``drop`` has it not.  Sans-I/O; the caller's clock; for one thread.

How this works: each time that is scheduled has a ticket, and a thing has at most
one ticket that counts.  An earlier time replaces a later one, whose ticket stays
in the heap and is skipped when its time comes: no moving, no searching.  The heap
holds tickets only, so that it keeps nothing alive that has gone; and when more
than half of it is such tickets, it is made anew.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Final, Generic, Protocol, TypeVar

# Tickets that do not count are no more than the others, and these.
SPARE_TICKETS: Final = 1000


class Schedulable(Protocol):
    """What a thing must have for its place in the heap.

    Attributes:
        scheduled_at: math.inf at first; for ``Deadlines`` alone.
        ticket: 0 at first; for ``Deadlines`` alone.
    """

    scheduled_at: float
    ticket: int


T = TypeVar("T", bound=Schedulable)


class Deadlines(Generic[T]):
    """A number of things and their times."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._tickets: dict[int, T] = {}
        self._next_ticket = itertools.count(1)

    def __len__(self) -> int:
        """Return how many tickets the heap has, those that do not count as well."""
        return len(self._heap)

    def schedule(self, thing: T, at: float) -> None:
        """Have a thing come out at a time, unless it comes earlier anyway; inf for never."""
        if at < thing.scheduled_at:
            self._tickets.pop(thing.ticket, None)
            thing.scheduled_at = at
            thing.ticket = next(self._next_ticket)
            self._tickets[thing.ticket] = thing
            heapq.heappush(self._heap, (at, thing.ticket))

    def drop(self, thing: T) -> None:
        """Have a thing not come out any more."""
        self._tickets.pop(thing.ticket, None)
        thing.scheduled_at = math.inf

    def next_at(self) -> float:
        """Return when to call ``take_due``; inf for never."""
        heap, tickets = self._heap, self._tickets
        while heap and heap[0][1] not in tickets:
            heapq.heappop(heap)  # a driver that sleeps is not to wake up for it
        return heap[0][0] if heap else math.inf

    def take_due(self, now: float) -> list[T]:
        """Return the things whose time has come, earliest first; they have none then."""
        heap, tickets = self._heap, self._tickets
        if len(heap) > 2 * len(tickets) + SPARE_TICKETS:
            heap[:] = [entry for entry in heap if entry[1] in tickets]
            heapq.heapify(heap)
        due = []
        while heap and heap[0][0] <= now:
            thing = tickets.pop(heapq.heappop(heap)[1], None)
            if thing is not None:
                thing.scheduled_at = math.inf
                due.append(thing)
        return due
