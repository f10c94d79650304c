"""apachews._listening.socket_file: making the socket file, and what it refuses."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import socket
import stat
import threading
from pathlib import Path

import pytest

from apachews._listening import socket_file
from apachews._listening.socket_file import SocketFile
from apachews.exceptions import NotASocket, ServerError, SocketInUse

from ..conftest import wait_for


def test_listens_with_the_mode_it_is_told_whatever_the_umask(short_path: Path) -> None:
    before = os.umask(0o077)
    try:
        made = SocketFile(str(short_path / "a.ws"), 0o664, None)
    finally:
        os.umask(before)
    status = os.stat(made.path)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o664
    made.close()
    made.close()
    assert not os.path.exists(made.path)


def test_group_is_set(short_path: Path) -> None:
    made = SocketFile(str(short_path / "a.ws"), 0o660, os.getegid())
    assert os.stat(made.path).st_gid == os.getegid()
    made.close()
    with pytest.raises(LookupError):
        SocketFile(str(short_path / "a.ws"), 0o660, "no-such-group")
    assert os.listdir(short_path) == []


def test_an_exit_right_after_the_file_was_made_removes_it(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler of a signal can raise SystemExit anywhere."""
    rename = os.rename

    def rename_and_exit(*paths: str) -> None:
        rename(*paths)
        raise SystemExit(0)

    monkeypatch.setattr(os, "rename", rename_and_exit)
    with pytest.raises(SystemExit):
        SocketFile(str(short_path / "a.ws"), 0o660, None)
    assert os.listdir(short_path) == []


def test_a_stale_socket_is_replaced(short_path: Path) -> None:
    path = str(short_path / "a.ws")
    for exclusive in (False, True):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        made = SocketFile(path, 0o660, None, exclusive)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        made.close()


def test_a_live_socket_is_refused_even_with_a_full_backlog(short_path: Path) -> None:
    path = str(short_path / "a.ws")
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as waiting:
        live.bind(path)
        live.listen(0)
        waiting.connect(path)
        with pytest.raises(SocketInUse, match=r"a\.ws"):
            SocketFile(path, 0o660, None, exclusive=True)
        assert os.path.exists(path)


def test_anything_else_is_left_alone(short_path: Path) -> None:
    path = short_path / "a.ws"
    path.write_text("precious")
    with pytest.raises(NotASocket, match="move it, or use"):
        SocketFile(str(path), 0o660, None)
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to(short_path / "elsewhere")
    with pytest.raises(NotASocket):
        SocketFile(str(path), 0o660, None)


def test_close_leaves_somebody_elses_file(short_path: Path) -> None:
    path = short_path / "a.ws"
    made = SocketFile(str(path), 0o660, None)
    path.unlink()
    path.write_text("new")
    made.close()
    assert path.read_text() == "new"


def test_nothing_is_missing_at_the_end(short_path: Path) -> None:
    made = SocketFile(str(short_path / "a.ws"), 0o660, None)
    shutil.rmtree(short_path)
    made.close()
    short_path.mkdir()


def test_a_live_socket_is_taken_over(short_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(short_path / "a.ws")
    first = SocketFile(path, 0o660, None)
    assert not caplog.text
    second = SocketFile(path, 0o664, None)
    assert f"{path}: taken over from another producer" in caplog.text
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o664
    first.socket.accept()[0].close()  # the probe whether a producer listens
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        second.socket.accept()[0].close()
        with pytest.raises(BlockingIOError):
            first.socket.accept()
    first.close()  # not its file any more
    assert os.listdir(short_path) == ["a.ws"]
    second.close()
    assert os.listdir(short_path) == []


def test_whoever_connects_during_a_takeover_finds_somebody(short_path: Path) -> None:
    path = str(short_path / "a.ws")
    socket_files = [SocketFile(path, 0o660, None)]
    is_over = threading.Event()
    connected = 0
    refused: list[OSError] = []

    def connect_all_the_time() -> None:
        nonlocal connected
        while not is_over.is_set():
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(path)
                    connected += 1
                except OSError as error:
                    refused.append(error)

    def accept_all(file: SocketFile) -> None:
        while True:
            try:
                file.socket.accept()[0].close()
            except BlockingIOError:
                return

    thread = threading.Thread(target=connect_all_the_time)
    thread.start()
    try:
        for round in range(100):
            wait_for(lambda n=round: connected > n * 5)  # type: ignore[misc]
            socket_files.append(SocketFile(path, 0o660, None))
            for file in socket_files:
                accept_all(file)
    finally:
        is_over.set()
        thread.join()
        for file in socket_files:
            file.close()
    assert connected > 500
    assert refused == []


def test_left_overs_of_a_start_that_died_are_cleared(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short_path / ".apachews-0123abcd"))
    (short_path / ".apachews-not-ours").touch()
    SocketFile(str(short_path / "a.ws"), 0o660, None).close()
    assert os.listdir(short_path) == [".apachews-not-ours"]


def test_a_path_that_just_fits_is_served(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = short_path / ("d" * (107 - 5 - len(str(short_path))))
    deep.mkdir()
    monkeypatch.chdir(short_path)
    for path in (str(deep / "a.w"), "relative.ws", "x" * 107):
        assert len(path) <= 107
        made = SocketFile(path, 0o664, os.getegid())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o664
        made.close()
        assert not os.path.exists(path)


def test_impossible_paths_are_named(short_path: Path) -> None:
    with pytest.raises(ServerError, match="longer than the 107 bytes"):
        SocketFile(str(short_path / ("x" * 108)), 0o660, None)
    with pytest.raises(FileNotFoundError, match="missing"):
        SocketFile(str(short_path / "missing" / "a.ws"), 0o660, None)


def test_a_file_system_without_locks(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("apachews._listening.socket_file.fcntl.flock", flock)
    number = errno.EBADF  # NFS
    made = SocketFile(str(short_path / "a.ws"), 0o600, None)
    made.close()
    assert not os.listdir(short_path)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        SocketFile(str(short_path / "a.ws"), 0o600, None)


def test_nobody_keeps_a_producer_from_starting_by_a_lock(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_file, "LOCK_TIMEOUT_S", 0.05)
    (short_path / ".apachews-0123abcd").touch()
    stranger = os.open(short_path, os.O_RDONLY)
    fcntl.flock(stranger, fcntl.LOCK_SH)
    made = SocketFile(str(short_path / "a.ws"), 0o600, None)
    assert made.is_in_place()
    made.close()
    # Without the lock it leaves foreign names alone; the next start removes them.
    assert sorted(os.listdir(short_path)) == [".apachews-0123abcd", "a.ws"]
    os.close(stranger)
    SocketFile(made.path, 0o600, None).close()
    assert not os.listdir(short_path)


def test_the_file_is_removed_from_wherever_the_program_has_gone(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_path)
    made = SocketFile("a.ws", 0o600, None)
    monkeypatch.chdir("/")
    assert made.is_in_place()
    made.close()
    assert not os.listdir(short_path)


def test_without_a_descriptor_the_file_stays(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = SocketFile(str(short_path / "a.ws"), 0o600, None)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (made.socket.fileno() + 1, limits[1]))
    fillers = []
    try:
        while True:
            fillers.append(os.dup(made.socket.fileno()))
    except OSError:
        made.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in fillers:
            os.close(fd)
    assert made.socket.fileno() == -1
    assert "cannot remove the socket file: Too many open files" in caplog.text


def test_of_two_that_start_at_once_one_serves(short_path: Path) -> None:
    path = str(short_path / "a.ws")
    outcomes: list[object] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        try:
            outcomes.append(SocketFile(path, 0o660, None, exclusive=True))
        except SocketInUse as error:
            outcomes.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (served,) = [outcome for outcome in outcomes if isinstance(outcome, SocketFile)]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    served.close()


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.EACCES, PermissionError, "may not create a file in {place}; run the program as its"),
        (errno.EROFS, OSError, "a systemd unit needs ReadWritePaths={place}, or take the path"),
    ],
)
def test_an_error_of_the_directory_says_what_to_do(
    number: int, kind: type[OSError], advice: str, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SocketFile, beside: str, mode: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(SocketFile, "_make", fail)
    path = str(short_path / "a.ws")
    with pytest.raises(kind) as raised:
        SocketFile(path, 0o660, None)
    assert raised.value.errno == number
    assert raised.value.filename == path
    assert str(raised.value).startswith(f"[Errno {number}] {os.strerror(number)}: ")
    assert advice.format(place=short_path) in str(raised.value)
    assert "Server(sys.argv[1])" in str(raised.value)


def test_a_directory_that_does_not_exist_is_to_be_created(short_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        SocketFile(f"{short_path}/absent/a.ws", 0o660, None)
    assert "create the directory: install -d -o " in str(raised.value)
    assert f" {short_path}/absent: " in str(raised.value)


def test_a_group_that_the_user_is_not_in(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, group: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(shutil, "chown", fail)
    with pytest.raises(PermissionError, match="is not a member of the group wheel"):
        SocketFile(str(short_path / "a.ws"), 0o660, "wheel")


def test_an_error_of_another_kind_stays_as_it_is(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SocketFile, beside: str, mode: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SocketFile, "_make", fail)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '/"):
        SocketFile(str(short_path / "a.ws"), 0o660, None)
