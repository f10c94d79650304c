"""Whether a client still takes what was sent to it, judged by its TCP state.

Contract: ``note_ping`` when a PING is sent, then ``is_reading`` from time to time until it is
answered: whether the client may still be reading what was sent before the PING.
``is_receiving`` is for a connection that is being closed: whether more of what was sent
arrives.  Sans-I/O, on the caller's clock; for the bridge's thread.

How this works: a client on a slow network, or one that reads slowly, answers a PING only
after it has read the megabytes that were sent before.  These bytes are in one of two places.

While some are in our kernel or in flight, the peer's kernel acknowledges more and more of them.

Acknowledged bytes wait for the client to read them.  If they had filled its buffer, the window
that the peer advertises grows as the client reads.  If they had not, TCP shows nothing, and the
client gets the time that a slow reader needs for the bytes that no answer to an earlier PING
has proven to be read.

What was sent after the PING proves nothing: a peer's kernel acknowledges bytes for a process
that has stopped, until its buffer is full.

Sources: RFC 9293 3.8 (acknowledgements, windows); linux/tcp.h, struct tcp_info.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# A client that reads more slowly, and whose buffer is not full, counts as stopped.  Half the
# rate of the slowest mobile networks in use (EDGE, 64 KB/s).
SLOWEST_READER_BYTES_S: Final = 32 * 1024
# The most that a client's kernel holds while its buffer is not full: Linux lets a receive
# buffer grow to 6 MB by default (net.ipv4.tcp_rmem), two thirds of them for data.
MAX_UNREAD_BYTES: Final = 4 * 1024 * 1024
# A client that is being closed and takes less is reset.  Slower than any network, and fast enough
# to bound the time for 4 MiB in the kernel's buffer (about an hour).
SLOWEST_CLOSING_BYTES_S: Final = 1024


class TcpState(NamedTuple):
    """What a kernel knows of a connection's peer.

    Attributes:
        acked: bytes that the peer has acknowledged, counted from an arbitrary start.
        unacked: bytes that it has not acknowledged, in flight or not sent yet.
        window: bytes that it has advertised room for.
        way_s: how long the answer to a segment may take, with one retransmission; seconds.
    """

    acked: int
    unacked: int
    window: int = 0
    way_s: float = 0.0


class Progress:
    """What one client has taken.

    Args:
        state: the present state of its connection.
    """

    __slots__ = ("_acked", "_ping", "_read", "_read_by", "_window")

    def __init__(self, state: TcpState) -> None:
        self._ping = 0  # how many bytes were sent before the last PING
        self._read = 0  # how many it has read: those before a PING that it has answered
        self._read_by = 0.0  # when a slow reader has read the rest, if all of it has arrived
        self._acked = state.acked
        self._window = state.window

    def export_state(self) -> list[float]:
        """Return the state for another process that gets the connection's socket."""
        return [self._acked, self._ping, self._read, self._read_by, self._window]

    @classmethod
    def import_state(cls, state: list[float]) -> Progress:
        """Return an object with the state that another process exported.

        Raises:
            ValueError, TypeError: the state is not a list of five numbers.
        """
        made = cls(TcpState(0, 0))
        acked, ping, read, read_by, window = state
        made._acked, made._ping, made._read = int(acked), int(ping), int(read)
        made._read_by, made._window = float(read_by), int(window)
        return made

    def note_ping(self, state: TcpState, now: float, *, is_answered: bool) -> None:
        """Note that a PING was sent.

        Args:
            state: of the connection before the PING.
            now: the clock's reading, seconds.
            is_answered: the client has answered the PING before this one.
        """
        if is_answered:
            self._read = self._ping
        self._acked, self._window = state.acked, state.window
        self._ping = state.acked + state.unacked
        self._expect_reading(now)

    def is_reading(self, state: TcpState, now: float) -> bool:
        """Tell whether the client may still be reading what was sent before the PING."""
        if not state.unacked and state.acked < self._ping:
            # All has arrived, the PING included: the estimate of what came before it was too high.
            # (Behind a relay: what it had not taken is counted with the kernel's overhead.)
            self._ping = state.acked - 1
        if self._acked < self._ping:
            has_taken = state.acked > self._acked
        else:
            has_taken = state.window > self._window
        self._acked, self._window = state.acked, state.window
        if has_taken:
            self._expect_reading(now)
        has_ping_arrived = state.acked > self._ping
        return has_taken or (has_ping_arrived and now < self._read_by)

    def is_receiving(self, state: TcpState, least_bytes: int = 1) -> bool:
        """Tell whether more has arrived since the last call, and some is still to arrive.

        What has arrived is not lost when the connection is closed.

        Args:
            state: of the connection.
            least_bytes: fewer bytes do not count.
        """
        arrived = state.acked - self._acked
        self._acked, self._window = state.acked, state.window
        return state.unacked > 0 and arrived >= least_bytes

    def _expect_reading(self, now: float) -> None:
        unread = min(self._ping - self._read, MAX_UNREAD_BYTES)
        self._read_by = now + unread / SLOWEST_READER_BYTES_S
