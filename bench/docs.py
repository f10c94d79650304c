"""Copy the figures of a run into docs/explanation/performance.md, and draw its plots.

The page has three blocks, each between two comments: one for tunnels, one for relays, one for all
other cases.  A run writes the blocks for which it has cases, and keeps the other figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from . import report
from .results import Results
from .targets import judge_all

DOCS: Final = Path(__file__).resolve().parents[1] / "docs" / "explanation"
BEGIN: Final = "<!-- figures: bench/run --docs writes what follows -->"
BEGIN_TUNNELS: Final = "<!-- figures of tunnels: bench/run --docs writes what follows -->"
BEGIN_RELAYS: Final = "<!-- figures of relays: bench/run --docs writes what follows -->"
END: Final = "<!-- end of figures -->"
# The cases whose tables the page shows.
SHOWN: Final = (
    "round-trip",
    "echo-64B-c32-w1",
    "echo-64KiB-c32-w1",
    "wss-echo-64B-c32-w1",
    "wss-echo-64KiB-c32-w1",
    "fan-out-1000",
    "fan-out-10000",
    "fan-out-json",
    "fan-out-stalled",
    "handshakes",
    "memory-ws",
    "memory-wss",
    "scale",
)
SHOWN_OF_TUNNELS: Final = (
    "tunnel-echo-64B-c32",
    "tunnel-echo-64KiB-c32",
    "tunnel-handshakes",
    "tunnel-memory",
)
SHOWN_OF_RELAYS: Final = ("relay-2x1000", "relay-latency")
# The blocks of a subject, without an overview and plots.
BLOCKS: Final = {BEGIN_TUNNELS: SHOWN_OF_TUNNELS, BEGIN_RELAYS: SHOWN_OF_RELAYS}
OF_BLOCKS: Final = frozenset(name for shown in BLOCKS.values() for name in shown)


class NoMarkers(ValueError):
    """The page lacks the two comments between which the figures stand."""

    def __init__(self, begin: str) -> None:
        super().__init__(f"the page needs these two lines: {begin} {END}")


def generated(results: Results, drawn: list[str], shown: tuple[str, ...] = SHOWN) -> str:
    """Return the block of the page that shows these cases of a run."""
    has_all = shown is SHOWN
    targets = [
        outcome
        for outcome in judge_all(results)
        if (outcome.target.case not in OF_BLOCKS if has_all else outcome.target.case in shown)
    ]
    # A note about one case begins with its name.
    notes = [note for note in results.notes if has_all or not note.startswith("scale:")]
    parts = [f"**{note}**" for note in notes]
    parts += [report.facts(results), "### Targets", report.targets_table(targets)]
    if has_all and (compared := report.overview(results)):
        parts += ["### At a glance", compared]
    parts += ["### Plots"] if drawn else []
    parts += [f"![{name.removesuffix('.svg')}](performance/{name})" for name in drawn]
    for name in shown:
        case = results.case(name)
        if case is not None:
            parts += [f"### {name}", report.describe(name), report.case_table(case)]
    return "\n\n".join(parts)


def put_between(page: str, text: str, begin: str = BEGIN) -> str:
    """Return the page with this text between two comments, ``begin`` and the next ``END``.

    Raises:
        NoMarkers
    """
    before, found, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise NoMarkers(begin)
    return f"{before}{begin}\n\n{text}\n\n{END}{after}"


def write(results: Results, directory: Path = DOCS) -> None:
    """Write the figures into the page, and its plots beside it.

    Raises:
        NoMarkers
        OSError
    """
    page = directory / "performance.md"
    text = page.read_text()
    for begin, shown in BLOCKS.items():
        if any(case.name in shown for case in results.cases):
            text = put_between(text, generated(results, [], shown), begin)
    if any(case.name not in OF_BLOCKS for case in results.cases):
        drawn = report.plots(results)
        text = put_between(text, generated(results, list(drawn)))
        plots = directory / "performance"
        plots.mkdir(exist_ok=True)
        for old in plots.glob("*.svg"):
            old.unlink()
        for name, svg in drawn.items():
            (plots / name).write_text(svg)
    page.write_text(text)
