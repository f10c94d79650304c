"""permessage-deflate: the negotiation and the two streams (RFC 7692).

Contract: ``Negotiation`` is an extension for wsproto's handshake; its ``agreed`` is the
result.  ``Inflater`` returns what a client compressed, in pieces of at most the requested
size; ``Deflater`` compresses for the client.  Sans-I/O; one of each per connection, created
for the first message that needs it, and dropped after each message if no context is kept.

How this works: zlib's streams do the work.  Two properties are added.  The Inflater never
returns more at once than its caller has room for: a few bytes of a client may inflate to a
thousand times as many.  And the windows are smaller than zlib's largest: a connection takes
2**(bits+2) bytes to compress and 2**bits to inflate, and some KiB
(docs/explanation/how-it-works.md has measurements).

Sources: RFC 7692 7.1 (parameters), 7.2 (messages).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

from wsproto.extensions import Extension

from apachews import wire
from apachews.exceptions import WireError

# RSV1, on the first frame of a compressed message (RFC 7692 6.).
COMPRESSED: Final = 0x40
# RFC 7692 7.1.2.1 allows 8 as well; zlib cannot compress with 8.
MAX_WINDOW_BITS: Final = 15
MIN_WINDOW_BITS: Final = 9
# Parameters that have a value, and parameters that need none (RFC 7692 7.1).
_HAVE_BITS: Final = frozenset(("server_max_window_bits", "client_max_window_bits"))
_MAY_STAND_ALONE: Final = frozenset(
    ("server_no_context_takeover", "client_no_context_takeover", "client_max_window_bits")
)
_WINDOWS: Final = frozenset(str(bits) for bits in range(8, MAX_WINDOW_BITS + 1))
# The end of a compressed message, which the sender removes (RFC 7692 7.2.1).
_TAIL: Final = b"\x00\x00\xff\xff"
# A stored block without its first byte: length, complement, bytes (RFC 1951 3.2.4).
_BLOCK_BYTES: Final = b"apachews"
_BLOCK: Final = b"\x08\x00\xf7\xff" + _BLOCK_BYTES
# A message may have several final blocks (RFC 7692 7.2.1), and each ends a zlib stream.  A new
# stream costs far more than the two bytes of an empty final block: a message of such blocks
# would delay the other clients.  Compressors write at most one.
MAX_STREAMS: Final = 16


@dataclass(frozen=True, slots=True)
class Agreement:
    """The parameters that client and server agreed on.

    Attributes:
        client_window_bits, server_window_bits: the largest window that each side compresses
            with, as a power of two.  The server's may be smaller than its answer says: the
            answer says 15 if the client did not offer ``server_max_window_bits``.
        client_keeps_context, server_keeps_context: whether a message may refer to earlier
            messages.
    """

    client_window_bits: int = MAX_WINDOW_BITS
    server_window_bits: int = MAX_WINDOW_BITS
    client_keeps_context: bool = True
    server_keeps_context: bool = True


class Negotiation(Extension):
    """The extension for wsproto's handshake.

    (wsproto's own extension does not limit the client's window in its answer, does not decline
    the offers that RFC 7692 7.1 declines, and does not check the values of offers.)

    Args:
        window_bits: the largest window, in both directions.
        keeps_context: whether messages may refer to earlier ones, in both directions.

    Attributes:
        agreed: the result of the handshake; None if every offer was declined.
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
        """Return the parameters that answer one offer; None declines it."""
        if self.agreed:
            return None  # an earlier offer is a better one (RFC 7692 5.)
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
        # Answer the parameter only if the client offered it: RFC 7692 7.1.2.1 allows it without
        # an offer, but clients in use fail on it.  The server may use a smaller window without
        # an agreement: the client's larger window inflates the stream.
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
    """Return an offer's parameters; None if RFC 7692 7.1 requires that it is declined.

    A parameter without a value has the value None.
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
    """Inflates a client's messages.

    Args:
        window_bits: the client's, as negotiated.
        window: the result of ``window()`` of an earlier inflater of the same stream.

    Attributes:
        streams: number of zlib streams in the message so far.
    """

    __slots__ = ("_history_bytes", "_input", "_is_empty", "_window_bits", "_zlib", "streams")

    def __init__(self, window_bits: int, window: bytes = b"") -> None:
        # (A larger window inflates the streams of a smaller one.)
        self._window_bits = max(window_bits, MIN_WINDOW_BITS)
        if window:
            self._zlib = zlib.decompressobj(-self._window_bits, zdict=window)
        else:
            self._zlib = zlib.decompressobj(-self._window_bits)
        self._history_bytes = len(window)  # length of the output of the current stream
        self._input = b""
        self._is_empty = True  # the message has no byte so far
        self.streams = 1

    def feed(self, data: bytes) -> None:
        """Store a piece of a message's payload; the previous piece must have been read out."""
        self._is_empty = self._is_empty and not data
        self._input = data

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; fewer mean that the piece is read out.

        Raises:
            WireError: 1007, the data is not a valid deflate stream.
        """
        out = self._decompress(self._input, size)
        while self._zlib.eof and self._zlib.unused_data:
            # A final block ended the stream; the message continues in a new stream.
            self.streams += 1
            if self.streams > MAX_STREAMS:
                raise WireError("message has too many compressed streams", wire.INVALID_DATA)
            self._input = self._zlib.unused_data
            self._new_stream()
            if len(out) == size:
                return out
            out += self._decompress(self._input, size - len(out))
        self._input = self._zlib.unconsumed_tail
        return out

    def end_message(self) -> None:
        """End a message that was read out; the next one may refer to it.

        How this finds a truncated message: a complete one ends after the header of an empty
        stored block, whose last four bytes the sender removed (RFC 7692 7.2.1).  Only in that
        state does zlib accept another stored block, so the method feeds one to a copy of the
        stream.  Without this check the inflater would read the next message as the rest of a
        truncated one.

        Raises:
            WireError: 1007, the message ends inside a block.
        """
        # A sender may end a message with a final block and nothing after it, and an empty
        # message may have no byte at all (RFC 7692 7.2.3.4, 7.2.3.6).
        if not self._zlib.eof and not self._is_empty:
            if self._accepts_block(b""):
                self._zlib.decompress(_TAIL)
            # Or the message ends between two blocks: the sender did not remove the tail, which
            # is harmless.
            elif not self._accepts_block(b"\x01"):
                raise WireError("compressed message is truncated", wire.INVALID_DATA)
        if self._zlib.eof:
            self._new_stream()
        self._is_empty = True
        self.streams = 1

    def window(self) -> bytes:
        """Return the output that the next message may refer to; only between messages.

        Python's ``zlib`` lacks ``inflateGetDictionary``.  Instead, a copy of the stream
        inflates a block of matches at the distance of the window's length, which repeats the
        window.
        """
        size = min(self._history_bytes, 1 << self._window_bits)
        return self._zlib.copy().decompress(_repeat(size), size) if size else b""

    def _new_stream(self) -> None:
        self._zlib = zlib.decompressobj(-self._window_bits)
        self._history_bytes = 0

    def _accepts_block(self, header: bytes) -> bool:
        """Tell whether zlib reads a stored block as one after this part of its header."""
        stream = self._zlib.copy()
        try:
            is_read = stream.decompress(header + _BLOCK, len(_BLOCK)) == _BLOCK_BYTES
        except zlib.error:
            return False
        # If the previous block has not ended, its last code consumes the header's first bit,
        # the bit that makes the block a final one.
        return is_read and (not header or stream.eof)

    def _decompress(self, data: bytes, size: int) -> bytes:
        try:
            out = self._zlib.decompress(data, size)
        except zlib.error as error:
            raise WireError("message is not valid deflate data", wire.INVALID_DATA) from error
        self._history_bytes += len(out)
        return out


def _repeat(distance: int) -> bytes:
    """Return the beginning of a deflate block that repeats the last ``distance`` bytes.

    Matches of 258 bytes, in the fixed Huffman code (RFC 1951 3.2.5, 3.2.6).
    """
    # Two codes share each number of extra bits; these count up from the code's first distance.
    exponent = max((distance - 1).bit_length() - 1, 0)
    extra_bits = max(exponent - 1, 0)
    code = distance - 1
    if exponent:
        code = 2 * exponent + ((distance - 1) >> extra_bits & 1)
    extra = (distance - 1) & ((1 << extra_bits) - 1)
    # Huffman codes start with their most significant bit, all other fields with the least one.
    match = 0b10100011 | int(f"{code:05b}"[::-1], 2) << 8 | extra << 13
    bits, size = 0b010, 3  # not the last block, fixed codes
    for _ in range(-(-distance // 258)):
        bits |= match << size
        size += 13 + extra_bits
    return bits.to_bytes(-(-size // 8), "little")


class Deflater:
    """Compresses for a client.

    Args:
        window_bits: the server's, as negotiated.
        level: zlib's, 1 to 9.
    """

    __slots__ = ("_zlib",)

    def __init__(self, window_bits: int, level: int) -> None:
        # The last argument sizes zlib's tables.  Its default is 8 for a window of 15 bits;
        # this keeps the proportion, so that the tables take as much memory as the window.
        self._zlib = zlib.compressobj(level, zlib.DEFLATED, -window_bits, window_bits - 7)

    def compress(self, data: bytes) -> bytes:
        """Return the output that is ready for a message's next piece, b"" for none."""
        return self._zlib.compress(data)

    def flush(self) -> bytes:
        """Return the rest of the output for the message so far."""
        return self._zlib.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        """Return the rest of the message; the next one may refer to it."""
        data = self._zlib.flush(zlib.Z_SYNC_FLUSH)
        # Without input since the last flush zlib returns nothing, and the tail of that flush has
        # gone out: an empty block stands for the end (RFC 7692 7.2.3.6).
        return data[: -len(_TAIL)] if data else b"\x00"


def compressed_alone(frame: bytes, payload_bytes: int, window_bits: int, level: int) -> bytes:
    """Return a frame of a whole message, compressed without reference to any other message.

    It is valid for every client whose window is at least as large, whatever that client was
    sent before.

    Args:
        frame: uncompressed, TEXT or BINARY.
        payload_bytes: length of its payload.
        window_bits, level: as ``Deflater``.
    """
    deflater = Deflater(window_bits, level)
    payload = deflater.compress(frame[len(frame) - payload_bytes :]) + deflater.finish()
    return wire.encode_header(frame[0] | COMPRESSED, len(payload)) + payload
