"""All that was measured, as it is stored, and what follows from it.

``results.json`` has every round as it was; medians and ratios are computed from it whenever
a report is written.  A ratio is that of two peers in the *same* round, and what is given is
the median of those: what the machine did in one round, it did to both.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

# Of the file; another one is not read.
FORMAT: Final = 1
# Above this share of its core the generator may be what is measured.
GENERATOR_BOUND: Final = 0.9
HARM: Final = ("lost", "extra", "wrong", "dropped", "storm_lost")

Figures = dict[str, float]


class BadResults(Exception):
    """A file holds no results, or those of another version of this program."""


@dataclass(frozen=True)
class Spread:
    """A median, and between what the rounds lie."""

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
        name: the case's.
        kind: how it was measured (``cases.Kind``).
        connections: that were open.
        rounds: for each, what was measured of each peer.
    """

    name: str
    kind: str
    connections: int
    rounds: list[dict[str, Figures]] = field(default_factory=list)

    def peers(self) -> list[str]:
        """Return the peers that have figures, ours first, then as they come in the first round."""
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
        """Return a peer's figure as against another's of the same round."""
        values = []
        for measured in self.rounds:
            ours, theirs = (measured.get(name, {}).get(metric) for name in (peer, other))
            if ours is not None and theirs:
                values.append(ours / theirs)
        return Spread.of(values)

    def harm(self, peer: str) -> dict[str, int]:
        """Return what went wrong with a peer in all rounds: messages lost and the like."""
        total = dict.fromkeys(HARM, 0)
        for measured in self.rounds:
            for name in HARM:
                total[name] += int(measured.get(peer, {}).get(name, 0))
        return {name: count for name, count in total.items() if count}

    def is_generator_bound(self, peer: str) -> bool:
        """Tell whether the load generator had no time left."""
        share = self.spread(peer, "generator_share")
        return share is not None and share.median > GENERATOR_BOUND


@dataclass
class Results:
    """A whole run.

    Attributes:
        about: machine, versions, date, command line, and whether it was a quick one.
        cases: in the order of the run.
        notes: what a reader must know besides.
        profile: what ``--profile`` found: a heading and a text each.
    """

    about: dict[str, Any]
    cases: list[CaseResults] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    profile: list[tuple[str, str]] = field(default_factory=list)

    def case(self, name: str) -> CaseResults | None:
        """Return a case that was run, or None."""
        return next((case for case in self.cases if case.name == name), None)

    def harm(self) -> list[str]:
        """Return a line for each case and peer with whom something went wrong."""
        lines = []
        for case in self.cases:
            for peer in case.peers():
                if found := case.harm(peer):
                    what = ", ".join(f"{count} {name}" for name, count in found.items())
                    lines.append(f"{case.name}, {peer}: {what}")
        return lines

    def stat_deviation(self) -> float | None:
        """Return how far /proc/PID/stat and the CPU clocks were apart over all windows, a share."""
        clocks = stat = 0.0
        for case in self.cases:
            for measured in case.rounds:
                for figures in measured.values():
                    if "stat_cpu_s" in figures:
                        clocks += figures["cpu_s"]
                        stat += figures["stat_cpu_s"]
        return abs(stat - clocks) / clocks if clocks else None

    def write(self, path: Path) -> None:
        """Store it."""
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
        """Return what is stored.

        Raises:
            BadResults: it is not this.
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
