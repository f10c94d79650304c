"""Fuzzes the targets, each in a process of its own, as many at a time as there are processors.

::

    python -m tests.fuzz.run [--seconds N] [target …]
    python -m tests.fuzz.run --replay FILE target

``--installed`` fuzzes the packages of this environment, which unmask in C and may be compiled.
The checkout, which is fuzzed otherwise, is Python only.  The fuzzer sees no coverage of compiled
code: run it on the checkout first, whose inputs the second run starts with.

Contract: a finding is an exception of a target, an input that takes more than ``TIMEOUT_S``,
or twice more than ``SLOW_S``, or a process of more than ``MEMORY_MIB``.  It is reported with
its file and the command that replays it; the other targets still run, and the exit status is
1.  Inputs that reached new code are kept in ``artefacts/fuzz/<target>/corpus`` for the next
run, beside the findings and the log.

``--replay`` does not need a fuzzer; the rest needs atheris (libFuzzer for Python).

Sources: atheris' README; https://llvm.org/docs/LibFuzzer.html (options, output).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from . import corpus

ROOT: Final = Path(__file__).parents[2]
ARTEFACTS: Final = ROOT / "artefacts" / "fuzz"

# Short, for CI; a long run is started by hand.
DEFAULT_SECONDS: Final = 20
# Inputs are small: one that takes this long is a denial of service.
SLOW_S: Final = 1
TIMEOUT_S: Final = 10
# A target takes about 60 MiB.
MEMORY_MIB: Final = 1024
# Longer inputs reach the same code, more slowly.
MAX_BYTES: Final = 1024
NO_ATHERIS: Final = (
    "The fuzzer needs atheris, which is not installed for this Python: pip install atheris, or"
    " deploy/test -e fuzz.  --replay works without it."
)
# The first argument of a process that fuzzes; those of libFuzzer follow.
WORKER: Final = "--worker"

_COUNTS: Final = re.compile(r"^#\d+\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)
_FINAL: Final = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)


def work(target: str, options: list[str]) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris

    # atheris instruments modules when they are imported, so not before.
    with atheris.instrument_imports(include=["apachews", "apachews_handler"]):
        from .targets import TARGETS

    atheris.Setup([sys.argv[0], *options], TARGETS[target])
    atheris.Fuzz()


def fuzz(target: str, seconds: int, *, is_installed: bool = False) -> bool:
    """Fuzz one target in a process of its own; print the result, return whether it passed.

    Args:
        is_installed: the packages of this environment, instead of the checkout's.
    """
    directory = ARTEFACTS / target
    kept_inputs, start, found = (directory / name for name in ("corpus", "start", "found"))
    for path in (kept_inputs, found):
        path.mkdir(parents=True, exist_ok=True)
    corpus.unpack(target, start)
    log = directory / "log"
    before = set(found.iterdir())
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={TIMEOUT_S}",
        f"-report_slow_units={SLOW_S}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-max_len={MAX_BYTES}",
        # Long inputs from the start: a short run has no time to grow them.
        "-len_control=0",
        "-print_final_stats=1",
        f"-artifact_prefix={found}/",
        str(kept_inputs),
        str(start),
    ]
    with log.open("wb") as stream:
        process = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.run", WORKER, target, *options],
            env={**os.environ, **({"APACHEWS_INSTALLED": "1"} if is_installed else {})},
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    text = log.read_text(errors="replace")
    stats = dict(_FINAL.findall(text))
    counts = _COUNTS.search(text)
    edges, features, kept = counts.groups() if counts else ("?", "?", "?")
    print(
        f"{target:26} {stats.get('number_of_executed_units', '?'):>9} executions"
        f" {stats.get('average_exec_per_sec', '?'):>6}/s"
        f"  coverage {edges:>5} edges {features:>6} features"
        f"  {kept:>5} inputs kept",
        flush=True,
    )
    new = sorted(set(found.iterdir()) - before)
    for path in list(new):
        if path.name.startswith("slow-") and _seconds(path, target) < SLOW_S:
            path.unlink()  # the machine was busy
            new.remove(path)
            continue
        print(
            f"  found {path.relative_to(ROOT)}\n"
            f"  again with: python -m tests.fuzz.run --replay {path.relative_to(ROOT)} {target}"
        )
    if process.returncode:
        print(f"  ended with status {process.returncode}, and at last said:")
        print("\n".join(f"    {line}" for line in text.splitlines()[-40:]), flush=True)
    return not process.returncode and not new


def _seconds(path: Path, target: str) -> float:
    """Run one input through its target, whose exceptions pass; return how long it took."""
    from .targets import TARGETS

    data = path.read_bytes()
    begin = time.perf_counter()
    TARGETS[target](data)
    return time.perf_counter() - begin


def main() -> bool:
    """Run the command line; return whether there was no finding."""
    if sys.argv[1:2] == [WORKER]:
        target, *options = sys.argv[2:]
        work(target, options)
    names = corpus.targets()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("--seconds", type=int, default=DEFAULT_SECONDS, help="for each target")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="one input, of one target")
    parser.add_argument("--installed", action="store_true", help="not the checkout's modules")
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(names))
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(names):
        parser.error(f"no target is called {', '.join(sorted(unknown))}")
    if arguments.replay:
        if len(arguments.targets) != 1:
            parser.error("--replay needs one target")
        (target,) = arguments.targets
        print(f"{target} keeps its promises, in {_seconds(arguments.replay, target):.3f} s")
        return True
    if not importlib.util.find_spec("atheris"):
        print(NO_ATHERIS, file=sys.stderr)
        return False
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        passed = pool.map(
            lambda name: fuzz(name, arguments.seconds, is_installed=arguments.installed),
            arguments.targets or names,
        )
        return all(list(passed))


if __name__ == "__main__":
    sys.exit(not main())
