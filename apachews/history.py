"""The last messages of a group, in one order, and what a client has missed of them.

Contract: sans-I/O; the time goes in.  A *position* is an epoch and an offset: the messages of a
group have the offsets 1, 2, 3 … of one epoch.  A store that has lost messages begins another
epoch, so that an offset never names two messages.

A ``Log`` has no holes: its messages are the last ones up to its position.  So ``Log.replay``
either returns everything that a client has missed, or says that there is a gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

# The history of a group is shorter than the queue of a slow client (``max_queue_bytes``), so that
# a replay does not close the client.
DEFAULT_MAX_BYTES: Final = 1024 * 1024
DEFAULT_SECONDS: Final = 300.0


class Position(NamedTuple):
    """A place in the history of a group: after the message with this offset.

    ``Position("", 0)`` is before all messages, whatever the epoch is.

    Attributes:
        epoch: text without spaces, of at most 32 characters.
        offset: of the last message before the place; 0 before the first message.

    Example:
        >>> epoch, offset = Position("5f3a", 7)
        >>> Position("5f3a", 7) == ("5f3a", 7)
        True
    """

    epoch: str
    offset: int


class PastMessage(NamedTuple):
    """A message of a history.

    Attributes:
        offset: its own.
        data: text or bytes, as it was broadcast.

    Example:
        >>> PastMessage(8, "hello").data
        'hello'
    """

    offset: int
    data: str | bytes


class Replay(NamedTuple):
    """What a client has missed; see ``Group.add``.

    Attributes:
        position: of the client once it has the messages.
        messages: without a gap, exactly those that it has missed; with a gap, all that are
            kept; the oldest first.
        has_gap: messages between those that the client has and ``messages`` are lost.

    Example:
        >>> replay = Replay(Position("5f3a", 8), [PastMessage(8, "hello")], False)
        >>> [message.data for message in replay.messages], replay.has_gap
        (['hello'], False)
    """

    position: Position
    messages: list[PastMessage]
    has_gap: bool


# Returns what a client receives for a message: the place for the position.
Formatter = Callable[["str | bytes", Position], "str | bytes"]


class Bounds(NamedTuple):
    """What is kept: a message leaves the history at the first of these bounds.

    Attributes:
        length: number of messages.
        seconds: the age of a message.
        size_bytes: the sum of their lengths; the last message is kept if it is longer.
    """

    length: int
    seconds: float
    size_bytes: int


class Entry(NamedTuple):
    """A message in a log.

    Attributes:
        offset: its own.
        at: when it was stored (``time.monotonic()``).
        data: the message.
        stamp: tells two messages with one offset apart, of a store that may lose messages.
        before: the stamp of the message before it.
    """

    offset: int
    at: float
    data: str | bytes
    stamp: str = ""
    before: str = ""


class Reading(NamedTuple):
    """What a store has after a position of the reader, or all if that is of another epoch.

    Attributes:
        epoch, top: the position after the last message.
        entries: the kept messages, without holes up to ``top``.
    """

    epoch: str
    top: int
    entries: Sequence[Entry]


class Log:
    """The last messages of one group.

    Attributes:
        bounds: what is kept.
        epoch: "" before it is known.
        top: the offset of the last message that the log has had.
        stamp: of that message; "" if it is not known.
    """

    __slots__ = ("_entries", "_size_bytes", "bounds", "epoch", "stamp", "top")

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._entries: deque[Entry] = deque()
        self._size_bytes = 0
        self.epoch = ""
        self.top = 0
        self.stamp = ""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def position(self) -> Position:
        """The place after the last message."""
        return Position(self.epoch, self.top)

    def reset(self, epoch: str, top: int) -> None:
        """Forget all messages, and go on after this position."""
        self._entries.clear()
        self._size_bytes = 0
        self.epoch, self.top, self.stamp = epoch, top, ""

    def append(self, entry: Entry, now: float) -> None:
        """Add the next message."""
        assert entry.offset == self.top + 1, "a log has no holes"
        self.top, self.stamp = entry.offset, entry.stamp
        self._entries.append(entry)
        self._size_bytes += len(entry.data)
        self.trim(now)

    def trim(self, now: float) -> None:
        """Drop the messages beyond the bounds."""
        entries, bounds = self._entries, self.bounds
        while entries and (
            len(entries) > bounds.length
            or entries[0].at <= now - bounds.seconds
            or (self._size_bytes > bounds.size_bytes and len(entries) > 1)
        ):
            self._size_bytes -= len(entries.popleft().data)

    def after(self, offset: int) -> Iterator[Entry]:
        """Yield the kept messages with greater offsets."""
        return (entry for entry in [*self._entries] if entry.offset > offset)

    def has_other(self, entry: Entry) -> bool:
        """Return whether the log has another message at this offset, or before it."""
        if entry.offset == self.top + 1:
            return bool(self.stamp) and entry.before != self.stamp
        index = entry.offset - (self.top - len(self._entries) + 1)
        return 0 <= index < len(self._entries) and self._entries[index].stamp != entry.stamp

    def can_replay(self, since: Position | None) -> bool:
        """Return whether the log knows this place, or a place before all messages."""
        if since is None or not since.epoch:
            return True
        return since.epoch == self.epoch and 0 <= since.offset <= self.top

    def replay(self, since: Position | None, now: float) -> Replay:
        """Return the messages after a place; None: nothing, from now on."""
        if since is None:
            return Replay(self.position, [], False)
        self.trim(now)
        has_gap = bool(since.epoch) and not (
            self.can_replay(since) and self.top - len(self) <= since.offset
        )
        start = 0 if has_gap or not since.epoch else since.offset
        messages = [PastMessage(entry.offset, entry.data) for entry in self.after(start)]
        return Replay(self.position, messages, has_gap)


def without_holes(entries: Sequence[Entry], top: int) -> Sequence[Entry]:
    """Return the last entries, up to ``top``, that have no hole between them."""
    count = 0
    while count < len(entries) and entries[-1 - count].offset == top - count:
        count += 1
    return entries[len(entries) - count :]


def position_of(since: Sequence[object]) -> Position:
    """Return the position that a program has received from its client.

    Raises:
        ValueError: it is not an epoch and an offset.
    """
    if isinstance(since, (list, tuple)) and len(since) == 2:
        epoch, offset = since
        # Not bool, which is an int: True is not an offset.
        if isinstance(epoch, str) and type(offset) is int:
            return Position(epoch, offset)
    raise ValueError(f"since={since!r:.80}: expected an epoch (text) and an offset (a number)")
