"""Copy the figures of a run into docs/explanation/performance.md, and draw its plots.

Only the part of the page between two comments is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from . import report
from .results import Results
from .targets import judge_all

DOCS: Final = Path(__file__).resolve().parents[1] / "docs" / "explanation"
BEGIN: Final = "<!-- figures: bench/run --docs writes what follows -->"
END: Final = "<!-- end of figures -->"
# The cases whose tables the page shows.
SHOWN: Final = (
    "round-trip",
    "echo-64B-c32-w1",
    "echo-64KiB-c32-w1",
    "wss-echo-64B-c32-w1",
    "wss-echo-64KiB-c32-w1",
    "fan-out-1000",
    "handshakes",
    "memory-ws",
    "memory-wss",
    "tunnel-echo-64B-c32",
    "tunnel-echo-64KiB-c32",
    "tunnel-handshakes",
    "tunnel-memory",
    "scale",
)


class NoMarkers(ValueError):
    """The page has not the two comments between which the figures stand."""

    def __init__(self) -> None:
        super().__init__(f"the page needs these two lines: {BEGIN} {END}")


def generated(results: Results, drawn: list[str]) -> str:
    """Return the part of the page that a run gives."""
    parts = [f"**{note}**" for note in results.notes]
    parts += [report.facts(results), "### Targets", report.targets_table(judge_all(results))]
    parts += ["### Plots"] if drawn else []
    parts += [f"![{name.removesuffix('.svg')}](performance/{name})" for name in drawn]
    for name in SHOWN:
        case = results.case(name)
        if case is not None:
            parts += [f"### {name}", report.describe(name), report.case_table(case)]
    return "\n\n".join(parts)


def put_between(page: str, text: str) -> str:
    """Return the page with this text between the two comments.

    Raises:
        NoMarkers
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NoMarkers
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def write(results: Results, directory: Path = DOCS) -> None:
    """Write the figures into the page, and its plots beside it.

    Raises:
        NoMarkers
        OSError
    """
    page = directory / "performance.md"
    drawn = report.plots(results)
    text = put_between(page.read_text(), generated(results, list(drawn)))
    plots = directory / "performance"
    plots.mkdir(exist_ok=True)
    for old in plots.glob("*.svg"):
        old.unlink()
    for name, svg in drawn.items():
        (plots / name).write_text(svg)
    page.write_text(text)
