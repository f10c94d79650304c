"""Builds bindings/c, once per run: ``built(kind)`` returns the build directory.

Kinds: ``plain`` is the optimised default of ``cmake``; ``sanitized`` has ASan and UBSan.  Both
treat warnings as errors.  The results stay in ``artefacts/c``, so that the next run builds only
the changes.  Processes that run tests side by side build one after the other.
"""

from __future__ import annotations

import fcntl
import functools
import shutil
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).resolve().parents[2] / "bindings" / "c"
ARTEFACTS: Final = Path(__file__).parents[2] / "artefacts" / "c"
WARNINGS: Final = ("-Wall", "-Wextra", "-Werror")
KINDS: Final = {
    "plain": ("-DCMAKE_BUILD_TYPE=Release",),
    "sanitized": ("-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DAPACHEWS_SANITIZE=address,undefined"),
}


def why_not() -> str:
    """Return why the library cannot be built here, or ""."""
    for program in ("gcc", "cmake"):
        if not shutil.which(program):
            return f"{program} is not installed: deploy/test installs it"
    return ""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must succeed; return its output."""
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}"
    return result.stdout


@functools.cache
def built(kind: str) -> Path:
    """Build; return the directory."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    with (ARTEFACTS / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(kind)


def _build(kind: str) -> Path:
    directory = ARTEFACTS / kind
    cache = directory / "CMakeCache.txt"
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={SOURCE}\n" not in cache.read_text():
        shutil.rmtree(directory)  # the checkout was moved
    run("cmake", "-S", SOURCE, "-B", directory, "-DAPACHEWS_WERROR=ON", *KINDS[kind])
    run("cmake", "--build", directory, "--parallel", "2")
    return directory
