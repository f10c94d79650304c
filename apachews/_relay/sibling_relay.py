"""Broadcasts to the workers of the same supervisor, by the sockets between them.

Contract: as ``Relay``, for the loop's thread or under the server's lock; never waits.  Every
worker receives every message and delivers it to the members that it has.

Bounds: what a worker does not accept at once waits here, up to ``MAX_QUEUE_BYTES`` for each
worker; the oldest messages are dropped and counted.  The queue of a worker that has accepted
nothing for ``STALLED_S`` is dropped: it hangs, or its place stays empty.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from apachews._processes.board import Counters
from apachews._processes.siblings import Packet, Siblings

from .envelope import NOWHERE, Envelope
from .thread import MAX_QUEUE_BYTES

# The interval of retries: a busy worker reads its socket between two events.
RETRY_S: Final = 0.002
MAX_RETRY_S: Final = 0.1
STALLED_S: Final = 10.0

_logger: Final = logging.getLogger("apachews")


class _Queue:
    """What waits for one worker."""

    __slots__ = ("accepted_at", "messages", "size_bytes")

    def __init__(self) -> None:
        self.messages: deque[tuple[str | None, Envelope]] = deque()
        self.size_bytes = 0
        self.accepted_at = 0.0


class SiblingRelay:
    """Sends to the other workers.

    Args:
        siblings: the sockets; the owner closes them.
        call_later: of the loop.
        counters: to update; of the relay to other machines, if there is one.
    """

    def __init__(
        self,
        siblings: Siblings,
        call_later: Callable[[float, Callable[[], object]], None],
        counters: Counters,
    ) -> None:
        self._siblings = siblings
        self._call_later = call_later
        self._queues = [_Queue() for _ in siblings.others]
        self._is_scheduled = False
        self._retry_s = RETRY_S
        self._counters = counters

    def require_fitting(self, frame: bytes) -> None:
        """Accept messages of any size."""

    def publish(self, group: str | None, frame: bytes) -> bool:
        """Send a message to the other workers, or queue it; return whether there are any."""
        envelope = Envelope.of_frame(NOWHERE, frame)
        packet = Packet(group, envelope.payload, envelope.opcode)
        try:
            if not packet.is_sendable:
                return False
            for other, queue in enumerate(self._queues):
                # After those that wait: a sender's order is kept.
                if queue.messages or not self._siblings.send_nowait(other, packet):
                    self._enqueue(queue, group, envelope)
        finally:
            packet.close()
        return bool(self._queues)

    def subscribe(self, group: str) -> None:
        """Do nothing: every worker receives every message."""

    def unsubscribe(self, group: str) -> None:
        """Do nothing."""

    def is_subscribed(self, group: str) -> bool:
        """Return True: every worker receives every message."""
        return True

    def _enqueue(self, queue: _Queue, group: str | None, envelope: Envelope) -> None:
        if not queue.messages:
            queue.accepted_at = time.monotonic()
        queue.messages.append((group, envelope))
        queue.size_bytes += len(envelope.payload) + 64
        while queue.size_bytes > MAX_QUEUE_BYTES and len(queue.messages) > 1:
            queue.size_bytes -= len(queue.messages.popleft()[1].payload) + 64
            self._counters.dropped_beside += 1
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_later(self._retry_s, self._flush)

    def _flush(self) -> None:
        self._is_scheduled = False
        now = time.monotonic()
        has_sent = False
        for other, queue in enumerate(self._queues):
            while queue.messages:
                group, envelope = queue.messages[0]
                packet = Packet(group, envelope.payload, envelope.opcode)
                try:
                    if not self._siblings.send_nowait(other, packet):
                        break
                finally:
                    packet.close()
                queue.messages.popleft()
                queue.size_bytes -= len(envelope.payload) + 64
                queue.accepted_at = now
                has_sent = True
            if queue.messages and now - queue.accepted_at > STALLED_S:
                _logger.warning(
                    "a worker has not called dequeue() for %g s: %d messages of other workers are"
                    " dropped",
                    STALLED_S,
                    len(queue.messages),
                )
                self._counters.dropped_beside += len(queue.messages)
                queue.messages.clear()
                queue.size_bytes = 0
        self._retry_s = RETRY_S if has_sent else min(2 * self._retry_s, MAX_RETRY_S)
        if any(queue.messages for queue in self._queues):
            self._schedule()
