"""Readers of frames that share no code with the product: a strict peer.

Contract: ``ClientView`` stands for a browser and reads the bridge's output for it;
``ProducerView`` stands for a producer.  Both raise AssertionError at the first byte that
their peer must not send.  The functions return the expected result for one side's bytes:
``client_stream`` and ``producer_stream`` in the bridge, ``bridge_stream`` in a producer.
All prefer simple code to speed and memory.

Sources: RFC 6455 5.2-5.5, 7.1.1, 7.4; RFC 7692 6., 7.2.2; docs/reference/wire.md.
"""

from __future__ import annotations

import codecs
import itertools
import operator
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from apachews import wire
from apachews.exceptions import WireError
from apachews_handler.protocol.deflate import Agreement

TEXT, BINARY, OPEN, MOVE, CLOSE, PING, PONG = 1, 2, 3, 5, 8, 9, 10
CONTROLS: Final = (CLOSE, PING, PONG)
TAIL: Final = b"\0\0\xff\xff"
# A stored block of one byte, x: a stream accepts it only between two messages.
_PROBE: Final = b"\0\1\0\xfe\xffx"
# Pieces so small that zlib cannot refer much further back than its window.
_INFLATED_AT_ONCE: Final = 64

LANE: Final = 7
# Length and kind of the LANE frames that a producer sends: ASK, JOIN, OWN.
REQUESTS: Final = frozenset(((1, 1), (9, 2), (1, 3)))

Event = tuple[int, bytes]  # opcode, and payload of the whole message or control frame


class Wrong(Exception):
    """The bytes break a rule.

    Attributes:
        codes: the close codes that may answer the violation.
    """

    def __init__(self, *codes: int) -> None:
        super().__init__(*codes)
        self.codes = set(codes)


@dataclass(frozen=True)
class Frame:
    """A frame; payload and header may be truncated; length -1: the header is."""

    first: int
    length: int
    payload: bytes

    @property
    def opcode(self) -> int:
        return self.first & 0x0F

    @property
    def fin(self) -> bool:
        return self.first >= 0x80

    @property
    def is_whole(self) -> bool:
        return len(self.payload) == self.length


def frames(data: bytes, is_masked: bool = False) -> Iterator[tuple[Frame, int]]:
    """Yield each frame and the offset of its end; the last frame may be truncated.

    Raises:
        Wrong: a header with an invalid form.
    """
    at = 0
    while len(data) >= at + 2:
        first, second = data[at], data[at + 1]
        if (second >= 0x80) != is_masked:
            raise Wrong(1002)
        size = {126: 2, 127: 8}.get(second & 0x7F, 0)
        start = at + 2 + size + (4 if is_masked else 0)
        # The bridge checks a client's first bytes at once; a reader of the wire may wait.
        is_clear = is_masked or len(data) >= start
        if first & 0x08 and is_clear and (size or first < 0x80):
            raise Wrong(1002)
        if size and len(data) >= at + 2 + size:
            length = int.from_bytes(data[at + 2 : at + 2 + size], "big")
            if length < (126 if size == 2 else 65536) or length >= 2**63:
                raise Wrong(1002)
        else:
            length = second & 0x7F
        if len(data) < start:
            yield Frame(first, -1, b""), at
            return
        payload = data[start : start + length]
        if is_masked:
            mask = itertools.cycle(data[start - 4 : start])
            payload = bytes(map(operator.xor, payload, mask))
        at = start + len(payload)
        yield Frame(first, length, payload), at


def close(payload: bytes) -> tuple[int, str]:
    """Return the code and the reason of a CLOSE."""
    if not payload:
        return 1005, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (
        1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
    ):
        raise Wrong(1002)
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise Wrong(1007) from None


# What a peer sees


class _View:
    """Frames of one direction; each is handled when it is complete."""

    def __init__(self) -> None:
        self._rest = b""
        self.is_closed = False
        self.opcode = 0  # of the current message
        self.payload = b""  # of the current message, so far
        self.events: list[Event] = []  # without the CLOSE

    @property
    def is_between(self) -> bool:
        """Every frame is complete."""
        return not self._rest

    def feed(self, data: bytes) -> None:
        """Read bytes, cut at any position."""
        assert not (data and self.is_closed), "bytes after a CLOSE"
        self._rest += data
        end = 0
        for frame, at in frames(self._rest):
            if not frame.is_whole:
                break
            assert not self.is_closed, "a frame after a CLOSE"
            self._on_frame(frame)
            end = at
        self._rest = self._rest[end:]

    def _on_frame(self, frame: Frame) -> None:
        rsv = frame.first & 0x70
        if frame.opcode in CONTROLS:
            assert not rsv, "a control frame with an RSV bit"
            self._on_control(frame.opcode, frame.payload)
            return
        assert frame.opcode in (0, TEXT, BINARY), "a reserved opcode"
        assert bool(frame.opcode) != bool(self.opcode), (
            "a message inside another, or a CONTINUATION without one"
        )
        if frame.opcode:
            self.opcode, self.payload = frame.opcode, b""
            self._begin(rsv)
        else:
            assert not rsv, "a CONTINUATION with an RSV bit"
        self.payload += self._read(frame.payload, frame.fin)
        if frame.fin:
            self.events.append((self.opcode, self.payload))
            self.opcode, self.payload = 0, b""

    def _on_control(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            self.is_closed = True
            close(payload)
        else:
            self.events.append((opcode, payload))

    def _begin(self, rsv: int) -> None:
        assert not rsv, "an RSV bit"

    def _read(self, payload: bytes, is_last: bool) -> bytes:
        return payload


class ProducerView(_View):
    """What a producer receives, after the OPEN."""

    has_moved = False

    def _on_frame(self, frame: Frame) -> None:
        assert not self.has_moved, "a frame after MOVE"
        if frame.opcode == MOVE:
            assert not self.opcode, "MOVE inside a message"
            self.has_moved = True
        else:
            super()._on_frame(frame)

    def _on_control(self, opcode: int, payload: bytes) -> None:
        assert opcode != PING, "the bridge answers PINGs itself"
        super()._on_control(opcode, payload)

    def _read(self, payload: bytes, is_last: bool) -> bytes:
        if is_last and self.opcode == TEXT:
            (self.payload + payload).decode()  # the bridge has checked it
        return payload


class ClientView(_View):
    """What a client receives.

    Args:
        deflate: what was negotiated; None: no compression.
    """

    def __init__(self, deflate: Agreement | None) -> None:
        super().__init__()
        self._deflate = deflate
        self._zlib = self._new_stream()
        self._is_compressed = False

    def _new_stream(self) -> zlib._Decompress:
        return zlib.decompressobj(-(self._deflate.server_window_bits if self._deflate else 15))

    def _begin(self, rsv: int) -> None:
        self._is_compressed = rsv == 0x40 and self._deflate is not None
        assert self._is_compressed or not rsv, "an RSV bit without an agreement"

    def _read(self, payload: bytes, is_last: bool) -> bytes:
        if not self._is_compressed:
            return payload
        out = b""
        rest = payload + TAIL if is_last else payload
        while True:
            piece = self._zlib.decompress(rest, _INFLATED_AT_ONCE)
            rest = self._zlib.unconsumed_tail
            out += piece
            if len(piece) < _INFLATED_AT_ONCE:
                break
        assert not self._zlib.eof, "a block that ends its stream"
        if is_last:
            assert self._zlib.copy().decompress(_PROBE) == b"x", "a message that does not end"
            assert self._deflate
            if not self._deflate.server_keeps_context:
                self._zlib = self._new_stream()
        return out


# The expected result for one side's bytes


@dataclass
class Meaning:
    """The expected result for one side's bytes.

    Attributes:
        events: messages, PINGs and PONGs, in order.
        ignored: opcodes of the reserved frames.
        requests: payloads of LANE frames.
        moves: number of MOVEs.
        opcode: of the current message, 0 for none.
        partial: its payload so far.
        empty: number of CONTINUATIONs without payload and FIN.
        passed: offset of the end of the last forwarded frame, complete or truncated.
        is_between: the last frame is whole.
        close: code and reason of a CLOSE.
        has_moved: there was a MOVE.
        codes: the close codes that may answer a violation; empty for none.
        is_sure: False if the oracle does not know what follows.
    """

    events: list[Event] = field(default_factory=list)
    ignored: list[int] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    moves: int = 0
    opcode: int = 0
    partial: bytes = b""
    empty: int = 0
    passed: int = 0
    is_between: bool = True
    close: tuple[int, str] | None = None
    has_moved: bool = False
    codes: set[int] = field(default_factory=set)
    is_sure: bool = True


def producer_stream(data: bytes) -> Meaning:
    """Return the bridge's expected result for a producer's bytes.

    ``partial`` has complete frames only; ``passed`` excludes a CLOSE.
    """
    meaning = Meaning()
    try:
        for frame, end in frames(data):
            opcode = frame.opcode
            if frame.length < 0:
                break
            _check_wire(frame, meaning.opcode)
            if opcode == CLOSE:
                if frame.is_whole:
                    meaning.close = close(frame.payload)
                break
            if opcode == MOVE and meaning.opcode:
                raise Wrong(1002)
            if opcode == LANE and not meaning.opcode and frame.length <= 125:
                if not frame.is_whole:
                    break
                if (len(frame.payload), *frame.payload[:1]) in REQUESTS:
                    meaning.requests.append(frame.payload)
                    continue
            meaning.passed = end
            if TEXT <= opcode <= BINARY:
                meaning.opcode = opcode
            elif opcode == MOVE:
                meaning.moves += 1
            elif opcode and opcode not in CONTROLS:
                meaning.ignored.append(opcode)
            if not frame.is_whole:
                # A dropped frame leaves the client between two frames.
                meaning.is_between = opcode > BINARY and opcode not in CONTROLS
                break
            if opcode in CONTROLS:
                meaning.events.append((opcode, frame.payload))
            elif opcode <= BINARY:
                _join(meaning, frame)
    except Wrong as wrong:
        meaning.codes = wrong.codes
    return meaning


def bridge_stream(data: bytes, limit: int) -> Meaning:
    """Return the library's expected result for the bridge's bytes; an OPEN is an event."""
    meaning = Meaning()
    size = 0
    try:
        for frame, _ in frames(data):
            opcode = frame.opcode
            if frame.length < 0:
                break
            _check_wire(frame, meaning.opcode)
            if BINARY < opcode < CLOSE and frame.length > wire.MAX_OPEN_BYTES:
                raise Wrong(1002)
            if opcode <= BINARY or frame.is_whole:
                if (opcode == OPEN) == bool(meaning.events):
                    raise Wrong(1002)
                if opcode <= BINARY:
                    size = frame.length + (size if opcode == 0 else 0)
                    if size > limit:
                        raise Wrong(1009)
                    meaning.opcode = meaning.opcode or opcode
            if not frame.is_whole:
                break
            if opcode == CLOSE:
                meaning.close = close(frame.payload)
                break
            if opcode == MOVE:
                if meaning.opcode:
                    raise Wrong(1002)
                meaning.has_moved = True
                break
            if opcode == OPEN:
                wire.Open.decode(frame.payload)
            if opcode in (OPEN, MOVE, PONG) or (opcode == LANE and _is_for_library(frame.payload)):
                meaning.events.append((opcode, frame.payload))
            elif opcode <= BINARY:
                if meaning.opcode == TEXT and frame.fin:
                    _check_text(meaning.partial + frame.payload, is_last=True)
                _join(meaning, frame)
    except Wrong as wrong:
        meaning.codes = wrong.codes
    except WireError as error:
        meaning.codes = {error.code}
    return meaning


def _is_for_library(payload: bytes) -> bool:
    """Return whether a LANE frame is an OFFER or a BRIDGE."""
    if payload[:1] == b"\x04":
        return len(payload) == 5
    if payload[:1] != b"\x05" or len(payload) > 125:
        return False
    try:
        payload[1:].decode()
    except UnicodeDecodeError:
        return False
    return True


def client_stream(data: bytes, limit: int, max_frames: int, deflate: Agreement | None) -> Meaning:
    """Return the bridge's expected result for a client's bytes; PONGs and PINGs are events.

    The oracle does not find a client that exceeds the negotiated window, and does not know what
    follows a final block inside a message.
    """
    meaning = Meaning()
    inflater = zlib.decompressobj(-15)
    is_compressed = False
    size = packed = count = 0
    try:
        for frame, _ in frames(data, is_masked=True):
            opcode, rsv = frame.opcode, frame.first & 0x70
            if rsv and not (rsv == 0x40 and deflate and opcode in (TEXT, BINARY)):
                raise Wrong(1002)
            if opcode > BINARY and opcode not in CONTROLS:
                raise Wrong(1002)
            if opcode <= BINARY and bool(opcode) == bool(meaning.opcode):
                raise Wrong(1002)
            if frame.length < 0 or (opcode in CONTROLS and not frame.is_whole):
                break
            if opcode == CLOSE:
                meaning.close = close(frame.payload)
                break
            is_empty = not opcode and not frame.length and not frame.fin
            meaning.empty += is_empty
            if opcode or is_empty:
                count += 1
                if max_frames and count > max_frames:
                    raise Wrong(1008)
            if opcode in CONTROLS:
                meaning.events.append((opcode, frame.payload))
                continue
            if opcode:
                meaning.opcode, meaning.partial = opcode, b""
                is_compressed, size, packed = bool(rsv), 0, 0
            payload, is_last = frame.payload, frame.is_whole and frame.fin
            if is_compressed:
                packed += len(payload)
                # (A payload of no bytes is an empty message too.)
                payload = _inflate(inflater, payload, limit - size)
                size += len(payload)
                if inflater.eof:
                    meaning.is_sure = False
                    break
                if is_last and packed:
                    _end_inflating(inflater)
                if is_last and (inflater.eof or (deflate and not deflate.client_keeps_context)):
                    inflater = zlib.decompressobj(-15)
            else:
                size += frame.length
                if size > limit:
                    raise Wrong(1009)
            if meaning.opcode == TEXT:
                _check_text(meaning.partial + payload, is_last)
            _join(meaning, Frame(frame.first, len(payload) + (not frame.is_whole), payload))
            if not frame.is_whole:
                break
    except Wrong as wrong:
        meaning.codes = wrong.codes
    return meaning


def _inflate(inflater: zlib._Decompress, data: bytes, most: int) -> bytes:
    try:
        out = inflater.decompress(data, most + 1)
    except zlib.error:
        # The message may have exceeded the limit before the error.
        raise Wrong(1007, 1009) from None
    if len(out) > most:
        raise Wrong(1009, 1007)
    return out


def _end_inflating(inflater: zlib._Decompress) -> None:
    """Check that a message ends between two blocks, without or with the tail (RFC 7692 7.2.2)."""
    final = b"\x01\x00\x00\xff\xff"
    for removed in (TAIL, b""):
        whole = inflater.copy()
        try:
            out = whole.decompress(removed)
            is_final = whole.eof
            out += whole.decompress(final)
        except zlib.error:
            continue
        if not out and whole.eof and whole.unused_data == (final if is_final else b""):
            inflater.decompress(removed)
            return
    raise Wrong(1007)


def _check_wire(frame: Frame, message: int) -> None:
    """Check the rules of the wire for both directions."""
    if (
        frame.first & 0x70
        or (frame.opcode > BINARY and not frame.fin)
        or (frame.opcode <= BINARY and bool(frame.opcode) == bool(message))
    ):
        raise Wrong(1002)


def _check_text(payload: bytes, is_last: bool) -> None:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(payload, is_last)
    except UnicodeDecodeError:
        raise Wrong(1007) from None


def _join(meaning: Meaning, frame: Frame) -> None:
    """Add a frame to the current message."""
    meaning.partial += frame.payload
    if frame.fin and frame.is_whole:
        meaning.events.append((meaning.opcode, meaning.partial))
        meaning.opcode, meaning.partial = 0, b""
