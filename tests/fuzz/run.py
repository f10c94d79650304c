"""Fuzzes the targets, one after the other, each in a process of its own.

::

    python -m tests.fuzz.run [--seconds N] [target …]
    python -m tests.fuzz.run --replay FILE target

``--extension`` has the targets unmask in C, with what is installed in this environment;
the checkout, which is what is fuzzed, has no extension, and unmasks in Python.

Contract: what a target raises, an input that takes more than ``TIMEOUT_S``, or more
than ``SLOW_S`` each of two times, or a process of more than ``MEMORY_MIB`` is a
finding: it is named with its file and how to replay it, the other targets still have
their turn, and the exit status is 1.
Inputs that reached something new are kept in ``artefacts/fuzz/<target>/corpus``, so
that the next run goes on from there; what was found is beside them, and the log.

``--replay`` needs no fuzzer, the rest needs atheris (libFuzzer for Python).

Sources: atheris' README; https://llvm.org/docs/LibFuzzer.html (options, output).
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Final

from . import corpus

ROOT: Final = Path(__file__).parents[2]
ARTEFACTS: Final = ROOT / "artefacts" / "fuzz"

# What a short run finds is worth its time in CI; a long one is started by hand.
DEFAULT_SECONDS: Final = 20
# Every input here is small: one that takes this long is a denial of service.
SLOW_S: Final = 1
TIMEOUT_S: Final = 10
# A target takes about 60 MiB.
MEMORY_MIB: Final = 1024
# Longer inputs say the same, more slowly.
MAX_BYTES: Final = 1024
# The first argument of the process that fuzzes; libFuzzer's own follow.
WORKER: Final = "--worker"
# What unmasks.
UNMASKING: Final = ("client_reader", "client_reader_vs_wsproto", "session")
EXTENSION_NAME: Final = "apachews_handler.protocol._mask"

_COUNTS: Final = re.compile(r"^#\d+\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)
_FINAL: Final = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)


def work(target: str, options: list[str]) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris

    # What is instrumented must not have been imported before.
    with atheris.instrument_imports(include=["apachews", "apachews_handler"]):
        from .targets import TARGETS

    atheris.Setup([sys.argv[0], *options], TARGETS[target])
    atheris.Fuzz()


def use_extension() -> None:
    """Have this process unmask in C."""
    (path,) = Path(sysconfig.get_path("platlib"), "apachews_handler", "protocol").glob("_mask.*.so")
    loader = importlib.machinery.ExtensionFileLoader(EXTENSION_NAME, str(path))
    spec = importlib.util.spec_from_loader(EXTENSION_NAME, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[EXTENSION_NAME] = module


def fuzz(target: str, seconds: int, *, in_c: bool = False) -> bool:
    """Fuzz one target in a process of its own; print what came of it, return whether it is good."""
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
            [
                *(sys.executable, "-m", "tests.fuzz.run", WORKER),
                *(["--extension"] if in_c else []),
                *(target, *options),
            ],
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
    """Run one input through its target; raises what that raises."""
    from .targets import TARGETS

    data = path.read_bytes()
    begin = time.perf_counter()
    TARGETS[target](data)
    return time.perf_counter() - begin


def main() -> bool:
    """Do what the command line says; return whether nothing was found."""
    if sys.argv[1:2] == [WORKER]:
        target, *options = sys.argv[2:]
        if target == "--extension":
            use_extension()
            target, *options = options
        work(target, options)
    names = corpus.targets()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("--seconds", type=int, default=DEFAULT_SECONDS, help="for each target")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="one input, of one target")
    parser.add_argument("--extension", action="store_true", help="unmask in C")
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
    in_c = arguments.extension
    targets = arguments.targets or (UNMASKING if in_c else names)
    bad = [name for name in targets if not fuzz(name, arguments.seconds, in_c=in_c)]
    return not bad


if __name__ == "__main__":
    sys.exit(not main())
