"""apachews_handler.endpoints.endpoint_access: which links may lead to which files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apachews_handler.endpoints import endpoint_access
from apachews_handler.endpoints.endpoint_access import MAX_STEPS, opened
from apachews_handler.exceptions import Refusal
from apachews_handler.native import syscalls

from ..support.site import IS_ROOT

as_root = pytest.mark.skipif(not IS_ROOT, reason="root only: it makes links of other users")
ANN, BOB = 23001, 23002


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path.resolve()


def give(path: Path, owner: int) -> Path:
    os.chown(path, owner, owner, follow_symlinks=False)
    return path


def link(path: Path, target: str | Path, owner: int) -> Path:
    path.symlink_to(target)
    return give(path, owner)


def file(path: Path, owner: int) -> Path:
    path.touch()
    return give(path, owner)


def reached(path: Path | str, directories: tuple[str, ...] = ()) -> str:
    """Return the file that is opened, by its content."""
    with opened(str(path), directories) as name:
        return os.path.realpath(name)


def refused(path: Path | str, directories: tuple[str, ...] = ()) -> str:
    """Return what the log says of a refusal."""
    with pytest.raises(Refusal) as caught, opened(str(path), directories):
        pass
    assert caught.value.status.startswith("403")
    assert str(path) not in caught.value.told
    return caught.value.logged


def test_without_links_nothing_is_looked_at_twice(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_access, "_walk", None)
    (base / "a.ws").touch()
    assert reached(base / "a.ws") == str(base / "a.ws")


@as_root
@pytest.mark.parametrize(
    ("link_owner", "file_owner", "is_allowed"),
    [(ANN, ANN, True), (0, ANN, True), (0, 0, True), (ANN, BOB, False), (ANN, 0, False)],
)
def test_the_owner_of_a_link_decides(
    base: Path, link_owner: int, file_owner: int, is_allowed: bool
) -> None:
    target = file(base / "b.ws", file_owner)
    last = link(base / "a.ws", "b.ws", link_owner)
    (base / "dir").mkdir()
    file(base / "dir" / "c.ws", file_owner)
    inner = link(base / "d", base / "dir", link_owner) / "c.ws"
    if is_allowed:
        assert reached(last) == str(target)
        assert reached(inner) == str(base / "dir" / "c.ws")
        return
    logged = refused(last)
    for part in (
        f"'{last}'",
        f"'{target}'",
        str(ANN),
        f"Define APACHEWS_ENDPOINT_DIRECTORIES {base}",
    ):
        assert part in logged
    assert f"'{base / 'd'}'" in refused(inner)


@as_root
def test_every_link_of_a_chain_counts(base: Path) -> None:
    file(base / "end.ws", ANN)
    link(base / "three", "end.ws", ANN)
    link(base / "two", base / "three", 0)
    assert reached(link(base / "one", "two", ANN)) == str(base / "end.ws")
    assert f"'{base / 'bad'}'" in refused(link(base / "bad", "two", BOB))
    assert f"'{base / 'bad'}'" in refused(link(base / "good", "bad", ANN))


@as_root
def test_a_directory_of_the_servers_is_open(base: Path) -> None:
    for name in ("run", "running", "run/deep"):
        (base / name).mkdir()
        file(base / name / "a.ws", BOB)
    (base / "alias").symlink_to("run")
    for directories in ((f"{base}/run",), ("/none", f"{base}/run/"), (f"{base}/alias",)):
        for number, target in enumerate(("run/a.ws", "run/deep/a.ws", "alias/a.ws")):
            made = link(base / f"{number}.ws", target, ANN)
            assert reached(made, directories).endswith("a.ws")
            made.unlink()
        refused(link(base / "x.ws", "running/a.ws", ANN), directories)
        (base / "x.ws").unlink()
        refused(link(base / "x.ws", "run/../running/a.ws", ANN), directories)
        (base / "x.ws").unlink()
    assert reached(link(base / "y.ws", "running/a.ws", ANN), ("/",))


@pytest.mark.parametrize("pattern", ["{0}//a.ws", "{0}/./a.ws", "{0}/d/../a.ws", "/../{0}/a.ws"])
def test_a_path_written_otherwise_has_no_link(base: Path, pattern: str) -> None:
    (base / "d").mkdir()
    (base / "a.ws").touch()
    assert reached(pattern.format(base)) == str(base / "a.ws")


@pytest.mark.parametrize("name", ["grün.ws", "\udcff.ws", "a b\n.ws", "x (deleted)"])
def test_names_are_bytes(base: Path, name: str) -> None:
    (base / name).touch()
    (base / "link.ws").symlink_to(name)
    with opened(str(base / name), ()) as direct, opened(str(base / "link.ws"), ()) as linked:
        assert os.path.samefile(direct, base / name)
        assert os.path.samefile(linked, base / name)


def test_the_name_stands_for_the_file_whatever_becomes_of_the_path(base: Path) -> None:
    (base / "a.ws").write_text("old")
    with opened(str(base / "a.ws"), ()) as name:
        (base / "b.ws").write_text("new")
        (base / "b.ws").rename(base / "a.ws")
        assert Path(name).read_text() == "old"


def test_a_file_that_is_replaced_while_it_is_opened(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor's path ends with " (deleted)" then; the new file is the one wanted."""
    path = base / "a.ws"
    path.write_text("old")
    open_direct = syscalls.open_direct

    def replaced(data: bytes, *, keeps_gil: bool) -> int | None:
        fd = open_direct(data, keeps_gil=keeps_gil)
        (base / "b.ws").write_text("new")
        (base / "b.ws").rename(path)
        return fd

    monkeypatch.setattr(syscalls, "open_direct", replaced)
    with opened(str(path), ()) as name:
        assert Path(name).read_text() == "new"


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda base: None, errno.ENOENT),
        (lambda base: (base / "a").symlink_to("none"), errno.ENOENT),
        (lambda base: (base / "a").symlink_to("b/c") or (base / "b").touch(), errno.ENOTDIR),
    ],
)
def test_what_cannot_be_opened(base: Path, make: object, number: int) -> None:
    assert callable(make)
    make(base)
    with pytest.raises(OSError, match=os.strerror(number)) as caught, opened(str(base / "a"), ()):
        pass
    assert caught.value.errno == number


def test_a_walk_has_a_budget_of_steps(base: Path) -> None:
    (base / "a.ws").touch()
    (base / "link").symlink_to("./" * 40 + "a.ws")
    assert reached(base / "link") == str(base / "a.ws")
    for number, target in enumerate(("./" * MAX_STEPS + "a.ws", "/" * 4000 + "a.ws", "loop2")):
        (base / f"loop{number}").symlink_to(target)
        with pytest.raises(Refusal, match="too many symbolic links"):
            reached(base / f"loop{number}")


def counted_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the name of each system call."""
    calls: list[str] = []

    def count(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object) -> object:
            calls.append(name)
            return function(*arguments)

        return counted

    for name in ("_open", "_openat", "_close", "_readlink", "_readlinkat", "_statx", "_syscall"):
        monkeypatch.setattr(syscalls, name, count(name, getattr(syscalls, name)))
    return calls


@pytest.mark.parametrize("target", ["a/../", "./", "//"])
@pytest.mark.parametrize("ends_in", ["a socket", "nothing"])
def test_a_maze_of_links_costs_a_bounded_number_of_system_calls(
    base: Path, monkeypatch: pytest.MonkeyPatch, target: str, ends_in: str
) -> None:
    """38 links: the kernel follows these, and takes 65,000 steps."""
    links, size = 38, 4000 // len(target)
    (base / "a").mkdir()
    for number in range(links):
        (base / str(number)).symlink_to(target * size + str(number + 1))
    if ends_in == "a socket":
        (base / str(links)).touch()
    calls = counted_calls(monkeypatch)
    for number in range(links):
        calls.clear()
        with pytest.raises(Refusal, match="too many symbolic links"):
            reached(base / str(number))
        assert len(calls) <= 7 * MAX_STEPS


def test_many_links_within_the_budget_cost_a_bounded_number_of_system_calls(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short links, each of which takes most calls."""
    links = MAX_STEPS - len(base.parts) - 2
    (base / "0").touch()
    for number in range(links):
        (base / str(number + 1)).symlink_to(str(number))
    calls = counted_calls(monkeypatch)
    assert reached(base / str(links)) == str(base / "0")
    assert 3 * links <= len(calls) <= 7 * MAX_STEPS


def test_without_openat2_the_path_is_walked(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "open_direct", lambda path, keeps_gil: None)
    (base / "a.ws").touch()
    (base / "link").symlink_to("a.ws")
    for path in (base / "a.ws", base / "link"):
        assert reached(path) == str(base / "a.ws")
    with pytest.raises(FileNotFoundError):
        reached(base / "none.ws")


@pytest.mark.parametrize("call", ["open_entry", "target_of", "owner_of"])
def test_a_call_that_fails_leaves_no_descriptor(
    base: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (base / "a.ws").touch()
    (base / "link.ws").symlink_to("a.ws")
    monkeypatch.setattr(syscalls, call, fail)
    with pytest.raises(OSError, match="Input/output"):
        reached(base / "link.ws")


def test_without_proc_it_says_what_to_mount(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> bytes:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    (base / "a.ws").touch()
    monkeypatch.setattr(syscalls, "path_of", fail)
    with pytest.raises(Refusal, match="mount /proc") as caught, opened(str(base / "a.ws"), ()):
        pass
    assert caught.value.status.startswith("500")
