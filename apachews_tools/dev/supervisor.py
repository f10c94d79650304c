"""A private Apache and the producers behind it, as one thing that starts and ends.

Contract: ``Supervisor(…).run()`` starts everything, and returns an exit status when all
of it has ended: after SIGINT, SIGTERM or SIGHUP, in order, the producers (which say
goodbye to their clients) before Apache; at the second of these signals, at once and
by force; or because Apache has ended by itself.  A producer that ends is started
again, after a delay that grows.  No process is left, nor a socket file.  For the main
thread; what happened is told through two functions.

How this works: one loop waits for signals, for what the producers write, and for what
their runners tell (``runner.py`` speaks systemd's protocol); ten times a second it
looks at Apache's logs, and at the sources where these are watched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import os
import selectors
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from apachews._processes.sd_notify import NotifyReceiver
from apachews._processes.signals import Signals
from apachews_tools.cli.log_lines import FileFollower, LineSplitter, brief
from apachews_tools.httpd.private_apache import (
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    ApacheError,
    PrivateApache,
    as_apache_user,
    environment,
)

from .source_watch import SourceWatch

TICK_S: Final = 0.1
# Between two looks at the sources.
WATCH_INTERVAL_S: Final = 0.3
# A producer that ends is started again after the first of these; each time that it
# ends early, after twice as long, up to the second.
FIRST_DELAY_S: Final = 0.5
MAX_DELAY_S: Final = 30.0
# One that has lived for so long has not ended early.
HEALTHY_S: Final = 10.0
# After that the start is announced without the producers that do not listen yet.
READY_TIMEOUT_S: Final = 5.0
# What a producer may take to say goodbye; the runner sets no limit of its own.
END_TIMEOUT_S: Final = 10.0

APACHE: Final = "apache"
ACCESS: Final = "access"
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True, slots=True)
class Producer:
    """A program and the socket file it is to listen on.

    Attributes:
        arguments: more of the program's, after the socket file.
    """

    name: str
    program: Path
    socket: Path
    arguments: tuple[str, ...] = ()


class _Phase(enum.Enum):
    """Each of them ends with the next, or with a kill."""

    STARTING = "until Apache answers and the producers listen"
    RUNNING = "until a signal, or the end of Apache"
    PRODUCERS_END = "until the last producer has ended"
    APACHE_ENDS = "until Apache has ended"
    OVER = "all is gone"


class _Program:
    """A producer's process, or the wait for the next one."""

    def __init__(self, producer: Producer, watch: SourceWatch | None) -> None:
        self.producer = producer
        self.watch = watch
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at = 0.0
        self.is_ready = False  # it listens
        self.has_failed = False
        self._started_at = 0.0
        self._delay_s = FIRST_DELAY_S

    def start(self, command: list[str], env: dict[str, str]) -> int:
        """Start it; return the descriptor of what it writes, which is the caller's."""
        reader, writer = os.pipe()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                # Ctrl-C is for this process, which ends them in order.
                start_new_session=True,
                env=env,
                **as_apache_user(),
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        os.set_blocking(reader, False)
        self.is_ready = False
        self._started_at = time.monotonic()
        return reader

    def take_end(self) -> tuple[int, float] | None:
        """Return the status and the delay of the next start, where it has ended."""
        if self.process is None or self.process.poll() is None:
            return None
        status = self.process.returncode
        self.process = None
        self.is_ready = False
        self.has_failed = True
        if time.monotonic() - self._started_at > HEALTHY_S:
            self._delay_s = FIRST_DELAY_S
        delay_s, self._delay_s = self._delay_s, min(self._delay_s * 2, MAX_DELAY_S)
        self.start_at = time.monotonic() + delay_s
        return status, delay_s

    def start_soon(self) -> None:
        """Start without a delay."""
        self.start_at, self._delay_s = 0.0, FIRST_DELAY_S


class Supervisor:
    """Runs Apache and producers.

    Args:
        apache: not started yet.
        producers: those behind it.
        python: the interpreter for them.
        reload: whether to start the next version of a program whose source changes.
        verbose: whether to show all of Apache's logs.
        show: gets each line that somebody writes: who, the line, a colour or None.
        say: gets what this has to say itself.
        on_ready: called once, when Apache answers.
    """

    def __init__(
        self,
        apache: PrivateApache,
        producers: Sequence[Producer],
        *,
        python: Path,
        reload: bool = False,
        verbose: bool = False,
        show: Callable[[str, str, str | None], None],
        say: Callable[[str], None],
        on_ready: Callable[[], None],
    ) -> None:
        self._apache = apache
        programs = {producer.program for producer in producers}
        self._programs = [
            _Program(
                producer,
                SourceWatch(producer.program, programs - {producer.program}) if reload else None,
            )
            for producer in producers
        ]
        self._python = python
        self._verbose = verbose
        self._show = show
        self._say = say
        self._on_ready = on_ready
        self._error_log = FileFollower(apache.root / "error.log")
        self._access_log = FileFollower(apache.root / "access.log") if verbose else None
        self._phase = _Phase.STARTING
        self._is_answering = False
        self._deadline = 0.0  # of the phase, where it has one
        self._status = 0
        self._watch_at = 0.0
        self._times_told = 0

    def run(self) -> int:
        """Run everything until it has ended; return the exit status.

        Raises:
            ApacheError: Apache did not start.
        """
        self._signals = Signals((*_ENDING, signal.SIGCHLD))
        self._receiver = NotifyReceiver()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ, self._take_signals)
        self._selector.register(self._receiver, selectors.EVENT_READ, self._take_notes)
        try:
            self._apache.launch()
            now = time.monotonic()
            self._announce_by = now + READY_TIMEOUT_S
            self._deadline = now + START_TIMEOUT_S
            while self._phase is not _Phase.OVER:
                self._turn()
        finally:
            self._kill_everything()
            for key in list(self._selector.get_map().values()):
                if key.fileobj not in (self._signals, self._receiver):
                    os.close(key.fd)
            self._selector.close()
            self._receiver.close()
            self._signals.close()
        return self._status

    def _turn(self) -> None:
        for key, _ in self._selector.select(TICK_S):
            key.data()
        self._show_logs()
        self._look_after_programs()
        if self._phase is _Phase.STARTING:
            self._look_for_start()
        elif self._phase is _Phase.RUNNING:
            self._look_at_sources()
        elif self._phase is _Phase.PRODUCERS_END:
            self._look_for_end_of_producers()
        if self._phase is _Phase.APACHE_ENDS:
            self._look_for_end_of_apache()
        elif self._apache.poll() is not None and self._phase in (_Phase.STARTING, _Phase.RUNNING):
            self._take_end_of_apache()

    # Starting

    def _look_for_start(self) -> None:
        now = time.monotonic()
        are_ready = all(program.is_ready or program.has_failed for program in self._programs)
        if not self._is_answering:
            self._is_answering = self._apache.is_answering(TICK_S)
            if self._access_log:
                self._access_log.skip()  # these questions
            if now > self._deadline:
                raise ApacheError(self._apache.why_not_started())
            return
        if are_ready or now > self._announce_by:
            self._phase = _Phase.RUNNING
            self._on_ready()

    def _start(self, program: _Program) -> None:
        producer = program.producer
        env = dict(environment(), NOTIFY_SOCKET=self._receiver.address, PYTHONUNBUFFERED="1")
        # Meant for whoever started this, by whoever did.
        for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"):
            env.pop(name, None)
        command = [str(self._python), "-m", "apachews.runner"]
        command += [str(producer.program), str(producer.socket), *producer.arguments]
        fd = program.start(command, env)
        read = functools.partial(self._read_output, fd, producer.name, LineSplitter())
        self._selector.register(fd, selectors.EVENT_READ, read)

    # Running

    def _take_signals(self) -> None:
        for number in self._signals.receive_nowait():
            if number in _ENDING:
                self._times_told += 1
                if self._times_told == 1:
                    self._end_producers()
                else:
                    self._say("ending at once")
                    self._status = 128 + number
                    self._phase = _Phase.OVER

    def _take_notes(self) -> None:
        for pid, assignments in self._receiver.receive_nowait():
            for program in self._programs:
                if program.process and program.process.pid == pid and "READY=1" in assignments:
                    self._take_ready(program)

    def _take_ready(self, program: _Program) -> None:
        producer = program.producer
        program.is_ready = True
        if not producer.socket.exists():
            self._say(
                f"{producer.name} listens, but not on {producer.socket}: have it take the path"
                " from its argument, as Server(sys.argv[1])"
            )

    def _read_output(self, fd: int, name: str, splitter: LineSplitter) -> None:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        for line in splitter.feed(data):
            self._show(name, line, None)
        if not data:
            self._selector.unregister(fd)
            os.close(fd)

    def _show_logs(self) -> None:
        for line in self._error_log.read_lines():
            if shown := brief(line, self._verbose):
                self._show(APACHE, *shown)
        if self._access_log:
            for line in self._access_log.read_lines():
                self._show(ACCESS, line, None)

    def _look_after_programs(self) -> None:
        may_start = self._phase in (_Phase.STARTING, _Phase.RUNNING)
        for program in self._programs:
            end = program.take_end()
            if end and may_start:
                status, delay_s = end
                how = f"status {status}" if status >= 0 else _signal_name(-status)
                self._say(f"{program.producer.name} has ended with {how}; again in {delay_s:g} s")
            if may_start and not program.process and time.monotonic() >= program.start_at:
                self._start(program)

    def _look_at_sources(self) -> None:
        if time.monotonic() < self._watch_at:
            return
        self._watch_at = time.monotonic() + WATCH_INTERVAL_S
        for program in self._programs:
            changed = program.watch.changed() if program.watch else None
            if changed is None:
                continue
            self._say(f"{changed} has changed: the next {program.producer.name}")
            program.start_soon()
            if program.process and program.is_ready:
                program.process.send_signal(signal.SIGHUP)
            elif program.process:
                program.process.terminate()  # nobody has come to it yet

    # Ending

    def _end_producers(self) -> None:
        self._phase = _Phase.PRODUCERS_END
        self._deadline = time.monotonic() + END_TIMEOUT_S
        for program in self._programs:
            if program.process:
                program.process.terminate()

    def _look_for_end_of_producers(self) -> None:
        late = [program for program in self._programs if program.process]
        if late and time.monotonic() < self._deadline:
            return
        for program in late:
            self._say(f"{program.producer.name} has not ended in time, and is killed")
            _kill_tree(program.process)
        self._phase = _Phase.APACHE_ENDS
        self._deadline = time.monotonic() + STOP_TIMEOUT_S
        self._apache.terminate()

    def _look_for_end_of_apache(self) -> None:
        if self._apache.poll() is None:
            if time.monotonic() < self._deadline:
                return
            self._say("Apache has not ended in time, and is killed")
        self._phase = _Phase.OVER

    def _take_end_of_apache(self) -> None:
        if self._phase is _Phase.STARTING:
            raise ApacheError(self._apache.why_not_started())
        self._say(f"Apache has ended by itself, with status {self._apache.poll()}")
        self._status = 1
        self._end_producers()

    def _kill_everything(self) -> None:
        """Leave nothing behind; there is nothing left where all went in order."""
        for program in self._programs:
            _kill_tree(program.process)
        self._apache.kill()
        for program in self._programs:
            _remove_dead_socket(program.producer.socket)
        # Last words.
        for key in list(self._selector.get_map().values()):
            if key.fileobj not in (self._signals, self._receiver):
                with contextlib.suppress(OSError):
                    key.data()
        with contextlib.suppress(OSError):
            self._show_logs()


def _kill_tree(process: subprocess.Popen[bytes] | None) -> None:
    """Kill a process and all that it has started, which hear nothing of it."""
    if process is None or process.poll() is not None:
        return
    # Stopped first, for the end of one is told to those that it has started, which would
    # say goodbye, or started anew by the one that it was started by.
    tree: list[int] = []
    new = [process.pid]
    while new:
        for pid in new:
            _send(pid, signal.SIGSTOP)
        tree += new
        new = [pid for pid in _descendants(process.pid) if pid not in tree]
    for pid in tree:
        _send(pid, signal.SIGKILL)
    process.wait()


def _send(pid: int, number: signal.Signals) -> None:
    # It may have ended; or be somebody else's, by sudo say, and not ours to end.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):  # it has just ended
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def is_listened_on(path: Path) -> bool:
    """Tell whether a producer listens on a socket file.

    Raises:
        OSError: there is no socket, or it may not be asked.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except (BlockingIOError, TimeoutError):
            pass  # it is busy
        return True


def _remove_dead_socket(path: Path) -> None:
    """Remove the socket file of a producer that was killed."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(path.stat().st_mode) and not is_listened_on(path):
            path.unlink()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
