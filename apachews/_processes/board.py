"""The relay's counters of all workers, in memory that they share.

Contract: ``Board(count)`` before the workers are forked; ``write`` and ``others`` in each worker,
for its place.  Each place has one writer; a reader may see some numbers of it that are newer than
others, which does not matter to counters.

How this works: a worker that replaces another one starts with the counters of that place, so
that the sums never fall.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
from typing import Final


@dataclasses.dataclass(slots=True)
class Counters:
    """What the relay of a process has done; written without a lock, each number by one thread.

    Attributes:
        is_up: connected, and all subscriptions are proven.
        published: messages that the broker has accepted.
        received: messages of other producers.
        dropped_out: messages that were dropped before the broker accepted them.
        dropped_in: messages of others that were dropped because this program was too slow.
        dropped_beside: messages that other workers of this machine did not accept.
        gaps: how often the connection was lost and restored.
        lag_s: the latest round trip to the broker and back.
    """

    is_up: bool = False
    published: int = 0
    received: int = 0
    dropped_out: int = 0
    dropped_in: int = 0
    dropped_beside: int = 0
    gaps: int = 0
    lag_s: float = 0.0


_PLACE: Final = struct.Struct("=?QQQQQQd")


class Board:
    """A place for each worker.

    Args:
        count: number of workers.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._memory = mmap.mmap(-1, _PLACE.size * count)

    def write(self, place: int, counters: Counters) -> None:
        """Show the counters of this worker to the others."""
        values = dataclasses.astuple(counters)
        _PLACE.pack_into(self._memory, place * _PLACE.size, *values)

    def read(self, place: int) -> Counters:
        """Return the counters of one place."""
        return Counters(*_PLACE.unpack_from(self._memory, place * _PLACE.size))

    def others(self, place: int) -> list[Counters]:
        """Return the counters of all other places."""
        return [self.read(other) for other in range(self._count) if other != place]
