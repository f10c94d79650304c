"""How a fuzzer's input is read: settings from its first bytes, then what is tested.

Contract: ``Source(data)`` gives one value after the other and never ends: what is
missing is 0.  So every input means something, and one that is cut short means
nearly the same.  ``make_corpus.py`` writes inputs to match.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Reads one input from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def is_empty(self) -> bool:
        return self._position >= len(self._data)

    def byte(self) -> int:
        """Return the next byte, 0 at the end."""
        if self.is_empty:
            return 0
        self._position += 1
        return self._data[self._position - 1]

    def choose(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.byte() % len(options)]

    def take(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        self._position += size
        return self._data[self._position - size : self._position]

    def short_list(self) -> list[int]:
        """Return a list of at most 15 bytes, led by its length."""
        return list(self.take(self.byte() & 15))

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(max(0, len(self._data) - self._position))


def cut(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """Yield the data in pieces of these sizes, over and over; [] cuts nothing, 0 is 256."""
    if not sizes:
        yield data
        return
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)] or 256
        yield data[position : position + size]
        position += size
        turn += 1
