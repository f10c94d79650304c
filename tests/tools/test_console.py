"""Standard input and output of a command; the commands' own tests cover the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from ..conftest import wait_for
from ..support.producers import ROOT
from ..support.terminal import in_terminal

# Shows each line that it reads, a long one at SIGUSR1, and at the line "end" writes and ends
# at once.
LINES = """
import asyncio, signal, sys
from apachews_tools.cli.event_loop import first_result, run_until_signal
from apachews_tools.terminal.console import Console

async def main():
    console = Console()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, console.show, "x" * 100_000)
    await first_result(read(console), write(console))
    console.note("ended")

async def read(console):
    async for line in console.lines():
        console.show(f"read {line!r}")
        if line == "end":
            for number in range(100):
                console.show(f"line {number}")
            return

async def write(console):
    await asyncio.Event().wait()

run_until_signal(main())
"""
# The same without prompt_toolkit.
PLAIN = "import sys; sys.modules['prompt_toolkit'] = None\n" + LINES


# The same, and a program after it that takes the input.
SHELL = LINES + "\nprint('shell', flush=True); sys.stdin.read()\n"


def read_all(stdin: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", LINES],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes("a\r\n\nü\nrest".encode())
    with open(tmp_path / "lines") as file:
        done = read_all(file.fileno())
    assert done.stdout.splitlines() == ["read 'a'", "read ''", "read 'ü'", "read 'rest'"]
    assert (done.returncode, done.stderr) == (0, "ended\n")


def test_the_null_device_has_no_lines() -> None:
    done = read_all(subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "ended\n")


def test_output_just_before_the_end_is_shown() -> None:
    with in_terminal("-c", LINES, env={"NO_COLOR": "1"}) as terminal:
        modes = terminal.modes
        terminal.wait_for_rows(">")
        terminal.type("end\r")
        assert terminal.wait() == 0
        rows = terminal.read()
        assert rows == ["> end", "read 'end'", *(f"line {n}" for n in range(100)), "ended"]
        assert terminal.modes == modes


def test_pasted_lines_are_lines_of_their_own() -> None:
    with in_terminal("-c", LINES) as terminal:
        terminal.wait_for_rows(">")
        terminal.type("\x1b[200~one\ntwo\x1b[201~\r")
        terminal.wait_for_rows("> one", "read 'one'", "> two", "read 'two'", ">")
        terminal.type("\x04")
        assert terminal.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_restores_the_terminal_and_erases_the_row(number: signal.Signals) -> None:
    with in_terminal("-c", LINES) as terminal:
        modes = terminal.modes
        terminal.wait_for_rows(">")
        assert terminal.modes != modes
        terminal.type("half a line")
        terminal.wait_for_rows("> half a line")
        terminal.process.send_signal(number)
        terminal.wait()
        assert terminal.modes == modes
        assert "half a line" not in "".join(terminal.read())


def test_a_slow_terminal_answers_no_question_of_a_command_that_has_ended() -> None:
    with in_terminal("-c", SHELL) as terminal:
        terminal.screen.late = []
        terminal.wait_for_rows(">")
        terminal.type("\x04")
        terminal.wait_for_row("^shell$")
        terminal.answer_late()
        terminal.type("next")
        terminal.wait_for_rows("next")


def test_the_terminal_does_not_echo_while_output_interrupts_the_prompt() -> None:
    with in_terminal("-c", LINES) as terminal:
        terminal.wait_for_rows(">")
        terminal.process.send_signal(signal.SIGUSR1)
        # The output blocks the command until it is read.
        wait_for(lambda: terminal.unread_bytes > 1000)
        assert not terminal.modes[3] & termios.ECHO
        terminal.wait_for_rows("x" * 100, ">")


def test_without_prompt_toolkit_the_terminal_edits_the_line() -> None:
    with in_terminal("-c", PLAIN) as terminal:
        terminal.wait_for_row("^prompt_toolkit is not installed, .*: pip install 'apachews")
        terminal.type("typed\n")
        terminal.wait_for_row("^read 'typed'$")
        terminal.type("\x04")
        assert terminal.wait() == 0
