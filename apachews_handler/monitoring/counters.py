"""What a process counts of its WebSockets: by endpoint, for the status.

Contract: the loop calls ``begin`` and ``end``, once a connection each; what an open one
has passed is in its session, and not here.  ``endpoints()`` is a copy.  Sans-I/O; on the
loop's thread.  A custodian goes on with what its child had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from apachews.monitoring.snapshot import EndpointStatus, RoundTrips

# Sites that make a socket for each room, or day, are counted together beyond these.
MAX_ENDPOINTS: Final = 1000
OTHERS: Final = "(others)"
# Clients choose among the codes of applications, of which there are two thousand
# (RFC 6455 7.4.2); of the others there are few.
FIRST_APPLICATION_CODE: Final = 3000
MAX_CODES: Final = 32
OTHER_CODES: Final = "other"


class Counters:
    """The totals of one process.

    Attributes:
        round_trips: of all connections; their sessions count there.
    """

    def __init__(self) -> None:
        self._endpoints: dict[str, EndpointStatus] = {}
        self.round_trips = RoundTrips()

    def begin(self, path: str) -> None:
        """Count a connection to a socket file."""
        if path not in self._endpoints and len(self._endpoints) >= MAX_ENDPOINTS:
            path = OTHERS
        self._endpoints.setdefault(path, EndpointStatus(path)).total += 1

    def end(self, path: str, traffic: tuple[int, int, int, int], code: int) -> None:
        """Count what a connection that has ended had passed.

        Args:
            path: its socket file.
            traffic: as ``Session.traffic``.
            code: what it was closed with.
        """
        endpoint = self._endpoints[self.name_of(path)]
        add_traffic(endpoint, traffic)
        key = str(code)
        is_bounded = code >= FIRST_APPLICATION_CODE and key not in endpoint.closes
        if is_bounded and len(endpoint.closes) >= MAX_CODES:
            key = OTHER_CODES
        endpoint.closes[key] = endpoint.closes.get(key, 0) + 1

    def leave(self, path: str, traffic: tuple[int, int, int, int]) -> None:
        """Keep what a connection had passed when another process takes it over.

        No total falls: metrics are counters.
        """
        add_traffic(self._endpoints[self.name_of(path)], traffic)

    def adopt(self, path: str, traffic: tuple[int, int, int, int]) -> None:
        """Count what a connection passes from now on, after ``leave`` in another process.

        The other process counted its beginning and its traffic so far: no total jumps.
        """
        if path not in self._endpoints and len(self._endpoints) >= MAX_ENDPOINTS:
            path = OTHERS
        endpoint = self._endpoints.setdefault(path, EndpointStatus(path))
        add_traffic(endpoint, tuple(-number for number in traffic))

    def name_of(self, path: str) -> str:
        """Return the endpoint that a socket file is counted as."""
        return path if path in self._endpoints else OTHERS

    def endpoints(self) -> dict[str, EndpointStatus]:
        """Return what was counted; of the connections that are there, only how many."""
        return {path: endpoint.copy() for path, endpoint in self._endpoints.items()}


def add_traffic(endpoint: EndpointStatus, traffic: Sequence[int]) -> None:
    """Count what a connection has passed."""
    endpoint.messages_in += traffic[0]
    endpoint.bytes_in += traffic[1]
    endpoint.messages_out += traffic[2]
    endpoint.bytes_out += traffic[3]
