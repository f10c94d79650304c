"""The totals of one process about its WebSockets, per endpoint, for the status.

Contract: the loop calls ``begin`` and ``end`` once per connection.  The traffic of an open
connection is in its session and not here.  ``endpoints()`` returns a copy.  Sans-I/O; on the
thread of the loop.  A custodian continues the totals of its child.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from apachews.monitoring.snapshot import EndpointStatus, RoundTrips

# Limit for sites that make a socket file per room or day; further ones share one entry.
MAX_ENDPOINTS: Final = 1000
OTHERS: Final = "(others)"
# A client can send any of the 2000 codes for applications (RFC 6455 7.4.2); the other codes
# are few.
FIRST_APPLICATION_CODE: Final = 3000
MAX_CODES: Final = 32
OTHER_CODES: Final = "other"


class Counters:
    """The totals of one process.

    Attributes:
        round_trips: of all connections; the sessions add to it.
    """

    def __init__(self) -> None:
        self._endpoints: dict[str, EndpointStatus] = {}
        self.round_trips = RoundTrips()

    def begin(self, path: str) -> None:
        """Count a connection to an endpoint."""
        if path not in self._endpoints and len(self._endpoints) >= MAX_ENDPOINTS:
            path = OTHERS
        endpoint = self._endpoints.get(path)
        if endpoint is None:
            endpoint = self._endpoints[path] = EndpointStatus(path)
        endpoint.total += 1

    def end(self, path: str, traffic: tuple[int, int, int, int], code: int) -> None:
        """Count the traffic and the close code of a connection that was closed.

        Args:
            path: the endpoint of the connection.
            traffic: as ``Session.traffic``.
            code: the close code.
        """
        endpoint = self._endpoints[self.name_of(path)]
        add_traffic(endpoint, traffic)
        key = str(code)
        is_bounded = code >= FIRST_APPLICATION_CODE and key not in endpoint.closes
        if is_bounded and len(endpoint.closes) >= MAX_CODES:
            key = OTHER_CODES
        endpoint.closes[key] = endpoint.closes.get(key, 0) + 1

    def leave(self, path: str, traffic: tuple[int, int, int, int]) -> None:
        """Count the traffic of a connection that another process takes over.

        The totals keep it, because the value of a counter must not fall.
        """
        add_traffic(self._endpoints[self.name_of(path)], traffic)

    def adopt(self, path: str, traffic: tuple[int, int, int, int]) -> None:
        """Count a connection from now on, after ``leave`` in another process.

        That process counted the opening and the traffic so far, which are subtracted here.
        """
        if path not in self._endpoints and len(self._endpoints) >= MAX_ENDPOINTS:
            path = OTHERS
        endpoint = self._endpoints.setdefault(path, EndpointStatus(path))
        add_traffic(endpoint, tuple(-number for number in traffic))

    def name_of(self, path: str) -> str:
        """Return the name under which an endpoint is counted."""
        return path if path in self._endpoints else OTHERS

    def endpoints(self) -> dict[str, EndpointStatus]:
        """Return the totals by name; open connections are in ``total`` only."""
        return {path: endpoint.copy() for path, endpoint in self._endpoints.items()}


def add_traffic(endpoint: EndpointStatus, traffic: Sequence[int]) -> None:
    """Add the traffic of a connection."""
    endpoint.messages_in += traffic[0]
    endpoint.bytes_in += traffic[1]
    endpoint.messages_out += traffic[2]
    endpoint.bytes_out += traffic[3]
