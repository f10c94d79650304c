"""What the examples compute: the lines of a log through rotation, figures of the machine."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from examples.dashboard.producer import Sampler
from examples.logtail import producer as logtail
from examples.logtail.producer import Tail

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "examples"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_quotes_what_is_there(page: Path) -> None:
    text = page.read_text()
    linked = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    assert [str(path) for path in linked if not path.exists()] == []
    sources = [path.read_text() for path in linked if path.suffix != ".md"]
    for block in re.findall(r"^```(?:python|apache|php|js)\n(.*?)^```", text, re.M | re.S):
        assert any(block in source for source in sources), block


def test_every_example_has_a_page() -> None:
    names = {path.name for path in (ROOT / "examples").iterdir() if (path / "index.html").exists()}
    assert names == {page.stem for page in DOCS.glob("*.md")} - {"index"}
    index = (DOCS / "index.md").read_text()
    assert all(f"({name}.md)" in index for name in names)


def write(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    write(path, "a\nb\nc\n")
    return path


def test_a_tail_begins_with_the_last_lines(log: Path) -> None:
    for before, lines in ((0, []), (1, ["c"]), (2, ["b", "c"]), (9, ["a", "b", "c"])):
        tail = Tail(str(log), before)
        assert tail.next_lines() == lines
        assert tail.next_lines() == []
        tail.close()


def test_a_tail_begins_with_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    count = logtail.READ_BYTES // 100 + 10
    write(path, "".join(f"{number:099}\n" for number in range(count)))
    tail = Tail(str(path), count)
    # Of what it reads, the first line lacks its begin.
    whole = logtail.READ_BYTES // 100
    assert tail.next_lines() == [f"{number:099}" for number in range(count - whole, count)]
    tail.close()


def test_a_line_comes_when_it_is_whole(log: Path) -> None:
    tail = Tail(str(log))
    write(log, "first ha")
    assert tail.next_lines() == []
    write(log, "lf\nsecond\nthi")
    assert tail.next_lines() == ["first half", "second"]
    write(log, "rd\n")
    assert tail.next_lines() == ["third"]
    tail.close()


def test_a_file_that_is_rotated_is_read_on_for_a_while(log: Path) -> None:
    now = 0.0
    tail = Tail(str(log), clock=lambda: now)
    write(log, "last\n")
    rotated = log.rename(log.with_suffix(".1"))
    assert tail.next_lines() == ["last"]
    write(rotated, "later\n")
    assert tail.next_lines() == ["later"]
    write(log, "new\n")
    write(rotated, "later still\n")
    assert sorted(tail.next_lines()) == ["later still", "new"]
    write(rotated, "once more\n")
    write(log, "newer\n")
    assert tail.next_lines() == ["once more", "newer"]
    now += logtail.ROTATED_S
    tail.next_lines()
    write(rotated, "too late\n")
    assert tail.next_lines() == []
    tail.close()


def test_a_file_that_is_rotated_twice_at_once(log: Path) -> None:
    tail = Tail(str(log))
    for number in (1, 2):
        write(log, f"{number}\n")
        log.rename(log.with_suffix(f".{number}"))
        write(log, f"after {number}\n")
        assert tail.next_lines() == [str(number), f"after {number}"]
    tail.close()


def test_a_file_that_is_copied_and_truncated(log: Path) -> None:
    tail = Tail(str(log))
    shutil.copy(log, log.with_suffix(".1"))
    log.write_text("")
    assert tail.next_lines() == []
    write(log, "new\n")
    assert tail.next_lines() == ["new"]
    tail.close()


def test_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "later.log"
    tail = Tail(str(path), 5)
    assert tail.next_lines() == []
    write(path, "here\n")
    assert tail.next_lines() == ["here"]
    tail.close()


def test_a_line_without_end_is_cut(log: Path) -> None:
    tail = Tail(str(log))
    for _ in range(3):
        write(log, "x" * logtail.MAX_LINE_BYTES)
        assert tail.next_lines() == []
    write(log, "\nnext\n")
    assert tail.next_lines() == ["x" * logtail.MAX_LINE_BYTES, "next"]
    tail.close()


def test_what_is_no_utf8_is_shown(log: Path) -> None:
    tail = Tail(str(log))
    with log.open("ab") as file:
        file.write(b"caf\xe9\n")
    assert tail.next_lines() == ["caf\ufffd"]
    tail.close()


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A /proc and /sys/block of 2 processors, one disk with a partition, 1000 KiB."""
    (tmp_path / "net").mkdir()
    (tmp_path / "block" / "sda" / "device").mkdir(parents=True)
    (tmp_path / "block" / "dm-0").mkdir()
    (tmp_path / "loadavg").write_text("0.50 0.40 0.30 1/234 5678\n")
    (tmp_path / "meminfo").write_text(
        "MemTotal: 1000 kB\nMemFree: 300 kB\nMemAvailable: 700 kB\n"
        "SwapTotal: 500 kB\nSwapFree: 400 kB\n"
    )
    set_counters(tmp_path, "0 0 0 0 0 0 0 0 0 0", 0, 0)
    return tmp_path


def set_counters(machine: Path, cpu: str, received: int, sectors: int) -> None:
    machine.joinpath("stat").write_text(f"cpu  {cpu}\ncpu0 {cpu}\ncpu1 {cpu}\nintr 5 4\n")
    interface = f"{received} 1 0 0 0 0 0 0 {2 * received} 1 0 0 0 0 0 0"
    machine.joinpath("net", "dev").write_text(
        f"Inter-|   Receive\n face |bytes\n    lo: {interface}\n  eth0: {interface}\n"
    )
    disk = f"9 9 {sectors} 9 9 9 {3 * sectors} 9 0 9 9"
    machine.joinpath("diskstats").write_text(
        f"8 0 sda {disk}\n8 1 sda1 {disk}\n253 0 dm-0 {disk}\n"
    )


def test_a_sample_is_what_was_since_the_last(machine: Path) -> None:
    sampler = Sampler(machine, machine / "block")
    assert sampler.sample() is None
    set_counters(machine, "30 10 15 20 10 3 2 10 99 99", 10**6, 1000)
    sample = sampler.sample()
    assert sample
    assert sample["cpu"] == {"user": 40.0, "system": 20.0, "wait": 10.0, "stolen": 10.0}
    kib = 1024
    assert sample["memory"] == {
        "used": 300 * kib,
        "cache": 400 * kib,
        "total": 1000 * kib,
        "swap": 100 * kib,
    }
    # (The rates hang on the time between; without loopback, partition and dm-0.)
    network, disk = sample["network"], sample["disk"]
    assert 0 < network["in"] <= 10**6 * 1000
    assert network["out"] == pytest.approx(2 * network["in"], abs=1)
    assert disk["read"] == pytest.approx(0.512 * network["in"], abs=1)
    assert disk["written"] == pytest.approx(3 * disk["read"], abs=2)
    assert (sample["load"], sample["processors"]) == (0.5, 2)


def test_a_counter_that_begins_anew_is_no_negative_rate(machine: Path) -> None:
    set_counters(machine, "30 10 15 20 10 3 2 10 99 99", 10**6, 1000)
    sampler = Sampler(machine, machine / "block")
    sampler.sample()
    set_counters(machine, "30 10 15 20 5 3 2 10 99 99", 5, 6)
    sample = sampler.sample()
    assert sample
    assert sample["network"] == {"in": 0, "out": 0}
    assert sample["disk"] == {"read": 0, "written": 0}
    assert set(sample["cpu"].values()) == {0.0}


def test_a_secret_is_never_in_a_directory_that_others_read() -> None:
    for path in ("examples/login/apache.conf", "docs/examples/login.md"):
        before, written, _ = (ROOT / path).read_text().partition("token_hex(32)")
        assert written
        assert "install -d -m 750 -g www-data /etc/apachews/login\n" in before, path
