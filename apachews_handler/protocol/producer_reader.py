"""Producer to client: checks the producer's frames and forwards them.

Contract: ``ProducerReader.receive(data)`` accepts bytes of the producer's stream, cut at any
position.  It appends bytes for the client to ``out`` and returns the events that concern the
bridge: MOVE, and the CLOSE or the ``Violation`` that ends the stream.  ``insert`` and
``insert_last`` add frames of the bridge's own.  Invalid input raises nothing.  Sans-I/O; one
reader per connection.

How this works: an unmasked frame of the wire *is* a server's frame of RFC 6455, so the reader
forwards the bytes as they are, mostly as the very object that arrived, and looks at the
headers only.  It must look at them for two reasons: a producer's mistake must not become a
malformed frame in a browser, and a frame of the bridge's own (PING, PONG, CLOSE) may stand
only between two frames of the producer's.

Long because every kind of frame, compression and the bridge's own frames share one position in the
stream.

Sources: docs/reference/wire.md; RFC 6455 5.2-5.5; RFC 7692 6., 7.2.1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from apachews import wire
from apachews.exceptions import WireError
from apachews.wire.channel import ASK, JOIN, MAX_LANE_BYTES, OWN

from .deflate import COMPRESSED, Agreement, Deflater

# After a read that holds more messages than this, the next reads are SHORT_READ_BYTES long, so
# that a turn of the loop serves the other connections after some 0.4 ms: one read of 64 KiB can
# hold 32,000 empty messages, which take 8 ms.
MANY_MESSAGES: Final = 512
SHORT_READ_BYTES: Final = 4096
# OPEN (0x3), ANSWER (0x4) and PUBLISH (0x6) have no meaning in this direction once the
# connection is open; the others have none yet.  LANE (0x7) is here for its unknown kinds.
_RESERVED: Final = frozenset((0x3, 0x4, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF))
# The kinds of LANE that a producer sends on a client's connection, with their lengths.
_LANE_BYTES: Final = {ASK: 1, JOIN: 9, OWN: 1}
_WHOLE_MESSAGES: Final = wire.WHOLE_MESSAGES  # (An attribute of a module costs more.)


@dataclass(frozen=True, slots=True)
class Move:
    """The producer asks that another producer take over the client (MOVE)."""


Event: TypeAlias = "Move | wire.Close | wire.Violation"


class ProducerReader:
    """Reads one producer's frames.

    Args:
        deflate: what the client agreed to; None: the reader compresses nothing.
        min_deflate_bytes: a message in one frame that is shorter stays uncompressed.
        deflate_level: zlib's, 1 to 9.
        max_partial_bytes: the reader holds back a frame of at most this length until it is
            complete; it forwards longer frames as they arrive.

    Attributes:
        out: bytes for the client.  The caller takes and empties the list, which is mutated
            and never replaced.
        ignored: opcodes of reserved frames that the reader dropped; the caller logs and
            empties the list, which is mutated and never replaced.
        messages, payload_bytes: number of messages that ended, and payload so far, before
            compression.
        has_many: the last read held more than ``MANY_MESSAGES`` messages.
        requests: payloads of LANE frames; the caller handles and empties the list, which is
            mutated and never replaced.
        is_on_channel: messages for the client come by its bridge channel, until the channel's
            OFF; set by the caller.
        settle: adds the client's messages that came by the channel to ``messages`` and
            ``payload_bytes``; None unless it is on a channel.
        is_waiting: OWN has arrived, and the channel's OFF is awaited: the caller reads the
            producer no further, and continues with ``receive(b"")``.
        has_ended: the producer's stream has ended; later input is ignored.
        has_sent_last: the frame of ``insert_last`` is in ``out``; nothing follows it.
    """

    __slots__ = (
        "_deferred",
        "_deferred_last",
        "_deflate",
        "_deflate_level",
        "_deflater",
        "_discards",
        "_fin",
        "_is_compressed",
        "_is_compressing",
        "_is_in_message",
        "_max_partial_bytes",
        "_min_deflate_bytes",
        "_next_first",
        "_remaining",
        "_rest",
        "_short_frame_end",
        "has_ended",
        "has_many",
        "has_sent_last",
        "ignored",
        "is_on_channel",
        "is_waiting",
        "messages",
        "out",
        "payload_bytes",
        "requests",
        "settle",
    )

    def __init__(
        self,
        deflate: Agreement | None = None,
        min_deflate_bytes: int = 0,
        deflate_level: int = 1,
        max_partial_bytes: int = 0,
    ) -> None:
        self.out: list[bytes] = []
        self.ignored: list[int] = []
        self.requests: list[bytes] = []
        self.is_on_channel = self.is_waiting = False
        self.settle: Callable[[], None] | None = None
        self.messages = self.payload_bytes = 0
        self.has_many = self.has_ended = self.has_sent_last = False
        self._max_partial_bytes = max_partial_bytes
        self._rest = b""  # an incomplete header, or an incomplete frame that is held back
        self._remaining = 0  # payload bytes of the current frame that are still to come
        self._fin = False  # the current frame ends its message
        self._discards = False  # the current frame has a reserved opcode: drop its payload
        self._is_in_message = False
        # Frames of the bridge's own that wait for the end of the producer's current frame:
        # first byte -> frame, so that only the last PING and the last PONG are kept.
        self._deferred: dict[int, bytes] | None = None
        self._deferred_last: bytes | None = None
        self._deflate = deflate
        self._min_deflate_bytes = min_deflate_bytes
        # The fast path takes shorter frames: longer ones have a longer header, or are
        # compressed.
        self._short_frame_end = 2 + (126 if deflate is None else min(126, min_deflate_bytes))
        self._deflate_level = deflate_level
        self._deflater: Deflater | None = None  # created for the first message that needs it
        self._is_compressed = False  # the current message is
        self._is_compressing = False  # the current frame is part of that message
        self._next_first = 0  # first byte of its next fragment: RSV1 and opcode, then 0

    @property
    def partial_bytes(self) -> int:
        """Number of bytes that are held back because their header or frame is incomplete."""
        return len(self._rest)

    @property
    def is_between_frames(self) -> bool:
        """True if a frame of the bridge's own may follow the bytes that are in ``out``."""
        # The client never sees a discarded frame, and gets compressed frames whole.
        return not self._remaining or self._discards or self._is_compressing

    @property
    def is_between_messages(self) -> bool:
        """True if another producer can take over: the client has no message in part."""
        return not self._is_in_message and (not self._remaining or self._discards)

    @property
    def longest_passed(self) -> int:
        """Payload of a message that may pass without ``receive``; -1: none, in its present state.

        The caller counts it.  It must be whole.
        """
        is_busy = self._rest or self._remaining or self._is_in_message
        if is_busy or self.has_ended or self.has_many:
            return -1
        return sys.maxsize if self._deflate is None else self._min_deflate_bytes - 1

    def export_state(self) -> dict[str, Any] | None:
        """Return the state with which a reader in another process continues, as JSON values.

        None inside a frame or a message, while frames of the bridge's own are deferred, and
        after the end.  The compressor is not part of the state: a new one refers to nothing
        that it did not compress itself, which is valid after any history (RFC 7692 7.2.3.3).
        """
        if (
            self._rest
            or self._remaining
            or self._is_in_message
            or self._deferred is not None
            or self._deferred_last is not None
            or self.has_ended
            or self.has_sent_last
            or self.out
            or self.ignored
            or self.requests
            or self.is_on_channel
            or self.is_waiting
        ):
            return None
        return {"messages": self.messages, "payload_bytes": self.payload_bytes}

    def import_state(self, state: dict[str, Any]) -> None:
        """Continue from an exported state; only before the first byte."""
        self.messages = int(state["messages"])
        self.payload_bytes = int(state["payload_bytes"])

    def reset(self) -> None:
        """Drop the partial frame and read another producer; only between messages."""
        assert self.is_between_messages, "the client has half a message"
        self._rest = b""
        self._remaining = 0
        self._discards = False
        self.requests.clear()
        self.is_on_channel = self.is_waiting = False

    def forget_compressed(self) -> None:
        """Note that the client was sent a message that this reader has not compressed.

        The compressor's window is not the client's any more.  A new one refers to nothing that
        it did not compress itself, which is valid after any history (RFC 7692 7.2.3.3).
        """
        self._deflater = None

    @property
    def compression(self) -> tuple[int, int, int] | None:
        """Window, level and shortest length of compressed messages; None: no compression."""
        if self._deflate is None:
            return None
        return self._deflate.server_window_bits, self._deflate_level, self._min_deflate_bytes

    def insert(self, frame: bytes) -> None:
        """Send a frame of the bridge's own; inside a producer's frame, defer it.

        Of several deferred frames of one kind only the last is sent.
        """
        if self._deferred_last is not None or self.has_sent_last:
            return  # nothing may follow a CLOSE
        if self.is_between_frames:
            self.out.append(frame)
        else:
            if self._deferred is None:
                self._deferred = {}
            self._deferred[frame[0]] = frame

    def insert_last(self, frame: bytes) -> None:
        """Send a frame of the bridge's own and nothing after it; defer it like ``insert``."""
        self._deferred_last = frame
        if self.is_between_frames:
            self._send_deferred()

    def insert_message(self, frame: bytes, payload_bytes: int) -> None:
        """Forward a whole frame of the producer that came by the channel; between messages."""
        opcode = frame[0] & wire.OPCODE
        if opcode <= wire.BINARY:
            self.messages += 1
            self.payload_bytes += payload_bytes
            if self._deflate is not None and payload_bytes >= self._min_deflate_bytes:
                self._fin = True
                self._next_first = COMPRESSED | opcode
                self._compress(frame[len(frame) - payload_bytes :])
                return
        self.out.append(frame)

    def receive(self, data: bytes) -> list[Event]:
        """Decode bytes from the producer; return the events among them, in order."""
        # Fast path: one whole short message and nothing else.
        if (
            1 < len(data) < self._short_frame_end
            and data[1] == len(data) - 2
            and data[0] in _WHOLE_MESSAGES
            and not self._rest
            and not self._remaining
            and not self._is_in_message
            and not self.has_ended
        ):
            self.messages += 1
            self.payload_bytes += data[1]
            self.out.append(data)
            return []
        events: list[Event] = []
        if self.has_ended:
            return events
        try:
            self._read_frames(data, events)
        except WireError as error:
            self.has_ended = True
            events.append(wire.Violation.from_error(error))
        return events

    def _read_frames(self, data: bytes, events: list[Event]) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        position, end = 0, len(data)
        emitted = 0  # the bytes before this offset are in ``out``, or dropped
        messages = self.messages
        try:
            while position < end:
                if self._remaining:
                    step = min(self._remaining, end - position)
                    self._remaining -= step
                    position += step
                    if self._discards:
                        emitted = position
                        self._discards = self._remaining > 0
                    elif self._is_compressing:
                        self._compress(data[emitted:position])
                        emitted = position
                    elif not self._remaining and (self._deferred or self._deferred_last):
                        # The producer's frame is complete: the bridge's own frames follow it.
                        self._emit_slice(data, emitted, position)
                        emitted = position
                        self._send_deferred()
                        if self.has_sent_last:
                            return
                    continue
                # A two-byte header is decoded here: a call per frame costs as much as the rest.
                if position + 2 <= end and (length := data[position + 1]) < 126:
                    first, payload_at = data[position], position + 2
                else:
                    header = wire.decode_header(data, position)
                    if header is None:
                        break
                    first, length, payload_at = header
                # Fast path: a whole message in one frame.  It stays in the current slice.
                if (
                    first in _WHOLE_MESSAGES
                    and payload_at + length <= end
                    and not self._is_in_message
                    and (self._deflate is None or length < self._min_deflate_bytes)
                ):
                    self.messages += 1
                    self.payload_bytes += length
                    position = payload_at + length
                    continue
                opcode = self._check_header(first, length)
                if opcode == wire.CLOSE:
                    if payload_at + length > end:
                        break
                    self.has_ended = True
                    events.append(wire.decode_close(data[payload_at : payload_at + length]))
                    return
                # Hold an incomplete frame back if it fits into a buffer: when the producer
                # dies inside it, the client has no part of it, and the next producer can
                # continue.
                if end < payload_at + length <= position + self._max_partial_bytes:
                    break
                if opcode == wire.LANE and not self._is_in_message and length <= MAX_LANE_BYTES:
                    if payload_at + length > end:
                        break
                    payload = data[payload_at : payload_at + length]
                    if length and _LANE_BYTES.get(payload[0]) == length:
                        # The client must not see this frame.
                        self._emit_slice(data, emitted, position)
                        emitted = position = payload_at + length
                        self.requests.append(payload)
                        if payload[0] == OWN and self.is_on_channel:
                            # Messages of the channel precede what follows.
                            self.is_waiting = True
                            break
                        continue
                self._is_compressing = False
                if opcode == wire.MOVE or opcode in _RESERVED:
                    # The client must not see this frame: emit what precedes it, drop the rest.
                    self._emit_slice(data, emitted, position)
                    emitted = payload_at
                    self._discards = length > 0
                    if opcode == wire.MOVE:
                        events.append(Move())
                    else:
                        self.ignored.append(opcode)
                elif opcode < wire.CLOSE:
                    self._on_data_header(first, opcode, length)
                    if self._is_compressing:
                        # A frame of our own replaces this header.
                        self._emit_slice(data, emitted, position)
                        emitted = payload_at
                        if not length:
                            self._compress(b"")
                self._remaining = length
                position = payload_at
            self._rest = data[position:]
        finally:
            # Also before a CLOSE or a violation: the frames that precede it were valid.
            self._emit_slice(data, emitted, position)
            self.has_many = self.messages - messages > MANY_MESSAGES

    def _on_data_header(self, first: int, opcode: int, length: int) -> None:
        self._fin = first >= wire.FIN
        self._is_in_message = not self._fin
        self.messages += self._fin
        self.payload_bytes += length
        if opcode != wire.CONTINUATION:
            # The length of a fragmented message is not known yet: compress it.
            self._is_compressed = self._deflate is not None and (
                length >= self._min_deflate_bytes or not self._fin
            )
            self._next_first = COMPRESSED | opcode
        self._is_compressing = self._is_compressed

    def _compress(self, piece: bytes) -> None:
        """Emit a piece of the current frame, compressed, as a frame of our own.

        The end of each of the producer's frames flushes the compressor: the fragments of a
        producer reach the client as they are sent.
        """
        assert self._deflate, "only an agreement makes a message compressed"
        if self._deflater is None:
            self._deflater = Deflater(self._deflate.server_window_bits, self._deflate_level)
        compressed = self._deflater.compress(piece)
        is_last = not self._remaining and self._fin
        if is_last:
            compressed += self._deflater.finish()
            if not self._deflate.server_keeps_context:
                self._deflater = None
        elif not self._remaining:
            compressed += self._deflater.flush()
        if compressed or is_last:
            first = self._next_first | (wire.FIN if is_last else 0)
            self._next_first = wire.CONTINUATION
            self.out.append(wire.encode_header(first, len(compressed)) + compressed)

    def _emit_slice(self, data: bytes, start: int, end: int) -> None:
        if start < end:
            # All of it goes out without a copy.
            self.out.append(data if end - start == len(data) else data[start:end])

    def _send_deferred(self) -> None:
        """Send the frames of the bridge's own that waited for the end of a frame."""
        if self._deferred:
            self.out.extend(self._deferred.values())
            self._deferred = None
        if self._deferred_last is not None:
            self.out.append(self._deferred_last)
            self._deferred_last = None
            # The producer's later frames would follow a CLOSE.
            self.has_ended = self.has_sent_last = True

    def _check_header(self, first: int, length: int) -> int:
        """Return the opcode of a frame that is allowed at this position (RFC 6455 5.2, 5.5).

        Raises:
            WireError: the frame is not allowed.
        """
        if first & wire.RSV:
            raise WireError("the producer set a reserved bit")
        opcode = first & wire.OPCODE
        if opcode >= wire.CLOSE:
            if first < wire.FIN:
                raise WireError("the producer sent a fragmented control frame")
            if length > wire.MAX_CONTROL_BYTES:
                raise WireError("the producer sent a control frame of more than 125 bytes")
        elif opcode == wire.CONTINUATION:
            if not self._is_in_message:
                raise WireError("the producer sent a CONTINUATION without a message to continue")
        elif opcode > wire.BINARY:
            if first < wire.FIN:
                raise WireError("the producer sent a fragmented frame of a reserved opcode")
            if opcode == wire.MOVE and self._is_in_message:
                raise WireError("the producer sent MOVE inside a message")
        elif self._is_in_message:
            raise WireError("the producer started a message inside a fragmented message")
        return opcode
