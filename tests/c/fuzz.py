"""Runs the fuzzer of libapachews, bindings/c/tests/fuzz.c, built with ASan and UBSan.

::

    python -m tests.c.fuzz [--seconds N] [--seed N] [target …]
    python -m tests.c.fuzz --replay FILE target

Contract: the targets share ``--seconds``; each starts with the wire's vectors and exits with
status 0.  The report of a failed target names its last input and the command that replays it;
the other targets still run, and the exit status is 1.  If the library cannot be built, the
report says so, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Final

from ..support.site import ROOT
from .build import ARTEFACTS, built, why_not

TARGETS: Final = ("wire", "json", "request", "queue", "server")
DEFAULT_SECONDS: Final = 10
# A margin beyond --seconds: the fuzzer exits by itself.
GRACE_S: Final = 60


def seeds(target: str) -> list[Path]:
    """Write the initial inputs of a target; return the files."""
    vectors = json.loads((ROOT / "docs" / "reference" / "wire-vectors.json").read_text())
    hello = bytes.fromhex(vectors["open"])
    streams = [
        (hello if vector["open"] else b"") + bytes.fromhex(vector["hex"])
        for vector in vectors["to_producer"]
    ]
    opens = [bytes.fromhex(vector["hex"]) for vector in vectors["opens"]]
    found = {
        "wire": [b"\0" + data for data in (*streams, *opens)],
        "server": [
            bytes.fromhex(text)
            for text in (
                "00 51 10 53 80 90 13 57",  # one comes, says something, and leaves
                "05 51 b0 20 53 13 57",  # one asks
                "00 51 e0 09 20 53 1f",  # one publishes
                "00 51 e2 8d 57 14 57 80 57",  # a drain
                "00 51 8c 80 a4 57 8c 57",  # a close that is not answered in time
                "00 51 10 86 57 01 87 57 10 85 90 57",  # memory runs out
            )
        ],
        "queue": [bytes(range(0, 256, 3)), b"\x1f\x3f\x5f\x80\xa0\xff" * 9],
    }
    # Their payloads follow a header of two or four bytes.
    found["json"] = found["request"] = [data[2 if data[1] < 126 else 4 :] for data in opens]
    directory = ARTEFACTS / "fuzz" / target
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, data in enumerate(found[target]):
        path = directory / f"seed-{number}"
        path.write_bytes(data)
        paths.append(path)
    return paths


def fuzz(target: str, seconds: float, seed: int) -> bool:
    """Fuzz one target; print the result, return whether it passed."""
    last = ARTEFACTS / "fuzz" / target / f"last-{seed}"
    program = str(built("sanitized") / "fuzz")
    command = [program, target, str(seconds), str(seed), str(last), *map(str, seeds(target))]
    try:
        result = subprocess.run(
            command, capture_output=True, timeout=seconds + GRACE_S, check=False
        )
        problem = result.stderr.decode(errors="replace") if result.returncode else ""
        print(result.stdout.decode(), end="", flush=True)
    except subprocess.TimeoutExpired:
        problem = "an input took for ever"
    if problem:
        print(f"{target}: {problem}\nagain with: python -m tests.c.fuzz --replay {last} {target}")
        return False
    last.unlink()
    return True


def main() -> bool:
    """Run the command line; return whether all targets passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.c.fuzz")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="for all targets")
    parser.add_argument("--seed", type=int, default=None, help="of the mutations; by chance")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="one input, of one target")
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS))
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no target is called {', '.join(sorted(unknown))}")
    if reason := why_not():
        print(f"SKIPPED [1] tests/c/fuzz.py: {reason}")
        return True
    targets = arguments.targets or list(TARGETS)
    if arguments.replay:
        if len(targets) != 1:
            parser.error("--replay needs one target")
        program = built("sanitized") / "fuzz"
        command = [program, targets[0], "replay", arguments.replay]
        return subprocess.run(command, check=False).returncode == 0
    seed = random.SystemRandom().randrange(1 << 31) if arguments.seed is None else arguments.seed
    bad = [name for name in targets if not fuzz(name, arguments.seconds / len(targets), seed)]
    return not bad


if __name__ == "__main__":
    sys.exit(not main())
