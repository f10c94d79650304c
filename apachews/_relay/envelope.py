"""A message on its way from one producer to another: docs/reference/wire.md, *The relay*.

Contract: sans-I/O.  ``Envelope.encode`` and ``Envelope.decode`` are the bytes that Redis carries;
``channel_of`` is the name of the channel that carries them.
"""

from __future__ import annotations

import urllib.parse
from typing import Final, NamedTuple

from apachews import wire
from apachews.exceptions import WireError

# The first byte, so that a later version can tell its messages from these.
VERSION: Final = b"1"
# Of a producer: random, so that a producer recognizes its own messages.  A program that only
# publishes has the origin NOWHERE.
ORIGIN_BYTES: Final = 16
NOWHERE: Final = bytes(ORIGIN_BYTES)
# Not an opcode of the wire: such a frame is for producers, and no client gets it.
PRESENCE: Final = 0x7
# The same for workers of one supervisor: the history of a group has a new message.
NEWS: Final = 0x6
_KINDS: Final = {wire.TEXT: b"t", wire.BINARY: b"b", PRESENCE: b"p"}
_OPCODES: Final = {kind: opcode for opcode, kind in _KINDS.items()}
_HEADER_BYTES: Final = 2 + ORIGIN_BYTES


class Envelope(NamedTuple):
    """A message and its sender.

    Attributes:
        origin: of the producer that sent it, ``ORIGIN_BYTES`` long.
        opcode: ``wire.TEXT``, ``wire.BINARY`` or ``PRESENCE``.
        payload: the message; UTF-8 if it is text.
    """

    origin: bytes
    opcode: int
    payload: bytes

    @classmethod
    def of_frame(cls, origin: bytes, frame: bytes) -> Envelope:
        """Return the envelope of a message that ``wire.encode_message`` has encoded."""
        header = wire.decode_header(frame, 0)
        assert header, "a whole frame"
        first, _, start = header
        return cls(origin, first & 0x0F, frame[start:])

    def encode(self) -> bytes:
        """Return the bytes for the channel."""
        return b"".join((VERSION, _KINDS[self.opcode], self.origin, self.payload))

    @classmethod
    def decode(cls, data: bytes) -> Envelope:
        """Read the bytes of a channel.

        Raises:
            WireError: another version, an unknown kind, an incomplete header, or text that is
                not UTF-8.
        """
        opcode = _OPCODES.get(data[1:2])
        if data[:1] != VERSION or opcode is None or len(data) < _HEADER_BYTES:
            raise WireError(f"invalid relay message: {data[:2]!r}, expected b'1t' or b'1b'")
        payload = data[_HEADER_BYTES:]
        if opcode == wire.TEXT:
            try:
                payload.decode()
            except UnicodeDecodeError as error:
                raise WireError("invalid relay message: text that is not UTF-8", 1007) from error
        return cls(data[2:_HEADER_BYTES], opcode, payload)

    def message(self) -> str | bytes:
        """Return the message, as a program has sent it."""
        return self.payload.decode() if self.opcode == wire.TEXT else self.payload

    def frame(self) -> bytes:
        """Return the frame for the clients."""
        return wire.encode_frame(self.opcode, self.payload)


def channel_of(name: str, group: str | None) -> bytes:
    """Return the channel of a group, or of all clients (None).

    Args:
        name: the relay's name; percent-encoded, so that it contains no colon.
    """
    base = f"apachews:{urllib.parse.quote(name, safe='')}"
    # surrogatepass: a group may have any name that a program could give it before.
    return base.encode() if group is None else f"{base}:{group}".encode(errors="surrogatepass")


def group_of(name: str, channel: bytes) -> str | None:
    """Return the group of a channel that ``channel_of`` returned; None: all clients."""
    base = channel_of(name, None)
    if channel == base:
        return None
    return channel[len(base) + 1 :].decode(errors="surrogatepass")
