"""Drive a load generator (``load.py``) from the process that measures."""

from __future__ import annotations

import json
import subprocess
import tempfile
from types import TracebackType
from typing import Any

from .processes import end, python

# Bytes of its standard error that an exception quotes.
_TAIL_BYTES = 2000


class GeneratorFailed(Exception):
    """A load generator ended, or could not connect; the text has its last output."""


class Generator:
    """A load generator's process; a context manager that ends it."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- as long as this lives
        self._process = subprocess.Popen(
            python("bench.load"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # Ctrl-C goes to the benchmark only
        )

    def begin(self, do: str, **arguments: Any) -> None:
        """Send a command; ``finish`` waits for its answer."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise GeneratorFailed(self._why()) from None

    def finish(self) -> dict[str, Any]:
        """Wait for the answer to the command that has begun.

        Raises:
            GeneratorFailed: it has ended.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise GeneratorFailed(self._why())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its answer."""
        self.begin(do, **arguments)
        return self.finish()

    def connect(self, **arguments: Any) -> float:
        """Open connections; return how many seconds it took.

        Raises:
            GeneratorFailed: not all could be opened.
        """
        answer = self.ask("connect", **arguments)
        if answer["opened"] != arguments["count"]:
            raise GeneratorFailed(
                f"{answer['opened']} of {arguments['count']} connections to {arguments['url']}"
                f" could be opened: {'; '.join(answer['failures'])}"
            )
        seconds: float = answer["seconds"]
        return seconds

    def _why(self) -> str:
        self._process.wait(10)
        self._log.seek(0)
        tail = self._log.read()[-_TAIL_BYTES:].decode(errors="replace")
        return f"the load generator ended with {self._process.returncode}:\n{tail}"

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end(self._process)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass  # the reader of this pipe has ended
