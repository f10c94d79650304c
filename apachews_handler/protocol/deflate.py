"""permessage-deflate: what is agreed on, and the two streams (RFC 7692).

Contract: ``Negotiation`` is an extension for wsproto's handshake; what was agreed
on is then in its ``agreed``.  ``Inflater`` gives back what a client compressed, in
pieces no larger than asked for; ``Deflater`` compresses for it.  Sans-I/O; one a
connection and direction, made when there is a message for it, and where no context
is kept let go after that.

How this works: zlib's streams do the work.  Only two things are ours.  Never more
comes out of the Inflater at once than its caller has room for: a few bytes of a
client may stand for a thousand times as many.  And a window of ours is smaller
than zlib's largest: memory for a connection is 2**(bits+2) bytes to compress and
2**bits to inflate, and some KiB (docs/explanation/how-it-works.md has what was measured).

Sources: RFC 7692 7.1 (parameters), 7.2 (messages).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

from wsproto.extensions import Extension

from apachews import wire
from apachews_handler.exceptions import Violation

# RFC 7692 7.1.2.1; zlib itself cannot compress with 8.
MAX_WINDOW_BITS: Final = 15
MIN_WINDOW_BITS: Final = 9
# RFC 7692 7.1
_HAVE_BITS: Final = frozenset(("server_max_window_bits", "client_max_window_bits"))
_MAY_STAND_ALONE: Final = frozenset(
    ("server_no_context_takeover", "client_no_context_takeover", "client_max_window_bits")
)
_WINDOWS: Final = frozenset(str(bits) for bits in range(8, MAX_WINDOW_BITS + 1))
# What ends a message, and is not sent (RFC 7692 7.2.1).
_TAIL: Final = b"\x00\x00\xff\xff"
# A stored block without its first byte: length, complement, bytes (RFC 1951 3.2.4).
_BLOCK_BYTES: Final = b"apachews"
_BLOCK: Final = b"\x08\x00\xf7\xff" + _BLOCK_BYTES
# A message may have several final blocks (RFC 7692 7.2.1), each of which ends a zlib stream.
# Setting a stream up costs far more than the two bytes of an empty final block, so a message
# that consists of these would hold up the other clients; compressors make one.
MAX_STREAMS: Final = 16


@dataclass(frozen=True, slots=True)
class Agreement:
    """What client and server agreed on.

    Attributes:
        client_window_bits, server_window_bits: the window that each compresses
            with at most, as a power of two.  The server's may be smaller than its answer
            says: 15, if the client did not offer ``server_max_window_bits``.
        client_keeps_context, server_keeps_context: whether a message may refer
            to the ones before it.
    """

    client_window_bits: int = MAX_WINDOW_BITS
    server_window_bits: int = MAX_WINDOW_BITS
    client_keeps_context: bool = True
    server_keeps_context: bool = True


class Negotiation(Extension):
    """What is offered to wsproto's handshake.

    (wsproto has one of its own, whose answer does not hold the client to a window,
    nor decline what RFC 7692 7.1 has declined; and its offers' values are not
    checked.)

    Args:
        window_bits: the largest window, both ways.
        keeps_context: whether messages may refer to earlier ones, both ways.

    Attributes:
        agreed: after the handshake; None where the client's offers were declined.
    """

    name = "permessage-deflate"

    def __init__(self, window_bits: int, keeps_context: bool) -> None:
        self._window_bits = window_bits
        self._keeps_context = keeps_context
        self.agreed: Agreement | None = None

    def offer(self) -> bool:
        """Offer nothing: servers answer."""
        return False

    def accept(self, offer: str) -> str | None:
        """Return the parameters that answer one offer, None to decline it."""
        if self.agreed:
            return None  # the client lists its offers best first (RFC 7692 5.)
        parameters = _parse_offer(offer)
        if parameters is None:
            return None
        server_offered = parameters.get("server_max_window_bits")
        server_bits = min(self._window_bits, server_offered or MAX_WINDOW_BITS)
        if server_bits < MIN_WINDOW_BITS:
            return None
        client_bits = MAX_WINDOW_BITS
        answer = []
        if "client_max_window_bits" in parameters:
            wanted = parameters["client_max_window_bits"] or MAX_WINDOW_BITS
            client_bits = min(self._window_bits, wanted)
            answer.append(f"client_max_window_bits={client_bits}")
        # Only in answer to an offer of the parameter: RFC 7692 7.1.2.1 allows it without one,
        # and clients in use fail on it.  A server that compresses with a smaller window than
        # agreed on needs no agreement: the client's larger window reads its stream.
        if server_offered:
            answer.append(f"server_max_window_bits={server_bits}")
        server_keeps = self._keeps_context and "server_no_context_takeover" not in parameters
        client_keeps = self._keeps_context and "client_no_context_takeover" not in parameters
        if not server_keeps:
            answer.append("server_no_context_takeover")
        if not client_keeps:
            answer.append("client_no_context_takeover")
        self.agreed = Agreement(client_bits, server_bits, client_keeps, server_keeps)
        return "; ".join(answer)


def _parse_offer(offer: str) -> dict[str, int | None] | None:
    """Return an offer's parameters, None where RFC 7692 7.1 has it declined.

    The value is None for a parameter without one.
    """
    parameters: dict[str, int | None] = {}
    for item in offer.split(";")[1:]:
        name, has_value, value = (part.strip() for part in item.partition("="))
        if name in parameters:
            return None
        if name in _MAY_STAND_ALONE and not has_value:
            parameters[name] = None
        elif name in _HAVE_BITS and value.strip('"') in _WINDOWS:
            parameters[name] = int(value.strip('"'))
        else:
            return None
    return parameters


class Inflater:
    """Inflates what a client compressed.

    How the end of a message is found: a message ends after the header of an empty stored
    block, whose last four bytes the sender removed (RFC 7692 7.2.1).  Only in that state
    does zlib take a stored block of other bytes for what it is, so a copy of the stream is
    given one.  A message that was cut off anywhere else is refused; without the question
    the bytes of the next message would be read as its rest.

    Args:
        window_bits: as agreed on for the client.
        window: what ``window()`` of an earlier inflater of the same stream returned.

    Attributes:
        streams: of zlib, in the message so far.
    """

    __slots__ = ("_history_bytes", "_input", "_is_empty", "_window_bits", "_zlib", "streams")

    def __init__(self, window_bits: int, window: bytes = b"") -> None:
        self._window_bits = max(window_bits, MIN_WINDOW_BITS)  # a larger one reads all
        if window:
            self._zlib = zlib.decompressobj(-self._window_bits, zdict=window)
        else:
            self._zlib = zlib.decompressobj(-self._window_bits)
        self._history_bytes = len(window)  # output of the current stream
        self._input = b""
        self._is_empty = True  # the message so far
        self.streams = 1

    def feed(self, data: bytes) -> None:
        """Take a piece of a message's payload, after the piece before was read out."""
        self._is_empty = self._is_empty and not data
        self._input = data

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; fewer mean that the piece is read out.

        Raises:
            Violation: 1007, the data is not compressed as it should be.
        """
        out = self._decompress(self._input, size)
        while self._zlib.eof and self._zlib.unused_data:
            # A final block ended the stream, and the message goes on in a new one.
            self.streams += 1
            if self.streams > MAX_STREAMS:
                raise Violation(wire.INVALID_DATA, "a message has too many compressed streams")
            self._input = self._zlib.unused_data
            self._begin_stream()
            if len(out) == size:
                return out
            out += self._decompress(self._input, size - len(out))
        self._input = self._zlib.unconsumed_tail
        return out

    def end_message(self) -> None:
        """End a message that was read out; the next one may refer to it.

        Raises:
            Violation: 1007, the message ends inside a block.
        """
        # A sender may end a message with a final block and nothing after it, and an empty
        # message may have no byte at all (RFC 7692 7.2.3.4, 7.2.3.6).
        if not self._zlib.eof and not self._is_empty:
            if self._takes_block(b""):
                self._zlib.decompress(_TAIL)
            elif not self._takes_block(b"\x01"):
                # (Between two blocks: the sender left the tail in place, which is harmless.)
                raise Violation(wire.INVALID_DATA, "a compressed message is cut off")
        if self._zlib.eof:
            self._begin_stream()
        self._is_empty = True
        self.streams = 1

    def window(self) -> bytes:
        """Return the output that the next message may refer to; only between messages.

        zlib's ``inflateGetDictionary`` is not part of Python's ``zlib``.  A block of matches
        at the distance of the window's length repeats the window, and a copy of the stream
        inflates it.
        """
        size = min(self._history_bytes, 1 << self._window_bits)
        return self._zlib.copy().decompress(_repeat(size), size) if size else b""

    def _begin_stream(self) -> None:
        self._zlib = zlib.decompressobj(-self._window_bits)
        self._history_bytes = 0

    def _takes_block(self, header: bytes) -> bool:
        """Tell whether a stored block would be read as one after this part of its header."""
        stream = self._zlib.copy()
        try:
            is_read = stream.decompress(header + _BLOCK, len(_BLOCK)) == _BLOCK_BYTES
        except zlib.error:
            return False
        # If the block before has not ended, its last code takes the header's first bit, and
        # with it what makes the block a final one.
        return is_read and (not header or stream.eof)

    def _decompress(self, data: bytes, size: int) -> bytes:
        try:
            out = self._zlib.decompress(data, size)
        except zlib.error as error:
            raise Violation(wire.INVALID_DATA, "a message is not compressed correctly") from error
        self._history_bytes += len(out)
        return out


def _repeat(distance: int) -> bytes:
    """Return the beginning of a deflate block that repeats the last ``distance`` bytes.

    Matches of 258 bytes, in the fixed Huffman code (RFC 1951 3.2.5, 3.2.6).
    """
    # Distances come in pairs of codes; the bits that follow a code count up from its first.
    exponent = max((distance - 1).bit_length() - 1, 0)
    extra_bits = max(exponent - 1, 0)
    code = distance - 1
    if exponent:
        code = 2 * exponent + ((distance - 1) >> extra_bits & 1)
    extra = (distance - 1) & ((1 << extra_bits) - 1)
    # Huffman codes start with their most significant bit, all other fields with the least.
    match = 0b10100011 | int(f"{code:05b}"[::-1], 2) << 8 | extra << 13
    bits, size = 0b010, 3  # not the last block, fixed codes
    for _ in range(-(-distance // 258)):
        bits |= match << size
        size += 13 + extra_bits
    return bits.to_bytes(-(-size // 8), "little")


class Deflater:
    """Compresses for a client.

    Args:
        window_bits: as agreed on for the server.
        level: zlib's, 1 to 9.
    """

    __slots__ = ("_zlib",)

    def __init__(self, window_bits: int, level: int) -> None:
        # The last is for zlib's tables: its own default is 8 for a window of 15; in
        # proportion, both take the same memory.
        self._zlib = zlib.compressobj(level, zlib.DEFLATED, -window_bits, window_bits - 7)

    def compress(self, data: bytes) -> bytes:
        """Return what is ready of a message's next piece; b"" is no end."""
        return self._zlib.compress(data)

    def flush(self) -> bytes:
        """Return all that there is of the message so far."""
        return self._zlib.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        """Return the rest of the message, to which the next may refer."""
        data = self._zlib.flush(zlib.Z_SYNC_FLUSH)
        # Where nothing came after the last flush there is nothing to flush, and its
        # tail has gone out: an empty block stands for the end (RFC 7692 7.2.3.6).
        return data[: -len(_TAIL)] if data else b"\x00"
