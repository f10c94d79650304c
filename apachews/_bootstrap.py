"""Runs a producer program as ``python PROGRAM ARG…`` would, with signal handlers.

Contract: ``runner.py`` starts ``python -m apachews._bootstrap INSTRUCTIONS PROGRAM ARG…``, or with
``-m MODULE`` instead of PROGRAM.  The program has its own ``sys.argv``, ``sys.path`` and
``__main__``.  The signals mean for any program:

- SIGTERM, SIGINT: close all clients with 1001, or, with ``hold``, hand them over to the producer
  that listens next.  The second one terminates the process at once.
- SIGHUP, which the kernel also sends when the runner dies: hand the clients over.

A signal handler changes nothing itself, because it may interrupt the program anywhere.  It asks
every server of the process (``Server.call_soon``), and the next ``dequeue()``, or a waiting one,
closes or drains.  A program that hangs elsewhere does not react: the second SIGTERM ends it, or
SIGKILL, which systemd sends after ``TimeoutStopSec=``.  A program that has no server yet exits at
once.

``dequeue()`` raises ServerClosed at the end.  A program that does not catch it, like
``while True: server.dequeue()``, ends there, with status 0 and without a traceback.

This module stands beside ``runner.py`` and not in ``_processes/``, because it uses ``Server``,
which is above that folder.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import importlib.machinery
import io
import json
import os
import runpy
import signal
import sys
import threading
import types
from collections.abc import Callable

from ._processes.signals import signal_at_end_of
from .exceptions import ServerClosed, ServerError
from .server import Server, open_servers


@dataclasses.dataclass(frozen=True, slots=True)
class Instructions:
    """The runner's options that concern the program's process.

    Attributes:
        spread_s: seconds over which CLOSE frames are spread, see ``Server.close``.
        drain_timeout_s: the time limit for clients to move, see ``Server.drain``.
        hold: SIGTERM and SIGINT hand clients over as well.
        lifeline_fd: ends when the runner exits, see ``signals.Lifeline``.
    """

    spread_s: float
    drain_timeout_s: float
    hold: bool
    lifeline_fd: int

    def encode(self) -> str:
        """Return the command line's first argument."""
        return json.dumps(dataclasses.asdict(self))


class _SignalHandlers:
    """The handlers of SIGTERM, SIGINT and SIGHUP.

    Attributes:
        must_close: servers that are left must close their clients.
        has_ended: the program has; Python's own shutdown is left.
    """

    def __init__(self, instructions: Instructions) -> None:
        self._drain = functools.partial(Server.drain, timeout=instructions.drain_timeout_s)
        self._close = functools.partial(Server.close, spread=instructions.spread_s)
        self._hold = instructions.hold
        self.must_close = False
        self.has_ended = False
        self._is_ending = False
        self._number = 0  # of the last signal
        self._exit: SystemExit | None = None  # raised by a handler

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        signal.signal(signal.SIGHUP, self._hand_over)
        self._report = sys.unraisablehook
        sys.unraisablehook = self._end_if_exit_was_discarded

    def _end(self, number: int, frame: types.FrameType | None) -> None:
        self._number = number
        if self._is_ending:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._is_ending = True
        self.must_close = not self._hold
        self._ask(self._drain if self._hold else self._close)

    def _hand_over(self, number: int, frame: types.FrameType | None) -> None:
        self._number = number
        self._ask(self._drain)

    def _ask(self, call: Callable[[Server], None]) -> None:
        servers = open_servers()
        for server in servers:
            server.call_soon(functools.partial(call, server))
        if not servers and not self.has_ended:
            self._exit = SystemExit(0)
            raise self._exit

    def _end_if_exit_was_discarded(self, unraisable: sys.UnraisableHookArgs) -> None:
        """End the process by the signal's default action if Python discards the exception.

        It does so if the handler has interrupted a callback of the import system, or a
        ``__del__``: the program would continue, and no later signal would be the first.
        """
        if self._exit is None or unraisable.exc_value is not self._exit:
            self._report(unraisable)
            return
        signal.signal(self._number, signal.SIG_DFL)
        os.kill(os.getpid(), self._number)


def main() -> None:
    """Run the program of the command line."""
    instructions = Instructions(**json.loads(sys.argv[1]))
    del sys.argv[:2]
    if "LISTEN_FDS" in os.environ:  # the runner removes it if the sockets are not its own
        os.environ["LISTEN_PID"] = str(os.getpid())
    # Logs the traceback of a hanging program at the watchdog's SIGABRT.
    faulthandler.enable()
    handlers = _SignalHandlers(instructions)
    handlers.install()
    signal_at_end_of(instructions.lifeline_fd, signal.SIGHUP)
    _end_threads_quietly()
    try:
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            _run(sys.argv[0])
    except ServerClosed:
        pass
    finally:
        handlers.has_ended = True
    if handlers.must_close:
        _close_remaining_servers()


def _close_remaining_servers() -> None:
    """Close the servers whose loop has ended.

    If a program serves several in one loop, the first that closes ends the loop.  Servers of
    other threads have received the same call, and close there; a server is for one thread.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in others:
        if not thread.daemon:
            thread.join()  # as Python itself would at its end
    if not any(thread.is_alive() for thread in others):
        for server in open_servers():
            server.close()


def _run(path: str) -> None:
    """Run a file as ``__main__``; the traceback of an exception begins in it."""
    module = types.ModuleType("__main__")
    module.__file__ = os.path.abspath(path)
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", module.__file__)
    sys.modules["__main__"] = module
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    code: types.CodeType | None = None
    show = sys.excepthook

    def show_without_our_frames(
        kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None
    ) -> None:
        while traceback is not None and traceback.tb_frame.f_code is not code:
            traceback = traceback.tb_next
        if isinstance(error, (OSError, ServerError)) and (place := _call_of_server(traceback)):
            print(f"{place}: {error}", file=sys.stderr)
            return
        show(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = show_without_our_frames
    with io.open_code(module.__file__) as file:
        source = file.read()
    code = compile(source, module.__file__, "exec", dont_inherit=True)
    exec(code, module.__dict__)


def _call_of_server(traceback: types.TracebackType | None) -> str:
    """Return the file and line that made a server whose socket file failed; "" for others.

    The text of that exception is for the user; a traceback would hide it.
    """
    place = ""
    while traceback is not None:
        if traceback.tb_frame.f_code is Server.__init__.__code__:
            return place
        place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return ""


def _end_threads_quietly() -> None:
    """Let ServerClosed end a thread without a traceback, like the main thread."""
    show = threading.excepthook

    def show_unless_closed(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, ServerClosed):
            show(args)

    threading.excepthook = show_unless_closed


if __name__ == "__main__":
    main()
