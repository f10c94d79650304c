"""``apachews run``: what it makes of its arguments, of sources and of logs."""

from __future__ import annotations

import io
import json
import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from apachews_tools.cli import main, run
from apachews_tools.cli.command import CommandError
from apachews_tools.cli.log_lines import (
    MAX_LINE_BYTES,
    FileFollower,
    LineSplitter,
    LogPrinter,
    brief,
)
from apachews_tools.cli.run import find_producers, make_page
from apachews_tools.dev.program import Producer
from apachews_tools.dev.source_watch import MAX_FILES, SourceWatch
from apachews_tools.httpd import private_apache, python_home
from apachews_tools.httpd.private_apache import ApacheError

ROOT = Path(__file__).parents[2]
DOCROOT = Path("/site")


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    path = tmp_path / "chat.py"
    path.write_text("pass\n")
    return path


def test_programs_and_paths_become_producers(chat: Path) -> None:
    assert find_producers([str(chat)], [f"/ws/b.ws={chat}"], DOCROOT) == [
        Producer("chat", chat, DOCROOT / "chat.ws"),
        Producer("ws/b", chat, DOCROOT / "ws" / "b.ws"),
    ]


def test_configurations_of_channels_become_producers(chat: Path) -> None:
    live = chat.with_name("live.toml")
    live.touch()
    assert find_producers([], [], DOCROOT, [str(live)]) == [
        Producer("live", live, DOCROOT / "live.ws", module="apachews.channels")
    ]
    assert find_producers([], [f"/ws/b.ws={live}"], DOCROOT) == [
        Producer("ws/b", live, DOCROOT / "ws" / "b.ws", module="apachews.channels")
    ]
    with pytest.raises(CommandError, match=r"none\.toml: No such file"):
        find_producers([], [], DOCROOT, ["none.toml"])


@pytest.mark.parametrize(
    ("programs", "mappings", "said"),
    [
        ([], [], "no program given"),
        (["none.py"], [], "none.py: No such file"),
        (["."], [], r"\.: Is a directory"),
        (["CHAT", "CHAT"], [], "have the same path /chat.ws; use --path"),
        (["CHAT"], ["/chat.ws=CHAT"], "use --path"),
        ([], ["/x=CHAT"], "ends in .ws"),
        ([], ["x.ws=CHAT"], "/x.ws=program.py"),
        ([], ["/x.ws="], "/x.ws=program.py"),
        ([], ["/../x.ws=CHAT"], "leaves the document root"),
        ([], [f"/{'é' * 50}.ws=CHAT"], "must not exceed 107 bytes"),
    ],
)
def test_what_cannot_be_a_producer_is_named(
    chat: Path, programs: list[str], mappings: list[str], said: str
) -> None:
    with pytest.raises(CommandError, match=said):
        find_producers(
            [text.replace("CHAT", str(chat)) for text in programs],
            [text.replace("CHAT", str(chat)) for text in mappings],
            DOCROOT,
        )


def test_the_page_has_the_paths(tmp_path: Path) -> None:
    paths = ["/a.ws", "/</script><b>.ws"]
    page = (make_page(tmp_path / "page", paths) / "index.html").read_text()
    found = re.search(r'id="sockets">(.*)</script>', page)
    assert found
    assert "<" not in found[1]
    assert json.loads(found[1]) == paths


def test_what_is_missing_or_wrong_is_said(
    chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Path:
        raise ApacheError("mod_wsgi is not installed")

    assert main(["run", str(chat), "--docroot", str(tmp_path / "none")]) == 1
    assert "the directory does not exist" in capsys.readouterr().err
    monkeypatch.setattr(private_apache, "is_permitted", lambda *_: True)
    monkeypatch.setattr(private_apache, "unreadable_parts", lambda *_: [])
    monkeypatch.setattr(run, "python_home", lambda copy, before_file: Path(sys.prefix))
    monkeypatch.setattr(private_apache, "find_wsgi_module", fail)
    assert main(["run", str(chat)]) == 1
    assert capsys.readouterr().err == "apachews run: mod_wsgi is not installed\n"
    for ports in (["--port", "9", "--tls-port", "9"], ["--port", "8443", "--tls"]):
        assert main(["run", str(chat), *ports]) == 1
        assert (
            f"cannot both use port {ports[1]}; choose another with --tls-port"
            in capsys.readouterr().err
        )
    for name in ('a"b', "${PORT}", "a\\b", "a\nb"):
        (tmp_path / name).mkdir()
        assert main(["run", str(chat), "--docroot", str(tmp_path / name)]) == 1
        assert "has another meaning in Apache" in capsys.readouterr().err
    for option, said in (
        (["--port", "70000"], "argument --port: invalid"),
        (["--listen", "localhost"], "argument --listen: invalid"),
        (["--docroot", "\udcff"], r"argument --docroot: '\udcff' is not UTF-8"),
        (["\udcff.py"], r"'\udcff.py' is not UTF-8"),
        (["--path", "/x.ws=\udcff.py"], "is not UTF-8"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["run", str(chat), *option])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_missing_programs_of_apache_are_named_with_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ApacheError, match="apt-get install apache2-bin"):
        private_apache.find_httpd()
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(private_apache, "DEBIAN_WSGI_MODULE", tmp_path / "mod_wsgi.so")
    with pytest.raises(ApacheError, match="apt-get install libapache2-mod-wsgi-py3"):
        private_apache.find_wsgi_module()
    (tmp_path / "mod_wsgi.so-2.7").touch()
    (tmp_path / "mod_wsgi.so").symlink_to("mod_wsgi.so-2.7")
    with pytest.raises(
        ApacheError, match=r"is for Python 2\.7, but this is Python 3\.\d+: pip install"
    ):
        private_apache.find_wsgi_module()
    (tmp_path / "mod_wsgi.so").unlink()
    (tmp_path / "mod_wsgi.so").touch()
    assert private_apache.find_wsgi_module() == tmp_path / "mod_wsgi.so"


def test_an_environment_without_the_handler_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_home, "handler_in", lambda home: tmp_path / "apachews_handler")
    with pytest.raises(ApacheError, match=rf"not in {tmp_path}, .*pip install"):
        python_home.python_home(tmp_path / "copy")


# Root, and whom it runs programs as


def test_nothing_of_roots_environment_goes_to_another_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"TOKEN": "secret", "LC_TIME": "C", "TZ": "UTC", "HOME": "/x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(private_apache, "as_apache_user", dict)
    assert private_apache.environment() == dict(os.environ)
    monkeypatch.setattr(private_apache, "as_apache_user", lambda: {"user": 33})
    passed = private_apache.environment()
    assert passed["LC_TIME"] == "C"
    assert passed["PATH"] == os.environ["PATH"]
    assert passed["HOME"] == pwd.getpwnam(private_apache.APACHE_USER).pw_dir
    allowed = {"PATH", "LANG", "TZ", "TMPDIR", "HOME"}
    for names in (passed, private_apache._clean_environment()):
        assert {name for name in names if not name.startswith("LC_")} <= allowed


@pytest.mark.skipif(
    os.geteuid() != 0, reason="root only: other users cannot change the owner of a file"
)
def test_a_link_does_not_lead_to_whose_file_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    (tmp_path / "link").symlink_to("mine")
    run.give_to_apache(tmp_path / "link")
    assert (tmp_path / "mine").stat().st_uid == 0
    assert (tmp_path / "link").lstat().st_uid == private_apache.as_apache_user()["user"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root only: otherwise Apache is the user itself")
def test_the_copy_of_an_environment_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    handler = python_home.handler_in(home)
    handler.mkdir(parents=True)
    home.chmod(0o700)
    monkeypatch.setattr(sys, "prefix", str(home))
    # Not the running one: the interpreter may be below a home of mode 0700 itself.
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(
        python_home, "handler_in", lambda home: home / handler.relative_to(sys.prefix)
    )
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        copy = python_home.python_home(Path(root) / "copy")
        assert private_apache.unreadable_parts([copy, copy / handler.relative_to(home)]) == []
        handler.chmod(0o700)
        with pytest.raises(ApacheError, match=f"nor of a copy: chmod o\\+x {handler}, or"):
            python_home.python_home(Path(root) / "other")


# Signals

REMOVING = """
import os, shutil, signal, sys
from apachews_tools.cli.command import temporary_directory
inside, removing = map(int, sys.argv[1:])
remove = shutil.rmtree

def interrupted(path):
    for _ in range(2):
        os.kill(os.getpid(), removing)
    remove(path)

shutil.rmtree = interrupted
with temporary_directory("x-") as (path, signals):
    (path / "file").touch()
    if inside:
        os.kill(os.getpid(), inside)
    print("received", *signals.receive_nowait())
print("ended")
"""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("removing", ENDING)
@pytest.mark.parametrize("inside", [0, *ENDING])
def test_a_signal_interrupts_nothing_while_the_directory_exists(
    tmp_path: Path, inside: int, removing: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REMOVING, str(int(inside)), str(int(removing))],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert list(tmp_path.iterdir()) == []
    received = f"received {int(inside)}" if inside else "received"
    assert (done.returncode, done.stdout) == (0, f"{received}\nended\n"), done.stderr


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    done = subprocess.run(
        ["nohup", sys.executable, "-c", REMOVING, str(int(signal.SIGHUP)), "0"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "received\nended\n")
    assert list(tmp_path.iterdir()) == []


# A weak reference calls it, as those of the import system's locks do: Python discards every
# exception of such a callback, and so a KeyboardInterrupt.
IN_A_CALLBACK = """
import os, signal, sys, weakref
from pathlib import Path
from apachews_tools.cli import main, run
from apachews_tools.httpd import private_apache

class Lock:
    pass

def interrupted(copy, before_file):
    lock = Lock()
    reference = weakref.ref(lock, lambda _: os.kill(os.getpid(), int(sys.argv[2])))
    del lock
    if sys.argv[3:]:
        before_file()
    return Path(sys.prefix)

run.python_home = interrupted
run._require_readable = lambda *_: None
private_apache.find_wsgi_module = lambda: Path("mod_wsgi.so")
private_apache.PrivateApache.launch = lambda apache: sys.exit("started")
sys.exit(main(["run", sys.argv[1], "--port", "0"]))
"""


@pytest.mark.parametrize("while_copying", [[], ["copying"]])
@pytest.mark.parametrize("number", ENDING)
def test_a_signal_in_a_callback_ends_the_preparation(
    short_path: Path, chat: Path, number: int, while_copying: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_CALLBACK, str(chat), str(int(number)), *while_copying],
        env={**os.environ, "TMPDIR": str(short_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(short_path.iterdir()) == []


def test_ctrl_c_during_the_imports_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("import os\nos.kill(os.getpid(), 2)\n")
    for command in (["-m", "apachews"], [str(ROOT / "apachews_tools" / "cli" / "apachews")]):
        done = subprocess.run(
            [sys.executable, *command, "run"],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


# Sources


@pytest.fixture
def watch(chat: Path) -> Callable[[], list[str | None]]:
    """Return a function that looks three times: at a change, when it is settled, and again."""
    watch = SourceWatch(chat, [chat.parent / "other.py"])
    return lambda: [watch.changed() for _ in range(3)]


def test_a_change_is_told_once_when_it_is_settled(
    chat: Path, watch: Callable[[], list[str | None]]
) -> None:
    assert watch() == [None, None, None]
    chat.write_text("print()\n")
    assert watch() == [None, "chat.py", None]
    os.utime(chat, ns=(1, 1))
    assert watch() == [None, "chat.py", None]


def test_modules_beside_and_below_are_watched(
    tmp_path: Path, watch: Callable[[], list[str | None]]
) -> None:
    package = tmp_path / "package" / "deep"
    package.mkdir(parents=True)
    (package / "rooms.py").touch()
    assert watch() == [None, "package/deep/rooms.py", None]
    (package / "rooms.py").unlink()
    assert watch() == [None, "package/deep/rooms.py", None]


@pytest.mark.parametrize(
    "name",
    ["other.py", "notes.txt", ".hidden.py", "__pycache__/a.py", ".git/a.py", "venv/lib/a.py"],
)
def test_what_is_not_the_programs_is_not_watched(
    tmp_path: Path, watch: Callable[[], list[str | None]], name: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.startswith("venv"):
        (tmp_path / "venv" / "pyvenv.cfg").touch()
    path.touch()
    assert watch() == [None, None, None]


def test_a_program_that_is_replaced_or_gone_for_a_moment(
    chat: Path, watch: Callable[[], list[str | None]]
) -> None:
    beside = chat.with_suffix(".new")
    beside.write_text(chat.read_text())
    os.utime(beside, ns=(chat.stat().st_mtime_ns,) * 2)
    beside.replace(chat)  # another file of the same size and time
    assert watch() == [None, "chat.py", None]


def test_a_large_directory_is_not_watched_as_a_whole(tmp_path: Path, chat: Path) -> None:
    for number in range(MAX_FILES + 10):
        (tmp_path / f"a{number:05d}.py").touch()
    watch = SourceWatch(chat)
    (tmp_path / f"a{MAX_FILES + 5:05d}.py").write_text("x")
    assert [watch.changed(), watch.changed()] == [None, None]
    chat.write_text("x")
    assert [watch.changed(), watch.changed()] == [None, "chat.py"]


# Logs


def test_lines_are_cut_where_they_end() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"a\r\nb") == ["a"]
    assert splitter.feed(b"c\n\nd\xff") == ["bc", ""]
    assert splitter.feed(b"") == ["d\ufffd"]
    assert splitter.feed(b"") == []
    assert splitter.feed(b"x" * (MAX_LINE_BYTES + 1)) == ["x" * (MAX_LINE_BYTES + 1)]


def test_a_file_is_followed_from_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    follower = FileFollower(path)
    assert follower.read_lines() == []
    follower.skip()
    path.write_text("one\ntw")
    assert follower.read_lines() == ["one"]
    with path.open("a") as file:
        file.write("o\n")
    assert follower.read_lines() == ["two"]
    with path.open("a") as file:
        file.write("three\n")
    follower.skip()
    assert follower.read_lines() == []


def test_every_line_has_the_name_of_whose_it_is() -> None:
    stream = io.StringIO()
    printer = LogPrinter(stream, ["echo", "apache"])
    printer.print("echo", "hello")
    printer.print("apache", "no", "31")
    assert stream.getvalue() == "echo   | hello\napache | no\n"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "[Mon Nov 23 07:48:35.680690 2026] [wsgi:info] [pid 1:tid 2] [client ::1] closed",
            "[wsgi:info] [client ::1] closed",

        ),
        ("[Mon Nov 23 07:48:35.0 2026] [wsgi:info] [pid 1] mod_wsgi (pid=1): Python", None),
        ("[Mon Nov 23 07:48:35.0 2026] [core:notice] [pid 1] AH00094: Command", None),
        ("[Mon Nov 23 07:48:35.0 2026] [wsgi:error] [pid 1] Traceback", "[wsgi:error] Traceback"),
        ("of another form", "of another form"),
    ],
)  # fmt: skip
def test_the_error_log_is_shortened(line: str, shown: str | None) -> None:
    found = brief(line, is_verbose=False)
    assert (found and found[0]) == shown
    assert brief(line, is_verbose=True)
    assert (found and found[1]) == ("31" if "error" in line else None)
