"""The report of the benchmarks, its plots, and the part of the documentation it fills."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import docs, plot, report
from bench.plot import Group
from bench.results import CaseResults, Results, Spread

SVG = "{http://www.w3.org/2000/svg}"
PEER = "proxy+websockets"


def some_results() -> Results:
    figures = {
        "messages": 1000.0,
        "per_second": 20_000.0,
        "cpu_us": 25.0,
        "generator_share": 0.4,
        "lost": 0.0,
    }
    rounds = [
        {
            "ours": figures | {"cpu_us": 20.0 + n},
            PEER: figures | {"cpu_us": 80.0, "generator_share": 0.95},
        }
        for n in range(3)
    ]
    idle = {"apache_kib": 3.0, "backend_kib": 1.5, "workers_each": 0.0}
    return Results(
        {"Processor": "A CPU", "Command": "bench/run"},
        [
            CaseResults("echo-64B-c32-w1", "echo", 32, rounds),
            CaseResults("memory-ws", "memory", 1000, [{"ours": idle, PEER: idle}]),
            CaseResults("scale", "scale", 20_000, [{"ours": {"lost": 0.0, "cost_ratio": 1.1}}]),
        ],
    )


def test_the_report_has_targets_figures_ratios_and_the_machine(tmp_path: Path) -> None:
    path = report.write(some_results(), tmp_path)
    text = path.read_text()
    assert "| Processor | `A CPU` |" in text
    assert "| echo-64B-c32-w1 | CPU per message | proxy+websockets | ≤ 0.45 | 0.26" in text
    assert "21 [20 … 22]" in text
    assert "*generator-bound*" in text
    assert "No message was lost" in text
    assert text.index("## Targets") < text.index("## Cases")
    for name in report.plots(some_results()):
        assert f"]({name})" in text
        ElementTree.parse(tmp_path / name)
    assert Results.read(tmp_path / "results.json") == some_results()


def test_what_went_wrong_stands_above() -> None:
    results = some_results()
    results.cases[0].rounds[0]["ours"]["lost"] = 3
    text = report.text(results, [])
    assert "- echo-64B-c32-w1, ours: 3 lost" in text
    assert "No message was lost" not in text


def test_tables_have_as_many_cells_in_every_line() -> None:
    for case in some_results().cases:
        lines = report.case_table(case).splitlines()
        assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("spread", "digits", "expected"),
    [
        (None, None, "-"),
        (Spread(2.0, 2.0, 2.0), 2, "2.00"),
        (Spread(0.456, 0.4, 0.51), 2, "0.46 [0.40 … 0.51]"),
        (Spread(12345.6, 12000.0, 13000.0), None, "12,346 [12,000 … 13,000]"),
    ],
)
def test_a_figure_is_shown_with_its_range(
    spread: Spread | None, digits: int | None, expected: str
) -> None:
    assert report.show(spread, digits) == expected


def test_a_plot_has_a_bar_and_a_whisker_for_each_figure() -> None:
    groups = [
        Group("small & <fast>", [("ours", Spread(1, 0.5, 2)), (PEER, Spread(4, 3, 5))]),
        Group("large", [("ours", Spread(10, 10, 10))]),
    ]
    root = ElementTree.fromstring(plot.bars("A title <&>", "µs", groups))
    assert root.tag == f"{SVG}svg"
    assert len([e for e in root.iter(f"{SVG}path") if e.get("class") == "whisker"]) == 3
    shown = [e.text for e in root.iter(f"{SVG}text")]
    assert {"A title <&>", "µs", "small & <fast>", "ours", PEER} <= set(shown)
    bars = [e for e in root.iter(f"{SVG}rect") if e.get("height") == str(plot.BAR_HEIGHT)]
    widths = [float(e.attrib["width"]) for e in bars]
    assert widths[2] == pytest.approx(10 * widths[0], rel=0.02)


def test_a_peer_has_the_same_colour_in_every_plot() -> None:
    spread = Spread(1, 1, 1)
    colours = []
    for names in (["ours", PEER], [PEER]):
        groups = [Group("g", [(name, spread) for name in names])]
        root = ElementTree.fromstring(plot.bars("t", "a", groups, ["ours", PEER]))
        bars = [e for e in root.iter(f"{SVG}rect") if e.get("height") == str(plot.BAR_HEIGHT)]
        colours.append(bars[-1].get("fill"))
    assert colours[0] == colours[1]


def test_a_plot_of_nothing_but_zeros_is_none_the_less_one() -> None:
    ElementTree.fromstring(plot.bars("t", "a", [Group("g", [("ours", Spread(0, 0, 0))])]))


@pytest.mark.parametrize(
    ("most", "expected"),
    [(4.2, (5.0, 1.0)), (10, (10, 2)), (97, (100, 20)), (0.012, (0.0125, 0.0025)), (0, (1, 0.2))],
)
def test_an_axis_ends_at_a_round_figure(most: float, expected: tuple[float, float]) -> None:
    assert plot.scale([0.0, most]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.1234, "0.123"), (12.34, "12.3"), (123.4, "123"), (45678.9, "45,679")],
)
def test_figures_have_three_digits_that_mean_something(value: float, expected: str) -> None:
    assert plot.number(value) == expected


def test_the_documentation_gets_the_figures_between_its_comments(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n\n{docs.BEGIN}\n\nold figures\n\n{docs.END}\n\nafter\n")
    (tmp_path / "performance").mkdir()
    (tmp_path / "performance" / "old.svg").write_text("")
    for _ in range(2):  # the second time changes nothing
        docs.write(some_results(), tmp_path)
        text = page.read_text()
        assert text.startswith(f"before\n\n{docs.BEGIN}\n\n")
        assert text.endswith(f"\n\n{docs.END}\n\nafter\n")
        assert "old figures" not in text
        assert "### Targets" in text
    plots = [path.name for path in (tmp_path / "performance").iterdir()]
    assert plots and "old.svg" not in plots
    assert all(f"](performance/{name})" in text for name in plots)


def test_a_page_without_the_comments_is_left_alone() -> None:
    with pytest.raises(docs.NoMarkers):
        docs.put_between("a page", "figures")


def test_the_page_that_ships_has_the_comments() -> None:
    docs.put_between((docs.DOCS / "performance.md").read_text(), "")
