"""The command: which cases, how often, where the report goes.  ``bench/run`` starts it."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Final

from . import cases as case_table
from . import docs, machine, measure, memory, peers, profile, relay, report, scale
from .cases import PEERS, Case, Kind
from .generator import GeneratorFailed
from .limits import TooFewDescriptors, raise_descriptor_limit, require_descriptors
from .results import BadResults, CaseResults, Figures, Results
from .targets import WITH_TARGETS

ROUNDS: Final = 5
# A load average above this is that of other programs.
BUSY_LOAD: Final = 1.0
DEFAULT_OUTPUT: Final = Path("bench/results")

QUICK: Final = (
    "A quick run: short windows, a tenth of the clients of fan-out and memory at most, a fiftieth"
    " of those of scale. It shows that everything runs; its figures are not for quoting."
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="bench/run", description="Benchmarks of apachews and of other servers."
    )
    found.add_argument(
        "--quick", action="store_true", help="one short round each, with few clients: to try it"
    )
    found.add_argument("--list", action="store_true", help="name the cases and their peers")
    found.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="NAME",
        help="only this case; NAME may contain *",
    )
    found.add_argument(
        "--targets", action="store_true", help="only the cases that a target is about"
    )
    found.add_argument(
        "--rounds", type=_count, default=None, metavar="N", help=f"rounds a case ({ROUNDS})"
    )
    found.add_argument(
        "--output",
        type=Path,
        default=DEFAULT_OUTPUT,
        metavar="DIR",
        help=f"where report.md, the plots and results.json go ({DEFAULT_OUTPUT})",
    )
    found.add_argument(
        "--report",
        type=Path,
        metavar="RESULTS",
        help="run nothing; write the report of a results.json",
    )
    found.add_argument(
        "--docs",
        type=Path,
        nargs="?",
        const=DEFAULT_OUTPUT / report.RESULTS,
        metavar="RESULTS",
        help=f"run nothing; put a results.json ({DEFAULT_OUTPUT / report.RESULTS}) into docs/",
    )
    found.add_argument(
        "--profile",
        action="store_true",
        help="also profile our processes, with strace, perf and py-spy",
    )
    return found


def main(arguments: list[str]) -> int:
    """Run the command; return its status: 1 if messages were lost or a peer failed."""
    # These end the run like Ctrl-C: the started processes end, and changed modes are restored.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    options = parser().parse_args(arguments)
    try:
        if options.report:
            return _write(Results.read(options.report), options.output)
        if options.docs:
            docs.write(Results.read(options.docs))
            return 0
        selected = case_table.select(options.case)
        if options.targets:
            selected = [case for case in selected if case.name in WITH_TARGETS]
        if options.list:
            for case in selected:
                print(f"{case.name:28} {', '.join(case.peers)}")
            return 0
        return _run(selected, options, arguments)
    except (
        BadResults,
        GeneratorFailed,
        OSError,
        TooFewDescriptors,
        ValueError,
        peers.PeerFailed,
    ) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130


def _run(selected: list[Case], options: argparse.Namespace, arguments: list[str]) -> int:
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    if options.quick:
        selected = [case.quick() for case in selected]
    raise_descriptor_limit()
    for case in selected:
        if case.kind is Kind.SCALE:
            scale.check(options.quick)
        else:
            require_descriptors(case.descriptors)
    options.output.mkdir(parents=True, exist_ok=True)
    results = Results(machine.describe(arguments) | {"Rounds": str(rounds)})
    if options.quick:
        results.notes.append(QUICK)
    elif rounds < ROUNDS:
        results.notes.append(f"Fewer than {ROUNDS} rounds: not for quoting.")
    results.notes += load_notes(os.getloadavg()[0])
    estimate = sum(case.estimate_s(rounds) for case in selected)
    _say(f"{len(selected)} cases, {rounds} rounds: about {estimate / 60:.0f} minutes")
    begun_at = time.monotonic()
    with peers.readable() as opened:
        for directory in opened:
            _say(
                f"{directory} has mode o+x for this run, so that Apache's user reaches the packages"
            )
        for number, case in enumerate(selected, 1):
            if case.kind is Kind.SCALE:
                found, notes = scale.run(options.quick)
                results.notes += notes
            else:
                found = run_case(case, rounds)
            results.cases.append(found)
            # After each case, so that a later failure keeps these figures.
            results.write(options.output / report.RESULTS)
            passed = time.monotonic() - begun_at
            _say(f"{number}/{len(selected)} {passed / 60:4.1f} min  {report.one_line(found)}")
            if options.profile and case.kind in profile.KINDS:
                results.profile += profile.run(case)
    return _write(results, options.output)


def load_notes(load: float) -> list[str]:
    """Return a note if other programs were busy when the run began, by the load average."""
    if load < BUSY_LOAD:
        return []
    return [
        f"Other programs were at work on the machine (load average {load:.1f}): rates and times"
        " are not for quoting; CPU and memory are those of the peers alone."
    ]


def run_case(case: Case, rounds: int) -> CaseResults:
    """Run a case; the peers alternate, and another one begins each round.

    Raises:
        PeerFailed, GeneratorFailed
    """
    found = CaseResults(case.name, case.kind.value, case.connections)
    for number in range(min(rounds, case.most_rounds)):
        first = number % len(case.peers)
        measured: dict[str, Figures] = {}
        for name in case.peers[first:] + case.peers[:first]:
            try:
                measured[name] = run_peer(case, name)
            except (peers.PeerFailed, GeneratorFailed) as error:
                raise type(error)(f"{case.name}, {name}, round {number + 1}: {error}") from error
        found.rounds.append({name: measured[name] for name in case.peers})
    return found


def run_peer(case: Case, name: str) -> Figures:
    """Measure one peer in a case once."""
    how = {Kind.MEMORY: memory.idle, Kind.STALLED: memory.stalled, Kind.RELAY: relay.run}
    return how.get(case.kind, measure.run)(case, PEERS[name])


def _write(results: Results, output: Path) -> int:
    output.mkdir(parents=True, exist_ok=True)
    path = report.write(results, output)
    print(report.targets_text(results), flush=True)
    _say(f"the report: {path}")
    harm = results.harm()
    for line in harm:
        _say(line)
    return 1 if harm else 0


def _say(text: str) -> None:
    width = shutil.get_terminal_size((160, 24)).columns if sys.stderr.isatty() else 400
    print(f"bench: {text}"[:width], file=sys.stderr, flush=True)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
