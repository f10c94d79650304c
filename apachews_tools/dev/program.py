"""One producer of ``apachews run``: its process, or the wait for the next one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from pathlib import Path
from typing import Final

from apachews._processes.supervise import RestartDelay, kill_tree
from apachews_tools.httpd.private_apache import as_apache_user

from .source_watch import SourceWatch

# A program that exits is started again after the first delay.  The delay doubles with each
# early exit, up to the maximum, and a program that has run for HEALTHY_S did not exit early.
FIRST_DELAY_S: Final = 0.5
MAX_DELAY_S: Final = 30.0
HEALTHY_S: Final = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Producer:
    """A program and the socket file it is to listen on.

    Attributes:
        arguments: those of the program after the socket file.
        module: it runs instead, with ``program`` as its configuration.
    """

    name: str
    program: Path
    socket: Path
    arguments: tuple[str, ...] = ()
    module: str = ""


class ProgramProcess:
    """The runner of one producer.

    Attributes:
        process: None while none runs.
        is_ready: whether the program listens.
        has_failed: whether one of its processes has exited by itself.
        start_at: when the next process is due (``time.monotonic()``).
    """

    def __init__(self, producer: Producer, watch: SourceWatch | None) -> None:
        self.producer = producer
        self.watch = watch
        self.process: subprocess.Popen[bytes] | None = None
        self.is_ready = False
        self.has_failed = False
        self.start_at = 0.0
        self._started_at = 0.0
        self._delay = RestartDelay(FIRST_DELAY_S, MAX_DELAY_S, HEALTHY_S)

    def start(self, command: list[str], env: dict[str, str]) -> int:
        """Start the process; return the descriptor of its output, which the caller closes."""
        reader, writer = os.pipe()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                # Ctrl-C reaches the supervisor only, which ends the programs in order.
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

    def reap(self) -> tuple[int, float] | None:
        """Return code and restart delay if the process has exited since the last call."""
        if self.process is None or self.process.poll() is None:
            return None
        code = self.process.returncode
        self.process = None
        self.is_ready = False
        self.has_failed = True
        now = time.monotonic()
        delay_s = self._delay.after_run(now - self._started_at)
        self.start_at = now + delay_s
        return code, delay_s

    def start_soon(self) -> None:
        """Start the next process without a delay."""
        self.start_at = 0.0
        self._delay.reset()

    def kill(self) -> None:
        """Kill the process and its descendants, which get no chance to react."""
        if self.process and self.process.poll() is None:
            kill_tree(self.process.pid)
            self.process.wait()
