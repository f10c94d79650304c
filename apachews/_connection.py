"""The library's end of one Unix socket: state, reader, and the queue to it.

Contract: for ``Loop`` and ``Client`` only, which hold its lock.  Nothing blocks.
Owns the socket and closes it.

How this works: what the kernel does not take at once waits in a queue with a
bound.  A client that does not read fills it and is closed with 1013, alone.  A
client whose queue is half full is not read from either, so that an echo, or any
other program that answers what it is asked, slows its client down rather than
losing it, as long as its messages are shorter than half the bound: the bound is
for broadcasts.

The queue is made of large frames as they are, one object for all the clients of a
broadcast, and of small ones run together, so that a million tiny messages take
the memory of their bytes and not of a million objects.  Once a frame is half sent
its rest must go before anything else, an end of file included; where that ends,
in a run of frames, their headers tell.
"""

from __future__ import annotations

import enum
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from apachews.wire.answer import Answer
from apachews.wire.reader import MessageReader

from . import wire

if TYPE_CHECKING:
    from .client import Client

# One read from a socket: a third of what Linux buffers for a Unix socket; a message of
# 64 KiB with its header.
READ_BYTES: Final = 65536 + 10
# Shorter frames are run together in the queue, up to as much as goes out at once.
SMALL_FRAME_BYTES: Final = 1024
RUN_BYTES: Final = 65536
# HTTP status for a client that is closed before it was accepted.
GOODBYE_STATUS: Final = 503

_MOVE: Final = wire.encode_frame(wire.MOVE, b"")


class State(enum.Enum):
    """Where a connection is in its life; it only ever moves down this list."""

    CONNECTING = "no OPEN yet"
    PUBLISHING = "it is no client: what it sends is for clients"
    ASKED = "the bridge waits for an ANSWER"
    OPEN = "messages flow"
    MOVING = "messages flow; a MOVE is sent or queued, the bridge's is awaited"
    MOVED = "the bridge's MOVE is read and the last event is queued; the producer may still send"
    PARTING = "the program has the last event in hand: it may still send, and not close any more"
    CLOSING = "a CLOSE is sent or queued, the answer is awaited; messages are ignored"
    CLOSED = "the last event is out; at most the queue is still being sent"

    # Enum has one in Python, which would be called with every message.
    __hash__ = object.__hash__


# Where messages go to the client.
SENDING: Final = frozenset({State.OPEN, State.MOVING, State.MOVED, State.PARTING})
# Where messages come from it.
RECEIVING: Final = frozenset({State.OPEN, State.MOVING})


class Connection:
    """One Unix socket.

    Args:
        sock: accepted, non-blocking; owned from here on.
        lock: the server's; who calls anything here holds it.
        max_message_bytes: as ``Server``.
        max_queue_bytes: as ``Server``.
        changed: called when the queue filled or emptied, or the state changed.

    Attributes:
        state: where it is in its life; ``Server`` moves it, ``send_answer`` and
            ``send_close`` too.
        was_rejected: the producer said no; the state is CLOSING.
        client: what the producer holds, once there was an OPEN.
        queued_bytes: what waits for the bridge to take it.
        has_overflowed: the queue was full; the state is CLOSING.
        is_paused: nothing is read, because the program has not taken what was.
        on_flushed: called when the queue has become shorter, and at the end.
        has_moved: the bridge's MOVE is read; nothing more comes from there.
        watched: the epoll mask in force.
        deadline: when it must be gone (``time.monotonic()``), once it leaves.
    """

    __slots__ = (
        "_changed",
        "_head_sent",
        "_max_queue_bytes",
        "_queue",
        "_reader",
        "_socket",
        "client",
        "deadline",
        "has_moved",
        "has_overflowed",
        "is_paused",
        "lock",
        "on_flushed",
        "queued_bytes",
        "state",
        "was_rejected",
        "watched",
    )

    def __init__(
        self,
        sock: socket.socket,
        lock: threading.RLock,
        max_message_bytes: int,
        max_queue_bytes: int,
        changed: Callable[[Connection], None],
    ) -> None:
        self._socket = sock
        self.lock = lock
        self._reader = MessageReader(max_message_bytes)
        self._max_queue_bytes = max_queue_bytes
        self._changed = changed
        # Frames, or runs of them; made when there is one: a deque has 600 bytes.
        self._queue: deque[bytes | bytearray] | None = None
        self._head_sent = 0  # bytes of the first that are sent already
        self.queued_bytes = 0
        self.state = State.CONNECTING
        self.client: Client | None = None
        self.has_overflowed = False
        self.has_moved = False
        self.is_paused = False
        self.on_flushed: Callable[[], object] | None = None
        self.was_rejected = False
        self.watched = 0
        self.deadline: float | None = None

    @property
    def reader(self) -> MessageReader:
        return self._reader

    @property
    def has_queue(self) -> bool:
        return bool(self._queue)

    @property
    def wants_reading(self) -> bool:
        """False while it is paused or must first take what is queued, and once it has moved."""
        return (
            self.queued_bytes * 2 <= self._max_queue_bytes
            and not self.is_paused
            and not self.has_moved
        )

    def fileno(self) -> int:
        """Return the descriptor, -1 after ``close``."""
        return self._socket.fileno()

    def receive_nowait(self) -> bytes | None:
        """Return what came, b"" at the end of file, None where nothing is there."""
        try:
            return self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def send_frame(self, frame: bytes) -> bool:
        """Send or queue one whole data frame; False where it does not go out."""
        if self.state not in SENDING:
            return False
        if self.queued_bytes > self._max_queue_bytes:
            self.has_overflowed = True
            self.drop_queue()
            self.send_close(wire.TRY_AGAIN_LATER, "too slow: the send queue is full")
            return False
        if self._queue:
            self._enqueue(self._queue, frame)
        elif (sent := self._send_nowait(frame)) < len(frame):
            self._queue_rest(frame, sent)
        return True

    def send_answer(self, answer: Answer) -> bool:
        """Send the ANSWER the bridge waits for; False where it waits no more.

        Raises:
            ValueError: it is too large; see ``Answer.encode``.
        """
        frame = answer.encode()
        if self.state is not State.ASKED:
            return False
        self.state = State.OPEN if answer.accepts else State.CLOSING
        self.was_rejected = not answer.accepts
        self._write(frame)
        self._changed(self)
        return True

    def send_close(self, code: int, reason: str) -> None:
        """Send or queue a CLOSE, once; to a bridge that asks, that means no.

        Raises:
            ValueError: see ``wire.encode_close``.
        """
        if self.state is State.ASKED:
            self.send_answer(Answer.reject(GOODBYE_STATUS, (), ""))
            return
        frame = wire.encode_frame(wire.CLOSE, wire.encode_close(code, reason))
        if self.state in SENDING and self.state is not State.PARTING:
            # The bridge says nothing behind its MOVE: there is no answer to await.
            self.state = State.CLOSED if self.has_moved else State.CLOSING
            self._write(frame)
            self._changed(self)

    def send_move(self) -> None:
        """Send or queue a MOVE, once; between two messages, as all goes out in whole ones."""
        if self.state is State.OPEN:
            self.state = State.MOVING
            self._write(_MOVE)

    def part(self) -> None:
        """Let a client go that has moved: the program has had its say."""
        if self.state is State.PARTING:
            self.state = State.CLOSED
            self._changed(self)

    def pause(self, is_paused: bool) -> None:
        """Read nothing more for a while, or go on."""
        if self.is_paused != is_paused:
            self.is_paused = is_paused
            self._changed(self)

    def send_published(self, published: wire.Published) -> None:
        """Answer a message that was published."""
        if self.state is State.PUBLISHING:
            self._write(published.encode())

    def flush_nowait(self) -> None:
        """Send what the kernel takes of the queue."""
        while queue := self._queue:
            with memoryview(queue[0]) as head, head[self._head_sent :] as rest:
                size = len(rest)
                sent = self._send_nowait(rest)
            if self._queue is not queue:  # the bridge is gone
                return
            self.queued_bytes -= sent
            if sent < size:
                self._head_sent += sent
                return
            queue.popleft()
            self._head_sent = 0
        self._queue = None

    def drop_queue(self) -> None:
        """Forget what is queued, but for the rest of a frame that is half sent."""
        head = bytes(self._queue[0]) if self._queue and self._head_sent else b""
        end = 0
        while end < self._head_sent:
            header = wire.decode_header(head, end)
            assert header is not None, "the queue holds whole frames of our own"
            _, length, payload_at = header
            end = payload_at + length
        sent = self._head_sent
        self._clear_queue()
        if end > sent:
            self._queue = deque((head[:end],))
            self._head_sent = sent
            self.queued_bytes = end - sent

    def close(self) -> None:
        """Close the socket and drop the queue; again does nothing."""
        self._clear_queue()
        self._socket.close()

    def _write(self, frame: bytes) -> None:
        """Send one whole frame, or queue what is left of it."""
        if self._queue:
            self._enqueue(self._queue, frame)
        elif (sent := self._send_nowait(frame)) < len(frame):
            self._queue_rest(frame, sent)

    def _queue_rest(self, frame: bytes, sent: int) -> None:
        """Have what the kernel did not take of a frame be the queue."""
        self._queue = deque((frame,))
        self._head_sent = sent
        self.queued_bytes = len(frame) - sent
        self._changed(self)

    def _enqueue(self, queue: deque[bytes | bytearray], frame: bytes) -> None:
        could_read = self.wants_reading
        tail = queue[-1]
        if len(frame) > SMALL_FRAME_BYTES:
            queue.append(frame)
        elif isinstance(tail, bytearray) and len(tail) < RUN_BYTES:
            tail += frame
        else:
            queue.append(bytearray(frame))
        self.queued_bytes += len(frame)
        if could_read != self.wants_reading:
            self._changed(self)

    def _clear_queue(self) -> None:
        self._queue = None
        self._head_sent = self.queued_bytes = 0

    def _send_nowait(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The bridge is gone.  Nothing can be sent any more; reading finds
            # its last words and the end of file, and they become the event.
            self._clear_queue()
            return len(data)
