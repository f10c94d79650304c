"""The library's end of one Unix socket: its state, its reader and its send queue.

Contract: for ``Loop`` and ``Client``, which hold the lock.  Nothing blocks.  Owns the socket and
closes it.

The send queue has a bound (``max_queue_bytes``).  A client that does not read fills it and is
closed with 1013; other clients notice nothing.  A client whose queue is half full is not read
from either: an echo, or any program that answers messages, slows its client down instead of
losing it, as long as its messages are shorter than half the bound.  So only broadcasts reach
the bound.
"""

from __future__ import annotations

import enum
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from apachews import wire
from apachews.client import Client
from apachews.wire.answer import Answer
from apachews.wire.reader import MessageReader

from .lane_user import OWN, LaneUser

# One read from a socket: a message of 64 KiB with its header, a third of the buffer that Linux
# has for a Unix socket.
READ_BYTES: Final = 65536 + 10
# The queue joins frames up to this size to runs of up to RUN_BYTES, so that a million tiny
# messages take the memory of their bytes and not that of a million objects.  Larger frames
# stay as they are: all clients of a broadcast share one object.
SMALL_FRAME_BYTES: Final = 1024
RUN_BYTES: Final = 65536
# The HTTP status for a client that is closed before it was accepted.
CLOSED_UNANSWERED_STATUS: Final = 503

_logger: Final = logging.getLogger("apachews")
_MOVE: Final = wire.encode_frame(wire.MOVE, b"")


class State(enum.Enum):
    """The state of a connection; it only moves down this list."""

    CONNECTING = "no OPEN has arrived"
    PUBLISHING = "a publisher and not a client: its messages are for clients"
    ASKED = "the bridge waits for an ANSWER"
    OPEN = "messages flow"
    MOVING = "messages flow; a MOVE is sent or queued, the bridge's is awaited"
    MOVED = "the bridge's MOVE has arrived and the last event is queued; the program may send"
    LAST_EVENT = "the program has the last event: it may still send, but not close any more"
    CLOSING = "a CLOSE is sent or queued, the answer is awaited; messages are ignored"
    CLOSED = "the last event is queued or delivered; at most the send queue remains"

    # Enum defines one in Python, and every message would call it.
    __hash__ = object.__hash__


# The states in which the program can send to the client.
SENDING: Final = frozenset({State.OPEN, State.MOVING, State.MOVED, State.LAST_EVENT})
# The states in which messages of the client become events.
RECEIVING: Final = frozenset({State.OPEN, State.MOVING})
_ENDED: Final = frozenset({State.LAST_EVENT, State.CLOSING, State.CLOSED})


class Connection(LaneUser):
    """One Unix socket.

    Args:
        sock: accepted, non-blocking; owned from here on.
        lock: the server's; every caller holds it.
        max_message_bytes: as ``Server``.
        max_queue_bytes: as ``Server``.
        on_change: called when the queue filled or emptied, or the state changed.

    Attributes:
        state: set by ``Loop``, and by ``send_answer`` and ``send_close``.
        was_rejected: the producer rejected the client; the state is CLOSING.
        queued_bytes: bytes that wait for the bridge to read.
        has_overflowed: the queue was full; the state is CLOSING.
        is_paused: nothing is read, because the program has not taken the last messages.
        on_flushed: called when the queue has become shorter, and at the end.
        has_moved: the bridge's MOVE has arrived; nothing follows it.
        watched: the epoll mask in force.
        deadline: when the connection must be gone (``time.monotonic()``), once it is closing.
    """

    __slots__ = (
        "_descriptors",
        "_head_sent",
        "_max_queue_bytes",
        "_on_change",
        "_queue",
        "_reader",
        "_socket",
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
        on_change: Callable[[Connection], None],
    ) -> None:
        super().__init__()
        self._socket = sock
        self.lock = lock
        self._reader = MessageReader(max_message_bytes)
        self._max_queue_bytes = max_queue_bytes
        self._on_change = on_change
        # Frames, or runs of them.  None while it is empty: a deque has 600 bytes.
        self._queue: deque[bytes | bytearray] | None = None
        self._head_sent = 0  # bytes of the first item that are sent already
        self.queued_bytes = 0
        self.state = State.CONNECTING
        self.has_overflowed = False
        self.has_moved = False
        self.is_paused = False
        self.on_flushed: Callable[[], object] | None = None
        self.was_rejected = False
        # Descriptors that have arrived; None while the connection expects none.
        self._descriptors: list[int] | None = None
        self.watched = 0
        self.deadline: float | None = None

    @property
    def reader(self) -> MessageReader:
        return self._reader

    @property
    def has_queue(self) -> bool:
        return bool(self._queue)

    @property
    def has_ended(self) -> bool:
        """True once the program can send nothing more, or close."""
        return self.state in _ENDED

    @property
    def wants_reading(self) -> bool:
        """False while it is paused or its queue is half full, and once it has moved."""
        return (
            self.queued_bytes * 2 <= self._max_queue_bytes
            and not self.is_paused
            and not self.has_moved
        )

    @property
    def can_pass_descriptors(self) -> bool:
        """False for a loopback socket."""
        return self._socket.family == socket.AF_UNIX

    @property
    def may_join(self) -> bool:
        """True if the client may ask to go on a channel: it is open and reads what it is sent."""
        return self.lane == OWN and self.state is State.OPEN and not self._queue

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for the bridge; with those of the channel if the client is on it."""
        if self.lane != OWN and self.process is not None:
            return self.queued_bytes + self.process.waiting_bytes(self)
        return self.queued_bytes

    def fileno(self) -> int:
        """Return the descriptor, -1 after ``close``."""
        return self._socket.fileno()

    def receive_nowait(self) -> bytes | None:
        """Return received bytes, b"" at the end of file, None if nothing has arrived."""
        try:
            if self._descriptors is not None:
                data, more, _, _ = socket.recv_fds(self._socket, READ_BYTES, 1)
                self._descriptors += more
                return data
            return self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def log_ignored_frames(self) -> None:
        """Log the opcodes of the frames that the reader has ignored."""
        opcodes = " ".join(f"{opcode:#x}" for opcode in sorted(set(self._reader.ignored)))
        self._reader.ignored.clear()
        _logger.warning("%s: ignored frames of opcodes %s", self.client, opcodes)

    def send_frame(self, frame: bytes) -> bool:
        """Send or queue one whole data frame; return False if it cannot be sent."""
        if self.state not in SENDING:
            return False
        if self.lane != OWN:
            process = self.process
            if process is not None and process.take(self, frame):
                return True
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

    def write_lane(self, frame: bytes) -> None:
        """Send or queue a LANE frame."""
        if self.state in SENDING:
            self._write(frame)

    def ask_for_channel(self, frame: bytes) -> bool:
        """Send ASK, and expect a descriptor; return False if the client is not open."""
        if self.state is not State.OPEN:
            return False
        if self._descriptors is None:
            self._descriptors = []
        self._write(frame)
        return True

    def take_channel(self) -> socket.socket | None:
        """Return the channel's socket that has arrived with an OFFER, or None."""
        descriptors, self._descriptors = self._descriptors, None
        if not descriptors:
            return None
        sock = socket.socket(fileno=descriptors[0])
        sock.setblocking(False)
        return sock

    def send_answer(self, answer: Answer) -> bool:
        """Send the ANSWER; return False if the bridge does not wait for one.

        Raises:
            ValueError: it is too large; see ``Answer.encode``.
        """
        frame = answer.encode()
        if self.state is not State.ASKED:
            return False
        self.state = State.OPEN if answer.accepts else State.CLOSING
        self.was_rejected = not answer.accepts
        self._write(frame)
        self._on_change(self)
        return True

    def send_close(self, code: int, reason: str) -> None:
        """Send or queue a CLOSE, once; reject a client that waits for an ANSWER.

        Raises:
            ValueError: see ``wire.encode_close``.
        """
        if self.state is State.ASKED:
            self.send_answer(Answer.reject(CLOSED_UNANSWERED_STATUS, (), ""))
            return
        frame = wire.encode_frame(wire.CLOSE, wire.encode_close(code, reason))
        # A close() at ConnectionClosed does nothing, as for any client that is gone: many
        # programs call it there, and the client moves on all the same.
        if self.state in SENDING and self.state is not State.LAST_EVENT:
            self._leave_channel()
            # The bridge sends nothing after its MOVE, so that no answer can be awaited.
            self.state = State.CLOSED if self.has_moved else State.CLOSING
            self._write(frame)
            self._on_change(self)

    def send_move(self) -> None:
        """Send or queue a MOVE, once; it stands between two messages, as frames are whole."""
        if self.state is State.OPEN:
            self._leave_channel()
            self.state = State.MOVING
            self._write(_MOVE)

    def finish_move(self) -> None:
        """Close a client that has moved: the program has handled its last event."""
        if self.state is State.LAST_EVENT:
            self.state = State.CLOSED
            self._on_change(self)

    def pause(self, is_paused: bool) -> None:
        """Stop reading, or continue."""
        if self.is_paused != is_paused:
            self.is_paused = is_paused
            self._on_change(self)

    def send_published(self, published: wire.Published) -> None:
        """Answer a message that was published."""
        if self.state is State.PUBLISHING:
            self._write(published.encode())

    def flush_nowait(self) -> None:
        """Send as much of the queue as the kernel accepts."""
        while queue := self._queue:
            with memoryview(queue[0]) as head, head[self._head_sent :] as rest:
                size = len(rest)
                sent = self._send_nowait(rest)
            if self._queue is not queue:
                return  # the bridge is gone, and _send_nowait() has dropped the queue
            self.queued_bytes -= sent
            if sent < size:
                self._head_sent += sent
                return
            queue.popleft()
            self._head_sent = 0
        self._queue = None

    def drop_queue(self) -> None:
        """Drop the queue, except for the rest of a frame that is sent in part.

        That rest must precede any other frame.
        """
        head = bytes(self._queue[0]) if self._queue and self._head_sent else b""
        # The first item may be a run of frames: their headers tell which one is sent in part.
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
        """Close the socket and drop the queue; closing again does nothing."""
        self._clear_queue()
        for descriptor in self._descriptors or ():
            os.close(descriptor)
        self._descriptors = None
        self._socket.close()

    def _leave_channel(self) -> None:
        """Send what follows on this connection, and never again on a channel."""
        if self.lane != OWN and self.process is not None:
            self.process.leave(self)
        self.process = None

    def _write(self, frame: bytes) -> None:
        """Send one whole frame, or queue the rest of it."""
        if self._queue:
            self._enqueue(self._queue, frame)
        elif (sent := self._send_nowait(frame)) < len(frame):
            self._queue_rest(frame, sent)

    def _queue_rest(self, frame: bytes, sent: int) -> None:
        """Start the queue with a frame that the kernel accepted in part."""
        self._queue = deque((frame,))
        self._head_sent = sent
        self.queued_bytes = len(frame) - sent
        self._on_change(self)

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
            self._on_change(self)

    def _clear_queue(self) -> None:
        self._queue = None
        self._head_sent = self.queued_bytes = 0

    def _send_nowait(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The bridge is gone.  Nothing can be sent any more, so pretend that it was.
            # Reading still returns the bridge's last frames and then the end of file,
            # which becomes the last event.
            self._clear_queue()
            return len(data)


def connection_of(client: Client) -> Connection:
    """Return the connection of a client; for the library's own modules."""
    connection = client._link
    assert isinstance(connection, Connection)
    return connection
