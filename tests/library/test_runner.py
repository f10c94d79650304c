"""apachews.runner: any producer program, its end, and its next version."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews import wire
from apachews._processes.sd_notify import NotifyReceiver
from apachews.wire.reader import Moved

from ..conftest import let_pass, wait_for
from ..support.bridge_by_hand import Bridge, Load
from ..support.producers import (
    AS_SYSTEMD,
    ECHO,
    ROOT,
    children_of,
    ended,
    is_alive,
    program,
    running,
)

RUNNER = ("-m", "apachews.runner")
GOODBYE = wire.Close(1001, "the server closes")

# Knows nothing of how it is to end.
SEED = """
from apachews import *
import sys
server = Server(sys.argv[1])
while True:
    event = server.dequeue()
    if event.type() == Event.IO:
        event.write(event.read())
"""

# Hangs when it is told to.
HANGING = (
    SEED
    + """
    while event.read() == "hang":
        pass
"""
)


@pytest.fixture
def path(short_path: Path) -> str:
    return str(short_path / "a.ws")


@pytest.fixture
def systemd() -> Iterator[NotifyReceiver]:
    receiver = NotifyReceiver()
    yield receiver
    receiver.close()


def connected(path: str) -> Bridge:
    """Return a client that is served; wait for a producer as long as it takes."""
    wait_for(lambda: os.path.exists(path))
    bridge = Bridge(path)
    bridge.send(wire.TEXT, b"hello")
    assert wait_for(bridge.read_available) == ["hello"]
    return bridge


def run_both(*arguments: str) -> list[tuple[int, str]]:
    """Run a program as it is, and with the runner; return status and output of each."""
    return [
        (lambda result: (result.returncode, result.stdout + result.stderr))(
            subprocess.run(
                [sys.executable, *start, *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
        )
        for start in ((), RUNNER)
    ]


PROGRAMS = {
    "looks around": """
        import sys, inspect, __main__
        def here(): "It is found."
        print(sys.argv, sys.path[0], __name__, __file__, __spec__, __doc__, __main__.here is here)
        print(inspect.getsource(here))
        import beside
        """,
    "fails": """
        def inner():
            raise ValueError("no good")
        try:
            inner()
        except ValueError as error:
            raise KeyError(1) from error
        """,
    "does not compile": "x = = 1",
    "gives up": "import sys; print('bye'); sys.exit(3)",
    "complains": "raise SystemExit('wrong')",
    "is told so": "# -*- coding: latin-1 -*-\nprint('\xe9'.isalpha())",
    "interrupts": "raise KeyboardInterrupt",
    "fails in a thread": """
        import threading
        thread = threading.Thread(target=lambda: 1 / 0, name="one")
        thread.start(); thread.join()
        """,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_as_python_would_run_it(short_path: Path, name: str) -> None:
    (short_path / "beside.py").write_text("print('beside')")
    (short_path / "link.py").symlink_to("program.py")
    program(short_path, textwrap.dedent(PROGRAMS[name]))
    for file in ("program.py", "link.py"):
        plain, with_runner = run_both(str(short_path / file), "a", "--spread", "--", "b")
        if name == "interrupts":  # Python kills itself with SIGINT then
            assert (plain[0], with_runner[0]) == (-signal.SIGINT, 128 + signal.SIGINT)
            plain = (with_runner[0], plain[1])
        assert with_runner == plain


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("text", [SEED, ECHO])
def test_at_the_end_every_client_gets_a_close(
    short_path: Path, path: str, text: str, number: signal.Signals
) -> None:
    with running(*RUNNER, program(short_path, text), path) as process:
        bridges = [connected(path) for _ in range(3)]
        process.send_signal(number)
        assert ended(process) == (0, "")
        for bridge in bridges:
            assert bridge.read_available() == [GOODBYE]
            assert bridge.is_at_end
            bridge.socket.close()
    assert not os.path.exists(path)


def test_the_closes_are_spread(short_path: Path, path: str) -> None:
    with running(*RUNNER, "--spread", "0.4", program(short_path, SEED), path) as process:
        first, second = connected(path), connected(path)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: first.is_at_end or first.read_available())
        assert second.read_available() == []
        assert ended(process) == (0, "")
        assert second.read_available() == [GOODBYE]
        for bridge in (first, second):
            bridge.socket.close()


def test_held_clients_are_told_nothing(short_path: Path, path: str) -> None:
    command = (*RUNNER, "--hold", program(short_path, SEED), path)
    with running(*command) as process:
        load = Load(path, 5)
        wait_for(lambda: load.answered > 5)
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "")
    with running(*command) as process:
        enough = load.answered + 10
        wait_for(lambda: load.answered > enough)
        load.stop()
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "")
    assert (load.faults, load.lost, load.closes) == ([], 0, [])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_deploy_under_load_loses_nothing(short_path: Path, path: str, workers: str) -> None:
    with running(*RUNNER, program(short_path), path, workers) as process:
        wait_for(lambda: os.path.exists(path))
        load = Load(path, 10)
        try:
            for version in range(1, 4):
                enough = load.answered + 20
                wait_for(lambda enough=enough: load.answered > enough)  # type: ignore[misc]
                process.send_signal(signal.SIGHUP)
                wait_for(lambda version=version: load.accepts > version)  # type: ignore[misc]
            wait_for(lambda: len(children_of(process.pid)) == 1)
        finally:
            load.stop()
        assert (load.faults, load.lost, load.refused, load.closes) == ([], 0, 0, [])
        assert load.accepts == 4
        process.send_signal(signal.SIGTERM)
        status, output = ended(process)
    assert status == 0
    assert "Traceback" not in output
    assert not os.path.exists(path)


def test_the_next_version_is_new_code(short_path: Path, path: str) -> None:
    file = program(short_path, SEED)
    with running(*RUNNER, file, path) as process:
        old = connected(path)
        program(short_path, SEED.replace("event.read())", "'new: ' + event.read())"))
        process.send_signal(signal.SIGHUP)
        assert wait_for(old.read_available) == [Moved()]
        new = Bridge(path)
        old.send(wire.TEXT, b"last")
        old.send(wire.MOVE)
        assert wait_for(old.read_available) == ["last"]
        wait_for(lambda: old.is_at_end)
        new.send(wire.TEXT, b"hi")
        assert wait_for(new.read_available) == ["new: hi"]
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0
        for bridge in (old, new):
            bridge.socket.close()


@pytest.mark.parametrize(
    ("limit_s", "broken", "reason"),
    [
        ("10", "x = = 1", "exited with status 1 before it listened"),
        ("10", "import sys; sys.exit(0)", "exited with status 0 before it listened"),
        ("0.5", "import time\nwhile True: time.sleep(1)", "did not listen within 0.5 s"),
    ],
)
def test_a_version_that_does_not_come_up_changes_nothing(
    short_path: Path, path: str, systemd: NotifyReceiver, limit_s: str, broken: str, reason: str
) -> None:
    file = program(short_path, SEED)
    env = {"NOTIFY_SOCKET": systemd.address}
    with running(*RUNNER, "--start-timeout", limit_s, file, path, env=env) as process:

        def reload() -> list[str]:
            process.send_signal(signal.SIGHUP)
            said: list[str] = []
            wait_for(lambda: said.extend(lines(systemd, process)) or "READY=1" in said)  # type: ignore[func-returns-value]
            return said

        bridge = connected(path)
        # The socket accepts connections before systemd hears of it.
        wait_for(lambda: "READY=1" in lines(systemd, process))
        (child,) = children_of(process.pid)
        program(short_path, broken)
        said = reload()
        assert said[0] == "RELOADING=1"
        assert said[-2:] == ["READY=1", f"STATUS=reload failed: the new program {reason}"]
        bridge.send(wire.TEXT, b"still there")
        assert wait_for(bridge.read_available) == ["still there"]
        wait_for(lambda: children_of(process.pid) == [child])
        # A later attempt is better; a busy machine may need more than half a second for one.
        program(short_path, SEED)
        wait_for(lambda: not any("reload failed" in line for line in reload()), 60.0)
        assert wait_for(bridge.read_available) == [Moved()]
        bridge.socket.close()
        process.send_signal(signal.SIGTERM)
        status, output = ended(process)
    assert status == 0
    assert reason in output


def lines(systemd: NotifyReceiver, process: subprocess.Popen[str]) -> list[str]:
    """Return what systemd heard, which is only from the main process."""
    messages = list(systemd.receive_nowait())
    assert {pid for pid, _ in messages} <= {process.pid}
    return [line for _, assignments in messages for line in assignments]


def test_systemd_hears_it_all_from_the_main_process(
    short_path: Path, path: str, systemd: NotifyReceiver
) -> None:
    env = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "200000"}
    with running(*RUNNER, program(short_path, SEED), path, env=env) as process:
        said: list[str] = []

        def heard(*expected: str) -> bool:
            said.extend(lines(systemd, process))
            return said[: len(expected)] == list(expected)

        status = f"STATUS=listening on {path}"
        wait_for(lambda: heard("READY=1", status, "WATCHDOG=1", "WATCHDOG=1"))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: heard() and said.count("READY=1") == 2)
        reload = said[said.index("RELOADING=1") :]
        assert reload[1].startswith("MONOTONIC_USEC=")
        assert [line for line in reload[2:] if line != "WATCHDOG=1"] == ["READY=1", status]
        wait_for(lambda: len(children_of(process.pid)) == 1)
        said.clear()
        wait_for(lambda: heard("WATCHDOG=1", "WATCHDOG=1"))
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0
        assert heard()
        assert said[-1] == "STOPPING=1"
        assert "MAINPID" not in "".join(said)


def test_without_memory_for_a_new_process_the_old_one_goes_on(
    short_path: Path, path: str, tmp_path: Path
) -> None:
    # (An interpreter that is gone is as bad as no memory, and easier to bring about.)
    interpreter = tmp_path / "python"
    interpreter.symlink_to(os.path.realpath(sys.executable))
    text = f"""
import sys
from apachews.runner import main
sys.executable = {str(interpreter)!r}
main()
"""
    with running("-c", text, program(short_path, SEED), path) as process:
        bridge = connected(path)
        interpreter.unlink()
        process.send_signal(signal.SIGHUP)
        assert process.stdout
        assert "starting the new" in process.stdout.readline()
        assert "cannot be started" in process.stdout.readline()
        bridge.send(wire.TEXT, b"still there")
        assert wait_for(bridge.read_available) == ["still there"]
        bridge.socket.close()
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0


def test_two_deploys_at_once_are_two(short_path: Path, path: str) -> None:
    with running(*RUNNER, program(short_path, SEED), path) as process:
        connected(path).socket.close()
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(children_of(process.pid)) == 2)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        assert process.stdout
        said = ""
        while said.count("the clients move to it") < 2:
            said += process.stdout.readline()
        assert said.count("starting the new") == 2
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0


def test_a_program_that_hangs_ends_at_the_second_signal(short_path: Path, path: str) -> None:
    with running(*RUNNER, program(short_path, HANGING), path) as process:
        bridge = connected(path)
        bridge.send(wire.TEXT, b"hang")
        wait_for(bridge.read_available)
        process.send_signal(signal.SIGTERM)
        let_pass(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (128 + signal.SIGTERM, "")
        bridge.socket.close()


def test_a_deploy_where_the_old_program_hangs(short_path: Path, path: str) -> None:
    file = program(short_path, HANGING)
    with running(*RUNNER, file, path) as process:
        bridge = connected(path)
        bridge.send(wire.TEXT, b"hang")
        wait_for(bridge.read_available)
        (old,) = children_of(process.pid)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(children_of(process.pid)) == 2)
        wait_for(lambda: is_answering(path))
        process.send_signal(signal.SIGTERM)
        let_pass(0.1)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] in (0, 128 + signal.SIGTERM)
        assert not is_alive(old)
        bridge.socket.close()


IMPATIENT = """
import sys
from apachews import runner

runner.END_GRACE_S = 0.2
sys.exit(runner.main())
"""


def test_workers_that_hang_do_not_outlive_a_deploy(short_path: Path, path: str) -> None:
    text = HANGING.replace("Server(sys.argv[1])", "Server(sys.argv[1], workers=2)")
    assert text != HANGING
    file = program(short_path, text)
    with running("-c", IMPATIENT, "--drain-timeout", "0.2", file, path) as process:
        bridge = connected(path)
        bridge.send(wire.TEXT, b"hang")
        wait_for(bridge.read_available)
        (old,) = children_of(process.pid)
        workers = children_of(old)
        assert len(workers) == 2
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: not any(is_alive(pid) for pid in (old, *workers)))
        assert is_answering(path)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0
        bridge.socket.close()


def is_answering(path: str) -> bool:
    """Return whether a new client is answered within some time."""
    bridge = Bridge(path)
    bridge.send(wire.TEXT, b"hello?")
    let_pass(0.1)
    answers = bridge.read_available()
    bridge.socket.close()
    return bool(answers)


def test_the_watchdogs_abort_leaves_the_programs_traceback(short_path: Path, path: str) -> None:
    with running(*RUNNER, program(short_path, HANGING), path) as process:
        bridge = connected(path)
        bridge.send(wire.TEXT, b"hang")
        wait_for(bridge.read_available)
        process.send_signal(signal.SIGABRT)
        status, output = ended(process)
        assert status == 128 + signal.SIGABRT
        assert 'program.py", line 1' in output
        assert "Fatal Python error: Aborted" in output
        bridge.socket.close()


@pytest.mark.parametrize(("text", "status"), [("os._exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_the_programs_end_is_the_runners(short_path: Path, text: str, status: int) -> None:
    with running(*RUNNER, program(short_path, f"import os; {text}")) as process:
        assert ended(process) == (status, "")


def test_a_program_that_has_ended_may_take_its_time(short_path: Path) -> None:
    """A signal while Python waits for the last thread is not an error."""
    text = """
import os, sys, threading, time

def wait():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    print("the program has ended", flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    print("so has its thread", flush=True)

threading.Thread(target=wait).start()
"""
    go_on = short_path / "go-on"
    with running(*RUNNER, program(short_path, text), str(go_on)) as runner:
        assert runner.stdout
        assert runner.stdout.readline() == "the program has ended\n"
        runner.send_signal(signal.SIGTERM)
        let_pass(0.2)
        go_on.touch()
        assert ended(runner) == (0, "so has its thread\n")


def test_a_program_that_is_still_starting_just_ends(short_path: Path) -> None:
    text = "import time; print('starting', flush=True)\nwhile True: time.sleep(0.1)"
    with running(*RUNNER, program(short_path, text)) as process:
        assert process.stdout
        assert process.stdout.readline() == "starting\n"
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "")


def test_a_signal_in_a_callback_ends_a_program_that_is_still_starting(short_path: Path) -> None:
    # As a weak reference of the import system: Python discards what its callback raises.
    text = """
        import os, signal, time, weakref
        class Lock: pass
        lock = Lock()
        reference = weakref.ref(lock, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        del lock
        print("the program continues", flush=True)
        time.sleep(60)
    """
    done = subprocess.run(
        [sys.executable, *RUNNER, program(short_path, textwrap.dedent(text))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode == 128 + signal.SIGTERM  # the runner itself has received no signal


def test_when_the_runner_is_killed_the_clients_are_handed_on(short_path: Path, path: str) -> None:
    with running(*RUNNER, program(short_path, SEED), path) as process:
        bridge = connected(path)
        (child,) = children_of(process.pid)
        process.kill()
        assert wait_for(bridge.read_available) == [Moved()]
        bridge.send(wire.MOVE)
        wait_for(lambda: not is_alive(child))
        bridge.socket.close()


def test_of_several_servers_all_close_their_clients(short_path: Path) -> None:
    text = """
import sys, threading
from apachews import Server

def serve(path):
    server = Server(path)
    while True:
        event = server.dequeue()
        if event.read() == "hello":
            event.write("hello")

thread = threading.Thread(target=serve, args=(sys.argv[1],))
thread.start()
servers = [Server(path) for path in sys.argv[2:]]
while True:
    for server in servers:
        event = server.dequeue(0.01)
        if event and event.read() == "hello":
            event.write("hello")
"""
    paths = [str(short_path / name) for name in ("a.ws", "b.ws", "c.ws")]
    with running(*RUNNER, program(short_path, text), *paths) as process:
        bridges = [connected(path) for path in paths]
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "")
        for bridge in bridges:
            assert bridge.read_available() == [GOODBYE]
            bridge.socket.close()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_systemds_socket_is_kept_through_deploys(short_path: Path, path: str, workers: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        inode = os.stat(path).st_ino
        command = ("-c", AS_SYSTEMD, str(listening.fileno()), *RUNNER, program(short_path), path)
        with running(*command, workers, pass_fds=(listening.fileno(),)) as process:
            load = Load(path, 5)
            try:
                for version in (1, 2):
                    enough = load.answered + 10
                    wait_for(lambda enough=enough: load.answered > enough)  # type: ignore[misc]
                    process.send_signal(signal.SIGHUP)
                    wait_for(lambda version=version: load.accepts > version)  # type: ignore[misc]
            finally:
                load.stop()
            assert (load.faults, load.lost, load.refused, load.closes) == ([], 0, 0, [])
            process.send_signal(signal.SIGTERM)
            assert ended(process)[0] == 0
        assert os.stat(path).st_ino == inode


def test_a_module_is_deployed_like_a_file(short_path: Path, path: str) -> None:
    config = short_path / "live.toml"
    config.write_text("[default]\n")
    with running(*RUNNER, "-m", "apachews.channels", path, "--config", str(config)) as process:
        wait_for(lambda: os.path.exists(path))
        inode = os.stat(path).st_ino
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: os.stat(path).st_ino != inode)
        process.send_signal(signal.SIGTERM)
        status, output = ended(process)
    assert status == 0
    assert "starting the new apachews.channels" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: PROGRAM"),
        (["missing.py"], "cannot read PROGRAM 'missing.py': No such file or directory"),
        (["/"], "cannot read PROGRAM '/': Is a directory"),
        (["-m", "missing.module"], "cannot import PROGRAM 'missing.module'"),
        (["-m", ""], "cannot import PROGRAM ''"),
        (["--spread", "-1", "x.py"], "argument --spread: invalid number of seconds value: '-1'"),
        (["--drain-timeout", "soon", "x.py"], "invalid number of seconds value: 'soon'"),
    ],
)
def test_wrong_command_lines_are_explained(arguments: list[str], message: str) -> None:
    with running(*RUNNER, *arguments) as process:
        status, output = ended(process)
    assert status == 2
    assert message in output


def test_help() -> None:
    with running(*RUNNER, "--help") as process:
        status, output = ended(process)
    assert status == 0
    for word in ("TERM", "HUP", "--spread", "--hold", "--drain-timeout", "example"):
        assert word in output


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # The socket file cannot be made: one line.
        ("Server('/nonexistent/a.ws')", "{program}:2: [Errno 2] No such file or directory: create"),
        ("Server('/' + 'a' * 200)", "{program}:2: /aaaa"),
        # Any other failure of the program is a traceback.
        ("open('/nonexistent/a.ws')", "Traceback"),
        ("raise ServerError('/a.ws', 'mine', 'none')", "Traceback"),
    ],
)
def test_a_socket_file_that_cannot_be_made_is_one_line(
    text: str, shown: str, short_path: Path
) -> None:
    program = short_path / "program.py"
    program.write_text(
        f"from apachews import Server; from apachews.exceptions import ServerError\n{text}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "apachews.runner", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith(shown.format(program=program))
    assert (len(lines) == 1) is (shown != "Traceback")


def test_without_the_runner_the_traceback_is_of_the_program(short_path: Path) -> None:
    program = short_path / "program.py"
    program.write_text("from apachews import Server\nServer('/nonexistent/a.ws')\n")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "During handling" not in done.stderr
    files = [line for line in done.stderr.splitlines() if line.startswith("  File ")]
    assert len(files) == 2  # the program, and Server()
    assert "FileNotFoundError: [Errno 2] No such file or directory: create" in done.stderr


def test_without_the_runner_ctrl_c_is_the_programs(short_path: Path, path: str) -> None:
    """The library sets no handler: KeyboardInterrupt leaves the loop, and ``with`` closes."""
    text = textwrap.dedent("""
        import sys
        from apachews import *

        try:
            with Server(sys.argv[1]) as server:
                for event in server:
                    if event.type() is Event.IO:
                        event.write(event.read())
        except KeyboardInterrupt:
            print("interrupted")
    """)
    with running(program(short_path, text), path) as process:
        bridge = connected(path)
        process.send_signal(signal.SIGINT)
        assert ended(process) == (0, "interrupted\n")
        assert bridge.read_available() == [GOODBYE]
        bridge.socket.close()
    assert not os.path.exists(path)
