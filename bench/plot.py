"""Charts as SVG, made of strings: groups of horizontal bars, and lines on logarithmic axes.

The colours of the bars are visible on light and dark ground; text follows the reader's scheme
(``prefers-color-scheme``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from .results import Spread

WIDTH: Final = 840
LABELS_WIDTH: Final = 190  # of the names on the left
VALUES_WIDTH: Final = 90  # for the figures on the right
BAR_HEIGHT: Final = 16
BAR_GAP: Final = 4
GROUP_GAP: Final = 22
TOP: Final = 54
BOTTOM: Final = 48
LEGEND_HEIGHT: Final = 22
TICKS: Final = 5
# A colour for each series, ours the strongest; each has a contrast of 3 to white and to #131416.
COLOURS: Final = (
    *("#c2365f", "#3f7cc4", "#6b96cf", "#3c8d58", "#66a37b", "#a8701f", "#8b68b8"),
    *("#2a9096", "#8a7f2c", "#7d7d86", "#c65bb0"),
)
STYLE: Final = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-size: 15px; font-weight: 600; }
.axis, .value { fill: #57606a; font-size: 11px; }
.grid { stroke: #57606a; stroke-opacity: .25; }
.whisker { stroke: #24292f; stroke-width: 1.2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .axis, .value { fill: #9ba7b4; }
  .grid { stroke: #9ba7b4; }
  .whisker { stroke: #e6edf3; }
}
"""


@dataclass(frozen=True)
class Group:
    """Adjacent bars.

    Attributes:
        label: their common name.
        bars: the series' name and its figure, each.
    """

    label: str
    bars: list[tuple[str, Spread]]


def bars(title: str, axis: str, groups: list[Group], known: Sequence[str] = ()) -> str:
    """Return a chart.

    Args:
        title: above it.
        axis: name of the figures, with their unit.
        groups: from top to bottom, none of them empty.
        known: series whose place here gives their colour, the same in every chart.
    """
    shown = {name for group in groups for name, _ in group.bars}
    series = [name for name in known if name in shown]
    series += [name for group in groups for name, _ in group.bars if name not in known]
    series = list(dict.fromkeys(series))
    places = list(dict.fromkeys([*known, *series]))
    colours = {name: COLOURS[places.index(name) % len(COLOURS)] for name in series}
    top = TOP + LEGEND_HEIGHT * math.ceil(len(series) / 3)
    count = sum(len(group.bars) for group in groups)
    height = top + count * (BAR_HEIGHT + BAR_GAP) + len(groups) * GROUP_GAP + BOTTOM
    end = WIDTH - VALUES_WIDTH
    most, step = scale([spread.high for group in groups for _, spread in group.bars])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="26">{escape(title)}</text>',
    ]
    for i, name in enumerate(series):
        left, row = 12 + i % 3 * 272, 42 + i // 3 * LEGEND_HEIGHT
        parts.append(
            f'<rect x="{left}" y="{row}" width="12" height="12" rx="2" fill="{colours[name]}"/>'
        )
        parts.append(f'<text x="{left + 18}" y="{row + 10.5}">{escape(name)}</text>')

    def x_of(value: float) -> float:
        return round(LABELS_WIDTH + (end - LABELS_WIDTH) * value / most, 1)

    for i in range(round(most / step) + 1):
        x = x_of(i * step)
        parts.append(f'<path class="grid" d="M{x} {top - 4}V{height - BOTTOM}"/>')
        parts.append(
            f'<text class="axis" text-anchor="middle" x="{x}" y="{height - BOTTOM + 16}">'
            f"{number(i * step)}</text>"
        )
    middle = (LABELS_WIDTH + end) / 2
    parts.append(
        f'<text class="axis" text-anchor="middle" x="{middle}" y="{height - 12}">'
        f"{escape(axis)}</text>"
    )
    y = top + GROUP_GAP / 2
    for group in groups:
        tall = len(group.bars) * (BAR_HEIGHT + BAR_GAP)
        parts.append(
            f'<text text-anchor="end" x="{LABELS_WIDTH - 10}" y="{y + tall / 2 + 2}">'
            f"{escape(group.label)}</text>"
        )
        for name, spread in group.bars:
            parts += _bar(y, spread, colours[name], x_of, f"{group.label}, {name}")
            y += BAR_HEIGHT + BAR_GAP
        y += GROUP_GAP
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(
    y: float, spread: Spread, colour: str, x_of: Callable[[float], float], name: str
) -> list[str]:
    start, middle = x_of(0), y + BAR_HEIGHT / 2
    low, end, high = (x_of(value) for value in (spread.low, spread.median, spread.high))
    tip = escape(f"{name}: {number(spread.median)}")
    return [
        f'<rect x="{start}" y="{y}" width="{max(1.0, round(end - start, 1))}" height="{BAR_HEIGHT}"'
        f' rx="2" fill="{colour}"><title>{tip}</title></rect>',
        f'<path class="whisker" fill="none" d="M{low} {middle}H{high}'
        f'M{low} {middle - 3}v6M{high} {middle - 3}v6"/>',
        f'<text class="value" x="{max(end, high) + 6}" y="{middle + 4}">'
        f"{number(spread.median)}</text>",
    ]


LINES_HEIGHT: Final = 420
LINES_LEFT: Final = 80
LINES_RIGHT: Final = 40


def lines(
    title: str,
    x_axis: str,
    y_axis: str,
    series: list[tuple[str, list[tuple[float, float]]]],
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Return a chart of lines; both axes are logarithmic.

    Args:
        title: above it.
        x_axis: name of the figures, with their unit.
        y_axis: the same.
        series: the name of each line, and its points, all above 0.
        marks: values of the y axis with a name, a dashed line each.
    """
    points = [point for _, line in series for point in line]
    x_low, x_high = _decades([x for x, _ in points])
    y_low, y_high = _decades([y for _, y in points] + [y for y, _ in marks])
    right, bottom = WIDTH - LINES_RIGHT, LINES_HEIGHT - BOTTOM

    def x_of(value: float) -> float:
        share = (math.log10(value) - x_low) / (x_high - x_low)
        return round(LINES_LEFT + (right - LINES_LEFT) * share, 1)

    def y_of(value: float) -> float:
        share = (math.log10(value) - y_low) / (y_high - y_low)
        return round(bottom - (bottom - TOP) * share, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {LINES_HEIGHT}"'
        f' width="{WIDTH}" height="{LINES_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="26">{escape(title)}</text>',
        f'<text class="axis" x="12" y="{TOP - 8}">{escape(y_axis)}</text>',
        f'<text class="axis" text-anchor="middle" x="{(LINES_LEFT + right) / 2}"'
        f' y="{LINES_HEIGHT - 12}">{escape(x_axis)}</text>',
    ]
    for power in range(x_low, x_high + 1):
        x = x_of(10.0**power)
        parts.append(f'<path class="grid" d="M{x} {TOP}V{bottom}"/>')
        parts.append(
            f'<text class="axis" text-anchor="middle" x="{x}" y="{bottom + 16}">'
            f"{number(10.0**power)}</text>"
        )
    for power in range(y_low, y_high + 1):
        y = y_of(10.0**power)
        parts.append(f'<path class="grid" d="M{LINES_LEFT} {y}H{right}"/>')
        parts.append(
            f'<text class="axis" text-anchor="end" x="{LINES_LEFT - 8}" y="{y + 4}">'
            f"{number(10.0**power)}</text>"
        )
    for value, name in marks:
        y = y_of(value)
        parts.append(
            f'<path class="whisker" stroke-dasharray="6 4" d="M{LINES_LEFT} {y}H{right}"/>'
        )
        parts.append(f'<text x="{LINES_LEFT + 6}" y="{y - 5}">{escape(name)}</text>')
    for (name, line), colour in zip(series, COLOURS, strict=False):
        path = "L".join(f"{x_of(x)} {y_of(y)}" for x, y in line)
        parts.append(f'<path fill="none" stroke="{colour}" stroke-width="2" d="M{path}"/>')
        x, y = line[-1]
        parts.append(f'<text x="{x_of(x) + 8}" y="{y_of(y) + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _decades(values: list[float]) -> tuple[int, int]:
    """Return the powers of ten around some values above 0."""
    return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) - 1e-9)


def scale(values: list[float]) -> tuple[float, float]:
    """Return the end and the step of an axis that begins at 0 and contains these values."""
    most = max(values, default=0.0) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(most / TICKS))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude * TICKS >= most)
    return math.ceil(most / step - 1e-9) * step, step


def number(value: float) -> str:
    """Return a figure with three significant digits, and separated thousands."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
