"""tests.fuzz: every seed through its target, as the fuzzer would begin with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..fuzz.targets import TARGETS

SEEDS = Path(__file__).parents[1] / "fuzz" / "seeds"
MAX_BYTES = 200 * 1024


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(path, id=f"{path.parent.name}/{path.name}")
        for path in sorted(SEEDS.glob("*/*"))
    ],
)
def test_a_seed_keeps_every_promise(seed: Path) -> None:
    TARGETS[seed.parent.name](seed.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_any_input_means_something(target: str) -> None:
    for size in range(6):
        for byte in (0, 1, 0xFF):
            TARGETS[target](bytes((byte,)) * size)


def test_every_target_has_seeds_and_they_are_small() -> None:
    assert {path.name for path in SEEDS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in SEEDS.glob("*/*")) < MAX_BYTES
