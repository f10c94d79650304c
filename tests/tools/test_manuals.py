"""Man pages and completions: complete, valid, and what real shells make of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews_tools.cli import COMMANDS, make_parser
from apachews_tools.dev.completion import commands_of, options_of
from apachews_tools.dev.manuals import files, main

from ..support.terminal import in_terminal

PAGES = ["apachews.1", *(f"apachews-{name}.1" for name in COMMANDS)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("manuals")
    assert main([str(place)]) == 0
    return place


def run(*command: str | Path, **env: str) -> str:
    """Run a program that must not complain; return its output."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", **env},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def shown(page: Path) -> str:
    """Return a page as man(1) shows it, without hyphenation and styles."""
    text = run("man", "-l", "--nh", "--nj", str(page), MANWIDTH="1000", MANPAGER="cat", TERM="dumb")
    return re.sub(r".\x08", "", text)


def test_the_files_are_those_of_a_package(directory: Path) -> None:
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        [*PAGES, "apachews.bash", "_apachews", "apachews.fish"]
    )


def test_the_files_do_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = files()
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert files() == before


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main([str(tmp_path / "absent")])


@pytest.mark.parametrize("page", PAGES)
def test_troff_has_no_warning(page: str, directory: Path) -> None:
    text = (directory / page).read_text()
    assert text.isascii()
    assert run("groff", "-man", "-ww", "-Tutf8", "-z", directory / page) == ""
    assert run("man", "-l", "--warnings=w", str(directory / page))


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_option_stands_on_its_page(name: str, directory: Path) -> None:
    parser = make_parser()
    if name:
        parser = commands_of(parser)[name].parser
    text = shown(directory / (f"apachews-{name}.1" if name else "apachews.1"))
    # What argparse itself knows, without the reader of the parsers that writes the page.
    for action in parser._actions:
        if action.option_strings:
            line = rf"^ +{re.escape(', '.join(action.option_strings))}( |$)"
            assert re.search(line, text, re.MULTILINE), (action.option_strings, text)
    for title, options in options_of(parser):
        for option in options:
            assert " ".join(option.help.split()) in text, (title, option)
    # The examples, line by line.
    for line in (parser.epilog or "").splitlines():
        assert line.strip() in text or not line.startswith("  "), (line, text)


def test_the_first_page_leads_to_the_others(directory: Path) -> None:
    text = shown(directory / "apachews.1")
    for name, command in COMMANDS.items():
        assert f"apachews-{name}(1)" in text
        assert command.SUMMARY in text
        assert "apachews(1)" in shown(directory / f"apachews-{name}.1")
    assert re.search(r"^NAME\n +apachews - WebSockets served", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("shell", "name"), [("bash", "apachews.bash"), ("zsh", "_apachews"), ("fish", "apachews.fish")]
)
def test_the_shell_understands_its_file(shell: str, name: str, directory: Path) -> None:
    assert run(shell, "-n", directory / name) == ""


def test_the_module_is_a_command(tmp_path: Path) -> None:
    run(sys.executable, "-m", "apachews_tools.dev.manuals", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(files())


# What is typed, before and after the tab key.
TYPED = [
    ("apachews doc", "apachews doctor "),
    ("apachews run --tls-p", "apachews run --tls-port "),
    ("apachews run --mpm pre", "apachews run --mpm prefork "),
    ("apachews run some_pro", "apachews run some_program.py "),
    ("apachews run --docroot some_dir", "apachews run --docroot some_directory/"),
    ("apachews connect --caf", "apachews connect --cafile "),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "some_program.py").touch()
    (tmp_path / "some_directory").mkdir()
    return tmp_path


def completed(shell: list[str], start: str, typed: str, home: Path) -> Iterator[str]:
    """Type a line and the tab key into a shell; yield what the prompt shows after it."""
    env = {**os.environ, "HOME": str(home), "PS1": "$ ", "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    with in_terminal(
        "-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])", *shell, env=env
    ) as terminal:
        terminal.type(f"cd {home}; {start}; PS1='ready> '\n")
        terminal.wait_for_row("^ready> ?$")
        terminal.type(f"{typed}\t")
        # The mark shows where the cursor is, and that the shell has done its work.
        terminal.type("|")
        yield terminal.wait_for_row(r"^ready> (apachews .*)\|$")[1]
        terminal.type("\x15exit\n")
        terminal.wait()


@pytest.mark.parametrize(("typed", "expected"), TYPED)
def test_bash_completes(typed: str, expected: str, directory: Path, home: Path) -> None:
    start = f". {directory}/apachews.bash"
    (found,) = completed(["bash", "--norc", "--noprofile", "-i"], start, typed, home)
    assert found == expected


@pytest.mark.parametrize(("typed", "expected"), TYPED)
def test_zsh_completes(typed: str, expected: str, directory: Path, home: Path) -> None:
    # -u: the files may belong to another user than the shell.
    start = f"fpath=({directory} $fpath); autoload -Uz compinit; compinit -u -D"
    (found,) = completed(["zsh", "-f", "-i"], start, typed, home)
    # zsh removes the slash and the space that it has added, because another character follows.
    assert found.rstrip(" /") == expected.rstrip(" /")


@pytest.mark.parametrize(("typed", "expected"), TYPED)
def test_fish_completes(typed: str, expected: str, directory: Path, home: Path) -> None:
    script = f"source {directory}/apachews.fish; cd {home}; complete -C '{typed}'"
    found = run("fish", "--no-config", "-c", script, HOME=str(home))
    start = typed.rpartition(" ")[0]
    words = [f"{start} {line.partition(chr(9))[0]}" for line in found.splitlines()]
    assert words == [expected.rstrip()]
