"""Groups at the edge: the LANE frames of a connection, and the frames of a bridge channel.

Contract: pure functions, and ``ChannelReader``, which accepts the bytes of a channel, cut at any
position.  Invalid input raises nothing: the last item is then a ``Violation``.  No I/O.

A LANE frame has one byte that names its kind, and then numbers of four bytes, big-endian.  On a
channel all frames are LANE frames; MULTICAST and UNICAST end with the frame for the client.

Sources: docs/reference/wire.md, "Groups at the edge".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from apachews.exceptions import WireError

from .frames import (
    BINARY,
    FIN,
    LANE,
    MAX_CONTROL_BYTES,
    PING,
    PONG,
    TEXT,
    decode_header,
    encode_header,
)
from .violation import Violation

# On a client's connection, producer to bridge.
ASK: Final = 1
JOIN: Final = 2
OWN: Final = 3
# On a client's connection, bridge to producer.
OFFER: Final = 4
BRIDGE: Final = 5
# On a channel, bridge to producer.
READY: Final = 6
SLOW: Final = 7
# On a channel, producer to bridge.
OFF: Final = 8
ADD: Final = 9
REMOVE: Final = 10
MULTICAST: Final = 11
UNICAST: Final = 12

# The group of all clients that are on the channel.
ALL: Final = 0
# The longest frame for a client that a channel carries: 64 KiB and a header.  A longer one goes
# by the client's own connection, so that a channel never waits long for one message.
MAX_FRAME_BYTES: Final = 65536 + 10
# The largest number of clients that one frame names; a longer list takes several frames.
MAX_NUMBERS: Final = 4096
# The largest number of groups that a client may be in while it is on a channel.  It bounds what a
# producer can make Apache store for a client.
MAX_GROUPS: Final = 256
# A LANE frame on a client's connection is not longer than this.
MAX_LANE_BYTES: Final[int] = MAX_CONTROL_BYTES
MAX_NUMBER: Final = 0xFFFFFFFF

_FIRST: Final = FIN | LANE
_NUMBER: Final = struct.Struct(">I")
_JOIN: Final = struct.Struct(">BBBII")
_MULTICAST: Final = struct.Struct(">BIH")
_UNICAST: Final = struct.Struct(">BI")
# The longest payload: a MULTICAST that excludes MAX_NUMBERS clients.
_MAX_PAYLOAD_BYTES: Final = _MULTICAST.size + 4 * MAX_NUMBERS + MAX_FRAME_BYTES
_MESSAGES: Final = frozenset((FIN | TEXT, FIN | BINARY))
_CONTROLS: Final = frozenset((FIN | PING, FIN | PONG))
_LISTS: Final = frozenset((READY, SLOW, OFF))
_GROUP_LISTS: Final = frozenset((ADD, REMOVE))


@dataclass(frozen=True, slots=True)
class Numbers:
    """READY, SLOW, OFF, ADD or REMOVE.

    Attributes:
        kind: which of them.
        group: of ADD and REMOVE; else 0.
        numbers: the clients.
    """

    kind: int
    group: int
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Multicast:
    """One message for the members of a group.

    Attributes:
        group: the group.
        excluded: members that do not receive it.
        frame: the whole frame for the others.
        payload_bytes: length of the message.
    """

    group: int
    excluded: tuple[int, ...]
    frame: bytes
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class Unicast:
    """One message, or a PING or PONG, for one client.

    Attributes:
        number: the client.
        frame: the whole frame.
        payload_bytes: length of its payload.
    """

    number: int
    frame: bytes
    payload_bytes: int


Item: TypeAlias = "Numbers | Multicast | Unicast | Violation"


def encode_lane(kind: int, *numbers: int) -> bytes:
    """Return a LANE frame of a few numbers: ASK, OWN, OFFER."""
    payload = bytes((kind,)) + b"".join(map(_NUMBER.pack, numbers))
    return encode_header(_FIRST, len(payload)) + payload


def encode_join(key: int, number: int) -> bytes:
    """Return a JOIN: the client asks to go on the channel of this key under this number."""
    return _JOIN.pack(_FIRST, 9, JOIN, key, number)


def encode_bridge(bridge: str) -> bytes:
    """Return a BRIDGE: another bridge process has the connection now.

    Args:
        bridge: id of that process.
    """
    payload = bytes((BRIDGE,)) + bridge.encode()
    return encode_header(_FIRST, len(payload)) + payload


def encode_numbers(kind: int, numbers: Iterable[int], group: int | None = None) -> bytes:
    """Return READY, SLOW or OFF, or, with a group, ADD or REMOVE; several frames if needed."""
    prefix = bytes((kind,)) + (b"" if group is None else _NUMBER.pack(group))
    listed = list(numbers)
    frames = b""
    for start in range(0, len(listed), MAX_NUMBERS):
        some = listed[start : start + MAX_NUMBERS]
        payload = prefix + struct.pack(f">{len(some)}I", *some)
        frames += encode_header(_FIRST, len(payload)) + payload
    return frames


def encode_multicast(group: int, excluded: list[int], frame: bytes) -> bytes:
    """Return a MULTICAST.

    Args:
        excluded: at most ``MAX_NUMBERS`` numbers.
        frame: of at most ``MAX_FRAME_BYTES``.
    """
    count = len(excluded)
    head = _MULTICAST.pack(MULTICAST, group, count)
    if count:
        head += struct.pack(f">{count}I", *excluded)
    return encode_header(_FIRST, len(head) + len(frame)) + head + frame


def is_message(frame: bytes) -> bool:
    """Tell whether a whole frame is a message, which a MULTICAST may carry."""
    return frame[0] in _MESSAGES


def encode_unicast(number: int, frame: bytes) -> bytes:
    """Return a UNICAST of a frame of at most ``MAX_FRAME_BYTES``."""
    header = encode_header(_FIRST, _UNICAST.size + len(frame))
    return header + _UNICAST.pack(UNICAST, number) + frame


def decode_numbers(payload: bytes, count: int) -> tuple[int, ...] | None:
    """Return the numbers after the kind of a LANE frame; None if it has another length."""
    if len(payload) != 1 + 4 * count:
        return None
    return struct.unpack_from(f">{count}I", payload, 1)


class ChannelReader:
    """Reads one direction of a channel.

    Attributes:
        has_ended: there was a violation; later input is ignored.
    """

    __slots__ = ("_rest", "has_ended")

    def __init__(self) -> None:
        self._rest = b""
        self.has_ended = False

    def receive(self, data: bytes) -> list[Item]:
        """Decode bytes; return the items that they complete, in order."""
        items: list[Item] = []
        if self.has_ended:
            return items
        try:
            self._read_frames(data, items)
        except WireError as error:
            self.has_ended = True
            self._rest = b""
            items.append(Violation.from_error(error))
        return items

    def _read_frames(self, data: bytes, items: list[Item]) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        position, end = 0, len(data)
        while position < end:
            header = decode_header(data, position)
            if header is None:
                break
            first, length, payload_at = header
            # Before the frame is complete: the limit bounds what ``_rest`` can hold.
            if first != _FIRST:
                raise WireError(f"frame with the first byte {first:#04x} on a channel")
            if not 1 <= length <= _MAX_PAYLOAD_BYTES:
                raise WireError(f"frame of {length} bytes on a channel")
            frame_end = payload_at + length
            if frame_end > end:
                break
            items.append(_decode(data, payload_at, frame_end))
            position = frame_end
        self._rest = data[position:]


def _decode(data: bytes, start: int, end: int) -> Item:
    """Return the item of one payload."""
    kind = data[start]
    if kind == MULTICAST:
        if end - start < _MULTICAST.size:
            raise WireError("MULTICAST is too short")
        _, group, count = _MULTICAST.unpack_from(data, start)
        excluded_at = start + _MULTICAST.size
        frame_at = excluded_at + 4 * count
        if count > MAX_NUMBERS or frame_at > end:
            raise WireError("MULTICAST excludes more clients than it names")
        excluded: tuple[int, ...] = ()
        if count:
            excluded = struct.unpack_from(f">{count}I", data, excluded_at)
        frame = data[frame_at:end]
        return Multicast(group, excluded, frame, _payload_bytes(frame, _MESSAGES))
    if kind == UNICAST:
        if end - start < _UNICAST.size:
            raise WireError("UNICAST is too short")
        _, number = _UNICAST.unpack_from(data, start)
        frame = data[start + _UNICAST.size : end]
        return Unicast(number, frame, _payload_bytes(frame, _MESSAGES | _CONTROLS))
    has_group = kind in _GROUP_LISTS
    if not has_group and kind not in _LISTS:
        raise WireError(f"frame of kind {kind} on a channel")
    count, rest = divmod(end - start - 1, 4)
    if rest or count > MAX_NUMBERS + 1 or (has_group and not count):
        raise WireError(f"frame of kind {kind} with {end - start} bytes")
    numbers: tuple[int, ...] = struct.unpack_from(f">{count}I", data, start + 1)
    return Numbers(kind, numbers[0], numbers[1:]) if has_group else Numbers(kind, 0, numbers)


def _payload_bytes(frame: bytes, allowed: frozenset[int]) -> int:
    """Return the payload's length of a frame for a client.

    Raises:
        WireError: it is not one whole frame, or not an allowed one.
    """
    header = decode_header(frame, 0)
    if header is None or header[0] not in allowed or len(frame) > MAX_FRAME_BYTES:
        raise WireError("invalid frame for a client on a channel")
    first, length, payload_at = header
    if payload_at + length != len(frame):
        raise WireError("a channel carries whole frames for clients")
    if first in _CONTROLS and length > MAX_CONTROL_BYTES:
        raise WireError("control frame of more than 125 bytes on a channel")
    return length
