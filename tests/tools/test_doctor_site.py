"""``apachews doctor``: socket files and their producers."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from apachews._listening import loopback
from apachews_tools.doctor.finding import Level
from apachews_tools.doctor.site import check_socket, sockets_in
from apachews_tools.httpd.permissions import Account

from ..support.site import IS_ROOT
from .test_doctor import SOMEBODY, levels


def test_sockets_are_found_below_a_directory(short_path: Path) -> None:
    (short_path / "ws").mkdir()
    (short_path / "file.ws").touch()
    for name in ("b.ws", "ws/a.ws", "ws/c.sock"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(short_path / name))
    (short_path / "link.ws").symlink_to("ws/c.sock")
    names = [path.removeprefix(f"{short_path}/") for path in sockets_in(str(short_path))]
    assert names == ["b.ws", "link.ws", "ws/a.ws"]
    assert len(sockets_in(str(short_path), limit=1)) == 1
    assert sockets_in(str(short_path / "absent")) == []


def test_a_backlog_that_is_full(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apachews_tools.doctor.site.CONNECT_TIMEOUT_S", 0.05)
    short_path.chmod(0o755)
    path = short_path / "a.ws"
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as first:
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen(0)
        first.connect(str(path))
        found = levels(check_socket(str(path), SOMEBODY))
    assert found == {"socket": "ok", "socket-permission": "ok", "producer": "error"}


@pytest.mark.skipif(not IS_ROOT, reason="root only: it makes links of other users")
def test_a_link_of_another_user(short_path: Path) -> None:
    short_path.chmod(0o755)
    real = short_path.resolve()
    (real / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(real / "run" / "a.ws"))
        os.chmod(real / "run" / "a.ws", 0o666)
        sock.listen()
        (real / "alias").symlink_to("run/../run")
        for name, target in (("x.ws", "alias/a.ws"), ("y.ws", f"{real}/x.ws")):
            (real / name).symlink_to(target)
        path = str(real / "y.ws")
        fine = {"socket": "ok", "socket-permission": "ok", "producer": "ok"}
        assert levels(check_socket(path, SOMEBODY)) == fine
        for name in ("y.ws", "x.ws", "alias"):
            os.chown(real / name, 23001, 23001, follow_symlinks=False)
            *_, found = check_socket(path, SOMEBODY)
            assert (found.id, found.level) == ("socket-link", Level.ERROR)
            assert f"the symbolic link {real / name} to {real}/run/a.ws" in found.text
            assert found.remedy.startswith("only if this site")
            assert f"Define APACHEWS_ENDPOINT_DIRECTORIES {real}/run" in found.remedy
            assert levels(check_socket(path, SOMEBODY, True, [f"{real}/alias"])) == fine
            os.chown(real / name, 0, 0, follow_symlinks=False)
        os.chown(real / "y.ws", 23001, 23001, follow_symlinks=False)
        os.chown(real / "run" / "a.ws", 23001, 23001)
        assert levels(check_socket(path, SOMEBODY)) == fine


def test_a_path_with_more_components_than_the_handler_follows(short_path: Path) -> None:
    short_path.chmod(0o755)
    real = short_path.resolve()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(real / "a.ws"))
        os.chmod(real / "a.ws", 0o666)
        sock.listen()
        # The link's own path, and its target.
        own = len((real / "link.ws").parts)
        for components, level in ((64, None), (65, "error")):
            target = "./" * (components - own - 1) + "a.ws"
            (real / "link.ws").unlink(missing_ok=True)
            (real / "link.ws").symlink_to(target)
            findings = list(check_socket(str(real / "link.ws"), SOMEBODY))
            assert levels(findings).get("socket-link") == level
        assert findings[-1].text.endswith(f"has {components} components, with symbolic links")
        assert str(real / "a.ws") in findings[-1].remedy
        # Without links there is no limit.
        deep = real / ("d/" * 70)
        deep.mkdir(parents=True)
        (real / "a.ws").rename(deep / "a.ws")
        assert "socket-link" not in levels(check_socket(str(deep / "a.ws"), SOMEBODY))


def test_a_producer_at_a_path_too_long_for_a_socket(short_path: Path) -> None:
    short_path.chmod(0o755)
    directory = short_path / ("d" * 100)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(short_path / "a.ws"))
        sock.listen()
        moved = (short_path / "a.ws").rename(directory / "a.ws")
        moved.chmod(0o666)
        assert levels(check_socket(str(moved), SOMEBODY))["producer"] == "ok"


LOOPBACK_FILE = loopback.Address(9, bytes(32)).encode()


def test_a_loopback_socket(short_path: Path) -> None:
    path = short_path / "a.ws"
    path.write_bytes(LOOPBACK_FILE)
    me = Account("me", os.geteuid(), frozenset({os.getegid()}))
    path.chmod(0o660)
    found = levels(check_socket(str(path), me))
    assert found == {"socket": "ok", "socket-permission": "ok", "producer": "error"}
    assert sockets_in(str(short_path)) == [str(path)]
    path.chmod(0o664)
    _, found_mode = check_socket(str(path), me)
    assert (found_mode.id, found_mode.level) == ("socket-permission", Level.ERROR)
    assert found_mode.remedy.startswith(f"chmod o= {path}")
    path.chmod(0o600)
    short_path.chmod(0o755)
    _, found_reader, _ = check_socket(str(path), SOMEBODY)
    assert (found_reader.id, found_reader.level) == ("socket-permission", Level.ERROR)
    assert 'transport="loopback", group=<a group of somebody>' in found_reader.remedy


def test_a_loopback_socket_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> tuple[bytes, int]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(loopback, "read_file", refuse)
    path = tmp_path / "a.ws"
    path.write_bytes(LOOPBACK_FILE)
    path.chmod(0o660)
    me = Account("me", os.geteuid(), frozenset({os.getegid()}))
    found = levels(check_socket(str(path), me))
    assert found == {"socket": "ok", "socket-permission": "ok", "privileges": "warning"}
    path.write_bytes(LOOPBACK_FILE[1:] + bytes(10))
    assert levels(check_socket(str(path), me)) == {"socket": "error"}


def test_a_socket_that_lies_beside_is_named(short_path: Path) -> None:
    (short_path / "other.ws").touch()
    for name in ("echo.ws", "numbers.ws"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(short_path / name))
    for name, near in (
        ("echo", "echo.ws"),
        ("ecko.ws", "echo.ws"),
        ("numbrs.ws", "numbers.ws"),
        ("othr.ws", ""),
        ("x.ws", ""),
    ):
        (found,) = check_socket(str(short_path / name), SOMEBODY)
        assert found.id == "socket"
        assert (f"connect to {near} beside it" in found.remedy) is bool(near)
        assert "start the producer" in found.remedy


def test_a_directory_for_sockets_is_to_be_made(short_path: Path) -> None:
    me = Account("me", os.geteuid() or 40_000, frozenset())
    short_path.chmod(0o755)
    (found,) = check_socket(str(short_path / "a.ws"), SOMEBODY)
    own = f"{short_path}/ws"
    assert f"install -d -o somebody {own}, and Server('{own}/a.ws')" in found.remedy
    (found,) = check_socket(str(short_path / "b" / "a.ws"), SOMEBODY)
    assert found.remedy.startswith(f"install -d -o somebody {short_path}/b, and start the producer")
    short_path.chmod(0o777)
    (found,) = check_socket(str(short_path / "a.ws"), me)
    assert found.remedy == f"start the producer, with Server('{short_path}/a.ws')"


@pytest.mark.parametrize("name", ["index.html", "passwd", ".", "directory.ws"])
def test_nothing_that_a_url_leads_to_is_to_be_removed(name: str, tmp_path: Path) -> None:
    (tmp_path / "directory.ws").mkdir()
    for file in ("index.html", "passwd"):
        (tmp_path / file).touch()
    (found,) = check_socket(str(tmp_path / name), SOMEBODY)
    assert (found.id, found.level) == ("socket", Level.ERROR)
    assert found.remedy == "check the path: the name of a socket ends in .ws"


def test_a_file_in_the_way_of_a_socket_is_to_be_moved(tmp_path: Path) -> None:
    path = tmp_path / "$(reboot).ws"
    path.touch()
    (found,) = check_socket(str(path), SOMEBODY)
    assert found.remedy.startswith(f"move the file '{path}' away, and start the producer")
