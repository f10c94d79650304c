"""apachews_handler.shared.generations: who came after whom, and is still there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apachews_handler.shared.generations import Generation

APACHE = os.getpid()


def surplus(*generations: Generation, limit: int) -> list[bool]:
    return [generation.is_surplus(limit) for generation in generations]


def test_those_with_the_fewest_clients_are_one_too_many(temporary: Path) -> None:
    first, second, third = (Generation(APACHE) for _ in range(3))
    other = Generation(os.getppid())
    for generation, clients in ((first, 30), (second, 10), (third, 20), (other, 1)):
        generation.update(clients)
    assert surplus(first, second, third, limit=3) == [False, False, False]
    assert surplus(first, second, third, limit=2) == [False, True, False]
    assert surplus(first, second, third, limit=1) == [False, True, True]
    assert not other.is_surplus(1)
    second.update(40)
    assert surplus(first, second, third, limit=1) == [True, False, True]
    second.close()
    assert surplus(first, third, limit=1) == [False, True]
    for generation in (first, third, other):
        generation.close()
    assert list(temporary.iterdir()) == []


def test_of_equals_the_oldest_is_one_too_many(temporary: Path) -> None:
    first, second = Generation(APACHE), Generation(APACHE)
    assert surplus(first, second, limit=1) == [True, False]
    for generation in (first, second):
        generation.close()


def test_one_that_died_without_a_word_is_not_counted(temporary: Path) -> None:
    first = Generation(APACHE)
    program = (
        "import os, tempfile\n"
        f"tempfile.tempdir = {str(temporary.parent)!r}\n"
        "from apachews_handler.shared.generations import Generation\n"
        f"g = Generation({APACHE})\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    assert len(list(temporary.iterdir())) == 2
    assert not first.is_surplus(1)
    first.close()
    assert list(temporary.iterdir()) == []  # it was tidied up


def test_a_directory_that_was_removed_is_no_reason_to_end(temporary: Path) -> None:
    first, second = Generation(APACHE), Generation(APACHE)
    shutil.rmtree(temporary)
    assert surplus(first, second, limit=1) == [False, False]
    for generation in (first, second):
        generation.update(5)
        generation.close()


def test_a_directory_of_somebody_elses_is_refused(temporary: Path) -> None:
    temporary.symlink_to(temporary.parent)
    with pytest.raises(PermissionError):
        Generation(APACHE)


def test_files_of_apaches_that_have_gone_are_removed(temporary: Path) -> None:
    temporary.mkdir(mode=0o700)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (temporary / f"{ended.pid}.00000000000000000001.5.custodian").touch()
    (temporary / f"{os.getpid()}.slots").touch()
    (temporary / "something.else").touch()
    Generation(APACHE).close()
    assert {path.name for path in temporary.iterdir()} == {
        f"{os.getpid()}.slots",
        "something.else",
    }
