"""Whether a client takes what was sent to it, as its TCP tells.

Contract: ``ask`` when a PING is sent, then ``is_reading`` from time to time until it is
answered: whether the client may still have to read what was sent before the PING.
``is_taking`` is for a connection that is being closed: whether more of what was sent
arrives.  Sans-I/O, the caller's clock; for the bridge's thread.

How this works: a client on a slow network, or one that reads slowly, answers a PING only
after megabytes that were sent before.  These are in one of two places.  As long as some
are in our kernel or on the way, the peer's kernel acknowledges more and more of them.
Those that it has acknowledged wait for the client to read them.  That shows in the window
that the peer advertises, which grows, if they had filled its buffer.  If they had not, nothing
shows, and the client gets the time that a slow one takes for what no answer to an earlier
PING has proven to be read.  What was sent after the PING proves nothing: a peer's kernel
takes that for a process that has stopped, until its buffer is full.

Sources: RFC 9293 3.8 (acknowledgements, windows); linux/tcp.h, struct tcp_info.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# A client that reads more slowly, and whose buffer is not full, is taken for one that has
# stopped: half the pace of the slowest mobile networks in use (EDGE, 64 KB/s).
SLOWEST_READER_BYTES_S: Final = 32 * 1024
# What a client's kernel holds at most without its buffer being full: Linux lets a receive
# buffer grow to 6 MB by default (net.ipv4.tcp_rmem), of which data is two thirds.
MAX_UNREAD_BYTES: Final = 4 * 1024 * 1024


# What a client that is being closed must take of the rest, or it is reset: slower than any
# network, and fast enough to bound the time that 4 MiB in the kernel's buffer take (an hour).
SLOWEST_CLOSING_BYTES_S: Final = 1024


class TcpState(NamedTuple):
    """What a kernel knows of a connection's peer.

    Attributes:
        acked: bytes that the peer has acknowledged, counted from any beginning.
        unacked: bytes that it has not, sent or not.
        window: bytes that it advertised it would take.
        way_s: how long the answer to a segment may take, one repetition included; seconds.
    """

    acked: int
    unacked: int
    window: int = 0
    way_s: float = 0.0


class Progress:
    """What one client takes.

    Args:
        state: of its connection now.
    """

    __slots__ = ("_acked", "_ping", "_read", "_read_by", "_window")

    def __init__(self, state: TcpState) -> None:
        self._ping = 0  # so many bytes were sent before the last PING
        self._read = 0  # so many the client has read, for it has answered a PING after them
        self._read_by = 0.0  # when a slow client has read the others, if all have arrived
        self._acked = state.acked
        self._window = state.window

    def export_state(self) -> list[float]:
        """Return what continues this in another process that has the connection's socket."""
        return [self._acked, self._ping, self._read, self._read_by, self._window]

    @classmethod
    def import_state(cls, state: list[float]) -> Progress:
        """Return what continues the other one.

        Raises:
            ValueError, TypeError: they are not five numbers.
        """
        made = cls(TcpState(0, 0))
        acked, ping, read, read_by, window = state
        made._acked, made._ping, made._read = int(acked), int(ping), int(read)
        made._read_by, made._window = float(read_by), int(window)
        return made

    def ask(self, state: TcpState, now: float, *, is_answered: bool) -> None:
        """A PING was sent.

        Args:
            state: of the connection before that.
            now: the clock's reading, seconds.
            is_answered: the client has answered the last PING before.
        """
        if is_answered:
            self._read = self._ping
        self._acked, self._window = state.acked, state.window
        self._ping = state.acked + state.unacked
        self._expect_reading(now)

    def is_reading(self, state: TcpState, now: float) -> bool:
        """Tell whether the client may not have come to the PING yet."""
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

    def is_taking(self, state: TcpState, least_bytes: int = 1) -> bool:
        """Tell whether more has arrived since the last call, and some is still to arrive.

        What has arrived is not lost when the connection is closed.

        Args:
            state: of the connection.
            least_bytes: less than this does not count.
        """
        arrived = state.acked - self._acked
        self._acked, self._window = state.acked, state.window
        return state.unacked > 0 and arrived >= least_bytes

    def _expect_reading(self, now: float) -> None:
        unread = min(self._ping - self._read, MAX_UNREAD_BYTES)
        self._read_by = now + unread / SLOWEST_READER_BYTES_S
