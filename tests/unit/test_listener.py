"""apachews.listener: making the socket file, and what it refuses."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from apachews.exceptions import NotASocket, ServerError, SocketInUse
from apachews.listener import SocketFile


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
    assert not os.path.exists(made.path)


def test_a_stale_socket_is_replaced(short_path: Path) -> None:
    path = str(short_path / "a.ws")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    SocketFile(path, 0o660, None).close()


def test_a_live_socket_is_refused_even_with_a_full_backlog(short_path: Path) -> None:
    path = str(short_path / "a.ws")
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as waiting:
        live.bind(path)
        live.listen(0)
        waiting.connect(path)
        with pytest.raises(SocketInUse, match=r"a\.ws"):
            SocketFile(path, 0o660, None)
        assert os.path.exists(path)


def test_anything_else_is_left_alone(short_path: Path) -> None:
    path = short_path / "a.ws"
    path.write_text("precious")
    with pytest.raises(NotASocket, match="move it away"):
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


def test_impossible_paths_are_named(short_path: Path) -> None:
    with pytest.raises(ServerError, match="longer than the 107 bytes"):
        SocketFile(str(short_path / ("x" * 108)), 0o660, None)
    with pytest.raises(FileNotFoundError, match="missing"):
        SocketFile(str(short_path / "missing" / "a.ws"), 0o660, None)


def test_of_two_that_start_at_once_one_serves(short_path: Path) -> None:
    path = str(short_path / "a.ws")
    outcomes: list[object] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        try:
            outcomes.append(SocketFile(path, 0o660, None))
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
