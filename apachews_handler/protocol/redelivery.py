"""What of the frames for a producer that is gone another one may have.

Contract: ``rest_of_messages`` is given frames of the wire that were on their way to
a producer, and says which of them belong to messages of which it had nothing.
Pure.
"""

from __future__ import annotations

from apachews import wire


def undelivered_frames(frames: bytes, sent: int, has_begun: bool) -> tuple[list[bytes], bool]:
    """Return the frames that another producer may have.

    Args:
        frames: whole frames, in order.
        sent: how many bytes of them the producer was sent; what it made of them
            is its own affair.
        has_begun: whether the client is inside a message of which a part was put
            out, in these frames or earlier.

    Returns:
        The frames of the messages of which nothing was sent, and whether the one
        that the client is inside of is not among these: then its rest is of no
        use to anybody.
    """
    kept = []
    position = 0
    # Where it begins with a CONTINUATION, the beginning was sent long ago.
    is_lost, was_last = True, not has_begun
    while position < len(frames):
        header = wire.decode_header(frames, position)
        assert header is not None, "the frames are whole, and the bridge's own"
        first, length, payload_at = header
        end = payload_at + length
        opcode = first & wire.OPCODE
        if opcode in (wire.TEXT, wire.BINARY):
            is_lost = position < sent
        if opcode <= wire.BINARY:
            was_last = first >= wire.FIN
            if not is_lost:
                kept.append(frames[position:end])
        # OPEN, PONG and MOVE were for the producer that is gone.
        position = end
    return kept, has_begun and not was_last and is_lost
