"""What is measured, and which peers each case has: one table.

Peers that no target and no plot needs are left out of a case, for time: a whole run is to
be over in half an hour.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

KIB: Final = 1024
# About what a peer takes to start and to end, for an estimate.
START_S: Final = 0.5
QUICK_WINDOW_S: Final = 0.4
# Of one connection, in Apache: the client's and the producer's.  And of a process besides.
FDS_A_CONNECTION: Final = 2
FDS_RESERVE: Final = 200


class Kind(Enum):
    """How a case is measured."""

    ECHO = "echo"
    FAN_OUT = "fan-out"
    HANDSHAKES = "handshakes"
    MEMORY = "memory"
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
    """

    name: str
    backend: str
    proxied: bool = False
    tunnelled: bool = False
    uvloop: bool = False
    tls: bool = False

    @property
    def handshakes_a_second(self) -> float:
        """About how many it does here, for an estimate of how long a run takes."""
        if self.tls:
            return 250.0
        if self.proxied or self.tunnelled:
            return 700.0
        return 350.0 if self.backend == "apachews" else 1500.0


# What people who have a WebSocket server put in the place of mod_proxy.
TUNNEL: Final = "tunnel+picows"
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

ALL: Final = tuple(name for name, peer in PEERS.items() if not peer.tls and not peer.tunnelled)
ALL_TLS: Final = tuple(name for name, peer in PEERS.items() if peer.tls)
FEW: Final = ("ours", "proxy+websockets", "proxy+picows")
FEW_TLS: Final = ("ours, wss", "proxy+websockets, wss")
TUNNELS: Final = (TUNNEL, "proxy+picows")


@dataclass(frozen=True)
class Case:
    """One thing to measure, in every round for each of its peers.

    Attributes:
        name: on the command line and in the report.
        kind: how.
        peers: whom, by name, ours or our tunnel first.
        connections: open at once; for handshakes, made at once.
        window: messages each has under way.
        size: of a message, bytes.
        text: whether these are texts.
        timed: whether every round trip is timed.
        window_s: the time measured.
        more_connections: for memory: the second, larger count.
        proxied_connections: for memory: the two counts of the peers that hold a worker each.
        our_children: how many children our Apache has.
    """

    name: str
    kind: Kind
    peers: tuple[str, ...]
    connections: int = 1
    window: int = 1
    size: int = 64
    text: bool = False
    timed: bool = False
    window_s: float = 1.2
    more_connections: int = 0
    proxied_connections: tuple[int, int] = (0, 0)
    our_children: int = 1

    @property
    def warm_up_s(self) -> float:
        """How long it runs before it is measured."""
        return min(0.5, self.window_s / 2)

    def counts(self, peer: Peer) -> tuple[int, int]:
        """Return the two counts of a memory case."""
        if peer.proxied and self.proxied_connections[0]:
            return self.proxied_connections
        return self.connections, self.more_connections

    @property
    def descriptors(self) -> int:
        """How many a process needs to be allowed (for scale, see there)."""
        most = max(self.connections, self.more_connections)
        return most * FDS_A_CONNECTION + FDS_RESERVE

    def estimate_s(self, rounds: int) -> float:
        """Return about how long so many rounds take, starts and ends of peers included."""
        if self.kind is Kind.SCALE:
            return 180.0 if self.window_s > QUICK_WINDOW_S else 15.0
        seconds = 0.0
        for name in self.peers:
            peer = PEERS[name]
            most = max(self.connections, *self.counts(peer))
            warm_up_s = 0.0 if self.kind is Kind.MEMORY else self.warm_up_s
            seconds += START_S + most / peer.handshakes_a_second + warm_up_s + self.window_s
        return seconds * rounds

    def quick(self) -> Case:
        """Return the same for trying: short, and with a tenth of large crowds."""
        if self.kind in (Kind.FAN_OUT, Kind.MEMORY):
            low, high = self.proxied_connections
            return replace(
                self,
                connections=self.connections // 10,
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


# The peers and the time of those cases that targets are about.
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
    for connections in (100, 1000, 5000):
        peers = ALL if connections == 1000 else ("ours", "proxy+websockets", "websockets")
        cases.append(Case(f"fan-out-{connections}", Kind.FAN_OUT, peers, connections, window_s=1.5))
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
        Case("scale", Kind.SCALE, ("ours",)),
    ]
    return cases


def _tunnels() -> list[Case]:
    """Return the cases with one program behind a tunnel, and behind mod_proxy."""
    return [
        Case("tunnel-echo-64B-c32", Kind.ECHO, TUNNELS, 32, window_s=2.0),
        Case("tunnel-echo-64KiB-c32", Kind.ECHO, TUNNELS, 32, size=64 * KIB, window_s=2.0),
        Case("tunnel-handshakes", Kind.HANDSHAKES, TUNNELS, 16, window_s=2.0, our_children=2),
        _memory("tunnel-memory", TUNNELS),
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
    """Return the cases whose names match one of the patterns (fnmatch); all without any.

    Raises:
        ValueError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(case.name, pattern) for case in CASES):
            raise ValueError(f"no case is called {pattern}; --list says what there is")
    if not patterns:
        return list(CASES)
    return [c for c in CASES if any(fnmatch.fnmatchcase(c.name, p) for p in patterns)]
