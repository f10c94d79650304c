"""shared.limits and shared.slots: what several processes share, however they exit."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews_handler.exceptions import NotSetUp, Refusal, Unavailable
from apachews_handler.settings import Settings
from apachews_handler.shared import limits, rundir
from apachews_handler.shared.limits import admit
from apachews_handler.shared.slots import SlotFile

from ..conftest import wait_for


@pytest.fixture
def temporary(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files, and no file opened in it yet."""
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    monkeypatch.setattr(limits, "_slots", None)
    monkeypatch.setattr(rundir, "_directory_fd", -1)
    yield short_path
    if limits._slots:
        limits._slots.close()
    if rundir._directory_fd != -1:
        os.close(rundir._directory_fd)


def places(path: Path, count: int) -> list[SlotFile]:
    """Open the file as several children would."""
    return [SlotFile(str(path / "a.slots")) for _ in range(count)]


def test_a_limit_is_shared(short_path: Path) -> None:
    one, other = places(short_path, 2)
    taken = [child.acquire("k", 4) for child in (one, other, one, other)]
    assert None not in taken
    assert len(set(taken)) == 4
    assert one.acquire("k", 4) is None
    assert other.acquire("k", 4) is None
    assert other.acquire("another key", 4) is not None
    assert taken[2] is not None
    one.release(taken[2])
    wait_for(lambda: other.acquire("k", 4) == taken[2])
    assert one.acquire("k", 4) is None
    one.close()
    wait_for(lambda: other.acquire("k", 4) is not None)
    other.close()


def test_places_come_back_when_a_process_is_killed(short_path: Path) -> None:
    (here,) = places(short_path, 1)
    program = (
        "import sys, time; from apachews_handler.shared.slots import SlotFile\n"
        f"p = SlotFile({str(short_path / 'a.slots')!r})\n"
        "print([p.acquire('k', 3) for _ in range(3)], flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline().count(b",") == 2
    assert here.acquire("k", 3) is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: here.acquire("k", 3) is not None)
    here.close()


def test_a_fork_keeps_the_places(short_path: Path) -> None:
    one, other = places(short_path, 2)
    assert one.acquire("k", 1) is not None
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    one.close()
    assert other.acquire("k", 1) is None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert other.acquire("k", 1) is not None
    other.close()


def test_many_places_are_found_quickly(short_path: Path) -> None:
    one, other = places(short_path, 2)
    started = time.process_time()
    taken = {child.acquire("k", 1 << 20) for child in (one, other) * 3000}
    assert len(taken - {None}) == 6000
    assert time.process_time() - started < 3
    one.close()
    other.close()


def test_nothing_is_kept_of_addresses_that_have_gone(short_path: Path) -> None:
    one, other = places(short_path, 2)
    for number in range(50):
        key = f"address {number}"
        assert other.acquire(key, 3) is not None
        taken = [one.acquire(key, 3) for _ in range(3)]
        assert taken[2] is None
        for position in taken[:2]:
            assert position is not None
            one.release(position)
    assert one._regions == {}
    one.close()
    other.close()


def test_a_refusal_costs_no_search(short_path: Path) -> None:
    one, other = places(short_path, 2)
    for child in (one, other):
        for _ in range(3000):
            child.acquire("k", 6000)
    started = time.process_time()
    for _ in range(2000):
        assert one.acquire("k", 6000) is None
    assert time.process_time() - started < 1
    one.close()
    other.close()


def test_a_place_of_another_child_is_found_soon_after_it_was_freed(short_path: Path) -> None:
    one, other = places(short_path, 2)
    position = other.acquire("k", 2)
    assert one.acquire("k", 2) is not None
    assert one.acquire("k", 2) is None
    assert position is not None
    other.release(position)
    wait_for(lambda: one.acquire("k", 2) == position)
    one.close()
    other.close()


def test_without_limits_nothing_is_made(temporary: Path) -> None:
    admit(Settings(), "192.0.2.1", "/a.ws").release()
    assert list(temporary.iterdir()) == []


def test_what_each_limit_answers(temporary: Path) -> None:
    for settings, status in [
        (Settings(max_connections=1), "503"),
        (Settings(max_connections_per_address=1), "429"),
        (Settings(max_connections_per_endpoint=1), "503"),
    ]:
        admission = admit(settings, "192.0.2.1", "/a.ws")
        with pytest.raises(Refusal) as caught:
            admit(settings, "192.0.2.1", "/a.ws")
        assert caught.value.status.startswith(status)
        assert "APACHEWS_MAX_CONNECTIONS" in caught.value.logged
        admission.release()
        admission.release()
        admit(settings, "192.0.2.1", "/a.ws").release()


def test_what_was_taken_before_a_refusal_is_given_back(temporary: Path) -> None:
    both = Settings(max_connections=2, max_connections_per_endpoint=1)
    admission = admit(both, "192.0.2.1", "/a.ws")
    for _ in range(5):
        with pytest.raises(Refusal):
            admit(both, "192.0.2.1", "/a.ws")
    admit(both, "192.0.2.1", "/b.ws").release()
    admission.release()


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("no address", "no address", True),
    ],
)
def test_what_one_address_is(temporary: Path, one: str, other: str, are_one: bool) -> None:
    settings = Settings(max_connections_per_address=1)
    admission = admit(settings, one, "/a.ws")
    try:
        admit(settings, other, "/a.ws").release()
        assert not are_one
    except Refusal:
        assert are_one
    admission.release()


def test_files_of_apaches_that_have_gone_are_removed(temporary: Path) -> None:
    own = temporary / f"apachews-{os.geteuid()}"
    own.mkdir(mode=0o700)
    ended = subprocess.Popen(["true"])
    ended.wait()
    (own / f"{ended.pid}.slots").touch()
    (own / "1.slots").touch()
    (own / "other").touch()
    admit(Settings(max_connections=1), "192.0.2.1", "/a.ws").release()
    left = {entry.name for entry in own.iterdir()}
    assert left == {"1.slots", "other", f"{os.getppid()}.slots"}
    assert (own / f"{os.getppid()}.slots").stat().st_mode & 0o077 == 0


def test_somebody_elses_directory_is_not_used(temporary: Path) -> None:
    (temporary / f"apachews-{os.geteuid()}").write_text("not a directory")
    with pytest.raises(NotSetUp, match="another user"):
        admit(Settings(max_connections=1), "192.0.2.1", "/a.ws")


def test_without_descriptors_it_may_work_in_a_moment(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(limits, "SlotFile", fail)
    with pytest.raises(Unavailable, match="LimitNOFILE"):
        admit(Settings(max_connections=1), "192.0.2.1", "/a.ws")


def test_the_file_of_an_apache_that_proc_does_not_show_is_left_alone(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = temporary / f"apachews-{os.geteuid()}"
    own.mkdir(mode=0o700)
    (own / "4711.slots").touch()
    (own / f"{os.getppid()}.slots").touch()

    def kill(pid: int, number: int) -> None:
        raise PermissionError if pid == 4711 else ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)
    admit(Settings(max_connections=1), "192.0.2.1", "/a.ws").release()
    assert {entry.name for entry in own.iterdir()} == {"4711.slots", f"{os.getppid()}.slots"}


def test_a_link_is_not_followed(short_path: Path) -> None:
    (short_path / "a.slots").symlink_to(short_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        places(short_path, 1)
    assert not (short_path / "elsewhere").exists()
