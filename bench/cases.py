"""The table of cases: what each measures, and which peers it compares.

Cases leave out the peers that no target, no plot and no overview needs: a whole run takes less
than an hour.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

KIB: Final = 1024
# About the time in which a peer starts and ends, for the estimate.
START_S: Final = 0.5
QUICK_WINDOW_S: Final = 0.4
QUICK_CROWD: Final = 500
# Descriptors of one connection in Apache, the client's and the producer's; and of a process
# in addition to its connections.
FDS_A_CONNECTION: Final = 2
FDS_RESERVE: Final = 200
# Connections do not fall on Apache's children evenly.
UNEVEN: Final = 1.2


class Kind(Enum):
    """How a case is measured."""

    ECHO = "echo"
    FAN_OUT = "fan-out"
    HANDSHAKES = "handshakes"
    MEMORY = "memory"
    STALLED = "stalled"
    RELAY = "relay"
    SCALE = "scale"


@dataclass(frozen=True)
class Peer:
    """One way to serve WebSockets.

    Attributes:
        name: in the tables.
        backend: the library of the program, a module of ``backends``.
        proxied: whether mod_proxy stands in front of it.
        tunnelled: whether a tunnel of ours stands in front of it.
        uvloop: whether it runs on uvloop.
        tls: whether Apache ends TLS in front of it.
        compressed: whether clients and server negotiate permessage-deflate.
        one_by_one: whether the program sends a message to all in a loop over its clients.
        relayed: whether two of them, each on a machine of its own, share a Redis.
    """

    name: str
    backend: str
    proxied: bool = False
    tunnelled: bool = False
    uvloop: bool = False
    tls: bool = False
    compressed: bool = False
    one_by_one: bool = False
    relayed: bool = False

    @property
    def is_greeted(self) -> bool:
        """Whether the program answers a text to its sender only, also in fan-out."""
        return self.backend != "nchan"

    @property
    def speaks_socket_io(self) -> bool:
        """Whether its clients speak Socket.IO over WebSocket."""
        return self.backend == "socketio"

    @property
    def handshakes_a_second(self) -> float:
        """About its rate here, for the estimate of a run's time."""
        if self.tls:
            return 250.0
        if self.proxied or self.tunnelled:
            return 700.0
        return 350.0 if self.backend == "apachews" else 1500.0


# For a program that speaks WebSocket itself: a tunnel in the place of mod_proxy.
TUNNEL: Final = "tunnel+picows"
NCHAN: Final = "nchan"
COMPRESSED: Final = "ours, compressed"
ONE_BY_ONE: Final = "ours, one by one"
RELAYED: Final = "ours, relayed"
SOCKETIO: Final = "python-socketio"
CHANNELS: Final = "channels_redis"
PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer("ours", "apachews"),
        Peer("proxy+websockets", "websockets", proxied=True),
        Peer("proxy+websockets (uvloop)", "websockets", proxied=True, uvloop=True),
        Peer("websockets", "websockets"),
        Peer("websockets (uvloop)", "websockets", uvloop=True),
        Peer("picows", "picows", uvloop=True),
        Peer("proxy+picows", "picows", proxied=True, uvloop=True),
        Peer("uvicorn", "uvicorn", uvloop=True),
        Peer("proxy+uvicorn", "uvicorn", proxied=True, uvloop=True),
        Peer("Node ws", "ws"),
        Peer("proxy+Node ws", "ws", proxied=True),
        Peer("uWebSockets.js", "uws"),
        Peer("proxy+uWebSockets.js", "uws", proxied=True),
        Peer(NCHAN, "nchan"),
        Peer(ONE_BY_ONE, "apachews", one_by_one=True),
        Peer(RELAYED, "apachews", relayed=True),
        Peer(SOCKETIO, "socketio", uvloop=True, relayed=True),
        Peer(CHANNELS, "channels", uvloop=True, relayed=True),
        Peer(COMPRESSED, "apachews", compressed=True),
        Peer("websockets, compressed", "websockets", compressed=True),
        Peer(TUNNEL, "picows", tunnelled=True, uvloop=True),
        Peer("ours, wss", "apachews", tls=True),
        Peer("proxy+websockets, wss", "websockets", proxied=True, tls=True),
        Peer("proxy+websockets (uvloop), wss", "websockets", proxied=True, uvloop=True, tls=True),
    )
}
# Peers on asyncio's own loop, as websockets documents it, and the same on uvloop.
ON_UVLOOP: Final = {
    "proxy+websockets": "proxy+websockets (uvloop)",
    "websockets": "websockets (uvloop)",
    "proxy+websockets, wss": "proxy+websockets (uvloop), wss",
}

# Those that echo plain messages: a proxy has another program, or the same one stands alone.
ALL: Final = tuple(
    name
    for name, peer in PEERS.items()
    if not (peer.tls or peer.tunnelled or peer.compressed or peer.one_by_one or peer.relayed)
    and peer.backend != "nchan"
)
ALL_TLS: Final = tuple(name for name, peer in PEERS.items() if peer.tls)
FEW: Final = ("ours", "proxy+websockets", "proxy+picows")
FEW_TLS: Final = ("ours, wss", "proxy+websockets, wss")
TUNNELS: Final = (TUNNEL, "proxy+picows")


@dataclass(frozen=True)
class Case:
    """One measurement, in every round for each of its peers.

    Attributes:
        name: on the command line and in the report.
        kind: how it is measured.
        peers: their names, ours or our tunnel first.
        connections: open at once; for handshakes, made at once.
        window: messages under way on each connection.
        size: of a message, bytes.
        text: whether messages are texts, not binary.
        json: whether their content is JSON, which compresses; otherwise random bytes.
        timed: whether every round trip, or the way of every relayed message, is timed.
        window_s: the time measured.
        more_connections: for memory: the second, larger count.
        proxied_connections: for memory: the two counts of the peers that hold a worker each.
        our_children: how many children our Apache has; for relays: all Apaches together.
        stalled: how many of the connections stop reading.
        most_rounds: limit of the rounds of a case that takes long.
    """

    name: str
    kind: Kind
    peers: tuple[str, ...]
    connections: int = 1
    window: int = 1
    size: int = 64
    text: bool = False
    json: bool = False
    timed: bool = False
    window_s: float = 1.2
    more_connections: int = 0
    proxied_connections: tuple[int, int] = (0, 0)
    our_children: int = 1
    stalled: int = 0
    most_rounds: int = 1000

    @property
    def warm_up_s(self) -> float:
        """Seconds between the start and the measurement."""
        return min(0.5, self.window_s / 2)

    def counts(self, peer: Peer) -> tuple[int, int]:
        """Return the two counts of a memory case."""
        if peer.proxied and self.proxied_connections[0]:
            return self.proxied_connections
        return self.connections, self.more_connections

    @property
    def descriptors(self) -> int:
        """How many descriptors a process needs; ``scale`` has its own check."""
        most = max(self.connections, self.more_connections)
        # The generator and the program have one for each connection, a child of Apache two.
        in_apache = most * FDS_A_CONNECTION / self.our_children
        if self.our_children > 1:
            in_apache *= UNEVEN
        return max(most, int(in_apache)) + FDS_RESERVE

    def estimate_s(self, rounds: int) -> float:
        """Return about the seconds of so many rounds, with starts and ends of peers."""
        if self.kind is Kind.SCALE:
            return 180.0 if self.window_s > QUICK_WINDOW_S else 15.0
        seconds = 0.0
        for name in self.peers:
            peer = PEERS[name]
            most = max(self.connections, *self.counts(peer))
            warm_up_s = 0.0 if self.kind is Kind.MEMORY else self.warm_up_s
            seconds += START_S + most / peer.handshakes_a_second + warm_up_s + self.window_s
        return seconds * min(rounds, self.most_rounds)

    def quick(self) -> Case:
        """Return a short form to try, with a tenth of the clients of large cases at most."""
        if self.kind in (Kind.FAN_OUT, Kind.MEMORY, Kind.STALLED, Kind.RELAY) and not self.timed:
            low, high = self.proxied_connections
            return replace(
                self,
                connections=min(self.connections // 10, QUICK_CROWD),
                stalled=self.stalled // 10,
                more_connections=self.more_connections // 10,
                proxied_connections=(low // 10, high // 10),
                window_s=QUICK_WINDOW_S,
            )
        return replace(self, window_s=QUICK_WINDOW_S)


def _echo(
    size: int,
    connections: int,
    window: int,
    peers: tuple[str, ...] = FEW,
    *,
    window_s: float = 1.2,
    text: bool = False,
) -> Case:
    tls = PEERS[peers[0]].tls
    label = f"{size}B" if size < KIB else f"{size // KIB}KiB"
    name = f"{'wss-' * tls}echo-{label}-c{connections}-w{window}{'-text' * text}"
    return Case(name, Kind.ECHO, peers, connections, window, size, text, window_s=window_s)


# The peers and the time of echo cases with a target.
_MAIN: Final = {
    (64, 32, 1): (ALL, 2.0),
    (64 * KIB, 32, 1): (
        ("ours", "proxy+websockets", "proxy+websockets (uvloop)", "websockets", "proxy+picows"),
        2.0,
    ),
}


def _table() -> list[Case]:
    cases = [Case("round-trip", Kind.ECHO, ALL, timed=True, window_s=2.0)]
    for size in (64, KIB, 64 * KIB):
        for connections in (1, 32, 500):
            for window in (1, 8):
                peers, window_s = _MAIN.get((size, connections, window), (FEW, 1.2))
                cases.append(_echo(size, connections, window, peers, window_s=window_s))
    cases.append(_echo(64, 32, 1, text=True))
    for size in (64, 64 * KIB):
        for connections in (1, 32, 500):
            main = connections == 32
            peers = ALL_TLS if main else FEW_TLS
            cases.append(_echo(size, connections, 1, peers, window_s=2.0 if main else 1.2))
    cases += _fan_outs()
    cases += [
        Case(
            "handshakes",
            Kind.HANDSHAKES,
            ("ours", "proxy+websockets", "proxy+websockets (uvloop)"),
            connections=16,
            window_s=2.0,
            our_children=2,  # as Debian starts, and as the proxy's Apache has here
        ),
        _memory("memory-ws", FEW[:2]),
        _memory("memory-wss", FEW_TLS),
        *_tunnels(),
        *_relays(),
        Case("scale", Kind.SCALE, ("ours",)),
    ]
    return cases


def _fan_outs() -> list[Case]:
    """Return the cases in which a message goes to all clients."""
    few = ("ours", "proxy+websockets", "websockets")
    return [
        Case("fan-out-100", Kind.FAN_OUT, few, 100, window_s=1.5),
        Case("fan-out-1000", Kind.FAN_OUT, (*ALL, NCHAN, ONE_BY_ONE), 1000, window_s=1.5),
        Case("fan-out-5000", Kind.FAN_OUT, few, 5000, window_s=1.5),
        Case(
            "fan-out-10000",
            Kind.FAN_OUT,
            ("ours", "picows", NCHAN),
            10_000,
            window_s=3.0,
            our_children=2,  # one child may not have enough descriptors
            most_rounds=2,
        ),
        Case(
            "fan-out-json",
            Kind.FAN_OUT,
            ("ours", COMPRESSED, "websockets", "websockets, compressed"),
            1000,
            size=4 * KIB,
            json=True,
            window_s=1.5,
        ),
        Case(
            "fan-out-stalled",
            Kind.STALLED,
            ("ours",),
            11_000,
            size=16 * KIB,  # more than the kernel buffers, at the rate that two cores reach
            window_s=20.0,
            our_children=2,
            stalled=1000,
            most_rounds=1,
        ),
    ]


def _tunnels() -> list[Case]:
    """Return the cases with the same program behind a tunnel, and behind mod_proxy."""
    return [
        Case("tunnel-echo-64B-c32", Kind.ECHO, TUNNELS, 32, window_s=2.0),
        Case("tunnel-echo-64KiB-c32", Kind.ECHO, TUNNELS, 32, size=64 * KIB, window_s=2.0),
        Case("tunnel-handshakes", Kind.HANDSHAKES, TUNNELS, 16, window_s=2.0, our_children=2),
        _memory("tunnel-memory", TUNNELS),
    ]


def _relays() -> list[Case]:
    """Return the cases of two machines; *ours* has all clients on one, to compare."""
    peers = (RELAYED, "ours", SOCKETIO, CHANNELS)
    return [
        Case("relay-2x1000", Kind.RELAY, peers, 2000, window_s=2.5, our_children=2),
        Case("relay-latency", Kind.RELAY, peers, 2, timed=True, window_s=2.0, our_children=2),
    ]


def _memory(name: str, peers: tuple[str, ...]) -> Case:
    return Case(
        name,
        Kind.MEMORY,
        peers,
        connections=1000,
        more_connections=2000,
        proxied_connections=(200, 400),
        window_s=0.5,
    )


CASES: Final = tuple(_table())


def select(patterns: list[str]) -> list[Case]:
    """Return the cases whose names match one of the patterns (fnmatch); without patterns all.

    Raises:
        ValueError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(case.name, pattern) for case in CASES):
            raise ValueError(f"no case is called {pattern}; --list says what there is")
    if not patterns:
        return list(CASES)
    return [c for c in CASES if any(fnmatch.fnmatchcase(c.name, p) for p in patterns)]
