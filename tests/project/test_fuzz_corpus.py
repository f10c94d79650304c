"""tests.fuzz: every input of the corpora through its target, as the fuzzer starts."""

from __future__ import annotations

import pytest

from ..fuzz import corpus, run
from ..fuzz.targets import TARGETS

MAX_BYTES = 200 * 1024
INPUTS = {target: corpus.read(target) for target in TARGETS}


@pytest.mark.parametrize(
    ("target", "data"),
    [
        pytest.param(target, data, id=f"{target}/{name}")
        for target, inputs in INPUTS.items()
        for name, data in inputs.items()
    ],
)
def test_an_input_keeps_every_promise(target: str, data: bytes) -> None:
    TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_any_input_has_a_meaning(target: str) -> None:
    for size in range(6):
        for byte in (0, 1, 0xFF):
            TARGETS[target](bytes((byte,)) * size)


def test_every_target_has_a_small_corpus() -> None:
    assert corpus.targets() == sorted(TARGETS)
    assert all(INPUTS.values())
    assert sum(len(data) for inputs in INPUTS.values() for data in inputs.values()) < MAX_BYTES


def test_a_run_without_the_fuzzer_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["run", "wire"])
    monkeypatch.setattr(corpus, "targets", lambda: ("wire",))
    assert not run.main()
    shown = capsys.readouterr()
    assert "pip install atheris" in shown.err
    assert shown.out == ""
