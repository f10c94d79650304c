"""The report of a run: ``report.md``, the plots, ``results.json``, in one directory."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from . import plot
from .cases import ALL, CASES, NCHAN, RELAYED, Case, Kind
from .plot import Group, number
from .results import GENERATOR_BOUND, CaseResults, Results, Spread
from .targets import Outcome, judge_all

RESULTS: Final = "results.json"
REPORT: Final = "report.md"

# The columns of figures in a kind's table: the heading and the metric.
COLUMNS: Final[dict[str, list[tuple[str, str]]]] = {
    "echo": [("messages/s", "per_second"), ("CPU/message, µs", "cpu_us")],
    "fan-out": [
        ("deliveries/s", "per_second"),
        ("CPU/delivery, µs", "cpu_us"),
        ("the program's part, µs", "backend_cpu_us"),
    ],
    "relay": [
        ("deliveries/s", "per_second"),
        ("CPU/delivery, µs", "cpu_us"),
        ("the programs' part, µs", "backend_cpu_us"),
        ("Redis's part, µs", "broker_cpu_us"),
    ],
    "handshakes": [("handshakes/s", "per_second"), ("CPU/handshake, µs", "cpu_us")],
    "memory": [
        ("Apache, KB/socket", "apache_kib"),
        ("program, KB/socket", "backend_kib"),
        ("Apache's workers/socket", "workers_each"),
    ],
    "stalled": [
        ("Apache, KB/stalled client", "apache_kib"),
        ("program, KB/stalled client", "backend_kib"),
        ("messages/s", "broadcasts_per_second"),
    ],
    "scale": [],
}
# Figures of scale that are printed during the run.
OF_SCALE: Final = ("sockets", "lost", "http_p99_ratio", "cost_ratio", "storm_lost")
TIMED: Final = [("p50, µs", "p50_us"), ("p99, µs", "p99_us")]

HOW: Final = """\
Every figure is the median of the rounds, with the lowest and the highest in brackets. The
peers take turns within a round, each freshly started, and a different one begins each round. A
**ratio** is ours to the peer's of the same round, and the median of those: below 1 is better
for times, CPU and memory, above 1 for rates. **CPU** is user and system
time of all processes that serve, Apache's and the program's, from the kernel's CPU clock of
each process (clock_getcpuclockid), in nanoseconds{check}. KB is 1024 bytes; memory is PSS.

All run on one machine over loopback: the load generator, Apache and the program share its
cores, for every peer. **Generator** is the share of one core that the generator used;
above {bound:.0%} a case is marked *generator-bound*: its throughput is then that of the
generator. The generator checks the length of every answer, and the content of the first and each
64th; of compressed messages, the content of all. No peer logs accesses, none compresses unless its
name says so, and only *scale* has pings; 1 MiB is the longest message everywhere. Ours has one
child of Apache, and so one bridge; two in *handshakes*, as Debian starts, and with 10,000 clients.
mod_proxy holds a worker for every WebSocket: its Apache has as many (MaxRequestWorkers: the
connections and 32 more, in children of 64 threads, all of which run from the beginning); in
*handshakes* four for each client, and so two children as well.

*proxy+…*: Apache's `ProxyPass` with `upgrade=websocket` in front of the program. *websockets*: the
Python library, on asyncio's own loop or, if the table says so, on uvloop. *picows*: a compiled
Python library, on uvloop. *uvicorn*: a plain ASGI program, on uvloop, with `websockets-sansio`, the
fastest of its implementations. *Node ws*, *uWebSockets.js*: Node's libraries. *nchan*: nginx with
Nchan, one worker, which takes the place of Apache and of the program. A name without *proxy*: the
library alone, without Apache and its functions. *ours, one by one*: a program with a loop over its
clients instead of a broadcast. *compressed*: permessage-deflate. *tunnel+picows*: picows behind a
tunnel of apachews, which takes the place of the proxy. *wss*: Apache ends TLS. *ours, relayed*: two
Apaches and two producers with one Redis, as on two machines. *python-socketio*: two programs with
its Redis manager on uvicorn; *channels_redis*: two of Django Channels on uvicorn, with the pub/sub
layer. Their clients' messages and those of *ours, relayed* cross the same Redis, whose CPU counts.
"""


def write(results: Results, output: Path) -> Path:
    """Write the report into a directory that exists; return its file."""
    results.write(output / RESULTS)
    drawn = plots(results)
    for name, svg in drawn.items():
        (output / name).write_text(svg)
    path = output / REPORT
    path.write_text(text(results, list(drawn)))
    return path


def text(results: Results, drawn: list[str]) -> str:
    """Return the text of the report, with these plots."""
    parts = ["# Benchmarks of apachews", facts(results)]
    parts += [f"**{note}**" for note in results.notes]
    harm = results.harm()
    if harm:
        parts.append("**Failures:**\n\n" + "\n".join(f"- {line}" for line in harm))
    else:
        parts.append("No message was lost, doubled or changed, and no connection dropped.")
    parts += ["## Targets", targets_table(judge_all(results))]
    if compared := overview(results):
        parts += ["## At a glance", compared]
    parts += ["## How to read it", how(results)]
    parts += [f"![{name.removesuffix('.svg')}]({name})" for name in drawn]
    parts.append("## Cases")
    for case in results.cases:
        parts += [f"### {case.name}", describe(case.name), case_table(case)]
    if results.profile:
        parts.append("## Profile of our processes")
        for heading, found in results.profile:
            parts.append(f"### {heading}\n\n```text\n{found.rstrip()}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def facts(results: Results) -> str:
    """Return machine, versions, date and command as a table."""
    rows = [[name, f"`{value}`"] for name, value in results.about.items()]
    return table(["", ""], rows)


def how(results: Results) -> str:
    """Return the explanation of the figures."""
    deviation = results.stat_deviation()
    check = (
        ""
        if deviation is None
        else f"; /proc/PID/stat, in ticks, differs by {deviation:.1%} over the run"
    )
    return HOW.format(check=check, bound=GENERATOR_BOUND)


TARGET_HEADS: Final = ["case", "figure", "as against", "target", "measured", "peer on uvloop", ""]


def targets_table(outcomes: list[Outcome]) -> str:
    """Return the targets, and whether each was met."""
    rows = [_target_row(outcome) for outcome in outcomes]
    for row in rows:
        row[-1] = row[-1].replace("missed", "**missed**")
    return table(TARGET_HEADS, rows)


def targets_text(results: Results) -> str:
    """Return the targets of the cases that ran, in columns for a terminal."""
    rows = [_target_row(outcome) for outcome in judge_all(results) if outcome.measured]
    lines = [TARGET_HEADS, *rows] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _target_row(outcome: Outcome) -> list[str]:
    """Return the cells of one target."""
    target = outcome.target
    return [
        target.case,
        target.what
        if target.peer in ("ours", "ours, wss", RELAYED)
        else f"{target.what}, {target.peer}",
        target.against or "-",
        target.wanted,
        show(outcome.measured, 2),
        show(outcome.on_uvloop, 2),
        {None: "not measured", True: "met", False: "missed"}[outcome.is_met],
    ]


# The figures that the overview compares: heading, case, metric, and the rest of the peers' names.
OVERVIEW: Final = [
    ("echo 64 B, CPU", "echo-64B-c32-w1", "cpu_us", ""),
    ("round trip, p50", "round-trip", "p50_us", ""),
    ("fan-out 64 B, CPU", "fan-out-1000", "cpu_us", ""),
    ("echo 64 B over wss, CPU", "wss-echo-64B-c32-w1", "cpu_us", ", wss"),
    ("handshakes, CPU", "handshakes", "cpu_us", ""),
]


def overview(results: Results) -> str:
    """Return the cost of each peer in µs, with our ratio to it; "" if no such case ran."""
    found = [
        (heading, case, metric, suffix)
        for heading, name, metric, suffix in OVERVIEW
        if (case := results.case(name)) is not None
    ]
    rows = []
    for peer in (*ALL, NCHAN):
        row = [f"**{peer}**" if peer == "ours" else peer]
        for _, case, metric, suffix in found:
            spread = case.spread(peer + suffix, metric)
            ratio = case.ratio(f"ours{suffix}", peer + suffix, metric)
            shown = number(spread.median) if spread else "-"
            row.append(f"{shown} ({ratio.median:.2f})" if ratio and peer != "ours" else shown)
        if any(cell != "-" for cell in row[1:]):
            rows.append(row)
    return table(["µs (our ratio)", *(heading for heading, *_ in found)], rows) if rows else ""


def describe(name: str) -> str:
    """Return a description of a case, in a sentence."""
    case = next((case for case in CASES if case.name == name), None)
    return sentence(case) if case else ""


def sentence(case: Case) -> str:
    """Return a description of a case, in a sentence."""
    size = f"{case.size} B" if case.size < 1024 else f"{case.size // 1024} KiB"
    one = case.connections == 1
    if case.kind is Kind.ECHO:
        many = "One connection" if one else f"{case.connections} connections"
        each = f"{case.window} message{'s' * (case.window > 1)} of {size} under way"
        kind = "text" if case.text else "binary"
        return f"{many} with {each}{'' if one else ' each'}; {kind} frames."
    if case.kind is Kind.FAN_OUT:
        what = f"JSON messages of {size}" if case.json else f"messages of {size}"
        return f"The program sends {what} to {case.connections:,} clients, two under way."
    if case.kind is Kind.STALLED:
        return (
            f"{case.stalled:,} of {case.connections:,} clients stop reading; the program sends 100"
            f" messages of {size} a second to all, or as many as it can."
        )
    if case.kind is Kind.RELAY:
        half = case.connections // 2
        if case.timed:
            return (
                f"One message of {size} at a time to a client on each of two machines; *ours*: to"
                " two clients on one. The time until both have it."
            )
        return (
            f"A program sends messages of {size} to its {half:,} clients, and by Redis to those of"
            f" another program, two under way; *ours* sends to {case.connections:,} of its own."
        )
    if case.kind is Kind.HANDSHAKES:
        return f"Clients connect and close, {case.connections} at a time."
    if case.kind is Kind.MEMORY:
        low, high = case.proxied_connections
        return (
            f"Idle connections: what each costs between {case.connections:,} and"
            f" {case.more_connections:,} of them; through mod_proxy between {low} and {high}."
        )
    return "Debian's stock settings of the event MPM, tens of thousands of sockets."


def case_table(case: CaseResults) -> str:
    """Return the table of a case: a line for each peer."""
    if case.kind == Kind.SCALE.value:
        return scale_table(case)
    columns = list(COLUMNS[case.kind])
    peers = case.peers()
    ours = peers[0]
    if case.spread(ours, "p50_us"):
        columns = TIMED + columns
    has_share = case.spread(ours, "generator_share") is not None
    heads = ["peer"]
    for head, _ in columns:
        heads += [head, "ratio"] if len(peers) > 1 and "workers" not in head else [head]
    rows = []
    for peer in peers:
        row = [f"**{peer}**" if peer == ours else peer]
        if (ended := case.spread(peer, "ended")) and ended.high:
            row[0] += ", *a process ended while it was measured: its CPU is missing*"
        for head, metric in columns:
            row.append(show(case.spread(peer, metric)))
            if len(peers) > 1 and "workers" not in head:
                ratio = None if peer == ours else case.ratio(ours, peer, metric)
                row.append(show(ratio, 2))
        if has_share:
            share = case.spread(peer, "generator_share")
            bound = ", *generator-bound*" if case.is_generator_bound(peer) else ""
            row.append(f"{share.median:.0%}{bound}" if share else "-")
        rows.append(row)
    return table(heads + ["generator"] * has_share, rows)


def scale_table(case: CaseResults) -> str:
    """Return the figures of the scale case, which has one peer."""
    figures = case.rounds[0]["ours"] if case.rounds else {}
    rows = [[name.replace("_", " "), number(value)] for name, value in figures.items()]
    return table(["figure", "measured"], rows)


def show(spread: Spread | None, digits: int | None = None) -> str:
    """Return a figure with its range; the median alone after a single round."""
    if spread is None:
        return "-"

    def one(value: float) -> str:
        return number(value) if digits is None else f"{value:.{digits}f}"

    if spread.low == spread.high:
        return one(spread.median)
    return f"{one(spread.median)} [{one(spread.low)} … {one(spread.high)}]"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def one_line(case: CaseResults) -> str:
    """Return a case's outcome, for the terminal."""
    if case.kind == Kind.SCALE.value:
        found = case.rounds[0]["ours"]
        return f"{case.name}: " + ", ".join(f"{name} {number(found[name])}" for name in OF_SCALE)
    is_memory = case.kind in (Kind.MEMORY.value, Kind.STALLED.value)
    metric = "apache_kib" if is_memory else "cpu_us"
    unit = "KB" if metric == "apache_kib" else "µs"
    found_here = []
    for peer in case.peers():
        spread = case.spread(peer, metric)
        found_here.append(f"{peer} {number(spread.median)} {unit}" if spread else peer)
    return f"{case.name}: {', '.join(found_here)}"


def plots(results: Results) -> dict[str, str]:
    """Return the charts for which the results have figures, by file name."""
    drawn = {}
    for name, title, axis, metric, wanted in PLOTS:
        groups = []
        for case_name in wanted:
            case = results.case(case_name)
            if case is None:
                continue
            bars = [
                (peer.removesuffix(", wss"), spread)
                for peer in case.peers()
                if peer.removesuffix(", wss") in PLOTTED
                and (spread := case.spread(peer, metric)) is not None
            ]
            groups.append(Group(case_name, bars))
        if any(group.bars for group in groups):
            drawn[name] = plot.bars(title, axis, groups, PLOTTED)
    return drawn


# The peers that the charts show; the tables have all of them.
PLOTTED: Final = (
    *("ours", "proxy+websockets", "proxy+websockets (uvloop)", "websockets", "websockets (uvloop)"),
    *("picows", "proxy+picows", NCHAN, "uWebSockets.js", "uvicorn", "Node ws"),
)
_SMALL = ["echo-64B-c1-w1", "echo-64B-c32-w1", "echo-64B-c32-w8", "echo-64B-c500-w1"]
_TLS = ["wss-echo-64B-c32-w1", "wss-echo-64KiB-c32-w1"]
# File, title, axis, metric, cases.
PLOTS: Final[list[tuple[str, str, str, str, list[str]]]] = [
    (
        "cpu.svg",
        "Server CPU per echo of 64 bytes: less is better",
        "µs of CPU per message, Apache and program together",
        "cpu_us",
        _SMALL,
    ),
    (
        "throughput.svg",
        "Echoes a second of 64 bytes: more is better",
        "messages per second, on one machine with the generator",
        "per_second",
        _SMALL,
    ),
    (
        "large.svg",
        "Server CPU per echo of 64 KiB: less is better",
        "µs of CPU per message",
        "cpu_us",
        ["echo-64KiB-c1-w1", "echo-64KiB-c32-w1", "echo-64KiB-c500-w1"],
    ),
    (
        "round-trip.svg",
        "One message there and back, median: less is better",
        "µs",
        "p50_us",
        ["round-trip"],
    ),
    (
        "tls.svg",
        "Server CPU per echo over wss: less is better",
        "µs of CPU per message",
        "cpu_us",
        _TLS,
    ),
    (
        "fan-out.svg",
        "Server CPU per delivery to all clients: less is better",
        "µs of CPU per delivery",
        "cpu_us",
        ["fan-out-100", "fan-out-1000", "fan-out-5000", "fan-out-10000"],
    ),
    (
        "memory.svg",
        "Apache's memory for an idle socket: less is better",
        "KB of PSS per socket",
        "apache_kib",
        ["memory-ws", "memory-wss"],
    ),
]
