"""Runs a private Apache and its producers, which start and end together.

Contract: ``Supervisor(…).run()`` starts all processes, and returns an exit status when all
have exited: after SIGINT, SIGTERM or SIGHUP in order, the producers (which close their
clients with 1001) before Apache; after a second signal at once, by SIGKILL; or because
Apache has exited.  A producer that exits is started again after a growing delay.  No
process and no socket file remains.  Runs on the main thread; two functions report events.

How this works: one loop waits for signals, for the output of the producers, and for the
sd_notify messages of their runners (``apachews.runner``).  Ten times a second it reads
Apache's logs, and less often the times of the sources if they are watched.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import signal
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from apachews._listening.endpoint import Unreachable, is_listened_on
from apachews._processes.signals import Signals
from apachews._processes.supervise import ChildEvents, describe_exit
from apachews_tools.cli.log_lines import FileFollower, LineSplitter, brief
from apachews_tools.httpd.private_apache import (
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    ApacheError,
    PrivateApache,
    environment,
)

from .program import Producer, ProgramProcess
from .source_watch import SourceWatch

TICK_S: Final = 0.1
# Between two looks at the sources.
WATCH_INTERVAL_S: Final = 0.3
# After this time the start is announced, even if some producers do not listen yet.
READY_TIMEOUT_S: Final = 5.0
# For a producer to close its clients and exit; the runner sets no limit of its own.
STOP_PRODUCERS_TIMEOUT_S: Final = 10.0

APACHE: Final = "apache"
ACCESS: Final = "access"
# The service manager that started this process addressed them to this process.
_OWN_VARIABLES: Final = (
    *("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"),
    *("WATCHDOG_USEC", "WATCHDOG_PID"),
)


class _Phase(enum.Enum):
    """In this order; by force the last one follows any other."""

    STARTING = "until Apache answers and the producers listen"
    RUNNING = "until a signal, or the exit of Apache"
    STOPPING_PRODUCERS = "until the last producer has exited"
    STOPPING_APACHE = "until Apache has exited"
    OVER = "no process is left"


class Supervisor:
    """Runs Apache and producers.

    Args:
        apache: not started yet.
        producers: those that Apache connects to.
        python: the interpreter for them.
        reload: whether to start the next version of a program whose source changes.
        verbose: whether to show all of Apache's logs.
        show: gets each line that a process writes: its name, the line, a colour or None.
        say: gets the messages of the supervisor itself.
        on_ready: called once, when Apache answers.
        signals: receives signals before ``run``, and after it.
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
        signals: Signals,
    ) -> None:
        self._apache = apache
        files = {producer.program for producer in producers}
        self._programs = [
            ProgramProcess(
                producer,
                SourceWatch(producer.program, files - {producer.program}) if reload else None,
            )
            for producer in producers
        ]
        self._python = python
        self._verbose = verbose
        self._show = show
        self._say = say
        self._on_ready = on_ready
        self._signals_before = signals
        self._error_log = FileFollower(apache.root / "error.log")
        self._access_log = FileFollower(apache.root / "access.log") if verbose else None
        self._phase = _Phase.STARTING
        self._is_answering = False
        self._deadline = 0.0  # of the phase
        self._announce_by = 0.0
        self._watch_at = 0.0
        self._signals_received = 0
        self._status = 0

    def run(self) -> int:
        """Run everything until it has ended; return the exit status.

        Raises:
            ApacheError: Apache did not start.
        """
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._events = ChildEvents(signals, self._on_signal, self._on_message)
        try:
            # Every signal until this line is in one of the two: the earlier receiver, or
            # ``_events``, which has replaced it.
            if self._signals_before.receive_nowait():
                return 0  # nothing has started
            self._apache.launch()
            now = time.monotonic()
            self._announce_by = now + READY_TIMEOUT_S
            self._deadline = now + START_TIMEOUT_S
            while self._phase is not _Phase.OVER:
                self._turn()
        finally:
            self._kill_everything()
            for fd in self._events.readers:
                os.close(fd)
            self._events.close()
        return self._status

    def _turn(self) -> None:
        self._events.wait(TICK_S)
        self._show_logs()
        self._reap_and_start_programs()
        if self._phase is _Phase.STARTING:
            self._check_start()
        elif self._phase is _Phase.RUNNING:
            self._check_sources()
        elif self._phase is _Phase.STOPPING_PRODUCERS:
            self._check_stop_of_producers()
        if self._phase is _Phase.STOPPING_APACHE:
            self._check_stop_of_apache()
        elif self._apache.poll() is not None and self._phase in (_Phase.STARTING, _Phase.RUNNING):
            self._on_exit_of_apache()

    # Starting

    def _check_start(self) -> None:
        now = time.monotonic()
        are_ready = all(program.is_ready or program.has_failed for program in self._programs)
        if not self._is_answering:
            self._is_answering = self._apache.is_answering(TICK_S)
            if self._access_log:
                self._access_log.skip()  # the requests of is_answering
            if now > self._deadline:
                raise ApacheError(self._apache.why_not_started())
            return
        if are_ready or now > self._announce_by:
            self._phase = _Phase.RUNNING
            self._on_ready()

    def _start(self, program: ProgramProcess) -> None:
        producer = program.producer
        env = dict(environment(), NOTIFY_SOCKET=self._events.address, PYTHONUNBUFFERED="1")
        for name in _OWN_VARIABLES:
            env.pop(name, None)
        command = [str(self._python), "-m", "apachews.runner"]
        if producer.module:
            command += ["-m", producer.module, str(producer.socket)]
            command += ["--config", str(producer.program), *producer.arguments]
        else:
            command += [str(producer.program), str(producer.socket), *producer.arguments]
        fd = program.start(command, env)
        read = functools.partial(self._read_output, fd, producer.name, LineSplitter())
        self._events.add_reader(fd, read)

    # Running

    def _on_signal(self, number: int) -> None:
        self._signals_received += 1
        if self._signals_received == 1:
            self._stop_producers()
        else:
            self._say("killing all processes at once")
            self._status = 128 + number
            self._phase = _Phase.OVER

    def _on_message(self, pid: int, assignments: list[str]) -> None:
        for program in self._programs:
            if program.process and program.process.pid == pid and "READY=1" in assignments:
                self._on_program_ready(program)

    def _on_program_ready(self, program: ProgramProcess) -> None:
        producer = program.producer
        program.is_ready = True
        if not producer.socket.exists():
            self._say(
                f"{producer.name} does not listen on {producer.socket}: the program must take the"
                " path from its argument, as in Server(sys.argv[1])"
            )

    def _read_output(self, fd: int, name: str, splitter: LineSplitter) -> None:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        for line in splitter.feed(data):
            self._show(name, line, None)
        if not data:
            self._events.remove_reader(fd)
            os.close(fd)

    def _show_logs(self) -> None:
        for line in self._error_log.read_lines():
            if shown := brief(line, self._verbose):
                self._show(APACHE, *shown)
        if self._access_log:
            for line in self._access_log.read_lines():
                self._show(ACCESS, line, None)

    def _reap_and_start_programs(self) -> None:
        may_start = self._phase in (_Phase.STARTING, _Phase.RUNNING)
        for program in self._programs:
            exited = program.reap()
            if exited and may_start:
                code, delay_s = exited
                name, how = program.producer.name, describe_exit(code)
                self._say(f"{name} exited with {how}; restart in {delay_s:g} s")
            if may_start and not program.process and time.monotonic() >= program.start_at:
                self._start(program)

    def _check_sources(self) -> None:
        if time.monotonic() < self._watch_at:
            return
        self._watch_at = time.monotonic() + WATCH_INTERVAL_S
        for program in self._programs:
            changed = program.watch.changed() if program.watch else None
            if changed is None:
                continue
            self._say(f"{changed} has changed: starting the next {program.producer.name}")
            program.start_soon()
            if program.process and program.is_ready:
                program.process.send_signal(signal.SIGHUP)  # the runner starts the next version
            elif program.process:
                program.process.terminate()  # it has no clients yet

    # Stopping

    def _stop_producers(self) -> None:
        self._phase = _Phase.STOPPING_PRODUCERS
        self._deadline = time.monotonic() + STOP_PRODUCERS_TIMEOUT_S
        for program in self._programs:
            if program.process:
                program.process.terminate()

    def _check_stop_of_producers(self) -> None:
        late = [program for program in self._programs if program.process]
        if late and time.monotonic() < self._deadline:
            return
        for program in late:
            self._say(f"{program.producer.name} did not exit in time; killing it")
            program.kill()
        self._phase = _Phase.STOPPING_APACHE
        self._deadline = time.monotonic() + STOP_TIMEOUT_S
        self._apache.terminate()

    def _check_stop_of_apache(self) -> None:
        if self._apache.poll() is None:
            if time.monotonic() < self._deadline:
                return
            self._say("Apache did not exit in time; killing it")
        self._phase = _Phase.OVER

    def _on_exit_of_apache(self) -> None:
        if self._phase is _Phase.STARTING:
            raise ApacheError(self._apache.why_not_started())
        self._say(f"Apache exited unexpectedly, with status {self._apache.poll()}")
        self._status = 1
        self._stop_producers()

    def _kill_everything(self) -> None:
        """Kill what still runs, which after an orderly end is nothing; show the last output."""
        for program in self._programs:
            program.kill()
        self._apache.kill()
        for program in self._programs:
            _remove_dead_socket(program.producer.socket)
        for read in self._events.readers.values():
            with contextlib.suppress(OSError):
                read()
        with contextlib.suppress(OSError):
            self._show_logs()


def _remove_dead_socket(path: Path) -> None:
    """Remove the socket file of a producer that was killed."""
    with contextlib.suppress(OSError, Unreachable):  # it does not exist
        if stat.S_ISSOCK(path.stat().st_mode) and not is_listened_on(str(path)):
            path.unlink()
