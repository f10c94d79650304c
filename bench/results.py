"""The stored figures of a run, and the medians and ratios computed from them.

``results.json`` has every round; a report computes medians and ratios from it.  A ratio is that of
two peers in the *same* round, because other load on the machine affects both; reports have the
median of the ratios.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

# The format of the file; other formats are rejected.
FORMAT: Final = 1
# Above this share of its core the generator may limit the throughput.
GENERATOR_BOUND: Final = 0.9
HARM: Final = ("lost", "extra", "wrong", "dropped", "storm_lost")

Figures = dict[str, float]


class BadResults(Exception):
    """A file has no results, or results of another version of this program."""


@dataclass(frozen=True)
class Spread:
    """The median of the rounds, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return the spread of some values; None without values."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found)) if found else None


@dataclass
class CaseResults:
    """The rounds of one case.

    Attributes:
        name: name of the case.
        kind: how it was measured (``cases.Kind``).
        connections: number of open connections.
        rounds: for each round, the figures of each peer.
    """

    name: str
    kind: str
    connections: int
    rounds: list[dict[str, Figures]] = field(default_factory=list)

    def peers(self) -> list[str]:
        """Return the peers that have figures, ours first, then in the order of the first round."""
        found: dict[str, None] = {}
        for measured in self.rounds:
            for peer in sorted(measured, key=lambda name: not name.startswith("ours")):
                found[peer] = None
        return list(found)

    def spread(self, peer: str, metric: str) -> Spread | None:
        """Return a peer's figure over the rounds; None if it has no such figure."""
        rounds = (measured.get(peer, {}) for measured in self.rounds)
        return Spread.of(figures[metric] for figures in rounds if metric in figures)

    def ratio(self, peer: str, other: str, metric: str) -> Spread | None:
        """Return a peer's figure divided by another's of the same round."""
        return Spread.of(a / b for a, b in self._pairs(peer, other, metric) if b)

    def difference(self, peer: str, other: str, metric: str) -> Spread | None:
        """Return a peer's figure minus another's of the same round."""
        return Spread.of(a - b for a, b in self._pairs(peer, other, metric))

    def _pairs(self, peer: str, other: str, metric: str) -> Iterator[tuple[float, float]]:
        for measured in self.rounds:
            ours, theirs = (measured.get(name, {}).get(metric) for name in (peer, other))
            if ours is not None and theirs is not None:
                yield ours, theirs

    def harm(self, peer: str) -> dict[str, int]:
        """Return the counts of a peer's failures in all rounds, for example of lost messages."""
        total = dict.fromkeys(HARM, 0)
        for measured in self.rounds:
            for name in HARM:
                total[name] += int(measured.get(peer, {}).get(name, 0))
        return {name: count for name, count in total.items() if count}

    def is_generator_bound(self, peer: str) -> bool:
        """Return whether the load generator had no time left."""
        share = self.spread(peer, "generator_share")
        return share is not None and share.median > GENERATOR_BOUND


@dataclass
class Results:
    """A whole run.

    Attributes:
        about: machine, versions, date, command line, and whether it was a quick one.
        cases: in the order of the run.
        notes: restrictions that a reader must know.
        profile: the output of ``--profile``: a heading and a text each.
    """

    about: dict[str, Any]
    cases: list[CaseResults] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    profile: list[tuple[str, str]] = field(default_factory=list)

    def case(self, name: str) -> CaseResults | None:
        """Return a case that was run, or None."""
        return next((case for case in self.cases if case.name == name), None)

    def harm(self) -> list[str]:
        """Return a line for each case and peer with failures."""
        lines = []
        for case in self.cases:
            for peer in case.peers():
                if found := case.harm(peer):
                    what = ", ".join(f"{count} {name}" for name, count in found.items())
                    lines.append(f"{case.name}, {peer}: {what}")
        return lines

    def stat_deviation(self) -> float | None:
        """Return the difference of /proc/PID/stat and the CPU clocks in all windows, as a share."""
        clocks = stat = 0.0
        for case in self.cases:
            for measured in case.rounds:
                for figures in measured.values():
                    if "stat_cpu_s" in figures:
                        clocks += figures["cpu_s"]
                        stat += figures["stat_cpu_s"]
        return abs(stat - clocks) / clocks if clocks else None

    def write(self, path: Path) -> None:
        """Write the file."""
        stored = {
            "format": FORMAT,
            "about": self.about,
            "notes": self.notes,
            "profile": self.profile,
            "cases": [vars(case) for case in self.cases],
        }
        path.write_text(json.dumps(stored, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return the results in a file.

        Raises:
            BadResults: it has other contents.
            OSError
        """
        try:
            stored = json.loads(path.read_text())
            if stored["format"] != FORMAT:
                raise BadResults(f"{path} has format {stored['format']}, not {FORMAT}")
            return cls(
                about=stored["about"],
                cases=[CaseResults(**case) for case in stored["cases"]],
                notes=stored["notes"],
                profile=[(heading, text) for heading, text in stored["profile"]],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BadResults(f"{path} has no results: {error!r}") from error
