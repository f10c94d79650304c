"""The backlog: the client's frames that the next producer gets.

Contract: ``undelivered_frames`` selects from the frames that were on their way to a producer
those of messages that it has no part of.  ``Backlog`` stores them, and the frames that arrive
while there is no producer.  ``resumed_open`` makes the OPEN that precedes them.  No I/O.

Sources: docs/reference/wire.md (restarts of a producer).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from apachews import wire


def undelivered_frames(frames: bytes, sent: int, has_begun: bool) -> tuple[list[bytes], bool]:
    """Return the frames that another producer may get.

    A message is lost as soon as one byte of it was sent: the producer may have handled it.

    Args:
        frames: whole frames, in order.
        sent: number of their bytes that were sent to the producer.
        has_begun: whether the client is inside a message, whose beginning is in these frames
            or was sent earlier.

    Returns:
        The frames of the messages that were not sent at all; and whether the client's current
        message is lost, so that its rest must be discarded.
    """
    kept = []
    position = 0
    # If the first frame is a CONTINUATION, the beginning of its message was sent earlier.
    is_lost, was_last = True, not has_begun
    while position < len(frames):
        header = wire.decode_header(frames, position)
        assert header is not None, "the client's reader emits whole frames"
        first, length, payload_at = header
        end = payload_at + length
        opcode = first & wire.OPCODE
        if opcode in (wire.TEXT, wire.BINARY):
            is_lost = position < sent
        if opcode <= wire.BINARY:
            was_last = first >= wire.FIN
            if not is_lost:
                kept.append(frames[position:end])
        # OPEN, PONG and MOVE were for the producer that has gone.
        position = end
    return kept, has_begun and not was_last and is_lost


def resumed_open(frame: bytes, bridge: str | None = None) -> bytes:
    """Return an OPEN frame in the form for a producer that takes over.

    Args:
        bridge: id of the bridge process that has the connection now.
    """
    header = wire.decode_header(frame, 0)
    assert header is not None, "the bridge encoded the frame"
    open_ = wire.Open.decode(frame[header[2] :])
    return dataclasses.replace(open_, resumed=True, answer_required=False, bridge=bridge).encode()


class Backlog:
    """The client's frames for the next producer, in order.

    One buffer and not a list of frames: small messages take the memory of their bytes.
    """

    __slots__ = ("_frames", "_has_close")

    def __init__(self) -> None:
        self._frames: bytearray | None = None  # (an empty one takes memory)
        self._has_close = False  # the last frame is a CLOSE

    def __len__(self) -> int:
        """Return the number of bytes."""
        return len(self._frames) if self._frames else 0

    def append(self, frames: Iterable[bytes]) -> None:
        """Add frames that have just arrived."""
        if self._frames is None:
            self._frames = bytearray()
        for frame in frames:
            # A PONG answers a PING of the producer that has gone.
            if frame[0] & wire.OPCODE != wire.PONG:
                self._frames += frame

    def prepend(self, frames: Iterable[bytes]) -> None:
        """Add frames that arrived before all others."""
        self._frames = bytearray(b"".join(frames)) + (self._frames or b"")

    def append_close(self, frame: bytes) -> None:
        """Add a CLOSE after the messages; the first one counts, and none is stored alone."""
        if self._frames and not self._has_close:
            self._frames += frame
            self._has_close = True

    def pop_all(self) -> bytes:
        """Return the frames and drop them."""
        frames = bytes(self._frames or b"")
        self.clear()
        return frames

    def clear(self) -> None:
        """Drop all frames."""
        self._frames = None
        self._has_close = False
