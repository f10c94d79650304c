"""Follows the frames of one direction of a tunnel, and passes the bytes on untouched.

Contract: ``FrameWalker.receive(data)`` accepts bytes of a peer's stream, cut at any position.  It
appends them to ``out``, and returns the events that concern the bridge: a CLOSE, the answer to a
PING of the bridge's own, and the ``Violation`` of a limit.  ``insert`` and ``insert_last`` add
frames of the bridge's own.  Sans-I/O; one walker per direction of a connection.

How this works: a frame of the bridge's own may stand only between two frames of the peer's, so
the walker reads the headers, and skips the payloads: it neither unmasks nor inflates a message.
It keeps back an incomplete header (13 bytes at most) or control frame (131 bytes at most), so
what it has passed on always ends inside the payload of a data frame or between two frames.

The two ends decide what is valid: masks, reserved bits, reserved opcodes and fragments pass as
they are.

Sources: RFC 6455 5.2 (framing), 5.4 (fragments), 5.5 (control frames).
"""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from apachews import wire

from .client_reader import KEEPALIVE
from .mask import unmask

_LENGTH_16 = struct.Struct(">H")
_LENGTH_64 = struct.Struct(">Q")
_CONTROL: Final = 0x08  # the bit that distinguishes the opcodes of control frames (RFC 6455 5.5)
_OPCODE: Final = wire.OPCODE  # (An attribute of a module costs more.)
_FIN: Final = wire.FIN

TOO_MANY: Final = "too many messages in a short time"


@dataclass(frozen=True, slots=True)
class CloseFrame:
    """The peer's CLOSE has passed; its payload, unmasked."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class OwnPong:
    """The peer has answered a PING of the bridge's own; the answer does not pass."""


_OWN_PONG: Final = OwnPong()
Event: TypeAlias = "CloseFrame | OwnPong | wire.Violation"


class FrameWalker:
    """Follows one peer's frames.

    Args:
        max_message_bytes: limit for a message as its headers announce it, compressed if it is
            compressed; a longer one is a Violation 1009.  Without a limit it is inf: a length may
            have 64 bits.

    Attributes:
        out: bytes for the other end.  The caller takes and empties the list, which is mutated
            and never replaced.
        remaining: bytes of payload that the current data frame still lacks; 0: between frames.
        rest: an incomplete header or control frame, which was not passed on; after a pause,
            all input that follows.
        messages, payload_bytes: number of messages that began, and their announced bytes.
        controls: number of other frames that cost something: PINGs, PONGs, and fragments
            without payload.
        max_frames: limit for ``messages + controls``; the next one is a Violation 1008.  The
            caller may raise the limit at any time.
        expected_pongs: number of answers to the bridge's own PINGs that do not pass.
        is_paused: call ``receive(b"")`` for more.
        has_ended: the peer's stream has ended with a CLOSE or a violation; later input is
            ignored.
        has_sent_last: a CLOSE is in ``out``, the peer's or the bridge's own; nothing follows it.
    """

    __slots__ = (
        "_held",
        "_max_message_bytes",
        "_message_bytes",
        "controls",
        "expected_pongs",
        "has_ended",
        "has_sent_last",
        "is_paused",
        "max_frames",
        "messages",
        "out",
        "payload_bytes",
        "remaining",
        "rest",
    )

    def __init__(self, max_message_bytes: float = math.inf) -> None:
        self.out: list[bytes] = []
        self.remaining = 0
        self.rest = b""
        self.messages = self.payload_bytes = self.controls = self.expected_pongs = 0
        self.max_frames = float(sys.maxsize)
        self.is_paused = self.has_ended = self.has_sent_last = False
        self._max_message_bytes = max_message_bytes
        self._message_bytes = 0  # of the current message, as far as its frames have begun
        self._held = b""  # the bridge's last frame, which waits for the end of the peer's frame

    def receive(self, data: bytes, frames_at_most: int = sys.maxsize) -> list[Event]:
        """Pass bytes on; return the events among them, in order.

        Args:
            data: bytes as they arrived; b"" to continue after a pause.
            frames_at_most: number of frames after which the walker pauses.
        """
        events: list[Event] = []
        if self.has_ended:
            return events
        if self.rest:
            data, self.rest = self.rest + data, b""
        self.is_paused = False
        position, end = 0, len(data)
        start = 0  # data[start:position] is to be passed on
        while position < end:
            if self.remaining:
                # Inside a data frame: skip the payload that has arrived.
                step = min(self.remaining, end - position)
                position += step
                self.remaining -= step
                if self._held and not self.remaining:
                    # The border that the bridge's last frame waits for.
                    self._pass(data, start, position)
                    start = position
                    self.insert_last(self._held)
                continue
            if not frames_at_most:
                # Let the loop serve the other connections.
                self.is_paused = True
                break
            frames_at_most -= 1
            if end - position < 2:
                break
            first, length = data[position], data[position + 1]
            payload_at = position + (6 if length & wire.MASKED else 2)
            length &= 0x7F
            if length == 126:
                if end - position < 4:
                    break
                length = _LENGTH_16.unpack_from(data, position + 2)[0]
                payload_at += 2
            elif length == 127:
                if end - position < 10:
                    break
                length = _LENGTH_64.unpack_from(data, position + 2)[0]
                payload_at += 8
            if payload_at > end:
                break  # wait for the rest of the mask
            # (A "control frame" with a long payload is invalid: the other end rejects it.)
            if first & _CONTROL and length <= wire.MAX_CONTROL_BYTES:
                frame_end = payload_at + length
                if frame_end > end:
                    break  # wait for the rest: a frame of ours may come before it
                event = self._control(first & _OPCODE, data[position:frame_end], length)
                if event is _OWN_PONG:
                    self._pass(data, start, position)
                    start = frame_end
                if event:
                    events.append(event)
                if isinstance(event, wire.Violation):
                    break  # the frame does not pass
                position = frame_end
                if isinstance(event, CloseFrame):
                    break  # nothing passes after it
                continue
            violation = self._begin_frame(first, length)
            if violation:
                events.append(violation)
                break
            position = payload_at
            self.remaining = length
        self._pass(data, start, position)
        if events and isinstance(events[-1], CloseFrame):
            self.has_ended = self.has_sent_last = True
        elif events and isinstance(events[-1], wire.Violation):
            self.has_ended = True
        else:
            self.rest = data[position:]
        return events

    def insert(self, frame: bytes) -> bool:
        """Append a frame of the bridge's own; return False if it may not stand here."""
        if self.remaining or self.has_sent_last:
            return False
        self.out.append(frame)
        return True

    def insert_last(self, frame: bytes) -> None:
        """Append a frame of the bridge's own, now or after the current frame, as the last one.

        Nothing is appended after a CLOSE.
        """
        if self.has_sent_last:
            return
        if self.remaining:
            self._held = frame
            return
        self._held = b""
        self.out.append(frame)
        self.has_sent_last = True

    def export_state(self) -> dict[str, Any] | None:
        """Return the state between two frames, as JSON values; None in any other state."""
        if self.remaining or self.rest or self.has_ended or self.has_sent_last or self.is_paused:
            return None
        return {
            "messages": self.messages,
            "payload_bytes": self.payload_bytes,
            "controls": self.controls,
            "expected_pongs": self.expected_pongs,
            "max_frames": self.max_frames,
            "message_bytes": self._message_bytes,
        }

    def import_state(self, state: dict[str, Any]) -> None:
        """Continue from an exported state; only before the first byte.

        Raises:
            KeyError, TypeError, ValueError: the state has another form.
        """
        self.messages = int(state["messages"])
        self.payload_bytes = int(state["payload_bytes"])
        self.controls = int(state["controls"])
        self.expected_pongs = int(state["expected_pongs"])
        self.max_frames = float(state["max_frames"])
        self._message_bytes = int(state["message_bytes"])

    def _pass(self, data: bytes, start: int, end: int) -> None:
        if start < end and not self.has_sent_last:
            # (A slice of all bytes is the object itself.)
            self.out.append(data[start:end])

    def _control(self, opcode: int, frame: bytes, length: int) -> Event | None:
        """Return the event of a whole control frame, None if it just passes."""
        if opcode == wire.CLOSE:
            return CloseFrame(_payload(frame, length))
        if opcode == wire.PONG and self.expected_pongs and _payload(frame, length) == KEEPALIVE:
            # Not counted: the bridge caused it, and a slow rate must not close the client.
            self.expected_pongs -= 1
            return _OWN_PONG
        self.controls += 1
        return self._exceeds_rate()

    def _begin_frame(self, first: int, length: int) -> wire.Violation | None:
        """Count a data frame; return the violation of a limit that it exceeds."""
        if first & _OPCODE != wire.CONTINUATION:
            self.messages += 1
            self._message_bytes = 0
        elif not length and not first & _FIN:
            self.controls += 1
        self._message_bytes += length
        if self._message_bytes > self._max_message_bytes:
            reason = f"message has more than {self._max_message_bytes} bytes"
            return wire.Violation(wire.TOO_BIG, reason)
        self.payload_bytes += length
        if first & _FIN:
            self._message_bytes = 0
        return self._exceeds_rate()

    def _exceeds_rate(self) -> wire.Violation | None:
        if self.messages + self.controls > self.max_frames:
            return wire.Violation(wire.POLICY_VIOLATION, TOO_MANY)
        return None


def _payload(frame: bytes, length: int) -> bytes:
    """Return the payload of a whole control frame, masked or not."""
    payload_at = len(frame) - length  # the length may be in any form, also a longer one
    payload = frame[payload_at:]
    if frame[1] & wire.MASKED:
        return unmask(payload, frame[payload_at - 4 : payload_at])
    return payload
